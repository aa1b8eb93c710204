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

/// Fills the buffer, which is zeroed, with the window's blocks of the given range. Blocks that the source cannot read stay
/// zero, which keeps them out of every chunk, and are for the caller to record.
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
                let context =
                    format!("{name} of a window: {range:?} is empty or begins before block {end}, where the last ends");
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

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one range are meant")]
mod tests {
    use super::super::{DiskParams, sample};
    use super::*;
    use crate::error::Kind;
    use proptest::prelude::*;

    /// What came of cutting `new`, given its old chunks and what changed.
    struct Outcome {
        chunks: Vec<Range<usize>>,
        kept: Vec<usize>,
        read: Vec<Range<usize>>,
    }

    impl Outcome {
        fn blocks_read(&self) -> usize {
            self.read.iter().map(Range::len).sum()
        }
    }

    fn recut(chunker: &DiskChunker, old: &[Range<usize>], changed: &[Range<usize>], new: &[u8]) -> Outcome {
        let window = OldWindow { blocks: new.len() / BLOCK, chunks: old, changed };
        let mut outcome = Outcome { chunks: Vec::new(), kept: Vec::new(), read: Vec::new() };
        let Outcome { chunks, kept, read } = &mut outcome;
        rechunk(
            chunker,
            window,
            &mut |blocks, out| {
                assert!(blocks.len() <= chunker.max_blocks(), "{blocks:?} at a time");
                assert!(
                    read.last().is_none_or(|last: &Range<usize>| last.end <= blocks.start),
                    "{blocks:?} read twice"
                );
                out.copy_from_slice(&new[blocks.start * BLOCK..blocks.end * BLOCK]);
                read.push(blocks);
                Ok(())
            },
            &mut |chunk| {
                match chunk {
                    Recut::Kept(index) => {
                        kept.push(index);
                        chunks.push(old[index].clone());
                    }
                    Recut::Fresh { blocks, bytes } => {
                        assert!(bytes == &new[blocks.start * BLOCK..blocks.end * BLOCK], "wrong bytes for {blocks:?}");
                        chunks.push(blocks);
                    }
                }
                Ok(())
            },
        )
        .unwrap();
        outcome
    }

    /// Overwrites of runs of blocks: where they begin, how long they are, and the new blocks' first number; 0 zeroes.
    /// Beginning and end of the window come up more often than their share.
    fn edits() -> impl Strategy<Value = Vec<(f64, usize, u32)>> {
        let place = prop_oneof![1 => Just(0.0), 1 => Just(1.0), 6 => 0.0..1.0];
        let length = prop_oneof![4 => 1usize..4, 1 => 1usize..100];
        let number = prop_oneof![1 => Just(0u32), 2 => 1u32..];
        prop::collection::vec((place, length, number), 0..6)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place within a short list")]
    fn apply(edits: &[(f64, usize, u32)], numbers: &mut [u64], changed: &mut [bool]) {
        let last = numbers.len().saturating_sub(1);
        for &(place, length, first) in edits {
            let at = (place * last as f64).round() as usize;
            for (i, offset) in (at..numbers.len()).take(length).zip(0u64..) {
                numbers[i] = if first == 0 { 0 } else { u64::from(first) + offset };
                changed[i] = true;
            }
        }
    }

    fn ranges(changed: &[bool]) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for at in (0..changed.len()).filter(|&at| changed[at]) {
            match ranges.last_mut() {
                Some(last) if last.end == at => last.end += 1,
                _ => ranges.push(at..at + 1),
            }
        }
        ranges
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn equals_a_full_chunking(
            params in sample::params(),
            seed: u64,
            old in sample::disks(),
            edits in edits(),
            granule in prop_oneof![Just(1usize), Just(16)],
            size in prop_oneof![4 => Just(None), 1 => (0usize..=256).prop_map(Some)],
        ) {
            let chunker = DiskChunker::new(params, seed).unwrap();
            let old_chunks = sample::reference(&params, seed, &sample::disk(&old));
            let mut new = old.clone();
            new.resize(size.unwrap_or(old.len()), 77);
            let mut changed = vec![false; new.len()];
            apply(&edits, &mut new, &mut changed);
            changed.iter_mut().skip(old.len()).for_each(|grown| *grown = true);
            // Sources often know changes only coarsely.
            changed.chunks_mut(granule).for_each(|blocks| {
                let any = blocks.contains(&true);
                blocks.fill(any);
            });
            let bytes = sample::disk(&new);
            let outcome = recut(&chunker, &old_chunks, &ranges(&changed), &bytes);
            prop_assert_eq!(&outcome.chunks, &sample::reference(&params, seed, &bytes));
            let wanted = |chunk: &Range<usize>| {
                let changed_behind = changed.get(chunk.end) == Some(&true) && old.get(chunk.end).is_none_or(|&was| was == 0);
                let end_fell_away = outcome.chunks.iter().any(|new| new.start < chunk.start && chunk.start < new.end);
                let cut_off = chunk.end > changed.len();
                changed_behind || end_fell_away || cut_off || changed[chunk.clone()].contains(&true)
            };
            for at in outcome.read.iter().cloned().flatten() {
                let needed = changed[at] || old_chunks.iter().any(|chunk| chunk.contains(&at) && wanted(chunk));
                prop_assert!(needed, "block {} was read for nothing", at);
            }
            for &index in &outcome.kept {
                let chunk = &old_chunks[index];
                prop_assert!(outcome.read.iter().all(|read| read.end <= chunk.start || chunk.end <= read.start));
            }
        }
    }

