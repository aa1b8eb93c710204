//! What must be true of a store that began as a [`Stage`], whatever was done to it: at every moment what was committed and not
//! forgotten reads back; after quiet collections nothing is left that nobody needs.
//!
//! Not here: what is done to it. What holds: what the audit finds it finds by reading points and by noting of which objects that
//! reads; of moved records it is content with those about frames that some pack holds.

// A harness speaks by failing.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use crate::counting::Counting;
use crate::rig::{at, collect, collecting, open};
use crate::stage::{Contents, Kinds, Stage, content};
use coffer_repo::Error;
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Listed, list_sorted};
use coffer_repo::cancel::Cancel;
use coffer_repo::collector::CollectOptions;
use coffer_repo::crypto::Codec;
use coffer_repo::id::{ChunkId, SnapshotId};
use coffer_repo::location::{IndexKey, PackKind, Stored};
use coffer_repo::pack::{PackBuilder, PackOptions};
use coffer_repo::reader::{Reader, ReaderOptions};
use coffer_repo::repository::Repository;
use coffer_repo::session::SessionTag;
use coffer_repo::snapshot::{ClaimName, Forget, Snapshot};
use coffer_repo::verify::{DataCheck, VerifyOptions, VerifyProgress, verify};
use coffer_repo::{moved, pack};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

/// A time long after everything else: who collects then takes every session for dead.
pub const LATE: u64 = 100_000_000;

/// What stays of a claim that was revoked, where the store has no put-if-absent: what was put beside it, too.
const REVOKED: [&str; 3] = ["/decision", "/revoke", "/intent"];

/// Looks at a store and remembers what it has to hold.
pub struct Audit<'a> {
    store: Arc<Memory>,
    repo: Arc<Repository>,
    dir: &'a Path,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    contents: Contents,
    /// Points whose writers were told that they are committed.
    committed: BTreeSet<SnapshotId>,
    /// Points that somebody tried to forget.
    forgotten: BTreeSet<SnapshotId>,
    failures: Vec<Failure>,
}

/// What is not as it should be.
#[derive(Clone, Debug)]
pub enum Failure {
    /// A point that was committed, and not forgotten, cannot be read.
    Loss(String),
    /// Anything else.
    Other(String),
}

