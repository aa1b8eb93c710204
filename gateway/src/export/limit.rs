//! How much of an export its clients get in a second.
//!
//! Not here: waiting, which is a door's affair: it asks before a request begins, and asks again after the time it was told.
//! What holds: nobody reserves anything, so that a client which goes away while it waits costs nothing; a request may begin
//! when all that was granted before is paid for, whatever its own size, so that no size of request starves; memory is two
//! numbers an export. The lock is held for a few additions and over nothing else.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An export that had nothing to do may catch up with this much time, in nanoseconds.
const BURST: u64 = 100_000_000;
const SECOND: u128 = 1_000_000_000;

/// Limits of an export, for all its clients together. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests a second.
    pub operations: Option<NonZeroU64>,
    /// Bytes read and written a second.
    pub bytes: Option<NonZeroU64>,
}

impl Limits {
    /// Whether there is any.
    pub(crate) fn is_some(self) -> bool {
        self.operations.is_some() || self.bytes.is_some()
    }
}

/// What paces the requests of one export.
#[derive(Debug)]
pub struct Meter {
    limits: Limits,
    start: Instant,
    due: Mutex<Due>,
}

/// Until when what was granted is paid for, in nanoseconds since the meter's start.
#[derive(Clone, Copy, Debug, Default)]
struct Due {
    operations: u64,
    bytes: u64,
}

impl Meter {
    pub(crate) fn new(limits: Limits) -> Self {
        Meter { limits, start: Instant::now(), due: Mutex::default() }
    }

    /// Lets a request of `bytes` begin (`None`), or says how long to wait before asking again.
    pub fn admit(&self, bytes: u64) -> Option<Duration> {
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        due.admit(self.limits, now, bytes).err().map(Duration::from_nanos)
    }
}

impl Due {
    /// `Err`: nanoseconds to wait.
    fn admit(&mut self, limits: Limits, now: u64, bytes: u64) -> Result<(), u64> {
        // Who moves no bytes does not wait for them, or one who moves them all the time could keep it waiting for ever.
        let latest = if bytes == 0 { self.operations } else { self.operations.max(self.bytes) };
        if latest > now {
            return Err(latest - now);
        }
        let after = |due: u64, amount: u64, rate: Option<NonZeroU64>| match rate {
            Some(rate) => {
                let cost = u128::from(amount) * SECOND / u128::from(rate.get());
                due.max(now.saturating_sub(BURST)).saturating_add(u64::try_from(cost).unwrap_or(u64::MAX))
            }
            None => 0,
        };
        self.operations = after(self.operations, 1, limits.operations);
        self.bytes = after(self.bytes, bytes, limits.bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn limits(operations: u64, bytes: u64) -> Limits {
        Limits { operations: NonZeroU64::new(operations), bytes: NonZeroU64::new(bytes) }
    }

    /// Requests of `bytes` that begin from 1 s on for `seconds`, when everybody asks all the time.
    fn begun(limits: Limits, bytes: u64, seconds: u64) -> u64 {
        let (mut due, mut now, mut count) = (Due::default(), 1000 * MS, 0);
        while now < (1 + seconds) * 1000 * MS {
            match due.admit(limits, now, bytes) {
                Ok(()) => count += 1,
                Err(wait) => now += wait,
            }
        }
        count
    }

    #[test]
    fn no_more_begins_than_is_allowed_and_no_less() {
        for (limits, bytes, due) in
            [(limits(100, 0), 1 << 20, 1000), (limits(0, 1 << 20), 4096, 2560), (limits(1000, 1 << 20), 65_536, 160)]
        {
            let count = begun(limits, bytes, 10);
            assert!((due..=due + due / 100 + 2).contains(&count), "{limits:?}: {count} instead of {due}");
        }
    }

    #[test]
    fn a_request_larger_than_a_second_begins_and_is_paid_for() {
        let mut due = Due::default();
        assert_eq!(due.admit(limits(0, 1000), 1000 * MS, 5000), Ok(()));
        assert_eq!(due.admit(limits(0, 1000), 1000 * MS, 1), Err(4900 * MS));
        assert_eq!(due.admit(limits(0, 1000), 1000 * MS, 0), Ok(()), "what moves nothing waits for no bytes");
        assert_eq!(due.admit(limits(0, 1000), 5900 * MS, 1), Ok(()));
    }

    #[test]
    fn rest_is_not_saved_up_beyond_a_burst() {
        let mut due = Due::default();
        let burst = (0..100_000).take_while(|_| due.admit(limits(1000, 0), 3_600_000 * MS, 0).is_ok()).count();
        assert_eq!(burst, 101);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let mut due = Due::default();
        assert_eq!(due.admit(limits(1, 1), u64::MAX, u64::MAX), Ok(()));
        assert!(due.admit(limits(1, 1), 0, 1).is_err());
    }

    #[test]
    fn a_meter_grants_and_then_makes_wait() {
        let meter = Meter::new(limits(0, 1));
        assert_eq!(meter.admit(1 << 30), None);
        assert!(meter.admit(1).is_some());
    }
}
