//! What a fork was handed over to, as the fork's own device.
//!
//! Not here: how it came to hold the fork's bytes ([`super::hydration`]). What holds: it has the fork's shape, whatever more there is on
//! the target; nobody else writes there, so that compare-and-write is atomic by keeping this process's own writers out. It is not whole or
//! not at all after a power cut, as a layer's is. What a failed connection lost is not known: a target that failed stays failed until
//! the fork is opened again.
//!
//! The lock is held over writes, against the rule: waiting for them is what compare-and-write takes it for.

use crate::device::{BlockDevice, Durability, Extent, Zeroing, check_range};
use crate::{Error, Result};
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

pub(super) struct Heir {
    target: Arc<dyn BlockDevice>,
    size: u64,
    block_size: u32,
    exchanges: RwLock<()>,
}

impl Heir {
    /// `target` in the shape of a fork. It has at least as many bytes.
    pub(super) fn new(target: Arc<dyn BlockDevice>, size: u64, block_size: u32) -> Self {
        Heir { target, size, block_size, exchanges: RwLock::default() }
    }

    fn check(&self, range: &Range<u64>) -> Result<()> {
        check_range(self.size, range.start, range.end.saturating_sub(range.start))
    }

    fn writing(&self) -> RwLockReadGuard<'_, ()> {
        self.exchanges.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockDevice for Heir {
    fn size(&self) -> u64 {
        self.size
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        check_range(self.size, offset, out.len() as u64)?;
        self.target.read_at(offset, out)
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        check_range(self.size, offset, out.len() as u64)?;
        self.target.try_read_at(offset, out)
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        self.check(&range)?;
        self.target.extents(range, max)
    }

    fn depths(&self, range: Range<u64>, max: usize) -> Result<Vec<(Range<u64>, u32)>> {
        self.check(&range)?;
        self.target.depths(range, max)
    }

    fn prefetch(&self, range: Range<u64>) {
        self.target.prefetch(range);
    }

    fn write_at(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<()> {
        check_range(self.size, offset, bytes.len() as u64)?;
        let _writing = self.writing();
        self.target.write_at(offset, bytes, durability)
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.check(&range)?;
        let _writing = self.writing();
        self.target.zero(range, how)
    }

    fn trim(&self, range: Range<u64>) -> Result<()> {
        self.check(&range)?;
        let _writing = self.writing();
        self.target.trim(range)
    }

    fn flush(&self) -> Result<()> {
        self.target.flush()
    }

    fn compare_and_write(&self, offset: u64, expected: &[u8], new: &[u8]) -> Result<Option<usize>> {
        if expected.len() != new.len() {
            return Err(Error::invalid("compare-and-write with two lengths"));
        }
        check_range(self.size, offset, new.len() as u64)?;
        let _alone = self.exchanges.write().unwrap_or_else(PoisonError::into_inner);
        let mut found = vec![0; expected.len()];
        self.target.read_at(offset, &mut found)?;
        if let Some(differs) = found.iter().zip(expected).position(|(a, b)| a != b) {
            return Ok(Some(differs));
        }
        self.target.write_at(offset, new, Durability::Forced)?;
        Ok(None)
    }
}
