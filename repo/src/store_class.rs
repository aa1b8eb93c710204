//! What a store can be relied on for, and what follows from it.
//!
//! ```text
//!   strong        a name is put once and for all; what was put or deleted is seen by everybody at once
//!   overwriting   the last put of a name counts, and nobody is told         decisions take two looks more (register.rs)
//!   lagging       listings or reads may show what was                       garbage is not collected
//! ```
//! A probe ([`crate::probe`]) finds it out, and an object without content under `features/` says so to everybody from then on:
//! names alone count, so that opening a repository reads nothing more. A version that does not know the two weaker ones only reads.
//!
//! Not here: finding it out. What holds: of several that are recorded the weakest counts, and none is ever removed, so that a
//! later probe can only weaken; a repository that nobody probed counts as on a strong store.

use crate::backend::{Backend, Put, list_sorted};
use crate::error::{Error, Kind, Result};
use crate::repository::Repository;
use std::fmt;

/// From the one that promises most to the one that promises least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoreClass {
    /// Of several puts of a name one counts and the others are told; what was put or deleted is seen by everybody at once.
    Strong,
    /// As strong, but the last put of a name replaces the others, or several are told that theirs counts.
    Overwriting,
    /// Listings, or reads, may show for a while what was.
    Lagging,
}

impl StoreClass {
    /// All of them.
    pub const ALL: [StoreClass; 3] = [StoreClass::Strong, StoreClass::Overwriting, StoreClass::Lagging];

    /// The object that records it.
    #[must_use]
    pub fn feature(self) -> &'static str {
        match self {
            StoreClass::Strong => "features/compat-store-strong",
            StoreClass::Overwriting => "features/rocompat-store-overwriting",
            StoreClass::Lagging => "features/rocompat-store-lagging",
        }
    }

    /// The class that the object `name` records.
    #[must_use]
    pub fn of_feature(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.feature() == name)
    }

    /// What it means for whoever uses the repository.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            StoreClass::Strong => "the store does what Coffer asks of it: backups, gc and everything else work on it",
            StoreClass::Overwriting => {
                "a put can replace an object instead of being refused (the store has no put-if-absent): backups and gc work, a \
                 commit takes two requests more, and data keys cannot be rotated"
            }
            StoreClass::Lagging => {
                "what is listed or read can be what was (the store is not consistent): backups, mounts, exports and restores \
                 work, gc and the rotation of data keys do not"
            }
        }
    }

    /// Says so in the store, which need not hold a repository yet.
    pub fn record(self, backend: &dyn Backend) -> Result<()> {
        let (Put::Created | Put::Exists) = backend.put(self.feature(), &[])?;
        Ok(())
    }

    /// The weakest that the store says it is.
    pub fn recorded(backend: &dyn Backend) -> Result<Option<Self>> {
        let listed = list_sorted(backend, "features/")?;
        Ok(listed.iter().filter_map(|object| Self::of_feature(&object.name)).max())
    }
}

impl fmt::Display for StoreClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StoreClass::Strong => "strong",
            StoreClass::Overwriting => "overwriting",
            StoreClass::Lagging => "lagging",
        })
    }
}

impl Repository {
    /// Fails where collecting could remove what is needed.
    pub fn check_collectable(&self) -> Result<()> {
        if self.store_class() != Some(StoreClass::Lagging) {
            return Ok(());
        }
        Err(Error::new(
            Kind::Unsupported,
            format!(
                "garbage is not collected in {}: a probe found it to be of the class 'lagging', whose listings or reads may show \
                 what was, so that a pack which a new backup needs could be taken for garbage, or one that is gone for stored. \
                 Backups, mounts and restores go on as before. To free space, move the points that are to stay to a store of \
                 the class 'strong', one that lists what was put at once ('coffer probe' tells), and remove this one",
                self.backend().location()
            ),
        ))
    }

    /// Fails where two who begin the same thing at once could both be told that they were first.
    pub(crate) fn check_register(&self, purpose: &str) -> Result<()> {
        match self.store_class() {
            None | Some(StoreClass::Strong) => Ok(()),
            Some(class) => Err(Error::new(
                Kind::Unsupported,
                format!(
                    "it is not possible to {purpose} in {}: a probe found it to be of the class '{class}', where two who do so at \
                     once would not learn of each other. Use a store with put-if-absent ('coffer probe' tells)",
                    self.backend().location()
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::memory::Memory;

    #[test]
    fn the_weakest_that_was_recorded_counts() {
        let store = Memory::default();
        assert_eq!(StoreClass::recorded(&store).unwrap(), None);
        for (recorded, counts) in [
            (StoreClass::Strong, StoreClass::Strong),
            (StoreClass::Lagging, StoreClass::Lagging),
            (StoreClass::Overwriting, StoreClass::Lagging),
            (StoreClass::Lagging, StoreClass::Lagging),
        ] {
            recorded.record(&store).unwrap();
            assert_eq!(StoreClass::recorded(&store).unwrap(), Some(counts));
        }
        for class in StoreClass::ALL {
            assert_eq!(StoreClass::of_feature(class.feature()), Some(class));
        }
    }
}
