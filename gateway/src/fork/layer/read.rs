//! Reading: each stretch from where it is.
//!
//! Not here: what may change meanwhile. What holds: sealed bytes are read under the region's lock and opened after it; the base is
//! read without a lock, since it never changes: a block that was untouched a moment ago reads as it was then, whole.

use super::super::block_map::{REGION, State};
use super::super::record::BLOCK;
use super::{BLOCK_U64, Layer, Segment, segments, small};
use crate::Result;
use std::ops::Range;

/// More than this is not read while a server's own thread waits.
const INLINE: usize = 64 << 10;

/// A stretch of the base that waits to be read together with what follows it.
struct BaseRun<'a> {
    layer: &'a Layer,
    offset: u64,
    pending: Range<usize>,
}

impl BaseRun<'_> {
    /// Adds the bytes `part` of `out`, and reads what was pending if they do not follow it.
    fn add(&mut self, part: Range<usize>, out: &mut [u8]) -> Result<()> {
        if self.pending.end == part.start && !self.pending.is_empty() {
            self.pending.end = part.end;
            return Ok(());
        }
        self.finish(out)?;
        self.pending = part;
        Ok(())
    }

    fn finish(&mut self, out: &mut [u8]) -> Result<()> {
        let part = std::mem::take(&mut self.pending);
        match part.is_empty() {
            true => Ok(()),
            false => self.layer.base().read_at(self.offset + part.start as u64, &mut out[part]),
        }
    }
}

impl Layer {
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut base = BaseRun { layer: self, offset, pending: 0..0 };
        let mut at = 0;
        for segment in segments(offset, out.len()) {
            let part = at..at + segment.len();
            at = part.end;
            match segment {
                Segment::Part { block, within } => {
                    let mut sealed = [0; BLOCK];
                    match self.read_sealed(block, &mut sealed)? {
                        State::Ours => {
                            self.lanes.take().open.apply(block, &mut sealed)?;
                            out[part].copy_from_slice(&sealed[within]);
                        }
                        State::Zeroed => out[part].fill(0),
                        State::Untouched => base.add(part, out)?,
                    }
                }
                Segment::Whole { region, blocks } => {
                    self.read_blocks(region, blocks, part, &mut base, out)?;
                }
            }
        }
        base.finish(out)
    }

    fn read_blocks(
        &self,
        region: u64,
        blocks: Range<u64>,
        part: Range<usize>,
        base: &mut BaseRun<'_>,
        out: &mut [u8],
    ) -> Result<()> {
        let place = |index: u64, len: u64| {
            let start = part.start + small((index - blocks.start) * BLOCK_U64);
            start..start + small(len * BLOCK_U64)
        };
        let masks = {
            let _lock = self.locks.read(region);
            let masks = self.map.look(region);
            let mut index = blocks.start;
            while index < blocks.end {
                let (state, len) = masks.run(index, blocks.end);
                if state == State::Ours {
                    self.data.read_at((region * REGION + index) * BLOCK_U64, &mut out[place(index, len)])?;
                }
                index += len;
            }
            masks
        };
        let mut index = blocks.start;
        while index < blocks.end {
            let (state, len) = masks.run(index, blocks.end);
            let place = place(index, len);
            match state {
                State::Ours => self.lanes.take().open.apply(region * REGION + index, &mut out[place])?,
                State::Zeroed => out[place].fill(0),
                State::Untouched => base.add(place, out)?,
            }
            index += len;
        }
        Ok(())
    }

    /// What a block is; one that is ours is read as it lies there.
    fn read_sealed(&self, block: u64, out: &mut [u8; BLOCK]) -> Result<State> {
        let region = block / REGION;
        let _lock = self.locks.read(region);
        let state = self.map.look(region).state(block % REGION);
        if state == State::Ours {
            self.data.read_at(block * BLOCK_U64, out)?;
        }
        Ok(state)
    }

    /// Reads from memory only: blocks that are ours from the page cache, as far as the kernel says that they are there.
    pub(super) fn try_read(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        if out.len() > INLINE {
            return Ok(false);
        }
        let mut at = 0;
        for segment in segments(offset, out.len()) {
            let part = at..at + segment.len();
            at = part.end;
            let (region, mut index, end) = match &segment {
                Segment::Part { block, .. } => (block / REGION, block % REGION, block % REGION + 1),
                Segment::Whole { region, blocks } => (*region, blocks.start, blocks.end),
            };
            let Some(lock) = self.locks.try_read(region) else { return Ok(false) };
            let masks = self.map.look(region);
            if let Segment::Part { block, within } = segment {
                let mut sealed = [0; BLOCK];
                let done = match masks.state(index) {
                    State::Ours => self.data.try_read_at(block * BLOCK_U64, &mut sealed)?,
                    State::Zeroed => true,
                    State::Untouched => self.base().try_read_at(offset + part.start as u64, &mut out[part.clone()])?,
                };
                drop(lock);
                match masks.state(index) {
                    _ if !done => return Ok(false),
                    State::Untouched => continue,
                    State::Ours => self.lanes.take().open.apply(block, &mut sealed)?,
                    State::Zeroed => {}
                }
                out[part].copy_from_slice(&sealed[within]);
                continue;
            }
            let (first, start) = (index, part.start);
            let place = |index: u64, len: u64| {
                let start = start + small((index - first) * BLOCK_U64);
                start..start + small(len * BLOCK_U64)
            };
            while index < end {
                let (state, len) = masks.run(index, end);
                let place = place(index, len);
                let byte = offset + place.start as u64;
                let done = match state {
                    State::Ours => self.data.try_read_at(byte, &mut out[place])?,
                    State::Zeroed => true,
                    State::Untouched => self.base().try_read_at(byte, &mut out[place])?,
                };
                if !done {
                    return Ok(false);
                }
                index += len;
            }
            drop(lock);
            let mut index = first;
            while index < end {
                let (state, len) = masks.run(index, end);
                let place = place(index, len);
                match state {
                    State::Ours => self.lanes.take().open.apply(region * REGION + index, &mut out[place])?,
                    State::Zeroed => out[place].fill(0),
                    State::Untouched => {}
                }
                index += len;
            }
        }
        Ok(true)
    }

    /// The bytes of a block of the base, with zeroes behind the disk's end.
    pub(super) fn read_base(&self, block: u64, out: &mut [u8; BLOCK]) -> Result<()> {
        let offset = block * BLOCK_U64;
        let (bytes, rest) = out.split_at_mut(small(BLOCK_U64.min(self.size - offset)));
        rest.fill(0);
        self.base().read_at(offset, bytes)
    }
}
