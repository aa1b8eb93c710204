//! What may be a root, by name: moved records, forgets, and claims with their decisions, listed in this order.
//!
//! Not here: reading claims and walking maps ([`super::survey`]). What holds: forgets are listed before claims, so that a
//! snapshot whose claim is not seen yet, and that builds on a forgotten parent, is not committed; whose forget is named is
//! believed to be forgotten only once the forget's signature was checked.

use crate::error::Result;
use crate::id::{PackUid, SnapshotId};
use crate::moved;
use crate::repository::Repository;
use crate::snapshot::{ClaimName, ClaimPart, Forget};
use std::collections::{BTreeMap, BTreeSet};

/// What a listing of a store's records showed.
#[derive(Debug, Default)]
pub(super) struct Roots {
    /// Names of moved records, and whose packs' they are.
    pub(super) moved: Vec<(PackUid, String)>,
    /// Ids that a forget names.
    pub(super) forgets: BTreeSet<SnapshotId>,
    /// Claims and decisions.
    pub(super) claims: BTreeMap<ClaimName, Parts>,
}

/// Which objects of a claim's folder there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) claim: bool,
    pub(super) decision: bool,
    pub(super) intent: bool,
    pub(super) revoke: bool,
}

impl Roots {
    pub(super) fn list(repo: &Repository) -> Result<Self> {
        let mut roots = Roots { moved: list_moved(repo)?, ..Roots::default() };
        repo.backend().list(Forget::PREFIX, &mut |object| {
            roots.forgets.extend(Forget::parse(&object.name));
            Ok(())
        })?;
        repo.backend().list("snapshots/", &mut |object| {
            if let Some((name, part)) = ClaimName::parse(&object.name) {
                // A claim without a claim is none, but what is left of one is to be swept.
                let parts = roots.claims.entry(name).or_default();
                match part {
                    ClaimPart::Claim => parts.claim = true,
                    ClaimPart::Decision => parts.decision = true,
                    ClaimPart::Intent => parts.intent = true,
                    ClaimPart::Revoke => parts.revoke = true,
                }
            }
            Ok(())
        })?;
        Ok(roots)
    }

    /// Whether a genuine forget was listed.
    pub(super) fn is_forgotten(&self, repo: &Repository, id: SnapshotId) -> Result<bool> {
        Ok(self.forgets.contains(&id) && repo.has_genuine_forget(id)?)
    }

    /// Where the claim of a snapshot lies.
    pub(super) fn find(&self, id: SnapshotId) -> Option<ClaimName> {
        self.claims.iter().find(|(name, parts)| name.id == id && parts.claim).map(|(name, _)| *name)
    }
}

/// Names of the moved records, and whose packs' they are.
pub(super) fn list_moved(repo: &Repository) -> Result<Vec<(PackUid, String)>> {
    let mut records = Vec::new();
    repo.backend().list(moved::PREFIX, &mut |object| {
        if let Some((pack, _)) = moved::parse_name(&object.name) {
            records.push((pack, object.name));
        }
        Ok(())
    })?;
    Ok(records)
}
