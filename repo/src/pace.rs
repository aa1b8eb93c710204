//! How fast bytes may be read: a token bucket that many threads draw from.
//!
//! Not here: what is read. What holds: over any stretch of time, no more is let through than the rate allows for it and a burst
//! of [`BURST`]; whoever has to wait sleeps, with no lock held, and wakes when it is asked to stop.

use crate::cancel::Cancel;
use crate::error::Result;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What may be read at once after a pause.
const BURST: Duration = Duration::from_millis(250);

/// A limit, or none.
pub(crate) struct Pace(Option<Limit>);

struct Limit {
    /// Bytes a second.
    rate: u64,
    bucket: Bucket,
}

/// A bucket of tokens whose rate is said with every draw.
pub(crate) struct Bucket {
    /// When all that was let through so far would have been read at exactly the rate.
    due: Mutex<Instant>,
}

impl Pace {
    /// So many bytes a second; without a number, as many as come.
    pub(crate) fn new(rate: Option<u64>) -> Self {
        Pace(rate.map(|rate| Limit { rate, bucket: Bucket::new(Instant::now()) }))
    }

    /// Waits until so many bytes may be read. `Cancelled` once somebody asked to stop.
    pub(crate) fn take(&self, bytes: u64, cancel: &Cancel) -> Result<()> {
        cancel.check()?;
        let Some(limit) = &self.0 else { return Ok(()) };
        cancel.sleep_until(limit.bucket.turn(bytes, limit.rate, Instant::now()))
    }
}

impl Bucket {
    /// A full one.
    pub(crate) fn new(now: Instant) -> Bucket {
        Bucket { due: Mutex::new(now) }
    }

    /// When so many bytes may be moved by one who asks at `now`, at `rate` bytes a second.
    pub(crate) fn turn(&self, bytes: u64, rate: u64, now: Instant) -> Instant {
        #[expect(clippy::cast_precision_loss, reason = "no read has 2^53 bytes, and a rate of as many is no limit")]
        let takes = Duration::try_from_secs_f64(bytes as f64 / rate.max(1) as f64).unwrap_or(Duration::MAX);
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = (*due).max(now.checked_sub(BURST).unwrap_or(now));
        // A rate that takes longer than time can be counted lets this one through and nobody after it.
        *due = turn.checked_add(takes).unwrap_or(turn);
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn no_more_than_the_rate_and_a_burst_is_let_through() {
        let begin = Instant::now();
        let bucket = Bucket::new(begin);
        let mut now = begin;
        for i in 0..100u32 {
            now = bucket.turn(100, 1000, now).max(now);
            assert_eq!(now.duration_since(begin), Duration::from_millis(100) * i);
        }
        // After a pause, however long, a burst and no more.
        now += Duration::from_secs(60);
        let waits: Vec<_> = (0..5).map(|_| bucket.turn(100, 1000, now).saturating_duration_since(now)).collect();
        assert_eq!(waits, [0, 0, 0, 50, 150].map(Duration::from_millis));
    }

    #[test]
    fn whoever_waits_is_woken_to_stop() {
        let pace = Pace::new(Some(1));
        let cancel = Cancel::default();
        pace.take(1 << 30, &cancel).unwrap();
        cancel.cancel();
        assert_eq!(pace.take(1, &cancel).unwrap_err().kind(), Kind::Cancelled);
        Pace::new(None).take(u64::MAX, &Cancel::default()).unwrap();
    }
}
