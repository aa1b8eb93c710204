//! The threads that fetch: for long reads, and ahead of sequential ones. A few while the processor is what takes time, and more while
//! it is the store.
//!
//! ```text
//!   threads = cores * (waiting + working) / working        measured over the last jobs, `most` at most
//! ```
//! A store in the next room answers before a thread has expanded what it got last: then more threads than cores only get in each
//! other's way. One that is 50 ms away answers a thread 20 times a second, whatever the line could carry.
//!
//! Not here: what is fetched. What holds: the queue is bounded; a job never waits for another job, so the pool cannot lock up; a
//! job that finds no place runs in the caller's thread (reads) or is dropped (advice). Dropping the pool ends its threads
//! without waiting for them: a thread may hold the last reference to what owns the pool.

use super::fetch::Scratch;
use crate::error::{Error, Kind, Result};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

type Job = Box<dyn FnOnce(&mut Scratch) + Send>;

/// Jobs that may wait, per core.
const QUEUE: usize = 16;
/// A job that waited less than this waited for a store that is near, or for a disk: more threads would only take memory.
const NEAR: Duration = Duration::from_millis(5);
/// How long a time the threads' number goes by, about: what was before counts half.
const LATELY: Duration = Duration::from_millis(500);

pub(super) struct Pool {
    jobs: Sender<Job>,
    queue: Receiver<Job>,
    crew: Arc<Crew>,
    /// Scratch buffers of callers' threads, at most one each, reused.
    spare: Mutex<Vec<Scratch>>,
    keep: usize,
}

/// How many threads a [`Pool`] has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// While they work.
    pub(super) least: usize,
    /// While they wait for the store.
    pub(super) most: usize,
}

/// The threads, as far as they know of each other.
struct Crew {
    size: Size,
    running: AtomicUsize,
    /// How many there should be.
    wanted: AtomicUsize,
    lately: Mutex<Spent>,
}

/// Where the time of jobs went.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    waiting: Duration,
    working: Duration,
}

impl Spent {
    /// How many threads keep `cores` cores busy when their time goes like this.
    fn threads(&self, cores: usize) -> usize {
        let (waiting, working) = (self.waiting.as_micros(), self.working.as_micros().max(1));
        usize::try_from((waiting + working).saturating_mul(cores as u128) / working).unwrap_or(usize::MAX)
    }
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
    pub(super) fn start(size: Size) -> Result<Self> {
        let size = Size { least: size.least.max(1), most: size.most.max(size.least).max(1) };
        let (jobs, queue) = bounded::<Job>(size.least * QUEUE + size.most);
        let (running, wanted) = (AtomicUsize::new(0), AtomicUsize::new(size.least));
        let crew = Arc::new(Crew { size, running, wanted, lately: Mutex::default() });
        for _ in 0..size.least {
            crew.running.fetch_add(1, Relaxed);
            crew.hire(&queue)?;
        }
        Ok(Pool { jobs, queue, crew, spare: Mutex::new(Vec::new()), keep: size.least * 2 })
    }

    /// Whether reads mostly wait for the store, so that more of them at a time get more done.
    pub(super) fn is_far(&self) -> bool {
        self.crew.wanted.load(Relaxed) >= self.crew.size.least * 2
    }

    /// What `wait`, which is no job and waits for the store, gives: the first wait of all tells already how far that is.
    pub(super) fn waiting<T>(&self, wait: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let got = wait();
        let waited = begun.elapsed();
        if waited >= NEAR {
            self.crew.learn(waited, waited);
        }
        got
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
        self.crew.grow(&self.queue);
        Answer(answer)
    }

    /// Runs `job` in the pool if there is room; `false` when it was dropped.
    pub(super) fn tell(&self, job: impl FnOnce(&mut Scratch) + Send + 'static) -> bool {
        let is_taken = self.jobs.try_send(Box::new(job)).is_ok();
        self.crew.grow(&self.queue);
        is_taken
    }

    /// Runs `job` in the caller's thread with a scratch buffer of the pool; its `due` results, in order.
    pub(super) fn here<T>(&self, due: usize, job: impl FnOnce(&mut Scratch) -> Vec<Result<T>>) -> Vec<Result<T>> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut scratch = match spare.map_or_else(Scratch::new, Ok) {
            Ok(scratch) => scratch,
            Err(e) => return (0..due).map(|_| Err(e.duplicate())).collect(),
        };
        let begun = Instant::now();
        let answer = complete(job(&mut scratch), due);
        self.crew.learn(begun.elapsed(), scratch.take_waited());
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < self.keep {
            spare.push(scratch);
        }
        answer
    }
}

