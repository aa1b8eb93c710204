//! Frozen repositories of format version 1: this version reads them, and so does an independent reader, byte for byte
//! alike.
//!
//! What holds: the files under `tests/golden/v1-*` are made once, by the ignored test at the end of this file, and are
//! never made again: a repository written by any released version stays readable. Contents in the manifests come from
//! what was backed up, not from what was read back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test is a program: it may read its environment")]

use coffer_repo::Kind;
use coffer_repo::backend::Backend;
use coffer_repo::backend::local::Local;
use coffer_repo::cancel::Cancel;
use coffer_repo::collector::{CollectOptions, CollectProgress, collect};
use coffer_repo::entropy::Seeded;
use coffer_repo::key_slot::Credential;
use coffer_repo::repository::Repository;
use coffer_repo::rotation;
use coffer_repo::snapshot::Identity;
use coffer_tests::golden::{ALL, Golden, files, open, read_snapshot};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tempfile::TempDir;

#[path = "golden/make.rs"]
mod make;

#[test]
fn this_version_reads_them() {
    for name in ALL {
        let golden = Golden::new(name);
        let repo = open(&golden, Arc::new(golden.memory()), "password").unwrap();
        let points = repo.points().unwrap();
        assert!(points.damaged.is_empty(), "{name}: {:?}", points.damaged);
        compare(&golden, points.snapshots.iter().map(|s| read_snapshot(&repo, s).unwrap()).collect());
    }
}

#[test]
fn every_credential_opens_its_bundle() {
    let golden = Golden::new("v1-aes");
    let store: Arc<dyn Backend> = Arc::new(golden.memory());
    let key = Credential::from_key_file(&fs::read_to_string(golden.dir().join("key")).unwrap()).unwrap();
    let by_key = Repository::open(Arc::clone(&store), &key, Arc::new(Seeded::new(1))).unwrap();
    assert!(by_key.keys().is_full());
    let writer = open(&golden, Arc::clone(&store), "writer-password").unwrap();
    assert!(!writer.keys().is_full());
    // A writer lists every point, maps every disk, and reads none.
    let points = writer.points().unwrap();
    assert_eq!(points.snapshots.len(), golden.manifest().as_array().unwrap().len());
    assert_eq!(read_snapshot(&writer, &points.snapshots[0]).unwrap_err().kind(), Kind::WrongKey);
    let wrong = Credential::Passphrase("wrong".to_owned().into());
    assert_eq!(Repository::open(store, &wrong, Arc::new(Seeded::new(1))).unwrap_err().kind(), Kind::WrongKey);
}

#[test]
fn a_directory_serves_them_as_memory_does() {
    for name in ALL {
        let golden = Golden::new(name);
        let dir = copy_of(&golden);
        let repo = open(&golden, Arc::new(Local::open(dir.path()).unwrap()), "password").unwrap();
        let points = repo.points().unwrap().snapshots;
        compare(&golden, points.iter().map(|s| read_snapshot(&repo, s).unwrap()).collect());
    }
}

#[test]
fn an_independent_reader_agrees() {
    for name in ALL {
        let golden = Golden::new(name);
        compare(&golden, read_by_reader(&golden, &golden.store()));
    }
}

