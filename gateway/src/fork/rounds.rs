//! Flushes that share their work: whoever asks while one is under way waits for the next, which serves all that asked meanwhile.
//!
//! ```text
//!   ask    A starts round 1 --------- done           B and C came too late for it: one of them leads round 2 for both
//!               B asks   C asks       B: round 2 ------------ done
//! ```
//! Not here: what a flush does. What holds: a round begins after everything that its askers had done; one round runs at a time; when
//! one fails, or its leader dies, the [`Verdict`] is spoken, and nobody waits for ever.

use crate::{Error, Kind, Result};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// Whether a layer may still be written to. Spoken once.
#[derive(Default)]
pub(super) struct Verdict(OnceLock<Error>);

impl Verdict {
    /// An error once the layer has failed.
    pub(super) fn check(&self) -> Result<()> {
        self.0.get().map_or(Ok(()), |e| Err(e.duplicate()))
    }

    /// From now on every write and every flush fails; whether it is news.
    pub(super) fn fail(&self, error: &Error) -> bool {
        let why = "the fork failed and takes no more writes; stop using it, see to its disk, and open it again: what was \
                   flushed before is there";
        self.0.set(Error::new(Kind::Unavailable, format!("{why} ({error})"))).is_ok()
    }
}

#[derive(Default)]
pub(super) struct Rounds {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// How many have begun, and how many of these are over.
    begun: u64,
    over: u64,
    /// What the next one has to do.
    wants_data: bool,
    #[cfg(test)]
    waiting: u64,
}

/// Ends a round, however its leader leaves.
struct Leading<'a> {
    rounds: &'a Rounds,
    verdict: &'a Verdict,
    is_done: bool,
}

impl Rounds {
    /// Waits for a round that begins from now on, and leads it if nobody else does: `lead` is told whether blocks have to become
    /// durable or the journal only. Fails when the layer has.
    pub(super) fn join(
        &self,
        verdict: &Verdict,
        wants_data: bool,
        lead: impl FnOnce(bool) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.lock();
        let mine = state.begun + 1;
        state.wants_data |= wants_data;
        while state.begun >= mine || state.begun > state.over {
            if state.over >= mine {
                return verdict.check();
            }
            #[cfg(test)]
            (state.waiting += 1);
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.begun += 1;
        let wants_data = std::mem::take(&mut state.wants_data);
        drop(state);
        let mut leading = Leading { rounds: self, verdict, is_done: false };
        let result = lead(wants_data);
        leading.is_done = true;
        if let Err(e) = &result {
            verdict.fail(e);
        }
        drop(leading);
        result.and_then(|()| verdict.check())
    }

    // Counters: as good as before when a thread died with the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.verdict.fail(&Error::internal("a thread died while it flushed"));
        }
        self.rounds.lock().over += 1;
        self.rounds.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::channel;
    use std::thread::scope;

    #[test]
    fn those_who_ask_during_a_round_share_the_next_one() {
        let (rounds, verdict, ran) = (Rounds::default(), Verdict::default(), AtomicU64::new(0));
        let (began, begun) = channel();
        let (end, ended) = channel::<()>();
        scope(|scope| {
            let (first, speaks) = (&rounds, &verdict);
            scope.spawn(move || {
                let hold = |_| {
                    began.send(()).unwrap();
                    ended.recv().unwrap();
                    Ok(())
                };
                first.join(speaks, true, hold).unwrap();
            });
            begun.recv().unwrap();
            let (rounds, verdict, ran) = (&rounds, &verdict, &ran);
            let askers: Vec<_> = (0..8)
                .map(|i| {
                    scope.spawn(move || {
                        let lead = |wants_data: bool| {
                            assert!(wants_data, "one of them wanted it");
                            ran.fetch_add(1, Ordering::Relaxed);
                            Ok(())
                        };
                        rounds.join(verdict, i == 3, lead).unwrap();
                    })
                })
                .collect();
            while rounds.lock().waiting < 8 {
                std::thread::yield_now();
            }
            end.send(()).unwrap();
            askers.into_iter().for_each(|a| a.join().unwrap());
        });
        assert_eq!(ran.load(Ordering::Relaxed), 1);
        let state = rounds.lock();
        assert_eq!((state.begun, state.over), (2, 2));
    }

    #[test]
    fn a_leader_that_dies_or_fails_hangs_nobody() {
        for dies in [true, false] {
            let (rounds, verdict) = (Rounds::default(), Verdict::default());
            scope(|scope| {
                let lead = |_: bool| if dies { panic!("on purpose") } else { Err(Error::internal("no")) };
                let (rounds, verdict) = (&rounds, &verdict);
                assert!(!matches!(scope.spawn(move || rounds.join(verdict, true, lead)).join(), Ok(Ok(()))));
            });
            assert!(verdict.check().is_err());
            assert!(rounds.join(&verdict, true, |_| Ok(())).is_err());
        }
    }
}
