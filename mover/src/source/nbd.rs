//! An NBD export as a source, and the adapter that image sources share.
//!
//! Not here: the protocol. What holds: holes that the server names are not read; a server that answers a read with an error
//! has a bad range, a connection that is lost is the source's failure.

use super::{Access, Content, DiskSource, RandomDisk, ReadFault, SourceDisk, SourceExtent};
use crate::{Error, Result};
use coffer_gateway::device::{self, BlockDevice};
use coffer_gateway::nbd::{ClientOptions, NbdClient, NbdUri, Place};
use std::ops::Range;
use std::sync::Arc;

/// How much is asked of a local server at once: what it has read is still in the processor's cache when it is sent. Twice as
/// fast from qemu-nbd as whole windows.
const LOCAL_REQUEST: usize = 256 << 10;

/// How much is asked of a server over a network at once: every request waits for the wire.
const REMOTE_REQUEST: usize = 4 << 20;

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
        let request = match self.client.uri().place {
            Place::Unix(_) => LOCAL_REQUEST,
            Place::Tcp(..) => REMOTE_REQUEST,
        };
        let mut at = offset;
        for part in out.chunks_mut(request) {
            self.client.read_at(at, part).map_err(lost)?;
            at += part.len() as u64;
        }
        Ok(())
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
