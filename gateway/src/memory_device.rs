//! A disk in memory: sparse, writable, forgetful. For tests and measurements.
//!
//! Not here: durability; a flush has nothing to do. What holds: memory is taken only for blocks that were written and is
//! given back by trimming and by zeroing with `may_unmap`; every call sees every write that returned before it; compare
//! and write is atomic against all others, since one lock guards the blocks and nothing is waited for under it.

use crate::device::{BlockDevice, Content, Durability, Extent, Zeroing, check_range};
use crate::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

/// Bytes of a block of memory, which is also the grain of its extents.
const GRAIN: usize = 4096;

type Blocks = BTreeMap<u64, Box<[u8; GRAIN]>>;

/// A sparse disk in memory. Blocks never written read as zeroes.
pub struct MemoryDevice {
    size: u64,
    block_size: u32,
    is_read_only: bool,
    blocks: RwLock<Blocks>,
}

impl MemoryDevice {
    /// An empty, writable disk of `size` bytes with logical blocks of 512 bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        MemoryDevice { size, block_size: 512, is_read_only: false, blocks: RwLock::default() }
    }

    /// The same with logical blocks of 4096 bytes.
    #[must_use]
    pub fn with_large_blocks(mut self) -> Self {
        self.block_size = 4096;
        self
    }

    /// The same, refusing writes from now on.
    #[must_use]
    pub fn into_read_only(mut self) -> Self {
        self.is_read_only = true;
        self
    }

    // The blocks are sound even if a thread died with the lock: no step leaves them half-changed.
    fn read(&self) -> RwLockReadGuard<'_, Blocks> {
        self.blocks.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, offset: u64, len: u64) -> Result<RwLockWriteGuard<'_, Blocks>> {
        check_range(self.size, offset, len)?;
        if self.is_read_only {
            return Err(Error::new(Kind::Unsupported, "the device is read-only"));
        }
        Ok(self.blocks.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl BlockDevice for MemoryDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        check_range(self.size, offset, out.len() as u64)?;
        copy_out(&self.read(), offset, out);
        Ok(())
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        check_range(self.size, offset, out.len() as u64)?;
        match self.blocks.try_read() {
            Ok(blocks) => copy_out(&blocks, offset, out),
            Err(TryLockError::Poisoned(blocks)) => copy_out(&blocks.into_inner(), offset, out),
            Err(TryLockError::WouldBlock) => return Ok(false),
        }
        Ok(true)
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        check_range(self.size, range.start, range.end.saturating_sub(range.start))?;
        let blocks = self.read();
        let mut extents: Vec<Extent> = Vec::new();
        let mut add = |end: u64, content| {
            let start = extents.last().map_or(range.start, |last| last.range.end);
            let is_full = extents.len() == max;
            match extents.last_mut() {
                _ if end <= start => true,
                Some(last) if last.content == content => {
                    last.range.end = end;
                    true
                }
                _ if is_full => false,
                _ => {
                    extents.push(Extent { range: start..end, content });
                    true
                }
            }
        };
        let grain = GRAIN as u64;
        for number in blocks.range(range.start / grain..range.end.div_ceil(grain)).map(|(n, _)| n * grain) {
            if !add(number, Content::Zero) || !add(range.end.min(number + grain), Content::Bytes) {
                return Ok(extents);
            }
        }
        add(range.end, Content::Zero);
        Ok(extents)
    }

    fn write_at(&self, offset: u64, bytes: &[u8], _durability: Durability) -> Result<()> {
        let mut blocks = self.write(offset, bytes.len() as u64)?;
        copy_in(&mut blocks, offset, bytes);
        Ok(())
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        let mut blocks = self.write(range.start, range.end.saturating_sub(range.start))?;
        for (number, within) in split(range) {
            let is_whole = within == (0..GRAIN);
            if is_whole && how.may_unmap {
                blocks.remove(&number);
            } else if !how.may_unmap {
                fill_zero(blocks.entry(number).or_insert_with(|| Box::new([0; GRAIN])), within);
            } else if let Some(block) = blocks.get_mut(&number) {
                fill_zero(block, within);
            }
        }
        Ok(())
    }

    fn trim(&self, range: Range<u64>) -> Result<()> {
        let mut blocks = self.write(range.start, range.end.saturating_sub(range.start))?;
        let grain = GRAIN as u64;
        let (first, end) = (range.start.div_ceil(grain), range.end / grain);
        if first < end {
            let mut after = blocks.split_off(&first);
            blocks.append(&mut after.split_off(&end));
        }
        Ok(())
    }

    fn compare_and_write(&self, offset: u64, expected: &[u8], new: &[u8]) -> Result<Option<usize>> {
        if expected.len() != new.len() {
            return Err(Error::invalid("compare-and-write with two lengths"));
        }
        let mut blocks = self.write(offset, new.len() as u64)?;
        let mut found = vec![0; expected.len()];
        copy_out(&blocks, offset, &mut found);
        let differs = found.iter().zip(expected).position(|(a, b)| a != b);
        if differs.is_none() {
            copy_in(&mut blocks, offset, new);
        }
        Ok(differs)
    }
}

impl fmt::Debug for MemoryDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDevice").field("size", &self.size).field("blocks", &self.read().len()).finish()
    }
}

/// The blocks that `range` touches: number, and the part of the block.
fn split(range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
    let grain = GRAIN as u64;
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let number = at / grain;
        let end = range.end.min((number + 1) * grain);
        // Both lie within a block.
        let part = usize::try_from(at - number * grain).ok()?..usize::try_from(end - number * grain).ok()?;
        at = end;
        Some((number, part))
    })
}

