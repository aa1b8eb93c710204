//! A cache with a byte budget, and one flight per missing value: what nodes and chunks are kept in.
//!
//! Not here: what is cached. What holds: the sum of weights stays at the budget; a value that several threads miss is made by
//! one of them while the others wait for it (see [`quick_cache::sync::Cache::get_value_or_guard`]).

use crate::disk_map::Node;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::hash::Hash;
use std::sync::Arc;

/// Bytes that the cache itself takes for an entry, about.
const OVERHEAD: u64 = 128;

/// Weighs values by their bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weighed;

impl<K> Weighter<K, Arc<Node>> for Weighed {
    fn weight(&self, _: &K, value: &Arc<Node>) -> u64 {
        value.weight() + OVERHEAD
    }
}

impl<K> Weighter<K, Arc<[u8]>> for Weighed {
    fn weight(&self, _: &K, value: &Arc<[u8]>) -> u64 {
        value.len() as u64 + OVERHEAD
    }
}

/// A cache of `budget` bytes whose values have about `typical` bytes.
pub(crate) fn weighed<K: Eq + Hash, V: Clone>(budget: u64, typical: u64) -> Cache<K, V, Weighed>
where
    Weighed: Weighter<K, V>,
{
    let items = usize::try_from(budget / typical.max(1)).unwrap_or(usize::MAX).clamp(16, 1 << 24);
    Cache::with_weighter(items, budget, Weighed)
}
