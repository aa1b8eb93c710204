//! Which blocks of a layer are untouched, ours or zeroed.
//!
//! ```text
//!   BlockMap -> Branch (16 GiB, 16 KiB of memory) -> Chunk (16 MiB, 2 KiB of memory) -> Region (256 KiB): bits of 64 blocks
//! ```
//! Four bits a block, and only where something was written: a disk of 64 TiB costs 64 KiB until then, and one that was discarded
//! whole 64 MiB, since chunks that are zeroed from end to end are a bit in their branch.
//!
//! Not here: locks. What holds: a region changes only under its lock ([`super::range_locks`]), which makes one change of several
//! bits, though each word is an atomic of its own; a block is never ours and zeroed at once; what is fresh is zeroed.

use std::array;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Blocks of a region: one bit each in a word.
pub(super) const REGION: u64 = 64;
/// Regions of a chunk.
pub(super) const CHUNK: u64 = 64;
/// Chunks of a branch.
const BRANCH: u64 = 1024;

/// The blocks of one region, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Masks {
    /// Contents are in the data.
    pub(super) ours: u64,
    /// They read as zeroes.
    pub(super) zeroed: u64,
    /// They are known to have space in the data.
    pub(super) allocated: u64,
    /// Zeroed by a record that may not be firm: what is in the data may be needed yet.
    pub(super) fresh: u64,
}

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Untouched,
    Ours,
    Zeroed,
}

pub(super) struct BlockMap {
    branches: Box<[OnceLock<Box<Branch>>]>,
    blocks: u64,
}

struct Branch {
    /// Chunks that are zeroed as a whole, while they have no regions.
    zeroed: [AtomicU64; 16],
    chunks: [OnceLock<Box<[Region; 64]>>; 1024],
}

#[derive(Default)]
struct Region {
    ours: AtomicU64,
    zeroed: AtomicU64,
    allocated: AtomicU64,
    fresh: AtomicU64,
}

impl Masks {
    /// What the block with this number in its region is.
    pub(super) fn state(self, index: u64) -> State {
        match (self.ours >> index & 1, self.zeroed >> index & 1) {
            (1, _) => State::Ours,
            (_, 1) => State::Zeroed,
            _ => State::Untouched,
        }
    }

    /// The bits when these blocks are ours.
    pub(super) fn owned(self, bits: u64) -> Self {
        let Masks { ours, zeroed, allocated, fresh } = self;
        Masks { ours: ours | bits, zeroed: zeroed & !bits, allocated: allocated | bits, fresh: fresh & !bits }
    }

    /// The blocks from `index` on that are in the same state, within `end`: how many, and what they are.
    pub(super) fn run(self, index: u64, end: u64) -> (State, u64) {
        let state = self.state(index);
        let same = match state {
            State::Ours => self.ours,
            State::Zeroed => self.zeroed,
            State::Untouched => !(self.ours | self.zeroed),
        };
        (state, u64::from((same >> index).trailing_ones()).min(end - index))
    }
}

/// The bits of the blocks `range` of a region, which is not empty.
pub(super) fn bits(range: Range<u64>) -> u64 {
    (u64::MAX >> (REGION - (range.end - range.start))) << range.start
}

/// The regions that `blocks` touches: number, and the part of the region.
pub(super) fn split(blocks: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
    let mut at = blocks.start;
    std::iter::from_fn(move || {
        if at >= blocks.end {
            return None;
        }
        let (region, start) = (at / REGION, at % REGION);
        let len = (REGION - start).min(blocks.end - at);
        at += len;
        Some((region, start..start + len))
    })
}

/// The runs of ones in a word.
pub(super) fn runs(mut word: u64) -> impl Iterator<Item = Range<u64>> {
    std::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let start = u64::from(word.trailing_zeros());
        let len = u64::from((word >> start).trailing_ones());
        word &= !bits(start..start + len);
        Some(start..start + len)
    })
}

