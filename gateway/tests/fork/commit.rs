//! Commits of forks: what the point holds, what the fork goes on with, and what is left when they fail or die half-way.

use crate::chance::{Chance, seeds};
use crate::folder::{BLOCK, Stage, WINDOW, at, credential, name};
use crate::rig::{UNMAP, contents};
use coffer_gateway::fork::{BootId, Commit, CommitPlan, Fork, Forks};
use coffer_gateway::{BlockDevice, Durability, Kind, Result, Zeroing};
use coffer_repo::backend::faulty::{Counted, Fatal, Faulty, Plan, Stop};
use coffer_repo::backend::{Backend, list_sorted};
use coffer_repo::cancel::Cancel;
use coffer_repo::disk_map::identity;
use coffer_repo::entropy::System;
use coffer_repo::index::{Index, IndexOptions};
use coffer_repo::reader::{Reader, ReaderOptions};
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::{ClaimKind, ClaimName, Identity, Snapshot};
use coffer_repo::writer::WriterOptions;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::scope;
use std::time::{Duration, Instant};

fn plan(time: u64) -> CommitPlan {
    CommitPlan {
        tags: vec!["made".into()],
        identity: Identity::default(),
        time: at(time),
        writer: WriterOptions { workers: 2, ..WriterOptions::default() },
    }
}

fn commit(stage: &Stage, fork: &Fork, time: u64) -> Result<Snapshot> {
    Commit::begin(fork, &stage.index, plan(time))?.run(&Cancel::default())
}

/// Names of what lies in a fork's folder, but for its lock.
fn entries(stage: &Stage, fork: &str) -> Vec<String> {
    let entries = fs::read_dir(stage.folder.path().join("state/forks").join(fork)).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != "lock");
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

fn put(fork: &Fork, expected: &mut [u8], at: usize, bytes: &[u8]) {
    fork.write_at(at as u64, bytes, Durability::Cached).unwrap();
    expected[at..at + bytes.len()].copy_from_slice(bytes);
}

#[test]
fn a_commit_is_a_point_that_the_fork_goes_on_from() {
    let stage = Stage::new();
    stage.create("lab").unwrap();
    let fork = stage.open("lab").unwrap();
    let mut expected = stage.bytes.clone();
    put(&fork, &mut expected, 1000, b"first");
    let hole = 2 * WINDOW..3 * WINDOW;
    let how = Zeroing { may_unmap: true, fast_only: false, durability: Durability::Cached };
    fork.zero(hole.start as u64..hole.end as u64, how).unwrap();
    expected[hole].fill(0);

    let first = commit(&stage, &fork, 30).unwrap();
    assert_eq!((first.workload.as_str(), first.parents.as_slice()), ("web", &[stage.point.id()][..]));
    assert_eq!(first.tags, ["made"]);
    assert!(stage.restored(&first, "vda") == expected && contents(&fork) == expected);
    assert!(stage.restored(&stage.point, "vda") == stage.bytes, "the point before is as it was");
    // The other disk is the parent's, map and all, and its token still names it; the committed one has none.
    assert_eq!(first.disks[1], stage.point.disks[1]);
    assert_eq!((first.disks[0].token.as_ref(), first.disks[0].platform.as_ref()), (None, None));
    // One window was touched in one place, one was zeroed, one not touched: what is read is a chunk or a few.
    assert!((1..=512 << 10).contains(&first.stats.read), "{:?}", first.stats);
    assert!((1..=512 << 10).contains(&first.stats.new_raw), "{:?}", first.stats);
    // Its base is the new point, held by a pin of its own; the old one's has ended.
    assert_eq!((fork.header().point, fork.layers()), (first.name, 1));
    assert_eq!(entries(&stage, "lab"), ["2", "fork"]);
    stage.repo.check_pin(fork.header().pin, first.id()).unwrap();
    let ended = fork.header().ending.unwrap();
    assert_eq!(stage.repo.check_pin(ended, stage.point.id()).unwrap_err().kind(), Kind::NotFound);

    // Nothing was written since, and then something.
    let second = commit(&stage, &fork, 31).unwrap();
    assert_eq!((second.stats.read, second.stats.new_chunks), (0, 0));
    assert_eq!(second.disks[0].root, first.disks[0].root);
    assert_eq!(entries(&stage, "lab"), ["2", "fork"], "nothing had to be frozen");
    put(&fork, &mut expected, WINDOW - 10, &[3; 20]);
    let third = commit(&stage, &fork, 32).unwrap();
    assert!(stage.restored(&third, "vda") == expected && contents(&fork) == expected);

    // All points but the last may go; so does the fork's hold on them.
    for point in [&stage.point, &first, &second] {
        stage.repo.forget(point.name, at(33)).unwrap();
    }
    put(&fork, &mut expected, 5 << 10, &[4; 512]);
    drop(fork);
    stage.collect();
    let fork = stage.open("lab").unwrap();
    assert!(contents(&fork) == expected && stage.restored(&third, "vda")[..5 << 10] == expected[..5 << 10]);
    drop(fork);
    stage.forks.remove(&stage.repo, &name("lab"), at(34)).unwrap();
    stage.repo.forget(third.name, at(35)).unwrap();
    assert!(stage.collect() > 0, "no pin is left");
}

