//! The threads that wait for storage, shared by all connections of a server.
//!
//! Not here: what a request does. What holds: connections take turns, one request each, so that a client with a hundred
//! requests delays another client's by one request per thread and not by a hundred; the queue is bounded by what
//! connections may have in flight; nothing is executed under the lock. One idle thread may stay awake a moment for the next
//! request ([`super::vigil`]): every look at the queue is under the lock, so that none is forgotten when it goes to sleep.

use super::super::proto::errno;
use super::super::proto::transmission::Request;
use super::buffer::Buffer;
use super::reply;
use super::session::Session;
use super::vigil::Vigil;
use crate::{Error, Result};
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// A request to be executed.
pub(super) struct Job {
    pub(super) session: Arc<Session>,
    pub(super) request: Request,
    /// The payload of a write; becomes the reply.
    pub(super) buffer: Buffer,
    /// Where the reply goes.
    pub(super) done: mpsc::Sender<Done>,
    /// When the request was whole.
    pub(super) since: Instant,
}

/// An executed request.
pub(super) struct Done {
    pub(super) request: Request,
    pub(super) reply: Buffer,
    /// Whether it went well.
    pub(super) is_well: bool,
    /// From when the request was whole.
    pub(super) latency: Duration,
}

/// The storage threads. Dropping it waits for them; what is still queued is executed first.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// How many jobs were ever queued: a look without the lock for the thread that stays awake.
    arrivals: AtomicU64,
}

#[derive(Default)]
struct Queue {
    /// Requests by connection; a connection is in `turns` exactly when it has some here.
    lanes: HashMap<u64, VecDeque<Job>>,
    turns: VecDeque<u64>,
    /// Whether an idle thread stays awake.
    is_watched: bool,
    is_closed: bool,
}

impl Pool {
    /// Starts `threads` threads.
    pub(super) fn start(threads: usize) -> Result<Pool> {
        let mut pool = Pool { shared: Arc::default(), threads: Vec::new() };
        for i in 0..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("nbd-storage-{i}"));
            let thread = thread.spawn(move || shared.work()).map_err(|e| Error::io("starting a storage thread", e))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Queues a job of the connection `lane`.
    pub(super) fn submit(&self, lane: u64, job: Job) {
        let mut queue = self.shared.lock();
        queue.push(lane, job);
        self.shared.arrivals.fetch_add(1, Ordering::Relaxed);
        // Who stays awake takes one; for a second one somebody has to be woken.
        let is_seen = std::mem::take(&mut queue.is_watched);
        drop(queue);
        if !is_seen {
            self.shared.wake.notify_one();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing that can panic runs under the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut vigil = Vigil::default();
        let mut queue = self.lock();
        loop {
            if let Some(mut job) = queue.pop() {
                drop(queue);
                vigil.end();
                let Job { session, request, buffer, .. } = &mut job;
                // A device that panics costs its own request, not a thread of everybody's.
                let run = AssertUnwindSafe(|| session.execute(request, buffer));
                let is_well = catch_unwind(run).unwrap_or_else(|_| {
                    buffer.truncate(0);
                    reply::error(session.framing, request, errno::EIO, "the server failed", buffer);
                    false
                });
                let latency = job.since.elapsed();
                // There is room for every request in flight; a connection that is gone needs no reply.
                let _ = job.done.try_send(Done { request: job.request, reply: job.buffer, is_well, latency });
                queue = self.lock();
            } else if queue.is_closed {
                return;
            } else if !queue.is_watched && vigil.is_on(Instant::now) {
                queue.is_watched = true;
                let arrivals = self.arrivals.load(Ordering::Relaxed);
                drop(queue);
                while self.arrivals.load(Ordering::Relaxed) == arrivals && vigil.is_on(Instant::now) {
                    std::thread::yield_now();
                }
                queue = self.lock();
                queue.is_watched = false;
            } else {
                queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Queue {
    fn push(&mut self, lane: u64, job: Job) {
        let jobs = self.lanes.entry(lane).or_default();
        if jobs.is_empty() {
            self.turns.push_back(lane);
        }
        jobs.push_back(job);
    }

    fn pop(&mut self) -> Option<Job> {
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

impl Drop for Pool {
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
    use crate::device::{BlockDevice, Extent};
    use crate::export::{Export, Taken};
    use crate::nbd::proto::Framing;
    use crate::nbd::proto::transmission::{Reply, command};
    use std::ops::Range;

    /// A device with a bug.
    struct Buggy;

    impl BlockDevice for Buggy {
        fn size(&self) -> u64 {
            512
        }

        fn block_size(&self) -> u32 {
            512
        }

        fn is_read_only(&self) -> bool {
            true
        }

        fn read_at(&self, offset: u64, _out: &mut [u8]) -> Result<()> {
            panic!("a bug at {offset}, on purpose")
        }

        fn try_read_at(&self, _offset: u64, _out: &mut [u8]) -> Result<bool> {
            Ok(false)
        }

        fn extents(&self, _range: Range<u64>, _max: usize) -> Result<Vec<Extent>> {
            Ok(Vec::new())
        }
    }

    fn job(cookie: u64, done: &mpsc::Sender<Done>) -> Job {
        let device = Arc::new(Buggy);
        let export = Taken::new(Arc::new(Export::new("x", device)));
        let session = Session { export, framing: Framing::Simple, contexts: Vec::new(), report: None };
        Job {
            session: Arc::new(session),
            request: Request { flags: 0, command: command::READ, cookie, offset: 0, length: 1 },
            buffer: Buffer::default(),
            done: done.clone(),
            since: Instant::now(),
        }
    }

    #[test]
    fn a_device_that_panics_fails_its_request_and_no_thread() {
        let pool = Pool::start(1).unwrap();
        let (done, mut replies) = mpsc::channel(3);
        for cookie in 0..3 {
            pool.submit(cookie, job(cookie, &done));
        }
        drop(pool);
        for cookie in 0..3 {
            let Done { request, reply, is_well, .. } = replies.try_recv().unwrap();
            assert_eq!((request.cookie, is_well), (cookie, false));
            assert_eq!(reply.filled(), Reply::encode_simple(errno::EIO, cookie));
        }
    }

    #[test]
    fn connections_take_turns() {
        let (done, _replies) = mpsc::channel(1);
        let job = |cookie| job(cookie, &done);
        let mut queue = Queue::default();
        for cookie in [10, 11, 12] {
            queue.push(1, job(cookie));
        }
        queue.push(2, job(20));
        queue.push(3, job(30));
        let order = std::iter::from_fn(|| queue.pop()).map(|j| j.request.cookie).collect::<Vec<_>>();
        assert_eq!(order, [10, 20, 30, 11, 12]);
        assert!(queue.lanes.is_empty() && queue.turns.is_empty());
    }
}