impl Crew {
    /// Starts a thread that is counted already.
    fn hire(self: &Arc<Self>, queue: &Receiver<Job>) -> Result<()> {
        let (crew, waiting) = (Arc::clone(self), queue.clone());
        let start = |mut scratch: Scratch| {
            std::thread::Builder::new()
                .name("fetch".to_owned())
                .spawn(move || crew.work(&waiting, &mut scratch))
                .map_err(|e| Error::new(Kind::Unavailable, "starting a thread").with_source(e))
        };
        let hired = Scratch::new().and_then(start).map(drop);
        if hired.is_err() {
            self.running.fetch_sub(1, Relaxed);
        }
        hired
    }

    fn work(self: &Arc<Self>, queue: &Receiver<Job>, scratch: &mut Scratch) {
        for job in queue {
            let begun = Instant::now();
            // A job that panics fails by itself: a thread less would leave what waits in the queue waiting for ever. The buffers
            // hold nothing that the next job does not overwrite.
            let _ = catch_unwind(AssertUnwindSafe(|| job(scratch)));
            self.learn(begun.elapsed(), scratch.take_waited());
            self.grow(queue);
            // Twice as many as wanted may stay, so that they do not come and go.
            let spare = |running: usize| (running > self.wanted.load(Relaxed).saturating_mul(2)).then(|| running - 1);
            if self.running.fetch_update(Relaxed, Relaxed, spare).is_ok() {
                return;
            }
        }
    }

    /// Takes note of where the time of a job went.
    fn learn(&self, took: Duration, waited: Duration) {
        let waited = if waited < NEAR { Duration::ZERO } else { waited };
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        lately.waiting += waited;
        lately.working += took.saturating_sub(waited);
        let Size { least, most } = self.size;
        self.wanted.store(lately.threads(least).clamp(least, most), Relaxed);
        if lately.waiting + lately.working > LATELY {
            *lately = Spent { waiting: lately.waiting / 2, working: lately.working / 2 };
        }
    }

    /// Starts threads for what waits in the queue, as far as more are wanted.
    fn grow(self: &Arc<Self>, queue: &Receiver<Job>) {
        for _ in 0..queue.len() {
            let one_more = |running: usize| (running < self.wanted.load(Relaxed)).then_some(running + 1);
            // Without another thread it goes slower, no more.
            if self.running.fetch_update(Relaxed, Relaxed, one_more).is_err() || self.hire(queue).is_err() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_dies_leaves_the_others_their_places() {
        let pool = Pool::start(Size { least: 1, most: 1 }).unwrap();
        let dead = pool.ask(|_| -> Vec<Result<u32>> { panic!("on purpose") });
        let next = pool.ask(|_| vec![Ok(3)]);
        let mut results = dead.wait(2);
        results.extend(next.wait(1));
        results.extend(pool.here(2, |_| vec![Ok(4)]));
        let shown: Vec<_> = results.into_iter().map(|r| r.map_err(|e| e.kind())).collect();
        assert_eq!(shown, [Err(Kind::Internal), Err(Kind::Internal), Ok(3), Ok(4), Err(Kind::Internal)]);
    }

    #[test]
    fn threads_are_as_many_as_their_waiting_makes_up_for() {
        let spent = |waiting, working| Spent {
            waiting: Duration::from_millis(waiting),
            working: Duration::from_millis(working),
        };
        assert_eq!(Spent::default().threads(2), 2);
        assert_eq!(spent(1, 3).threads(2), 2);
        assert_eq!(spent(3, 3).threads(2), 4);
        assert_eq!(spent(50, 2).threads(2), 52);
        assert!(spent(50, 0).threads(2) > 1000);
    }

    #[test]
    fn threads_come_while_jobs_wait_and_are_bounded() {
        use std::sync::Barrier;
        let pool = Pool::start(Size { least: 1, most: 4 }).unwrap();
        let wait = |scratch: &mut Scratch| scratch.waiting(|| std::thread::sleep(Duration::from_millis(20)));
        pool.ask(move |scratch| {
            wait(scratch);
            vec![Ok(())]
        })
        .wait(1);
        // The first thread tells that it waited just after it answered.
        while !pool.is_far() {
            std::thread::yield_now();
        }
        let together = Arc::new(Barrier::new(4));
        let answers: Vec<_> = (0..4)
            .map(|_| {
                let together = Arc::clone(&together);
                pool.ask(move |scratch| {
                    scratch.waiting(|| together.wait());
                    vec![Ok(())]
                })
            })
            .collect();
        for answer in answers {
            assert!(answer.wait(1).iter().all(Result::is_ok), "four jobs ran at the same time");
        }
        assert!(pool.crew.running.load(Relaxed) <= 4);
    }
}
