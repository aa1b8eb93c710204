//! Object lock in compliance mode on real stores: who steals the mover's credentials removes nothing that is locked, what he hides
//! shows again, gc lets it wait, and when the locks end its space becomes free.

#![allow(clippy::disallowed_methods, reason = "a test is a program: it may read the clock")]

use coffer_repo::Kind;
use coffer_repo::cancel::Cancel;
use coffer_repo::lock_for::LockFor;
use coffer_repo::locks::{self, LockOptions, Short};
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::Snapshot;
use coffer_repo::time::Timestamp;
use coffer_tests::coffer::Coffer;
use coffer_tests::dice::Dice;
use coffer_tests::disk::DiskContent;
use coffer_tests::image::{self, MIB};
use coffer_tests::program::{LIMIT, run};
use coffer_tests::rig::{Job, collect, collecting, init_fine, learn, open_index, read_disk};
use coffer_tests::service::Place;
use coffer_tests::service::ceph::Ceph;
use coffer_tests::service::seaweedfs::SeaweedFs;
use serde_json::{Value, json};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// A bucket with object lock, and somebody else's hand in it.
struct Bucket {
    place: Place,
    name: &'static str,
}

impl Bucket {
    /// `plain` is a bucket of the same store.
    fn new(plain: Place, name: &'static str) -> Bucket {
        let bucket = Bucket { place: Place { location: format!("s3://{name}/below/here"), ..plain }, name };
        bucket.hand(&["make", name]);
        bucket
    }

    fn hand(&self, arguments: &[&str]) -> Value {
        let endpoint = self.place.options.iter().find_map(|option| option.strip_prefix("endpoint=")).unwrap();
        let mut python = Command::new("python3");
        python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/stores/hand.py")).args(arguments).env("S3_ENDPOINT", endpoint);
        python.envs(self.place.environment.iter().map(|(name, value)| (*name, value)));
        serde_json::from_str(&run(&mut python)).unwrap()
    }

    /// Versions and markers of packs of both kinds.
    fn packs(&self) -> (u64, u64) {
        let counts = ["below/here/packs/", "below/here/trees/"].map(|prefix| self.hand(&["count", self.name, prefix]));
        let sum = |kind: &str| counts.iter().map(|count| count[kind].as_u64().unwrap()).sum();
        (sum("versions"), sum("markers"))
    }
}

/// The store's clock and this one are the same machine's.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_seconds(seconds).unwrap()
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Dice::new(seed).noise(&mut bytes);
    bytes
}

fn back_up(repo: &Arc<Repository>, bytes: &[u8], parent: Option<Snapshot>, seconds: u64) -> Snapshot {
    let content = DiskContent::from(bytes.to_vec());
    let dir = tempfile::tempdir().unwrap();
    let index = open_index(repo, dir.path()).unwrap();
    learn(repo, &index).unwrap();
    let mut job = Job::new("web", now(), vec![("d", &content)]).on(parent);
    job.options.lock_for = Some(LockFor::from_seconds(seconds).unwrap());
    job.run(repo, &index).unwrap()
}

