//! Writing: blocks into the data, then a record, then the map.
//!
//! ```text
//!   whole blocks   sealed in a lane -> region locked: space, data, record, map
//!   part of one    region locked: the rest of the block from where it is; then as above
//! ```
//! Not here: durability ([`super::flush`]); forced requests return what they still have to wait for. What holds: what can fail for want of space comes before anything changed that
//! matters; contents that may be broken (a failed write to a block that is ours) fail the layer.

use super::super::block_map::{CHUNK, Masks, REGION, State, bits, split};
use super::super::lanes::Lane;
use super::super::range_locks::Held;
use super::super::record::{BLOCK, Entry, STORE_MAX};
use super::{BLOCK_U64, Debt, Layer, Segment, bytes_of, segments, small};
use crate::device::{Durability, Zeroing};
use crate::{Error, Kind, Result};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Where the contents of a write go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Put {
    /// Into the data.
    Plain,
    /// Into the journal too, so that syncing that is enough.
    Stored,
}

/// A compare-and-write that has compared.
#[must_use]
pub(in super::super) enum Exchange<'a> {
    /// It wrote nothing, or there was nothing to write. `Some`: the byte that differed.
    Over(Option<usize>),
    /// The journal holds its contents, and nobody else gets at its blocks.
    Due { locks: Held<'a>, blocks: Range<u64>, sealed: Vec<u8> },
}

