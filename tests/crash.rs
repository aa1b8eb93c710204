//! The crash test: a machine dies at every storage operation of a flow in turn, before or after the operation took
//! effect; the store that it leaves is opened again and looked at.
//!
//! What holds afterwards, whatever the operation: every committed snapshot reads back whole, nothing that was not
//! committed is visible, everything whose call succeeded stays so, the next backup succeeds and sends nothing again
//! that had arrived, and the next collections leave nothing that no point needs. Not here: what file systems do in a
//! crash (the local backend's own tests), and what others do at the same time (`storm.rs`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "seeds are told, so that a failure can be repeated")]

use coffer_repo::backend::faulty::{Counted, Fatal, Faulty, Plan, Stop};
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, list_sorted};
use coffer_repo::collector::CollectOptions;
use coffer_repo::id::SnapshotId;
use coffer_repo::location::PackKind;
use coffer_repo::pack;
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::{ClaimName, ClaimPart, Snapshot};
use coffer_repo::{Error, Result};
use coffer_tests::audit::{Audit, LATE};
use coffer_tests::dice::Dice;
use coffer_tests::disk::DiskContent;
use coffer_tests::rig::{
    Job, at, collect, collecting, copy_all, copying, init, learn_packs, open, open_index, read_disk,
};
use coffer_tests::stage::{Kinds, Stage, content};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

const SEED: u64 = 7;

/// Contents of the flow's backups, by workload and time.
struct Contents {
    first: DiskContent,
    second: DiskContent,
    other: DiskContent,
}

impl Contents {
    fn new() -> Self {
        let mut dice = Dice::new(SEED);
        let mut noise = |len: usize| {
            let mut bytes = vec![0; len];
            dice.noise(&mut bytes);
            bytes
        };
        // Three windows, of which the middle one stays as it is.
        let first = noise(2_600_000);
        let mut second = first.clone();
        second[700_000..900_000].copy_from_slice(&noise(200_000));
        second.extend(noise(400_000));
        let other = noise(1_400_000);
        Contents { first: first.into(), second: second.into(), other: other.into() }
    }

    /// What a snapshot of the flow has to hold.
    fn of(&self, snapshot: &Snapshot) -> Option<&DiskContent> {
        match (snapshot.workload.as_str(), snapshot.time().seconds()) {
            ("web", 10) => Some(&self.first),
            ("web", 20) => Some(&self.second),
            ("db", 30) => Some(&self.other),
            _ => None,
        }
    }
}

/// What the flow was told before it ended.
#[derive(Default)]
struct Told {
    committed: BTreeSet<SnapshotId>,
    forgotten: BTreeSet<SnapshotId>,
}

/// The flow that dies: two backups of one workload, one of another, and the first one forgotten in between.
fn flow(store: Arc<dyn Backend>, contents: &Contents, dir: &Path, told: &mut Told) -> Result<()> {
    let repo = open(store, 2)?;
    let index = open_index(&repo, dir)?;
    let first = Job::new("web", 10, vec![("d", &contents.first)]).run(&repo, &index)?;
    told.committed.insert(first.id());
    let second = Job::new("web", 20, vec![("d", &contents.second)]).on(Some(first.clone())).run(&repo, &index)?;
    told.committed.insert(second.id());
    repo.forget(first.name, at(25))?;
    told.forgotten.insert(first.id());
    let other = Job::new("db", 30, vec![("d", &contents.other)]).run(&repo, &index)?;
    told.committed.insert(other.id());
    Ok(())
}

