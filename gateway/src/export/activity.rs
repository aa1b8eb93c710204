//! What was done with an export, or over a connection: requests, bytes, failures, and how long answers took.
//!
//! Not here: who shows it. What holds: counting is a few relaxed additions, without a lock; figures that are read together may
//! be of slightly different moments.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the classes of latency, rising; the last class, beyond these, has none. What was answered from memory at once
/// is in the first class.
pub const LATENCY_BOUNDS: [Duration; 6] = [
    Duration::from_micros(100),
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(10),
];
const CLASSES: usize = LATENCY_BOUNDS.len() + 1;

/// Running counts.
#[derive(Debug, Default)]
pub struct Activity {
    reads: AtomicU64,
    bytes_read: AtomicU64,
    writes: AtomicU64,
    bytes_written: AtomicU64,
    others: AtomicU64,
    failures: AtomicU64,
    delays: AtomicU64,
    latencies: [AtomicU64; CLASSES],
    latency_nanos: AtomicU64,
}

/// The same at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ActivityTotals {
    /// Reads answered.
    pub reads: u64,
    /// Bytes that they asked for.
    pub bytes_read: u64,
    /// Writes answered.
    pub writes: u64,
    /// Bytes that they brought.
    pub bytes_written: u64,
    /// Other requests answered: flush, trim, zeroes, status.
    pub others: u64,
    /// Those of all of them that failed or were refused.
    pub failures: u64,
    /// Times that a request had to wait for its export's limits.
    pub delays: u64,
    /// Answers by latency, see [`LATENCY_BOUNDS`]: from when a request was whole to when its answer was ready to be sent. What
    /// was refused before it was tried is not among them.
    pub latencies: [u64; CLASSES],
    /// All of these latencies together, in nanoseconds.
    pub latency_nanos: u64,
}

/// What kind of request is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Of so many bytes.
    Read(u64),
    /// Of so many bytes.
    Write(u64),
    /// Anything else.
    Other,
}

impl Activity {
    /// Counts a request that was answered, after so long; `None` for one that was refused and not tried.
    pub fn answered(&self, deed: Deed, is_well: bool, latency: Option<Duration>) {
        match deed {
            Deed::Read(bytes) => {
                add(&self.reads, 1);
                add(&self.bytes_read, bytes);
            }
            Deed::Write(bytes) => {
                add(&self.writes, 1);
                add(&self.bytes_written, bytes);
            }
            Deed::Other => add(&self.others, 1),
        }
        if !is_well {
            add(&self.failures, 1);
        }
        if let Some(latency) = latency {
            let class = LATENCY_BOUNDS.iter().position(|bound| latency < *bound).unwrap_or(LATENCY_BOUNDS.len());
            self.latencies.get(class).into_iter().for_each(|count| add(count, 1));
            if !latency.is_zero() {
                add(&self.latency_nanos, u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
            }
        }
    }

    /// Counts a request that has to wait for limits.
    pub fn delayed(&self) {
        add(&self.delays, 1);
    }

    /// The counts now.
    #[must_use]
    pub fn totals(&self) -> ActivityTotals {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ActivityTotals {
            reads: read(&self.reads),
            bytes_read: read(&self.bytes_read),
            writes: read(&self.writes),
            bytes_written: read(&self.bytes_written),
            others: read(&self.others),
            failures: read(&self.failures),
            delays: read(&self.delays),
            latencies: std::array::from_fn(|class| self.latencies.get(class).map_or(0, read)),
            latency_nanos: read(&self.latency_nanos),
        }
    }
}

fn add(count: &AtomicU64, n: u64) {
    count.fetch_add(n, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_deed_is_counted_in_its_place() {
        let activity = Activity::default();
        activity.answered(Deed::Read(4096), true, Some(Duration::ZERO));
        activity.answered(Deed::Read(512), false, Some(Duration::from_micros(100)));
        activity.answered(Deed::Write(100), true, Some(Duration::from_secs(9)));
        activity.answered(Deed::Other, true, Some(Duration::from_secs(10)));
        activity.answered(Deed::Other, false, None);
        activity.delayed();
        let due = ActivityTotals {
            reads: 2,
            bytes_read: 4608,
            writes: 1,
            bytes_written: 100,
            others: 2,
            failures: 2,
            delays: 1,
            latencies: [1, 1, 0, 0, 0, 1, 1],
            latency_nanos: 19_000_100_000,
        };
        assert_eq!(activity.totals(), due);
    }
}
