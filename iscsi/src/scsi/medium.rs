//! A block device in logical blocks: bounds, limits, and errors as sense with the block that is to blame.
//!
//! Not here: commands; who may do what. What holds: bytes beyond the last whole block are never touched but by
//! [`Medium::size`]'s users; long work goes in steps, between which `stop` is looked at; memory is one step at most.

use super::cdb::Blocks;
use super::device::Report;
use super::sense::{Code, Key, Sense};
use coffer_gateway::{BlockDevice, Content, Durability, Error, Export, Kind, Result as GatewayResult, Zeroing};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Bytes of one READ or WRITE at most, as with NBD.
const MAX_TRANSFER: u64 = 32 << 20;
/// Bytes of what is written whole or not at all: what every device's compare-and-write takes, wherever it begins.
const MAX_ATOMIC: u64 = 128 << 10;
/// Bytes that are read or written in one step of long work.
pub(super) const STEP: usize = 1 << 20;
/// Bytes that are zeroed in one step.
const ZERO_STEP: u64 = 64 << 20;
/// How often long work that waits looks whether it is to stop.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// The grain of forks, in bytes: what is smaller costs reading what is around it.
const GRAIN: u64 = 4096;

/// An export's device as blocks.
pub(super) struct Medium {
    export: Arc<Export>,
    block_size: u32,
    physical_block_size: u32,
    count: u64,
    report: Option<Report>,
}

/// Blocks as somebody wants them, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BlockSizes {
    /// The device's own without.
    pub(super) logical: Option<u32>,
    /// The logical ones without.
    pub(super) physical: Option<u32>,
}

/// Whether the caller of long work wants it to end.
pub(super) fn check_stop(stop: &AtomicBool) -> Result<(), Sense> {
    match stop.load(Ordering::Relaxed) {
        true => Err(Sense::new(Key::AbortedCommand, Code::NONE)),
        false => Ok(()),
    }
}

impl Medium {
    /// `Invalid` for a size that is none, and for a disk of no blocks.
    pub(super) fn new(export: Arc<Export>, sizes: BlockSizes, report: Option<Report>) -> GatewayResult<Self> {
        let name = &export.name;
        let block_size = sizes.logical.unwrap_or(export.device.block_size());
        if !block_size.is_power_of_two() || !(512..=4096).contains(&block_size) {
            let text = format!("export '{name}': blocks of {block_size} bytes; choose 512, 1024, 2048 or 4096");
            return Err(Error::invalid(text));
        }
        let physical_block_size = sizes.physical.unwrap_or(block_size);
        if !physical_block_size.is_power_of_two() || !(block_size..=4096).contains(&physical_block_size) {
            let text = format!(
                "export '{name}': physical blocks of {physical_block_size} bytes; choose a power of two from the logical \
                 {block_size} to 4096"
            );
            return Err(Error::invalid(text));
        }
        let count = export.device.size() / u64::from(block_size);
        if count == 0 {
            let text = format!("export '{name}' has {} bytes, which is no block of {block_size}", export.device.size());
            return Err(Error::invalid(text));
        }
        Ok(Medium { export, block_size, physical_block_size, count, report })
    }

    pub(super) fn export(&self) -> &Arc<Export> {
        &self.export
    }

    fn device(&self) -> &dyn BlockDevice {
        &*self.export.device
    }

    /// Bytes of a block.
    pub(super) fn block_size(&self) -> u32 {
        self.block_size
    }

    /// How many times two logical blocks make a physical one.
    pub(super) fn physical_exponent(&self) -> u8 {
        let exponent = self.physical_block_size.ilog2().saturating_sub(self.block_size.ilog2());
        u8::try_from(exponent).unwrap_or(0)
    }

    /// Whether the device can throw away the key of all that it holds.
    pub(super) fn has_key(&self) -> bool {
        !self.is_read_only() && self.device().erases_by_key()
    }

    /// Has it do that: everything reads as zeroes then. Durable on return.
    pub(super) fn erase_by_key(&self) -> Result<(), Sense> {
        self.device().erase_by_key().map_err(|e| self.failed(&e, 0, "erasing by key", true))
    }