impl BlockMap {
    /// The map of that many untouched blocks.
    pub(super) fn new(blocks: u64) -> Self {
        let branches = blocks.div_ceil(REGION * CHUNK * BRANCH);
        BlockMap { branches: (0..branches).map(|_| OnceLock::new()).collect(), blocks }
    }

    /// How many blocks there are.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The bits of a region.
    pub(super) fn look(&self, region: u64) -> Masks {
        let Some(branch) = self.branch(region / CHUNK) else { return Masks::default() };
        let chunk = region / CHUNK;
        let get = |word: &AtomicU64| word.load(Ordering::Relaxed);
        match branch.chunk(chunk).get().and_then(|regions| regions.get(index(region % CHUNK))) {
            Some(Region { ours, zeroed, allocated, fresh }) => {
                Masks { ours: get(ours), zeroed: get(zeroed), allocated: get(allocated), fresh: get(fresh) }
            }
            None if branch.is_zeroed(chunk) => Masks { zeroed: u64::MAX, ..Masks::default() },
            None => Masks::default(),
        }
    }

    /// Sets the bits of a region. The caller has its lock.
    pub(super) fn set(&self, region: u64, masks: Masks) {
        let chunk = region / CHUNK;
        let Some(branch) = self.branches.get(index(chunk / BRANCH)) else { return };
        let branch = branch.get_or_init(Box::default);
        // The bit does not change while a region of the chunk is locked.
        let regions = branch.chunk(chunk).get_or_init(|| {
            let zeroed = if branch.is_zeroed(chunk) { u64::MAX } else { 0 };
            Box::new(array::from_fn(|_| Region { zeroed: zeroed.into(), ..Region::default() }))
        });
        if let Some(region) = regions.get(index(region % CHUNK)) {
            region.ours.store(masks.ours, Ordering::Relaxed);
            region.zeroed.store(masks.zeroed, Ordering::Relaxed);
            region.allocated.store(masks.allocated, Ordering::Relaxed);
            region.fresh.store(masks.fresh, Ordering::Relaxed);
        }
    }

    /// Makes blocks ours. The caller has their locks.
    pub(super) fn own(&self, blocks: Range<u64>) {
        for (region, part) in split(blocks) {
            let (masks, bits) = (self.look(region), bits(part));
            let Masks { ours, zeroed, allocated, fresh } = masks;
            let owned =
                Masks { ours: ours | bits, zeroed: zeroed & !bits, allocated: allocated | bits, fresh: fresh & !bits };
            self.set(region, owned);
        }
    }

    /// Makes blocks read as zeroes. The caller has their locks.
    pub(super) fn zero(&self, blocks: Range<u64>) {
        let mut rest = blocks;
        while !rest.is_empty() {
            let chunk = rest.start / (CHUNK * REGION);
            let of_chunk = chunk * CHUNK * REGION..((chunk + 1) * CHUNK * REGION).min(self.blocks);
            let part = rest.start..rest.end.min(of_chunk.end);
            rest.start = part.end;
            if part == of_chunk && self.zero_bare(chunk) {
                continue;
            }
            for (region, part) in split(part) {
                let (masks, bits) = (self.look(region), bits(part));
                let Masks { ours, zeroed, allocated, fresh } = masks;
                let fresh = fresh | bits & allocated;
                self.set(region, Masks { ours: ours & !bits, zeroed: zeroed | bits, allocated, fresh });
            }
        }
    }

    /// Zeroes a chunk none of whose regions was ever set, with a single bit; `false` when there are some. The caller has the locks of
    /// all its regions.
    fn zero_bare(&self, chunk: u64) -> bool {
        let Some(branch) = self.branches.get(index(chunk / BRANCH)) else { return false };
        let branch = branch.get_or_init(Box::default);
        if branch.chunk(chunk).get().is_some() {
            return false;
        }
        if let Some(word) = branch.zeroed.get(index(chunk % BRANCH / 64)) {
            word.fetch_or(1 << (chunk % 64), Ordering::Relaxed);
        }
        true
    }

