//! A device that fails on purpose, above a sound one. For tests.
//!
//! Not here: what a caller should do about a failure. What holds: the same seed and the same order of calls give the same
//! failures; a call that fails has no effect below.

use crate::device::{BlockDevice, Content, Durability, Extent, Zeroing};
use crate::{Error, Kind, Result};
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What goes wrong. The default is nothing.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// For the choice among [`Faults::one_in`].
    pub seed: u64,
    /// Ranges that cannot be read: reading any byte of them is `Corrupt`, their extents are unreadable.
    pub unreadable: Vec<Range<u64>>,
    /// On the average one read, write, zero, trim or flush in so many fails with `Unavailable`.
    pub one_in: Option<NonZeroU64>,
    /// Claim this size in bytes instead of the true one; what lies beyond the truth cannot be reached.
    pub claimed_size: Option<u64>,
    /// Never answer from memory, so that a server has to ask its pool.
    pub is_cold: bool,
}

/// A device with faults.
pub struct FaultyDevice {
    below: Arc<dyn BlockDevice>,
    faults: Faults,
    calls: AtomicU64,
}

impl FaultyDevice {
    /// Puts `faults` above `below`.
    #[must_use]
    pub fn new(below: Arc<dyn BlockDevice>, faults: Faults) -> Self {
        FaultyDevice { below, faults, calls: AtomicU64::new(0) }
    }

    /// Counts a call, and fails it when its turn has come.
    fn roll(&self, what: &str) -> Result<()> {
        let Some(one_in) = self.faults.one_in else { return Ok(()) };
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        if mixed(self.faults.seed ^ mixed(call)) % one_in == 0 {
            return Err(Error::new(Kind::Unavailable, format!("injected failure of {what}, call {call}")));
        }
        Ok(())
    }

    fn check_readable(&self, offset: u64, len: usize) -> Result<()> {
        let end = offset.saturating_add(len as u64);
        match self.faults.unreadable.iter().find(|u| u.start < end && offset < u.end) {
            Some(u) => Err(Error::corrupt(format!("injected unreadable bytes {} to {}", u.start, u.end))),
            None => Ok(()),
        }
    }
}

impl BlockDevice for FaultyDevice {
    fn size(&self) -> u64 {
        self.faults.claimed_size.unwrap_or(self.below.size())
    }

    fn block_size(&self) -> u32 {
        self.below.block_size()
    }

    fn is_read_only(&self) -> bool {
        self.below.is_read_only()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.roll("a read")?;
        self.check_readable(offset, out.len())?;
        self.below.read_at(offset, out)
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        if self.faults.is_cold {
            return Ok(false);
        }
        self.roll("a read from memory")?;
        self.check_readable(offset, out.len())?;
        self.below.try_read_at(offset, out)
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        let mut found = Vec::new();
        for extent in self.below.extents(range, max)? {
            let mut at = extent.range.start;
            while at < extent.range.end && found.len() < max {
                let within = self.faults.unreadable.iter().find(|u| u.contains(&at));
                let next = self.faults.unreadable.iter().map(|u| u.start).filter(|s| *s > at).min();
                let (end, content) = match within {
                    Some(u) => (u.end, Content::Unreadable),
                    None => (next.unwrap_or(u64::MAX), extent.content),
                };
                let end = end.min(extent.range.end);
                found.push(Extent { range: at..end, content });
                at = end;
            }
        }
        Ok(found)
    }

    fn prefetch(&self, range: Range<u64>) {
        self.below.prefetch(range);
    }

    fn evict(&self, range: Range<u64>) {
        self.below.evict(range);
    }

    fn write_at(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<()> {
        self.roll("a write")?;
        self.below.write_at(offset, bytes, durability)
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.roll("zeroing")?;
        self.below.zero(range, how)
    }

    fn trim(&self, range: Range<u64>) -> Result<()> {
        self.roll("a trim")?;
        self.below.trim(range)
    }

    fn flush(&self) -> Result<()> {
        self.roll("a flush")?;
        self.below.flush()
    }

    fn compare_and_write(&self, offset: u64, expected: &[u8], new: &[u8]) -> Result<Option<usize>> {
        self.roll("compare-and-write")?;
        self.check_readable(offset, expected.len())?;
        self.below.compare_and_write(offset, expected, new)
    }
}

/// SplitMix64's finaliser: every bit of the result depends on every bit of `x`.
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryDevice;

    fn faulty(faults: Faults) -> FaultyDevice {
        FaultyDevice::new(Arc::new(MemoryDevice::new(1 << 20)), faults)
    }

    #[test]
    fn unreadable_ranges_fail_and_show_in_the_extents() {
        let device = faulty(Faults { unreadable: vec![8192..12288, 12288..16384], ..Faults::default() });
        device.write_at(4096, &[7; 8192], Durability::Cached).unwrap();
        for (at, len, is_fine) in
            [(4096, 4096, true), (8191, 1, true), (8191, 2, false), (16383, 1, false), (16384, 1, true)]
        {
            let outcome = device.read_at(at, &mut vec![0; len]);
            assert_eq!(outcome.is_ok(), is_fine, "{at} {len}");
            assert!(outcome.err().is_none_or(|e| e.kind() == Kind::Corrupt));
        }
        let e = |range, content| Extent { range, content };
        assert_eq!(
            device.extents(0..20480, 10).unwrap(),
            [
                e(0..4096, Content::Zero),
                e(4096..8192, Content::Bytes),
                e(8192..12288, Content::Unreadable),
                e(12288..16384, Content::Unreadable),
                e(16384..20480, Content::Zero),
            ]
        );
        assert_eq!(device.extents(0..20480, 2).unwrap().len(), 2);
    }

    #[test]
    fn one_seed_gives_one_sequence_of_failures() {
        let sequence = |seed| {
            let device = faulty(Faults { seed, one_in: NonZeroU64::new(4), ..Faults::default() });
            (0..400).map(|i| device.read_at(i, &mut [0]).is_ok()).collect::<Vec<_>>()
        };
        assert_eq!(sequence(1), sequence(1));
        assert_ne!(sequence(1), sequence(2));
        let failed = sequence(3).iter().filter(|ok| !**ok).count();
        assert!((50..150).contains(&failed), "{failed} of 400 failed");
    }

    #[test]
    fn a_size_lie_is_found_out_below() {
        let device = faulty(Faults { claimed_size: Some(2 << 20), ..Faults::default() });
        assert_eq!(device.size(), 2 << 20);
        assert_eq!(device.read_at(1 << 20, &mut [0]).unwrap_err().kind(), Kind::Invalid);
    }
}
