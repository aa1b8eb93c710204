//! What is known of a connection once its handshake is over, and how it is shown.
//!
//! Not here: who is connected ([`Connections`](crate::serving::Connections)).

use crate::export::{ActivityTotals, Export, Peer};
use crate::serving::Visit;
use std::sync::{Arc, Weak};

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

/// What a handshake came to.
pub(super) struct Entry {
    pub(super) export: Weak<Export>,
    pub(super) name: String,
    /// With the certificate, if there is one.
    pub(super) peer: Peer,
    pub(super) is_encrypted: bool,
}

impl Entry {
    /// Whether the connection took this very export, and not another one of its name.
    pub(super) fn is_of(&self, export: &Arc<Export>) -> bool {
        std::ptr::eq(self.export.as_ptr(), Arc::as_ptr(export))
    }
}

impl ConnectionReport {
    pub(super) fn of(visit: &Visit<Entry>) -> Self {
        let entered = visit.entered();
        ConnectionReport {
            id: visit.id(),
            peer: entered.map_or(visit.peer(), |e| &e.peer).clone(),
            export: entered.map(|e| e.name.clone()),
            is_encrypted: entered.is_some_and(|e| e.is_encrypted),
            activity: visit.activity().totals(),
        }
    }
}
