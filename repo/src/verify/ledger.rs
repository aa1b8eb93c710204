//! What verifications have proven so far, from the records they keep, and how one of them adds to it.
//!
//! ```text
//!   Ledger::read      all records -> when each pack was last read whole, when each point was last found sound
//!   Recorder::proven  now and then: a record of what this run has read since the last one
//!   Recorder::close   everything that is known, in the place of all records there were
//! ```
//!
//! Not here: the bytes ([`crate::verified`]), and removing what was superseded, which a collector does. What holds: records are
//! signed by the authority; one that is damaged proves nothing; a record supersedes others only after what they say was stored
//! again, so that a crash forgets nothing. Memory: 48 bytes per pack, twice or so with the room that hash tables keep.

use crate::backend::{Put, list_sorted};
use crate::entropy::fresh;
use crate::error::{Error, Kind, Result};
use crate::id::{PackUid, RecordId, SnapshotId};
use crate::repository::Repository;
use crate::sealed::ObjectKind;
use crate::time::Timestamp;
use crate::verified::{self, Level, PACKS_MAX, Proof, Verified};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a run writes down what it has read: at first so often, later after a sixteenth of the time it has taken.
const OFTEN: Duration = Duration::from_secs(30);
const SHARE: u32 = 16;
/// Most times that are told apart; of more, the earliest are taken together as the earliest of all.
const TIMES: usize = 256;

/// What was proven, and when last.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Data packs that were read whole.
    pub packs: HashMap<PackUid, Timestamp>,
    /// Points that nothing was wrong with.
    pub points: BTreeMap<(SnapshotId, Level), Timestamp>,
    /// The records that count.
    pub records: BTreeSet<RecordId>,
    /// Those that others took the place of, and that a collector may remove.
    pub superseded: BTreeSet<RecordId>,
}

impl Ledger {
    fn read(repo: &Repository) -> Result<Self> {
        let mut ledger = Ledger::default();
        let mut read = BTreeMap::new();
        for object in list_sorted(repo.backend(), verified::PREFIX)? {
            let Some(id) = verified::parse_name(&object.name) else { continue };
            let record = repo.get_record(ObjectKind::Verified, &object.name);
            match record.and_then(|record| Verified::decode(&record.body)) {
                Ok(verified) => drop(read.insert(id, verified)),
                Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::NotFound | Kind::Unsupported) => {}
                Err(e) => return Err(e),
            }
        }
        let superseded: BTreeSet<RecordId> = read.values().flat_map(|v| v.superseded.iter().copied()).collect();
        for (id, verified) in read {
            if superseded.contains(&id) {
                ledger.superseded.insert(id);
                continue;
            }
            ledger.records.insert(id);
            verified.proofs.into_iter().for_each(|proof| ledger.learn(proof));
        }
        Ok(ledger)
    }

    fn learn(&mut self, proof: Proof) {
        for pack in proof.packs {
            let last = self.packs.entry(pack).or_insert(proof.time);
            *last = proof.time.max(*last);
        }
        for point in proof.points {
            let last = self.points.entry((point, proof.level)).or_insert(proof.time);
            *last = proof.time.max(*last);
        }
    }

    /// When a point was last found sound to this level. What was proven of the content was proven of the structure too.
    #[must_use]
    pub fn point(&self, id: SnapshotId, level: Level) -> Option<Timestamp> {
        let data = self.points.get(&(id, Level::Data)).copied();
        match level {
            Level::Data => data,
            Level::Structure => self.points.get(&(id, Level::Structure)).copied().max(data),
        }
    }

    /// All of it, divided into records of a bounded length.
    fn proofs(self) -> Vec<Vec<Proof>> {
        let mut times: BTreeSet<Timestamp> = self.packs.values().chain(self.points.values()).copied().collect();
        let earliest = times.first().copied();
        while times.len() > TIMES {
            times.pop_first();
        }
        let floor = |time: Timestamp| if times.contains(&time) { time } else { earliest.unwrap_or(time) };
        let mut by_time: BTreeMap<(Timestamp, Level), (Vec<PackUid>, Vec<SnapshotId>)> = BTreeMap::new();
        for ((point, level), time) in self.points {
            by_time.entry((floor(time), level)).or_default().1.push(point);
        }
        for (pack, time) in self.packs {
            by_time.entry((floor(time), Level::Data)).or_default().0.push(pack);
        }
        let mut records = vec![Vec::new()];
        let mut room = PACKS_MAX;
        for ((time, level), (mut packs, mut points)) in by_time {
            packs.sort_unstable();
            points.sort_unstable();
            let mut packs = packs.as_slice();
            loop {
                let (now, later) = packs.split_at_checked(room).unwrap_or((packs, &[]));
                room -= now.len();
                let points = std::mem::take(&mut points);
                if let Some(record) = records.last_mut() {
                    record.push(Proof { time, level, packs: now.to_vec(), points });
                }
                packs = later;
                if packs.is_empty() {
                    break;
                }
                records.push(Vec::new());
                room = PACKS_MAX;
            }
        }
        records
    }
}

