//! Points that stay: protecting them, ending that, and forgetting the others.
//!
//! ```text
//!   protected()            LIST notes, read each  ->  which points are protected, by which notes
//!   protect(point)         PUT note { protect }   then see that the point was not forgotten meanwhile
//!   unprotect(point)       PUT note { ends }      naming the protecting notes that were seen
//!   forget_points(points)  refuses when one of them is protected; then PUT forgets, one by one
//! ```
//!
//! Not here: the notes' bytes ([`crate::note`]), which points rules keep ([`crate::retention`]), the end of pins and of dead claims
//! ([`crate::catalog`]). What holds: a point is protected while the authority's note says so that no other note of the authority
//! ends; times decide nothing; nothing is forgotten while a note is damaged that nothing ends, since it might protect. Notes
//! and forgets meet on no common register: a protection that comes while somebody forgets that very point may come too late, and
//! then says so, unless its note falls between the other one's listing and his forget.

use crate::backend::Put;
use crate::entropy::fresh;
use crate::error::{Error, Kind, Result};
use crate::id::{RecordId, SnapshotId};
use crate::note::{Note, Remark};
use crate::repository::Repository;
use crate::sealed::{ObjectKind, Unverified};
use crate::snapshot::Snapshot;
use crate::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// One note that protects a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protection {
    /// The note's name.
    pub record: RecordId,
    /// When it was made, for people.
    pub time: Option<Timestamp>,
    /// Why, for people.
    pub reason: Option<String>,
}

/// Which points are protected, at the moment the notes were listed.
#[derive(Debug, Default)]
pub struct Protected {
    /// The notes that protect each, at least one, the oldest first. Points that were forgotten may be among them.
    pub points: BTreeMap<SnapshotId, Vec<Protection>>,
    /// Names of notes that could not be read, with the reason. Any of them may protect any point.
    pub damaged: Vec<(String, Error)>,
}

impl Protected {
    /// The notes that protect a point.
    #[must_use]
    pub fn of(&self, id: SnapshotId) -> &[Protection] {
        self.points.get(&id).map_or(&[], Vec::as_slice)
    }

    /// Fails when one of these points is protected (`Retained`), or when a damaged note hides whether it is (`Corrupt`).
    pub fn allow_forgetting(&self, points: &[&Snapshot]) -> Result<()> {
        if let (Some((_, error)), false) = (self.damaged.first(), points.is_empty()) {
            let way_out = "delete that object if it is not needed";
            let why = format!("nothing was forgotten, since a damaged note may protect a point ({way_out})");
            return Err(error.duplicate().within(why));
        }
        let Some((point, notes)) = points.iter().map(|p| (p, self.of(p.id()))).find(|(_, notes)| !notes.is_empty())
        else {
            return Ok(());
        };
        let name = format!("{}@{}", point.workload, point.time());
        let reasons: Vec<&str> = notes.iter().filter_map(|note| note.reason.as_deref()).collect();
        let why = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
        let way_out = format!("'coffer unprotect {name}' ends that");
        Err(Error::new(Kind::Retained, format!("{name} is protected{why}; {way_out}; nothing was forgotten")))
    }
}

