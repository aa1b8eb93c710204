//! Where the outcomes of a connection's jobs lie until it fetches them.
//!
//! ```text
//!   storage thread: put, put, put .. ring  ->  the connection's task wakes up -> fetch
//! ```
//! Not here: which outcomes, and when it is time to ring ([`super::pool`]). What holds: what was put is found by the next
//! [`Returns::fetch`], rung or not; ringing wakes a task only when something lies there; nothing waits. It holds what the connection
//! has in the pool at most.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// See the file's header.
pub struct Returns<D>(Mutex<State<D>>);

struct State<D> {
    outcomes: Vec<D>,
    waker: Option<Waker>,
}

impl<D> Default for Returns<D> {
    fn default() -> Self {
        Returns(Mutex::new(State { outcomes: Vec::new(), waker: None }))
    }
}

impl<D> Returns<D> {
    /// Lays an outcome down, and tells nobody.
    pub(super) fn put(&self, outcome: D) {
        self.lock().outcomes.push(outcome);
    }

    /// Wakes who waits for outcomes, if there are any.
    pub(super) fn ring(&self) {
        let mut state = self.lock();
        let waker = if state.outcomes.is_empty() { None } else { state.waker.take() };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Exchanges `place`, which is empty, for all that lies there; `Pending` when nothing does, and the task will be woken.
    pub fn fetch(&self, cx: &mut Context<'_>, place: &mut Vec<D>) -> Poll<()> {
        let mut state = self.lock();
        if !state.outcomes.is_empty() {
            std::mem::swap(&mut state.outcomes, place);
            return Poll::Ready(());
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Lets go of room that is kept for the next outcomes.
    pub fn rest(&self) {
        let mut state = self.lock();
        if state.outcomes.is_empty() {
            state.outcomes = Vec::new();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<D>> {
        // Nothing that can panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn it_rings_once_and_only_for_what_lies_there() {
        let (bell, returns, mut place) = (Arc::new(Bell::default()), Returns::default(), Vec::new());
        let waker = Waker::from(Arc::clone(&bell));
        let mut cx = Context::from_waker(&waker);
        let rung = || bell.0.load(Ordering::Relaxed);
        assert!(returns.fetch(&mut cx, &mut place).is_pending());
        returns.ring();
        assert_eq!(rung(), 0, "nothing was there");
        returns.put(1);
        returns.put(2);
        assert_eq!(rung(), 0);
        returns.ring();
        returns.put(3);
        returns.ring();
        assert_eq!(rung(), 1, "it has not looked since");
        assert!(returns.fetch(&mut cx, &mut place).is_ready());
        assert_eq!(place, [1, 2, 3]);
        place.clear();
        assert!(returns.fetch(&mut cx, &mut place).is_pending());
        returns.put(4);
        assert!(returns.fetch(&mut cx, &mut place).is_ready(), "whether it was told or not");
        returns.ring();
        assert_eq!((rung(), place), (1, vec![4]));
    }
}
