//! Stores that promise less than the contract: for tests of the probe and of what is built on its answer.
//!
//! Not here: what a flow does about it. What holds: a weak store breaks the promises that its [`Weakness`] names and no others; by
//! which operation follows from counts alone.

// A harness speaks by failing.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, Listed, Put};
use coffer_repo::store_class::StoreClass;
use coffer_repo::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// What a store does not keep. The default keeps everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weakness {
    /// Every so many puts of a name that is taken replace what is there, and say that they created it. 0: none.
    pub overwrites_one_in: u64,
    /// Every so many objects are missing from the first listing after their put. 0: none.
    pub unlisted_one_in: u64,
    /// Every so many objects are still in the first listing after they were deleted. 0: none.
    pub ghosts_one_in: u64,
    /// Whoever looked for a name in vain goes on not to see it for one more look.
    pub remembers_absence: bool,
    /// Whether it says of itself that it lags.
    pub is_known: bool,
}

/// A store in memory with a weakness.
#[derive(Debug, Default)]
pub struct Weak {
    memory: Memory,
    weakness: Weakness,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    replaced: u64,
    created: u64,
    deleted: u64,
    /// In how many listings more an object is missing.
    unlisted: BTreeMap<String, u32>,
    /// Deleted objects that are listed once more.
    ghosts: BTreeMap<String, u64>,
    /// Names that were looked for in vain.
    absent: BTreeMap<String, u32>,
}

/// Whether the nth of all is one of every `one_in`.
fn is_due(counter: &mut u64, one_in: u64) -> bool {
    *counter += 1;
    one_in > 0 && counter.is_multiple_of(one_in)
}

impl Weak {
    /// An empty one.
    #[must_use]
    pub fn new(weakness: Weakness) -> Self {
        Weak { weakness, ..Weak::default() }
    }

    /// Whether this look finds nothing since the one before did not.
    fn is_overlooked(&self, name: &str) -> bool {
        let mut state = self.state.lock().unwrap();
        match state.absent.get_mut(name) {
            Some(0) | None => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    fn look<T>(&self, name: &str, look: impl FnOnce(&Memory) -> Result<T>) -> Result<T> {
        if self.weakness.remembers_absence {
            if self.is_overlooked(name) {
                return Err(Error::not_found(format!("there is no object '{name}', as far as is remembered")));
            }
            if self.memory.size(name)?.is_none() {
                self.state.lock().unwrap().absent.insert(name.to_owned(), 1);
            }
        }
        look(&self.memory)
    }
}

impl Backend for Weak {
    fn location(&self) -> String {
        "weak".to_owned()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        let mut state = self.state.lock().unwrap();
        if self.memory.put(name, parts)? == Put::Created {
            if is_due(&mut state.created, self.weakness.unlisted_one_in) {
                state.unlisted.insert(name.to_owned(), 1);
            }
            return Ok(Put::Created);
        }
        if !is_due(&mut state.replaced, self.weakness.overwrites_one_in) {
            return Ok(Put::Exists);
        }
        self.memory.replace(name, parts)?;
        Ok(Put::Created)
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.look(name, |memory| memory.get(name))
    }

    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        self.look(name, |memory| memory.get_range(name, offset, out))
    }

    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        self.look(name, |memory| memory.get_suffix(name, max))
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        if self.weakness.remembers_absence && self.is_overlooked(name) {
            return Ok(None);
        }
        self.memory.size(name)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        let mut listed = coffer_repo::backend::list_sorted(&self.memory, prefix)?;
        {
            let mut state = self.state.lock().unwrap();
            listed.retain(|object| match state.unlisted.get_mut(&object.name) {
                Some(left @ 1..) => {
                    *left -= 1;
                    false
                }
                _ => true,
            });
            let ghosts: Vec<String> = state.ghosts.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
            for name in ghosts {
                let size = state.ghosts.remove(&name).unwrap();
                listed.push(Listed { name, size });
            }
        }
        listed.into_iter().try_for_each(each)
    }

    fn delete(&self, name: &str) -> Result<()> {
        let size = self.memory.size(name)?;
        self.memory.delete(name)?;
        let mut state = self.state.lock().unwrap();
        if let Some(size) = size
            && is_due(&mut state.deleted, self.weakness.ghosts_one_in)
        {
            state.ghosts.insert(name.to_owned(), size);
        }
        Ok(())
    }

    fn weakness(&self) -> Option<(StoreClass, String)> {
        self.weakness.is_known.then(|| (StoreClass::Lagging, "it says so itself".to_owned()))
    }
}