/// What must be true of the store that a crash left. An error says what is not.
fn check(store: &Memory, contents: &Contents, told: &Told) -> Result<(), String> {
    let repo = open(Arc::new(store.clone_state()), 3).map_err(|e| format!("opening: {e:?}"))?;
    let points = repo.points().map_err(|e| format!("listing: {e:?}"))?;
    if let Some((name, e)) = points.damaged.first() {
        return Err(format!("{name} is damaged: {e:?}"));
    }
    let visible: BTreeSet<SnapshotId> = points.snapshots.iter().map(Snapshot::id).collect();
    for snapshot in &points.snapshots {
        let due = contents.of(snapshot).ok_or_else(|| format!("nobody made {}", snapshot.name))?;
        let read = read_disk(&repo, snapshot, "d").map_err(|e| format!("reading {}: {e:?}", snapshot.name))?;
        if due.stretches[&0] != read {
            return Err(format!("{} reads other bytes than were backed up", snapshot.name));
        }
    }
    // Told from the names of the objects alone, apart from the code under test.
    let names: BTreeSet<String> =
        list_sorted(store, "").map_err(|e| e.to_string())?.into_iter().map(|o| o.name).collect();
    let decided = names.iter().filter_map(|n| ClaimName::parse(n)).filter(|(_, part)| *part == ClaimPart::Decision);
    let due: BTreeSet<_> = decided.map(|(n, _)| n.id).filter(|id| !names.contains(&format!("forgets/{id}"))).collect();
    if visible != due {
        return Err(format!("visible {visible:?}, committed and not forgotten {due:?}"));
    }
    if let Some(lost) =
        told.committed.iter().find(|id| !visible.contains(id) && !names.contains(&format!("forgets/{id}")))
    {
        return Err(format!("{lost} was committed and is lost"));
    }
    match told.forgotten.intersection(&visible).next() {
        Some(back) => Err(format!("{back} was forgotten and is back")),
        None => Ok(()),
    }
}

/// Raw bytes of the chunks in the data packs that are there, by id.
fn chunks_in(repo: &Repository) -> BTreeMap<[u8; 32], u64> {
    let mut chunks = BTreeMap::new();
    for object in list_sorted(repo.backend(), PackKind::Data.prefix()).unwrap() {
        let (kind, uid) = pack::parse_name(&object.name).unwrap();
        let (entries, _) = pack::read_contents(repo.backend(), repo.keys(), kind, uid).unwrap();
        chunks.extend(entries.iter().map(|e| (*e.stored.id(), u64::from(e.location.raw_len))));
    }
    chunks
}

/// Everything in `contents`, once, in one backup.
fn back_up_again(store: Arc<dyn Backend>, contents: &Contents) -> Result<(Arc<Repository>, Snapshot)> {
    let dir = tempfile::tempdir().map_err(|e| Error::internal(e.to_string()))?;
    let repo = open(store, 4)?;
    let index = open_index(&repo, dir.path())?;
    learn_packs(&repo, &index)?;
    let disks = vec![("first", &contents.first), ("second", &contents.second), ("other", &contents.other)];
    let snapshot = Job::new("again", 40, disks).run(&repo, &index)?;
    Ok((repo, snapshot))
}

/// Runs the flow until it dies at operation `n`; true when it came to its end instead.
fn crash_at(start: &Memory, contents: &Contents, needed: &BTreeMap<[u8; 32], u64>, stop: Stop) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let faulty = Arc::new(Faulty::new(start.clone_state(), Plan { stop: Some(stop), ..Plan::default() }));
    let mut told = Told::default();
    let ended = flow(faulty.clone(), contents, dir.path(), &mut told);
    let left = faulty.inner().clone_state();
    check(&left, contents, &told).unwrap_or_else(|why| panic!("{stop:?}: {why}"));

    let arrived = chunks_in(&open(Arc::new(left.clone_state()), 5).unwrap());
    let left: Arc<dyn Backend> = Arc::new(left);
    let (repo, again) = back_up_again(left, contents).unwrap_or_else(|e| panic!("{stop:?}: backing up again: {e:?}"));
    let missing: u64 = needed.iter().filter(|(id, _)| !arrived.contains_key(*id)).map(|(_, len)| len).sum();
    assert_eq!(again.stats.new_raw, missing, "{stop:?}: bytes that were sent again");
    for (disk, content) in [("first", &contents.first), ("second", &contents.second), ("other", &contents.other)] {
        assert!(read_disk(&repo, &again, disk).unwrap() == content.stretches[&0], "{stop:?}: {disk}");
    }
    ended.is_ok()
}

/// An empty repository, and all chunks that `contents` are made of.
fn start(contents: &Contents) -> (Memory, BTreeMap<[u8; 32], u64>) {
    let store = Arc::new(Memory::default());
    init(store.clone(), 1).unwrap();
    let start = store.clone_state();
    let (repo, _) = back_up_again(store, contents).unwrap();
    (start, chunks_in(&repo))
}

