//! Layers above each other as one device: a fork's generations. Only the top is written; what is below it is frozen.
//!
//! ```text
//!   base <- layer 3 <- layer 4                 a frozen 3, a top 4
//!   push      base <- 3 <- 4 <- 5              the barrier: 4 is frozen as it is at one moment, 5 takes what comes next
//!   settle    base'             <- 5           base' holds what base, 3 and 4 came to: they go
//!   track     each change is marked            a hydration copies the whole to a target
//!   hand over target                           the barrier: the target holds the same, and takes what comes next; the layers go
//! ```
//! Not here: where layers lie, what is in a base or on a target ([`super::folder`], [`super::commit`], [`super::hydration`]). What
//! holds: a request that changes something works on one top from its beginning to its end, marks included, and the barrier waits for
//! those under way, and for nothing else: neither for reads, nor for flushes, nor for the sync that a forced write ends with. So what is
//! frozen is one moment of the disk, and everything that was acknowledged before the barrier is in it. A flush covers all layers, since
//! what was written before it may lie in any; once one of them failed, nothing is written above it.
//!
//! The gate is held over a write's I/O, against the rule: waiting for it is what the barrier is for. That is local and mostly into
//! memory; what a write to part of a block needs from a base that may be far away is brought into memory first. Whoever hands over has
//! the gate for the last few regions that are copied and compared: only writers wait for that, and for nobody else's I/O.

use super::heir::Heir;
use super::hydration::Tracker;
use super::layer::{Debt, Layer};
use super::record::BLOCK;
use crate::device::{BlockDevice, Durability, Extent, Zeroing};
use crate::{Error, Result};
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

/// A writable device of several layers, or what they were handed over to.
pub struct Stack {
    size: u64,
    block_size: u32,
    /// Shared by who changes something, for as long as that takes.
    gate: RwLock<()>,
    /// Locked to be copied or exchanged only.
    course: RwLock<Course>,
}

/// Where requests go.
#[derive(Clone)]
enum Course {
    Layers(Arc<Layers>),
    Heir(Arc<Heir>),
}

#[derive(Clone)]
struct Layers {
    /// From the lowest.
    frozen: Vec<Arc<Layer>>,
    top: Arc<Layer>,
    /// Who wants to know of changes.
    tracker: Option<Arc<Tracker>>,
    /// Why nothing may be written any more.
    halted: Option<Arc<Error>>,
}

/// The gate, closed: nothing changes until it is dropped.
pub(super) struct Barrier<'a> {
    stack: &'a Stack,
    _gate: RwLockWriteGuard<'a, ()>,
}

impl Layers {
    /// Whether all of them can be relied on.
    fn check(&self) -> Result<()> {
        if let Some(why) = &self.halted {
            return Err(why.duplicate());
        }
        self.all().try_for_each(|layer| layer.check())
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Layer>> {
        self.frozen.iter().chain([&self.top])
    }

    fn mark(&self, range: &Range<u64>) {
        if let Some(tracker) = &self.tracker {
            tracker.mark(range);
        }
    }
}

impl Stack {
    /// `top` above `frozen`, which are named from the lowest: each has the one before as its base.
    #[must_use]
    pub fn new(frozen: Vec<Arc<Layer>>, top: Arc<Layer>) -> Self {
        let (size, block_size) = (top.size(), top.block_size());
        let layers = Layers { frozen, top, tracker: None, halted: None };
        Stack { size, block_size, gate: RwLock::default(), course: RwLock::new(Course::Layers(Arc::new(layers))) }
    }

    /// One that was handed over to `target`, which has at least `size` bytes.
    pub(super) fn handed_over(target: Arc<dyn BlockDevice>, size: u64, block_size: u32) -> Self {
        let course = Course::Heir(Arc::new(Heir::new(target, size, block_size)));
        Stack { size, block_size, gate: RwLock::default(), course: RwLock::new(course) }
    }

    /// What takes the writes now. `Invalid` once it was handed over.
    pub fn top(&self) -> Result<Arc<Layer>> {
        self.layers().map(|layers| Arc::clone(&layers.top))
    }

    /// The frozen ones, from the lowest.
    #[must_use]
    pub fn frozen(&self) -> Vec<Arc<Layer>> {
        self.layers().map(|layers| layers.frozen.clone()).unwrap_or_default()
    }