fn is_held_against_everybody(plain: Place, name: &'static str) {
    let bucket = Bucket::new(plain, name);
    let repo = init_fine(bucket.place.open(), 7).unwrap();
    let first = noise(1, 3 << 20);
    let second = noise(2, 1 << 20);
    let one = back_up(&repo, &first, None, 3600);
    let two = back_up(&repo, &second, Some(one.clone()), 3600);
    let options = LockOptions::new(at(now()));
    let cancel = Cancel::default();
    let audit = |options| locks::audit(&repo, options, &cancel).unwrap();
    let report = audit(options);
    assert!(report.is_clean() && report.points == 2, "{report:?}");

    // Our own deletions are refused by name, too, and change nothing.
    let claim = one.name.claim();
    assert_eq!(repo.backend().delete(&claim).unwrap_err().kind(), Kind::Retained);
    assert!(repo.backend().size(&claim).unwrap().is_some());

    let later = || LockOptions { now: at(now() + 2400), ..options };
    let due = audit(later()).named;
    let done = bucket.hand(&["attack", name]);
    let refused = done["refused"].as_array().unwrap();
    // More is locked than is needed: a node that turned out to be a root lies in the claim as well.
    let locked = refused.len() as u64;
    let needed = |object: &Short| refused.iter().any(|key| key.as_str().unwrap().ends_with(&object.name));
    assert!(due.len() as u64 == report.objects && due.iter().all(needed), "{due:?}, {done}");
    for part in ["/packs/", "/trees/", "/snapshots/", "/keys/", "here/repo"] {
        assert!(refused.iter().any(|key| key.as_str().unwrap().contains(part)), "{part}: {done}");
    }
    assert!(repo.backend().size("repo").unwrap().is_none() && repo.points().unwrap().snapshots.is_empty());
    assert_eq!(audit(options).hidden_count, locked);
    let (revealed, failed) = locks::reveal(&repo, &cancel).unwrap();
    assert_eq!((revealed, failed.len()), (locked, 0));
    assert!(audit(options).is_clean());
    assert!(read_disk(&repo, &one, "d").unwrap() == first && read_disk(&repo, &two, "d").unwrap() == second);

    // More than half of the term later they are due, and are raised.
    assert_eq!(audit(later()).short, report.objects);
    assert_eq!(locks::extend(&repo, later(), &cancel).unwrap().short, report.objects);
    assert!(audit(later()).is_clean());

    // What is forgotten waits.
    let before = bucket.packs();
    repo.forget(one.name, at(now())).unwrap();
    repo.forget(two.name, at(now())).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let report = collect(&repo, &collecting(scratch.path(), now())).unwrap();
    assert!(report.waiting.bytes > 3 << 20 && report.waiting.last > Some(at(now() + 3000)), "{report:?}");
    // And so it does for a collector whose clock is wrong.
    let report = collect(&repo, &collecting(scratch.path(), now() + 50_000)).unwrap();
    assert!(report.waiting.bytes > 3 << 20 && report.removed.packs == 0, "{report:?}");
    assert_eq!(bucket.packs(), before);
}

fn goes_when_its_lock_ends(plain: Place, name: &'static str) {
    let bucket = Bucket::new(plain, name);
    let repo = init_fine(bucket.place.open(), 8).unwrap();
    // Long enough that a loaded machine makes the backup within it.
    let point = back_up(&repo, &noise(3, 1 << 20), None, 60);
    repo.forget(point.name, at(now())).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let began = Instant::now();
    loop {
        let report = collect(&repo, &collecting(scratch.path(), now())).unwrap();
        if bucket.packs() == (0, 0) {
            break;
        }
        assert!(report.waiting.objects > 0 || report.removed.packs > 0, "{report:?}");
        assert!(began.elapsed() < LIMIT, "{report:?}");
        std::thread::sleep(Duration::from_secs(5));
    }
}

#[test]
fn seaweedfs_holds_what_is_locked() {
    is_held_against_everybody(SeaweedFs::shared().bucket("no-locks-a"), "locks-a");
}

#[test]
fn ceph_holds_what_is_locked() {
    is_held_against_everybody(Ceph::shared().bucket("no-locks-a"), "locks-a");
}

/// What came too late in a race, and lies below what won and was locked, is not taken for the object.
fn what_is_locked_is_the_object(plain: Place, name: &'static str) {
    let bucket = Bucket::new(plain, name);
    let store = bucket.place.open();
    let lock = store.object_lock().unwrap();
    (0..3).for_each(|_| drop(bucket.hand(&["blank", name, "below/here/raced/one"])));
    lock.lock("raced/one", at(now() + 3600)).unwrap();
    bucket.hand(&["blank", name, "below/here/raced/one"]);
    lock.reveal("raced/one").unwrap();
    assert!(lock.locked_until("raced/one").unwrap().is_some());
    assert_eq!(bucket.hand(&["count", name, "below/here/raced/"]), json!({ "versions": 1, "markers": 0 }));
}

