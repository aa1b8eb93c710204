//! An export as a disk.

use coffer_gateway::Export;
use std::sync::Arc;

/// What becomes a LUN, and how.
#[derive(Debug)]
pub struct LunOptions {
    /// What is offered.
    pub export: Arc<Export>,
    /// Logical blocks in bytes, a power of two from 512 to 4096, instead of the device's own.
    pub block_size: Option<u32>,
    /// What the disk is, whoever shows it: names and serial numbers come from this, so it is equal for equal disks and different for
    /// different ones, on every path and after every restart.
    pub identity: String,
}

/// A logical unit.
#[derive(Debug)]
pub(crate) struct Lun {
    pub(crate) export: Arc<Export>,
    pub(crate) block_size: u32,
}