/// Whatever was written, zeroed and trimmed, in however many layers, above a disk of which some blocks cannot be read.
#[test]
fn a_commit_has_the_map_of_a_full_backup_of_the_same_bytes() {
    for seed in seeds(8) {
        let chance = Chance::new(seed);
        let mut lost = vec![30..40, 255..257, 600..601 + chance.below(100), 767..768];
        let stage = Stage::with(&lost);
        stage.create("lab").unwrap();
        let fork = stage.open("lab").unwrap();
        let mut expected = stage.bytes.clone();
        let stopped = Cancel::default();
        stopped.cancel();
        for round in 0..6 {
            for _ in 0..chance.below(8) {
                let range = chance.range(expected.len(), [600, 9000, 80_000, 2 << 20][chance.below(4)]);
                // Part of a block that cannot be read cannot be changed; whole ones can, and can be read then.
                let blocks = range.start / BLOCK..range.end.div_ceil(BLOCK);
                let is_lost = lost.iter().any(|lost| lost.start < blocks.end && blocks.start < lost.end);
                let range = if is_lost { blocks.start * BLOCK..blocks.end * BLOCK } else { range };
                if is_lost {
                    let parts = |lost: Range<usize>| {
                        [lost.start..lost.end.min(blocks.start), lost.start.max(blocks.end)..lost.end]
                    };
                    lost = lost.into_iter().flat_map(parts).filter(|lost| lost.start < lost.end).collect();
                }
                match chance.below(3) {
                    0 => {
                        fork.zero(range.start as u64..range.end as u64, UNMAP).unwrap();
                        expected[range].fill(0);
                    }
                    _ => put(&fork, &mut expected, range.start, &chance.bytes(range.len())),
                }
            }
            if chance.below(4) == 0 {
                let begun = Commit::begin(&fork, &stage.index, plan(30 + round)).unwrap();
                assert_eq!(begun.run(&stopped).unwrap_err().kind(), Kind::Cancelled);
                continue;
            }
            let point = commit(&stage, &fork, 30 + round).unwrap();
            let whole = stage.backed_up(&expected, &lost, 30 + round);
            let map = |point: &Snapshot| (identity(&point.disks[0].root).unwrap().to_vec(), point.disks[0].unreadable);
            assert!(map(&point) == map(&whole), "seed {seed}, round {round}");
        }
    }
}

#[test]
fn a_fork_of_a_forgotten_point_is_committed_whole() {
    let stage = Stage::new();
    stage.create("lab").unwrap();
    let fork = stage.open("lab").unwrap();
    let mut expected = stage.bytes.clone();
    put(&fork, &mut expected, 70_000, &[9; 5000]);
    stage.repo.forget(stage.point.name, at(21)).unwrap();
    let point = commit(&stage, &fork, 30).unwrap();
    assert!(point.parents.is_empty());
    assert_eq!(point.stats.read, (3 * WINDOW + WINDOW + 5000) as u64, "all of both disks");
    assert!(point.stats.new_raw <= 512 << 10, "what is stored already is found: {:?}", point.stats);
    let vdb = stage.restored(&stage.point, "vdb");
    drop(fork);
    stage.collect();
    assert!(stage.restored(&point, "vda") == expected && stage.restored(&point, "vdb") == vdb);
}

