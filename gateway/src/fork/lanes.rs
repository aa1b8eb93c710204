//! Ciphers and buffers that are made once and lent: so that a request allocates nothing and sets up no key.
//!
//! Not here: the cipher. What holds: a lane is lent to one thread at a time; it is taken before locks of ranges and never while one
//! is held, so that whoever holds such a lock never waits for a lane. Memory: 16 lanes of at most 256 KiB.

use super::record::{BLOCK, STORE_MAX};
use crate::Result;
use coffer_repo::crypto::{Xts, XtsDirection, XtsKey};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

const LANES: u64 = 16;

pub(super) struct Lanes(Box<[Mutex<Lane>]>);

pub(super) struct Lane {
    pub(super) seal: Xts,
    pub(super) open: Xts,
    scratch: Vec<u8>,
}

impl Lanes {
    pub(super) fn new(key: &XtsKey) -> Result<Self> {
        let lane = |_| {
            let (seal, open) = (Xts::new(key, XtsDirection::Seal)?, Xts::new(key, XtsDirection::Open)?);
            Ok(Mutex::new(Lane { seal, open, scratch: Vec::new() }))
        };
        (0..LANES).map(lane).collect::<Result<_>>().map(Lanes)
    }

    /// A lane: the thread's own if it is free, else the next that is.
    pub(super) fn take(&self) -> MutexGuard<'_, Lane> {
        let mut hasher = DefaultHasher::new();
        std::thread::current().id().hash(&mut hasher);
        let own = usize::try_from(hasher.finish() % LANES).unwrap_or_default();
        for lane in self.0[own..].iter().chain(&self.0[..own]) {
            match lane.try_lock() {
                Ok(lane) => return lane,
                Err(TryLockError::Poisoned(lane)) => return lane.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        self.0[own].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    /// A copy of the whole blocks `bytes`, the first being number `first`, sealed. At most [`STORE_MAX`] of them.
    pub(super) fn sealed(&mut self, first: u64, bytes: &[u8]) -> Result<&[u8]> {
        if self.scratch.len() < bytes.len() {
            self.scratch.resize(bytes.len().next_power_of_two().clamp(BLOCK, STORE_MAX * BLOCK), 0);
        }
        let copy = &mut self.scratch[..bytes.len()];
        copy.copy_from_slice(bytes);
        self.seal.apply(first, copy)?;
        Ok(copy)
    }
}
