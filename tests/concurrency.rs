//! Several at once: backups of one workload from threads and from processes, the owner of an index and its guest, and a
//! forget that meets a backup of the forgotten point's child.
//!
//! Not here: collectors. What holds: none of this loses a committed point or bytes of one; what cannot be committed
//! says why.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test is a program: it may read its environment")]

use coffer_repo::Kind;
use coffer_repo::backend::Backend;
use coffer_repo::backend::local::Local;
use coffer_repo::backend::memory::Memory;
use coffer_repo::snapshot::Snapshot;
use coffer_tests::dice::Dice;
use coffer_tests::disk::DiskContent;
use coffer_tests::rig::{Job, at, init, open, open_index, read_disk};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};

/// Bytes of which the first half is the same for all seeds.
fn content(seed: u64) -> DiskContent {
    let mut bytes = vec![0; 3_000_000];
    let (shared, own) = bytes.split_at_mut(1_500_000);
    Dice::new(0).noise(shared);
    Dice::new(seed).noise(own);
    bytes.into()
}

/// Every point reads as what its time says that was backed up.
fn check_all(store: Arc<dyn Backend>, due: usize) -> Vec<Snapshot> {
    let repo = open(store, 1000).unwrap();
    let points = repo.points().unwrap();
    assert!(points.damaged.is_empty(), "{:?}", points.damaged);
    for snapshot in &points.snapshots {
        let bytes = read_disk(&repo, snapshot, "d").unwrap();
        assert!(bytes == content(snapshot.time().seconds()).stretches[&0], "{}", snapshot.name);
    }
    assert_eq!(points.snapshots.len(), due);
    points.snapshots
}

