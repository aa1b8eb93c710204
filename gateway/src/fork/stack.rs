//! Layers above each other as one device: a fork's generations. Only the top is written; what is below it is frozen.
//!
//! ```text
//!   base <- layer 3 <- layer 4                 a frozen 3, a top 4
//!   push      base <- 3 <- 4 <- 5              the barrier: 4 is frozen as it is at one moment, 5 takes what comes next
//!   settle    base'             <- 5           base' holds what base, 3 and 4 came to: they go
//! ```
//! Not here: where layers lie and what is in a base ([`super::folder`], [`super::commit`]). What holds: a request that changes something
//! works on one top from its beginning to its end, and the barrier waits for those under way, and for nothing else: neither for
//! reads, nor for flushes, nor for the sync that a forced write ends with. So what is frozen is one moment of the disk, and everything
//! that was acknowledged before the barrier is in it. A flush covers all layers, since what was written before it may lie in any; once
//! one of them failed, nothing is written above it.
//!
//! The lock is held over a write's I/O, against the rule: waiting for it is what the barrier is for. It is local and mostly into memory;
//! what a write to part of a block needs from a base that may be far away is brought into memory first.

use super::layer::Layer;
use super::record::BLOCK;
use crate::Result;
use crate::device::{BlockDevice, Durability, Extent, Zeroing};
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

/// A writable device of several layers.
pub struct Stack {
    size: u64,
    block_size: u32,
    layers: RwLock<Layers>,
}

#[derive(Clone)]
struct Layers {
    /// From the lowest.
    frozen: Vec<Arc<Layer>>,
    top: Arc<Layer>,
}

impl Layers {
    /// Whether all of them can be relied on.
    fn check(&self) -> Result<()> {
        self.frozen.iter().chain([&self.top]).try_for_each(|layer| layer.check())
    }

    fn each(&self, each: impl Fn(&Layer) -> Result<()>) -> Result<()> {
        self.frozen.iter().chain([&self.top]).try_for_each(|layer| each(layer))
    }
}

impl Stack {
    /// `top` above `frozen`, which are named from the lowest: each has the one before as its base.
    #[must_use]
    pub fn new(frozen: Vec<Arc<Layer>>, top: Arc<Layer>) -> Self {
        Stack { size: top.size(), block_size: top.block_size(), layers: RwLock::new(Layers { frozen, top }) }
    }

    /// What takes the writes now.
    #[must_use]
    pub fn top(&self) -> Arc<Layer> {
        Arc::clone(&self.read().top)
    }

    /// The frozen ones, from the lowest.
    #[must_use]
    pub fn frozen(&self) -> Vec<Arc<Layer>> {
        self.read().frozen.clone()
    }

    /// Puts `layer`, which is empty and has the top as its base, on top. Everything that was acknowledged before is below it.
    pub fn push(&self, layer: Arc<Layer>) {
        let mut layers = self.write();
        let frozen = std::mem::replace(&mut layers.top, layer);
        layers.frozen.push(frozen);
    }

    /// Lets go of everything below the top for a device that holds the same.
    pub fn settle(&self, base: Arc<dyn BlockDevice>) -> Result<()> {
        self.top().rebase(base)?;
        let gone = std::mem::take(&mut self.write().frozen);
        // Without the lock: they flush as they end.
        drop(gone);
        Ok(())
    }

    /// An error once any layer has failed.
    pub fn check(&self) -> Result<()> {
        self.read().check()
    }

    /// Flushes everything for the last time.
    pub fn close(&self) -> Result<()> {
        self.all().each(Layer::close)
    }

    fn all(&self) -> Layers {
        self.read().clone()
    }

    // Nothing panics between the two changes of `push`: the layers are as good as before when a thread died with the lock.
    fn read(&self) -> RwLockReadGuard<'_, Layers> {
        self.layers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Layers> {
        self.layers.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layers, held against the barrier.
    fn writable(&self) -> Result<RwLockReadGuard<'_, Layers>> {
        let layers = self.read();
        layers.check()?;
        Ok(layers)
    }

    /// Brings into memory what changing the edges of `range` will read of the base.
    fn warm_edges(&self, range: Range<u64>) -> Result<()> {
        let block = BLOCK as u64;
        match range.start.is_multiple_of(block) && range.end.is_multiple_of(block) {
            true => Ok(()),
            false => self.top().warm(&range, false),
        }
    }
}

impl BlockDevice for Stack {
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
        self.top().read_at(offset, out)
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        let top = match self.layers.try_read() {
            Ok(layers) => Arc::clone(&layers.top),
            Err(TryLockError::Poisoned(layers)) => Arc::clone(&layers.into_inner().top),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        top.try_read_at(offset, out)
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        self.top().extents(range, max)
    }

    fn depths(&self, range: Range<u64>, max: usize) -> Result<Vec<(Range<u64>, u32)>> {
        self.top().depths(range, max)
    }

    fn prefetch(&self, range: Range<u64>) {
        self.top().prefetch(range);
    }

    fn write_at(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<()> {
        self.warm_edges(offset..offset.saturating_add(bytes.len() as u64))?;
        let (top, debt) = {
            let layers = self.writable()?;
            (Arc::clone(&layers.top), layers.top.write_owing(offset, bytes, durability)?)
        };
        top.settle_debt(debt)
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.warm_edges(range.clone())?;
        let (top, debt) = {
            let layers = self.writable()?;
            (Arc::clone(&layers.top), layers.top.zero_owing(range, how)?)
        };
        top.settle_debt(debt)
    }

    fn trim(&self, range: Range<u64>) -> Result<()> {
        self.writable()?.top.trim(range)
    }

    fn flush(&self) -> Result<()> {
        self.all().each(|layer| layer.flush())
    }

    fn compare_and_write(&self, offset: u64, expected: &[u8], new: &[u8]) -> Result<Option<usize>> {
        self.top().warm(&(offset..offset.saturating_add(expected.len() as u64)), true)?;
        self.writable()?.top.compare_and_write(offset, expected, new)
    }
}
