//! Cutting a window of which only some blocks changed, without reading the rest of it.
//!
//! A verdict on a block depends on its bytes and on the length of its chunk so far. So where no chunk is open, an old chunk
//! whose blocks did not change comes out as it was, unread, and what was zero is still zero, unread. The walk goes over the
//! old chunks in order:
//!
//! ```text
//!   old      [ A      ][ B         ][ C    ]  zero  [ D   ]
//!   changed                 ^
//!   new      [ A      ][ B1 ][ B2         ]  zero  [ D   ]        A and D are kept, B and C are read
//! ```
//!
//! An old chunk is read when a block of it changed, when a chunk is still open at its beginning (its old end fell away), or
//! when the block behind it was zero and changed: whether its end was due to its last block or to the zero behind is
//! nowhere recorded.
//!
//! Not here: where the unchanged bytes come from; that is the caller's `read`. What holds: the result equals a full
//! chunking of the new window; memory is two chunks of the longest kind, whatever the window.

use super::{BLOCK, Chunker, DiskChunker, Piece, Tail};
use crate::error::{Error, Result};
use std::ops::Range;

/// A window as the parent snapshot has it, and where it changed since. Ranges are in blocks of the window, not empty,
/// sorted and without overlap.
#[derive(Clone, Copy, Debug)]
pub struct OldWindow<'a> {
    /// Blocks in the window now; fewer than a whole window's where the disk ends.
    pub blocks: usize,
    /// The old chunks. What none covers was zero. An old entry that was unreadable is no chunk: name it in `changed`.
    pub chunks: &'a [Range<usize>],
    /// Everything that may differ from the old window, what a grown disk added included. May reach beyond the window's end.
    pub changed: &'a [Range<usize>],
}

/// A chunk of the window as it is now. What no chunk covers is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recut<'a> {
    /// The old chunk of this index, as it was.
    Kept(usize),
    /// A chunk that was read and cut.
    Fresh {
        /// Where it lies, in blocks of the window.
        blocks: Range<usize>,
        /// Its bytes.
        bytes: &'a [u8],
    },
}

/// Fills the buffer with the window's blocks of the given range.
pub type ReadBlocks<'a> = dyn FnMut(Range<usize>, &mut [u8]) -> Result<()> + 'a;

/// Takes the next chunk.
pub type EmitRecut<'a> = dyn FnMut(Recut<'_>) -> Result<()> + 'a;

/// Cuts the window as a full chunking of it would, and emits its chunks in order.
///
/// `read` is asked for at most as many blocks at a time as the longest chunk has, in ascending order, for none twice.
/// Its errors, and those of `emit`, end the work and are passed on. Ranges out of order are `Invalid`.
pub fn rechunk(
    chunker: &DiskChunker,
    window: OldWindow<'_>,
    read: &mut ReadBlocks<'_>,
    emit: &mut EmitRecut<'_>,
) -> Result<()> {
    check(chunker, &window)?;
    let batch = chunker.max_blocks();
    let mut open = Open { chunker, start: 0, bytes: Vec::new() };
    for stretch in plan(&window) {
        let Range { start, end } = stretch.blocks;
        match stretch.was {
            Was::Zero => open.settle(Tail::End, emit)?,
            Was::Chunk(index) if open.bytes.is_empty() => emit(Recut::Kept(index))?,
            Was::Chunk(_) | Was::Unknown => {
                for from in (start..end).step_by(batch) {
                    open.extend(from..end.min(from + batch), read)?;
                    open.settle(Tail::More, emit)?;
                }
            }
        }
    }
    open.settle(Tail::End, emit)
}

