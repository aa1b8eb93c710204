//! The spot check of an incremental backup: a random sample of what a source calls unchanged is read and compared.
//!
//! Not here: what follows from a difference (a full read), and where tokens come from. What holds: every unchanged stretch can
//! be chosen, in proportion to its length; which ones are is the injected entropy's choice alone; two passes over the
//! extents, so memory does not grow with the disk.

use crate::source::{Content, RandomDisk, ReadFault, SourceExtent};
use crate::{Error, Result, runs};
use coffer_repo::cancel::Cancel;
use coffer_repo::entropy::{Entropy, fresh};
use coffer_repo::reader::{DiskReader, MapContent};
use std::ops::Range;

/// How much is compared at each place, in bytes.
const PLACE: u64 = 64 << 10;

/// How many extents are asked for at a time.
const BATCH: usize = 1024;

/// Compares `places` random places of what `disk` calls unchanged with the same places of `parent`. Gives the first place
/// that differs, if any does; a place that the parent's backup could not read tells nothing.
pub fn first_difference(
    disk: &dyn RandomDisk,
    parent: &dyn RandomDisk,
    places: usize,
    entropy: &dyn Entropy,
    cancel: &Cancel,
) -> Result<Option<Range<u64>>> {
    let size = disk.size()?;
    let mut total = 0;
    each_unchanged(disk, size, |stretch| {
        total += places_in(&stretch);
        cancel.check()
    })?;
    let chosen = choose(places, total, entropy)?;
    let (mut passed, mut chosen) = (0, chosen.as_slice());
    let mut different = None;
    each_unchanged(disk, size, |stretch| {
        let next = passed + places_in(&stretch);
        while let Some((&place, rest)) = chosen.split_first().filter(|(place, _)| **place < next) {
            cancel.check()?;
            let start = stretch.start + (place - passed) * PLACE;
            let range = start..(start + PLACE).min(stretch.end);
            if different.is_none() && differs(disk, parent, &range)? {
                different = Some(range);
            }
            chosen = rest;
        }
        passed = next;
        Ok(())
    })?;
    Ok(different)
}

fn each_unchanged(disk: &dyn RandomDisk, size: u64, mut visit: impl FnMut(Range<u64>) -> Result<()>) -> Result<()> {
    let mut at = 0;
    while at < size {
        let found = disk.extents(at..size, BATCH)?;
        at = runs::check_order(&found, &(at..size), |extent| &extent.range)?;
        found.into_iter().filter(|e| e.content == Content::Unchanged).try_for_each(|e| visit(e.range))?;
    }
    Ok(())
}

fn places_in(stretch: &Range<u64>) -> u64 {
    (stretch.end - stretch.start).div_ceil(PLACE)
}