#[test]
fn a_commit_that_fails_leaves_the_fork_in_use_and_the_next_takes_it_all() {
    let stage = Stage::new();
    stage.create("lab").unwrap();
    let fork = stage.open("lab").unwrap();
    let mut expected = stage.bytes.clone();
    let cancelled = Cancel::default();
    cancelled.cancel();
    for n in 0..3 {
        put(&fork, &mut expected, 4096 * n + 100, &[n as u8; 4096]);
        let begun = Commit::begin(&fork, &stage.index, plan(30)).unwrap();
        assert_eq!(Commit::begin(&fork, &stage.index, plan(30)).err().unwrap().kind(), Kind::Locked);
        // In use while it is under way.
        put(&fork, &mut expected, WINDOW + 512 * n, &[n as u8 + 100; 512]);
        assert_eq!(begun.run(&cancelled).unwrap_err().kind(), Kind::Cancelled);
        assert_eq!(fork.layers(), n + 2);
    }
    assert_eq!(commit(&stage, &fork, 10).unwrap_err().kind(), Kind::Invalid, "it is not after its point");
    assert!(contents(&fork) == expected);
    drop(fork);
    let fork = stage.open("lab").unwrap();
    assert!(fork.layers() == 4 && contents(&fork) == expected);
    let point = commit(&stage, &fork, 30).unwrap();
    assert!(stage.restored(&point, "vda") == expected && contents(&fork) == expected);
    assert_eq!((fork.layers(), entries(&stage, "lab")), (1, vec!["5".to_owned(), "fork".to_owned()]));
}

/// However often it fails, and although something is written before each time.
#[test]
fn commits_that_fail_stack_a_few_layers_and_no_more() {
    let stage = Stage::new();
    stage.create("lab").unwrap();
    let fork = stage.open("lab").unwrap();
    let mut expected = stage.bytes.clone();
    let stopped = Cancel::default();
    stopped.cancel();
    for n in 0..12 {
        put(&fork, &mut expected, 50_000 * n, &[n as u8 + 1; 5000]);
        let begun = Commit::begin(&fork, &stage.index, plan(30)).unwrap();
        assert_eq!(begun.run(&stopped).unwrap_err().kind(), Kind::Cancelled);
    }
    assert!(fork.layers() == 9 && contents(&fork) == expected);
    let point = commit(&stage, &fork, 30).unwrap();
    // All of it is in the point; the moment of the eighth is another before it.
    assert!(stage.restored(&point, "vda") == expected && contents(&fork) == expected);
    let between = stage.repo.points().unwrap().snapshots.into_iter().find(|p| point.parents == [p.id()]).unwrap();
    assert_eq!((between.time(), point.time(), between.parents.as_slice()), (at(30), at(31), &[stage.point.id()][..]));
    let mut eighth = expected.clone();
    eighth[400_000..605_000].copy_from_slice(&stage.bytes[400_000..605_000]);
    assert!(stage.restored(&between, "vda") == eighth);
    assert_eq!((fork.layers(), fork_pins(&stage.repo).len()), (1, 1));
}

/// Pins of forks that hold something.
fn fork_pins(repo: &Repository) -> Vec<ClaimName> {
    let claims = list_sorted(repo.backend(), "snapshots/").unwrap();
    let claims = claims.iter().filter_map(|object| ClaimName::parse(&object.name)).map(|(claim, _)| claim);
    let is_pin = |claim: &ClaimName| matches!(repo.read_claim(*claim).unwrap().kind, ClaimKind::Pin { .. });
    claims.filter(|claim| is_pin(claim) && !repo.is_forgotten(claim.id).unwrap()).collect()
}

#[test]
fn a_crash_between_the_header_and_what_follows_leaves_the_same_disk() {
    let stage = Stage::new();
    stage.create("lab").unwrap();
    let folder = stage.folder.path().join("state/forks/lab");
    let fork = stage.open("lab").unwrap();
    let mut expected = stage.bytes.clone();
    put(&fork, &mut expected, 100, &[1; 9000]);
    let begun = Commit::begin(&fork, &stage.index, plan(30)).unwrap();
    put(&fork, &mut expected, 5000, &[2; 9000]);
    fork.flush().unwrap();
    // Before anything of it counts: two layers, and perhaps half of the next, or a header that has not taken its place.
    let before = stage.folder.path().join("before");
    copy_folder(&folder, &before);
    begun.run(&Cancel::default()).unwrap();
    // After the header that names the new point, with what it does not name any more.
    let after = stage.folder.path().join("after");
    copy_folder(&before, &after);
    fs::copy(folder.join("fork"), after.join("fork")).unwrap();
    drop(fork);
    fs::create_dir(before.join("3")).unwrap();
    fs::write(before.join("3/data"), b"half").unwrap();
    fs::write(before.join("fork.new"), b"half").unwrap();
    for (copy, layers, left) in [(&after, 1, vec!["2", "fork"]), (&before, 2, vec!["1", "2", "fork", "fork.new"])] {
        fs::remove_dir_all(&folder).unwrap();
        copy_folder(copy, &folder);
        if layers == 2 {
            // It still builds on the old point, whose pin has been ended by then: as if it had not.
            let pin = stage.forks.list().unwrap()[0].header.as_ref().unwrap().pin;
            assert_eq!(stage.open("lab").err().unwrap().kind(), Kind::NotFound);
            let forget = format!("forgets/{}", pin.id);
            stage.memory.delete(&forget).unwrap();
            reopen_whole(&stage, &expected);
        } else {
            let fork = stage.open("lab").unwrap();
            assert!(contents(&fork) == expected);
            assert_eq!(fork.layers(), layers);
        }
        assert_eq!(entries(&stage, "lab"), left);
    }
}

