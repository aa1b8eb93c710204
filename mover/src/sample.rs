//! The spot check of an incremental backup: a random sample of what a source calls unchanged is read and compared.
//!
//! Not here: what follows from a difference (a full read), and where tokens come from. What holds: every unchanged stretch can
//! be chosen, in proportion to its length; which ones are is the injected entropy's choice alone; two passes over the
//! extents, so memory does not grow with the disk.

use crate::source::{Content, RandomDisk};
use crate::{Error, Result, runs};
use coffer_gateway::device::{self, BlockDevice};
use coffer_repo::cancel::Cancel;
use coffer_repo::entropy::{Entropy, fresh};
use std::ops::Range;

/// How much is compared at each place, in bytes.
const PLACE: u64 = 64 << 10;

/// How many extents are asked for at a time.
const BATCH: usize = 1024;

/// Compares `places` random places of what `disk` calls unchanged with the same places of `parent`. Gives the first place
/// that differs, if any does.
pub fn first_difference(
    disk: &dyn RandomDisk,
    parent: &dyn BlockDevice,
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

fn differs(disk: &dyn RandomDisk, parent: &dyn BlockDevice, range: &Range<u64>) -> Result<bool> {
    if range.end > parent.size() {
        return Ok(true);
    }
    let known = runs::cover(range, |rest| parent.extents(rest, BATCH), |extent| &extent.range)?;
    if known.iter().any(|extent| extent.content == device::Content::Unreadable) {
        return Ok(false);
    }
    let length = usize::try_from(range.end - range.start).map_err(|_| Error::internal("a place beyond memory"))?;
    let (mut now, mut then) = (vec![0; length], vec![0; length]);
    disk.read_at(range.start, &mut now)?;
    parent.read_at(range.start, &mut then)?;
    Ok(now != then)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;
    use crate::source::{ReadFault, SourceExtent};
    use coffer_gateway::{Durability, Faults, FaultyDevice, MemoryDevice};
    use coffer_repo::entropy::Seeded;
    use std::sync::Arc;

    const MIB: u64 = 1 << 20;

    /// A disk of which every second MiB is called unchanged.
    struct HalfUnchanged(MemoryDevice);

    impl RandomDisk for HalfUnchanged {
        fn size(&self) -> Result<u64> {
            Ok(self.0.size())
        }

        fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), ReadFault> {
            assert!(offset / MIB % 2 == 1 && (offset + out.len() as u64 - 1) / MIB == offset / MIB, "it changed");
            self.0.read_at(offset, out).map_err(ReadFault::Source)
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

    fn disk(size: u64, written: &[u64]) -> MemoryDevice {
        let device = MemoryDevice::new(size);
        written.iter().for_each(|&at| device.write_at(at, &[1], Durability::Cached).unwrap());
        device
    }

    fn check(now: &[u64], then: MemoryDevice, places: usize, seed: u64) -> Option<Range<u64>> {
        let now = HalfUnchanged(disk(9 * MIB + 5000, now));
        first_difference(&now, &then, places, &Seeded::new(seed), &Cancel::default()).unwrap()
    }

    #[test]
    fn a_difference_is_found_when_its_place_is_chosen_and_only_there() {
        let size = 9 * MIB + 5000;
        // What changed is not compared.
        assert_eq!(check(&[4 * MIB], disk(size, &[]), 1000, 1), None);
        // All places: the difference is found, with its range.
        assert_eq!(check(&[3 * MIB + 70_000], disk(size, &[]), 1000, 1), Some(3 * MIB + PLACE..3 * MIB + 2 * PLACE));
        // The last place of the disk is shorter and can be chosen too.
        assert_eq!(check(&[size - 1], disk(size, &[]), 1000, 1), Some(9 * MIB..size));
        // A parent that was shorter cannot know it.
        assert_eq!(check(&[], disk(9 * MIB, &[]), 1000, 1), Some(9 * MIB..size));
        // What the parent could not read says nothing.
        let lost = Faults { unreadable: vec![3 * MIB..4 * MIB], ..Faults::default() };
        let parent = FaultyDevice::new(Arc::new(disk(size, &[])), lost);
        let now = HalfUnchanged(disk(size, &[3 * MIB]));
        assert_eq!(first_difference(&now, &parent, 1000, &Seeded::new(1), &Cancel::default()).unwrap(), None);
    }

    #[test]
    fn the_choice_is_the_entropys_alone_and_reaches_every_place() {
        let size = 9 * MIB + 5000;
        let found: Vec<bool> = (0..400).map(|seed| check(&[5 * MIB], disk(size, &[]), 4, seed).is_some()).collect();
        let again: Vec<bool> = (0..400).map(|seed| check(&[5 * MIB], disk(size, &[]), 4, seed).is_some()).collect();
        assert_eq!(found, again);
        // Four of 65 places: one run in sixteen or so.
        let hits = found.iter().filter(|&&hit| hit).count();
        assert!((8..60).contains(&hits), "{hits} of 400");
    }

    #[test]
    fn a_cancelled_check_ends() {
        let cancel = Cancel::default();
        cancel.cancel();
        let now = HalfUnchanged(disk(9 * MIB, &[]));
        let error = first_difference(&now, &disk(9 * MIB, &[]), 4, &Seeded::new(1), &cancel).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled);
    }
}