impl Layer {
    pub(super) fn write(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<Debt> {
        let put = match durability {
            Durability::Forced if bytes.len() <= (STORE_MAX - 2) * BLOCK => Put::Stored,
            _ => Put::Plain,
        };
        self.write_segments(offset, bytes, put)?;
        Ok(match (durability, put) {
            (Durability::Cached, _) => Debt::Nothing,
            (Durability::Forced, Put::Stored) => Debt::Journal,
            (Durability::Forced, Put::Plain) => Debt::Data,
        })
    }

    fn write_segments(&self, offset: u64, bytes: &[u8], put: Put) -> Result<()> {
        let mut rest = bytes;
        for segment in segments(offset, bytes.len()) {
            let (now, later) = rest.split_at(segment.len());
            rest = later;
            match segment {
                Segment::Part { block, within } => self.write_part(block, within, now, put)?,
                Segment::Whole { region, blocks } => {
                    let mut lane = self.lanes.take();
                    let sealed = lane.sealed(region * REGION + blocks.start, now)?;
                    let _lock = self.locks.write(region);
                    self.verdict.check()?;
                    self.put(region, blocks, sealed, put)?;
                }
            }
        }
        Ok(())
    }

    fn write_part(&self, block: u64, within: Range<usize>, bytes: &[u8], put: Put) -> Result<()> {
        let (region, index) = (block / REGION, block % REGION);
        let mut image = [0; BLOCK];
        // The base may be far away: it is read before anybody has to wait. What is not untouched now will never be again.
        let is_read = self.map.look(region).state(index) == State::Untouched;
        if is_read {
            self.read_base(block, &mut image)?;
        }
        let mut lane = self.lanes.take();
        let _lock = self.locks.write(region);
        self.verdict.check()?;
        match self.map.look(region).state(index) {
            State::Untouched if is_read => {}
            state => self.read_plain(block, state, &mut lane, &mut image)?,
        }
        image[within].copy_from_slice(bytes);
        lane.seal.apply(block, &mut image)?;
        self.put(region, index..index + 1, &image, put)
    }

    /// A block as readers see it. The caller has its lock.
    fn read_plain(&self, block: u64, state: State, lane: &mut Lane, out: &mut [u8; BLOCK]) -> Result<()> {
        match state {
            State::Ours => {
                self.data.read_at(block * BLOCK_U64, out)?;
                lane.open.apply(block, out)
            }
            State::Zeroed => {
                out.fill(0);
                Ok(())
            }
            State::Untouched => self.read_base(block, out),
        }
    }

    /// Puts sealed blocks in their place and has them be ours. The caller has the region's lock.
    fn put(&self, region: u64, blocks: Range<u64>, sealed: &[u8], put: Put) -> Result<()> {
        let (masks, bits) = (self.take_space(region, &blocks)?, bits(blocks.clone()));
        let numbers = region * REGION + blocks.start..region * REGION + blocks.end;
        self.data.write_at(numbers.start * BLOCK_U64, sealed).inspect_err(|e| self.look_into(e, masks.ours & bits))?;
        let recorded = match put {
            Put::Stored => self.journal.append(&Entry::Store { first: numbers.start, sealed }),
            Put::Plain if masks.ours & bits != bits => self.journal.append(&Entry::Touch(numbers.clone())),
            Put::Plain => Ok(()),
        };
        if let Err(e) = recorded {
            self.look_into(&e, 0);
            // Those that were ours already hold the new contents all the same.
            self.dirty.add(region, masks.ours & bits);
            return Err(e);
        }
        self.map.set(region, masks.owned(bits));
        if put == Put::Plain && self.dirty.add(region, bits) && self.habit.is_to_flush() {
            self.data.hasten(numbers.start * BLOCK_U64..numbers.end * BLOCK_U64);
        }
        Ok(())
    }

    /// Fails the layer when an error is no mere lack of space, or struck blocks that matter.
    fn look_into(&self, error: &Error, struck: u64) {
        if error.kind() != Kind::Full || struck != 0 {
            self.fail(error);
        }
    }

    /// Takes space in the data for blocks of a region, and gives the region's bits as they are then. Of what is written from front to
    /// back it takes the rest of the region too. The caller has the region's lock.
    fn take_space(&self, region: u64, blocks: &Range<u64>) -> Result<Masks> {
        let mut masks = self.map.look(region);
        masks.allocated |= masks.ours;
        let missing = bits(blocks.clone()) & !masks.allocated;
        if missing == 0 {
            return Ok(masks);
        }
        let first = u64::from(missing.trailing_zeros());
        let exact = first..REGION - u64::from(missing.leading_zeros());
        let before = match (first, region) {
            (0, 0) => false,
            (0, _) => self.map.look(region - 1).allocated >> (REGION - 1) & 1 == 1,
            _ => masks.allocated >> (first - 1) & 1 == 1,
        };
        let end = REGION.min(self.map.blocks() - region * REGION);
        let ahead = if before && exact.end < end { Some(first..end) } else { None };
        let allocate = |range: &Range<u64>| {
            let start = region * REGION * BLOCK_U64;
            self.data.allocate(start + range.start * BLOCK_U64..start + range.end * BLOCK_U64)
        };
        let taken = match ahead {
            Some(ahead) if allocate(&ahead).is_ok() => ahead,
            _ => {
                allocate(&exact)?;
                exact
            }
        };
        masks.allocated |= bits(taken);
        // Even if the write fails: the space is taken.
        self.map.set(region, masks);
        Ok(masks)
    }

    pub(super) fn zero_range(&self, range: Range<u64>, how: Zeroing) -> Result<Debt> {
        let put = if how.durability == Durability::Forced { Put::Stored } else { Put::Plain };
        let inner = self.whole_blocks(&range);
        let edges = match inner.is_empty() {
            true => [range.clone(), 0..0],
            false => [range.start..inner.start * BLOCK_U64, (inner.end * BLOCK_U64).min(range.end)..range.end],
        };
        for edge in edges {
            for segment in segments(edge.start, small(edge.end - edge.start)) {
                // Whole blocks are inner ones.
                if let Segment::Part { block, within } = segment
                    && self.state_from(block).0 != State::Zeroed
                {
                    self.write_part(block, within.clone(), &[0; BLOCK][within], put)?;
                }
            }
        }
        self.zero_blocks(inner, how.may_unmap)?;
        Ok(match how.durability {
            _ if self.holes.is_full() => Debt::Data,
            Durability::Cached => Debt::Nothing,
            Durability::Forced => Debt::Journal,
        })
    }

    pub(super) fn trim_range(&self, range: Range<u64>) -> Result<Debt> {
        self.zero_blocks(self.whole_blocks(&range), true)?;
        Ok(if self.holes.is_full() { Debt::Data } else { Debt::Nothing })
    }

    /// The blocks that a range covers; a last block that is not whole counts when the range goes to the disk's end.
    fn whole_blocks(&self, range: &Range<u64>) -> Range<u64> {
        let end = if range.end == self.size { self.map.blocks() } else { range.end / BLOCK_U64 };
        let start = range.start.div_ceil(BLOCK_U64);
        start..end.max(start)
    }

    fn zero_blocks(&self, blocks: Range<u64>, may_unmap: bool) -> Result<()> {
        if blocks.end - blocks.start >= CHUNK * REGION {
            // One record and a bit a chunk, instead of millions of both.
            let _all = self.locks.write_all();
            self.verdict.check()?;
            return self.zero_held(blocks, may_unmap);
        }
        for (region, part) in split(blocks) {
            let _lock = self.locks.write(region);
            self.verdict.check()?;
            let masks = self.map.look(region);
            let part_bits = bits(part.clone());
            let numbers = region * REGION + part.start..region * REGION + part.end;
            if masks.zeroed & part_bits != part_bits {
                self.zero_held(numbers, may_unmap)?;
            } else if may_unmap && masks.allocated & part_bits != 0 {
                self.holes.add(numbers);
            }
        }
        Ok(())
    }

    /// The caller has the locks.
    fn zero_held(&self, blocks: Range<u64>, may_unmap: bool) -> Result<()> {
        if !may_unmap {
            self.data.allocate(blocks.start * BLOCK_U64..blocks.end * BLOCK_U64)?;
        }
        self.journal.append(&Entry::Zero(blocks.clone())).inspect_err(|e| self.look_into(e, 0))?;
        self.map.zero(blocks.clone());
        if may_unmap {
            self.holes.add(blocks);
        }
        Ok(())
    }

    /// Compares, and has the journal hold the new contents if it may: under all locks of the range.
    pub(super) fn exchange(&self, offset: u64, expected: &[u8], new: &[u8]) -> Result<Exchange<'_>> {
        if new.is_empty() {
            return Ok(Exchange::Over(None));
        }
        let blocks = offset / BLOCK_U64..(offset + new.len() as u64).div_ceil(BLOCK_U64);
        if blocks.end - blocks.start > STORE_MAX as u64 {
            return Err(Error::new(Kind::Unsupported, "compare-and-write of more than 64 blocks of 4 KiB"));
        }
        let mut lane = self.lanes.take();
        let locks = self.locks.write_span(blocks.start / REGION..(blocks.end - 1) / REGION + 1);
        self.verdict.check()?;
        let mut sealed = vec![0; bytes_of(&blocks)];
        let (pages, _) = sealed.as_chunks_mut::<BLOCK>();
        for (block, page) in blocks.clone().zip(pages) {
            let state = self.map.look(block / REGION).state(block % REGION);
            self.read_plain(block, state, &mut lane, page)?;
        }
        let start = small(offset % BLOCK_U64);
        let found = &mut sealed[start..start + new.len()];
        if let Some(differs) = found.iter().zip(expected).position(|(a, b)| a != b) {
            return Ok(Exchange::Over(Some(differs)));
        }
        found.copy_from_slice(new);
        lane.seal.apply(blocks.start, &mut sealed)?;
        for (region, part) in split(blocks.clone()) {
            self.take_space(region, &part)?;
        }
        let redo = Entry::Redo { first: blocks.start, sealed: &sealed };
        self.journal.append(&redo).inspect_err(|e| self.look_into(e, 0))?;
        self.exchanges.fetch_add(1, Ordering::Relaxed);
        Ok(Exchange::Due { locks, blocks, sealed })
    }

    /// Makes the new contents durable in the journal and only then puts them in their place: so they are there whole or not at all. As
    /// [`crate::BlockDevice::compare_and_write`] has its answer.
    pub(in super::super) fn finish(&self, exchange: Exchange<'_>) -> Result<Option<usize>> {
        let (locks, blocks, sealed) = match exchange {
            Exchange::Over(differs) => return Ok(differs),
            Exchange::Due { locks, blocks, sealed } => (locks, blocks, sealed),
        };
        let done = self.journal.sync().and_then(|()| {
            self.data.write_at(blocks.start * BLOCK_U64, &sealed)?;
            self.journal.append_kept(&Entry::Touch(blocks.clone()))
        });
        self.exchanges.fetch_sub(1, Ordering::Relaxed);
        // A redo that nothing completed must not stand in the way of later writes.
        done.inspect_err(|e| self.fail(e))?;
        for (region, part) in split(blocks) {
            self.map.set(region, self.map.look(region).owned(bits(part)));
        }
        drop(locks);
        self.settle_debt(Debt::Nothing)?;
        Ok(None)
    }
}
