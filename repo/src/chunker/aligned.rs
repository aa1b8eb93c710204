//! *aligned-cdc-1*: chunks of disks, cut by content but only between blocks.
//!
//! File systems place files on 4 KiB boundaries, so equal files in different machines give equal chunks wherever they lie;
//! partitions that begin at an odd sector lose that, though not correctness.
//!
//! Not here: which windows to look at, and what becomes of blocks that could not be read: they are zero-filled, so they lie
//! within zero pieces, and the writer records them. What holds: the verdict on a block depends on the block and on how many
//! blocks its chunk has before it, and on nothing else.

use super::{Chunker, Piece, Pieces, Tail};
use crate::error::{Error, Kind, Result};
use crate::zero::is_zero;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes of a block: the unit in which disks are cut.
pub const BLOCK: usize = 4096;

/// How a repository cuts disks, as its descriptor says; all in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskParams {
    /// Size of a block: 4096, the only one in version 1.
    pub block: u32,
    /// A chunk ends by its content only once it has this size.
    pub min: u32,
    /// Sets how rare an ending block is: one in `mean / block`.
    pub mean: u32,
    /// No chunk is longer.
    pub max: u32,
    /// No chunk crosses a multiple of this.
    pub window: u64,
}

impl Default for DiskParams {
    /// What `init` writes.
    fn default() -> Self {
        DiskParams { block: 4096, min: 16 << 10, mean: 64 << 10, max: 256 << 10, window: 16 << 20 }
    }
}

impl DiskParams {
    /// Whether version 1 can work with these: `Unsupported` for another block size, `Invalid` for sizes that make no sense.
    pub fn validate(&self) -> Result<()> {
        if usize::try_from(self.block) != Ok(BLOCK) {
            let context = format!("disks cut in blocks of {} bytes: this version knows blocks of {BLOCK}", self.block);
            return Err(Error::new(Kind::Unsupported, context));
        }
        let whole = |size: u32| size.is_multiple_of(self.block);
        let ordered = self.block <= self.min && self.min <= self.mean && self.mean <= self.max;
        // The window's upper bound also keeps block numbers within the 16 bits that a leaf has for them.
        let window = self.window.is_power_of_two() && (1 << 20..=64 << 20).contains(&self.window);
        if !(ordered && whole(self.min) && whole(self.max) && self.mean.is_power_of_two() && window)
            || u64::from(self.max) > self.window
        {
            return Err(Error::invalid(format!(
                "disk chunking with {self:?}: needs block <= min <= mean <= max <= window, min and max multiples of the \
                 block, mean and window powers of two, and a window of 1 to 64 MiB"
            )));
        }
        Ok(())
    }
}

/// Cuts disks. Cheap to copy; the seed is as private as the key it comes from.
#[derive(Clone, Copy)]
pub struct DiskChunker {
    seed: u64,
    /// An ending block has these bits of its hash clear.
    mask: u64,
    /// In blocks.
    min: usize,
    /// In blocks.
    max: usize,
    /// In bytes.
    window: usize,
}

impl std::fmt::Debug for DiskChunker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let DiskChunker { min, max, window, .. } = self;
        write!(f, "DiskChunker {{ min: {min} blocks, max: {max} blocks, window: {window} bytes, .. }}")
    }
}

/// What a block means to the chunk before it.
enum Verdict {
    /// All zero: the chunk ended before it.
    Apart,
    /// Part of the chunk, which goes on.
    Within,
    /// Part of the chunk and its last.
    Last,
}

impl DiskChunker {
    /// A chunker with valid `params`; `seed` is what section 6.1 derives from the id key.
    pub fn new(params: DiskParams, seed: u64) -> Result<Self> {
        params.validate()?;
        let blocks = |bytes: u32| bytes as usize / BLOCK;
        let window =
            usize::try_from(params.window).map_err(|_| Error::internal("a window beyond the address space"))?;
        Ok(DiskChunker {
            seed,
            mask: u64::from(params.mean / params.block) - 1,
            min: blocks(params.min),
            max: blocks(params.max),
            window,
        })
    }

    /// The pieces of one window: whole blocks, at most the window's size, or it is `Invalid`.
    pub fn window<'a>(&'a self, bytes: &'a [u8]) -> Result<Pieces<'a, Self>> {
        if !bytes.len().is_multiple_of(BLOCK) || bytes.len() > self.window {
            return Err(Error::invalid(format!(
                "cutting {} bytes as one window: needs whole blocks of {BLOCK}, the last one padded with zeroes, and at \
                 most {} bytes",
                bytes.len(),
                self.window
            )));
        }
        Ok(self.pieces(bytes, Tail::End))
    }

    /// Blocks of the longest chunk.
    pub(super) fn max_blocks(&self) -> usize {
        self.max
    }

