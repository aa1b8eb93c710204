//! How many bytes of uploads are held in memory at once.
//!
//! Not here: who holds them. What holds: never more than the budget is out, except that one who asks for more than all of it
//! gets all of it alone; who waits sleeps; what was taken comes back when it is dropped.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Bytes that may be held, shared by threads.
#[derive(Debug)]
pub(super) struct Budget {
    all: u64,
    free: Mutex<u64>,
    returned: Condvar,
}

/// A share of the budget; it goes back when this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    pub(super) fn new(bytes: u64) -> Arc<Budget> {
        Arc::new(Budget { all: bytes, free: Mutex::new(bytes), returned: Condvar::new() })
    }

    /// How many pieces of this size fit into all of it.
    pub(super) fn all_in(&self, size: usize) -> usize {
        usize::try_from(self.all / (size as u64).max(1)).unwrap_or(usize::MAX)
    }

    /// Waits for so many bytes, or for all there are.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Share {
        let bytes = bytes.min(self.all);
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.returned.wait_while(free, |free| *free < bytes).unwrap_or_else(PoisonError::into_inner);
        *free -= bytes;
        Share { budget: Arc::clone(self), bytes }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        *self.budget.free.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        self.budget.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn no_more_than_the_budget_is_out() {
        const ALL: u64 = 100;
        let (budget, out) = (Budget::new(ALL), AtomicU64::new(0));
        assert_eq!((budget.all_in(33), budget.all_in(101)), (3, 0));
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let (budget, out) = (&budget, &out);
                scope.spawn(move || {
                    for round in 0..200 {
                        let wanted = 1 + (thread * 37 + round * 11) % 150;
                        let share = budget.take(wanted);
                        let held = share.bytes;
                        assert_eq!(held, wanted.min(ALL));
                        assert!(out.fetch_add(held, Ordering::SeqCst) + held <= ALL);
                        out.fetch_sub(held, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(*budget.free.lock().unwrap(), ALL);
    }
}
