//! Which files were used lately, told to everybody by their times of change.
//!
//! Not here: who goes by it ([`super::room`]). What holds: a file that is used all the time is touched once in [`PERIOD`] and
//! not with every read; memory is [`SLOTS`] words. Two files that share a slot are touched more often, never less.

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, futimens};
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long a touch lasts.
const PERIOD: Duration = Duration::from_secs(20);
/// Files that are told apart.
const SLOTS: usize = 1024;
/// Bits of a slot that count periods; the others are the file's.
const PERIODS: u32 = 24;

/// What this process touched lately.
pub(super) struct Recency {
    begun: Instant,
    slots: Vec<AtomicU64>,
}

impl Default for Recency {
    fn default() -> Self {
        Recency { begun: Instant::now(), slots: std::iter::repeat_with(AtomicU64::default).take(SLOTS).collect() }
    }
}

impl Recency {
    /// Takes note that the file with this hash was used.
    pub(super) fn used(&self, hash: u64, file: &File) {
        let period = self.begun.elapsed().as_secs() / PERIOD.as_secs() + 1;
        let mark = hash << PERIODS | period & ((1 << PERIODS) - 1);
        let slot = usize::try_from(hash >> 32).unwrap_or(0) % SLOTS;
        if self.slots.get(slot).is_some_and(|slot| slot.swap(mark, Relaxed) != mark) {
            let omitted = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
            let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
            // A file that cannot be touched is forgotten earlier, no more.
            let _ = futimens(file, &Timestamps { last_access: omitted, last_modification: now });
        }
    }
}
