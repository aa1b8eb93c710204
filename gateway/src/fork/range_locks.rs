//! Who may touch which blocks now: a lock for each region, 256 of them for a disk of any size.
//!
//! Not here: what is done under them. What holds: a block is read under the shared lock of its region and written under the
//! exclusive one, so that nobody sees half a write of a block. Whoever takes several takes them in rising order of stripes, and
//! waits for nothing else while holding one but the journal's lock and the medium: so nobody waits in a circle.
//!
//! They are held over I/O, against the rule: the I/O is what they are for. It is on local files, mostly in memory, and others
//! wait only for the same 64 blocks, or one region in 256.

use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

const STRIPES: usize = 256;

/// The locks guard no value of their own: one that a dying thread held is as good as before.
pub(super) struct RangeLocks(Box<[RwLock<()>]>);

/// Several locks, held.
pub(super) type Held<'a> = Vec<RwLockWriteGuard<'a, ()>>;

impl RangeLocks {
    pub(super) fn new() -> Self {
        RangeLocks((0..STRIPES).map(|_| RwLock::default()).collect())
    }

    pub(super) fn read(&self, region: u64) -> RwLockReadGuard<'_, ()> {
        self.0[stripe(region)].read().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` when somebody writes there.
    pub(super) fn try_read(&self, region: u64) -> Option<RwLockReadGuard<'_, ()>> {
        match self.0[stripe(region)].try_read() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(super) fn write(&self, region: u64) -> RwLockWriteGuard<'_, ()> {
        self.0[stripe(region)].write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of some regions in a row.
    pub(super) fn write_span(&self, regions: Range<u64>) -> Held<'_> {
        stripes(regions).into_iter().map(|s| self.0[s].write().unwrap_or_else(PoisonError::into_inner)).collect()
    }

    /// Waits for everybody who writes in these regions as this begins. Keeps nobody from reading.
    pub(super) fn pass(&self, regions: Range<u64>) {
        for stripe in stripes(regions) {
            drop(self.0[stripe].read().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// All of them: nobody else reads or writes anything.
    pub(super) fn write_all(&self) -> Held<'_> {
        self.write_span(0..STRIPES as u64)
    }
}

/// The stripes of some regions in a row, in rising order.
fn stripes(regions: Range<u64>) -> Vec<usize> {
    let end = regions.end.min(regions.start.saturating_add(STRIPES as u64));
    let mut stripes: Vec<usize> = (regions.start..end).map(stripe).collect();
    stripes.sort_unstable();
    stripes
}

fn stripe(region: u64) -> usize {
    usize::try_from(region % STRIPES as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_that_wrap_around_take_each_stripe_once_and_in_order() {
        let locks = RangeLocks::new();
        assert_eq!(locks.write_span(250..260).len(), 10);
        assert_eq!(locks.write_span(3..1000).len(), STRIPES);
        let held = locks.write_span(255..257);
        assert!(locks.try_read(256).is_none() && locks.try_read(511).is_none());
        assert!(locks.try_read(1).is_some());
        drop(held);
        assert!(locks.try_read(256).is_some());
    }
}
