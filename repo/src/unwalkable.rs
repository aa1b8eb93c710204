//! Points whose maps cannot be walked to their end, gathered by the threads that walk them.
//!
//! Not here: what follows from it ([`crate::collector`], [`crate::locks`]). What holds: a point is named once, with the first reason;
//! only damage and absence are tolerated.

use crate::error::{Error, Kind, Result};
use crate::snapshot::ClaimName;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Claims whose maps cannot be walked, and why.
#[derive(Debug, Default)]
pub(crate) struct Unwalkable(Mutex<Vec<(ClaimName, Error)>>);

impl Unwalkable {
    /// Notes what keeps a map from being walked; everything else ends the walk.
    pub(crate) fn tolerate(&self, claim: ClaimName, result: Result<()>) -> Result<()> {
        match result {
            Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::NotFound) => {
                let mut list = self.list();
                if !list.iter().any(|(name, _)| *name == claim) {
                    list.push((claim, e));
                }
                Ok(())
            }
            other => other,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list().is_empty()
    }

    pub(crate) fn names(&self) -> Vec<ClaimName> {
        self.list().iter().map(|(name, _)| *name).collect()
    }

    pub(crate) fn into_list(self) -> Vec<(ClaimName, Error)> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(&self) -> MutexGuard<'_, Vec<(ClaimName, Error)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
