//! Any store, with a count of what is asked of it: for tests of how much a flow needs, and what.
//!
//! Not here: what is too much. What holds: calls are passed on unchanged.

// A harness speaks by failing.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use coffer_repo::Result;
use coffer_repo::backend::archive::Archive;
use coffer_repo::backend::lock::ObjectLock;
use coffer_repo::backend::{Backend, Listed, Put};
use coffer_repo::store_class::StoreClass;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A store that counts.
#[derive(Debug)]
pub struct Counting<B> {
    inner: B,
    reads: AtomicU64,
    sizes: AtomicU64,
    lists: AtomicU64,
    found: Mutex<BTreeSet<String>>,
}

/// What was asked so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Objects or parts of objects read, and sizes asked for.
    pub reads: u64,
    /// Of those, sizes.
    pub sizes: u64,
    /// Listings.
    pub lists: u64,
}

impl<B> Counting<B> {
    /// Counts what is asked of `inner`.
    pub fn new(inner: B) -> Self {
        Counting {
            inner,
            reads: AtomicU64::new(0),
            sizes: AtomicU64::new(0),
            lists: AtomicU64::new(0),
            found: Mutex::default(),
        }
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts { reads: load(&self.reads), sizes: load(&self.sizes), lists: load(&self.lists) }
    }

    /// The names of the objects of which something was read.
    pub fn found(&self) -> BTreeSet<String> {
        self.found.lock().unwrap().clone()
    }

    fn read<T>(&self, name: &str, read: impl FnOnce(&B) -> Result<T>) -> Result<T> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let read = read(&self.inner)?;
        self.found.lock().unwrap().insert(name.to_owned());
        Ok(read)
    }
}

impl<B: Backend> Backend for Counting<B> {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        self.inner.put(name, parts)
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.read(name, |inner| inner.get(name))
    }

    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        self.read(name, |inner| inner.get_range(name, offset, out))
    }

    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        self.read(name, |inner| inner.get_suffix(name, max))
    }

    fn get_up_to(&self, name: &str, offset: u64, max: usize) -> Result<(Vec<u8>, u64)> {
        self.read(name, |inner| inner.get_up_to(name, offset, max))
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.sizes.fetch_add(1, Ordering::Relaxed);
        self.inner.size(name)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        self.lists.fetch_add(1, Ordering::Relaxed);
        self.inner.list(prefix, each)
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.inner.delete(name)
    }

    fn weakness(&self) -> Option<(StoreClass, String)> {
        self.inner.weakness()
    }

    fn object_lock(&self) -> Option<&dyn ObjectLock> {
        self.inner.object_lock()
    }

    fn archive(&self) -> Option<&dyn Archive> {
        self.inner.archive()
    }
}
