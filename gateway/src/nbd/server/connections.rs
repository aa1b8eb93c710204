//! Who is connected: one record for each connection, for those who want to see.
//!
//! Not here: limits on how many. What holds: the lock is taken when a client comes, goes or is looked at, and never for a request.

use crate::export::{Activity, ActivityTotals, Peer};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A connection, as far as it got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionReport {
    /// Counts up from 0.
    pub id: u64,
    /// Whose it is.
    pub peer: Peer,
    /// The export that it took; `None` during the handshake.
    pub export: Option<String>,
    /// Whether TLS is on.
    pub is_encrypted: bool,
    /// What it did.
    pub activity: ActivityTotals,
}

/// The record of one connection.
pub(super) struct Visit {
    id: u64,
    peer: Peer,
    entered: OnceLock<Entry>,
    activity: Activity,
}

/// What the handshake came to.
pub(super) struct Entry {
    pub(super) export: String,
    /// With the certificate, if there is one.
    pub(super) peer: Peer,
    pub(super) is_encrypted: bool,
}

/// All open connections.
#[derive(Default)]
pub(super) struct Connections(Mutex<BTreeMap<u64, Arc<Visit>>>);

impl Visit {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    pub(super) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Notes that the handshake is over.
    pub(super) fn enter(&self, entry: Entry) {
        // A connection has one handshake.
        let _ = self.entered.set(entry);
    }

    fn report(&self) -> ConnectionReport {
        let entered = self.entered.get();
        ConnectionReport {
            id: self.id,
            peer: entered.map_or(&self.peer, |e| &e.peer).clone(),
            export: entered.map(|e| e.export.clone()),
            is_encrypted: entered.is_some_and(|e| e.is_encrypted),
            activity: self.activity.totals(),
        }
    }
}

impl Connections {
    /// Takes a client in; `id` was never used before.
    pub(super) fn open(&self, id: u64, peer: Peer) -> Arc<Visit> {
        let visit = Arc::new(Visit { id, peer, entered: OnceLock::new(), activity: Activity::default() });
        self.lock().insert(id, Arc::clone(&visit));
        visit
    }

    /// It is gone.
    pub(super) fn close(&self, visit: &Visit) {
        self.lock().remove(&visit.id);
    }

    /// Those that are open now.
    pub(super) fn reports(&self) -> Vec<ConnectionReport> {
        self.lock().values().map(|visit| visit.report()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Visit>>> {
        // Nothing that can panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
