//! An NBD export as a source, and the adapter that image sources share.
//!
//! Not here: the protocol. What holds: holes that the server names are not read; a server that answers a read with an error
//! has a bad range, a connection that is lost is the source's failure.

use super::{Access, Content, DiskSource, RandomDisk, ReadFault, SourceDisk, SourceExtent};
use crate::{Error, Result};
use coffer_gateway::device::{self, BlockDevice};
use coffer_gateway::nbd::{ClientOptions, NbdClient, NbdUri};
use std::ops::Range;
use std::sync::Arc;

/// A session with one export.
struct NbdSource {
    disks: [SourceDisk; 1],
}

/// Connects to the export at `uri`.
pub(super) fn open(disk: String, uri: &NbdUri) -> Result<Box<dyn DiskSource>> {
    let client = NbdClient::connect(uri, &ClientOptions::default())?;
    let block_size = client.block_size();
    let access = Access::Random(Box::new(NbdDisk::new(Arc::new(client))));
    Ok(Box::new(NbdSource { disks: [SourceDisk { name: disk, block_size, access }] }))
}

impl DiskSource for NbdSource {
    fn disks(&self) -> &[SourceDisk] {
        &self.disks
    }

    fn warnings(&self) -> &[String] {
        &[]
    }

    fn finish(self: Box<Self>) -> Result<Vec<Option<String>>> {
        Ok(vec![None])
    }
}

/// A connected export as a disk.
pub(crate) struct NbdDisk {
    client: Arc<NbdClient>,
}

impl NbdDisk {
    /// Reads what `client` is connected to.
    pub(crate) fn new(client: Arc<NbdClient>) -> Self {
        NbdDisk { client }
    }
}

impl RandomDisk for NbdDisk {
    fn size(&self) -> Result<u64> {
        Ok(self.client.size())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), ReadFault> {
        let lost = |error: Error| {
            if self.client.is_connected() { ReadFault::Bytes(error) } else { ReadFault::Source(error) }
        };
        self.client.read_at(offset, out).map_err(lost)
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<SourceExtent>> {
        let of = |extent: device::Extent| SourceExtent {
            range: extent.range,
            content: match extent.content {
                device::Content::Zero => Content::Zero,
                // Reading it will tell.
                device::Content::Bytes | device::Content::Unreadable => Content::Bytes,
            },
        };
        Ok(self.client.extents(range, max)?.into_iter().map(of).collect())
    }
}