    /// Puts `layer`, which is empty and has the top as its base, on top. Everything that was acknowledged before is below it.
    pub fn push(&self, layer: Arc<Layer>) -> Result<()> {
        let _barrier = self.barrier();
        self.exchange(|layers| {
            let frozen = std::mem::replace(&mut layers.top, layer);
            layers.frozen.push(frozen);
        })
    }

    /// Lets go of everything below the top for a device that holds the same.
    pub fn settle(&self, base: Arc<dyn BlockDevice>) -> Result<()> {
        self.top()?.rebase(base)?;
        self.exchange(|layers| layers.frozen.clear())
    }

    /// An error once any layer has failed.
    pub fn check(&self) -> Result<()> {
        match self.course() {
            Course::Layers(layers) => layers.check(),
            Course::Heir(_) => Ok(()),
        }
    }

    /// Flushes everything for the last time.
    pub fn close(&self) -> Result<()> {
        match self.course() {
            Course::Layers(layers) => layers.all().try_for_each(|layer| layer.close()),
            Course::Heir(heir) => heir.flush(),
        }
    }

    /// Whether any layer has anything in `range`, in bytes.
    pub(super) fn touches(&self, range: &Range<u64>) -> bool {
        self.layers().is_ok_and(|layers| layers.all().any(|layer| layer.touches(range)))
    }

    /// Calls `each` with the number of every part of `part` bytes in which a layer has a block of its own; more than once where several have.
    pub(super) fn each_touched(&self, part: u64, each: impl Fn(u64)) {
        let Ok(layers) = self.layers() else { return };
        for layer in layers.all() {
            let mut at = 0;
            while let Some(byte) = layer.next_touched(at) {
                each(byte / part);
                at = (byte / part + 1) * part;
            }
        }
    }

    /// From now on `tracker` is told of every change, and of every read that takes long. What was changed before is in the layers.
    pub(super) fn track(&self, tracker: Arc<Tracker>) -> Result<()> {
        let _barrier = self.barrier();
        self.exchange(|layers| layers.tracker = Some(tracker))
    }

    /// The end of that. Nothing is left to be told when it was handed over.
    pub(super) fn untrack(&self) {
        let _ = self.exchange(|layers| layers.tracker = None);
    }

    /// Waits for the changes under way, and holds off others until it is dropped.
    pub(super) fn barrier(&self) -> Barrier<'_> {
        Barrier { stack: self, _gate: self.gate.write().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Exchanges the layers for changed ones. What is let go of ends without the lock: layers flush as they end.
    fn exchange(&self, change: impl FnOnce(&mut Layers)) -> Result<()> {
        let mut course = self.course.write().unwrap_or_else(PoisonError::into_inner);
        let Course::Layers(layers) = &*course else { return Err(gone()) };
        let mut changed = Layers::clone(layers);
        change(&mut changed);
        let old = std::mem::replace(&mut *course, Course::Layers(Arc::new(changed)));
        drop(course);
        drop(old);
        Ok(())
    }

    fn layers(&self) -> Result<Arc<Layers>> {
        match self.course() {
            Course::Layers(layers) => Ok(layers),
            Course::Heir(_) => Err(gone()),
        }
    }

    // Nothing panics while the lock is held for writing, but for the allocation of what replaces all at once.
    fn course(&self) -> Course {
        self.course.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes `range`: `warm` first, without the gate; then the top, and what it returns with it; or what it was handed over to.
    fn change<T>(
        &self,
        range: &Range<u64>,
        warm: impl FnOnce(&Layer) -> Result<()>,
        change: impl FnOnce(&Layer) -> Result<T>,
        handed_over: impl FnOnce(&Heir) -> Result<T>,
    ) -> Result<(Option<Arc<Layer>>, T)> {
        if let Course::Layers(layers) = self.course() {
            if let Some(tracker) = &layers.tracker {
                tracker.wait_turn();
            }
            warm(&layers.top)?;
        }
        let gate = self.enter();
        // Only now: it may have changed at the gate.
        match self.course() {
            Course::Layers(layers) => {
                layers.check()?;
                let changed = change(&layers.top);
                layers.mark(range);
                Ok((Some(Arc::clone(&layers.top)), changed?))
            }
            Course::Heir(heir) => {
                drop(gate);
                Ok((None, handed_over(&heir)?))
            }
        }
    }
}

impl Barrier<'_> {
    /// Has `target`, which holds the same, take the layers' place.
    pub(super) fn hand_over(self, target: Arc<dyn BlockDevice>) {
        let heir = Course::Heir(Arc::new(Heir::new(target, self.stack.size, self.stack.block_size)));
        let mut course = self.stack.course.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *course, heir);
        drop(course);
        drop(self);
        // Last: the layers flush as they end.
        drop(old);
    }