fn crash_everywhere(counted: Counted, fatal: Fatal) {
    let contents = Contents::new();
    let (start, needed) = start(&contents);
    let mut at = 1;
    while !crash_at(&start, &contents, &needed, Stop { at, counted, fatal }) {
        at += 1;
    }
    // Sessions, packs, trees, deltas, claims, decisions and a forget make more than this.
    assert!(at > 25, "the flow ended after {at} operations");
    println!("{at} operations, seed {SEED}");
}

#[test]
fn a_crash_before_any_operation_took_effect() {
    crash_everywhere(Counted::Every, Fatal::Lost);
}

#[test]
fn a_crash_after_any_put_or_delete_took_effect() {
    crash_everywhere(Counted::Mutating, Fatal::Done);
}

/// What a backup on a stage is of.
const NEW: (&str, u64, Kinds) = ("mail", 100, [20, 21, 0]);

/// A repository with three points in `store`, to be copied.
fn copied_from(contents: &Contents) -> Memory {
    let (store, dir) = (Arc::new(Memory::default()), tempfile::tempdir().unwrap());
    init(store.clone(), 11).unwrap();
    let repo = open(store.clone(), 12).unwrap();
    let index = open_index(&repo, dir.path()).unwrap();
    let first = Job::new("web", 10, vec![("d", &contents.first)]).run(&repo, &index).unwrap();
    Job::new("web", 20, vec![("d", &contents.second)]).on(Some(first)).run(&repo, &index).unwrap();
    Job::new("db", 30, vec![("d", &contents.other)]).run(&repo, &index).unwrap();
    store.clone_state()
}

/// Copies all points; bytes of the chunks that this stored.
fn copy_points(from: Arc<dyn Backend>, to: Arc<dyn Backend>, entropy: u64) -> Result<u64> {
    let dir = tempfile::tempdir().map_err(|e| Error::internal(e.to_string()))?;
    let (source, destination) = (open(from, entropy)?, open(to, entropy + 1)?);
    let index = open_index(&destination, dir.path())?;
    learn_packs(&destination, &index)?;
    let made = copy_all(&source, &destination, &index, &copying(1000))?;
    Ok(made.iter().map(|made| made.snapshot.stats.new_raw).sum())
}

/// Copies until either store dies at operation `n`, then copies again; true when the first came to its end.
fn copy_that_crashes(contents: &Contents, source: &Memory, start: &Memory, stop: Stop, at_source: bool) -> bool {
    let plan = |dies: bool| Plan { stop: dies.then_some(stop), ..Plan::default() };
    let from = Arc::new(Faulty::new(source.clone_state(), plan(at_source)));
    let to = Arc::new(Faulty::new(start.clone_state(), plan(!at_source)));
    let ended = copy_points(from.clone(), to.clone(), 20);
    let (from, left) = (from.inner().clone_state(), to.inner().clone_state());
    for store in [&from, &left] {
        check(store, contents, &Told::default()).unwrap_or_else(|why| panic!("{stop:?}: {why}"));
    }
    let left = Arc::new(left);
    let raw = || chunks_in(&open(left.clone(), 30).unwrap()).values().sum::<u64>();
    let arrived = raw();
    // A point that the source could not show was left out.
    let is_complete = open(left.clone(), 28).unwrap().points().unwrap().snapshots.len() == 3;
    let sent =
        copy_points(Arc::new(from.clone_state()), left.clone(), 40).unwrap_or_else(|e| panic!("{stop:?}: {e:?}"));
    assert_eq!(arrived + sent, raw(), "{stop:?}: a chunk was sent again");
    let repo = open(left, 50).unwrap();
    let points = repo.points().unwrap().snapshots;
    for point in &points {
        let due = &contents.of(point).unwrap().stretches[&0];
        assert!(read_disk(&repo, point, "d").unwrap() == *due, "{stop:?}: {}", point.name);
    }
    let origins: BTreeSet<_> = points.iter().map(|point| point.copied.unwrap().origin).collect();
    assert_eq!((points.len(), origins.len()), (3, 3), "{stop:?}");
    is_complete && ended.is_ok()
}

