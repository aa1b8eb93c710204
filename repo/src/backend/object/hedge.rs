//! When a read that is late is asked for a second time.
//!
//! Not here: asking. What holds: a second request is made only after what 19 of 20 of the last reads took, and to no more than
//! one read in [`ONE_IN`]: a store that is slow because it is overloaded is not asked twice as much.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Reads that are remembered.
const WINDOW: usize = 128;
/// Reads to know before "late" means anything.
const LEAST: usize = 20;
/// One read in so many may be asked for twice.
const ONE_IN: u32 = 20;
/// Second requests that may be saved up.
const SAVED: u32 = 4 * ONE_IN;
/// Never sooner: below this a second request costs more than it gains.
const SOONEST: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Hedge {
    is_on: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How long the last reads took to be answered, oldest overwritten first.
    took: Vec<Duration>,
    next: usize,
    /// Reads since, of which every [`ONE_IN`] pay for a second request.
    credit: u32,
}

impl Hedge {
    pub(super) fn new(is_on: bool) -> Hedge {
        Hedge { is_on, state: Mutex::new(State::default()) }
    }

    /// After how long a read counts as late; `None`: not known, or never.
    pub(super) fn delay(&self) -> Option<Duration> {
        if !self.is_on {
            return None;
        }
        let mut took = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.took.len() < LEAST || state.credit < ONE_IN {
                return None;
            }
            state.took.clone()
        };
        let at = took.len() * 19 / 20;
        let (_, late, _) = took.select_nth_unstable(at);
        Some((*late).max(SOONEST))
    }

    /// A read was answered after so long.
    pub(super) fn took(&self, time: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let next = state.next;
        match state.took.get_mut(next) {
            Some(oldest) => *oldest = time,
            None => state.took.push(time),
        }
        state.next = (next + 1) % WINDOW;
        state.credit = (state.credit + 1).min(SAVED);
    }

    /// Whether a second request may be made; it is paid for if so.
    pub(super) fn spend(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let left = state.credit.checked_sub(ONE_IN);
        state.credit = left.unwrap_or(state.credit);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_is_what_one_in_twenty_is() {
        let hedge = Hedge::new(true);
        for i in 1..=19u64 {
            hedge.took(Duration::from_millis(100 * i));
            assert_eq!(hedge.delay(), None);
        }
        hedge.took(Duration::from_millis(2000));
        assert_eq!(hedge.delay(), Some(Duration::from_millis(2000)));
        (0..WINDOW).for_each(|_| hedge.took(Duration::from_millis(1)));
        assert_eq!(hedge.delay(), Some(SOONEST));
    }

    #[test]
    fn one_in_twenty_is_asked_twice_at_most() {
        let hedge = Hedge::new(true);
        let mut seconds = 0;
        for _ in 0..2000 {
            seconds += u32::from(hedge.spend());
            hedge.took(Duration::from_millis(50));
        }
        assert!((90..=100).contains(&seconds), "{seconds}");
        assert!(Hedge::new(false).delay().is_none());
    }
}
