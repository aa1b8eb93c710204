//! The threads that wait for storage, shared by all connections of a server.
//!
//! ```text
//!   submit -> lanes: one for what may wait, one for swift jobs, of each connection -> turns -> a thread: run, put .. ring
//!                    a lane of swift jobs is one thread's at a time <- the deputy takes it away from a thread that is stuck
//! ```
//! Waking a thread and going to sleep cost more than a small write into memory. So **swift** jobs, which most likely wait for nothing,
//! are left to one thread for each connection, which does one after the other and tells the connection of several at once. Each job that may wait
//! has a thread woken for it.
//!
//! Not here: what a request does. What holds: connections take turns, one request each, so that a client with a hundred
//! requests delays another client's by one request per thread and not by a hundred; the queue is bounded by what
//! connections may have in flight; nothing is executed under the lock. Being swift is a guess: while swift jobs are under way an idle
//! thread, the **deputy**, looks every [`STALL`] for one that is not; then the rest of its lane goes to another thread, and its
//! connection is told of what is done. With no thread left to be deputy every outcome is told at once. One idle thread
//! may stay awake a moment for the next request ([`super::vigil`]): every look at the queue is under the lock, so that none is
//! forgotten when it goes to sleep.

use super::returns::Returns;
use super::vigil::Patience;
use crate::{Error, Result};
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of a request that may be swift; larger ones are worth a thread.
pub const SWIFT: u64 = 32 << 10;
/// A swift job that takes longer is none.
const STALL: Duration = Duration::from_millis(1);
/// So many looks after the last swift job the deputy goes to sleep.
const LINGER: u32 = 50;
/// Outcomes of swift jobs that a connection is told of together.
const TOGETHER: u32 = 8;

/// A request to be executed.
pub trait Job: Send + 'static {
    /// What comes of it.
    type Done: Send;

    /// Whether it most likely waits for nothing and is done in microseconds.
    fn is_swift(&self) -> bool;

    /// Where its outcome is put.
    fn returns(&self) -> &Arc<Returns<Self::Done>>;

    /// Does what was asked; may wait for storage.
    fn run(&mut self);

    /// The outcome; `has_panicked` when [`Job::run`] did not come to its end.
    fn finish(self, has_panicked: bool) -> Self::Done;
}

/// The storage threads. Dropping it waits for them; what is still queued is executed first.
pub struct Pool<J: Job> {
    shared: Arc<Shared<J>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<J: Job> {
    queue: Mutex<Queue<J>>,
    wake: Condvar,
    /// How many jobs were ever queued: a look without the lock for the thread that stays awake.
    arrivals: AtomicU64,
    /// How many of these are done.
    departures: AtomicU64,
}

/// A connection, and whether it is its swift jobs.
type LaneId = (u64, bool);

struct Queue<J: Job> {
    /// Lanes that have jobs, or are a thread's.
    lanes: HashMap<LaneId, VecDeque<J>>,
    /// Lanes that have jobs and are no thread's, each once.
    turns: VecDeque<LaneId>,
    /// What each thread does.
    posts: Box<[Post<J::Done>]>,
    has_deputy: bool,
    /// Looks that a deputy still takes.
    looks: u32,
    /// Whether an idle thread stays awake.
    is_watched: bool,
    /// Threads that sleep, those included that are being woken.
    asleep: usize,
    is_closed: bool,
}

/// A thread at a swift job.
struct Post<D> {
    /// The lane that it has, and since when it is at the job.
    lane: Option<(LaneId, Instant)>,
    /// Where outcomes lie that nobody was told of.
    untold: Option<Arc<Returns<D>>>,
}

impl<D> Default for Post<D> {
    fn default() -> Self {
        Post { lane: None, untold: None }
    }
}

/// The outcomes of one connection that it was not told of yet.
struct Untold<D> {
    returns: Arc<Returns<D>>,
    count: u32,
}

impl<J: Job> Pool<J> {
    /// Starts `threads` threads, named for `server`.
    pub fn start(server: &str, threads: usize) -> Result<Self> {
        let threads = threads.max(1);
        let shared = Shared {
            queue: Mutex::new(Queue::new(threads)),
            wake: Condvar::new(),
            arrivals: AtomicU64::new(0),
            departures: AtomicU64::new(0),
        };
        let mut pool = Pool { shared: Arc::new(shared), threads: Vec::new() };
        for i in 0..threads {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("{server}-storage-{i}"));
            let thread = thread.spawn(move || shared.work(i)).map_err(|e| Error::io("starting a storage thread", e))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// How many jobs are queued or under way, about now.
    pub fn in_hand(&self) -> u64 {
        let departures = self.shared.departures.load(Ordering::Relaxed);
        self.shared.arrivals.load(Ordering::Relaxed).saturating_sub(departures)
    }

    /// Queues jobs of `connection`.
    pub fn submit(&self, connection: u64, jobs: impl IntoIterator<Item = J>) {
        let mut queue = self.shared.lock();
        let (mut count, mut wanted) = (0, 0);
        for job in jobs {
            count += 1;
            wanted += usize::from(queue.push(connection, job));
        }
        if count == 0 {
            return;
        }
        self.shared.arrivals.fetch_add(count, Ordering::Relaxed);
        // Who stays awake takes one; for the others somebody has to be woken.
        if wanted > 0 && std::mem::take(&mut queue.is_watched) {
            wanted -= 1;
        }
        wanted += usize::from(queue.lacks_deputy());
        // Who is busy looks at the queue before it sleeps; waking nobody costs a system call.
        let woken = wanted.min(queue.asleep);
        drop(queue);
        (0..woken).for_each(|_| self.shared.wake.notify_one());
    }
}

impl<J: Job> Shared<J> {
    fn lock(&self) -> MutexGuard<'_, Queue<J>> {
        // Nothing that can panic runs under the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, me: usize) {
        let mut patience = Patience::for_client();
        let mut untold = None;
        loop {
            while let Some(job) = self.next(me, &mut untold) {
                patience.end();
                self.execute(job, &mut untold);
            }
            if !self.idle(&mut patience) {
                return;
            }
        }
    }

