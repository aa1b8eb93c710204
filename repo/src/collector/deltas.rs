//! Merges index deltas that are small or name packs that are gone.
//!
//! ```text
//!   read the listed deltas -> those that count -> small or naming what is gone: rewritten into a few large ones, which
//!   supersede them -> what was superseded before this run is deleted
//! ```
//!
//! Not here: the local index, which learns from deltas. What holds: a delta is superseded only by one that is durable and took
//! over everything it says of packs that exist; superseded deltas are deleted one run later, so that who lists them now can
//! still read them; memory is two deltas of [`MOST`] entries.

use super::removal::remove;
use super::stock::Stock;
use super::{CollectOptions, CollectReport};
use crate::error::{Kind, Result};
use crate::index_delta::{self, IndexDelta};
use crate::repository::Repository;
use crate::sealed::ObjectKind;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Entries of a merged delta: 7 MiB.
pub(super) const MOST: usize = 256 << 10;
/// A delta of fewer entries is small.
const SMALL: usize = MOST / 4;
/// So many deltas are left alone.
const FEW: usize = 8;

/// The deltas that were listed before the packs were.
#[derive(Debug)]
pub(super) struct Deltas {
    sizes: BTreeMap<String, u64>,
}

impl Deltas {
    pub(super) fn list(repo: &Repository) -> Result<Self> {
        let mut sizes = BTreeMap::new();
        repo.backend().list(index_delta::PREFIX, &mut |object| {
            if index_delta::parse_name(&object.name).is_some() {
                sizes.insert(object.name, object.size);
            }
            Ok(())
        })?;
        Ok(Deltas { sizes })
    }

    /// Merges what is worth it. `stock` was listed after the deltas were.
    pub(super) fn merge(
        &self,
        repo: &Repository,
        options: &CollectOptions,
        stock: &Stock,
        report: &mut CollectReport,
    ) -> Result<()> {
        if self.sizes.len() < FEW && report.removed.packs == 0 {
            return Ok(());
        }
        let (mut stale, mut small, mut superseded) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for name in self.sizes.keys() {
            let Some(delta) = read(repo, name)? else { continue };
            let entries: usize = delta.packs.iter().map(|pack| pack.entries.len()).sum();
            if delta.packs.iter().any(|pack| !stock.has(pack.uid)) {
                stale.insert(name.clone());
            } else if entries < SMALL {
                small.insert(name.clone());
            }
            superseded.extend(delta.superseded);
        }
        let mut due: BTreeSet<String> = stale.difference(&superseded).cloned().collect();
        let small: Vec<String> = small.difference(&superseded).cloned().collect();
        if small.len() >= FEW {
            due.extend(small);
        }
        superseded.retain(|name| self.sizes.contains_key(name));
        if options.dry_run {
            report.merged_deltas = due.len() as u64;
            return Ok(());
        }
        if !due.is_empty() {
            self.rewrite(repo, stock, &due, &superseded, report)?;
        }
        for name in &superseded {
            let size = self.sizes.get(name).copied().unwrap_or(0);
            if remove(repo, name, size, report)? {
                report.freed = report.freed.saturating_add_unsigned(size);
            }
        }
        Ok(())
    }

    /// Writes what `due` say of packs that exist into new deltas; the last one supersedes them all.
    fn rewrite(
        &self,
        repo: &Repository,
        stock: &Stock,
        due: &BTreeSet<String>,
        superseded: &BTreeSet<String>,
        report: &mut CollectReport,
    ) -> Result<()> {
        let (mut merged, mut entries, mut told) = (IndexDelta::default(), 0, HashSet::new());
        let mut taken: BTreeSet<&String> = superseded.iter().collect();
        let mut publish = |delta: IndexDelta| -> Result<()> {
            let name = repo.publish_delta(&delta)?;
            let size = repo.backend().size(&name)?.unwrap_or(0);
            report.freed = report.freed.saturating_sub_unsigned(size);
            Ok(())
        };
        for name in due {
            let Some(delta) = read(repo, name)? else { continue };
            taken.insert(name);
            // Two collectors that merged the same deltas leave two that say the same.
            for pack in
                delta.packs.into_iter().filter(|pack| stock.has(pack.uid) && told.insert((pack.uid, pack.signer)))
            {
                if entries + pack.entries.len() > MOST && entries > 0 {
                    publish(std::mem::take(&mut merged))?;
                    entries = 0;
                }
                entries += pack.entries.len();
                merged.packs.push(pack);
            }
        }
        merged.superseded = taken.into_iter().cloned().collect();
        publish(merged)?;
        report.merged_deltas = due.len() as u64;
        Ok(())
    }
}

/// A delta that counts; `None` when it is gone or damaged, which its readers find, too.
fn read(repo: &Repository, name: &str) -> Result<Option<IndexDelta>> {
    let record = match repo.get_record(ObjectKind::IndexDelta, name) {
        Ok(record) => record,
        Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Corrupt | Kind::Unsupported) => return Ok(None),
        Err(e) => return Err(e),
    };
    Ok(IndexDelta::counting(name, &record, &*repo.certificates_for(record.signer)?).ok())
}