    /// Blocks of a window.
    pub(super) fn window_blocks(&self) -> usize {
        self.window / BLOCK
    }

    /// What `block` means to a chunk that has `before` blocks before it.
    fn judge(&self, before: usize, block: &[u8; BLOCK]) -> Verdict {
        let length = before + 1;
        if is_zero(block) {
            Verdict::Apart
        } else if length >= self.max || (length >= self.min && xxh3_64_with_seed(block, self.seed) & self.mask == 0) {
            Verdict::Last
        } else {
            Verdict::Within
        }
    }
}

impl Chunker for DiskChunker {
    fn cut(&self, bytes: &[u8], tail: Tail) -> Option<Piece> {
        let (blocks, _incomplete) = bytes.as_chunks::<BLOCK>();
        for (before, block) in blocks.iter().enumerate() {
            match self.judge(before, block) {
                Verdict::Within => {}
                Verdict::Last => return Some(Piece::Chunk(0..(before + 1) * BLOCK)),
                Verdict::Apart if before > 0 => return Some(Piece::Chunk(0..before * BLOCK)),
                Verdict::Apart => {
                    let run = blocks.iter().take_while(|block| is_zero(*block)).count();
                    return Some(Piece::Zero(0..run * BLOCK));
                }
            }
        }
        (tail == Tail::End && !blocks.is_empty()).then(|| Piece::Chunk(0..blocks.len() * BLOCK))
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use proptest::prelude::*;
    use std::ops::Range;

    fn in_blocks(range: &Range<usize>) -> Range<usize> {
        assert!(range.start.is_multiple_of(BLOCK) && range.end.is_multiple_of(BLOCK), "{range:?} is not aligned");
        range.start / BLOCK..range.end / BLOCK
    }

    fn chunks(pieces: &[Piece]) -> Vec<Range<usize>> {
        pieces
            .iter()
            .filter_map(|piece| match piece {
                Piece::Chunk(range) => Some(in_blocks(range)),
                Piece::Zero(_) => None,
            })
            .collect()
    }

    proptest! {
        #[test]
        fn chunks_are_those_of_the_definition(params in sample::params(), seed: u64, numbers in sample::disks()) {
            let bytes = sample::disk(&numbers);
            let chunker = DiskChunker::new(params, seed).unwrap();
            let pieces: Vec<_> = chunker.window(&bytes).unwrap().collect();
            prop_assert_eq!(chunks(&pieces), sample::reference(&params, seed, &bytes));
        }

        #[test]
        fn zero_pieces_are_exactly_the_zero_blocks(params in sample::params(), seed: u64, numbers in sample::disks()) {
            let bytes = sample::disk(&numbers);
            let chunker = DiskChunker::new(params, seed).unwrap();
            let mut zero_before = false;
            for piece in chunker.window(&bytes).unwrap() {
                let zero = matches!(piece, Piece::Zero(_));
                prop_assert!(numbers[in_blocks(piece.range())].iter().all(|&number| (number == 0) == zero), "{:?}", piece);
                prop_assert!(!(zero && zero_before), "two zero pieces in a row before {:?}", piece);
                zero_before = zero;
            }
        }

        /// Behind a zero block nothing remembers what came before it.
        #[test]
        fn an_edit_is_forgotten_at_the_next_zero_block(
            params in sample::params(), seed: u64, numbers in sample::disks(), at: prop::sample::Index, new: u32,
        ) {
            prop_assume!(!numbers.is_empty());
            let chunker = DiskChunker::new(params, seed).unwrap();
            let at = at.index(numbers.len());
            let mut edited = numbers.clone();
            edited[at] = u64::from(new);
            let calm = numbers[at + 1..].iter().position(|&number| number == 0).map_or(numbers.len(), |i| at + 1 + i);
            let after = |numbers: &[u64]| {
                let bytes = sample::disk(numbers);
                let pieces: Vec<_> = chunker.window(&bytes).unwrap().collect();
                chunks(&pieces).into_iter().filter(|chunk| chunk.start >= calm).collect::<Vec<_>>()
            };
            prop_assert_eq!(after(&numbers), after(&edited));
        }
    }

    /// With content that does not repeat, cuts meet again soon after an edit. The bound is some fifteen mean chunks; with
    /// these seeds the answer is always the same.
    #[test]
    fn cuts_meet_again_after_an_edit() {
        const BOUND: usize = 240;
        let params = DiskParams::default();
        for seed in 0..3 {
            let chunker = DiskChunker::new(params, seed).unwrap();
            let ends = |bytes: &[u8]| {
                let pieces: Vec<_> = chunker.window(bytes).unwrap().collect();
                chunks(&pieces).into_iter().map(|chunk| chunk.end).collect::<Vec<_>>()
            };
            let mut bytes = sample::noise(seed, 1024 * BLOCK);
            let old = ends(&bytes);
            for edit in 0..700 {
                bytes[edit * BLOCK + 17] ^= 1;
                let new = ends(&bytes);
                bytes[edit * BLOCK + 17] ^= 1;
                let beyond =
                    |ends: &[usize]| ends.iter().copied().filter(|&end| end >= edit + BOUND).collect::<Vec<_>>();
                assert_eq!(beyond(&old), beyond(&new), "seed {seed}, block {edit} edited");
                let same_before =
                    |ends: &[usize]| ends.iter().copied().take_while(|&end| end <= edit).collect::<Vec<_>>();
                assert_eq!(same_before(&old), same_before(&new), "seed {seed}, block {edit} edited");
            }
        }
    }

    /// Any thread, any order, any place of the buffer in memory: the window alone decides.
    #[test]
    fn windows_on_many_threads_are_cut_as_in_order() {
        let params = DiskParams { window: 1 << 20, ..DiskParams::default() };
        let chunker = DiskChunker::new(params, 7).unwrap();
        let disk = sample::disk(&(0..2000u64).map(|i| if i % 97 < 11 { 0 } else { 500 + i }).collect::<Vec<_>>());
        let windows: Vec<&[u8]> = disk.chunks(1 << 20).collect();
        let cut = |window: &[u8]| chunker.window(window).unwrap().collect::<Vec<_>>();
        let in_order: Vec<_> = windows.iter().map(|window| cut(window)).collect();
        let parallel: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = windows
                .iter()
                .rev()
                .map(|window| {
                    scope.spawn(|| {
                        let elsewhere = [&[1u8][..], window].concat();
                        cut(&elsewhere[1..])
                    })
                })
                .collect();
            workers.into_iter().rev().map(|worker| worker.join().unwrap()).collect()
        });
        assert_eq!(in_order, parallel);
        assert!(in_order.iter().all(|pieces| pieces.len() > 8), "the disk gives chunks and gaps in every window");
    }

    #[test]
    fn a_seed_changes_the_cuts() {
        let bytes = sample::disk(&(1..1000).collect::<Vec<_>>());
        let cut = |seed| {
            let pieces: Vec<_> =
                DiskChunker::new(DiskParams::default(), seed).unwrap().window(&bytes).unwrap().collect();
            chunks(&pieces)
        };
        assert_ne!(cut(1), cut(2));
    }

    #[test]
    fn only_sensible_parameters_are_taken() {
        let good = DiskParams::default();
        assert!(good.validate().is_ok());
        assert!(DiskParams { window: 1 << 20, ..good }.validate().is_ok());
        assert!(DiskParams { window: 64 << 20, ..good }.validate().is_ok());
        assert!(DiskParams { min: 12 << 10, max: 260 << 10, ..good }.validate().is_ok());
        for block in [0, 512, 8192] {
            assert_eq!(DiskParams { block, ..good }.validate().unwrap_err().kind(), Kind::Unsupported, "{block}");
        }
        for bad in [
            DiskParams { min: 0, ..good },
            DiskParams { min: 6 << 10, ..good },
            DiskParams { min: 128 << 10, ..good },
            DiskParams { mean: 60 << 10, ..good },
            DiskParams { mean: 0, ..good },
            DiskParams { max: 32 << 10, ..good },
            DiskParams { max: (64 << 10) + 1, ..good },
            DiskParams { max: 2 << 20, window: 1 << 20, ..good },
            DiskParams { window: 512 << 10, ..good },
            DiskParams { window: 128 << 20, ..good },
            DiskParams { window: 3 << 20, ..good },
        ] {
            assert_eq!(bad.validate().unwrap_err().kind(), Kind::Invalid, "{bad:?}");
            assert!(DiskChunker::new(bad, 0).is_err());
        }
    }

    #[test]
    fn a_window_is_whole_blocks_and_no_more_than_a_window() {
        let chunker = DiskChunker::new(DiskParams { window: 1 << 20, ..DiskParams::default() }, 0).unwrap();
        let bytes = vec![1u8; (1 << 20) + BLOCK];
        assert_eq!(chunker.window(&bytes[..BLOCK + 512]).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(chunker.window(&bytes).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(chunker.window(&bytes[..1 << 20]).unwrap().count(), 4);
        assert_eq!(chunker.window(&[]).unwrap().count(), 0);
    }

    #[test]
    fn what_is_shown_betrays_no_seed() {
        let chunker = DiskChunker::new(DiskParams::default(), 0x1234_5678_9abc_def0).unwrap();
        let shown = format!("{chunker:?}");
        assert!(!shown.contains(&0x1234_5678_9abc_def0u64.to_string()) && !shown.contains("9abc"), "{shown}");
    }
}
