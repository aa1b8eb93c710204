//! The last steps of a backup: claim, check, decision. The order is the safety argument (design, section 2).
//!
//! Not here: what the claim holds; which objects are locked ([`super::lock`]): that comes after the check, which may fail, and before the
//! decision, so that no snapshot counts that lacks a lock it asked for. What holds: tombstones are read before existence; the check covers every pack that the claim
//! relies on but for subtrees of parents, whose own check covers them as long as they are not forgotten; the decision is
//! put-if-absent, so that a writer that wakes up after a janitor revoked it fails loudly.

use super::Writer;
use crate::cbor::Map;
use crate::error::{Error, Kind, Result};
use crate::id::PackUid;
use crate::snapshot::{Claim, ClaimKind, ClaimName, ClaimStats, Decision, Snapshot};
use std::collections::BTreeMap;
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
            extra: match self.options.lock_for {
                Some(term) => Map::new().with(Claim::LOCK_FOR, term.seconds()),
                None => Map::new(),
            },
        };
        let name = if self.options.dry_run {
            let tag = self.repo.keys().id_key().workload_tag(&self.workload);
            ClaimName { tag, time: self.time, id: Default::default() }
        } else {
            let name = self.repo.put_claim(&claim)?;
            if let Err(e) = self.check().and_then(|()| self.lock_needs(name)) {
                // Or what it leads to would be kept until the janitor comes. It is as well if this fails.
                let _ = self.repo.decide(name, Decision::Revoke);
                return Err(e);
            }
            self.decide(name)?;
            self.lock_decision(name)?;
            name
        };
        let lock_for = self.options.lock_for;
        let Writer { workload, identity, disks, .. } = self;
        Ok(Snapshot { name, workload, tags, identity, parents, disks, stats, lock_for })
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
        let condemned = self.repo.shunned()?;
        let mut gone: Vec<(String, PackUid)> = Vec::new();
        let mut by_prefix: BTreeMap<String, Vec<(String, PackUid)>> = BTreeMap::new();
        for (kind, uid) in self.packer.relied_on() {
            let name = crate::pack::name(*kind, *uid);
            if condemned.contains(uid) {
                gone.push((name, *uid));
                continue;
            }
            let prefix = name.rsplit_once('/').map_or(String::new(), |(prefix, _)| format!("{prefix}/"));
            by_prefix.entry(prefix).or_default().push((name, *uid));
        }
        for (prefix, packs) in by_prefix {
            let mut missing: BTreeMap<&str, PackUid> = packs.iter().map(|(name, uid)| (name.as_str(), *uid)).collect();
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
            gone.extend(missing.into_iter().map(|(name, uid)| (name.to_owned(), uid)));
        }
        if gone.is_empty() { Ok(()) } else { Err(self.drop_gone(&gone)) }
    }

    /// Makes the index forget all packs that are gone or about to go, so that the next run stores their chunks again.
    fn drop_gone(&self, gone: &[(String, PackUid)]) -> Error {
        let first = gone.first().map_or("", |(name, _)| name);
        let others = match gone.len() {
            0 | 1 => String::new(),
            n => format!(", and so are {} other packs", n - 1),
        };
        let e = lost(format!("{first} is gone or being collected{others}"));
        let uids: Vec<PackUid> = gone.iter().map(|(_, uid)| *uid).collect();
        match self.index.drop_packs(&uids) {
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

pub(super) fn lost(why: String) -> Error {
    Error::new(
        Kind::Overtaken,
        format!("the backup was not committed: {why}; run it again, what was uploaded is reused"),
    )
}
