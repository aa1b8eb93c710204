//! Long reads of a crowd: whole chunks expand straight to where they are wanted, past the cache.
//!
//! While at least as many reads are under way as there are threads, every core has work. To hand parts of a long read to
//! other threads, or to fetch ahead of it, would gain nothing then, and the way through the cache costs a copy and memory
//! that is cold: 15 to 20 % of all the time of a sequential reader. Chunks that a read wants only a part of still go through
//! the cache, since the rest of them is another read's.
//!
//! Not here: reads that are short or lonely, and what does not lie, or not whole, where its leaf says: both go the ordinary
//! way. What holds: the bytes of a place count only when its frame was authenticated and its chunk's id checked.

use super::fetch::Want;
use super::{Part, Reader};
use crate::error::Result;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Reads of fewer bytes have few whole chunks, and may well be random.
const LONG: usize = 256 << 10;

/// How many reads are under way that memory could not answer.
pub(super) struct Crowd {
    reads: AtomicUsize,
    threads: usize,
}

/// One read's place in the crowd, until it is dropped.
pub(super) struct Place<'a>(&'a Crowd);

impl Crowd {
    pub(super) fn new(threads: usize) -> Self {
        Crowd { reads: AtomicUsize::new(0), threads }
    }

    pub(super) fn enter(&self) -> Place<'_> {
        self.reads.fetch_add(1, Relaxed);
        Place(self)
    }
}

impl Place<'_> {
    /// Whether a read of `len` bytes should go straight.
    pub(super) fn is_straight(&self, len: usize) -> bool {
        len >= LONG && self.0.reads.load(Relaxed) >= self.0.threads
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.reads.fetch_sub(1, Relaxed);
    }
}

impl Reader {
    /// Fills what it can of `out` by expanding whole chunks in place; the parts that are left for the ordinary way.
    pub(super) fn expand_straight(&self, parts: Vec<Part>, out: &mut [u8]) -> Vec<Part> {
        let is_missing = |part: &Part| part.is_whole() && self.fetcher.cached(&part.want).is_none();
        let (whole, mut left): (Vec<Part>, Vec<Part>) = parts.into_iter().partition(is_missing);
        let wants: Vec<Want> = whole.iter().map(|part| part.want).collect();
        let mut places = places(out, whole.iter().map(|part| part.into.clone()));
        let done: Vec<Result<()>> =
            self.pool.here(whole.len(), |scratch| self.fetcher.expand(&wants, &mut places, scratch));
        left.extend(whole.into_iter().zip(done).filter(|(_, done)| done.is_err()).map(|(part, _)| part));
        left
    }
}

/// Cuts `ranges`, which are in order, out of `out`. A range that is not in order has no place, an empty one.
fn places(out: &mut [u8], ranges: impl Iterator<Item = Range<usize>>) -> Vec<&mut [u8]> {
    let (mut rest, mut at) = (out, 0);
    let mut place = |range: Range<usize>| -> Option<&mut [u8]> {
        let skip = range.start.checked_sub(at)?;
        let (_, after) = std::mem::take(&mut rest).split_at_mut_checked(skip)?;
        let (place, after) = after.split_at_mut_checked(range.len())?;
        (rest, at) = (after, range.end);
        Some(place)
    };
    ranges.map(|range| place(range).unwrap_or_default()).collect()
}
