//! How far a hydration is, for whoever shows it.
//!
//! Not here: what is done. What holds: counters only grow; what a guest changes meanwhile is counted once more.

use super::tracker::Tracker;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Everything is copied for the first time.
    Copying,
    /// Everything is compared.
    Verifying,
    /// What was changed meanwhile is copied and compared, until little enough is left.
    CatchingUp,
    /// Writers wait for the last of it.
    HandingOver,
    /// The target is the disk.
    Done,
}

/// Counters that go on while a hydration runs, in bytes of the disk.
pub struct HydrationProgress {
    phase: AtomicU8,
    tracker: Arc<Tracker>,
    size: u64,
    /// Found copied by an earlier run.
    pub(super) resumed: u64,
    pub(super) copied: AtomicU64,
    pub(super) zero: AtomicU64,
    pub(super) verified: AtomicU64,
}

impl HydrationProgress {
    pub(super) fn new(tracker: Arc<Tracker>, size: u64, resumed: u64) -> Self {
        let counter = AtomicU64::default;
        let phase = AtomicU8::new(0);
        HydrationProgress { phase, tracker, size, resumed, copied: counter(), zero: counter(), verified: counter() }
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// What is being done now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Copying,
            1 => Phase::Verifying,
            2 => Phase::CatchingUp,
            3 => Phase::HandingOver,
            _ => Phase::Done,
        }
    }

    /// The disk's size.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Found copied by an earlier run.
    #[must_use]
    pub fn resumed(&self) -> u64 {
        self.resumed
    }

    /// Written as bytes.
    #[must_use]
    pub fn copied(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }

    /// Left out, or zeroed.
    #[must_use]
    pub fn zero(&self) -> u64 {
        self.zero.load(Ordering::Relaxed)
    }

    /// Read back and found right.
    #[must_use]
    pub fn verified(&self) -> u64 {
        self.verified.load(Ordering::Relaxed)
    }

    /// Still to be copied, as of now: what a guest changes adds to it.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.tracker.dirty().count().saturating_mul(self.tracker.region()).min(self.size)
    }
}