    /// The next job for the thread `me`. Connections are told of outcomes first, but for one whose next swift job this is.
    fn next(&self, me: usize, untold: &mut Option<Untold<J::Done>>) -> Option<J> {
        let mut queue = self.lock();
        queue.release(me);
        let job = queue.take(me, Instant::now);
        let goes_on = |untold: &mut Untold<J::Done>| {
            let is_more = job.as_ref().is_some_and(|j| j.is_swift() && Arc::ptr_eq(j.returns(), &untold.returns));
            is_more && queue.has_deputy && untold.count < TOGETHER
        };
        let told = untold.take_if(|untold| !goes_on(untold));
        queue.owe(me, untold.as_ref().map(|untold| Arc::clone(&untold.returns)));
        let lacks_deputy = queue.lacks_deputy() && queue.asleep > 0;
        drop(queue);
        if let Some(told) = told {
            told.returns.ring();
        }
        if lacks_deputy {
            self.wake.notify_one();
        }
        job
    }

    fn execute(&self, mut job: J, untold: &mut Option<Untold<J::Done>>) {
        // A device that panics costs its own request, not a thread of everybody's.
        let has_panicked = catch_unwind(AssertUnwindSafe(|| job.run())).is_err();
        self.departures.fetch_add(1, Ordering::Relaxed);
        let returns = Arc::clone(job.returns());
        returns.put(job.finish(has_panicked));
        // Whatever was untold before is of the same connection.
        untold.get_or_insert(Untold { returns, count: 0 }).count += 1;
    }

    /// Waits a while for something to do; `false` when nothing will come.
    fn idle(&self, patience: &mut Patience) -> bool {
        let mut queue = self.lock();
        if !queue.turns.is_empty() {
            return true;
        }
        let lacks_deputy = queue.lacks_deputy();
        if queue.is_closed && !lacks_deputy {
            return false;
        }
        if !lacks_deputy && !queue.is_watched && patience.is_on(Instant::now) {
            queue.is_watched = true;
            let arrivals = self.arrivals.load(Ordering::Relaxed);
            drop(queue);
            while self.arrivals.load(Ordering::Relaxed) == arrivals && patience.is_on(Instant::now) {
                std::thread::yield_now();
            }
            self.lock().is_watched = false;
        } else if lacks_deputy || (!queue.has_deputy && queue.looks > 0) {
            self.deputize(queue);
        } else {
            queue.asleep += 1;
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.asleep -= 1;
        }
        true
    }

