//! A crew of threads that works off numbered tasks in order until they are done or one fails.
//!
//! Not here: what a task is, and cancelling, which a task checks for itself. What holds: tasks start in ascending order;
//! after the first failure no task is started; the crew has ended when the call returns.

use crate::Result;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Does tasks `0..tasks` on `workers` threads, each with a buffer of its own. The first failure is the result.
pub(crate) fn work(workers: usize, tasks: u64, task: impl Fn(u64, &mut Vec<u8>) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let first = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..workers.max(1) {
            scope.spawn(|| {
                let mut buffer = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= tasks || failed.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Err(error) = task(number, &mut buffer) {
                        failed.store(true, Ordering::Relaxed);
                        // A poisoned lock still holds what it held; the scope itself reports a panic.
                        first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        return;
                    }
                }
            });
        }
    });
    first.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// The first `len` bytes of a worker's buffer, which grows once and is kept: they are old bytes, to be overwritten.
pub(crate) fn room(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    buffer.get_mut(..len).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn every_task_runs_once_and_the_first_failure_ends_the_crew() {
        let seen = Mutex::new(vec![0u32; 1000]);
        work(4, 1000, |n, _| {
            seen.lock().unwrap()[usize::try_from(n).unwrap()] += 1;
            Ok(())
        })
        .unwrap();
        assert!(seen.lock().unwrap().iter().all(|&times| times == 1));

        let ran = AtomicU64::new(0);
        let error = work(1, 1000, |n, _| {
            ran.fetch_add(1, Ordering::Relaxed);
            if n == 10 { Err(Error::invalid("ten")) } else { Ok(()) }
        })
        .unwrap_err();
        assert_eq!((error.context(), ran.load(Ordering::Relaxed)), ("ten", 11));
    }
}