/// Opens the fork in a process that has not heard of any forget, looks at it, and commits it.
fn reopen_whole(stage: &Stage, expected: &[u8]) {
    let backend: Arc<dyn Backend> = stage.memory.clone();
    let repo = Arc::new(Repository::open(backend, &credential(), Arc::new(System)).unwrap());
    let fork = open(&stage.forks, &repo).unwrap();
    assert!(fork.layers() == 2 && contents(&fork) == expected);
}

fn open(forks: &Forks, repo: &Arc<Repository>) -> Result<Fork> {
    let reader = Reader::new(Arc::clone(repo), ReaderOptions::default())?;
    forks.open(repo, &reader, &name("lab"), BootId([1; 16]), at(26), Arc::new(System))
}

#[test]
fn a_store_that_dies_at_any_step_of_a_commit_costs_nothing() {
    let stage = Stage::new();
    stage.create("lab").unwrap();
    let origin = stage.folder.path().join("state/forks/lab");
    let (mut survived, mut made) = (0, 0);
    for step in 1.. {
        let mut ends = 0;
        for fatal in [Fatal::Lost, Fatal::Done] {
            let folder = tempfile::tempdir().unwrap();
            copy_folder(&origin, &folder.path().join("forks/lab"));
            let forks = Forks::new(folder.path().join("forks"));
            let stop = Some(Stop { at: step, counted: Counted::Mutating, fatal });
            let faulty = Arc::new(Faulty::new(stage.memory.clone_state(), Plan { stop, ..Plan::default() }));
            let repo = Arc::new(
                Repository::open(faulty.clone() as Arc<dyn Backend>, &credential(), Arc::new(System)).unwrap(),
            );
            let place = folder.path().join("index");
            let index = Arc::new(Index::open(&place, repo.keys().repo(), IndexOptions::default()).unwrap());
            let mut expected = stage.bytes.clone();
            let fork = open(&forks, &repo).unwrap();
            put(&fork, &mut expected, 5000, &[1; 30_000]);
            let result = Commit::begin(&fork, &index, plan(30)).and_then(|begun| begun.run(&Cancel::default()));
            ends += usize::from(result.is_ok() && faulty.mutations() < step);
            made += usize::from(result.is_err());
            // Of a store that is gone nothing can be read; whole blocks need none of it.
            put(&fork, &mut expected, 2 * WINDOW - 4096, &[2; 8192]);
            if faulty.mutations() < step {
                assert!(contents(&fork) == expected, "step {step} {fatal:?}: in use");
            }
            drop((fork, repo));
            // The store is back.
            let whole: Arc<dyn Backend> = Arc::new(faulty.inner().clone_state());
            let repo = Arc::new(Repository::open(whole, &credential(), Arc::new(System)).unwrap());
            let fork = open(&forks, &repo).unwrap();
            assert!(contents(&fork) == expected, "step {step} {fatal:?}: opened again");
            let point = Commit::begin(&fork, &index, plan(31)).unwrap().run(&Cancel::default()).unwrap();
            let reader = Reader::new(Arc::clone(&repo), ReaderOptions::default()).unwrap();
            let disk = coffer_gateway::SnapshotDevice::new(reader.disk(&point, "vda").unwrap(), None);
            assert!(contents(&disk) == expected && contents(&fork) == expected, "step {step} {fatal:?}: committed");
            assert_eq!(fork_pins(&repo), [fork.header().pin], "step {step} {fatal:?}: whatever else was put has ended");
            survived += 1;
        }
        if ends == 2 {
            break;
        }
    }
    assert!(made > 8 && survived > made, "{made} of {survived} commits failed");
}

