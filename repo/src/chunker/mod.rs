//! Where content is cut into chunks. The definition is section 6.1 of `repo/FORMAT.md`.
//!
//! ```text
//!   DiskChunker    disks: cut between blocks of 4 KiB, zero blocks left out, each window on its own     aligned.rs
//!   StreamChunker  files and streams, whose content shifts by bytes: FastCDC                            stream.rs
//!        \  /
//!      Chunker     one question: what is the first piece of these bytes?
//!        /  \
//!   Pieces       the pieces of bytes that lie in memory                                                 here
//!   rechunk      the pieces of a window of which some blocks changed, reading no more than it must      changed.rs
//! ```
//!
//! Not here: I/O, keys and ids; seed and gear table are parameters. What holds: the answer depends on nothing but the
//! parameters and the bytes from the piece's beginning on, so any thread may ask about any window, in any order; pieces tile
//! the bytes; a chunk is never empty and never longer than the maximum; of a disk, the zero pieces are exactly the all-zero
//! blocks.

mod aligned;
mod changed;
#[cfg(test)]
mod sample;
mod stream;

pub use aligned::{BLOCK, DiskChunker, DiskParams};
pub use changed::{EmitRecut, OldWindow, ReadBlocks, Recut, rechunk};
pub use stream::{StreamChunker, StreamParams};

use std::ops::Range;

/// A stretch of content, in bytes of the buffer that was asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A chunk.
    Chunk(Range<usize>),
    /// All-zero blocks, which belong to no chunk. Only of disks.
    Zero(Range<usize>),
}

impl Piece {
    /// The bytes it covers.
    #[must_use]
    pub fn range(&self) -> &Range<usize> {
        match self {
            Piece::Chunk(range) | Piece::Zero(range) => range,
        }
    }

    /// The same piece in a buffer that begins `by` bytes earlier.
    fn moved(self, by: usize) -> Piece {
        let moved = |range: Range<usize>| range.start + by..range.end + by;
        match self {
            Piece::Chunk(range) => Piece::Chunk(moved(range)),
            Piece::Zero(range) => Piece::Zero(moved(range)),
        }
    }
}

/// What comes after the bytes that are asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// More bytes, which the caller has not got yet.
    More,
    /// Nothing: the window or the stream ends with them.
    End,
}

/// A way to cut content.
pub trait Chunker {
    /// The first piece of `bytes`, which begin where a piece begins.
    ///
    /// `None`: they are too few to decide. That is so of no bytes at all, of fewer than the longest chunk while
    /// [`Tail::More`] follows, and of less than one block of a disk. While more follows, a run of zeroes may come in several
    /// pieces; chunks are always final.
    fn cut(&self, bytes: &[u8], tail: Tail) -> Option<Piece>;

    /// The pieces of `bytes`, in order, as far as they are decided: all of them before [`Tail::End`].
    fn pieces<'a>(&'a self, bytes: &'a [u8], tail: Tail) -> Pieces<'a, Self>
    where
        Self: Sized,
    {
        Pieces { chunker: self, bytes, tail, at: 0 }
    }
}

/// The pieces of bytes in memory, in order: see [`Chunker::pieces`].
#[derive(Debug)]
pub struct Pieces<'a, C> {
    chunker: &'a C,
    bytes: &'a [u8],
    tail: Tail,
    at: usize,
}

impl<C: Chunker> Iterator for Pieces<'_, C> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let piece = self.chunker.cut(self.bytes.get(self.at..)?, self.tail)?.moved(self.at);
        self.at = piece.range().end;
        Some(piece)
    }
}