impl Repository {
    /// What verifications have proven so far. A pack in it was read whole by a holder of a full key at that time, and every
    /// frame in it opened and id-checked; nobody promises that it still can be.
    pub fn proven(&self) -> Result<Ledger> {
        Ledger::read(self)
    }
}

/// What one run adds.
pub(super) struct Recorder<'a> {
    repo: &'a Repository,
    time: Timestamp,
    begun: Instant,
    state: Mutex<State>,
}

struct State {
    /// Read whole and sound.
    sound: Vec<PackUid>,
    /// Read whole, or not readable whole, and damaged.
    damaged: HashSet<PackUid>,
    /// How many of the sound ones are written down, and when that was.
    recorded: usize,
    last: Instant,
    /// Why nothing is written down any more.
    failure: Option<Error>,
}

/// What a run has come to.
pub(super) struct Outcome<'a> {
    /// The data packs that points need.
    pub(super) needed: &'a [PackUid],
    /// All points that count.
    pub(super) points: &'a BTreeSet<SnapshotId>,
    /// Those of which something cannot be read.
    pub(super) hurt: &'a BTreeSet<SnapshotId>,
}

impl<'a> Recorder<'a> {
    /// Of a run that began at `time`.
    pub(super) fn new(repo: &'a Repository, time: Timestamp) -> Self {
        let begun = Instant::now();
        let (sound, damaged) = (Vec::new(), HashSet::new());
        let state = State { sound, damaged, recorded: 0, last: begun, failure: None };
        Recorder { repo, time, begun, state: Mutex::new(state) }
    }

    /// Notes what came of reading a pack whole.
    pub(super) fn note(&self, pack: PackUid, is_sound: bool) {
        let is_due = {
            let mut state = self.state();
            if is_sound {
                state.sound.push(pack);
            } else {
                state.damaged.insert(pack);
            }
            state.last.elapsed() >= OFTEN.max(self.begun.elapsed() / SHARE)
        };
        if is_due {
            self.checkpoint();
        }
    }

    /// Writes down what was read since the last time. A failure is kept for the end: what is wrong is found all the same.
    pub(super) fn checkpoint(&self) {
        let fresh = {
            let mut state = self.state();
            state.last = Instant::now();
            let fresh = state.sound.get(state.recorded..).unwrap_or_default().to_vec();
            state.recorded = state.sound.len();
            if state.failure.is_some() { Vec::new() } else { fresh }
        };
        for packs in fresh.chunks(PACKS_MAX) {
            let mut packs = packs.to_vec();
            packs.sort_unstable();
            let proof = Proof { time: self.time, level: Level::Data, packs, points: Vec::new() };
            if let Err(e) = self.put(&Verified { proofs: vec![proof], superseded: Vec::new() }) {
                self.state().failure = Some(e);
                return;
            }
        }
    }

    /// Writes down all that is known now; why it could not be, if so.
    pub(super) fn close(self, outcome: &Outcome<'_>) -> Option<Error> {
        let closed = match self.state().failure.take() {
            Some(e) => Err(e),
            None => Ok(()),
        };
        closed.and_then(|()| self.write(outcome)).err()
    }

