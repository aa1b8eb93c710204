//! What snapshots there are: listing, finding, pinning and forgetting them.
//!
//! Not here: how they come to be ([`crate::writer`]). What holds: tombstones are read before existence, so that a snapshot
//! that is being swept is never half seen; a snapshot counts when its decision is COMMIT and no forget names it; one damaged
//! claim does not hide the others.

use crate::backend::{Put, list_sorted};
use crate::cbor::Map;
use crate::entropy::fresh;
use crate::error::{Error, Kind, Result};
use crate::id::{PackUid, RecordId, SnapshotId};
use crate::repository::Repository;
use crate::sealed::ObjectKind;
use crate::session::Session;
use crate::snapshot::{Claim, ClaimKind, ClaimName, ClaimPart, Condemned, Decision, Forget, Identity, Snapshot};
use crate::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// Everything under `snapshots/` and `forgets/`, by name only.
#[derive(Clone, Debug, Default)]
pub struct Folders {
    /// Ids of claims that were forgotten. Of those with a decision the forget's signature was checked, which for most means that
    /// it was read once; of the others, which are no points anyway and of which every mount leaves one, only the name was seen.
    pub forgotten: BTreeSet<SnapshotId>,
    /// Claims, and whether each has a decision.
    pub claims: BTreeMap<ClaimName, bool>,
}

/// The points of a repository.
#[derive(Debug, Default)]
pub struct Points {
    /// Committed and not forgotten, by time and id.
    pub snapshots: Vec<Snapshot>,
    /// Claims or decisions that could not be read, with the reason.
    pub damaged: Vec<(ClaimName, Error)>,
}

/// Holds a snapshot against removal while somebody reads it.
#[derive(Debug)]
pub struct Pin {
    repo: Arc<Repository>,
    claim: Option<ClaimName>,
    warning: Option<String>,
    time: Timestamp,
    /// Says for as long as the pin is held that somebody lives to hold it.
    _session: Arc<Session>,
}

impl Repository {
    /// Lists claims, decisions and forgets; reads the forgets of points.
    pub fn folders(&self) -> Result<Folders> {
        let named = self.named_forgets()?;
        let mut folders = Folders::default();
        self.backend().list("snapshots/", &mut |object| {
            if let Some((name, part)) = ClaimName::parse(&object.name) {
                match part {
                    ClaimPart::Claim => drop(folders.claims.entry(name).or_default()),
                    ClaimPart::Decision => drop(folders.claims.insert(name, true)),
                    ClaimPart::Intent | ClaimPart::Revoke => {}
                }
            }
            Ok(())
        })?;
        for (name, decided) in &folders.claims {
            if named.contains(&name.id) && (!decided || self.has_genuine_forget(name.id)?) {
                folders.forgotten.insert(name.id);
            }
        }
        Ok(folders)
    }

    /// All ids that were forgotten, swept ones included: reads every forget that this process has not read yet.
    pub fn forgotten(&self) -> Result<BTreeSet<SnapshotId>> {
        let mut forgotten = BTreeSet::new();
        for id in self.named_forgets()? {
            if self.has_genuine_forget(id)? {
                forgotten.insert(id);
            }
        }
        Ok(forgotten)
    }

    /// Whether a claim was forgotten. A forget counts only when the authority signed it, so that whoever can merely write to the
    /// store hides nothing; one that is damaged or forged does not count, and verify reports it.
    pub fn is_forgotten(&self, id: SnapshotId) -> Result<bool> {
        // Most are not, and to be told that there is no object costs less than to read one.
        Ok(self.knows_forget(id)
            || (self.backend().size(&Forget::name(id))?.is_some() && self.has_genuine_forget(id)?))
    }