#[test]
fn two_threads_back_up_one_workload() {
    let store: Arc<dyn Backend> = Arc::new(Memory::default());
    let repo = init(Arc::clone(&store), 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let index = open_index(&repo, dir.path()).unwrap();
    let both = Barrier::new(2);
    std::thread::scope(|scope| {
        for seed in [11, 12] {
            let (repo, index, both) = (&repo, &index, &both);
            scope.spawn(move || {
                let content = content(seed);
                let writer = Job::new("web", seed, vec![("d", &content)]).prepare(repo, index).unwrap();
                both.wait();
                writer.commit(Vec::new()).unwrap();
            });
        }
    });
    check_all(store, 2);
}

#[test]
fn one_second_is_enough_for_several_points() {
    let store: Arc<dyn Backend> = Arc::new(Memory::default());
    let repo = init(Arc::clone(&store), 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let index = open_index(&repo, dir.path()).unwrap();
    let content = content(5);
    for _ in 0..3 {
        Job::new("web", 5, vec![("d", &content)]).run(&repo, &index).unwrap();
    }
    let points = check_all(store, 3);
    // Of one second, the points are ordered by their random ids.
    assert_eq!(points.iter().filter(|s| s.stats.new_chunks > 0).count(), 1, "{points:?}");
}

/// The owner of the index and its guest: neither waits for the other, and the guest knows what the owner stored.
#[test]
fn an_owner_and_a_guest_back_up_at_once() {
    let store: Arc<dyn Backend> = Arc::new(Memory::default());
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (init(Arc::clone(&store), 1).unwrap(), open(Arc::clone(&store), 2).unwrap());
    let owner = open_index(&first, dir.path()).unwrap();
    let base = content(9);
    Job::new("web", 9, vec![("d", &base)]).run(&first, &owner).unwrap();
    let guest = open_index(&second, dir.path()).unwrap();
    assert!(guest.is_guest() && !owner.is_guest());
    let both = Barrier::new(2);
    std::thread::scope(|scope| {
        for (repo, index, time) in [(&first, &owner, 10), (&second, &guest, 11)] {
            let both = &both;
            scope.spawn(move || {
                let content = content(time);
                let writer = Job::new("web", time, vec![("d", &content)]).prepare(repo, index).unwrap();
                both.wait();
                let snapshot = writer.commit(Vec::new()).unwrap();
                // The shared half is known to both; a chunk that spans the middle may differ.
                assert!(snapshot.stats.new_raw <= 1_500_000 + 2 * 262_144, "{:?}", snapshot.stats);
            });
        }
    });
    check_all(store, 3);
}

/// A parent that is forgotten while its child is under way: the child is not committed and says why, the bytes it sent
/// are used by the next run, and other points stay.
#[test]
fn a_parent_forgotten_under_a_backup() {
    let store: Arc<dyn Backend> = Arc::new(Memory::default());
    let repo = init(Arc::clone(&store), 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let index = open_index(&repo, dir.path()).unwrap();
    let (old, kept, new) = (content(20), content(21), content(22));
    let parent = Job::new("web", 20, vec![("d", &old)]).run(&repo, &index).unwrap();
    Job::new("db", 21, vec![("d", &kept)]).run(&repo, &index).unwrap();
    let child = Job::new("web", 22, vec![("d", &new)]).on(Some(parent.clone())).prepare(&repo, &index).unwrap();
    let elsewhere = open(Arc::clone(&store), 2).unwrap();
    elsewhere.forget(parent.name, at(23)).unwrap();
    let e = child.commit(Vec::new()).unwrap_err();
    assert_eq!(e.kind(), Kind::Overtaken);
    assert!(e.to_string().contains("its parent web@1970-01-01T00-00-20Z was forgotten"), "{e}");
    check_all(Arc::clone(&store), 1);
    let again = Job::new("web", 22, vec![("d", &new)]).run(&repo, &index).unwrap();
    assert_eq!(again.stats.new_chunks, 0, "{:?}", again.stats);
    check_all(store, 2);
}

/// A pack that is lost under a running backup is noticed before the commit, and stored again by the next run.
#[test]
fn a_pack_lost_under_a_backup() {
    let store: Arc<dyn Backend> = Arc::new(Memory::default());
    let repo = init(Arc::clone(&store), 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let index = open_index(&repo, dir.path()).unwrap();
    let content = content(30);
    let first = Job::new("web", 30, vec![("d", &content)]).run(&repo, &index).unwrap();
    repo.forget(first.name, at(31)).unwrap();
    let mut lost = 0;
    loop {
        let writer = Job::new("web", 30, vec![("d", &content)]).prepare(&repo, &index).unwrap();
        if lost == 0 {
            let packs = coffer_repo::backend::list_sorted(&*store, "packs/").unwrap();
            store.delete(&packs[0].name).unwrap();
        }
        match writer.commit(Vec::new()) {
            Ok(_) => break,
            Err(e) => assert!(e.to_string().contains("is gone"), "{e:?}"),
        }
        lost += 1;
    }
    assert_eq!(lost, 1);
    check_all(store, 1);
}

#[test]
fn two_processes_back_up_one_workload() {
    let dir = tempfile::tempdir().unwrap();
    init(Arc::new(Local::create(&dir.path().join("store")).unwrap()), 1).unwrap();
    let children: Vec<Child> = [41, 42].map(|seed| child(dir.path(), seed)).into();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    check_all(Arc::new(Local::open(&dir.path().join("store")).unwrap()), 2);
}

/// Runs [`in_another_process`] in another process.
fn child(dir: &Path, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "in_another_process"])
        .env("COFFER_TEST_DIR", dir)
        .env("COFFER_TEST_SEED", seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "a part of two_processes_back_up_one_workload"]
fn in_another_process() {
    let dir = std::env::var("COFFER_TEST_DIR").unwrap();
    let seed: u64 = std::env::var("COFFER_TEST_SEED").unwrap().parse().unwrap();
    let repo = open(Arc::new(Local::open(&Path::new(&dir).join("store")).unwrap()), seed).unwrap();
    let index = open_index(&repo, &Path::new(&dir).join("index")).unwrap();
    let content = content(seed);
    Job::new("web", seed, vec![("d", &content)]).run(&repo, &index).unwrap();
}