    fn write(&self, outcome: &Outcome<'_>) -> Result<()> {
        let mut ledger = Ledger::read(self.repo)?;
        let superseded: BTreeSet<RecordId> = ledger.records.union(&ledger.superseded).copied().collect();
        let (sound, damaged) = {
            let mut state = self.state();
            (std::mem::take(&mut state.sound), std::mem::take(&mut state.damaged))
        };
        let proof = |level, packs, points| Proof { time: self.time, level, packs, points };
        ledger.learn(proof(Level::Data, sound, Vec::new()));
        let needed: HashSet<PackUid> = outcome.needed.iter().copied().collect();
        ledger.packs.retain(|pack, _| needed.contains(pack) && !damaged.contains(pack));
        ledger.points.retain(|(point, _), _| outcome.points.contains(point));
        let whole: Vec<SnapshotId> = outcome.points.difference(outcome.hurt).copied().collect();
        // A point's content is as proven as that of the pack which was not looked at for longest. That of a damaged pack was
        // looked at now, and whom it hurts is known.
        let last_read =
            |pack: &PackUid| if damaged.contains(pack) { Some(self.time) } else { ledger.packs.get(pack).copied() };
        let all_read: Option<Vec<Timestamp>> = needed.iter().map(last_read).collect();
        if let Some(time) = all_read.map(|times| times.into_iter().min().unwrap_or(self.time)) {
            ledger.learn(Proof { time, ..proof(Level::Data, Vec::new(), whole.clone()) });
        }
        ledger.learn(proof(Level::Structure, Vec::new(), whole));
        let mut records = ledger.proofs();
        let last = records.pop().unwrap_or_default();
        for proofs in records {
            self.put(&Verified { proofs, superseded: Vec::new() })?;
        }
        self.put(&Verified { proofs: last, superseded: superseded.into_iter().collect() })
    }

    fn put(&self, verified: &Verified) -> Result<()> {
        let name = verified::name(RecordId(fresh(self.repo.entropy())?));
        match self.repo.put_record(ObjectKind::Verified, &name, &verified.encode()?)? {
            Put::Created => Ok(()),
            Put::Exists => Err(Error::internal(format!("{name} exists although its name is random"))),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_seconds(seconds).unwrap()
    }

    fn uid(n: u64) -> PackUid {
        let mut uid = [0; 16];
        uid[..8].copy_from_slice(&n.to_be_bytes());
        PackUid(uid)
    }

    fn again(records: Vec<Vec<Proof>>) -> Ledger {
        let mut ledger = Ledger::default();
        for proofs in records {
            // What is written is what can be read.
            let body = Verified { proofs, superseded: Vec::new() }.encode().unwrap();
            Verified::decode(&body).unwrap().proofs.into_iter().for_each(|proof| ledger.learn(proof));
        }
        ledger
    }

    #[test]
    fn a_ledger_is_divided_and_put_together_again() {
        let mut ledger = Ledger::default();
        let packs = PACKS_MAX as u64 * 2 + 5;
        ledger.packs.extend((0..packs).map(|n| (uid(n), at(n % 7))));
        ledger.points.insert((SnapshotId([1; 16]), Level::Data), at(3));
        ledger.points.insert((SnapshotId([1; 16]), Level::Structure), at(9));
        let records = ledger.clone().proofs();
        assert_eq!(records.len(), 3);
        assert!(records.iter().all(|r| r.iter().map(|p| p.packs.len()).sum::<usize>() <= PACKS_MAX));
        let read = again(records);
        assert!(read.packs == ledger.packs);
        assert_eq!(read.points, ledger.points);
        assert_eq!(again(Ledger::default().proofs()).packs.len(), 0);
    }

    #[test]
    fn old_times_become_one_and_never_a_later_one() {
        let mut ledger = Ledger::default();
        ledger.packs.extend((0..1000).map(|n| (uid(n), at(n))));
        let read = again(ledger.clone().proofs());
        assert_eq!(read.packs.values().collect::<BTreeSet<_>>().len(), TIMES + 1);
        assert!(ledger.packs.iter().all(|(pack, time)| read.packs[pack] <= *time));
        assert_eq!(read.packs[&uid(999)], at(999));
    }

    #[test]
    fn what_is_proven_of_content_is_proven_of_structure() {
        let mut ledger = Ledger::default();
        let id = SnapshotId([1; 16]);
        assert_eq!(ledger.point(id, Level::Structure), None);
        ledger.points.insert((id, Level::Structure), at(5));
        assert_eq!((ledger.point(id, Level::Structure), ledger.point(id, Level::Data)), (Some(at(5)), None));
        ledger.points.insert((id, Level::Data), at(7));
        assert_eq!((ledger.point(id, Level::Structure), ledger.point(id, Level::Data)), (Some(at(7)), Some(at(7))));
    }
}
