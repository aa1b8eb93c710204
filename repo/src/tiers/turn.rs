//! Whose turn it is: packs go into a tier, or home from it, and never both at once.
//!
//! ```text
//!   PUT transfers/<tier>/<record>-in | -out  ->  LIST transfers/<tier>/  ->  somebody goes the other way? -> DELETE own, Locked
//!   ...                                                                      DELETE own
//! ```
//! Who moves removes a pack at home since it lies in the tier, and who recalls removes it in the tier since it lies at home: both at once
//! would remove both. Of two who begin, each puts before it lists, so that at least one sees the other. Any number may go the same way.
//!
//! Not here: moving. What holds: no clock decides that somebody is dead. What a killed process left stands in the way of the other
//! direction until a person says that nobody moves any more ([`super::TransferOptions::take_over`]).

use crate::backend::{Backend, Put, list_sorted};
use crate::entropy::fresh;
use crate::error::{Error, Kind, Result};
use crate::id::RecordId;
use crate::repository::Repository;
use crate::tier::TierName;
use std::fmt;

/// Which way packs go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    In,
    Out,
}

impl fmt::Display for Course {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Course::In => "in",
            Course::Out => "out",
        })
    }
}

/// While it lives nobody goes the other way.
pub(super) struct Turn<'a> {
    home: &'a dyn Backend,
    name: String,
}

impl<'a> Turn<'a> {
    /// Takes the turn. `Locked` while somebody goes the other way; with `takes_over` whoever did so is gone.
    pub(super) fn take(repo: &'a Repository, tier: &TierName, course: Course, takes_over: bool) -> Result<Turn<'a>> {
        let home = repo.backend();
        let prefix = format!("transfers/{tier}/");
        let other = match course {
            Course::In => Course::Out,
            Course::Out => Course::In,
        };
        let opposed = || -> Result<Vec<String>> {
            let names = list_sorted(home, &prefix)?.into_iter().map(|object| object.name);
            Ok(names.filter(|name| name.ends_with(&format!("-{other}"))).collect())
        };
        if takes_over {
            opposed()?.iter().try_for_each(|name| home.delete(name))?;
        }
        let name = format!("{prefix}{}-{course}", RecordId(fresh(repo.entropy())?));
        let turn = Turn { home, name };
        // From here on it is removed whatever happens, be it that the put failed and is there nevertheless.
        let (Put::Created | Put::Exists) = home.put(&turn.name, &[])?;
        match opposed()?.first() {
            None => Ok(turn),
            Some(name) => {
                let (does, what) = match course {
                    Course::In => ("recalls packs from", "move"),
                    Course::Out => ("moves packs into", "recall"),
                };
                let why = format!(
                    "somebody {does} the cold tier '{tier}' ({name}); if that was interrupted and runs no more, anywhere, \
                     'coffer tier {what} --take-over' goes on"
                );
                Err(Error::new(Kind::Locked, why))
            }
        }
    }
}

impl Drop for Turn<'_> {
    /// Ends the turn as well as can be.
    fn drop(&mut self) {
        let _ = self.home.delete(&self.name);
    }
}