#[test]
fn a_copy_that_crashes_leaves_whole_points_and_goes_on() {
    let contents = Contents::new();
    let source = copied_from(&contents);
    let (start, _) = start(&contents);
    for (counted, fatal, at_source) in [
        (Counted::Every, Fatal::Lost, false),
        (Counted::Mutating, Fatal::Done, false),
        (Counted::Every, Fatal::Lost, true),
    ] {
        let mut at = 1;
        while !copy_that_crashes(&contents, &source, &start, Stop { at, counted, fatal }, at_source) {
            at += 1;
        }
        assert!(at > 25, "the flow ended after {at} operations");
        println!("{at} operations");
    }
}

/// What is done to a stage, with a directory for scratch; the point that it committed.
type Flow = dyn Fn(Arc<dyn Backend>, &Path) -> Result<Option<Snapshot>>;

/// Runs `flow` on a stage until it dies at operation 1, 2, 3 ... and has the audit look at what is left.
fn crash_on_stage(counted: Counted, fatal: Fatal, least: u64, flow: &Flow) {
    let scratch = tempfile::tempdir().unwrap();
    let stage = Stage::build(scratch.path());
    let mut at = 0;
    loop {
        at += 1;
        let dir = tempfile::tempdir().unwrap();
        let stop = Stop { at, counted, fatal };
        let faulty = Arc::new(Faulty::new(stage.store.clone_state(), Plan { stop: Some(stop), ..Plan::default() }));
        let ended = flow(faulty.clone(), dir.path());
        let store = Arc::new(faulty.inner().clone_state());
        let audit = Audit::new(Arc::clone(&store), open(store, 1000).unwrap(), &stage, dir.path());
        audit.expect(NEW.0, NEW.1, NEW.2);
        if let Ok(Some(snapshot)) = &ended {
            audit.committed(snapshot);
        }
        audit.settle(2000).unwrap_or_else(|why| panic!("{stop:?}: {why:?}"));
        if ended.is_ok() {
            break;
        }
    }
    assert!(at > least, "the flow ended after {at} operations");
    println!("{at} operations");
}

/// A collection that copies out of everything it can, with a forgotten point, moved packs, a condemned one, and claims to sweep.
fn collection(store: Arc<dyn Backend>, dir: &Path) -> Result<Option<Snapshot>> {
    let options = CollectOptions { repack_below: 99, dead_after: 0, ..collecting(dir, LATE) };
    collect(&open(store, 3000)?, &options).map(|_| None)
}

#[test]
fn a_collection_that_crashes_before_any_operation_took_effect() {
    crash_on_stage(Counted::Every, Fatal::Lost, 100, &collection);
}

#[test]
fn a_collection_that_crashes_after_any_put_or_delete_took_effect() {
    crash_on_stage(Counted::Mutating, Fatal::Done, 30, &collection);
}

/// What a backup left that died is collected once its session is old.
#[test]
fn what_crashed_backups_leave_is_collected() {
    let backup = |store: Arc<dyn Backend>, dir: &Path| {
        let repo = open(store, 3000)?;
        let index = open_index(&repo, &dir.join("index"))?;
        let (workload, time, kinds) = NEW;
        Job::new(workload, time, vec![("d", &content(kinds))]).run(&repo, &index).map(Some)
    };
    crash_on_stage(Counted::Every, Fatal::Lost, 15, &backup);
    crash_on_stage(Counted::Mutating, Fatal::Done, 6, &backup);
}

/// The guard of the checks above: they miss neither an object that is gone nor one that nobody committed.
#[test]
fn the_check_finds_what_is_lost_and_what_is_too_much() {
    let contents = Contents::new();
    let (start, _) = start(&contents);
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(start.clone_state());
    let mut told = Told::default();
    flow(store.clone(), &contents, dir.path(), &mut told).unwrap();
    check(&store, &contents, &told).unwrap();
    for object in list_sorted(&*store, "").unwrap() {
        let optional = ["index/", "sessions/"].iter().any(|p| object.name.starts_with(p));
        let forgotten = told.forgotten.iter().any(|id| object.name.contains(&format!("{id}/")));
        let without = store.clone_state();
        without.delete(&object.name).unwrap();
        let found = check(&without, &contents, &told);
        assert_eq!(found.is_err(), !optional && !forgotten, "{}: {found:?}", object.name);
    }
    let mut other = Contents::new();
    other.second.stretches.get_mut(&0).unwrap()[5] ^= 1;
    assert!(check(&store, &other, &told).unwrap_err().contains("other bytes"));
}