    #[test]
    fn a_small_change_costs_a_small_read() {
        let params = DiskParams::default();
        let (mut read, mut changes) = (0, 0usize);
        for seed in 0..4 {
            let chunker = DiskChunker::new(params, seed).unwrap();
            let mut bytes = sample::noise(seed, 4096 * BLOCK);
            let old = sample::reference(&params, seed, &bytes);
            for at in (0..4096).step_by(7) {
                bytes[at * BLOCK] ^= 1;
                read += recut(&chunker, &old, &[at..at + 1], &bytes).blocks_read();
                bytes[at * BLOCK] ^= 1;
                changes += 1;
            }
        }
        println!(
            "{:.1} blocks read around a change of one block, on average of {changes}",
            read as f64 / changes as f64
        );
        assert!(read < changes * 40, "{read} blocks read for {changes} changes");
    }

    #[test]
    fn a_block_written_behind_a_chunk_may_extend_it() {
        let params = DiskParams { window: 1 << 20, ..DiskParams::default() };
        let chunker = DiskChunker::new(params, 3).unwrap();
        // Two blocks, too short to end by their content, then zeroes: what is written behind them joins them.
        let mut numbers = vec![0; 32];
        numbers[..2].fill(5);
        let old = sample::reference(&params, 3, &sample::disk(&numbers));
        assert_eq!(old, [0..2]);
        numbers[2] = 7;
        let outcome = recut(&chunker, &old, &[2..3], &sample::disk(&numbers));
        assert_eq!(outcome.chunks, [0..3]);
        assert_eq!(outcome.read, [0..3]);
    }

    #[test]
    fn errors_end_the_work_and_are_passed_on() {
        let chunker = DiskChunker::new(DiskParams::default(), 0).unwrap();
        let window = OldWindow { blocks: 8, chunks: &[0..4], changed: &[5..8] };
        let failure = || Error::new(Kind::Unavailable, "the source is gone");
        let failed = rechunk(&chunker, window, &mut |_, _| Err(failure()), &mut |_| Ok(()));
        assert_eq!(failed.unwrap_err().kind(), Kind::Unavailable);
        let mut reads = 0;
        let failed = rechunk(
            &chunker,
            window,
            &mut |_, _| {
                reads += 1;
                Ok(())
            },
            &mut |_| Err(failure()),
        );
        assert_eq!(failed.unwrap_err().kind(), Kind::Unavailable);
        assert_eq!(reads, 0, "the first chunk is kept unread, and nobody wanted it");
    }

    #[test]
    fn ranges_out_of_order_are_refused() {
        let chunker = DiskChunker::new(DiskParams::default(), 0).unwrap();
        let refused = |blocks, chunks: &[Range<usize>], changed: &[Range<usize>]| {
            let window = OldWindow { blocks, chunks, changed };
            rechunk(&chunker, window, &mut |_, _| Ok(()), &mut |_| Ok(())).is_err_and(|e| e.kind() == Kind::Invalid)
        };
        let empty = Range { start: 3, end: 3 };
        assert!(!refused(4096, &[0..4, 4..9], &[0..1, 1..2, 9..5000]));
        assert!(refused(4097, &[], &[]));
        assert!(refused(4096, &[0..4, 3..9], &[]));
        assert!(refused(4096, &[4..9, 0..4], &[]));
        assert!(refused(4096, &[], &[0..4, 3..9]));
        assert!(refused(4096, std::slice::from_ref(&empty), &[]));
        assert!(refused(4096, &[], std::slice::from_ref(&empty)));
    }
}
