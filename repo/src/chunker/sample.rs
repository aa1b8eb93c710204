//! Synthetic disks for the tests of chunking: a disk is a list of block numbers, and a block's number is its content.
//!
//! Not here: anything random. What holds: number 0 is the zero block, equal numbers are equal blocks, and every sixteenth
//! block has zeroes but for its last bytes, which is where a careless test for zero fails.

use super::{BLOCK, DiskParams};
use crate::zero::is_zero;
use proptest::prelude::*;
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// `count` bytes that look random and depend on `seed` alone.
pub(super) fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// The block with this number.
fn block(number: u64) -> Vec<u8> {
    match number {
        0 => vec![0; BLOCK],
        n if n.is_multiple_of(16) => [vec![0; BLOCK - 8], n.to_le_bytes().to_vec()].concat(),
        n => noise(n, BLOCK),
    }
}

/// The disk with these blocks.
pub(super) fn disk(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|&number| block(number)).collect()
}

/// Disks of at most a window of 1 MiB: runs of zero blocks, of different blocks, and of one block over and over.
pub(super) fn disks() -> impl Strategy<Value = Vec<u64>> {
    let run = prop_oneof![
        2 => (1usize..20).prop_map(|length| vec![0; length]),
        5 => (any::<u32>(), 1usize..80).prop_map(|(first, length)| (0..).map(|i| u64::from(first) + i).take(length).collect()),
        1 => (1u64..1000, 1usize..150).prop_map(|(number, length)| vec![number; length]),
    ];
    prop::collection::vec(run, 0..12).prop_map(|runs: Vec<Vec<u64>>| runs.into_iter().flatten().take(256).collect())
}

/// Parameters with a window of 1 MiB, the format's own among them.
pub(super) fn params() -> impl Strategy<Value = DiskParams> {
    (0u32..=5, 0u32..=6, 0u32..=40).prop_map(|(mean, min, above)| {
        let mean = 1 << mean;
        let min = 1 + min.min(mean - 1);
        let blocks = |count: u32| count * 4096;
        DiskParams { block: 4096, min: blocks(min), mean: blocks(mean), max: blocks(mean + above), window: 1 << 20 }
    })
}

/// The chunks of one window, in blocks, by section 6.1 read word for word.
pub(super) fn reference(params: &DiskParams, seed: u64, window: &[u8]) -> Vec<Range<usize>> {
    let bits = (params.mean / params.block).ilog2();
    let mut chunks = Vec::new();
    let mut start = None;
    for (at, block) in window.chunks(BLOCK).enumerate() {
        if is_zero(block) {
            chunks.extend(start.take().map(|start| start..at));
            continue;
        }
        let first = *start.get_or_insert(at);
        let size = (at + 1 - first) * BLOCK;
        let hit = xxh3_64_with_seed(block, seed).trailing_zeros() >= bits;
        if size == params.max as usize || (hit && size >= params.min as usize) {
            chunks.extend(start.take().map(|start| start..at + 1));
        }
    }
    chunks.extend(start.map(|start| start..window.len() / BLOCK));
    chunks
}
