//! The seam of every door: a block device.
//!
//! ```text
//!   NBD server   iSCSI target   FUSE file   guest file-system readers
//!        \            |            |            /
//!         +-----------+-----+------+-----------+
//!                           |
//!                      BlockDevice                      byte offsets, &self, object-safe, synchronous
//!        +-----------+------+-----+-------------+
//!        |           |            |             |
//!   SnapshotDevice  Fork     MemoryDevice   FaultyDevice, NbdClient, FileDevice
//! ```
//!
//! Not here: sockets, exports, who may do what. What holds: a write that returned may be lost by a power cut until
//! [`BlockDevice::flush`] returned or the write said [`Durability::Forced`]; bytes that a device cannot read are an error,
//! never zeroes; ranges beyond the size are `Invalid`.

use crate::{Error, Kind, Result};
use std::ops::Range;

/// Whether a write must be durable before it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// May sit in a volatile cache until the next flush.
    Cached,
    /// FUA: on stable storage on return.
    Forced,
}

/// How a range may be zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zeroing {
    /// The device may free the space.
    pub may_unmap: bool,
    /// Fail with [`Kind::Unsupported`] rather than be as slow as writing.
    pub fast_only: bool,
    /// As for writes.
    pub durability: Durability,
}

/// What a stretch of a device is, as far as a client that copies wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Holds bytes that have to be read.
    Bytes,
    /// Reads as zeroes and takes no space.
    Zero,
    /// Cannot be read: the source could not be read when it was backed up. Reading it fails.
    Unreadable,
}

/// A stretch of a device, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it lies.
    pub range: Range<u64>,
    /// What it is.
    pub content: Content,
}

/// A disk that can be read and perhaps written at any byte offset. The contract is the module's header.
pub trait BlockDevice: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Logical block size in bytes, a power of two from 512 to 4096.
    fn block_size(&self) -> u32;

    /// Whether every write will be refused.
    fn is_read_only(&self) -> bool;

    /// Fills `out` from `offset` on.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()>;

    /// As [`BlockDevice::read_at`], but only when it needs no I/O and no waiting; `false` means that nothing was done.
    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool>;

    /// Stretches that cover `range` from its start on, in order and without gaps: at most `max` of them, at least one for a
    /// range that is not empty, so perhaps less than the whole range. Neighbours of one content are merged where that is free.
    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>>;

    /// How deep what is read lies, from the start of `range` on, cut and counted as [`BlockDevice::extents`] are: 0 where nothing
    /// is stored and zeroes are read, 1 where this device holds it by itself, 2 where the one below does, and so on.
    fn depths(&self, range: Range<u64>, max: usize) -> Result<Vec<(Range<u64>, u32)>> {
        let depth = |content| u32::from(content != Content::Zero);
        Ok(self.extents(range, max)?.into_iter().map(|e| (e.range, depth(e.content))).collect())
    }

    /// Says that `range` will be read soon. Advice only; returns at once.
    fn prefetch(&self, range: Range<u64>) {
        let _ = range;
    }

    /// Says that what memory holds of `range` is not wanted: what is read next is to come from storage, as far as the device can see
    /// to that. Advice only; what was not flushed stays.
    fn evict(&self, range: Range<u64>) {
        let _ = range;
    }

    /// Whether a cached write to `range` most likely waits for nothing: a server may then do many of them on one thread. Advice only;
    /// returns at once.
    fn writes_swiftly(&self, range: Range<u64>) -> bool {
        let _ = range;
        false
    }

    /// Writes `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<()> {
        let _ = (offset, bytes, durability);
        Err(read_only())
    }

    /// Makes `range` read as zeroes.
    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        let _ = (range, how);
        Err(read_only())
    }

    /// Says that the bytes of `range` are not needed; what they read as afterwards is undefined.
    fn trim(&self, range: Range<u64>) -> Result<()> {
        let _ = range;
        Err(read_only())
    }

    /// Makes everything written so far durable.
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// Whether [`BlockDevice::erase_by_key`] can be done.
    fn erases_by_key(&self) -> bool {
        false
    }

    /// Throws away the key of everything that was written here, and with it what lies below as far as it shows through: all of the
    /// device reads as zeroes then. Durable on return; after an error all is as it was, or nothing may be written any more.
    fn erase_by_key(&self) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "the device has no key of its own"))
    }

    /// Writes `new` if the device holds `expected` there, atomically against every other write. `Some(i)`: byte `i` differed
    /// and nothing was written.
    fn compare_and_write(&self, offset: u64, expected: &[u8], new: &[u8]) -> Result<Option<usize>> {
        let _ = (offset, expected, new);
        Err(read_only())
    }
}

/// Checks that `len` bytes at `offset` lie within a device of `size` bytes.
pub fn check_range(size: u64, offset: u64, len: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::new(
            Kind::Invalid,
            format!("{len} bytes at offset {offset} lie beyond the device's {size} bytes"),
        )),
    }
}

fn read_only() -> Error {
    Error::new(Kind::Unsupported, "the device is read-only")
}
