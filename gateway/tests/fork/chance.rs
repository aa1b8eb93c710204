//! Seeded choices, so that a printed seed repeats a test.

use coffer_gateway::Result;
use coffer_repo::entropy::{Entropy, Seeded};
use std::ops::Range;

/// A repeatable sequence of choices.
pub(crate) struct Chance(Seeded);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Chance(Seeded::new(seed))
    }

    /// A number below `n`.
    pub(crate) fn below(&self, n: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes).unwrap();
        (u64::from_le_bytes(bytes) % n as u64) as usize
    }

    /// A range of at least one and at most `longest` within `0..len`.
    pub(crate) fn range(&self, len: usize, longest: usize) -> Range<usize> {
        let start = self.below(len);
        start..(start + 1 + self.below(longest)).min(len)
    }

    /// Random bytes.
    pub(crate) fn bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.fill(&mut bytes).unwrap();
        bytes
    }
}

impl Entropy for Chance {
    fn fill(&self, out: &mut [u8]) -> Result<()> {
        self.0.fill(out)
    }
}

/// The seeds of a test: `COFFER_SEED` is the first instead of 1, `COFFER_SEEDS` how many instead of `many`.
#[allow(clippy::disallowed_methods, reason = "a test is a program: it may read its environment")]
pub(crate) fn seeds(many: u64) -> Range<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("COFFER_SEED").unwrap_or(1);
    first..first + number("COFFER_SEEDS").unwrap_or(many)
}
