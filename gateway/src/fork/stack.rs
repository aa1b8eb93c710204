//! Layers above each other as one device: a fork's generations. Only the top is written; what is below it is frozen.
//!
//! ```text
//!   base <- layer 3 <- layer 4                 a frozen 3, a top 4
//!   push      base <- 3 <- 4 <- 5              the barrier: 4 is frozen as it is at one moment, 5 takes what comes next
//!   settle    base'             <- 5           base' holds what base, 3 and 4 came to: they go
//!   track     each change is marked            a hydration copies the whole to a target
//!   hand over target                           the barrier: the target holds the same, and takes what comes next; the layers go
//!   supersede                   base <- 6      the barrier: 6 hides everything, and takes what comes next; the layers go
//! ```
//! Not here: where layers lie, what is in a base or on a target ([`super::folder`], [`super::commit`], [`super::hydration`]). What
//! holds: a request that changes something works on one top from its beginning to its end, marks included, and the barrier waits for
//! those under way, and for nothing else: neither for reads, nor for flushes, nor for the syncs that forced writes and
//! compare-and-writes wait for. So what is frozen is one moment of the disk, and everything that was acknowledged before the barrier is
//! in it. A compare-and-write that had compared when the barrier came belongs to what is frozen, too, and is marked: its blocks stay
//! locked until it is there; freezing ends only then, and whoever copies it for a hand-over waits for the lock. A flush covers all
//! layers, since what was written before it may lie in any; once one of them failed, nothing is written above it.
//!
//! The gate is held over a write's I/O, against the rule: waiting for it is what the barrier is for. That is local and mostly into
//! memory; what a write to part of a block needs from a base that may be far away is brought into memory first. Whoever hands over has
//! the gate for the last few regions that are copied and compared: only writers wait for that, and for nobody else's I/O.

use super::heir::Heir;
use super::hydration::Tracker;
use super::layer::Layer;
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

/// Being within the gate. What was changed meanwhile is marked before it is left.
struct Passage<'a> {
    layers: &'a Layers,
    range: &'a Range<u64>,
    _gate: RwLockReadGuard<'a, ()>,
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        // A change that failed may have come to pass in part.
        if let Some(tracker) = &self.layers.tracker {
            tracker.mark(self.range);
        }
    }
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

    /// Puts `layer`, which is empty and has the top as its base, on top. Everything that was acknowledged before is below it, and
    /// what is below it does not change any more when this returns.
    pub fn push(&self, layer: Arc<Layer>) -> Result<()> {
        let frozen = {
            let _barrier = self.barrier();
            let frozen = self.top()?;
            self.exchange(|layers| layers.frozen.push(std::mem::replace(&mut layers.top, layer)))?;
            frozen
        };
        // Without the barrier: this may take a sync, and nobody else waits for it.
        frozen.come_to_rest();
        Ok(())
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
        self.layers().is_ok_and(|layers| layers.all().any(|layer| layer.changed(range).next().is_some()))
    }

    /// Calls `each` with the number of every part of `part` bytes in which a layer has a block of its own; more than once where several have.
    pub(super) fn each_touched(&self, part: u64, each: impl Fn(u64)) {
        let Ok(layers) = self.layers() else { return };
        let whole = 0..self.size;
        for run in layers.all().flat_map(|layer| layer.changed(&whole)) {
            let (first, end) = (run.start * BLOCK as u64 / part, (run.end * BLOCK as u64).div_ceil(part));
            (first..end).for_each(&each);
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

    /// Changes `range`: `warm` first, without the gate; then `op` of the top, which lets go of the passage before it waits for a sync; or
    /// what it was handed over to. For syncs of others, too, it is waited without.
    fn change<T>(
        &self,
        range: &Range<u64>,
        warm: impl FnOnce(&Layer) -> Result<()>,
        op: impl Fn(&Layer, Passage<'_>) -> Result<T>,
        handed_over: impl FnOnce(&Heir) -> Result<T>,
    ) -> Result<T> {
        if let Course::Layers(layers) = self.course() {
            if let Some(tracker) = &layers.tracker {
                tracker.wait_turn();
            }
            warm(&layers.top)?;
        }
        let mut is_first = true;
        loop {
            if let Course::Layers(layers) = self.course() {
                layers.top.give_way(range);
            }
            let gate = self.enter();
            // Only now: it may have changed at the gate.
            let layers = match self.course() {
                Course::Layers(layers) => layers,
                Course::Heir(heir) => {
                    drop(gate);
                    return handed_over(&heir);
                }
            };
            layers.check()?;
            match op(&layers.top, Passage { layers: &layers, range, _gate: gate }) {
                Err(e) if is_first && layers.top.make_room(&e)? => is_first = false,
                done => return done,
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

    /// Has `top`, which hides everything below it, take the place of all layers once `place` has made that durable; what was
    /// there is returned, to end without the barrier. When `place` fails nothing is written any more.
    pub(super) fn supersede(self, top: Arc<Layer>, place: impl FnOnce() -> Result<()>) -> Result<Vec<Arc<Layer>>> {
        let layers = self.stack.layers()?;
        if let Err(e) = place() {
            let why = "it is not known whether that was erased or not: open the fork again to see";
            self.halt(e.duplicate().within(why));
            return Err(e);
        }
        self.stack.exchange(|layers| {
            layers.frozen.clear();
            layers.top = top;
        })?;
        Ok(layers.all().cloned().collect())
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

    /// Not while a hydration may make writers wait.
    fn writes_swiftly(&self, range: Range<u64>) -> bool {
        self.layers().is_ok_and(|layers| layers.tracker.is_none() && layers.top.writes_swiftly(range))
    }

    fn write_at(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<()> {
        let range = offset..offset.saturating_add(bytes.len() as u64);
        self.change(
            &range,
            |top| warm_edges(top, &range),
            |top, passage| {
                let debt = top.write_owing(offset, bytes, durability)?;
                drop(passage);
                top.settle_debt(debt)
            },
            |heir| heir.write_at(offset, bytes, durability),
        )
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.change(
            &range,
            |top| warm_edges(top, &range),
            |top, passage| {
                let debt = top.zero_owing(range.clone(), how)?;
                drop(passage);
                top.settle_debt(debt)
            },
            |heir| heir.zero(range.clone(), how),
        )
    }

    fn trim(&self, range: Range<u64>) -> Result<()> {
        self.change(
            &range,
            |_| Ok(()),
            |top, passage| {
                let debt = top.trim_owing(range.clone())?;
                drop(passage);
                top.settle_debt(debt)
            },
            |heir| heir.trim(range.clone()),
        )
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
        self.change(
            &range,
            |top| top.warm(&range, true),
            |top, passage| {
                let exchange = top.compare_owing(offset, expected, new)?;
                drop(passage);
                top.finish(exchange)
            },
            |heir| heir.compare_and_write(offset, expected, new),
        )
    }
}
