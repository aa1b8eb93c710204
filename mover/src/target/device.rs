//! A block device as a target: zeroes are really zeroed there, since it may have held something.
//!
//! Not here: whether it may be overwritten. What holds: the device is opened exclusively, which the kernel refuses for one
//! that is mounted, swapped to, part of a volume group or otherwise held, or has a partition that is.

use super::file::{lock, read_back};
use super::{DiskTarget, Order, Space, write_zeroes};
use crate::source::RandomDisk;
use crate::{Error, Kind, Result};
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// An open block device.
pub(super) struct DeviceTarget {
    file: File,
    space: Space,
}

impl DeviceTarget {
    /// Opens the device at `path`.
    pub(super) fn open(path: &Path, space: Space) -> Result<Self> {
        let exclusive = i32::try_from(OFlags::EXCL.bits()).map_err(|_| Error::internal("O_EXCL"))?;
        let opened = OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(path);
        let file = opened.map_err(|e| {
            if e.kind() == std::io::ErrorKind::ResourceBusy {
                let context =
                    "the device is in use: it, or a partition of it, is mounted, swapped to or part of a volume";
                return Error::new(Kind::Locked, context).with_source(e);
            }
            Error::io("opening it for writing", e)
        })?;
        lock(&file)?;
        Ok(DeviceTarget { file, space })
    }

    /// In bytes.
    pub(super) fn size(&self) -> Result<u64> {
        rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0))
            .map_err(|e| Error::io("asking for its size", e.into()))
    }
}

impl DiskTarget for DeviceTarget {
    fn order(&self) -> Order {
        Order::Any
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| Error::io(format!("writing at byte {offset}"), e))
    }

    fn zero(&self, range: Range<u64>) -> Result<()> {
        // Both make the range read as zeroes; the first also gives the space back, where the device can do that.
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let keep = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let ways = [punch, keep];
        let ways = if self.space == Space::Sparse { &ways[..] } else { &ways[1..] };
        for &way in ways {
            match rustix::fs::fallocate(&self.file, way, range.start, range.end - range.start) {
                Ok(()) => return Ok(()),
                // Not this device, or not at this alignment.
                Err(Errno::OPNOTSUPP | Errno::INVAL) => {}
                Err(e) => return Err(Error::io(format!("zeroing at byte {}", range.start), e.into())),
            }
        }
        write_zeroes(self, range)
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("making it durable", e))
    }

    fn read_back(&self) -> Result<Box<dyn RandomDisk + '_>> {
        read_back(&self.file)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.sync()
    }
}