    /// Waits until the export's limits let `bytes` more be written, and says so; in steps, between which `stop` is looked at.
    pub(super) fn pace(&self, bytes: u64, stop: &AtomicBool) -> Result<(), Sense> {
        let Some(meter) = self.export.meter() else { return Ok(()) };
        while let Some(wait) = meter.admit(bytes) {
            check_stop(stop)?;
            std::thread::sleep(wait.min(LOOK));
        }
        Ok(())
    }

    /// Blocks.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.export.is_read_only()
    }

    /// Blocks that begin and end where a fork's do.
    pub(super) fn grain(&self) -> u64 {
        GRAIN / u64::from(self.block_size)
    }

    /// Blocks of one READ or WRITE at most.
    pub(super) fn max_transfer(&self) -> u64 {
        MAX_TRANSFER / u64::from(self.block_size)
    }

    /// Blocks of one WRITE ATOMIC at most.
    pub(super) fn max_atomic(&self) -> u64 {
        MAX_ATOMIC / u64::from(self.block_size)
    }

    /// Blocks of one COMPARE AND WRITE at most, which has a byte to say so.
    pub(super) fn max_compare(&self) -> u64 {
        self.max_atomic().min(255)
    }

    /// That `blocks` lie within the disk.
    pub(super) fn check(&self, blocks: Blocks) -> Result<(), Sense> {
        match blocks.lba.checked_add(blocks.count) {
            Some(end) if end <= self.count => Ok(()),
            // The first block that is not there.
            _ => Err(Sense::illegal(Code::LBA_OUT_OF_RANGE).at(blocks.lba.max(self.count))),
        }
    }

    /// Bytes of so many blocks.
    pub(super) fn bytes(&self, count: u64) -> u64 {
        count.saturating_mul(self.block_size.into())
    }

    /// Where checked blocks lie.
    pub(super) fn range(&self, blocks: Blocks) -> Range<u64> {
        let start = self.bytes(blocks.lba);
        start..start.saturating_add(self.bytes(blocks.count))
    }

    fn lba(&self, offset: u64) -> u64 {
        offset / u64::from(self.block_size)
    }

    /// Tells whoever runs the device what happened, and makes a sense of it.
    fn failed(&self, error: &Error, lba: u64, what: &str, is_write: bool) -> Sense {
        if !matches!(error.kind(), Kind::Invalid | Kind::Unsupported) {
            self.report(&error.duplicate().within(format!("{what} at block {lba}")));
        }
        Sense::of_error(error, lba, is_write)
    }

    /// Tells whoever runs the device of an error.
    pub(super) fn report(&self, error: &Error) {
        if let Some(report) = &self.report {
            report(&error.duplicate().within(format!("export '{}'", self.export.name)));
        }
    }

    /// Reads if that needs no waiting; `Ok(false)` when it would.
    pub(super) fn try_read(&self, offset: u64, out: &mut [u8]) -> Result<bool, Sense> {
        match self.device().try_read_at(offset, out) {
            Ok(is_done) => Ok(is_done),
            Err(e) => Err(self.read_failed(&e, offset, out)),
        }
    }

    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Sense> {
        self.device().read_at(offset, out).map_err(|e| self.read_failed(&e, offset, out))
    }

    /// The sense of a read that failed, with the first block that cannot be read: looked for by halves.
    fn read_failed(&self, error: &Error, offset: u64, out: &mut [u8]) -> Sense {
        let size = usize::try_from(self.block_size).unwrap_or(usize::MAX);
        let (mut at, mut rest) = (offset, out);
        while rest.len() > size {
            let half = (rest.len() / size / 2).max(1) * size;
            let (front, back) = rest.split_at_mut(half);
            if self.device().read_at(at, front).is_err() {
                rest = front;
            } else {
                at = at.saturating_add(half as u64);
                rest = back;
            }
        }
        self.failed(error, self.lba(at), "a read", false)
    }

    /// Whether a cached write of `blocks` most likely waits for nothing.
    pub(super) fn writes_swiftly(&self, blocks: Blocks) -> bool {
        self.device().writes_swiftly(self.range(blocks))
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<(), Sense> {
        let written = self.device().write_at(offset, bytes, durability);
        written.map_err(|e| self.failed(&e, self.lba(offset), "a write", true))
    }

    /// Makes `range` read as zeroes, in steps.
    pub(super) fn zero(&self, range: Range<u64>, how: Zeroing, stop: &AtomicBool) -> Result<(), Sense> {
        let mut at = range.start;
        while at < range.end {
            check_stop(stop)?;
            // Steps end where the device's own blocks do.
            let end = (at / ZERO_STEP + 1).saturating_mul(ZERO_STEP).min(range.end);
            let zeroed = self.device().zero(at..end, how);
            zeroed.map_err(|e| self.failed(&e, self.lba(at), "zeroing", true))?;
            at = end;
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> Result<(), Sense> {
        if self.is_read_only() {
            return Ok(());
        }
        self.device().flush().map_err(|e| self.failed(&e, 0, "a flush", true))
    }

    pub(super) fn prefetch(&self, range: Range<u64>) {
        self.device().prefetch(range);
    }

    /// Writes `new` if `expected` is there; `Some(i)`: byte `i` differed. Durable on return.
    pub(super) fn exchange(&self, offset: u64, expected: &[u8], new: &[u8]) -> Result<Option<usize>, Sense> {
        let outcome = self.device().compare_and_write(offset, expected, new);
        outcome.map_err(|e| self.failed(&e, self.lba(offset), "compare-and-write", true))
    }

    /// The stretch that begins at `offset` and ends at `end` at the latest, and whether it reads as zeroes and takes no space.
    pub(super) fn content(&self, offset: u64, end: u64) -> Result<(Range<u64>, bool), Sense> {
        let extents = self.device().extents(offset..end, 1);
        let extents = extents.map_err(|e| self.failed(&e, self.lba(offset), "asking what is stored", false))?;
        match extents.into_iter().next() {
            Some(first) if first.range.end > offset => {
                Ok((offset..first.range.end.min(end), first.content == Content::Zero))
            }
            _ => Ok((offset..end, false)),
        }
    }

    /// Every byte that there is, those after the last whole block too.
    pub(super) fn size(&self) -> u64 {
        self.device().size()
    }
}

impl fmt::Debug for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Medium");
        out.field("export", &self.export.name).field("block_size", &self.block_size).field("count", &self.count);
        out.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coffer_gateway::{Faults, FaultyDevice, MemoryDevice};

    #[test]
    fn the_block_to_blame_is_found() {
        let below = Arc::new(MemoryDevice::new(1 << 20));
        for bad in [0, 512, 5 * 512, 2047 * 512] {
            let faults = Faults { unreadable: vec![bad..bad + 1], ..Faults::default() };
            let device = Arc::new(FaultyDevice::new(Arc::clone(&below) as _, faults));
            let medium = Medium::new(Arc::new(Export::new("e", device)), BlockSizes::default(), None).unwrap();
            let sense = medium.read(0, &mut vec![0; 1 << 20]).unwrap_err();
            assert_eq!((sense.key, sense.information), (Key::MediumError, Some(bad / 512)));
        }
    }

    #[test]
    fn a_disk_that_is_no_multiple_of_its_blocks_is_cut() {
        let export = || Arc::new(Export::new("e", Arc::new(MemoryDevice::new(10_000))));
        let sizes = |logical, physical| BlockSizes { logical: Some(logical), physical: Some(physical) };
        let medium = Medium::new(export(), sizes(4096, 4096), None).unwrap();
        assert_eq!((medium.count(), medium.size()), (2, 10_000));
        assert!(medium.check(Blocks { lba: 1, count: 1 }).is_ok() && medium.check(Blocks { lba: 2, count: 0 }).is_ok());
        assert!(medium.check(Blocks { lba: 2, count: 1 }).is_err());
        assert!(medium.check(Blocks { lba: u64::MAX, count: 2 }).is_err());
        for (logical, physical) in [(1000, 4096), (4096, 2048), (512, 8192), (512, 1000)] {
            let refused = Medium::new(export(), sizes(logical, physical), None);
            assert_eq!(refused.unwrap_err().kind(), Kind::Invalid, "{logical} {physical}");
        }
        for (logical, physical, exponent) in [(512, 512, 0), (512, 4096, 3), (1024, 2048, 1), (4096, 4096, 0)] {
            let medium = Medium::new(export(), sizes(logical, physical), None).unwrap();
            assert_eq!(medium.physical_exponent(), exponent);
        }
        let small = Arc::new(Export::new("e", Arc::new(MemoryDevice::new(511))));
        assert_eq!(Medium::new(small, BlockSizes::default(), None).unwrap_err().kind(), Kind::Invalid);
    }
}
