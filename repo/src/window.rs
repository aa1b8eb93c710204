//! The seam between a source of disk bytes and the writer: windows, pulled by the writer's workers.
//!
//! ```text
//!   next -> Bytes      the window, read             -> cut whole
//!           Changed    where it may have changed    -> cut anew there; read_blocks fetches what that takes, and no more
//!           Zero, Unchanged                         -> nothing is read
//! ```
//! Not here: what a source is (that is the mover's matter) and how a window is chunked. What holds: every window of the
//! disk is handed out exactly once, in order of its index; several workers pull at the same time, so a source that can be
//! read anywhere picks the next index under a short lock and reads outside it, and one that can only be read in order reads
//! under its lock.

use crate::error::{Error, Result};
use std::ops::Range;

/// The buffer one worker owns: bytes of one window and what could not be read of it.
#[derive(Debug, Default)]
pub struct Window {
    /// The window's bytes: as many as the disk has there. Unreadable ranges are zero-filled. The writer pads the last block.
    /// A source finds here what the last window left: see [`Window::make_room`].
    pub bytes: Vec<u8>,
    /// Ranges within `bytes` that the source could not read, at multiples of 4096, sorted, without overlap. A source only
    /// reports them when it was told to keep going.
    pub unreadable: Vec<Range<u32>>,
    /// Of [`Filled::Changed`]: everything that may differ from the parent, in blocks of 4096 bytes from the window's start, in
    /// any order. May reach beyond the window's end.
    pub changed: Vec<Range<usize>>,
}

impl Window {
    /// The buffer for `len` bytes, to be filled whole: what it holds is left from before, since clearing 16 MiB for every window
    /// would cost as much as hashing them.
    pub fn make_room(&mut self, len: usize) -> &mut [u8] {
        self.bytes.resize(len, 0);
        &mut self.bytes
    }
}

/// What [`WindowSource::next`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Window `0` was read into the buffer.
    Bytes(u64),
    /// Window `0` is known to read as zeroes; the buffer was not touched.
    Zero(u64),
    /// Window `0` is known to be as in the parent snapshot; the buffer was not touched. Only with a parent whose token the
    /// source honoured.
    Unchanged(u64),
    /// Window `index` has `len` bytes and is known to be as in the parent snapshot but for [`Window::changed`]; nothing was read.
    /// With a parent as for [`Filled::Unchanged`].
    Changed {
        /// Which window.
        index: u64,
        /// Its length in bytes.
        len: usize,
    },
    /// All windows were handed out.
    End,
}

/// A disk to be backed up, as the writer sees it.
pub trait WindowSource: Sync {
    /// Hands out the next window: its index counts windows of the repository's window size from the disk's start.
    fn next(&self, window: &mut Window) -> Result<Filled>;

    /// Reads `blocks` of window `index`, which was handed out as [`Filled::Changed`], into `out`, which is zeroed and has their
    /// length; what lies beyond the disk's end stays zero. Blocks that cannot be read stay zero, too, and are added to
    /// `unreadable`, counted as `blocks` are. Only asked of sources that say `Changed`.
    fn read_blocks(
        &self,
        index: u64,
        blocks: Range<usize>,
        out: &mut [u8],
        unreadable: &mut Vec<Range<usize>>,
    ) -> Result<()> {
        let _ = (out, unreadable);
        Err(Error::internal(format!(
            "a source was asked for blocks {blocks:?} of window {index}, which it does not read"
        )))
    }

    /// The disk's size in bytes; asked after [`Filled::End`], since a stream knows its length only then. An error here (the
    /// source changed its size meanwhile) fails the run.
    fn size(&self) -> Result<u64>;
}