fn copy_out(blocks: &Blocks, offset: u64, out: &mut [u8]) {
    let mut rest = out;
    for (number, part) in split(offset..offset + rest.len() as u64) {
        let (now, later) = rest.split_at_mut(part.len());
        match blocks.get(&number).and_then(|b| b.get(part)) {
            Some(bytes) => now.copy_from_slice(bytes),
            None => now.fill(0),
        }
        rest = later;
    }
}

fn copy_in(blocks: &mut Blocks, offset: u64, bytes: &[u8]) {
    let mut rest = bytes;
    for (number, part) in split(offset..offset + bytes.len() as u64) {
        let (now, later) = rest.split_at(part.len());
        let block = blocks.entry(number).or_insert_with(|| Box::new([0; GRAIN]));
        if let Some(place) = block.get_mut(part) {
            place.copy_from_slice(now);
        }
        rest = later;
    }
}

fn fill_zero(block: &mut [u8; GRAIN], part: Range<usize>) {
    if let Some(place) = block.get_mut(part) {
        place.fill(0);
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test data are small")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: usize = 5 * GRAIN + 1000;
    const FORGETFUL: Zeroing = Zeroing { may_unmap: true, fast_only: false, durability: Durability::Cached };

    #[derive(Clone, Debug)]
    enum Step {
        Write(usize, Vec<u8>),
        Zero(Range<usize>, bool),
        Compare(usize, Vec<u8>, bool),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let bytes = |n| prop::collection::vec(any::<u8>(), 1..n);
        let range = (0..SIZE, 0..SIZE).prop_map(|(a, b)| a.min(b)..a.max(b));
        let step = prop_oneof![
            (0..SIZE, bytes(9000)).prop_map(|(at, b)| Step::Write(at, b)),
            (range, any::<bool>()).prop_map(|(r, unmap)| Step::Zero(r, unmap)),
            (0..SIZE, bytes(600), any::<bool>()).prop_map(|(at, b, hit)| Step::Compare(at, b, hit)),
        ];
        prop::collection::vec(step, 1..40)
    }

    proptest! {
        #[test]
        fn it_behaves_like_an_array(steps in steps()) {
            let device = MemoryDevice::new(SIZE as u64);
            let mut model = vec![0; SIZE];
            for step in steps {
                match step {
                    Step::Write(at, bytes) => {
                        let bytes = &bytes[..bytes.len().min(SIZE - at)];
                        device.write_at(at as u64, bytes, Durability::Cached).unwrap();
                        model[at..at + bytes.len()].copy_from_slice(bytes);
                    }
                    Step::Zero(range, may_unmap) => {
                        let how = Zeroing { may_unmap, ..FORGETFUL };
                        device.zero(range.start as u64..range.end as u64, how).unwrap();
                        model[range].fill(0);
                    }
                    Step::Compare(at, new, hit) => {
                        let new = &new[..new.len().min(SIZE - at)];
                        let mut expected = model[at..at + new.len()].to_vec();
                        if !hit {
                            *expected.last_mut().unwrap() ^= 1;
                        }
                        let differs = device.compare_and_write(at as u64, &expected, new).unwrap();
                        prop_assert_eq!(differs, (!hit).then(|| new.len() - 1));
                        if hit {
                            model[at..at + new.len()].copy_from_slice(new);
                        }
                    }
                }
            }
            let mut found = vec![1; SIZE];
            device.read_at(0, &mut found).unwrap();
            prop_assert!(found == model);
            let extents = device.extents(3..SIZE as u64, 100).unwrap();
            let mut at = 3;
            for e in &extents {
                prop_assert_eq!(e.range.start, at);
                at = e.range.end;
                let bytes = &model[e.range.start as usize..e.range.end as usize];
                prop_assert!(e.content == Content::Bytes || bytes.iter().all(|b| *b == 0));
            }
            prop_assert_eq!(at, SIZE as u64);
            prop_assert_eq!(device.extents(3..SIZE as u64, 2).unwrap(), &extents[..extents.len().min(2)]);
        }
    }

    #[test]
    fn space_comes_back() {
        let device = MemoryDevice::new(1 << 40);
        device.write_at((1 << 40) - 8192, &[1; 8192], Durability::Cached).unwrap();
        device.write_at(0, &[1; 4 * GRAIN], Durability::Cached).unwrap();
        device.trim(100..3 * GRAIN as u64).unwrap();
        let held = |d: &MemoryDevice| d.read().len();
        assert_eq!(held(&device), 4);
        device.zero((1 << 40) - 8192..1 << 40, FORGETFUL).unwrap();
        assert_eq!(held(&device), 2);
        let zero = device.extents(4 * GRAIN as u64..1 << 40, 1).unwrap();
        assert_eq!(zero, [Extent { range: 4 * GRAIN as u64..1 << 40, content: Content::Zero }]);
    }

    #[test]
    fn ranges_beyond_the_end_and_writes_to_a_read_only_disk_are_refused() {
        let device = MemoryDevice::new(1000);
        assert_eq!(device.read_at(999, &mut [0; 2]).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(device.write_at(u64::MAX, &[0; 2], Durability::Cached).unwrap_err().kind(), Kind::Invalid);
        let device = device.into_read_only();
        assert_eq!(device.write_at(0, &[0], Durability::Cached).unwrap_err().kind(), Kind::Unsupported);
        assert_eq!(device.trim(0..1).unwrap_err().kind(), Kind::Unsupported);
    }
}
