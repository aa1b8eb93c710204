//! A disk of a snapshot as a read-only block device.
//!
//! Not here: reading ([`coffer_repo::reader`]). What holds: the snapshot is pinned for as long as the device lives, if the store
//! can be written; what it holds never changes.

use crate::device::{BlockDevice, Content, Extent};
use crate::{Error, Kind, Result};
use coffer_repo::catalog::Pin;
use coffer_repo::reader::{DiskReader, MapContent};
use std::ops::Range;
use std::sync::Arc;

/// A disk of a snapshot.
pub struct SnapshotDevice {
    disk: DiskReader,
    /// Whether extents are read, so that what is damaged is told from what is not.
    is_salvaged: bool,
    /// Shared by the devices of one snapshot; ends with the last of them.
    _pin: Option<Arc<Pin>>,
}

impl SnapshotDevice {
    /// A device over `disk`, which `pin` holds.
    #[must_use]
    pub fn new(disk: DiskReader, pin: Option<Arc<Pin>>) -> Self {
        SnapshotDevice { disk, is_salvaged: false, _pin: pin }
    }

    /// The same device for whoever wants what is left of a damaged disk: what cannot be read any more is an extent like what could
    /// not be read when the backup was made. Asking for extents then reads them.
    #[must_use]
    pub fn salvaged(self) -> Self {
        SnapshotDevice { is_salvaged: true, ..self }
    }
}

impl BlockDevice for SnapshotDevice {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn block_size(&self) -> u32 {
        self.disk.block_size()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.disk.read_at(offset, out)
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        self.disk.try_read_at(offset, out)
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        let content = |content| match content {
            MapContent::Data => Content::Bytes,
            MapContent::Zero => Content::Zero,
            MapContent::Unreadable => Content::Unreadable,
        };
        let extents = match self.is_salvaged {
            true => self.disk.readable_extents(range, max)?,
            false => self.disk.extents(range, max)?,
        };
        Ok(extents.into_iter().map(|e| Extent { range: e.range, content: content(e.content) }).collect())
    }

    fn prefetch(&self, range: Range<u64>) {
        self.disk.prefetch(range);
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8], _: crate::Durability) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "a snapshot never changes; make a fork to write"))
    }
}
