//! A disk of a snapshot as a block device: read-only, by the repository's reader.
//!
//! Not here: pinning the snapshot; whoever opens the device holds the pin.

use crate::Result;
use crate::device::{BlockDevice, Content, Extent};
use coffer_repo::reader::{DiskReader, MapContent};
use std::ops::Range;

/// A [`DiskReader`] behind the seam of every door.
pub struct SnapshotDevice(DiskReader);

impl SnapshotDevice {
    /// The device over `disk`.
    #[must_use]
    pub fn new(disk: DiskReader) -> Self {
        SnapshotDevice(disk)
    }
}

impl BlockDevice for SnapshotDevice {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn block_size(&self) -> u32 {
        self.0.block_size()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, out)
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        self.0.try_read_at(offset, out)
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        let found = self.0.extents(range, max)?;
        let extent = |content, range| Extent { range, content };
        Ok(found
            .into_iter()
            .map(|e| match e.content {
                MapContent::Data => extent(Content::Bytes, e.range),
                MapContent::Zero => extent(Content::Zero, e.range),
                MapContent::Unreadable => extent(Content::Unreadable, e.range),
            })
            .collect())
    }

    fn prefetch(&self, range: Range<u64>) {
        self.0.prefetch(range);
    }
}
