//! What a hydration still has to copy, as those who use the fork tell it: what they changed, what they missed, and when they have to wait.
//!
//! ```text
//!   write   wait_turn -> (gate) the layer changes -> mark -> acknowledged
//!   read    from afar -> note_miss: copied next                               copier   take: the bit first, the bytes after
//! ```
//! Not here: who copies ([`super::transfer`]). What holds: a change is marked after it is there and before it is acknowledged, even if it
//! failed; so a copier that clears a bit and then reads either reads the change or finds the bit again. Nobody waits here for longer
//! than the patience that the copier set, however slow its target is. Memory: a bit for each region, 8 MiB at most, and a short queue.

use super::bitmap::Bitmap;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The smallest region, in bytes.
const SMALLEST: u64 = 256 << 10;
/// As many regions at most: what does not fit has larger ones.
const MOST: u64 = 1 << 26;
/// Regions that wait to be copied first.
const HOT: usize = 64;
/// So many regions may be left when writers are made to wait for the last of them: 16 MiB, on disks up to 16 TiB.
pub(super) const LAST: u64 = 64;

/// What is tracked of a stack.
pub(in crate::fork) struct Tracker {
    size: u64,
    region: u64,
    dirty: Bitmap,
    hot: Mutex<VecDeque<u64>>,
    /// How long a write may be made to wait. Zero: not at all.
    patience: Mutex<Duration>,
    is_paced: AtomicBool,
    fewer: Condvar,
}

impl Tracker {
    /// For a disk of `size` bytes, of which nothing is to be copied yet.
    pub(in crate::fork) fn new(size: u64) -> Self {
        let region = size.div_ceil(MOST).next_power_of_two().max(SMALLEST);
        Tracker {
            size,
            region,
            dirty: Bitmap::new(size.div_ceil(region)),
            hot: Mutex::default(),
            patience: Mutex::default(),
            is_paced: AtomicBool::new(false),
            fewer: Condvar::new(),
        }
    }

    /// Bytes of a region.
    pub(super) fn region(&self) -> u64 {
        self.region
    }

    /// The regions that `range`, in bytes, touches.
    pub(super) fn regions(&self, range: &Range<u64>) -> Range<u64> {
        match range.is_empty() {
            true => 0..0,
            false => range.start / self.region..range.end.div_ceil(self.region),
        }
    }

    /// The bytes of `regions`.
    pub(super) fn bytes(&self, regions: &Range<u64>) -> Range<u64> {
        (regions.start * self.region).min(self.size)..(regions.end * self.region).min(self.size)
    }

    /// What is to be copied.
    pub(super) fn dirty(&self) -> &Bitmap {
        &self.dirty
    }

    /// Says that `range`, in bytes, was changed.
    pub(in crate::fork) fn mark(&self, range: &Range<u64>) {
        self.dirty.set(self.regions(range));
    }

    /// Says that a reader had to wait for what lies at `offset`: it is likely to be asked for again, and what follows too.
    pub(in crate::fork) fn note_miss(&self, offset: u64) {
        let region = offset / self.region;
        if !self.dirty.any(region..region + 1) {
            return;
        }
        let mut hot = lock(&self.hot);
        if hot.back() != Some(&region) {
            if hot.len() == HOT {
                hot.pop_front();
            }
            hot.push_back(region);
        }
    }

    /// What is to be copied before everything else, with its neighbours: `longest` regions at most.
    pub(super) fn next_hot(&self, longest: u64) -> Option<Range<u64>> {
        loop {
            let region = lock(&self.hot).pop_front()?;
            // Unless it was copied meanwhile, with the one before and those behind it.
            let near = region.saturating_sub(1)..region.saturating_add(longest);
            if let Some(run) = self.dirty.next_run(near, longest).filter(|run| run.start <= region) {
                return Some(run);
            }
        }
    }

    /// Has writers wait, each for `patience` at most, while more is dirty than is good for the end. Zero: no more.
    pub(super) fn pace(&self, patience: Duration) {
        *lock(&self.patience) = patience;
        self.is_paced.store(!patience.is_zero(), Ordering::SeqCst);
        self.fewer.notify_all();
    }

    /// Says that something was copied.
    pub(super) fn note_progress(&self) {
        if self.is_paced.load(Ordering::SeqCst) {
            self.fewer.notify_all();
        }
    }

    /// Waits until a write may begin.
    pub(in crate::fork) fn wait_turn(&self) {
        if !self.is_paced.load(Ordering::SeqCst) {
            return;
        }
        let began = Instant::now();
        let mut patience = lock(&self.patience);
        while self.dirty.count() > LAST {
            let Some(left) = patience.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) else { return };
            patience = self.fewer.wait_timeout(patience, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What is guarded is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::scope;

    #[test]
    fn a_bitmap_is_never_more_than_8_mib() {
        for (size, region) in [(1, SMALLEST), (16 << 40, SMALLEST), ((16 << 40) + 1, 512 << 10), (64 << 40, 1 << 20)] {
            assert_eq!(Tracker::new(size).region(), region, "{size}");
        }
        let tracker = Tracker::new(SMALLEST + 5);
        assert_eq!(tracker.regions(&(SMALLEST - 1..SMALLEST + 1)), 0..2);
        assert_eq!(tracker.bytes(&(1..2)), SMALLEST..SMALLEST + 5);
        assert_eq!(tracker.regions(&(7..7)), 0..0);
    }

    #[test]
    fn what_is_missed_comes_first_once_and_only_if_it_is_left() {
        let tracker = Tracker::new(1000 * SMALLEST);
        tracker.mark(&(0..1000 * SMALLEST));
        tracker.note_miss(500 * SMALLEST + 7);
        tracker.note_miss(500 * SMALLEST + 9000);
        tracker.note_miss(0);
        assert_eq!(tracker.next_hot(4), Some(499..503));
        assert_eq!(tracker.next_hot(4), Some(0..4));
        assert_eq!(tracker.next_hot(4), None);
        tracker.note_miss(20 * SMALLEST);
        tracker.dirty().clear(20..21);
        tracker.note_miss(20 * SMALLEST);
        assert_eq!(tracker.next_hot(4), Some(19..20), "what is left beside it");
        assert_eq!(tracker.next_hot(4), None);
        for region in 100..100 + 2 * HOT as u64 {
            tracker.note_miss(region * SMALLEST);
        }
        assert_eq!(tracker.next_hot(1), Some(99 + HOT as u64..100 + HOT as u64), "the newest are kept");
    }

    #[test]
    fn a_writer_waits_for_the_copier_or_until_it_has_no_more_patience() {
        let tracker = Tracker::new(1000 * SMALLEST);
        tracker.mark(&(0..1000 * SMALLEST));
        tracker.wait_turn();
        tracker.pace(Duration::from_millis(1));
        tracker.wait_turn();
        tracker.pace(Duration::from_secs(3600));
        scope(|scope| {
            let writer = scope.spawn(|| tracker.wait_turn());
            tracker.dirty().clear(0..1000 - LAST);
            while !writer.is_finished() {
                tracker.note_progress();
                std::thread::yield_now();
            }
            tracker.dirty().set(0..1000);
            let writer = scope.spawn(|| tracker.wait_turn());
            tracker.pace(Duration::ZERO);
            while !writer.is_finished() {
                tracker.pace(Duration::ZERO);
            }
        });
    }
}
