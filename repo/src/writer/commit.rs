//! The last steps of a backup: claim, check, decision. The order is the safety argument (design, section 2).
//!
//! Not here: what the claim holds; which objects are locked ([`super::lock`]): that comes after the check, which may fail, and before the
//! decision, so that no snapshot counts that lacks a lock it asked for. What holds: tombstones are read before existence; the check covers every pack that the claim
//! relies on but for subtrees of parents, whose own check covers them as long as they are not forgotten; the decision is
//! a register ([`crate::register`]), so that a writer that wakes up after a janitor revoked it fails loudly.
//!
//! Of several writers that copy one point to here at the same time at most one commits: each puts its claim before it lists those
//! of the others, and so of any two at least one sees the other's, and revokes it, or itself if that is too late.

use super::Writer;
use crate::cbor::Map;
use crate::error::{Error, Kind, Result};
use crate::id::PackUid;
use crate::snapshot::{Claim, ClaimKind, ClaimName, ClaimPart, ClaimStats, Copied, Decision, Snapshot};
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
            copied: self.copied,
            extra: self.extra_keys(),
        };
        let name = if self.options.dry_run {
            let tag = self.repo.keys().id_key().workload_tag(&self.workload);
            ClaimName { tag, time: self.time, id: Default::default() }
        } else {
            let name = self.repo.put_claim(&claim)?;
            let checked = self.end_rivals(name).and_then(|()| self.check());
            if let Err(e) = checked.and_then(|()| self.lock_needs(name)) {
                // Or what it leads to would be kept until the janitor comes. It is as well if this fails.
                let _ = self.repo.decide(name, Decision::Revoke);
                return Err(e);
            }
            self.decide(name)?;
            self.lock_decision(name)?;
            name
        };
        let lock_for = self.options.lock_for;
        let Writer { workload, identity, disks, copied, .. } = self;
        Ok(Snapshot { name, workload, tags, identity, parents, copied, disks, stats, lock_for })
    }

    /// What else the claim says. The term of an original's locks is about another store.
    fn extra_keys(&mut self) -> Map {
        let mut extra = std::mem::replace(&mut self.extra, Map::new());
        extra.remove(Claim::LOCK_FOR);
        if let Some(term) = self.options.lock_for {
            extra.insert(Claim::LOCK_FOR, term.seconds());
        }
        extra
    }

    /// Sees that no other copy of the same point counts or comes to count. Copies have the time of their original, and so lie side by side.
    fn end_rivals(&self, own: ClaimName) -> Result<()> {
        let Some(Copied { origin, .. }) = self.copied else { return Ok(()) };
        let mut others = Vec::new();
        self.repo.backend().list(&format!("snapshots/{}/", own.tag), &mut |object| {
            let claim = ClaimName::parse(&object.name).filter(|(_, part)| *part == ClaimPart::Claim);
            others.extend(claim.map(|(name, _)| name).filter(|name| name.time == own.time && name.id != own.id));
            Ok(())
        })?;
        for other in others {
            let claim = match self.repo.read_claim(other) {
                // Swept meanwhile, or not to be understood: it is no point that counts.
                Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Corrupt | Kind::Unsupported) => continue,
                claim => claim?,
            };
            let is_rival = claim.copied.is_some_and(|copied| copied.origin == origin);
            if !is_rival || self.repo.is_forgotten(other.id)? {
                continue;
            }
            if self.repo.decide(other, Decision::Revoke)? == Some(Decision::Commit) {
                return Err(lost(format!("{} copied the same point, and was first", other.id)));
            }
        }
        Ok(())
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
            // Who gave up a claim that stayed undecided forgot it; the writer may have been about to decide.
            Some(Decision::Commit) if self.repo.is_forgotten(name.id)? => {
                Err(lost("it was forgotten meanwhile".to_owned()))
            }
            Some(Decision::Commit) => Ok(()),
            Some(Decision::Revoke) => Err(lost("the janitor took it for dead and revoked it".to_owned())),
            None => Err(lost("it was revoked while it was being committed".to_owned())),
        }
    }
}

pub(super) fn lost(why: String) -> Error {
    Error::new(
        Kind::Overtaken,
        format!("the backup was not committed: {why}; run it again, what was uploaded is reused"),
    )
}