    /// Sleeps for [`STALL`], and then sees to those who are stuck.
    fn deputize(&self, mut queue: MutexGuard<'_, Queue<J>>) {
        (queue.has_deputy, queue.asleep) = (true, queue.asleep + 1);
        let (mut queue, timeout) = self.wake.wait_timeout(queue, STALL).unwrap_or_else(PoisonError::into_inner);
        (queue.has_deputy, queue.asleep) = (false, queue.asleep - 1);
        if timeout.timed_out() {
            queue.looks = queue.looks.saturating_sub(1);
            let untold = queue.relieve(Instant::now());
            drop(queue);
            untold.iter().for_each(|returns| returns.ring());
        }
    }
}

impl<J: Job> Queue<J> {
    fn new(threads: usize) -> Self {
        Queue {
            lanes: HashMap::new(),
            turns: VecDeque::new(),
            posts: (0..threads).map(|_| Post::default()).collect(),
            has_deputy: false,
            looks: 0,
            is_watched: false,
            asleep: 0,
            is_closed: false,
        }
    }

    /// Queues a job; whether a thread is needed for it.
    fn push(&mut self, connection: u64, job: J) -> bool {
        let is_swift = job.is_swift();
        if is_swift {
            self.looks = LINGER;
        }
        let id = (connection, is_swift);
        // Swift ones are seen to by the thread that has the lane, or is on its way to it.
        let is_new = !self.lanes.contains_key(&id);
        self.lanes.entry(id).or_default().push_back(job);
        if is_new {
            self.turns.push_back(id);
        }
        is_new || !is_swift
    }

    /// A job for the thread `me`, which has no lane. With a swift one it has its lane until it releases it.
    fn take(&mut self, me: usize, now: impl FnOnce() -> Instant) -> Option<J> {
        let id = self.turns.pop_front()?;
        let jobs = self.lanes.get_mut(&id)?;
        let job = jobs.pop_front();
        let (_, is_swift) = id;
        if is_swift {
            if let Some(post) = self.posts.get_mut(me) {
                post.lane = Some((id, now()));
            }
        } else {
            self.queue_or_forget(id);
        }
        job
    }

    /// The thread `me` is done with its job.
    fn release(&mut self, me: usize) {
        let lane = self.posts.get_mut(me).and_then(|post| post.lane.take());
        if let Some((id, _)) = lane {
            self.queue_or_forget(id);
        }
    }

    /// A lane that is in no turn and no thread's has its turn later, if it has jobs.
    fn queue_or_forget(&mut self, id: LaneId) {
        if self.lanes.get(&id).is_some_and(|jobs| !jobs.is_empty()) {
            self.turns.push_back(id);
        } else {
            self.lanes.remove(&id);
        }
    }

    /// Notes where outcomes of the thread `me` lie that nobody was told of.
    fn owe(&mut self, me: usize, untold: Option<Arc<Returns<J::Done>>>) {
        if let Some(post) = self.posts.get_mut(me) {
            post.untold = untold;
        }
    }

    /// Takes the lanes away from threads that are stuck, and says where outcomes lie that nobody was told of.
    fn relieve(&mut self, now: Instant) -> Vec<Arc<Returns<J::Done>>> {
        let is_stuck =
            |post: &Post<J::Done>| post.lane.is_some_and(|(_, since)| now.saturating_duration_since(since) >= STALL);
        let stuck: Vec<usize> = (0..self.posts.len()).filter(|i| self.posts.get(*i).is_some_and(is_stuck)).collect();
        stuck.iter().for_each(|i| self.release(*i));
        stuck.iter().filter_map(|i| self.posts.get_mut(*i)?.untold.take()).collect()
    }

    /// Whether threads are at swift jobs.
    fn is_guarded(&self) -> bool {
        self.posts.iter().any(|post| post.lane.is_some())
    }

