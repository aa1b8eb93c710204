//! Seeded choices: the only source of chance in the harness, so that a printed seed repeats a test.
//!
//! Not here: what is chosen. What holds: one seed gives one sequence, on every machine and in every version.

// A harness speaks by failing.
#![allow(clippy::unwrap_used)]

use coffer_repo::entropy::{Entropy, Seeded};
use std::ops::Range;

/// A repeatable sequence of choices.
pub struct Dice(Seeded);

impl Dice {
    /// The sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Dice(Seeded::new(seed))
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// A number below `n`, which is not zero.
    pub fn below(&mut self, n: u64) -> u64 {
        self.number() % n
    }

    /// An index into something that has `len` elements, at least one.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }

    /// A range within `0..len`, not empty unless that is, of at most `longest` bytes.
    pub fn range(&mut self, len: usize, longest: usize) -> Range<usize> {
        if len == 0 {
            return 0..0;
        }
        let start = self.index(len);
        start..(start + 1 + self.index(longest)).min(len)
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Random bytes, which do not compress.
    pub fn noise(&mut self, out: &mut [u8]) {
        self.0.fill(out).unwrap();
    }
}
