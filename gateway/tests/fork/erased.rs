//! Forks that are erased by their keys: what is left, what a crash leaves, and who has to wait.

use crate::folder::{Stage, at, name};
use crate::rig::contents;
use coffer_gateway::fork::{Commit, CommitPlan, Fork, Hydration, HydrationPlan};
use coffer_gateway::target::Overwrite;
use coffer_gateway::{BlockDevice, Content, Durability, Kind, Result};
use coffer_repo::cancel::Cancel;
use coffer_repo::snapshot::{Identity, Snapshot};
use coffer_repo::writer::WriterOptions;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::scope;

fn begin_commit<'a>(stage: &Stage, fork: &'a Fork, time: u64) -> Result<Commit<'a>> {
    let plan = CommitPlan {
        tags: Vec::new(),
        identity: Identity::default(),
        time: at(time),
        writer: WriterOptions { workers: 1, ..WriterOptions::default() },
    };
    Commit::begin(fork, &stage.index, plan)
}

fn commit(stage: &Stage, fork: &Fork, time: u64) -> Result<Snapshot> {
    begin_commit(stage, fork, time)?.run(&Cancel::default())
}

fn folder(stage: &Stage) -> PathBuf {
    stage.folder.path().join("state/forks/lab")
}

/// What lies in the fork's folder, but for its lock.
fn entries(stage: &Stage) -> Vec<String> {
    let names = fs::read_dir(folder(stage)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name != "lock").collect();
    names.sort();
    names
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

fn is_zero(device: &dyn BlockDevice) -> bool {
    contents(device).iter().all(|byte| *byte == 0)
}

/// A fork with writes in two layers: a commit was begun and stopped.
fn made() -> (Stage, Fork) {
    let stage = Stage::new();
    stage.create("lab").unwrap();
    let fork = stage.open("lab").unwrap();
    fork.write_at(5000, &[7; 9000], Durability::Cached).unwrap();
    let stopped = Cancel::default();
    stopped.cancel();
    assert!(begin_commit(&stage, &fork, 30).unwrap().run(&stopped).is_err());
    fork.write_at(9000, &[8; 9000], Durability::Cached).unwrap();
    assert_eq!(fork.layers(), 2);
    (stage, fork)
}

#[test]
fn an_erased_fork_is_zeroes_and_goes_on() {
    let (stage, fork) = made();
    assert!(fork.erases_by_key());
    let before = fork.header();
    fork.erase_by_key().unwrap();
    assert!(is_zero(&fork) && fork.layers() == 1);
    let extents = fork.extents(0..fork.size(), 4).unwrap();
    assert_eq!((extents.len(), extents[0].content), (1, Content::Zero), "it takes no space");
    // No key of before is left, and nothing that it was for.
    let after = fork.header();
    assert!(after.keys.keys().all(|number| !before.keys.contains_key(number)));
    assert_eq!((after.point, after.pin, after.keys.len()), (before.point, before.pin, 1));
    assert_eq!(entries(&stage), ["3", "fork"]);
    fork.write_at(100, b"after", Durability::Cached).unwrap();
    let mut expected = vec![0; stage.bytes.len()];
    expected[100..105].copy_from_slice(b"after");
    drop(fork);
    let fork = stage.open("lab").unwrap();
    assert!(contents(&fork) == expected);
    // Again, and then it becomes a point that has nothing of the one before.
    fork.erase_by_key().unwrap();
    fork.write_at(100, b"after", Durability::Cached).unwrap();
    let point = commit(&stage, &fork, 40).unwrap();
    assert!(stage.restored(&point, "vda") == expected && contents(&fork) == expected);
    assert!(stage.restored(&stage.point, "vda") == stage.bytes, "what lies below is as it was");
    drop(fork);
    stage.forks.remove(&stage.repo, &name("lab"), at(50)).unwrap();
}

#[test]
fn a_crash_leaves_all_of_it_or_zeroes() {
    let (stage, fork) = made();
    let expected = contents(&fork);
    fork.flush().unwrap();
    let (before, after) = (stage.folder.path().join("before"), stage.folder.path().join("after"));
    copy_folder(&folder(&stage), &before);
    fork.erase_by_key().unwrap();
    drop(fork);
    copy_folder(&folder(&stage), &after);
    let restore = |from: &Path| {
        fs::remove_dir_all(folder(&stage)).unwrap();
        copy_folder(from, &folder(&stage));
    };
    // Before the header takes its place: a layer that nobody names, half made or whole, and a header to be.
    for is_whole in [false, true] {
        restore(&before);
        match is_whole {
            true => copy_folder(&after.join("3"), &folder(&stage).join("3")),
            false => fs::create_dir(folder(&stage).join("3")).unwrap(),
        }
        fs::copy(after.join("fork"), folder(&stage).join("fork.new")).unwrap();
        let fork = stage.open("lab").unwrap();
        assert!(contents(&fork) == expected && fork.layers() == 2);
        assert_eq!(entries(&stage), ["1", "2", "fork", "fork.new"]);
        fork.erase_by_key().unwrap();
        assert!(is_zero(&fork));
    }
    // After: layers that nobody names any more.
    restore(&after);
    for number in ["1", "2"] {
        copy_folder(&before.join(number), &folder(&stage).join(number));
    }
    let fork = stage.open("lab").unwrap();
    assert!(is_zero(&fork) && fork.layers() == 1);
    assert_eq!(entries(&stage), ["3", "fork"]);
}

#[test]
fn a_header_that_cannot_be_placed_ends_all_writing() {
    let (stage, fork) = made();
    let expected = contents(&fork);
    // A folder is in the way of the file.
    let header = folder(&stage).join("fork");
    let bytes = fs::read(&header).unwrap();
    fs::remove_file(&header).unwrap();
    fs::create_dir_all(header.join("in the way")).unwrap();
    fork.erase_by_key().unwrap_err();
    assert!(contents(&fork) == expected);
    let refused = fork.write_at(0, &[1], Durability::Cached).unwrap_err();
    assert!(refused.to_string().contains("open the fork again"), "{refused}");
    assert!(fork.flush().is_err() && fork.erase_by_key().is_err());
    drop(fork);
    fs::remove_dir_all(&header).unwrap();
    fs::write(&header, bytes).unwrap();
    assert!(contents(&stage.open("lab").unwrap()) == expected);
}

#[test]
fn it_is_not_erased_under_somebody_who_reads_all_of_it() {
    let (stage, fork) = made();
    let expected = contents(&fork);
    let begun = begin_commit(&stage, &fork, 40).unwrap();
    assert_eq!(fork.erase_by_key().unwrap_err().kind(), Kind::Locked);
    begun.run(&Cancel::default()).unwrap();
    let plan = HydrationPlan {
        to: stage.folder.path().join("target").to_str().unwrap().parse().unwrap(),
        rate: None,
        workers: 1,
        overwrite: Overwrite::IfEmpty,
        restart: false,
        keep_going: false,
    };
    let begun = Hydration::begin(&fork, &plan).unwrap();
    assert_eq!(fork.erase_by_key().unwrap_err().kind(), Kind::Locked);
    assert!(contents(&fork) == expected);
    begun.run(&Cancel::default()).unwrap();
    // It is somebody else's disk now, without a key of its own.
    assert!(!fork.erases_by_key());
    assert_eq!(fork.erase_by_key().unwrap_err().kind(), Kind::Invalid);
    assert!(contents(&fork) == expected);
}

#[test]
fn writers_go_on_and_what_they_write_afterwards_stays() {
    for round in 0..8 {
        let stage = Stage::new();
        stage.create("lab").unwrap();
        let fork = stage.open("lab").unwrap();
        let (is_over, written) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; 3]);
        scope(|scope| {
            for (number, last) in written.iter().enumerate() {
                let (fork, is_over) = (&fork, &is_over);
                scope.spawn(move || {
                    for n in 1_u64.. {
                        let is_last = is_over.load(Ordering::Acquire);
                        // Whole blocks, parts of one, and compare-and-write, each in a place of its own.
                        let offset = number as u64 * (1 << 20) + 512;
                        match number {
                            0 => fork.write_at(1 << 16, &n.to_le_bytes().repeat(512), Durability::Cached).unwrap(),
                            1 => fork.write_at(offset, &n.to_le_bytes(), Durability::Forced).unwrap(),
                            _ => {
                                let mut found = [0; 8];
                                fork.read_at(offset, &mut found).unwrap();
                                // The erasing may come between: then it is tried again.
                                while fork.compare_and_write(offset, &found, &n.to_le_bytes()).unwrap().is_some() {
                                    fork.read_at(offset, &mut found).unwrap();
                                }
                            }
                        }
                        last.store(n, Ordering::Release);
                        if is_last {
                            return;
                        }
                    }
                });
            }
            while written.iter().any(|last| last.load(Ordering::Acquire) < 1 + round) {
                std::thread::yield_now();
            }
            fork.erase_by_key().unwrap();
            is_over.store(true, Ordering::Release);
        });
        let mut expected = vec![0; stage.bytes.len()];
        // Each wrote once more, from its beginning to its end, after the erasing had returned.
        let last = written.map(AtomicU64::into_inner);
        expected[1 << 16..(1 << 16) + 4096].copy_from_slice(&last[0].to_le_bytes().repeat(512));
        for (number, last) in last.iter().enumerate().skip(1) {
            expected[number * (1 << 20) + 512..][..8].copy_from_slice(&last.to_le_bytes());
        }
        assert!(contents(&fork) == expected, "round {round}");
        fork.close().unwrap();
        drop(fork);
        assert!(contents(&stage.open("lab").unwrap()) == expected, "round {round}");
    }
}