/// Up to `count` different numbers below `total`, in order.
fn choose(count: usize, total: u64, entropy: &dyn Entropy) -> Result<Vec<u64>> {
    if total <= count as u64 {
        return Ok((0..total).collect());
    }
    // The remainder's bias, below total / 2^64, does not matter to a sample.
    let draw = |_| Ok(u64::from_le_bytes(fresh(entropy)?) % total);
    let mut chosen = (0..count).map(draw).collect::<Result<Vec<_>>>()?;
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

fn differs(disk: &dyn RandomDisk, parent: &dyn RandomDisk, range: &Range<u64>) -> Result<bool> {
    if range.end > parent.size()? {
        return Ok(true);
    }
    let length = usize::try_from(range.end - range.start).map_err(|_| Error::internal("a place beyond memory"))?;
    let (mut now, mut then) = (vec![0; length], vec![0; length]);
    match parent.read_at(range.start, &mut then) {
        Ok(()) => {}
        Err(ReadFault::Bytes(_)) => return Ok(false),
        Err(ReadFault::Source(error)) => return Err(error),
    }
    disk.read_at(range.start, &mut now)?;
    Ok(now != then)
}

/// A disk of a snapshot, to compare with. What its backup could not read cannot be read now.
impl RandomDisk for DiskReader {
    fn size(&self) -> Result<u64> {
        Ok(DiskReader::size(self))
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), ReadFault> {
        DiskReader::read_at(self, offset, out).map_err(|error| {
            let range = offset..offset.saturating_add(out.len() as u64);
            let found = runs::cover(&range, |rest| DiskReader::extents(self, rest, BATCH), |extent| &extent.range);
            match found {
                Ok(found) if found.iter().any(|extent| extent.content == MapContent::Unreadable) => {
                    ReadFault::Bytes(error)
                }
                _ => ReadFault::Source(error),
            }
        })
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<SourceExtent>> {
        let of = |content| match content {
            MapContent::Zero => Content::Zero,
            MapContent::Data | MapContent::Unreadable => Content::Bytes,
        };
        let found = DiskReader::extents(self, range, max)?;
        Ok(found.into_iter().map(|extent| SourceExtent { range: extent.range, content: of(extent.content) }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;
    use coffer_gateway::{BlockDevice, Durability, MemoryDevice};
    use coffer_repo::entropy::Seeded;

    const MIB: u64 = 1 << 20;

    /// A disk of which every second MiB is called unchanged, and some cannot be read.
    struct HalfUnchanged {
        below: MemoryDevice,
        lost: Range<u64>,
    }

    impl RandomDisk for HalfUnchanged {
        fn size(&self) -> Result<u64> {
            Ok(self.below.size())
        }

        fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), ReadFault> {
            let end = offset + out.len() as u64;
            assert!(offset / MIB % 2 == 1 && (end - 1) / MIB == offset / MIB, "what changed was read");
            if self.lost.start < end && offset < self.lost.end {
                return Err(ReadFault::Bytes(Error::corrupt("lost")));
            }
            self.below.read_at(offset, out).map_err(ReadFault::Source)
        }

        fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<SourceExtent>> {
            let mut found = Vec::new();
            let mut at = range.start;
            while at < range.end && found.len() < max.min(3) {
                let end = ((at / MIB + 1) * MIB).min(range.end);
                let content = if at / MIB % 2 == 1 { Content::Unchanged } else { Content::Bytes };
                found.push(SourceExtent { range: at..end, content });
                at = end;
            }
            Ok(found)
        }
    }

    const SIZE: u64 = 9 * MIB + 5000;

    /// A disk with a byte at each of `written`.
    fn disk(size: u64, written: &[u64]) -> HalfUnchanged {
        let below = MemoryDevice::new(size);
        written.iter().for_each(|&at| below.write_at(at, &[1], Durability::Cached).unwrap());
        HalfUnchanged { below, lost: 0..0 }
    }

    fn check(now: &[u64], then: &HalfUnchanged, places: usize, seed: u64) -> Option<Range<u64>> {
        first_difference(&disk(SIZE, now), then, places, &Seeded::new(seed), &Cancel::default()).unwrap()
    }

    #[test]
    fn a_difference_is_found_in_what_is_called_unchanged_and_only_there() {
        let then = disk(SIZE, &[]);
        assert_eq!(check(&[4 * MIB], &then, 1000, 1), None);
        assert_eq!(check(&[3 * MIB + 70_000], &then, 1000, 1), Some(3 * MIB + PLACE..3 * MIB + 2 * PLACE));
        assert_eq!(check(&[SIZE - 1], &then, 1000, 1), Some(9 * MIB..SIZE), "the last place is shorter");
        assert_eq!(check(&[], &disk(9 * MIB, &[]), 1000, 1), Some(9 * MIB..SIZE), "the parent was shorter");
        let then = HalfUnchanged { lost: 3 * MIB..4 * MIB, ..then };
        assert_eq!(check(&[3 * MIB], &then, 1000, 1), None, "the parent cannot tell");
    }

    #[test]
    fn the_choice_is_the_entropys_alone_and_reaches_every_place() {
        let hits = || -> Vec<u64> {
            (0..400).filter(|&seed| check(&[5 * MIB], &disk(SIZE, &[]), 4, seed).is_some()).collect()
        };
        let found = hits();
        assert_eq!(found, hits());
        // Four of 65 places: one run in sixteen or so.
        assert!((8..60).contains(&found.len()), "{} of 400", found.len());
    }

    #[test]
    fn a_cancelled_check_ends() {
        let cancel = Cancel::default();
        cancel.cancel();
        let (now, then) = (disk(SIZE, &[]), disk(SIZE, &[]));
        let error = first_difference(&now, &then, 4, &Seeded::new(1), &cancel).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled);
    }
}
