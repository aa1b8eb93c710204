//! Which data packs no recent point needs, and some older one does.
//!
//! ```text
//!   points, the newest first -> their packs (needs), and those that moved records lead to (trail) -> the newest point of each
//! ```
//!
//! Not here: moving them. What holds: a pack counts as needed by a point when anything in it is; who cannot read a point to its end names
//! it, and goes by what was read. Memory: as `locks/needs.rs` says.

use crate::crew::Crew;
use crate::error::{Error, Result};
use crate::id::PackUid;
use crate::location::PackKind;
use crate::lock_for::Due;
use crate::locks::{needs, trail};
use crate::repository::Repository;
use crate::snapshot::{ClaimName, Snapshot};
use crate::time::Timestamp;
use std::collections::HashSet;
use std::sync::Arc;

/// What is old.
pub(super) struct Choice {
    /// Data packs; not all of them need to be there.
    pub(super) old: HashSet<PackUid>,
    /// Points that cannot be read to their end.
    pub(super) unreadable: Vec<(ClaimName, Error)>,
    /// Whether any point asks for locks.
    pub(super) asks_for_locks: bool,
}

/// The data packs whose newest point is of `before` or older.
pub(super) fn choose(repo: &Arc<Repository>, before: Timestamp, crew: Crew<'_>) -> Result<Choice> {
    let points = repo.points()?;
    let mut newest_first: Vec<(&Snapshot, Due)> =
        points.snapshots.iter().map(|point| (point, Due::at(point.time()))).collect();
    newest_first.sort_by_key(|(point, due)| (std::cmp::Reverse(*due), point.name));
    let (mut packs, unwalkable) = needs::gather(repo, &newest_first, crew)?;
    trail::follow(repo, &mut packs)?;
    let old = packs.iter().filter(|(kind, _, due)| *kind == PackKind::Data && due.least <= before);
    let mut unreadable = points.damaged;
    unreadable.extend(unwalkable.into_list());
    Ok(Choice {
        old: old.map(|(_, uid, _)| uid).collect(),
        unreadable,
        asks_for_locks: points.snapshots.iter().any(|point| point.lock_for.is_some()),
    })
}
