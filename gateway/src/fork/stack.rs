//! Layers above each other as one device: a fork's generations. Only the top is written; what is below it is frozen.
//!
//! ```text
//!   base <- layer 3 <- layer 4                 a frozen 3, a top 4
//!   push      base <- 3 <- 4 <- 5              the barrier: 4 is frozen as it is at one moment, 5 takes what comes next
//!   settle    base'             <- 5           base' holds what base, 3 and 4 came to: they go
//! ```
//! Not here: where layers lie and what is in a base ([`super::folder`], [`super::commit`]). What holds: a request that changes something
//! works on one top from its beginning to its end, and the barrier waits for those under way, and for nothing else: neither for
//! reads, nor for flushes, nor for the syncs that forced writes and compare-and-writes wait for. So what is frozen is one moment of the
//! disk, and everything that was acknowledged before the barrier is in it. A compare-and-write that had compared when the barrier came
//! belongs to what is frozen, too: its blocks stay locked until it is there, and freezing ends only then. A flush covers all layers, since what was written before it may lie in any; once
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

    /// Puts `layer`, which is empty and has the top as its base, on top. Everything that was acknowledged before is below it, and
    /// what is below it does not change any more when this returns.
    pub fn push(&self, layer: Arc<Layer>) {
        let frozen = {
            let mut layers = self.write();
            let frozen = std::mem::replace(&mut layers.top, layer);
            layers.frozen.push(Arc::clone(&frozen));
            frozen
        };
        // Without the barrier: this may take a sync, and nobody else waits for it.
        frozen.come_to_rest();
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

    /// Has `op` change the top within `range`. It gets the barrier to hold, and lets go of it before it waits for a sync. For those of
    /// others, too, it is waited without.
    fn change<T>(
        &self,
        range: &Range<u64>,
        op: impl Fn(&Layer, RwLockReadGuard<'_, Layers>) -> Result<T>,
    ) -> Result<T> {
        let attempt = || {
            self.top().give_way(range);
            let barrier = self.writable()?;
            let top = Arc::clone(&barrier.top);
            let done = op(&top, barrier);
            Ok((top, done))
        };
        match attempt()? {
            (top, Err(e)) if top.make_room(&e)? => attempt()?.1,
            (_, done) => done,
        }
    }

    /// Brings into memory what changing the edges of `range` will read of the base.
    fn warm_edges(&self, range: &Range<u64>) -> Result<()> {
        let block = BLOCK as u64;
        match range.start.is_multiple_of(block) && range.end.is_multiple_of(block) {
            true => Ok(()),
            false => self.top().warm(range, false),
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
        let range = offset..offset.saturating_add(bytes.len() as u64);
        self.warm_edges(&range)?;
        self.change(&range, |top, barrier| {
            let debt = top.write_owing(offset, bytes, durability)?;
            drop(barrier);
            top.settle_debt(debt)
        })
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.warm_edges(&range)?;
        self.change(&range, |top, barrier| {
            let debt = top.zero_owing(range.clone(), how)?;
            drop(barrier);
            top.settle_debt(debt)
        })
    }

    fn trim(&self, range: Range<u64>) -> Result<()> {
        self.change(&range, |top, barrier| {
            let debt = top.trim_owing(range.clone())?;
            drop(barrier);
            top.settle_debt(debt)
        })
    }

    fn flush(&self) -> Result<()> {
        self.all().each(|layer| layer.flush())
    }

    fn compare_and_write(&self, offset: u64, expected: &[u8], new: &[u8]) -> Result<Option<usize>> {
        let range = offset..offset.saturating_add(expected.len() as u64);
        self.top().warm(&range, true)?;
        self.change(&range, |top, barrier| {
            let exchange = top.compare_owing(offset, expected, new)?;
            drop(barrier);
            top.finish(exchange)
        })
    }
}