    /// Has nothing be written any more, for good.
    pub(super) fn halt(self, why: Error) {
        let _ = self.stack.exchange(|layers| layers.halted = Some(Arc::new(why)));
    }
}

fn gone() -> Error {
    Error::invalid("the fork was handed over")
}

/// Brings into memory what changing the edges of `range` will read of the base.
fn warm_edges(top: &Layer, range: &Range<u64>) -> Result<()> {
    let block = BLOCK as u64;
    match range.start.is_multiple_of(block) && range.end.is_multiple_of(block) {
        true => Ok(()),
        false => top.warm(range, false),
    }
}

/// Waits for what a change of a layer still owes.
fn settle_debt((layer, debt): (Option<Arc<Layer>>, Debt)) -> Result<()> {
    layer.map_or(Ok(()), |layer| layer.settle_debt(debt))
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
        match self.course() {
            Course::Layers(layers) => {
                if let Some(tracker) = &layers.tracker {
                    tracker.note_miss(offset);
                }
                layers.top.read_at(offset, out)
            }
            Course::Heir(heir) => heir.read_at(offset, out),
        }
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        let course = match self.course.try_read() {
            Ok(course) => course.clone(),
            Err(TryLockError::Poisoned(course)) => course.into_inner().clone(),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        match course {
            Course::Layers(layers) => layers.top.try_read_at(offset, out),
            Course::Heir(heir) => heir.try_read_at(offset, out),
        }
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        match self.course() {
            Course::Layers(layers) => layers.top.extents(range, max),
            Course::Heir(heir) => heir.extents(range, max),
        }
    }

    fn depths(&self, range: Range<u64>, max: usize) -> Result<Vec<(Range<u64>, u32)>> {
        match self.course() {
            Course::Layers(layers) => layers.top.depths(range, max),
            Course::Heir(heir) => heir.depths(range, max),
        }
    }

    fn prefetch(&self, range: Range<u64>) {
        match self.course() {
            Course::Layers(layers) => layers.top.prefetch(range),
            Course::Heir(heir) => heir.prefetch(range),
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<()> {
        let range = offset..offset.saturating_add(bytes.len() as u64);
        settle_debt(self.change(
            &range,
            |top| warm_edges(top, &range),
            |top| top.write_owing(offset, bytes, durability),
            |heir| heir.write_at(offset, bytes, durability).map(|()| Debt::Nothing),
        )?)
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        settle_debt(self.change(
            &range,
            |top| warm_edges(top, &range),
            |top| top.zero_owing(range.clone(), how),
            |heir| heir.zero(range.clone(), how).map(|()| Debt::Nothing),
        )?)
    }

    fn trim(&self, range: Range<u64>) -> Result<()> {
        let trim = |device: &dyn BlockDevice| device.trim(range.clone());
        self.change(&range, |_| Ok(()), |top| trim(top), |heir| trim(heir)).map(drop)
    }

    fn flush(&self) -> Result<()> {
        match self.course() {
            Course::Layers(layers) => {
                layers.check()?;
                layers.all().try_for_each(|layer| layer.flush())
            }
            Course::Heir(heir) => heir.flush(),
        }
    }

    fn compare_and_write(&self, offset: u64, expected: &[u8], new: &[u8]) -> Result<Option<usize>> {
        let range = offset..offset.saturating_add(expected.len() as u64);
        let exchange = |device: &dyn BlockDevice| device.compare_and_write(offset, expected, new);
        let done = self.change(&range, |top| top.warm(&range, true), |top| exchange(top), |heir| exchange(heir));
        done.map(|(_, differs)| differs)
    }
}
