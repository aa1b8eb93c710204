//! The last steps of a backup: claim, check, decision. The order is the safety argument (design, section 2).
//!
//! Not here: what the claim holds. What holds: tombstones are read before existence; the check covers every pack that the claim
//! relies on but for subtrees of parents, whose own check covers them as long as they are not forgotten; the decision is
//! put-if-absent, so that a writer that wakes up after a janitor revoked it fails loudly.

use super::Writer;
use crate::backend::list_sorted;
use crate::cbor::Map;
use crate::error::{Error, Kind, Result};
use crate::id::PackUid;
use crate::location::PackKind;
use crate::sealed::ObjectKind;
use crate::snapshot::{Claim, ClaimKind, ClaimName, ClaimStats, Condemned, Decision, Snapshot};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering::Relaxed;

/// Up to so many packs under one prefix are asked for one by one; more by a listing.
const ASK_SINGLY: usize = 4;

impl Writer {
    /// Makes the snapshot count. A dry run returns what would have been, and stores nothing.
    pub fn commit(mut self, tags: Vec<String>) -> Result<Snapshot> {
        if self.disks.is_empty() {
            return Err(Error::invalid("a snapshot without disks"));
        }
        self.packer.finish()?;
        let stats = ClaimStats {
            read: self.progress.read.load(Relaxed),
            new_chunks: self.progress.new_chunks.load(Relaxed),
            new_raw: self.progress.new_raw.load(Relaxed),
            new_stored: self.progress.new_stored.load(Relaxed),
        };
        let parents: Vec<_> = self.parent.iter().map(Snapshot::id).collect();
        let claim = Claim {
            kind: ClaimKind::Snapshot { disks: self.disks.clone(), stats },
            time: self.time,
            workload: self.workload.clone(),
            tags: tags.clone(),
            identity: self.identity.clone(),
            parents: parents.clone(),
            extra: Map::new(),
        };
        let name = if self.options.dry_run {
            let tag = self.repo.keys().id_key().workload_tag(&self.workload);
            ClaimName { tag, time: self.time, id: Default::default() }
        } else {
            let name = self.repo.put_claim(&claim)?;
            self.check()?;
            self.decide(name)?;
            name
        };
        let Writer { workload, identity, disks, .. } = self;
        Ok(Snapshot { name, workload, tags, identity, parents, disks, stats })
    }

    /// Sees that everything the claim relies on is there, now that collectors can see the claim.
    fn check(&self) -> Result<()> {
        if let Some(parent) = &self.parent {
            if self.repo.is_forgotten(parent.id())? {
                return Err(lost(format!("its parent {}@{} was forgotten", parent.workload, parent.time())));
            }
            if self.repo.backend().size(&parent.name.claim())?.is_none() {
                return Err(lost(format!("its parent {}@{} is gone", parent.workload, parent.time())));
            }
        }
        let condemned = self.condemned()?;
        let mut by_prefix: BTreeMap<String, Vec<(String, PackUid)>> = BTreeMap::new();
        for (kind, uid) in self.packer.relied_on() {
            if condemned.contains(uid) {
                return Err(self.drop_lost(*kind, *uid, "is being collected"));
            }
            let name = crate::pack::name(*kind, *uid);
            let prefix = name.rsplit_once('/').map_or(String::new(), |(prefix, _)| format!("{prefix}/"));
            by_prefix.entry(prefix).or_default().push((name, *uid));
        }
        for (prefix, packs) in by_prefix {
            let kind = if prefix.starts_with(PackKind::Data.prefix()) { PackKind::Data } else { PackKind::Tree };
            let mut missing: HashSet<&str> = packs.iter().map(|(name, _)| name.as_str()).collect();
            if packs.len() <= ASK_SINGLY {
                for (name, _) in &packs {
                    if self.repo.backend().size(name)?.is_some() {
                        missing.remove(name.as_str());
                    }
                }
            } else {
                self.repo.backend().list(&prefix, &mut |object| {
                    missing.remove(object.name.as_str());
                    Ok(())
                })?;
            }
            if let Some((_, uid)) = packs.iter().find(|(name, _)| missing.contains(name.as_str())) {
                return Err(self.drop_lost(kind, *uid, "is gone"));
            }
        }
        Ok(())
    }

    /// The packs that any visible record condemns.
    fn condemned(&self) -> Result<HashSet<PackUid>> {
        let mut packs = HashSet::new();
        for object in list_sorted(self.repo.backend(), Condemned::PREFIX)? {
            match self.repo.get_record(ObjectKind::Condemned, &object.name) {
                Ok(record) => packs.extend(Condemned::decode(&record.body).map_err(|e| e.within(&object.name))?.packs),
                // Purged between the listing and now: what it condemned is gone, and existence is looked at next.
                Err(e) if e.kind() == Kind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(packs)
    }

    /// Makes the index forget a pack that is lost, so that the next run stores its chunks again.
    fn drop_lost(&self, kind: PackKind, uid: PackUid, what: &str) -> Error {
        let e = lost(format!("{} {what}", crate::pack::name(kind, uid)));
        match self.index.drop_packs(&[uid]) {
            Ok(()) => e,
            Err(cause) => e.with_source(cause),
        }
    }

    fn decide(&self, name: ClaimName) -> Result<()> {
        match self.repo.decide(name, Decision::Commit)? {
            Decision::Commit => Ok(()),
            Decision::Revoke => Err(lost("the janitor took it for dead and revoked it".to_owned())),
        }
    }
}

fn lost(why: String) -> Error {
    Error::new(
        Kind::Unavailable,
        format!("the backup was not committed: {why}; run it again, what was uploaded is reused"),
    )
}
