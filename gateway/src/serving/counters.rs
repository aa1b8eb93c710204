//! What a server did so far, counted.
//!
//! Not here: what is counted for exports and for clients ([`crate::Activity`]). What holds: counting is one relaxed addition.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a server did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub open_connections: u64,
    /// Requests taken; of iSCSI, PDUs.
    pub requests: u64,
    /// Bytes received after handshakes or logins.
    pub bytes_received: u64,
    /// Bytes sent after them.
    pub bytes_sent: u64,
}

/// What counts it.
#[derive(Debug, Default)]
pub struct Counters {
    connections: AtomicU64,
    open_connections: AtomicU64,
    requests: AtomicU64,
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
}

impl Counters {
    /// A connection begins.
    pub fn came(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.open_connections.fetch_add(1, Ordering::Relaxed);
    }

    /// One that began ended.
    pub fn left(&self) {
        self.open_connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// A request was taken.
    pub fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes came.
    pub fn received(&self, bytes: usize) {
        self.bytes_received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes went.
    pub fn sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The counts now.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Statistics {
            connections: read(&self.connections),
            open_connections: read(&self.open_connections),
            requests: read(&self.requests),
            bytes_received: read(&self.bytes_received),
            bytes_sent: read(&self.bytes_sent),
        }
    }
}