/// A stretch of the window and what is known of it unread.
struct Stretch {
    blocks: Range<usize>,
    was: Was,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Was {
    /// Zero and unchanged.
    Zero,
    /// The chunk of this index, unchanged, with an end that stands if its beginning does.
    Chunk(usize),
    /// Has to be read in any case.
    Unknown,
}

/// The window as stretches that tile it, neighbouring unknown ones joined so that they are read together.
fn plan(window: &OldWindow<'_>) -> Vec<Stretch> {
    let mut plan = Vec::new();
    let mut at = 0;
    for (index, chunk) in window.chunks.iter().enumerate().take_while(|(_, chunk)| chunk.start < window.blocks) {
        push_gap(&mut plan, at..chunk.start, window.changed);
        at = chunk.end.min(window.blocks);
        let gap_behind = window.chunks.get(index + 1).is_none_or(|next| next.start > chunk.end);
        let stands = chunk.end <= window.blocks
            && changes(window.changed, &(chunk.start..chunk.end + usize::from(gap_behind))).is_empty();
        push(&mut plan, chunk.start..at, if stands { Was::Chunk(index) } else { Was::Unknown });
    }
    push_gap(&mut plan, at..window.blocks, window.changed);
    plan
}

/// Adds a stretch that was zero: unknown where it changed.
fn push_gap(plan: &mut Vec<Stretch>, gap: Range<usize>, changed: &[Range<usize>]) {
    let mut at = gap.start;
    for change in changes(changed, &gap) {
        let (start, end) = (change.start.max(gap.start), change.end.min(gap.end));
        push(plan, at..start, Was::Zero);
        push(plan, start..end, Was::Unknown);
        at = end;
    }
    push(plan, at..gap.end, Was::Zero);
}

fn push(plan: &mut Vec<Stretch>, blocks: Range<usize>, was: Was) {
    match plan.last_mut() {
        _ if blocks.is_empty() => {}
        Some(last) if last.was == Was::Unknown && was == Was::Unknown => last.blocks.end = blocks.end,
        _ => plan.push(Stretch { blocks, was }),
    }
}

/// Those of the sorted `changed` that overlap `blocks`.
fn changes<'a>(changed: &'a [Range<usize>], blocks: &Range<usize>) -> &'a [Range<usize>] {
    let from = changed.partition_point(|change| change.end <= blocks.start);
    let until = changed.partition_point(|change| change.start < blocks.end);
    changed.get(from..until).unwrap_or_default()
}

/// Refuses a window that is larger than the chunker's, or ranges out of order.
fn check(chunker: &DiskChunker, window: &OldWindow<'_>) -> Result<()> {
    if window.blocks > chunker.window_blocks() {
        let (blocks, most) = (window.blocks, chunker.window_blocks());
        return Err(Error::invalid(format!("cutting {blocks} blocks as one window: it has at most {most}")));
    }
    for (name, ranges) in [("old chunks", window.chunks), ("changed ranges", window.changed)] {
        let mut end = 0;
        for range in ranges {
            if range.start < end || range.is_empty() {
                let context = format!("{name} of a window: {range:?} is empty or begins before block {end}, where the last ends");
                return Err(Error::invalid(context));
            }
            end = range.end;
        }
    }
    Ok(())
}

/// Bytes that were read and are not yet cut: the chunk that is open, and a batch behind it.
struct Open<'a> {
    chunker: &'a DiskChunker,
    /// The block at which `bytes` begin.
    start: usize,
    bytes: Vec<u8>,
}

impl Open<'_> {
    /// Reads `blocks`, which follow what is open, if anything is.
    fn extend(&mut self, blocks: Range<usize>, read: &mut ReadBlocks<'_>) -> Result<()> {
        let before = self.bytes.len();
        if before == 0 {
            self.start = blocks.start;
        }
        self.bytes.resize(before + blocks.len() * BLOCK, 0);
        let (_, fresh) = self.bytes.split_at_mut(before);
        read(blocks, fresh)
    }

    /// Emits the chunks that are decided and forgets their bytes. After [`Tail::End`] nothing is open.
    fn settle(&mut self, tail: Tail, emit: &mut EmitRecut<'_>) -> Result<()> {
        let mut done = 0;
        for piece in self.chunker.pieces(&self.bytes, tail) {
            done = piece.range().end;
            if let Piece::Chunk(range) = piece {
                let blocks = self.start + range.start / BLOCK..self.start + range.end / BLOCK;
                emit(Recut::Fresh { blocks, bytes: &self.bytes[range] })?;
            }
        }
        self.bytes.drain(..done);
        self.start += done / BLOCK;
        Ok(())
    }
}
