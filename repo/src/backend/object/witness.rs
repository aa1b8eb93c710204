//! What one call of the store saw of the requests it made: OpenDAL shows neither status nor headers.
//!
//! Not here: making requests ([`super::transport`]), what a failure means ([`super::failure`]). What holds: a call has a witness
//! of its own, which its transport shares; the failure it holds is that of the last request, and none when that succeeded.

use super::failure::Failure;
use super::retry::Attempts;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a call is about, as far as the transport treats requests differently for it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Purpose {
    /// Reading an object: a request may be made twice when the answer is late.
    pub(super) is_read: bool,
    /// The object must not exist yet, and OpenDAL does not know how to say so to this store: PUT says `If-None-Match: *`.
    pub(super) must_create: bool,
}

#[derive(Debug)]
pub(super) struct Witness {
    pub(super) purpose: Purpose,
    seen: Mutex<Seen>,
}

/// What was seen so far.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) attempts: Attempts,
    /// How the last request failed.
    pub(super) failure: Option<Failure>,
    /// The answer to a request that changes something was lost: it may have been carried out.
    pub(super) is_unsure: bool,
    /// The object's whole length, as the last answer to a read told it.
    pub(super) length: Option<u64>,
}

impl Witness {
    pub(super) fn new(purpose: Purpose, patience: Duration) -> Witness {
        let seen = Seen { attempts: Attempts::new(patience), failure: None, is_unsure: false, length: None };
        Witness { purpose, seen: Mutex::new(seen) }
    }

    /// What was seen; held for moments only.
    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
