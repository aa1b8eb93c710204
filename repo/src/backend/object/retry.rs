//! Whether and when a request that failed is made again. The one place that decides it.
//!
//! ```text
//!   failure -> Kind ──is_transient?──no──> give up
//!                          │yes
//!        attempts left and patience left? ──no──> give up
//!                          │yes
//!        pause: full jitter below base * 2^n (never above CAP), and not before the store's Retry-After
//! ```
//! Not here: what is transient ([`Kind::is_transient`](crate::error::Kind::is_transient)), sleeping (the callers do). What holds:
//! patience is counted from the first failure, so that a long upload is not punished for its length; a call of the store
//! and all requests it makes share one [`Attempts`], so that nested repetition does not multiply.

use std::time::{Duration, Instant};

/// The first pause is drawn below this.
const BASE: Duration = Duration::from_millis(200);
/// No pause is drawn above this.
const CAP: Duration = Duration::from_secs(10);
/// Most repetitions of one call.
const MOST: u32 = 40;
/// Patience with a store that never answered anything: its address may be mistyped, and a person waits.
const BEFORE_FIRST_ANSWER: Duration = Duration::from_secs(5);
/// How long a store is asked again if nobody said otherwise.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// The repetitions of one call of the store.
#[derive(Debug)]
pub(super) struct Attempts {
    patience: Duration,
    made: u32,
    first_failure: Option<Instant>,
}

impl Attempts {
    pub(super) fn new(patience: Duration) -> Attempts {
        Attempts { patience, made: 0, first_failure: None }
    }

    /// After a transient failure at `now`: how long to wait before the next attempt, or `None` to give up. `draw` is any number
    /// drawn evenly from all; `retry_after` what the store asked for; `has_answered` whether it ever answered.
    pub(super) fn pause(
        &mut self,
        draw: u64,
        retry_after: Option<Duration>,
        has_answered: bool,
        now: Instant,
    ) -> Option<Duration> {
        let patience = if has_answered { self.patience } else { self.patience.min(BEFORE_FIRST_ANSWER) };
        let spent = now.duration_since(*self.first_failure.get_or_insert(now));
        let ceiling = BASE.saturating_mul(1 << self.made.min(10)).min(CAP);
        let pause = ceiling.mul_f64(fraction(draw)).saturating_add(retry_after.unwrap_or_default());
        if self.made >= MOST || spent.saturating_add(pause) > patience {
            return None;
        }
        self.made += 1;
        Some(pause)
    }

    /// How often something was repeated.
    pub(super) fn made(&self) -> u32 {
        self.made
    }
}

/// A number drawn from all, as one from 0 to 1.
fn fraction(draw: u64) -> f64 {
    f64::from(u32::try_from(draw >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_grow_to_the_cap_and_are_drawn_from_nothing_to_all_of_it() {
        let now = Instant::now();
        let mut highest = Attempts::new(SECOND * 3600);
        let pauses: Vec<_> = (0..8).map(|_| highest.pause(u64::MAX, None, true, now).unwrap()).collect();
        let expected: Vec<_> = [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000].map(Duration::from_millis).to_vec();
        assert_eq!(pauses, expected);
        let mut lowest = Attempts::new(SECOND);
        assert_eq!(lowest.pause(0, None, true, now), Some(Duration::ZERO));
    }

    #[test]
    fn patience_and_the_number_of_attempts_end() {
        let begin = Instant::now();
        let mut attempts = Attempts::new(SECOND * 60);
        assert!(attempts.pause(0, None, true, begin).is_some());
        assert!(attempts.pause(0, None, true, begin + SECOND * 60).is_some());
        assert_eq!(attempts.pause(0, None, true, begin + SECOND * 61), None);
        let mut attempts = Attempts::new(SECOND * 60);
        let made = (0..1000).take_while(|_| attempts.pause(0, None, true, begin).is_some()).count();
        assert_eq!((made, attempts.made()), (40, 40));
    }

    #[test]
    fn what_the_store_asks_for_is_waited_for_or_is_too_long() {
        let now = Instant::now();
        let mut attempts = Attempts::new(SECOND * 60);
        assert_eq!(attempts.pause(0, Some(SECOND * 7), true, now), Some(SECOND * 7));
        assert_eq!(attempts.pause(0, Some(SECOND * 61), true, now), None);
    }

    #[test]
    fn a_store_that_never_answered_is_given_up_soon() {
        let now = Instant::now();
        let mut attempts = Attempts::new(SECOND * 600);
        assert!(attempts.pause(0, None, false, now).is_some());
        assert_eq!(attempts.pause(0, None, false, now + SECOND * 6), None);
        assert!(attempts.pause(0, None, true, now + SECOND * 6).is_some());
    }
}
