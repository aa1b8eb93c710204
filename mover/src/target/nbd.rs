//! An NBD export as a target.
//!
//! Not here: the protocol. What holds: an export that is read-only is refused before anything is written; zeroes are
//! written as the server does it best.

use super::{DiskTarget, Order, Space};
use crate::source::{NbdDisk, RandomDisk};
use crate::{Error, Result};
use coffer_gateway::device::{BlockDevice, Durability, Zeroing};
use coffer_gateway::nbd::{ClientOptions, NbdClient, NbdUri};
use std::ops::Range;
use std::sync::Arc;

/// A connected export.
pub(super) struct NbdTarget {
    client: Arc<NbdClient>,
    space: Space,
}

impl NbdTarget {
    /// Connects to the export at `uri`.
    pub(super) fn connect(uri: &NbdUri, space: Space) -> Result<Self> {
        let client = NbdClient::connect(uri, &ClientOptions::default())?;
        if client.is_read_only() {
            return Err(Error::invalid("the export is read-only"));
        }
        Ok(NbdTarget::new(client, space))
    }

    /// Writes to what `client` is connected to.
    pub(super) fn new(client: NbdClient, space: Space) -> Self {
        NbdTarget { client: Arc::new(client), space }
    }

    /// In bytes.
    pub(super) fn size(&self) -> u64 {
        self.client.size()
    }
}

impl DiskTarget for NbdTarget {
    fn order(&self) -> Order {
        Order::Any
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.client.write_at(offset, bytes, Durability::Cached)
    }

    fn zero(&self, range: Range<u64>) -> Result<()> {
        let may_unmap = self.space == Space::Sparse;
        self.client.zero(range, Zeroing { may_unmap, fast_only: false, durability: Durability::Cached })
    }

    fn sync(&self) -> Result<()> {
        self.client.flush()
    }

    fn read_back(&self) -> Result<Box<dyn RandomDisk + '_>> {
        Ok(Box::new(NbdDisk::new(Arc::clone(&self.client))))
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.client.flush()?;
        self.client.disconnect();
        Ok(())
    }
}
