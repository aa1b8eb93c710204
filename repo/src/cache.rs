//! A cache with a byte budget, and one flight per missing value: what nodes and chunks are kept in.
//!
//! Not here: what is cached. What holds: the sum of weights stays at the budget; a value that several threads miss is made by
//! one of them while the others wait for it (see [`quick_cache::sync::Cache::get_value_or_guard`]).

use crate::disk_map::Node;
use crate::error::{Error, Result};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
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

impl<K> Weighter<K, Arc<Vec<u8>>> for Weighed {
    fn weight(&self, _: &K, value: &Arc<Vec<u8>>) -> u64 {
        value.capacity() as u64 + OVERHEAD
    }
}

/// The part of the budget that values may take which were asked for again and again. The rest belongs to new ones: what is
/// fetched ahead must survive until it is read, while old chunks of a sequential reader look wanted, being read in pieces.
const HOT: f64 = 0.5;

/// A cache of `budget` bytes whose values have about `typical` bytes.
pub(crate) fn weighed<K: Eq + Hash, V: Clone>(budget: u64, typical: u64) -> Result<Cache<K, V, Weighed>>
where
    Weighed: Weighter<K, V>,
{
    let items = usize::try_from(budget / typical.max(1)).unwrap_or(usize::MAX).clamp(16, 1 << 24);
    let options = OptionsBuilder::new()
        .estimated_items_capacity(items)
        .weight_capacity(budget)
        .hot_allocation(HOT)
        .build()
        .map_err(|e| Error::internal("making a cache").with_source(e))?;
    Ok(Cache::with_options(options, Weighed, DefaultHashBuilder::default(), DefaultLifecycle::default()))
}
