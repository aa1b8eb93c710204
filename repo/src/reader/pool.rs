//! A few threads that fetch: for long reads, and ahead of sequential ones.
//!
//! Not here: what is fetched. What holds: the queue is bounded; a job never waits for another job, so the pool cannot lock up; a
//! job that finds no place runs in the caller's thread (reads) or is dropped (advice). Dropping the pool ends its threads
//! without waiting for them: a thread may hold the last reference to what owns the pool.

use super::fetch::Scratch;
use crate::error::{Error, Kind, Result};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
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
pub(super) struct Answer<T>(Receiver<Vec<T>>);

impl<T> Answer<T> {
    /// Nothing when the job died.
    pub(super) fn wait(self) -> Vec<T> {
        self.0.recv().unwrap_or_default()
    }
}

impl Pool {
    pub(super) fn start(threads: usize) -> Result<Self> {
        let threads = threads.max(1);
        let (jobs, queue) = bounded::<Job>(threads * QUEUE);
        for i in 0..threads {
            let (queue, mut scratch) = (queue.clone(), Scratch::new()?);
            std::thread::Builder::new()
                .name(format!("fetch-{i}"))
                .spawn(move || queue.iter().for_each(|job| job(&mut scratch)))
                .map_err(|e| Error::new(Kind::Unavailable, "starting a thread").with_source(e))?;
        }
        Ok(Pool { jobs, spare: Mutex::new(Vec::new()), keep: threads * 2 })
    }

    /// Runs `job` in the pool, or here when the queue is full.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Scratch) -> Vec<T> + Send + 'static,
    ) -> Answer<T> {
        let (to, answer) = bounded(1);
        let job: Job = Box::new(move |scratch| drop(to.send(job(scratch))));
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.jobs.try_send(job) {
            self.here(|scratch| {
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

    /// Runs `job` in the caller's thread with a scratch buffer of the pool.
    pub(super) fn here<T>(&self, job: impl FnOnce(&mut Scratch) -> Vec<Result<T>>) -> Vec<Result<T>> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut scratch = match spare.map_or_else(Scratch::new, Ok) {
            Ok(scratch) => scratch,
            Err(e) => return vec![Err(e)],
        };
        let answer = job(&mut scratch);
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < self.keep {
            spare.push(scratch);
        }
        answer
    }
}
