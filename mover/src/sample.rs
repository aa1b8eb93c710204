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