    /// Whether nobody looks after those.
    fn lacks_deputy(&self) -> bool {
        !self.has_deputy && self.is_guarded()
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
    use std::task::{Context, Wake, Waker};
    use std::thread::Thread;

    /// Says its number, and whether it panicked; odd ones do. Swift ones that are told to wait are not swift after all.
    struct Numbered {
        number: u64,
        is_swift: bool,
        waits: Option<mpsc::Receiver<()>>,
        returns: Arc<Returns<(u64, bool)>>,
    }

    impl Job for Numbered {
        type Done = (u64, bool);

        fn is_swift(&self) -> bool {
            self.is_swift
        }

        fn returns(&self) -> &Arc<Returns<(u64, bool)>> {
            &self.returns
        }

        fn run(&mut self) {
            assert!(self.number.is_multiple_of(2), "a bug in {}, on purpose", self.number);
            self.waits.iter().for_each(|waits| waits.recv().unwrap());
        }

        fn finish(self, has_panicked: bool) -> (u64, bool) {
            (self.number, has_panicked)
        }
    }

    type Place = Arc<Returns<(u64, bool)>>;

    fn job(number: u64, is_swift: bool, returns: &Place) -> Numbered {
        Numbered { number, is_swift, waits: None, returns: Arc::clone(returns) }
    }

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    /// Sleeps as an event loop does until `count` outcomes came.
    fn outcomes(returns: &Place, count: usize) -> Vec<(u64, bool)> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let (mut all, mut some, end) = (Vec::new(), Vec::new(), Instant::now() + Duration::from_secs(120));
        while all.len() < count {
            assert!(Instant::now() < end, "nobody said more than {all:?}");
            if returns.fetch(&mut Context::from_waker(&waker), &mut some).is_ready() {
                all.append(&mut some);
            } else {
                std::thread::park_timeout(Duration::from_secs(60));
            }
        }
        all
    }

    #[test]
    fn a_job_that_panics_costs_no_thread() {
        let (pool, returns) = (Pool::start("test", 1).unwrap(), Place::default());
        (0..4).for_each(|n| pool.submit(n, [job(n, n > 1, &returns)]));
        drop(pool);
        let mut found = outcomes(&returns, 4);
        found.sort_unstable();
        assert_eq!(found, [(0, false), (1, true), (2, false), (3, true)]);
    }

    #[test]
    fn connections_take_turns() {
        let (mut queue, returns) = (Queue::new(1), Place::default());
        for (connection, number) in [(1, 10), (1, 12), (1, 14), (2, 20), (3, 30)] {
            assert!(queue.push(connection, job(number, false, &returns)));
        }
        let order = std::iter::from_fn(|| queue.take(0, Instant::now)).map(|job| job.number).collect::<Vec<_>>();
        assert_eq!(order, [10, 20, 30, 12, 14]);
        assert!(queue.lanes.is_empty() && queue.turns.is_empty());
    }

    #[test]
    fn swift_jobs_of_a_connection_are_one_threads_until_it_is_stuck() {
        let (mut queue, returns, start) = (Queue::new(4), Place::default(), Instant::now());
        let is_needed: Vec<bool> = [10, 12, 14].map(|n| queue.push(1, job(n, true, &returns))).to_vec();
        assert_eq!(is_needed, [true, false, false]);
        assert!(queue.push(2, job(20, true, &returns)) && queue.push(1, job(16, false, &returns)));
        let mut take = |me: usize| {
            queue.release(me);
            queue.take(me, || start).map(|job| job.number)
        };
        assert_eq!([take(0), take(1), take(2), take(3)], [Some(10), Some(20), Some(16), None]);
        assert_eq!([take(0), take(1)], [Some(12), None]);
        queue.owe(0, Some(Arc::clone(&returns)));
        assert!(queue.lacks_deputy() && queue.relieve(start + STALL / 2).is_empty() && queue.turns.is_empty());
        assert_eq!(queue.relieve(start + STALL).len(), 1);
        assert_eq!(queue.take(1, || start).map(|job| job.number), Some(14));
        // The one that was stuck comes back and has no lane; the other keeps its own.
        queue.release(0);
        assert!(queue.take(0, || start).is_none() && queue.is_guarded());
        queue.release(1);
        assert!(queue.lanes.is_empty() && queue.turns.is_empty() && !queue.is_guarded());
    }

    #[test]
    fn a_swift_job_that_hangs_holds_nothing_up() {
        let (pool, returns) = (Pool::start("test", 3).unwrap(), Place::default());
        let mut holds = Vec::new();
        for round in 0..20 {
            let (hold, waits) = mpsc::channel();
            let at = round * 100;
            let mut jobs: Vec<Numbered> = (0..10).map(|n| job(at + 2 * n, true, &returns)).collect();
            // Two threads hang in the end, and what they did before is told all the same.
            if round % 10 == 9 {
                jobs[5].waits = Some(waits);
                holds.push(hold);
            }
            let due = jobs.len() - usize::from(round % 10 == 9);
            pool.submit(7, jobs);
            assert_eq!(outcomes(&returns, due).len(), due);
        }
        assert_eq!(holds.len(), 2);
        holds.iter().for_each(|hold| hold.send(()).unwrap());
        assert_eq!(outcomes(&returns, 2).len(), 2);
    }
}