impl<'a> Audit<'a> {
    /// Of a store that began as `stage`.
    pub fn new(store: Arc<Memory>, repo: Arc<Repository>, stage: &Stage, dir: &'a Path) -> Self {
        let (contents, committed) = (stage.contents.clone(), stage.points.iter().copied().collect());
        Audit { store, repo, dir, book: Mutex::new(Book { contents, committed, ..Book::default() }) }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    /// The repository as nobody else has it: nothing is scheduled.
    pub fn repo(&self) -> Arc<Repository> {
        Arc::clone(&self.repo)
    }

    /// A backup of `kinds` begins.
    pub fn expect(&self, workload: &str, time: u64, kinds: Kinds) {
        self.book().contents.insert((workload.to_owned(), time), kinds);
    }

    /// What a point has to hold.
    pub fn kinds_of(&self, snapshot: &Snapshot) -> Option<Kinds> {
        self.book().contents.get(&(snapshot.workload.clone(), snapshot.time().seconds())).copied()
    }

    /// Its writer was told that it is committed.
    pub fn committed(&self, snapshot: &Snapshot) {
        self.book().committed.insert(snapshot.id());
    }

    /// Somebody is about to forget it.
    pub fn forgets(&self, snapshot: &Snapshot) {
        self.book().forgotten.insert(snapshot.id());
    }

    /// Notes that something is not as it should be.
    pub fn fail(&self, failure: Failure) {
        self.book().failures.push(failure);
    }

    /// What was noted so far.
    pub fn failures(&self) -> Vec<Failure> {
        std::mem::take(&mut self.book().failures)
    }

    /// Reads every point.
    pub fn look(&self, when: &str) {
        if let Err(why) = self.read_all(&self.repo) {
            self.fail(Failure::Loss(format!("{when}: {why}")));
        }
    }

    /// The points, all of which read as they should.
    fn read_all(&self, repo: &Arc<Repository>) -> Result<BTreeSet<SnapshotId>, String> {
        let points = repo.points().map_err(|e| format!("listing points: {e:?}"))?;
        if let Some((name, e)) = points.damaged.first() {
            return Err(format!("{name} is damaged: {e:?}"));
        }
        for snapshot in &points.snapshots {
            // Nothing is remembered: each point is read by its own maps.
            let options = ReaderOptions { cache_bytes: 0, readahead_bytes: 0, threads: 1 };
            let reader = Reader::new(Arc::clone(repo), options).map_err(|e| e.to_string())?;
            let kinds = self.kinds_of(snapshot).ok_or_else(|| format!("nobody made {}", snapshot.name))?;
            holds(&reader, snapshot, kinds).map_err(|why| format!("{}: {why}", snapshot.name))?;
        }
        Ok(points.snapshots.iter().map(Snapshot::id).collect())
    }

    /// After the storm: collects in peace, and looks at what is left.
    pub fn settle(&self, seed: u64) -> Result<(), Failure> {
        self.all_is_there().map_err(Failure::Loss)?;
        for name in self.contested().map_err(Failure::Other)?.keys() {
            self.repo.forget(*name, at(LATE * 3)).map_err(|e| Failure::Other(format!("giving up {name}: {e:?}")))?;
        }
        self.collect_in_peace(seed).map_err(Failure::Other)?;
        self.all_is_there().map_err(Failure::Loss)?;
        self.all_is_needed(seed + 3).map_err(Failure::Other)
    }

    /// Claims that were committed and revoked at once, and the objects of each, where the store has no put-if-absent: nobody
    /// decides them any more, and people forget them.
    fn contested(&self) -> Result<BTreeMap<ClaimName, BTreeSet<String>>, String> {
        let mut claims: BTreeMap<ClaimName, BTreeSet<String>> = BTreeMap::new();
        for object in list_sorted(&*self.store, "snapshots/").map_err(|e| e.to_string())? {
            if let Some((name, _)) = ClaimName::parse(&object.name) {
                claims.entry(name).or_default().insert(object.name);
            }
        }
        claims.retain(|name, parts| {
            parts.contains(&name.intent()) && parts.contains(&name.revoke()) && !parts.contains(&name.decision())
        });
        Ok(claims)
    }

    fn collect_in_peace(&self, seed: u64) -> Result<(), String> {
        for round in 0..3 {
            let repo = open(self.store.clone(), seed + round).map_err(|e| e.to_string())?;
            // Moved records are dropped together with packs.
            litter(&repo).map_err(|e| format!("littering: {e:?}"))?;
            let options = CollectOptions { dead_after: 0, ..collecting(self.dir, LATE * 3) };
            let report = collect(&repo, &options).map_err(|e| format!("collecting in peace: {e:?}"))?;
            if !(report.unwalkable.is_empty() && report.lost == 0 && report.damaged.is_empty()) {
                return Err(format!("collecting in peace: {report:?}"));
            }
        }
        let options = VerifyOptions { data: DataCheck::All, threads: 1, ..VerifyOptions::default() };
        let report = verify(&self.repo, options, &VerifyProgress::default(), &Cancel::default());
        let problems = report.map_err(|e| format!("verifying: {e:?}"))?.problems;
        if problems.is_empty() { Ok(()) } else { Err(format!("verifying: {problems:?}")) }
    }

    /// What was committed and not forgotten is visible and reads back.
    fn all_is_there(&self) -> Result<(), String> {
        let visible = self.read_all(&self.repo)?;
        let book = self.book();
        match book.committed.difference(&book.forgotten).find(|id| !visible.contains(id)) {
            Some(lost) => Err(format!("{lost} was committed, and nobody forgot it; it is gone")),
            None => Ok(()),
        }
    }

    /// Who reads all points reads of every pack that is left; of other objects only those are left that points are made of,
    /// decisions that revoke, index deltas, and moved records about what is left.
    fn all_is_needed(&self, seed: u64) -> Result<(), String> {
        let counting = Arc::new(Counting::new(self.store.clone_state()));
        let repo = open(Arc::clone(&counting) as _, seed).map_err(|e| e.to_string())?;
        self.read_all(&repo)?;
        let read = counting.found();
        let points = self.repo.points().map_err(|e| e.to_string())?.snapshots;
        let mut named: BTreeSet<String> =
            points.iter().flat_map(|s| [s.name.claim(), s.name.decision(), s.name.intent(), s.name.revoke()]).collect();
        for (name, parts) in self.contested()? {
            named.extend(parts);
            named.insert(Forget::name(name.id));
        }
        let all = list_sorted(&*self.store, "").map_err(|e| e.to_string())?;
        for object in &all {
            let name = object.name.as_str();
            let is_due = match name.split('/').next().unwrap_or_default() {
                "repo" | "keys" | "index" | "features" => true,
                // What revoked stays, and with it an intent that came too late.
                "snapshots" => named.contains(name) || REVOKED.iter().any(|part| name.ends_with(part)),
                "forgets" => named.contains(name),
                "packs" | "trees" => read.contains(name) || self.is_spare(name, &all, &read)?,
                "moved" => self.sends_somebody(name, &all)?,
                _ => false,
            };
            if !is_due {
                return Err(format!("{name} is left, though nobody needs it"));
            }
        }
        Ok(())
    }

    /// Whether a moved record leads into this pack, and what it holds lies as well in another one that was read: two collectors
    /// copied the same, and either copy may serve.
    fn is_spare(&self, name: &str, all: &[Listed], read: &BTreeSet<String>) -> Result<bool, String> {
        let uid = pack::parse_name(name).ok_or("a pack without a name")?.1;
        let mut is_led_to = false;
        for (from, _) in all.iter().filter_map(|o| moved::parse_name(&o.name)) {
            is_led_to |= self.repo.relocated(from).map_err(|e| e.to_string())?.iter().any(|line| line.to.pack == uid);
        }
        let held = self.ids_in(name)?;
        for other in read.iter().filter(|other| is_led_to && pack::parse_name(other).is_some()) {
            if !held.is_disjoint(&self.ids_in(other)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a moved record is about a pack that is gone and held what is in a pack that is there.
    fn sends_somebody(&self, name: &str, all: &[Listed]) -> Result<bool, String> {
        let from = moved::parse_name(name).ok_or("a moved record without a pack")?.0;
        let lines = self.repo.relocated(from).map_err(|e| e.to_string())?;
        let mut is_needed = false;
        for (_, uid, other) in
            all.iter().filter_map(|o| pack::parse_name(&o.name).map(|(kind, uid)| (kind, uid, &o.name)))
        {
            if uid == from {
                return Ok(false);
            }
            let held = self.ids_in(other)?;
            is_needed |= lines.iter().any(|line| held.iter().any(|id| IndexKey::of(id) == line.key));
        }
        Ok(is_needed)
    }

    fn ids_in(&self, name: &str) -> Result<BTreeSet<[u8; 32]>, String> {
        let (kind, uid) = pack::parse_name(name).ok_or("a pack without a name")?;
        let read = pack::read_contents(self.repo.backend(), self.repo.keys(), kind, uid);
        Ok(read.map_err(|e| e.to_string())?.0.iter().map(|entry| *entry.stored.id()).collect())
    }
}

/// Stores a pack that nobody needs.
fn litter(repo: &Repository) -> Result<(), Error> {
    let (kind, aead) = (PackKind::Data, repo.descriptor().aead);
    let options = PackOptions { kind, aead, target_len: 0, session: SessionTag::default() };
    let mut builder = PackBuilder::new(repo.keys(), options, Vec::new(), repo.entropy())?;
    builder.append(Stored::Chunk(ChunkId([7; 32])), Codec::Raw, 4, b"dirt")?;
    let pack = builder.finish()?;
    repo.backend().put(&pack.name, &[&pack.bytes]).map(drop)
}

/// Whether a point's disk is what it should be. An error says what is not.
pub fn holds(reader: &Arc<Reader>, snapshot: &Snapshot, kinds: Kinds) -> Result<(), String> {
    let content = content(kinds);
    let disk = reader.disk(snapshot, "d").map_err(|e| format!("{e:?}"))?;
    if disk.size() != content.size {
        return Err(format!("{} bytes where {} are due", disk.size(), content.size));
    }
    for (at, bytes) in &content.stretches {
        // A block more, which is zero.
        let mut read = vec![0xa5; bytes.len() + 4096];
        disk.read_at(*at, &mut read).map_err(|e| format!("{e:?}"))?;
        let (front, back) = read.split_at(bytes.len());
        if front != bytes || back.iter().any(|b| *b != 0) {
            return Err(format!("other bytes at {at}"));
        }
    }
    Ok(())
}
