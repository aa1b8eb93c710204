//! Who is connected: one record for each connection, for those who want to see, and orders to them.
//!
//! Not here: limits on how many. What holds: the lock is taken when a client comes, goes or is looked at, once a second, and never
//! for a request; what is ordered of all is ordered of those, too, that come later.

use crate::export::{Activity, Peer};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::watch;

/// A client that was silent for so many looks in a row lets go of its buffers.
const REST_AFTER: u32 = 2;
/// One that keeps memory that others wait for, and does its part of nothing for so many looks in a row, has to go.
const DISMISS_AFTER: u32 = 30;

/// What a connection is asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Go on.
    #[default]
    Stay,
    /// Let go of buffers until there is something to do; the number tells one such order from the one before.
    Rest(u64),
    /// Finish what is in flight and end.
    Leave,
}

/// The record of one connection; `E` is what its handshake comes to.
pub struct Visit<E> {
    id: u64,
    peer: Peer,
    entered: OnceLock<E>,
    activity: Activity,
    order: watch::Sender<Order>,
    /// Bytes that went either way: tells only whether any did.
    moved: AtomicU64,
    /// Whether it has memory of the common budget, and it is the client who has to do something for it to end.
    is_owing: AtomicBool,
    /// `moved` at the last look, and how many looks in a row it has been that.
    seen: AtomicU64,
    silence: AtomicU32,
}

/// All open connections.
pub struct Connections<E>(Mutex<Table<E>>);

struct Table<E> {
    visits: BTreeMap<u64, Arc<Visit<E>>>,
    is_closing: bool,
}

impl<E> Default for Connections<E> {
    fn default() -> Self {
        Connections(Mutex::new(Table { visits: BTreeMap::new(), is_closing: false }))
    }
}

impl<E> Visit<E> {
    /// Counts up from 0.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whose it is, as the socket tells.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// What it did.
    #[must_use]
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// What its handshake came to; `None` before that.
    #[must_use]
    pub fn entered(&self) -> Option<&E> {
        self.entered.get()
    }

    /// Orders, from now on and the one that stands.
    #[must_use]
    pub fn orders(&self) -> watch::Receiver<Order> {
        let mut orders = self.order.subscribe();
        orders.mark_changed();
        orders
    }

    /// Notes that bytes went either way.
    pub fn moved(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Notes whether it has memory of the common budget that only the client's doing something will free.
    pub fn set_owing(&self, is_owing: bool) {
        self.is_owing.store(is_owing, Ordering::Relaxed);
    }

    /// Notes that the handshake is over.
    pub fn enter(&self, entry: E) {
        // A connection has one handshake.
        let _ = self.entered.set(entry);
    }

    /// The look of once a second; `is_short` when somebody waits for memory of the common budget.
    fn look(&self, is_short: bool) {
        let moved = self.moved.load(Ordering::Relaxed);
        if self.seen.swap(moved, Ordering::Relaxed) != moved {
            self.silence.store(0, Ordering::Relaxed);
            return;
        }
        let silence = self.silence.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if silence == REST_AFTER {
            self.command(Order::Rest(moved));
        }
        if silence >= DISMISS_AFTER && is_short && self.is_owing.load(Ordering::Relaxed) {
            self.command(Order::Leave);
        }
    }

    /// Gives an order; nothing takes back that it has to leave.
    pub fn command(&self, order: Order) {
        self.order.send_if_modified(|standing| {
            let is_new = *standing != order && *standing != Order::Leave;
            if is_new {
                *standing = order;
            }
            is_new
        });
    }
}

impl<E> Connections<E> {
    /// Takes a client in; `id` was never used before.
    #[must_use]
    pub fn open(&self, id: u64, peer: Peer) -> Arc<Visit<E>> {
        let mut table = self.lock();
        let order = if table.is_closing { Order::Leave } else { Order::Stay };
        let visit = Arc::new(Visit {
            id,
            peer,
            entered: OnceLock::new(),
            activity: Activity::default(),
            order: watch::Sender::new(order),
            moved: AtomicU64::new(0),
            is_owing: AtomicBool::new(false),
            seen: AtomicU64::new(0),
            silence: AtomicU32::new(0),
        });
        table.visits.insert(id, Arc::clone(&visit));
        visit
    }

    /// It is gone.
    pub fn close(&self, visit: &Visit<E>) {
        self.lock().visits.remove(&visit.id);
    }

    /// Looks at all of them; to be called once a second.
    pub fn look(&self, is_short: bool) {
        self.lock().visits.values().for_each(|visit| visit.look(is_short));
    }

    /// Has everybody leave, and whoever comes from now on.
    pub fn dismiss_all(&self) {
        let mut table = self.lock();
        table.is_closing = true;
        table.visits.values().for_each(|visit| visit.command(Order::Leave));
    }

    /// Has those leave of whom `is_meant` holds; how many they are.
    pub fn dismiss(&self, is_meant: impl Fn(&Visit<E>) -> bool) -> usize {
        let table = self.lock();
        table.visits.values().filter(|visit| is_meant(visit)).map(|visit| visit.command(Order::Leave)).count()
    }

    /// Those that are open now.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Visit<E>>> {
        self.lock().visits.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Table<E>> {
        // Nothing that can panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_rests_and_who_owes_leaves_when_others_wait() {
        let connections = Connections::<()>::default();
        let visit = connections.open(0, Peer::default());
        let order = || *visit.order.borrow();
        visit.moved(5);
        for _ in 0..2 {
            connections.look(true);
            assert_eq!(order(), Order::Stay);
        }
        connections.look(true);
        assert_eq!(order(), Order::Rest(5));
        visit.moved(1);
        for _ in 0..100 {
            connections.look(true);
        }
        assert_eq!(order(), Order::Rest(6), "it owes nothing");
        visit.set_owing(true);
        connections.look(false);
        assert_eq!(order(), Order::Rest(6), "nobody waits");
        connections.look(true);
        assert_eq!(order(), Order::Leave);
        visit.command(Order::Rest(9));
        assert_eq!(order(), Order::Leave);
        connections.dismiss_all();
        assert_eq!(*connections.open(1, Peer::default()).order.borrow(), Order::Leave);
    }
}