#[test]
fn seaweedfs_shows_what_is_locked() {
    what_is_locked_is_the_object(SeaweedFs::shared().bucket("no-locks-e"), "locks-e");
}

#[test]
fn ceph_shows_what_is_locked() {
    what_is_locked_is_the_object(Ceph::shared().bucket("no-locks-e"), "locks-e");
}

/// On both at a time, since it mostly waits.
#[test]
fn what_is_no_longer_locked_is_freed() {
    let places = [SeaweedFs::shared().bucket("no-locks-b"), Ceph::shared().bucket("no-locks-b")];
    std::thread::scope(|scope| {
        for place in places {
            scope.spawn(|| goes_when_its_lock_ends(place, "locks-b"));
        }
    });
}

/// By the command: what it locks, what it says of that, and what it brings back.
fn is_told_by_the_command(plain: Place, name: &'static str) {
    let without = Coffer::new_in(plain.clone());
    image::make(&without.path("disk.raw"), 2 * MIB, &[0..2 * MIB], 4);
    without.fails(&["backup", "-w", "web", "--lock-for", "30d", "vda=disk.raw"], &["object lock"]);
    assert_eq!(without.snapshots(), Vec::<Value>::new());

    let bucket = Bucket::new(plain, name);
    let coffer = Coffer::new_in(bucket.place.clone());
    image::make(&coffer.path("disk.raw"), 2 * MIB, &[0..2 * MIB], 5);
    let began = now();
    let done = coffer.json(&["backup", "-w", "web", "--lock-for", "30d", "vda=disk.raw"]);
    assert_eq!(done["snapshot"]["lock_for_seconds"], 30 * 86_400, "{done}");
    let audit = coffer.json(&["locks", "audit"]);
    assert_eq!((&audit["points"], &audit["short_count"], &audit["missing"]), (&json!(1), &json!(0), &json!([])));
    assert_eq!((&audit["hidden_count"], &audit["hidden"]), (&json!(0), &json!([])), "{audit}");

    // Who has the mover's credentials can hide it, and nothing else.
    let done = bucket.hand(&["attack", name]);
    let locked = done["refused"].as_array().unwrap().len();
    assert!(locked as u64 >= audit["objects"].as_u64().unwrap(), "{done}, {audit}");
    // The descriptor is hidden as well, and what to do about it is told.
    coffer.fails(&["snapshots"], &["not a Coffer repository", "coffer locks reveal"]);
    let done = coffer.json(&["locks", "reveal"]);
    assert_eq!((&done["revealed"], &done["still_hidden"]), (&json!(locked), &json!([])), "{done}");
    coffer.assert_restores("web@latest", "disk.raw");

    // gc works here as elsewhere, and what is locked waits for the end of its lock.
    let before = bucket.packs();
    coffer.run(&["forget", "web@latest"]);
    let done = coffer.json(&["gc", "--dead-after", "0"]);
    assert!(done["waiting"]["bytes"].as_u64().unwrap() > MIB, "{done}");
    let last = done["waiting"]["last"].as_str().unwrap();
    assert!(last >= at(began + 30 * 86_400).to_string().as_str(), "{done}");
    assert_eq!(bucket.packs(), before, "{done}");
}

#[test]
fn seaweedfs_locks_by_the_command() {
    is_told_by_the_command(SeaweedFs::shared().bucket("no-locks-d"), "locks-d");
}

#[test]
fn ceph_locks_by_the_command() {
    is_told_by_the_command(Ceph::shared().bucket("no-locks-d"), "locks-d");
}

/// A bucket without object lock: the way out is named, and deleting works as before.
#[test]
fn a_bucket_without_locks_is_named() {
    for place in [SeaweedFs::shared().bucket("no-locks-c"), Ceph::shared().bucket("no-locks-c")] {
        let store = place.open();
        let error = store.object_lock().unwrap().check().unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("without object lock"), "{error}");
        let _ = store.put("a", &[b"1"]).unwrap();
        store.delete("a").unwrap();
        assert_eq!(store.size("a").unwrap(), None);
    }
}
