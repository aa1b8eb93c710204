//! Stores that promise less than the contract: a probe finds out what they lack, what is sound on them works, and what is not is
//! refused.
//!
//! Not here: the protocol's model, which searches the decision without put-if-absent exhaustively, and the storm, which drives
//! its implementation. What holds: no assertion is about time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use coffer_repo::Kind;
use coffer_repo::backend::faulty::{Faulty, Plan};
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, Put, list_sorted};
use coffer_repo::cancel::Cancel;
use coffer_repo::collector::CollectOptions;
use coffer_repo::entropy::Seeded;
use coffer_repo::probe::{self, ProbeOptions, ProbeReport, Promise};
use coffer_repo::repository::Repository;
use coffer_repo::rotation::rotate;
use coffer_repo::sealed::ObjectKind;
use coffer_repo::snapshot::{ClaimName, Decision};
use coffer_repo::store_class::StoreClass;
use coffer_tests::dice::Dice;
use coffer_tests::disk::DiskContent;
use coffer_tests::rig::{Job, at, collect, collecting, init, open, open_index, read_disk};
use coffer_tests::weak::{Weak, Weakness};
use std::sync::Arc;
use std::time::Duration;

const OVERWRITES: Weakness =
    Weakness { overwrites_one_in: 1, unlisted_one_in: 0, ghosts_one_in: 0, remembers_absence: false, is_known: false };

fn options(rounds: u32) -> ProbeOptions {
    ProbeOptions { racers: 4, rounds, limit: Duration::from_secs(600), now: at(100_000) }
}

fn try_out(store: &Arc<dyn Backend>, rounds: u32) -> coffer_repo::Result<ProbeReport> {
    let connections = [Arc::clone(store), Arc::clone(store)];
    probe::probe(&connections, &options(rounds), &Seeded::new(1), &Cancel::default())
}

fn content(seed: u64) -> DiskContent {
    let mut bytes = vec![0; 1_500_000];
    Dice::new(seed).noise(&mut bytes);
    bytes.into()
}

fn names(store: &dyn Backend, prefix: &str) -> Vec<String> {
    list_sorted(store, prefix).unwrap().into_iter().map(|object| object.name).collect()
}

#[test]
fn a_probe_finds_out_what_a_store_lacks_and_leaves_nothing() {
    let strong = Weakness::default();
    for (weakness, class, broken) in [
        (strong, StoreClass::Strong, None),
        (OVERWRITES, StoreClass::Overwriting, Some(Promise::PutIfAbsent)),
        // Rarely: 4 puts a round that come too late, and one of 100 of them replaces what is there.
        (Weakness { overwrites_one_in: 100, ..strong }, StoreClass::Overwriting, Some(Promise::PutIfAbsent)),
        (Weakness { unlisted_one_in: 1, ..strong }, StoreClass::Lagging, Some(Promise::ListAfterPut)),
        (Weakness { unlisted_one_in: 50, ..strong }, StoreClass::Lagging, Some(Promise::ListAfterPut)),
        (Weakness { ghosts_one_in: 50, ..strong }, StoreClass::Lagging, Some(Promise::ListAfterDelete)),
        (Weakness { remembers_absence: true, ..strong }, StoreClass::Lagging, Some(Promise::ReadAfterPut)),
        (Weakness { is_known: true, ..strong }, StoreClass::Lagging, None),
        (Weakness { ghosts_one_in: 1, ..OVERWRITES }, StoreClass::Lagging, Some(Promise::PutIfAbsent)),
    ] {
        let store: Arc<dyn Backend> = Arc::new(Weak::new(weakness));
        let report = try_out(&store, 60).unwrap();
        assert_eq!(report.class, class, "{weakness:?}: {report:?}");
        assert_eq!(report.rounds, 60);
        match broken {
            Some(promise) => assert!(report.breaches[&promise].rounds > 0, "{weakness:?}: {report:?}"),
            None => assert!(report.breaches.is_empty(), "{weakness:?}: {report:?}"),
        }
        assert_eq!(report.known.is_some(), weakness.is_known);
        // The last object may be listed once more although it is gone.
        let _ = names(&*store, "");
        assert_eq!(names(&*store, ""), [""; 0], "{weakness:?}");
    }
}

#[test]
fn passing_errors_are_no_breaches_and_a_store_without_answers_is_none() {
    let rough = Plan { seed: 7, fail_before: 20, fail_after: 20, ..Plan::default() };
    let store: Arc<dyn Backend> = Arc::new(Faulty::new(Memory::default(), rough));
    // Clearing up may meet an error of its own.
    if let Ok(report) = try_out(&store, 60) {
        assert_eq!(report.class, StoreClass::Strong, "{report:?}");
        assert!(report.troubled > 0 && report.troubled < report.rounds, "{report:?}");
    }
    let dead: Arc<dyn Backend> =
        Arc::new(Faulty::new(Memory::default(), Plan { seed: 7, fail_before: 1000, ..Plan::default() }));
    assert_eq!(try_out(&dead, 60).unwrap_err().kind(), Kind::Unavailable);
    let full: Arc<dyn Backend> = Arc::new(Faulty::new(Memory::default(), Plan { full: 1000, ..Plan::default() }));
    assert_eq!(try_out(&full, 60).unwrap_err().kind(), Kind::Full);
    let slow: Arc<dyn Backend> = Arc::new(Memory::default());
    let limited = ProbeOptions { limit: Duration::ZERO, ..options(60) };
    let e = probe::probe(&[Arc::clone(&slow), slow], &limited, &Seeded::new(1), &Cancel::default()).unwrap_err();
    assert!(e.to_string().contains("0 rounds"), "{e}");
}

