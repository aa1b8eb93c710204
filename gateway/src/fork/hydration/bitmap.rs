//! A bit for each part of a disk, counted, and changed by many threads at once.
//!
//! Not here: what a bit means. What holds: each word is an atomic of its own, in one order with everything else that is; whoever clears a
//! bit sees what was done before it was set. Memory: a bit.

use super::super::block_map::{REGION as WORD, bits, split};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) struct Bitmap {
    words: Box<[AtomicU64]>,
    len: u64,
    set: AtomicU64,
}

impl Bitmap {
    /// That many bits, all clear.
    pub(super) fn new(len: u64) -> Self {
        let words = (0..len.div_ceil(WORD)).map(|_| AtomicU64::new(0)).collect();
        Bitmap { words, len, set: AtomicU64::new(0) }
    }

    /// The bits of `bytes`, the lowest of the first byte first; what is missing there is clear.
    pub(super) fn of_bytes(len: u64, bytes: &[u8]) -> Self {
        let bitmap = Bitmap::new(len);
        for (number, byte) in (0u64..).zip(bytes) {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                bitmap.set(number * 8 + bit..number * 8 + bit + 1);
            }
        }
        bitmap
    }

    /// The other way round.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|w| w.load(Ordering::SeqCst).to_le_bytes()).collect();
        bytes.truncate(index(self.len.div_ceil(8)));
        bytes
    }

    /// How many are set; while others change some, perhaps none that there ever were.
    pub(super) fn count(&self) -> u64 {
        self.set.load(Ordering::SeqCst)
    }

    pub(super) fn set(&self, range: Range<u64>) {
        for (word, part) in split(range.start..range.end.min(self.len)) {
            let mask = bits(part);
            let Some(word) = self.words.get(index(word)) else { return };
            // What is set already is the rule where a guest writes, and costs others nothing so.
            if word.load(Ordering::SeqCst) & mask != mask {
                let before = word.fetch_or(mask, Ordering::SeqCst);
                self.set.fetch_add(u64::from((mask & !before).count_ones()), Ordering::SeqCst);
            }
        }
    }

    pub(super) fn clear(&self, range: Range<u64>) {
        for (word, part) in split(range.start..range.end.min(self.len)) {
            let mask = bits(part);
            let Some(word) = self.words.get(index(word)) else { return };
            let before = word.fetch_and(!mask, Ordering::SeqCst);
            self.set.fetch_sub(u64::from((mask & before).count_ones()), Ordering::SeqCst);
        }
    }

    /// Whether any of `range` is set.
    pub(super) fn any(&self, range: Range<u64>) -> bool {
        self.next(range, |word| word).is_some()
    }

    /// The first run of set bits within `range`, cut off after `longest`.
    pub(super) fn next_run(&self, range: Range<u64>, longest: u64) -> Option<Range<u64>> {
        let start = self.next(range.clone(), |word| word)?;
        let limit = range.end.min(self.len).min(start.saturating_add(longest));
        Some(start..self.next(start..limit, |word| !word).unwrap_or(limit))
    }

    /// The first bit within `range` that is set in what `of` makes of its word. Looks no further than that.
    fn next(&self, range: Range<u64>, of: impl Fn(u64) -> u64) -> Option<u64> {
        let (mut at, end) = (range.start, range.end.min(self.len));
        while at < end {
            let word = of(self.words.get(index(at / WORD))?.load(Ordering::SeqCst)) >> (at % WORD);
            if word != 0 {
                return Some(at + u64::from(word.trailing_zeros())).filter(|found| *found < end);
            }
            at = (at / WORD + 1) * WORD;
        }
        None
    }
}

/// For numbers that count things in memory.
fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_what_an_array_would_be(
            len in 1u64..300,
            changes in prop::collection::vec((any::<bool>(), 0u64..300, 0u64..200), 0..30),
            from in 0u64..300,
            until in 0u64..400,
            longest in 1u64..100,
        ) {
            let (bitmap, mut model) = (Bitmap::new(len), vec![false; index(len)]);
            for (is_set, start, more) in changes {
                let range = start.min(len)..(start + more).min(len);
                if is_set { bitmap.set(range.clone()) } else { bitmap.clear(range.clone()) }
                model[index(range.start)..index(range.end)].fill(is_set);
            }
            let set = |from: u64| (from..len.min(until)).find(|at| model[index(*at)]);
            prop_assert_eq!(bitmap.count(), model.iter().filter(|set| **set).count() as u64);
            let run = set(from).map(|start| {
                let limit = len.min(until).min(start + longest);
                start..(start..limit).find(|at| !model[index(*at)]).unwrap_or(limit)
            });
            prop_assert_eq!(bitmap.next_run(from..until, longest), run);
            prop_assert_eq!(bitmap.any(from..until), set(from).is_some());
            let again = Bitmap::of_bytes(len, &bitmap.to_bytes());
            prop_assert_eq!(again.to_bytes(), bitmap.to_bytes());
            prop_assert_eq!(again.count(), bitmap.count());
        }
    }
}
