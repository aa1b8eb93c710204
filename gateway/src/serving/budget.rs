//! Memory that all connections of a server share for requests in flight, beyond a little that each has of its own.
//!
//! Not here: what a request costs, and what a connection may hold at most (each server). What holds: grants are made in
//! the order in which they were asked for, so that no size starves; a grant is given back by dropping it; one of more than
//! everything is one of everything, so that a single large request is possible with any budget.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes in which is counted.
const UNIT: usize = 1 << 10;

/// The memory.
pub struct Budget {
    units: Arc<Semaphore>,
    all: u32,
    waiting: AtomicUsize,
}

/// Some of it.
pub struct Grant {
    permit: OwnedSemaphorePermit,
    bytes: usize,
}

/// Waits for some of it; dropping it gives up.
pub type Wait = Pin<Box<dyn Future<Output = Option<Grant>> + Send>>;

/// Counts whoever waits, for as long.
struct Waiting(Arc<Budget>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Grant {
    /// How much it is.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds another one.
    pub fn merge(&mut self, other: Grant) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.permit.merge(other.permit);
    }
}

impl Budget {
    /// One of `bytes`; at least one unit.
    #[must_use]
    pub fn new(bytes: usize) -> Arc<Self> {
        let all = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).max(1);
        Arc::new(Budget { units: Arc::new(Semaphore::new(all as usize)), all, waiting: AtomicUsize::new(0) })
    }

    /// `bytes` of it, if nobody has to wait.
    #[must_use]
    pub fn try_take(&self, bytes: usize) -> Option<Grant> {
        let permit = Arc::clone(&self.units).try_acquire_many_owned(self.units(bytes)).ok()?;
        Some(Grant { permit, bytes })
    }

    /// Waits for `bytes` of it.
    #[must_use]
    pub fn take(self: &Arc<Self>, bytes: usize) -> Wait {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(Arc::clone(self));
        let taken = Arc::clone(&self.units).acquire_many_owned(self.units(bytes));
        Box::pin(async move {
            let _waiting = waiting;
            // Nobody closes the semaphore.
            taken.await.ok().map(|permit| Grant { permit, bytes })
        })
    }

    /// Whether somebody waits.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn units(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn what_is_given_back_goes_to_whoever_waits_longest() {
        let budget = Budget::new(8 * UNIT);
        let mut first = budget.try_take(6 * UNIT).unwrap();
        first.merge(budget.try_take(UNIT).unwrap());
        assert_eq!(first.bytes(), 7 * UNIT);
        assert!(budget.try_take(2 * UNIT).is_none() && !budget.is_wanted());
        let mut context = Context::from_waker(Waker::noop());
        let (mut large, mut small) = (budget.take(100 * UNIT), budget.take(1));
        assert!(large.as_mut().poll(&mut context).is_pending() && small.as_mut().poll(&mut context).is_pending());
        assert!(budget.is_wanted() && budget.try_take(1).is_none(), "nobody overtakes");
        drop(first);
        let Poll::Ready(Some(grant)) = large.as_mut().poll(&mut context) else { panic!("all of it is there") };
        assert!(small.as_mut().poll(&mut context).is_pending());
        drop((grant, large));
        assert!(small.as_mut().poll(&mut context).is_ready());
        drop(small);
        assert!(!budget.is_wanted() && budget.try_take(8 * UNIT).is_some());
    }
}