/// Their keys are rotated and everything is sealed anew: nothing else about them changes.
#[test]
fn they_are_the_same_after_a_rotation() {
    for name in ALL {
        let golden = Golden::new(name);
        let dir = copy_of(&golden);
        let repo = open(&golden, Arc::new(Local::open(dir.path()).unwrap()), "password").unwrap();
        let now = repo.points().unwrap().snapshots[0].time();
        assert_eq!(rotation::rotate(&repo, now).unwrap().epoch, 2);
        let scratch = tempfile::tempdir().unwrap();
        let mut options = CollectOptions::new(scratch.path().to_owned(), Identity::default(), now);
        options.rotate = true;
        let report = collect(&repo, &options, &CollectProgress::default(), &Cancel::default()).unwrap();
        assert!(report.rotated.packs > 0 && report.spared.packs == 0, "{name}: {report:?}");
        let left = rotation::status(&repo, 1, &AtomicU64::new(0), &Cancel::default()).unwrap().left;
        assert_eq!(left.packs, 0, "{name}");
        drop(repo);

        let repo = open(&golden, Arc::new(Local::open(dir.path()).unwrap()), "password").unwrap();
        let points = repo.points().unwrap().snapshots;
        compare(&golden, points.iter().map(|s| read_snapshot(&repo, s).unwrap()).collect());
        compare(&golden, read_by_reader(&golden, dir.path()));
        let output = run_reader(dir.path(), &golden.password_file(), &["check"]);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn an_independent_reader_finds_no_fault() {
    for name in ALL {
        let golden = Golden::new(name);
        let output = run_reader(&golden.store(), &golden.password_file(), &["check"]);
        let said = String::from_utf8_lossy(&output.stdout);
        let objects = files(&golden.store(), "").len();
        assert!(
            said.starts_with(&format!("{objects} objects, ")) && said.ends_with(", 0 problems\n"),
            "{name}: {said}"
        );
    }
}

#[test]
fn whole_disks_are_alike_byte_for_byte() {
    let golden = Golden::new("v1-aes");
    let repo = open(&golden, Arc::new(golden.memory()), "password").unwrap();
    let points = repo.points().unwrap().snapshots;
    let mut compared = 0;
    for snapshot in &points {
        for disk in snapshot.disks.iter().filter(|d| d.size <= 64 << 20 && d.unreadable == 0) {
            let output =
                run_reader(&golden.store(), &golden.password_file(), &["cat", &snapshot.id().to_string(), &disk.name]);
            assert!(output.status.success());
            let ours = coffer_tests::rig::read_disk(&repo, snapshot, &disk.name).unwrap();
            assert!(output.stdout == ours, "{} of {}", disk.name, snapshot.id());
            compared += 1;
        }
    }
    assert_eq!(compared, 4, "{compared} disks");
}

/// The guard of the others: what is damaged is not called whole, and nothing of it is handed out as data.
#[test]
fn an_independent_reader_finds_a_flipped_bit() {
    let golden = Golden::new("v1-chacha");
    let dir = copy_of(&golden);
    let names = files(&golden.store(), "");
    let pack = names.iter().find(|n| n.starts_with("packs/")).unwrap();
    let mut bytes = fs::read(dir.path().join(pack)).unwrap();
    bytes[1000] ^= 1;
    fs::write(dir.path().join(pack), bytes).unwrap();
    let output = run_reader(dir.path(), &golden.password_file(), &["check"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(pack.as_str()));
}

#[test]
fn an_independent_implementation_gives_the_known_answers() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/vectors");
    let output = python("known_answers.py", &[vectors.as_ref()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The repository's objects in a folder of their own.
fn copy_of(golden: &Golden) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files(&golden.store(), "") {
        let to = dir.path().join(&file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(golden.store().join(&file), to).unwrap();
    }
    dir
}

/// What the independent reader finds in a store that the golden repository's passphrase opens.
fn read_by_reader(golden: &Golden, store: &Path) -> Vec<Value> {
    let said = |command: &[&str]| {
        let output = run_reader(store, &golden.password_file(), command);
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let mut listed: Vec<Value> = said(&["list"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for snapshot in &mut listed {
        let id = snapshot["id"].as_str().unwrap().to_owned();
        for disk in snapshot["disks"].as_array_mut().unwrap() {
            disk["runs"] = said(&["digest", &id, disk["name"].as_str().unwrap()]).lines().map(run_of_digest).collect();
        }
    }
    listed
}

/// Compares one by one, so that what differs can be seen.
fn compare(golden: &Golden, read: Vec<Value>) {
    let due = golden.manifest();
    for (read, due) in read.iter().zip(due.as_array().unwrap()) {
        assert_eq!(read, due, "{}", golden.dir().display());
    }
    assert_eq!(read.len(), due.as_array().unwrap().len(), "{}", golden.dir().display());
}

fn run_of_digest(line: &str) -> Value {
    let words: Vec<&str> = line.split(' ').collect();
    let number = |text: &str| text.parse::<u64>().unwrap();
    match words.as_slice() {
        ["data", offset, len, hash] => serde_json::json!([number(offset), number(len), hash]),
        ["unreadable", offset, len] => serde_json::json!([number(offset), number(len), null]),
        _ => panic!("{line}"),
    }
}

fn run_reader(store: &Path, password_file: &Path, command: &[&str]) -> Output {
    let mut all = vec![store.as_os_str(), "--password-file".as_ref(), password_file.as_os_str()];
    all.extend(command.iter().map(AsRef::<std::ffi::OsStr>::as_ref));
    python("reader.py", &all)
}

/// Runs a program of this folder with the interpreter that `make setup` prepared, or the one that `COFFER_PYTHON`
/// names.
fn python(program: &str, arguments: &[&std::ffi::OsStr]) -> Output {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let prepared = tests.join("../target/venv/bin/python").into_os_string();
    let python = std::env::var_os("COFFER_PYTHON").unwrap_or(prepared);
    let output = Command::new(&python).arg("-B").arg(tests.join(program)).args(arguments).output();
    output.unwrap_or_else(|e| panic!("{}: {e}; run 'make setup', or name one in COFFER_PYTHON", python.display()))
}

/// Makes the frozen repositories where there are none. Run once for each: `cargo test -p coffer-tests --test golden --
/// --ignored`.
#[test]
#[ignore = "frozen files are made once"]
fn make_what_is_not_there() {
    for (name, made) in [("v1-aes", make::aes as fn(&Path)), ("v1-chacha", make::chacha)] {
        let golden = Golden::new(name);
        if !golden.dir().exists() {
            made(golden.dir());
        }
    }
}
