//! Threads that work on stretches of a disk, one stretch each at a time.
//!
//! ```text
//!   dispatcher: wait_clear, give, .. , finish          worker: take one, work, done          until finished, or one failed
//! ```
//! Not here: what the work is. What holds: one stretch waits at most, so that what is given next is decided late; stretches under way do
//! not overlap if the dispatcher waits for that; the first error ends all, and a worker that dies is one.

use crate::{Error, Result};
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::scope;

/// Where work lies.
#[derive(Default)]
pub(super) struct Crew {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    next: Option<Range<u64>>,
    under_way: Vec<Range<u64>>,
    is_over: bool,
    failed: Option<Error>,
}

/// Notes the end of a stretch, however its worker leaves it.
struct Working<'a> {
    crew: &'a Crew,
    stretch: Range<u64>,
    result: Result<()>,
}

impl Crew {
    /// Has `dispatch` give stretches to so many threads that each do `work`; returns when all are done, or one failed.
    pub(super) fn run(
        workers: usize,
        work: impl Fn(&Range<u64>, &mut Vec<u8>) -> Result<()> + Sync,
        dispatch: impl FnOnce(&Crew) -> Result<()>,
    ) -> Result<()> {
        let crew = Crew::default();
        let dispatched = scope(|scope| {
            for _ in 0..workers.max(1) {
                scope.spawn(|| crew.work(&work));
            }
            let dispatched = dispatch(&crew);
            crew.lock().is_over = true;
            crew.changed.notify_all();
            dispatched
        });
        match crew.lock().failed.take() {
            Some(error) => Err(error),
            None => dispatched,
        }
    }

    /// Waits until nothing under way overlaps `stretch`, and another can be given.
    pub(super) fn wait_clear(&self, stretch: &Range<u64>) -> Result<()> {
        let overlaps = |other: &Range<u64>| other.start < stretch.end && stretch.start < other.end;
        let mut state = self.lock();
        while state.failed.is_none() && (state.next.is_some() || state.under_way.iter().any(overlaps)) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match &state.failed {
            Some(error) => Err(error.duplicate()),
            None => Ok(()),
        }
    }

    /// Gives a stretch, after [`Crew::wait_clear`].
    pub(super) fn give(&self, stretch: Range<u64>) {
        self.lock().next = Some(stretch);
        self.changed.notify_all();
    }

    fn work(&self, work: impl Fn(&Range<u64>, &mut Vec<u8>) -> Result<()>) {
        let mut buffer = Vec::new();
        while let Some(stretch) = self.take() {
            let died = Err(Error::internal("a thread died while it worked"));
            let mut working = Working { crew: self, stretch, result: died };
            working.result = work(&working.stretch, &mut buffer);
        }
    }

    /// The next stretch; `None` when there is no more to do.
    fn take(&self) -> Option<Range<u64>> {
        let mut state = self.lock();
        loop {
            if state.failed.is_some() {
                return None;
            }
            if let Some(next) = state.next.take() {
                state.under_way.push(next.clone());
                self.changed.notify_all();
                return Some(next);
            }
            if state.is_over {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    // Each change is whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let mut state = self.crew.lock();
        state.under_way.retain(|stretch| *stretch != self.stretch);
        if let Err(error) = std::mem::replace(&mut self.result, Ok(())) {
            state.failed.get_or_insert(error);
        }
        self.crew.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn all_that_is_given_is_done_and_nothing_overlaps() {
        let (sum, inside) = (AtomicU64::new(0), AtomicU64::new(0));
        let work = |stretch: &Range<u64>, _: &mut Vec<u8>| {
            assert_eq!(inside.fetch_or(1 << stretch.start, Ordering::SeqCst) >> stretch.start & 1, 0);
            std::thread::yield_now();
            inside.fetch_and(!(1 << stretch.start), Ordering::SeqCst);
            sum.fetch_add(stretch.end - stretch.start, Ordering::SeqCst);
            Ok(())
        };
        let dispatch = |crew: &Crew| {
            for n in 0..500u64 {
                let stretch = n % 7..n % 7 + 1;
                crew.wait_clear(&stretch)?;
                crew.give(stretch);
            }
            Ok(())
        };
        Crew::run(4, work, dispatch).unwrap();
        assert_eq!(sum.load(Ordering::SeqCst), 500);
    }

    #[test]
    fn the_first_error_ends_it_whoever_has_it() {
        let dispatch = |crew: &Crew| {
            for n in 0.. {
                crew.wait_clear(&(n..n + 1))?;
                crew.give(n..n + 1);
            }
            Ok(())
        };
        let work = |stretch: &Range<u64>, _: &mut Vec<u8>| match stretch.start {
            9 => Err(Error::invalid("the tenth")),
            _ => Ok(()),
        };
        assert_eq!(Crew::run(3, work, dispatch).unwrap_err().to_string(), "the tenth");
        let refuse = |_: &Crew| Err(Error::invalid("none"));
        assert_eq!(Crew::run(3, |_, _| Ok(()), refuse).unwrap_err().to_string(), "none");
    }
}
