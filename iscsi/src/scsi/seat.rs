//! What one nexus has at one LUN: an I_T_L nexus.

use super::lun::Lun;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) lun: Arc<Lun>,
    /// How often tasks were ended here from elsewhere.
    pub(crate) aborts: AtomicU64,
}
