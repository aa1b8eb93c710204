//! Where a disk of a snapshot differs from a disk of another one, for exports.
//!
//! Not here: comparing ([`coffer_repo::diff`]). What holds: the other snapshot is pinned for as long as it is compared with, if
//! the store can be written.

use crate::Result;
use crate::export::ChangeSource;
use coffer_repo::catalog::Pin;
use coffer_repo::diff::DiskChanges;
use std::ops::Range;
use std::sync::Arc;

/// What changed since another snapshot.
pub struct SnapshotChanges {
    changes: DiskChanges,
    _pin: Option<Arc<Pin>>,
}

impl SnapshotChanges {
    /// `changes` since a snapshot that `pin` holds.
    #[must_use]
    pub fn new(changes: DiskChanges, pin: Option<Arc<Pin>>) -> Self {
        SnapshotChanges { changes, _pin: pin }
    }
}

impl ChangeSource for SnapshotChanges {
    fn changes(&self, range: Range<u64>, max: usize) -> Result<Vec<(Range<u64>, bool)>> {
        self.changes.within(range, max)
    }
}