    /// As [`Repository::is_forgotten`] of a claim that a listed forget names.
    pub(crate) fn has_genuine_forget(&self, id: SnapshotId) -> Result<bool> {
        if self.knows_forget(id) {
            return Ok(true);
        }
        match self.get_record(ObjectKind::Forget, &Forget::name(id)).and_then(|r| Forget::decode(id, &r.body)) {
            Ok(_) => {
                self.note_forget(id);
                Ok(true)
            }
            Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Corrupt) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn named_forgets(&self) -> Result<BTreeSet<SnapshotId>> {
        let mut named = BTreeSet::new();
        self.backend().list(Forget::PREFIX, &mut |object| {
            named.extend(Forget::parse(&object.name));
            Ok(())
        })?;
        Ok(named)
    }

    /// The points that can be restored.
    pub fn points(&self) -> Result<Points> {
        let folders = self.folders()?;
        let mut points = Points::default();
        for (name, decided) in folders.claims {
            if !decided || folders.forgotten.contains(&name.id) {
                continue;
            }
            match self.read_snapshot(name) {
                Ok(Some(snapshot)) => points.snapshots.push(snapshot),
                Ok(None) => {}
                Err(e) => points.damaged.push((name, e)),
            }
        }
        points.snapshots.sort_by_key(|s| (s.time(), s.id()));
        Ok(points)
    }

    /// The snapshot at `name`, `None` unless it is committed. Forgets are not looked at.
    pub fn read_snapshot(&self, name: ClaimName) -> Result<Option<Snapshot>> {
        let decision = match self.get_record(ObjectKind::Decision, &name.decision()) {
            Ok(record) => Decision::decode(&record.body).map_err(|e| e.within(name.decision()))?,
            Err(e) if e.kind() == Kind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        if decision == Decision::Revoke {
            return Ok(None);
        }
        let claim = match self.read_claim(name) {
            Err(e) if e.kind() == Kind::NotFound => {
                // Swept between the listing and now: the claim goes first, then the decision, then the forget. A decision without
                // either of the others is damage.
                let is_swept = self.is_forgotten(name.id)? || self.backend().size(&name.decision())?.is_none();
                return if is_swept { Ok(None) } else { Err(e.with_kind(Kind::Corrupt)) };
            }
            other => other?,
        };
        let lock_for = claim.lock_for().map_err(|e| e.within(name.claim()))?;
        let Claim { kind, workload, tags, identity, parents, copied, .. } = claim;
        match kind {
            ClaimKind::Pin { .. } => Ok(None),
            ClaimKind::Snapshot { disks, stats } => {
                Ok(Some(Snapshot { name, workload, tags, identity, parents, copied, disks, stats, lock_for }))
            }
        }
    }

    /// The claim at `name`, checked to belong there.
    pub fn read_claim(&self, name: ClaimName) -> Result<Claim> {
        let object = name.claim();
        let record = self.get_record(ObjectKind::Claim, &object)?;
        let claim = Claim::decode(&record.body).map_err(|e| e.within(&object))?;
        if claim.time != name.time || self.keys().id_key().workload_tag(&claim.workload) != name.tag {
            return Err(Error::corrupt(format!("{object} holds a claim that belongs elsewhere")));
        }
        Ok(claim)
    }

    /// The packs that somebody may be about to remove: those that any visible record condemns, but for being damaged.
    pub fn condemned(&self) -> Result<HashSet<PackUid>> {
        let mut packs = HashSet::new();
        self.each_condemned(|record| {
            if !record.damaged {
                packs.extend(record.packs)
            }
        })?;
        Ok(packs)
    }

    /// The packs that nobody is to rely on anew: those that any visible record condemns, and be it for being damaged.
    pub fn shunned(&self) -> Result<HashSet<PackUid>> {
        let mut packs = HashSet::new();
        self.each_condemned(|record| packs.extend(record.packs))?;
        Ok(packs)
    }

    fn each_condemned(&self, mut each: impl FnMut(Condemned)) -> Result<()> {
        for object in list_sorted(self.backend(), Condemned::PREFIX)? {
            match self.get_record(ObjectKind::Condemned, &object.name) {
                Ok(record) => each(Condemned::decode(&record.body).map_err(|e| e.within(&object.name))?),
                // Purged between the listing and now: what it condemned is gone, and existence is looked at next.
                Err(e) if e.kind() == Kind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Has nobody rely anew on these packs, which are damaged. What is known already is not said again.
    pub(crate) fn shun(&self, damaged: &BTreeSet<PackUid>) -> Result<()> {
        if damaged.is_empty() {
            return Ok(());
        }
        let known = self.shunned()?;
        let packs: Vec<PackUid> = damaged.iter().filter(|uid| !known.contains(uid)).copied().collect();
        for packs in packs.chunks(Condemned::MOST) {
            let name = format!("{}{}", Condemned::PREFIX, RecordId(fresh(self.entropy())?));
            let record = Condemned { packs: packs.to_vec(), damaged: true };
            if self.put_record(ObjectKind::Condemned, &name, &record.encode()?)? == Put::Exists {
                return Err(Error::internal(format!("{name} exists although its name is random")));
            }
        }
        Ok(())
    }

    /// Stores a claim under a new random id.
    pub(crate) fn put_claim(&self, claim: &Claim) -> Result<ClaimName> {
        let name = self.claim_name(&claim.workload, claim.time)?;
        self.put_claim_as(name, claim)?;
        Ok(name)
    }

    fn claim_name(&self, workload: &str, time: Timestamp) -> Result<ClaimName> {
        Ok(ClaimName { tag: self.keys().id_key().workload_tag(workload), time, id: SnapshotId(fresh(self.entropy())?) })
    }

    fn put_claim_as(&self, name: ClaimName, claim: &Claim) -> Result<()> {
        match self.put_record(ObjectKind::Claim, &name.claim(), &claim.encode()?)? {
            Put::Created => Ok(()),
            Put::Exists => Err(Error::internal(format!("{name} exists although its name is random"))),
        }
    }

    /// Forgets a claim: a snapshot no longer counts, a pin no longer holds. Done already is done. Protection is not looked at:
    /// points are forgotten by [`Repository::forget_points`].
    pub fn forget(&self, claim: ClaimName, now: Timestamp) -> Result<()> {
        self.check_full("forget snapshots")?;
        let body = Forget { time: now, claim }.encode()?;
        match self.put_record(ObjectKind::Forget, &Forget::name(claim.id), &body)? {
            Put::Created | Put::Exists => Ok(()),
        }
    }

    /// Pins `snapshot` for as long as the pin lives. `NotFound` when it was forgotten. On a store that cannot be written reading
    /// goes on without a pin, and [`Pin::warning`] says so.
    pub fn pin(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        purpose: &str,
        identity: &Identity,
        now: Timestamp,
    ) -> Result<Pin> {
        let session = self.session(identity, now)?;
        let claim = pin_claim(snapshot, purpose, identity, now, &session);
        let mut pin = Pin { repo: Arc::clone(self), claim: None, warning: None, time: now, _session: session };
        match self.put_claim(&claim) {
            Ok(name) => pin.claim = Some(name),
            Err(e) => {
                let why = std::error::Error::source(&e).map_or_else(String::new, |s| format!(" ({s})"));
                pin.warning = Some(format!(
                    "reading {}@{} without a pin, since the repository cannot be written: {e}{why}; a collector that runs \
                     meanwhile may remove what is forgotten meanwhile",
                    snapshot.workload,
                    snapshot.time()
                ));
            }
        }
        self.check_there(snapshot)?;
        Ok(pin)
    }

    /// Sees that a snapshot that was just pinned was not forgotten before.
    fn check_there(&self, snapshot: &Snapshot) -> Result<()> {
        // The forget first: it goes after the claim, so that who finds a claim and no forget was not forgotten before the pin.
        if self.is_forgotten(snapshot.id())? || self.backend().size(&snapshot.name.claim())?.is_none() {
            return Err(Error::not_found(format!("{}@{} was forgotten", snapshot.workload, snapshot.time())));
        }
        Ok(())
    }
}

/// Pins of forks, which stand until somebody forgets them, be it another process: janitors leave them alone. So whoever makes one notes
/// its name durably before it is there, or nobody would know of it after a crash.
impl Repository {
    /// A name for a pin of `snapshot` that is to be.
    pub fn name_pin(&self, snapshot: &Snapshot, now: Timestamp) -> Result<ClaimName> {
        self.claim_name(&snapshot.workload, now)
    }

    /// Pins `snapshot` under `name`, until that is forgotten. `NotFound` when the snapshot was. After an error the pin may be there, or
    /// come to be.
    pub fn pin_for_fork(self: &Arc<Self>, name: ClaimName, snapshot: &Snapshot, identity: &Identity) -> Result<()> {
        let session = self.session(identity, name.time)?;
        let claim = pin_claim(snapshot, Pin::FORK, identity, name.time, &session);
        let needed = |e: Error| e.within("a fork needs a pin in the repository");
        self.put_claim_as(name, &claim).map_err(needed)?;
        self.check_there(snapshot)
    }

    /// Checks that the pin at `pin`, which somebody left standing, still holds `snapshot`. `NotFound` when it was forgotten, or never
    /// held that.
    pub fn check_pin(&self, pin: ClaimName, snapshot: SnapshotId) -> Result<()> {
        let ended = || Error::not_found(format!("the pin {} of {snapshot} was ended", pin.id));
        // The forget first, as whoever sweeps removes it last.
        if self.is_forgotten(pin.id)? {
            return Err(ended());
        }
        match self.read_claim(pin) {
            Ok(Claim { kind: ClaimKind::Pin { .. }, parents, .. }) if parents == [snapshot] => Ok(()),
            Ok(_) => Err(Error::corrupt(format!("{pin} is no pin of {snapshot}"))),
            Err(e) if e.kind() == Kind::NotFound => Err(ended()),
            Err(e) => Err(e),
        }
    }
}

fn pin_claim(snapshot: &Snapshot, purpose: &str, identity: &Identity, time: Timestamp, session: &Session) -> Claim {
    Claim {
        kind: ClaimKind::Pin { purpose: purpose.to_owned() },
        time,
        workload: snapshot.workload.clone(),
        tags: Vec::new(),
        identity: identity.clone(),
        parents: vec![snapshot.id()],
        copied: None,
        extra: Map::new().with("session", &session.id().0),
    }
}

impl Pin {
    /// The purpose of pins that end only when their fork does: the janitor leaves them alone.
    pub const FORK: &str = "fork";

    /// What to tell the user when there is no pin.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Ends the pin and says whether that worked.
    pub fn release(mut self, now: Timestamp) -> Result<()> {
        match self.claim.take() {
            Some(claim) => self.repo.forget(claim, now),
            None => Ok(()),
        }
    }
}

impl Drop for Pin {
    /// Ends the pin as well as can be: one that stays is forgotten by the janitor.
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            let _ = self.repo.forget(claim, self.time);
        }
    }
}