#[test]
fn a_store_that_dies_while_a_fork_is_made_keeps_no_pin() {
    let stage = Stage::new();
    for step in 1.. {
        let mut ends = 0;
        for fatal in [Fatal::Lost, Fatal::Done] {
            let folder = tempfile::tempdir().unwrap();
            let forks = Forks::new(folder.path().join("forks"));
            let stop = Some(Stop { at: step, counted: Counted::Mutating, fatal });
            let faulty = Arc::new(Faulty::new(stage.memory.clone_state(), Plan { stop, ..Plan::default() }));
            let backend: Arc<dyn Backend> = faulty.clone();
            let repo = Arc::new(Repository::open(backend, &credential(), Arc::new(System)).unwrap());
            let create = |repo: &Arc<Repository>, fork: &str| {
                let (identity, disk) = (Identity::default(), &stage.point.disks[0]);
                forks.create(repo, &name(fork), &stage.point, disk, &identity, at(20), BootId([1; 16]))
            };
            let made = create(&repo, "lab");
            drop(repo);
            let whole: Arc<dyn Backend> = Arc::new(faulty.inner().clone_state());
            let repo = Arc::new(Repository::open(whole, &credential(), Arc::new(System)).unwrap());
            let next = create(&repo, "next").unwrap();
            let mut due = vec![next.pin];
            due.extend(made.as_ref().ok().map(|header| header.pin));
            let mut found = fork_pins(&repo);
            due.sort_by_key(|pin| pin.id);
            found.sort_by_key(|pin| pin.id);
            assert_eq!(found, due, "step {step} {fatal:?}");
            assert_eq!(forks.list().unwrap().len(), due.len());
            ends += usize::from(made.is_ok() && faulty.mutations() < step);
        }
        if ends == 2 {
            assert!(step > 2);
            break;
        }
    }
}

/// Writers of which each puts the next number into the next of its slots, all over the disk, and only after the one before was
/// acknowledged: whatever is one moment of the disk holds numbers without a gap.
#[test]
fn a_commit_in_use_is_one_moment_of_the_disk() {
    const SLOTS: u64 = 61;
    const WRITERS: u64 = 3;
    let stage = Stage::new();
    stage.create("lab").unwrap();
    let fork = stage.open("lab").unwrap();
    let place = |writer: u64, number: u64| (number % SLOTS * 48_000 + writer * 4096 + 100) / 512 * 512;
    let (stop, longest) = (AtomicBool::new(false), AtomicU64::new(0));
    let numbers: Vec<AtomicU64> = (0..WRITERS).map(|_| AtomicU64::new(0)).collect();
    let mut points = Vec::new();
    scope(|scope| {
        for writer in 0..WRITERS {
            let (fork, stop, longest, numbers) = (&fork, &stop, &longest, &numbers);
            scope.spawn(move || {
                for number in 1u64.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let bytes = number.to_le_bytes().repeat(64);
                    let began = Instant::now();
                    let how = if number.is_multiple_of(50) { Durability::Forced } else { Durability::Cached };
                    fork.write_at(place(writer, number), &bytes, how).unwrap();
                    let took = u64::try_from(began.elapsed().as_micros()).unwrap();
                    if how == Durability::Cached {
                        longest.fetch_max(took, Ordering::Relaxed);
                    }
                    numbers[writer as usize].store(number, Ordering::SeqCst);
                }
            });
        }
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                fork.flush().unwrap();
            }
        });
        for round in 0..5 {
            // Not before all slots were written once more.
            let seen: Vec<u64> = numbers.iter().map(|n| n.load(Ordering::SeqCst)).collect();
            while numbers.iter().zip(&seen).any(|(n, seen)| n.load(Ordering::SeqCst) < seen + SLOTS) {
                std::thread::yield_now();
            }
            let acknowledged: Vec<u64> = numbers.iter().map(|n| n.load(Ordering::SeqCst)).collect();
            points.push((commit(&stage, &fork, 30 + round).unwrap(), acknowledged));
        }
        stop.store(true, Ordering::SeqCst);
    });
    println!("longest write without a sync: {:?}", Duration::from_micros(longest.load(Ordering::Relaxed)));
    let check = |bytes: &[u8], at_least: &[u64]| {
        for writer in 0..WRITERS {
            let slot = |number: u64| {
                let at = place(writer, number) as usize;
                let found = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
                assert!(bytes[at..at + 512] == *found.to_le_bytes().repeat(64), "half a write");
                found
            };
            let newest = (0..SLOTS).map(slot).max().unwrap();
            assert!(newest >= at_least[writer as usize], "an acknowledged write is missing");
            for number in newest + 1 - SLOTS..=newest {
                assert_eq!(slot(number), number, "writer {writer}: the newest is {newest}");
            }
        }
    };
    for (point, acknowledged) in &points {
        check(&stage.restored(point, "vda"), acknowledged);
    }
    let last: Vec<u64> = numbers.iter().map(|n| n.load(Ordering::SeqCst)).collect();
    let now = contents(&fork);
    check(&now, &last);
    assert_eq!(fork.layers(), 1);
    drop(fork);
    assert!(contents(&stage.open("lab").unwrap()) == now);
}
