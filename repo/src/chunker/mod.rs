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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use std::time::Instant;

    /// Cuts `bytes` as they come in bites, keeping no more than what is undecided; runs of zeroes are joined again.
    fn in_bites<C: Chunker>(chunker: &C, bytes: &[u8], bites: &[usize]) -> Vec<Piece> {
        let mut joined: Vec<Piece> = Vec::new();
        let (mut rest, mut open, mut at) = (bytes, Vec::new(), 0);
        let mut bites = bites.iter().cycle();
        loop {
            let (bite, more) = rest.split_at(rest.len().min(*bites.next().unwrap()));
            rest = more;
            open.extend_from_slice(bite);
            let tail = if rest.is_empty() { Tail::End } else { Tail::More };
            let pieces: Vec<_> = chunker.pieces(&open, tail).collect();
            let decided = pieces.last().map_or(0, |piece| piece.range().end);
            for piece in pieces {
                match (joined.last_mut(), piece.moved(at)) {
                    (Some(Piece::Zero(last)), Piece::Zero(next)) => last.end = next.end,
                    (_, piece) => joined.push(piece),
                }
            }
            open.drain(..decided);
            at += decided;
            if tail == Tail::End {
                return joined;
            }
        }
    }

    /// What holds of every chunker, for content of which `max` is the longest chunk.
    fn check_laws<C: Chunker>(chunker: &C, bytes: &[u8], min: usize, max: usize, bites: &[usize]) {
        let pieces: Vec<_> = chunker.pieces(bytes, Tail::End).collect();
        let mut end = 0;
        for piece in &pieces {
            let range = piece.range();
            assert_eq!(range.start, end, "pieces tile the bytes");
            assert!(!range.is_empty());
            end = range.end;
            if let Piece::Chunk(range) = piece {
                assert!(range.len() <= max, "{range:?} is longer than {max}");
                let cut_short = end == bytes.len() || crate::zero::is_zero(&bytes[end..bytes.len().min(end + BLOCK)]);
                assert!(range.len() >= min || cut_short, "{range:?} is shorter than {min}");
            }
        }
        assert_eq!(end, bytes.len(), "pieces cover the bytes");
        assert_eq!(pieces, chunker.pieces(bytes, Tail::End).collect::<Vec<_>>(), "the same again");
        assert_eq!(pieces, in_bites(chunker, bytes, bites), "the same in bites");
    }

    fn gear(bytes: &[u8]) -> [u64; 256] {
        let (entries, _) = bytes.as_chunks::<8>();
        std::array::from_fn(|i| u64::from_le_bytes(entries[i]))
    }

    proptest! {
        #[test]
        fn laws_hold_for_disks(
            params in sample::params(), seed: u64, numbers in sample::disks(),
            bites in prop::collection::vec(1usize..300_000, 1..5),
        ) {
            let chunker = DiskChunker::new(params, seed).unwrap();
            check_laws(&chunker, &sample::disk(&numbers), params.min as usize, params.max as usize, &bites);
        }

        #[test]
        fn laws_hold_for_streams(
            seed: u64, length in 0usize..100_000, flat in 0usize..20_000,
            bites in prop::collection::vec(1usize..20_000, 1..5),
        ) {
            let params = StreamParams { min: 256, mean: 1024, max: 4096 };
            let chunker = StreamChunker::new(params, gear(&sample::noise(seed, 2048))).unwrap();
            let mut bytes = sample::noise(seed ^ 1, length);
            bytes.extend(std::iter::repeat_n(7, flat));
            check_laws(&chunker, &bytes, params.min as usize, params.max as usize, &bites);
        }
    }

    /// The vectors were made by a program of their own, from section 6.1 alone: a difference is a break of the format.
    #[test]
    fn golden_cut_points() {
        let golden: Value = serde_json::from_str(include_str!("../../../tests/golden/vectors/chunker.json")).unwrap();
        let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
        let pair = |value: &Value| number(&value[0])..number(&value[1]);
        let xof = |label: &Value, length: usize| {
            let mut bytes = vec![0; length];
            blake3::Hasher::new().update(label.as_str().unwrap().as_bytes()).finalize_xof().fill(&mut bytes);
            bytes
        };
        let check_content = |case: &Value, bytes: &[u8]| {
            assert_eq!(blake3::hash(bytes).to_hex().as_str(), case["blake3"].as_str().unwrap(), "the content itself");
        };

        let disks = golden["disk"].as_array().unwrap();
        for case in disks {
            let seed = u64::from_str_radix(case["seed"].as_str().unwrap().strip_prefix("0x").unwrap(), 16).unwrap();
            let mut bytes = xof(&case["label"], number(&case["blocks"]) * BLOCK);
            for range in case["repeat"].as_array().unwrap().iter().map(pair) {
                for at in range.clone().skip(1) {
                    bytes.copy_within(range.start * BLOCK..(range.start + 1) * BLOCK, at * BLOCK);
                }
            }
            for range in case["zero"].as_array().unwrap().iter().map(pair) {
                bytes[range.start * BLOCK..range.end * BLOCK].fill(0);
            }
            check_content(case, &bytes);
            let chunker = DiskChunker::new(DiskParams::default(), seed).unwrap();
            let chunks: Vec<_> = chunker
                .window(&bytes)
                .unwrap()
                .filter(|piece| matches!(piece, Piece::Chunk(_)))
                .map(|piece| [piece.range().start / BLOCK, piece.range().len() / BLOCK])
                .collect();
            assert_eq!(serde_json::json!(chunks), case["chunks"], "disk with seed {seed:#x}");
        }

        let streams = golden["stream"].as_array().unwrap();
        for case in streams {
            let bytes = xof(&case["label"], number(&case["length"]));
            check_content(case, &bytes);
            let chunker = StreamChunker::new(StreamParams::default(), gear(&xof(&case["gear"], 2048))).unwrap();
            let ends: Vec<_> = chunker.pieces(&bytes, Tail::End).map(|piece| piece.range().end).collect();
            assert_eq!(serde_json::json!(ends), case["ends"], "stream with {}", case["gear"]);
        }
        assert_eq!((disks.len(), streams.len()), (3, 3), "all frozen cases were seen");
    }

    #[test]
    #[ignore = "a measurement, to be read: run alone with --nocapture"]
    fn speed() {
        const SIZE: usize = 16 << 20;
        let noise = sample::noise(1, SIZE);
        let mut half = noise.clone();
        half.chunks_mut(SIZE / 32).step_by(2).for_each(|part| part.fill(0));
        let disk = DiskChunker::new(DiskParams::default(), 1).unwrap();
        let stream = StreamChunker::new(StreamParams::default(), gear(&noise)).unwrap();
        let measure = |name: &str, work: &dyn Fn() -> usize| {
            let best = (0..10).map(|_| {
                let start = Instant::now();
                assert!(std::hint::black_box(work()) > 0);
                start.elapsed()
            });
            println!("{name:32} {:6.1} GB/s", SIZE as f64 / best.min().unwrap().as_secs_f64() / 1e9);
        };
        let zero = vec![0u8; SIZE];
        let zero_blocks = |bytes: &[u8]| 1 + bytes.chunks(BLOCK).filter(|block| crate::zero::is_zero(block)).count();
        measure("zero test, zeroes", &|| zero_blocks(&zero));
        measure("zero test, noise", &|| zero_blocks(&noise));
        measure("disk, noise", &|| disk.window(&noise).unwrap().count());
        measure("disk, half zero", &|| disk.window(&half).unwrap().count());
        measure("disk, zeroes", &|| disk.window(&zero).unwrap().count());
        measure("stream, noise", &|| stream.pieces(&noise, Tail::End).count());
    }
}
