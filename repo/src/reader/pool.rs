//! A few threads that fetch: for long reads, and ahead of sequential ones.
//!
//! Not here: what is fetched. What holds: the queue is bounded; a job never waits for another job, so the pool cannot lock up; a
//! job that finds no place runs in the caller's thread (reads) or is dropped (advice). Dropping the pool ends its threads
//! without waiting for them: a thread may hold the last reference to what owns the pool.

use super::fetch::Scratch;
use crate::error::{Error, Kind, Result};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

type Job = Box<dyn FnOnce(&mut Scratch) + Send>;

/// Jobs that may wait, per thread.
const QUEUE: usize = 16;

pub(super) struct Pool {
    jobs: Sender<Job>,
    /// Scratch buffers of callers' threads, at most one each, reused.
    spare: Mutex<Vec<Scratch>>,
    keep: usize,
}

/// A job's answer, on its way.
pub(super) struct Answer<T>(Receiver<Vec<Result<T>>>);

impl<T> Answer<T> {
    /// The `due` results of the job, in order, whatever became of it: another number would put the results of the next job in
    /// the place of its own.
    pub(super) fn wait(self, due: usize) -> Vec<Result<T>> {
        complete(self.0.recv().unwrap_or_default(), due)
    }
}

/// Exactly `due` results: errors for those that a job that died, or found no memory, did not give.
fn complete<T>(mut results: Vec<Result<T>>, due: usize) -> Vec<Result<T>> {
    results.resize_with(due, || Err(Error::internal("a thread died while fetching chunks")));
    results
}

impl Pool {
    pub(super) fn start(threads: usize) -> Result<Self> {
        let threads = threads.max(1);
        let (jobs, queue) = bounded::<Job>(threads * QUEUE);
        for i in 0..threads {
            let (queue, mut scratch) = (queue.clone(), Scratch::new()?);
            std::thread::Builder::new()
                .name(format!("fetch-{i}"))
                .spawn(move || {
                    for job in queue {
                        // A job that panics fails by itself: a thread less would leave what waits in the queue waiting for
                        // ever. The buffers hold nothing that the next job does not overwrite.
                        let _ = catch_unwind(AssertUnwindSafe(|| job(&mut scratch)));
                    }
                })
                .map_err(|e| Error::new(Kind::Unavailable, "starting a thread").with_source(e))?;
        }
        Ok(Pool { jobs, spare: Mutex::new(Vec::new()), keep: threads * 2 })
    }

    /// Runs `job` in the pool, or here when the queue is full.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Scratch) -> Vec<Result<T>> + Send + 'static,
    ) -> Answer<T> {
        let (to, answer) = bounded(1);
        let job: Job = Box::new(move |scratch| drop(to.send(job(scratch))));
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.jobs.try_send(job) {
            self.here(0, |scratch| {
                job(scratch);
                Vec::<Result<()>>::new()
            });
        }
        Answer(answer)
    }

    /// Runs `job` in the pool if there is room; `false` when it was dropped.
    pub(super) fn tell(&self, job: impl FnOnce(&mut Scratch) + Send + 'static) -> bool {
        self.jobs.try_send(Box::new(job)).is_ok()
    }

    /// Runs `job` in the caller's thread with a scratch buffer of the pool; its `due` results, in order.
    pub(super) fn here<T>(&self, due: usize, job: impl FnOnce(&mut Scratch) -> Vec<Result<T>>) -> Vec<Result<T>> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut scratch = match spare.map_or_else(Scratch::new, Ok) {
            Ok(scratch) => scratch,
            Err(e) => return (0..due).map(|_| Err(e.duplicate())).collect(),
        };
        let answer = complete(job(&mut scratch), due);
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < self.keep {
            spare.push(scratch);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_dies_leaves_the_others_their_places() {
        let pool = Pool::start(1).unwrap();
        let dead = pool.ask(|_| -> Vec<Result<u32>> { panic!("on purpose") });
        let next = pool.ask(|_| vec![Ok(3)]);
        let mut results = dead.wait(2);
        results.extend(next.wait(1));
        results.extend(pool.here(2, |_| vec![Ok(4)]));
        let shown: Vec<_> = results.into_iter().map(|r| r.map_err(|e| e.kind())).collect();
        assert_eq!(shown, [Err(Kind::Internal), Err(Kind::Internal), Ok(3), Ok(4), Err(Kind::Internal)]);
    }
}
