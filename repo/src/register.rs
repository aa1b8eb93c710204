//! The register of a claim's decision: whoever decides, all learn the same, on stores with put-if-absent and on those without.
//!
//! ```text
//!   put-if-absent     PUT decision: the first counts
//!   without           commit     PUT intent -> is there no revoke? -> PUT decision COMMIT
//!                     revoke     PUT revoke -> is there no intent? -> PUT decision REVOKE
//!                     complete   an intent, and then no revoke? -> PUT decision COMMIT, in the writer's stead
//! ```
//! Of a writer and one who revokes, at least one sees the other's put, since each puts before it looks. So all who put a decision
//! put the same one, and it does not matter that a put replaces another, or is done late, or twice. When both see each other
//! the claim stays undecided: no point, and a root of collections; whoever wants it gone forgets it. The model is
//! `tests/protocol_model.rs`, which shows for each look what is lost without it, or in another order.
//!
//! Not here: the check before a commit, which comes before the intent: who completes a commit does not check again. What holds: of
//! an undecided claim only its writer puts the intent, once; neither a `revoke` nor a decision REVOKE is ever removed.

use crate::backend::Put;
use crate::error::{Kind, Result};
use crate::repository::Repository;
use crate::sealed::ObjectKind;
use crate::snapshot::{ClaimName, ClaimPart, Decision};
use crate::store_class::StoreClass;
use std::collections::BTreeMap;

impl Repository {
    /// Makes `decision` the one of the claim at `name`, unless there is one; the one that counts is returned. COMMIT is for the
    /// claim's writer alone. `None`: the claim is undecided for good, since it was committed and revoked at the same time.
    pub fn decide(&self, name: ClaimName, decision: Decision) -> Result<Option<Decision>> {
        match (self.store_class(), decision) {
            (None | Some(StoreClass::Strong), _) => match self.put_decision(name, decision)? {
                Put::Created => Ok(Some(decision)),
                Put::Exists => self.read_decision(name),
            },
            (_, Decision::Commit) => self.commit_by_looks(name),
            (_, Decision::Revoke) => self.revoke_by_looks(name),
        }
    }

    /// Claims that were committed and revoked at the same time, so that nobody decides them any more, and that nobody forgot.
    pub fn contested(&self) -> Result<Vec<ClaimName>> {
        let mut parts: BTreeMap<ClaimName, Vec<ClaimPart>> = BTreeMap::new();
        self.backend().list("snapshots/", &mut |object| {
            if let Some((name, part)) = ClaimName::parse(&object.name) {
                parts.entry(name).or_default().push(part);
            }
            Ok(())
        })?;
        let mut contested = Vec::new();
        for (name, parts) in parts {
            let has = |part| parts.contains(&part);
            if has(ClaimPart::Intent)
                && has(ClaimPart::Revoke)
                && !has(ClaimPart::Decision)
                && !self.is_forgotten(name.id)?
            {
                contested.push(name);
            }
        }
        Ok(contested)
    }

    /// The decision that was put.
    fn read_decision(&self, name: ClaimName) -> Result<Option<Decision>> {
        match self.get_record(ObjectKind::Decision, &name.decision()) {
            Ok(record) => Decision::decode(&record.body).map(Some).map_err(|e| e.within(name.decision())),
            Err(e) if e.kind() == Kind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn put_decision(&self, name: ClaimName, decision: Decision) -> Result<Put> {
        self.put_record(ObjectKind::Decision, &name.decision(), &decision.encode()?)
    }

    fn commit_by_looks(&self, name: ClaimName) -> Result<Option<Decision>> {
        // Whoever has not put the intent can still revoke himself: nobody is left undecided but where both were that close.
        if self.exists(&name.revoke())? {
            return self.revoke_by_looks(name);
        }
        let (Put::Created | Put::Exists) =
            self.put_record(ObjectKind::Decision, &name.intent(), &Decision::Commit.encode()?)?;
        if self.exists(&name.revoke())? {
            return self.read_decision(name);
        }
        let (Put::Created | Put::Exists) = self.put_decision(name, Decision::Commit)?;
        if self.exists(&name.claim())? {
            return Ok(Some(Decision::Commit));
        }
        // Others had completed it, and it was forgotten and swept: a decision about nothing would pass for damage.
        self.backend().delete(&name.decision())?;
        Ok(None)
    }

    fn revoke_by_looks(&self, name: ClaimName) -> Result<Option<Decision>> {
        if let Some(decision) = self.read_decision(name)? {
            return Ok(Some(decision));
        }
        if self.is_intended(name)? {
            // In this order: had the intent been looked for last, one who revokes could have missed it, and been missed.
            if self.exists(&name.revoke())? {
                return self.read_decision(name);
            }
            let (Put::Created | Put::Exists) = self.put_decision(name, Decision::Commit)?;
            return Ok(Some(Decision::Commit));
        }
        let (Put::Created | Put::Exists) =
            self.put_record(ObjectKind::Decision, &name.revoke(), &Decision::Revoke.encode()?)?;
        if self.exists(&name.intent())? {
            return self.read_decision(name);
        }
        let (Put::Created | Put::Exists) = self.put_decision(name, Decision::Revoke)?;
        Ok(Some(Decision::Revoke))
    }

    /// Whether the claim's writer has said that it commits. One that is damaged, or that nobody certified signed, completes nothing.
    fn is_intended(&self, name: ClaimName) -> Result<bool> {
        match self.get_record(ObjectKind::Decision, &name.intent()) {
            Ok(record) => Ok(Decision::decode(&record.body)? == Decision::Commit),
            Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Corrupt) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn exists(&self, name: &str) -> Result<bool> {
        Ok(self.backend().size(name)?.is_some())
    }
}
