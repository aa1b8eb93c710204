//! The threads that wait for storage, shared by all connections of a server.
//!
//! Not here: what a request does. What holds: connections take turns, one request each, so that a client with a hundred
//! requests delays another client's by one request per thread and not by a hundred; the queue is bounded by what
//! connections may have in flight; nothing is executed under the lock. One idle thread may stay awake a moment for the next
//! request ([`super::vigil`]): every look at the queue is under the lock, so that none is forgotten when it goes to sleep.

use super::vigil::Patience;
use crate::{Error, Result};
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// A request to be executed.
pub trait Job: Send + 'static {
    /// Does what was asked; may wait for storage.
    fn run(&mut self);

    /// Hands the outcome over, without waiting; `has_panicked` when [`Job::run`] did not come to its end.
    fn finish(self, has_panicked: bool);
}

/// The storage threads. Dropping it waits for them; what is still queued is executed first.
pub struct Pool<J: Job> {
    shared: Arc<Shared<J>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<J> {
    queue: Mutex<Queue<J>>,
    wake: Condvar,
    /// How many jobs were ever queued: a look without the lock for the thread that stays awake.
    arrivals: AtomicU64,
    /// How many of these are done.
    departures: AtomicU64,
}

struct Queue<J> {
    /// Requests by connection; a connection is in `turns` exactly when it has some here.
    lanes: HashMap<u64, VecDeque<J>>,
    turns: VecDeque<u64>,
    /// Whether an idle thread stays awake.
    is_watched: bool,
    /// Threads that sleep, those included that are being woken.
    asleep: usize,
    is_closed: bool,
}

impl<J> Default for Queue<J> {
    fn default() -> Self {
        Queue { lanes: HashMap::new(), turns: VecDeque::new(), is_watched: false, asleep: 0, is_closed: false }
    }
}

impl<J: Job> Pool<J> {
    /// Starts `threads` threads, named for `server`.
    pub fn start(server: &str, threads: usize) -> Result<Self> {
        let shared = Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            arrivals: AtomicU64::new(0),
            departures: AtomicU64::new(0),
        };
        let mut pool = Pool { shared: Arc::new(shared), threads: Vec::new() };
        for i in 0..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("{server}-storage-{i}"));
            let thread = thread.spawn(move || shared.work()).map_err(|e| Error::io("starting a storage thread", e))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// How many jobs are queued or under way, about now.
    pub fn in_hand(&self) -> u64 {
        let departures = self.shared.departures.load(Ordering::Relaxed);
        self.shared.arrivals.load(Ordering::Relaxed).saturating_sub(departures)
    }

    /// Queues a job of the connection `lane`.
    pub fn submit(&self, lane: u64, job: J) {
        let mut queue = self.shared.lock();
        queue.push(lane, job);
        self.shared.arrivals.fetch_add(1, Ordering::Relaxed);
        // Who stays awake takes one; for a second one somebody has to be woken.
        let is_seen = std::mem::take(&mut queue.is_watched);
        // Who is busy looks at the queue before it sleeps; waking nobody costs a system call.
        let must_wake = !is_seen && queue.asleep > 0;
        drop(queue);
        if must_wake {
            self.shared.wake.notify_one();
        }
    }
}

impl<J: Job> Shared<J> {
    fn lock(&self) -> MutexGuard<'_, Queue<J>> {
        // Nothing that can panic runs under the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut patience = Patience::for_client();
        let mut queue = self.lock();
        loop {
            if let Some(mut job) = queue.pop() {
                drop(queue);
                patience.end();
                // A device that panics costs its own request, not a thread of everybody's.
                let has_panicked = catch_unwind(AssertUnwindSafe(|| job.run())).is_err();
                self.departures.fetch_add(1, Ordering::Relaxed);
                job.finish(has_panicked);
                queue = self.lock();
            } else if queue.is_closed {
                return;
            } else if !queue.is_watched && patience.is_on(Instant::now) {
                queue.is_watched = true;
                let arrivals = self.arrivals.load(Ordering::Relaxed);
                drop(queue);
                while self.arrivals.load(Ordering::Relaxed) == arrivals && patience.is_on(Instant::now) {
                    std::thread::yield_now();
                }
                queue = self.lock();
                queue.is_watched = false;
            } else {
                queue.asleep += 1;
                queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.asleep -= 1;
            }
        }
    }
}

impl<J> Queue<J> {
    fn push(&mut self, lane: u64, job: J) {
        let jobs = self.lanes.entry(lane).or_default();
        if jobs.is_empty() {
            self.turns.push_back(lane);
        }
        jobs.push_back(job);
    }

    fn pop(&mut self) -> Option<J> {
        let lane = self.turns.pop_front()?;
        let jobs = self.lanes.get_mut(&lane)?;
        let job = jobs.pop_front();
        if jobs.is_empty() {
            self.lanes.remove(&lane);
        } else {
            self.turns.push_back(lane);
        }
        job
    }
}

impl<J: Job> Drop for Pool<J> {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so; there is nothing left to wait for.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Says its number; odd ones panic.
    struct Numbered(u64, mpsc::Sender<(u64, bool)>);

    impl Job for Numbered {
        fn run(&mut self) {
            assert!(self.0.is_multiple_of(2), "a bug in {}, on purpose", self.0);
        }

        fn finish(self, has_panicked: bool) {
            self.1.send((self.0, has_panicked)).unwrap();
        }
    }

    #[test]
    fn a_job_that_panics_costs_no_thread() {
        let pool = Pool::start("test", 1).unwrap();
        let (done, results) = mpsc::channel();
        (0..4).for_each(|n| pool.submit(n, Numbered(n, done.clone())));
        drop(pool);
        assert_eq!(results.try_iter().collect::<Vec<_>>(), [(0, false), (1, true), (2, false), (3, true)]);
    }

    #[test]
    fn connections_take_turns() {
        let mut queue = Queue::default();
        for number in [10, 11, 12] {
            queue.push(1, number);
        }
        queue.push(2, 20);
        queue.push(3, 30);
        let order = std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>();
        assert_eq!(order, [10, 20, 30, 11, 12]);
        assert!(queue.lanes.is_empty() && queue.turns.is_empty());
    }
}
