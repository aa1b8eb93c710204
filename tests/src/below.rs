//! A store in a part of another one: all of its objects have a prefix there. So two stores of one test take turns in one simulation.
//!
//! Not here: what is stored. What holds: it is as good a store as the other one.

use coffer_repo::Result;
use coffer_repo::backend::{Backend, Listed, Put};
use std::sync::Arc;

/// The part of a store whose names begin with a prefix.
#[derive(Clone, Debug)]
pub struct Below {
    store: Arc<dyn Backend>,
    /// With its slash.
    prefix: String,
}

impl Below {
    /// The part of `store` below the folder `name`.
    #[must_use]
    pub fn new(store: Arc<dyn Backend>, name: &str) -> Below {
        Below { store, prefix: format!("{name}/") }
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl Backend for Below {
    fn location(&self) -> String {
        format!("{}/{}", self.store.location(), self.prefix)
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        self.store.put(&self.name(name), parts)
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.store.get(&self.name(name))
    }

    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        self.store.get_range(&self.name(name), offset, out)
    }

    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        self.store.get_suffix(&self.name(name), max)
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        self.store.size(&self.name(name))
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        self.store.list(&self.name(prefix), &mut |Listed { name, size }| {
            each(Listed { name: name.strip_prefix(&self.prefix).unwrap_or_default().to_owned(), size })
        })
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.store.delete(&self.name(name))
    }
}
