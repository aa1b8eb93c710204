//! Where random bytes come from. Injected, so that golden repositories can be made again byte for byte.
//!
//! Not here: anything derived from a key. What holds: a program that stores data uses [`System`]; [`Seeded`] is for tests
//! and golden files, and two things made from one seed must never hold different contents under one key.

use crate::error::{Error, Result};
use std::sync::Mutex;

/// A source of random bytes.
pub trait Entropy: Send + Sync {
    /// Fills `out` with fresh random bytes, or fails with [`Kind::Internal`](crate::error::Kind::Internal).
    fn fill(&self, out: &mut [u8]) -> Result<()>;
}

/// Fresh random bytes of a fixed length from any source.
pub fn fresh<const N: usize>(entropy: &dyn Entropy) -> Result<[u8; N]> {
    let mut out = [0u8; N];
    entropy.fill(&mut out)?;
    Ok(out)
}

/// The operating system's generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Entropy for System {
    fn fill(&self, out: &mut [u8]) -> Result<()> {
        aws_lc_rs::rand::fill(out).map_err(|_| Error::internal("the system's random generator failed"))
    }
}

/// A repeatable stream: BLAKE3 in extended-output mode over a seed. Never for stored secrets.
pub struct Seeded(Mutex<blake3::OutputReader>);

impl Seeded {
    /// The stream that belongs to `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut h = blake3::Hasher::new_derive_key("coffer v1 seeded test entropy");
        h.update(&seed.to_le_bytes());
        Seeded(Mutex::new(h.finalize_xof()))
    }
}

impl Entropy for Seeded {
    fn fill(&self, out: &mut [u8]) -> Result<()> {
        self.0.lock().map_err(|_| Error::internal("a thread died while drawing random bytes"))?.fill(out);
        Ok(())
    }
}