#[test]
fn what_a_probe_left_is_collected_a_day_later() {
    let store: Arc<dyn Backend> = Arc::new(Memory::default());
    let repo = init(Arc::clone(&store), 1).unwrap();
    let id = "00112233445566778899aabbccddeeff";
    let [old, young] = [at(1_000_000), at(1_080_000)].map(|time| format!("probe/{time}-{id}/000001/object"));
    for name in [&old, &young] {
        assert_eq!(store.put(name, &[b"x"]).unwrap(), Put::Created);
    }
    let dir = tempfile::tempdir().unwrap();
    collect(&repo, &collecting(dir.path(), 1_000_000 + 86_400)).unwrap();
    assert_eq!(names(&*store, "probe/"), [young]);
}

/// An earlier finding goes on to count, and everybody who opens the repository later has it.
#[test]
fn a_later_probe_only_weakens() {
    let store: Arc<dyn Backend> = Arc::new(Memory::default());
    let repo = init(Arc::clone(&store), 1).unwrap();
    assert_eq!(repo.store_class(), None);
    for (found, counts) in [
        (StoreClass::Strong, StoreClass::Strong),
        (StoreClass::Overwriting, StoreClass::Overwriting),
        (StoreClass::Strong, StoreClass::Overwriting),
        (StoreClass::Lagging, StoreClass::Lagging),
    ] {
        assert_eq!(repo.record_store_class(found).unwrap(), counts);
        assert_eq!(repo.store_class(), Some(counts));
        let later = open(Arc::clone(&store), 2).unwrap();
        assert_eq!(later.store_class(), Some(counts));
        later.check_writable().unwrap();
    }
}

