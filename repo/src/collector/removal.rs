//! Removes objects, and finds out which packs the store would not let go: what is locked waits, and is no failure.
//!
//! Not here: whether an object may go. What holds: the store decides, by its own clock. Packs that it says beforehand it would keep
//! are left alone altogether: they are neither condemned nor copied out of, so that backups may come to rely on them again.

use super::CollectReport;
use super::stock::{Item, Lies};
use crate::backend::lock::Kept;
use crate::crew::Crew;
use crate::error::{Kind, Result};
use crate::id::PackUid;
use crate::pack;
use crate::repository::Repository;
use crate::time::Timestamp;
use std::collections::HashMap;

/// What would go if it were not locked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// How many objects.
    pub objects: u64,
    /// Their bytes, or of packs that are needed in part those that are not; small records count nothing.
    pub bytes: u64,
    /// When the first of them may go, where the store told.
    pub first: Option<Timestamp>,
    /// When the last of them may.
    pub last: Option<Timestamp>,
}

impl Waiting {
    pub(super) fn add(&mut self, bytes: u64, until: Option<Timestamp>) {
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.first = self.first.into_iter().chain(until).min();
        self.last = self.last.max(until);
    }
}

/// Removes an object, of which `bytes` become free. Whether it is gone: one that is locked is counted in the report.
pub(super) fn remove(repo: &Repository, name: &str, bytes: u64, report: &mut CollectReport) -> Result<bool> {
    removed(repo, name, bytes, repo.backend().delete(name), report)
}

/// The same of a pack, where it was listed and nowhere else: whoever moved it since made a copy that was not decided about.
pub(super) fn remove_pack(repo: &Repository, item: &Item, report: &mut CollectReport) -> Result<bool> {
    let name = pack::name(item.kind, item.uid);
    let deleted = match (repo.backend().tiers(), item.lies) {
        (Some(tiered), Lies::Home) => tiered.home().delete(&name),
        (Some(tiered), Lies::Cold) => tiered.delete_in_tiers(&name),
        (Some(_), Lies::Both) | (None, _) => repo.backend().delete(&name),
    };
    removed(repo, &name, item.bytes, deleted, report)
}

fn removed(repo: &Repository, name: &str, bytes: u64, deleted: Result<()>, report: &mut CollectReport) -> Result<bool> {
    match deleted {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == Kind::Retained => {
            // For people: who may not ask is told of no date.
            let kept = repo.backend().object_lock().and_then(|lock| lock.kept(name).ok().flatten());
            report.waiting.add(bytes, kept.and_then(|kept| kept.until));
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// Which of these packs the store would keep now, and until when.
pub(super) fn kept<'i>(
    repo: &Repository,
    mut packs: impl Iterator<Item = &'i Item>,
    crew: Crew<'_>,
) -> Result<HashMap<PackUid, Kept>> {
    let Some(lock) = repo.backend().object_lock() else { return Ok(HashMap::new()) };
    match lock.check() {
        Err(e) if e.kind() == Kind::Unsupported => return Ok(HashMap::new()),
        other => other?,
    }
    let ask = |item: Item, found: &mut HashMap<PackUid, Kept>| {
        match lock.kept(&pack::name(item.kind, item.uid)) {
            Ok(kept) => found.extend(kept.map(|kept| (item.uid, kept))),
            // Another collector was faster.
            Err(e) if e.kind() == Kind::NotFound => {}
            Err(e) => return Err(e),
        }
        Ok(())
    };
    let parts = crew.run(|| Ok(HashMap::new()), ask, |hand| packs.try_for_each(|item| hand(*item)))?;
    Ok(parts.into_iter().flatten().collect())
}
