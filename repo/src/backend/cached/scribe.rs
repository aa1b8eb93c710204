//! The thread that writes to the cache what was fetched.
//!
//! Not here: how much may be written ([`super::room`]) and how ([`super::shelf`]). What holds: no reader waits for this thread; at
//! most [`UNWRITTEN`] bytes wait for it, and what comes beyond them is not kept; it says once what it suffers from. A disk that is
//! full makes the cache smaller, any other error makes it keep nothing more.

use super::UNWRITTEN;
use super::inflow::{Fetch, Inflow};
use super::room::Room;
use super::shelf::Shelf;
use crate::error::{Error, Kind, Result};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;

/// Fetches that may wait, however small they are.
const QUEUE: usize = 1024;

/// Who hears what the cache suffers from.
pub(super) type Tell = Box<dyn Fn(&Error) + Send + Sync>;

/// The thread, and the way to it. Dropping it writes what waits and ends it.
pub(super) struct Scribe {
    queue: Option<Sender<Line>>,
    inflow: Arc<Inflow>,
    /// Bytes that wait.
    unwritten: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// What waits.
enum Line {
    /// A fetch, and its bytes.
    Write(Arc<Fetch>, u64),
    /// Somebody who wants to know that everything before this is done.
    Done(Sender<()>),
}

struct Desk {
    shelf: Arc<Shelf>,
    inflow: Arc<Inflow>,
    unwritten: Arc<AtomicU64>,
    room: Room,
    tell: Option<Tell>,
    /// Whether the cache cannot be written to.
    is_closed: bool,
}

impl Scribe {
    pub(super) fn start(shelf: Arc<Shelf>, inflow: Arc<Inflow>, room: Room, tell: Tell) -> Result<Scribe> {
        let (queue, waiting) = bounded(QUEUE);
        let unwritten = Arc::new(AtomicU64::new(0));
        let desk = Desk {
            shelf,
            inflow: Arc::clone(&inflow),
            unwritten: Arc::clone(&unwritten),
            room,
            tell: Some(tell),
            is_closed: false,
        };
        let thread = std::thread::Builder::new()
            .name("disk-cache".to_owned())
            .spawn(move || desk.work(&waiting))
            .map_err(|e| Error::new(Kind::Unavailable, "starting a thread").with_source(e))?;
        Ok(Scribe { queue: Some(queue), inflow, unwritten, thread: Some(thread) })
    }

    /// Has a fetch that is over written, or lets it go when too much waits already.
    pub(super) fn take(&self, fetch: &Arc<Fetch>) {
        let len = fetch.fetched().map_or(0, |fetched| fetched.bytes.len() as u64);
        let fits = |waiting: u64| waiting.checked_add(len).filter(|sum| *sum <= UNWRITTEN);
        if len > 0 && self.unwritten.fetch_update(Relaxed, Relaxed, fits).is_ok() {
            let line = Line::Write(Arc::clone(fetch), len);
            if self.queue.as_ref().is_some_and(|queue| queue.try_send(line).is_ok()) {
                return;
            }
            self.unwritten.fetch_sub(len, Relaxed);
        }
        self.inflow.leave(fetch);
    }

    /// Waits until everything that was taken is written, or given up.
    pub(super) fn settle(&self) {
        let (to, done) = bounded(1);
        if self.queue.as_ref().is_some_and(|queue| queue.send(Line::Done(to)).is_ok()) {
            // An error says that the thread is gone, which then writes nothing.
            let _ = done.recv();
        }
    }
}

impl Drop for Scribe {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A thread that died cannot be helped, and only the cache is smaller for it.
            let _ = thread.join();
        }
    }
}

impl Desk {
    fn work(mut self, waiting: &Receiver<Line>) {
        for line in waiting {
            match line {
                Line::Write(fetch, len) => {
                    self.write(&fetch);
                    self.unwritten.fetch_sub(len, Relaxed);
                    self.inflow.leave(&fetch);
                }
                // Who asked may have gone.
                Line::Done(to) => drop(to.send(())),
            }
        }
    }

    /// Writes a fetch, if it is still to be used and there is room for it.
    fn write(&mut self, fetch: &Fetch) {
        let Some(fetched) = fetch.fetched().filter(|_| !self.is_closed) else { return };
        let mut write = || -> Result<()> {
            if self.room.take(fetched.bytes.len() as u64)? {
                self.shelf.write(&self.shelf.place(fetch.name()), fetch.pieces().start, &fetched)?;
            }
            Ok(())
        };
        match write() {
            Ok(()) => {}
            Err(e) if e.kind() == Kind::Full => {
                self.room.shrink();
                self.complain(&e.within("the disk cache stays smaller than it may be"));
            }
            // Somebody removed the folder in the middle of it. The next fetch makes it again.
            Err(e) if e.kind() == Kind::NotFound => {}
            Err(e) => {
                self.is_closed = true;
                self.complain(&e.within("the disk cache keeps nothing more"));
            }
        }
    }

    /// Says something, unless something was said before.
    fn complain(&mut self, e: &Error) {
        if let Some(tell) = self.tell.take() {
            tell(e);
        }
    }
}