impl Repository {
    /// Lists and reads the notes. What the authority did not sign is no note, and verify reports it.
    pub fn protected(&self) -> Result<Protected> {
        let mut records = BTreeSet::new();
        self.backend().list(Note::PREFIX, &mut |object| {
            records.extend(Note::parse(&object.name));
            Ok(())
        })?;
        let mut protecting = Vec::new();
        let mut damaged = Vec::new();
        let mut ended = BTreeSet::new();
        for record in records {
            match self.read_note(record) {
                Ok(Some(Note { snapshot, time, remark: Remark::Protect { reason } })) => {
                    protecting.push((snapshot, Protection { record, time, reason }));
                }
                Ok(Some(Note { remark: Remark::Unprotect { ends }, .. })) => ended.extend(ends),
                Ok(Some(Note { remark: Remark::Other, .. }) | None) => {}
                // Collected since it was listed: its point is gone.
                Err(e) if e.kind() == Kind::NotFound => {}
                Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::Unsupported) => damaged.push((record, e)),
                Err(e) => return Err(e),
            }
        }
        let mut protected = Protected::default();
        for (id, protection) in protecting.into_iter().filter(|(_, p)| !ended.contains(&p.record)) {
            protected.points.entry(id).or_default().push(protection);
        }
        protected.points.values_mut().for_each(|notes| notes.sort_by_key(|note| (note.time, note.record)));
        let damaged = damaged.into_iter().filter(|(record, _)| !ended.contains(record));
        protected.damaged = damaged.map(|(record, error)| (Note::name(record), error)).collect();
        Ok(protected)
    }

    /// The note `record`; `None` when it is somebody's who may not write notes: it opened, so that it is as it was written.
    fn read_note(&self, record: RecordId) -> Result<Option<Note>> {
        let name = Note::name(record);
        let note = Unverified::open(self.keys(), ObjectKind::Note, &name, &self.backend().get(&name)?)?;
        match note.verify(self.keys(), &self.certificates()) {
            Ok(record) => Note::decode(&record.body).map(Some).map_err(|e| e.within(name)),
            Err(e) if e.kind() == Kind::Corrupt => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Protects a point, once more if it is protected already. `NotFound` when it was forgotten meanwhile, `WrongKey` with a
    /// writer's key.
    pub fn protect(&self, point: &Snapshot, reason: Option<&str>, now: Timestamp) -> Result<RecordId> {
        self.check_full("protect points")?;
        let record = self.put_note(point.id(), Remark::Protect { reason: reason.map(str::to_owned) }, now)?;
        if self.is_forgotten(point.id())? {
            let name = format!("{}@{}", point.workload, point.time());
            return Err(Error::not_found(format!("{name} was forgotten before it could be protected")));
        }
        Ok(record)
    }

    /// Ends the protection of a point by the notes in `protected`; whether there was any. `WrongKey` with a writer's key.
    pub fn unprotect(&self, point: &Snapshot, protected: &Protected, now: Timestamp) -> Result<bool> {
        self.check_full("end protections")?;
        let ends: Vec<RecordId> = protected.of(point.id()).iter().map(|note| note.record).collect();
        if ends.is_empty() {
            return Ok(false);
        }
        self.put_note(point.id(), Remark::Unprotect { ends }, now)?;
        Ok(true)
    }

    fn put_note(&self, snapshot: SnapshotId, remark: Remark, now: Timestamp) -> Result<RecordId> {
        let record = RecordId(fresh(self.entropy())?);
        let body = Note { snapshot, time: Some(now), remark }.encode()?;
        match self.put_record(ObjectKind::Note, &Note::name(record), &body)? {
            Put::Created => Ok(record),
            Put::Exists => Err(Error::internal(format!("{} exists although its name is random", Note::name(record)))),
        }
    }

    /// Forgets points in their order here; none when one of them is protected by `protected`, which the caller has just listed.
    /// A failure on the way says how many were forgotten.
    pub fn forget_points(&self, points: &[&Snapshot], protected: &Protected, now: Timestamp) -> Result<()> {
        self.check_full("forget snapshots")?;
        protected.allow_forgetting(points)?;
        let mut done: Option<&Snapshot> = None;
        for (n, point) in points.iter().enumerate() {
            self.forget(point.name, now).map_err(|e| match done {
                None => e.within("nothing was forgotten"),
                Some(last) => {
                    let (of, id) = (points.len(), last.id());
                    let last = format!("{}@{} ({id})", last.workload, last.time());
                    e.within(format!("{n} of {of} points were forgotten, the last of them {last}"))
                }
            })?;
            done = Some(point);
        }
        Ok(())
    }
}