#[test]
fn garbage_is_not_collected_where_listings_lag() {
    let store: Arc<dyn Backend> = Arc::new(Weak::new(Weakness { unlisted_one_in: 3, ..Weakness::default() }));
    StoreClass::Lagging.record(&*store).unwrap();
    let repo = init(Arc::clone(&store), 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let index = open_index(&repo, dir.path()).unwrap();
    let disk = content(3);
    let snapshot = Job::new("web", 10, vec![("d", &disk)]).run(&repo, &index).unwrap();
    assert!(read_disk(&repo, &snapshot, "d").unwrap() == disk.stretches[&0]);
    repo.forget(snapshot.name, at(11)).unwrap();
    // Each object is missing from one listing at most.
    let _ = names(&*store, "");
    let before = names(&*store, "");
    let e = collect(&repo, &collecting(dir.path(), 20_000_000)).unwrap_err();
    assert_eq!(e.kind(), Kind::Unsupported);
    for says in ["'lagging'", "listings", "move the points", "coffer probe"] {
        assert!(e.to_string().contains(says), "{e}");
    }
    assert_eq!(names(&*store, ""), before);
    let dry = CollectOptions { dry_run: true, ..collecting(dir.path(), 20_000_000) };
    assert!(collect(&repo, &dry).unwrap().dead.packs > 0);
    assert_eq!(rotate(&repo, at(12)).unwrap_err().kind(), Kind::Unsupported);
}

/// A repository on a store whose puts replace each other, and a backup of it that is not decided yet.
struct Undecided {
    store: Arc<dyn Backend>,
    repo: Arc<Repository>,
    name: ClaimName,
    dir: tempfile::TempDir,
}

impl Undecided {
    fn new() -> Self {
        let store: Arc<dyn Backend> = Arc::new(Weak::new(OVERWRITES));
        try_out(&store, 3).unwrap().class.record(&*store).unwrap();
        let repo = init(Arc::clone(&store), 1).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let index = open_index(&repo, dir.path()).unwrap();
        let snapshot = Job::new("web", 10, vec![("d", &content(3))]).run(&repo, &index).unwrap();
        drop(index);
        let name = snapshot.name;
        assert_eq!(
            names(&*store, &format!("{name}/")),
            ["claim", "decision", "intent"].map(|part| format!("{name}/{part}"))
        );
        for part in [name.decision(), name.intent()] {
            store.delete(&part).unwrap();
        }
        Undecided { store, repo, name, dir }
    }

    fn put(&self, object: &str, decision: Decision) {
        let put = self.repo.put_record(ObjectKind::Decision, object, &decision.encode().unwrap()).unwrap();
        assert_eq!(put, Put::Created);
    }

    fn points(&self) -> usize {
        self.repo.points().unwrap().snapshots.len()
    }

    /// Collects when every claim is old.
    fn collect(&self) -> coffer_repo::collector::CollectReport {
        collect(&self.repo, &collecting(self.dir.path(), 20_000_000)).unwrap()
    }
}

#[test]
fn a_commit_that_died_half_way_is_completed() {
    let of = Undecided::new();
    of.put(&of.name.intent(), Decision::Commit);
    assert_eq!(of.points(), 0);
    assert_eq!(of.collect().revoked, []);
    assert_eq!(of.points(), 1);
    let point = of.repo.points().unwrap().snapshots.remove(0);
    assert!(read_disk(&of.repo, &point, "d").unwrap() == content(3).stretches[&0]);
    // And goes as a whole.
    of.repo.forget(of.name, at(11)).unwrap();
    of.collect();
    assert_eq!(names(&*of.store, "snapshots/"), [""; 0]);
    assert_eq!(names(&*of.store, "packs/"), [""; 0]);
}

#[test]
fn a_writer_that_was_taken_for_dead_is_told() {
    let of = Undecided::new();
    assert_eq!(of.collect().revoked, [of.name]);
    assert_eq!(of.repo.decide(of.name, Decision::Commit).unwrap(), Some(Decision::Revoke));
    of.collect();
    // What it would look for stays.
    assert_eq!(of.repo.decide(of.name, Decision::Commit).unwrap(), Some(Decision::Revoke));
    assert_eq!((of.points(), names(&*of.store, "packs/").len()), (0, 0));
    // One that revoked and died before it decided is as good.
    let of = Undecided::new();
    of.put(&of.name.revoke(), Decision::Revoke);
    assert_eq!(of.repo.decide(of.name, Decision::Commit).unwrap(), Some(Decision::Revoke));
}

#[test]
fn what_is_committed_and_revoked_at_once_is_neither_and_keeps_its_packs() {
    let of = Undecided::new();
    of.put(&of.name.intent(), Decision::Commit);
    of.put(&of.name.revoke(), Decision::Revoke);
    let packs = names(&*of.store, "packs/");
    for decision in [Decision::Commit, Decision::Revoke] {
        assert_eq!(of.repo.decide(of.name, decision).unwrap(), None);
    }
    let report = of.collect();
    assert_eq!((report.revoked, report.contested), (vec![], vec![of.name]));
    assert_eq!(of.repo.contested().unwrap(), [of.name]);
    assert_eq!((of.points(), names(&*of.store, "packs/")), (0, packs));
    // Its writer was about to commit when it was revoked, and wakes up.
    of.put(&of.name.decision(), Decision::Commit);
    assert_eq!(of.points(), 1);
    // Another one is given up.
    let of = Undecided::new();
    of.put(&of.name.intent(), Decision::Commit);
    of.put(&of.name.revoke(), Decision::Revoke);
    of.repo.forget(of.name, at(11)).unwrap();
    assert_eq!((of.collect().contested, of.repo.contested().unwrap()), (vec![], vec![]));
    assert_eq!((of.points(), names(&*of.store, "packs/").len()), (0, 0));
}

/// An intent that somebody without a certificate put completes nothing, nor is what it stands for removed.
#[test]
fn a_forged_intent_makes_no_point() {
    let of = Undecided::new();
    assert_eq!(of.store.put(&of.name.intent(), &[b"I commit, honestly"]).unwrap(), Put::Created);
    assert_eq!(of.collect().revoked, []);
    assert_eq!((of.points(), names(&*of.store, "packs/").is_empty()), (0, false));
}

/// Two sessions with one key publish their deltas under names that they would have fought for.
#[test]
fn deltas_do_not_replace_each_other_where_nobody_is_told() {
    let store: Arc<dyn Backend> = Arc::new(Weak::new(OVERWRITES));
    StoreClass::Overwriting.record(&*store).unwrap();
    let first = init(Arc::clone(&store), 1).unwrap();
    let second = open(Arc::clone(&store), 2).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [one, other] =
        [(&first, "1"), (&second, "2")].map(|(repo, dir_of)| open_index(repo, &dir.path().join(dir_of)).unwrap());
    let before = names(&*store, "index/").len();
    std::thread::scope(|scope| {
        for (repo, index, time) in [(&first, &one, 10), (&second, &other, 11)] {
            scope.spawn(move || Job::new("web", time, vec![("d", &content(time))]).run(repo, index).unwrap());
        }
    });
    assert_eq!(names(&*store, "index/").len(), before + 2);
    // A host that knows nothing yet finds both.
    let third = open(Arc::clone(&store), 3).unwrap();
    let index = open_index(&third, &dir.path().join("3")).unwrap();
    for time in [10, 11] {
        let again = Job::new("db", 20 + time, vec![("d", &content(time))]).run(&third, &index).unwrap();
        assert_eq!(again.stats.new_chunks, 0);
    }
}