    /// The first region from `region` on that may have bits, by what memory there is.
    pub(super) fn next(&self, region: u64) -> Option<u64> {
        let mut chunk = region / CHUNK;
        while chunk * CHUNK * REGION < self.blocks {
            match self.branch(chunk) {
                None => chunk = (chunk / BRANCH + 1) * BRANCH,
                Some(branch) if branch.chunk(chunk).get().is_some() || branch.is_zeroed(chunk) => {
                    return Some(region.max(chunk * CHUNK)).filter(|region| region * REGION < self.blocks);
                }
                Some(_) => chunk += 1,
            }
        }
        None
    }

    fn branch(&self, chunk: u64) -> Option<&Branch> {
        self.branches.get(index(chunk / BRANCH))?.get().map(|branch| &**branch)
    }
}

impl Default for Branch {
    fn default() -> Self {
        Branch { zeroed: Default::default(), chunks: array::from_fn(|_| OnceLock::new()) }
    }
}

impl Branch {
    fn chunk(&self, chunk: u64) -> &OnceLock<Box<[Region; 64]>> {
        &self.chunks[index(chunk % BRANCH)]
    }

    fn is_zeroed(&self, chunk: u64) -> bool {
        self.zeroed[index(chunk % BRANCH / 64)].load(Ordering::Relaxed) >> (chunk % 64) & 1 == 1
    }
}

/// For numbers that count things in memory.
fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_runs() {
        assert_eq!(bits(0..64), u64::MAX);
        assert_eq!(bits(3..5), 0b11000);
        assert_eq!(runs(0).count(), 0);
        assert_eq!(runs(u64::MAX).collect::<Vec<_>>(), [0..64]);
        assert_eq!(runs(1 << 63 | 0b1101).collect::<Vec<_>>(), [0..1, 2..4, 63..64]);
        let masks = Masks { ours: bits(2..64), zeroed: 1, ..Masks::default() };
        assert_eq!(masks.run(0, 64), (State::Zeroed, 1));
        assert_eq!(masks.run(1, 64), (State::Untouched, 1));
        assert_eq!(masks.run(2, 64), (State::Ours, 62));
        assert_eq!(masks.run(2, 7), (State::Ours, 5));
    }

    #[test]
    fn regions_are_as_they_were_set_and_the_rest_costs_nothing() {
        let map = BlockMap::new((64 << 40) / 4096);
        assert_eq!(map.branches.len(), 4096);
        assert_eq!((map.next(0), map.look(12345)), (None, Masks::default()));
        let last = map.blocks() / REGION - 1;
        let masks = Masks { ours: 1, zeroed: 6, allocated: 7, fresh: 4 };
        map.set(last, masks);
        map.set(70_000, masks);
        assert_eq!((map.look(last), map.look(70_000), map.look(70_001)), (masks, masks, Masks::default()));
        assert_eq!((map.next(0), map.next(70_000)), (Some(70_000 / CHUNK * CHUNK), Some(70_000)));
        assert_eq!(map.next(last - 63), Some(last - 63));
        assert_eq!(map.branches.iter().filter(|b| b.get().is_some()).count(), 2);
    }

    #[test]
    fn a_bare_chunk_is_zeroed_by_a_bit_and_its_regions_know() {
        let map = BlockMap::new(1 << 20);
        assert!(map.zero_bare(5));
        assert!(map.zero_bare(5));
        let zeroed = Masks { zeroed: u64::MAX, ..Masks::default() };
        assert_eq!((map.look(5 * CHUNK + 1), map.look(6 * CHUNK)), (zeroed, Masks::default()));
        assert_eq!(map.next(0), Some(5 * CHUNK));
        map.set(5 * CHUNK, Masks { ours: 1, zeroed: !1, ..Masks::default() });
        assert_eq!(map.look(5 * CHUNK + 1), zeroed);
        assert!(!map.zero_bare(5));
    }
}
