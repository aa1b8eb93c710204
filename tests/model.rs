//! The reference model: a long random life of a repository beside a plain map of what it has to hold.
//!
//! Disks are written, backed up (in full, on a parent, with windows that the source calls unchanged, as the owner of
//! the index or as its guest), read, pinned and forgotten, backups are broken off, garbage is collected; the repository
//! and its index are closed, thrown away and learnt again in between. After every step the points are those of the map,
//! and what is read of them is what was backed up.
//!
//! Not here: crashes (`crash.rs`), damage (`broken.rs`). What holds: everything follows from the seed, which is
//! printed. More steps: `COFFER_MODEL_STEPS`; another life: `COFFER_MODEL_SEED`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test is a program: it may read its environment")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "seeds are told, so that a failure can be repeated")]

use coffer_repo::Kind;
use coffer_repo::backend::memory::Memory;
use coffer_repo::catalog::Pin;
use coffer_repo::collector::CollectOptions;
use coffer_repo::index::Index;
use coffer_repo::reader::Reader;
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::{Identity, Snapshot};
use coffer_tests::dice::Dice;
use coffer_tests::disk::{DiskContent, read_runs};
use coffer_tests::rig::{Job, WINDOW, at, collect, collecting, init, learn, learn_packs, open, open_index, reader};
use std::collections::BTreeSet;
use std::sync::Arc;

const STEPS: u64 = 1500;
const SEED: u64 = 42;
const WORKLOADS: [&str; 3] = ["web", "db", "mail"];
/// Longest disk: four windows, so that the root is an inner node as well as a leaf.
const LONGEST: usize = 4 << 20;
/// As many points as are kept before the oldest are forgotten.
const MOST_POINTS: usize = 12;

/// A point that the repository has to have.
#[derive(Clone)]
struct Point {
    snapshot: Snapshot,
    disks: Vec<(String, Arc<DiskContent>)>,
}

/// A repository and what it has to hold.
struct Life {
    dice: Dice,
    store: Arc<Memory>,
    dir: tempfile::TempDir,
    /// Seeds of sessions: no two draw the same random bytes.
    sessions: u64,
    now: u64,
    repo: Arc<Repository>,
    index: Arc<Index>,
    reader: Arc<Reader>,
    /// The disks of the machines that are backed up.
    machines: Vec<Vec<u8>>,
    points: Vec<Point>,
    /// What they hold can be read, forgotten or not.
    pins: Vec<(Pin, Point)>,
    /// Packs that were collected.
    removed: u64,
    done: [u64; 12],
}

impl Life {
    fn new(seed: u64) -> Self {
        let store = Arc::new(Memory::default());
        let dir = tempfile::tempdir().unwrap();
        let repo = init(store.clone(), seed << 32).unwrap();
        let index = open_index(&repo, dir.path()).unwrap();
        let reader = reader(&repo).unwrap();
        let machines = vec![Vec::new(), vec![0; 700_000], vec![1; 2 << 20]];
        Life {
            dice: Dice::new(seed),
            store,
            dir,
            sessions: seed << 32,
            now: 100,
            repo,
            index,
            reader,
            machines,
            points: Vec::new(),
            pins: Vec::new(),
            removed: 0,
            done: [0; 12],
        }
    }

    fn step(&mut self) {
        self.now += self.dice.below(3);
        let choice = self.dice.index(100);
        let which = match choice {
            0..30 => self.write(),
            30..58 => self.back_up(false),
            58..62 => self.back_up(true),
            62..84 => self.read(),
            84..88 => self.forget(),
            88..92 => self.pin(),
            92..95 => self.reopen(),
            95..97 => self.reopen_index(),
            97..98 => self.learn_again(),
            98..99 => self.read_all_of_one(),
            _ => match self.dice.once_in(3) {
                true => self.break_off(),
                false => self.collect(),
            },
        };
        self.done[which] += 1;
        self.compare_points().unwrap();
    }

    /// Changes a machine's disk: noise, one byte over and over, zeroes, a copy from elsewhere, or another length.
    fn write(&mut self) -> usize {
        let dice = &mut self.dice;
        let machine = dice.index(self.machines.len());
        if dice.once_in(6) {
            let len = dice.index(LONGEST);
            self.machines[machine].resize(len, 0);
        }
        let disk = &mut self.machines[machine];
        let range = dice.range(disk.len(), 300_000);
        match dice.below(4) {
            0 => dice.noise(&mut disk[range]),
            1 => disk[range].fill(u8::try_from(dice.below(256)).unwrap()),
            2 => disk[range].fill(0),
            _ => {
                let to = range.start / 4096 * 4096;
                let other = self.machines[dice.index(self.machines.len())].clone();
                let from = dice.range(other.len(), 300_000);
                let from = from.start / 4096 * 4096..from.end;
                let disk = &mut self.machines[machine];
                let len = from.len().min(disk.len() - to);
                disk[to..to + len].copy_from_slice(&other[from.start..from.start + len]);
            }
        }
        0
    }

    /// Backs a machine up, often on one of its points, sometimes with a source that knows which windows did not change.
    fn back_up(&mut self, as_guest: bool) -> usize {
        let machine = self.dice.index(self.machines.len());
        let workload = WORKLOADS[machine];
        let parents: Vec<&Point> = self.points.iter().filter(|p| p.snapshot.workload == workload).collect();
        let parent = match parents.is_empty() || self.dice.once_in(3) {
            true => None,
            false => Some(parents[self.dice.index(parents.len())]),
        };
        let disk: Arc<DiskContent> = Arc::new(self.machines[machine].clone().into());
        let mut disks = vec![("disk".to_owned(), Arc::clone(&disk))];
        if self.dice.once_in(4) {
            let other = self.dice.index(self.machines.len());
            disks.push(("more".to_owned(), Arc::new(self.machines[other].clone().into())));
        }
        let mut job = Job::new(workload, self.now, disks.iter().map(|(n, d)| (n.as_str(), &**d)).collect());
        if let Some(parent) = parent {
            if self.dice.once_in(2) {
                job.unchanged = unchanged(&parent.disks[0].1, &disk);
            }
            job = job.on(Some(parent.snapshot.clone()));
        }
        job.options.workers = 1 + self.dice.index(3);
        let snapshot = if as_guest {
            self.sessions += 1;
            let repo = open(self.store.clone(), self.sessions).unwrap();
            let guest = open_index(&repo, self.dir.path()).unwrap();
            assert!(guest.is_guest());
            job.run(&repo, &guest)
        } else {
            job.run(&self.repo, &self.index)
        };
        self.points.push(Point { snapshot: snapshot.unwrap(), disks });
        while self.points.len() > MOST_POINTS {
            self.forget_at(0);
        }
        1 + usize::from(as_guest)
    }

    /// Reads a range of a disk of a point.
    fn read(&mut self) -> usize {
        if let Some((point, disk, range)) = self.choose() {
            let (name, content) = &self.points[point].disks[disk];
            let device = self.reader.disk(&self.points[point].snapshot, name).unwrap();
            let mut bytes = vec![0xa5; range.len()];
            device.read_at(range.start as u64, &mut bytes).unwrap();
            assert!(bytes == content.stretches[&0][range.clone()], "{name} of point {point}, bytes {range:?}");
        }
        3
    }

    /// Maps and reads a whole disk of a point.
    fn read_all_of_one(&mut self) -> usize {
        if let Some((point, disk, _)) = self.choose() {
            compare_disk(&self.reader, &self.points[point], disk).unwrap();
        }
        4
    }

    fn choose(&mut self) -> Option<(usize, usize, std::ops::Range<usize>)> {
        if self.points.is_empty() {
            return None;
        }
        let point = self.dice.index(self.points.len());
        let disk = self.dice.index(self.points[point].disks.len());
        let len = usize::try_from(self.points[point].disks[disk].1.size).unwrap();
        Some((point, disk, self.dice.range(len, 400_000)))
    }

    fn forget(&mut self) -> usize {
        if !self.points.is_empty() {
            let at = self.dice.index(self.points.len());
            self.forget_at(at);
        }
        5
    }

    /// Forgets a point; afterwards nothing is built on it or pinned.
    fn forget_at(&mut self, index: usize) {
        let Point { snapshot, disks } = self.points.remove(index);
        self.repo.forget(snapshot.name, at(self.now)).unwrap();
        if self.dice.once_in(3) {
            let pinned = self.repo.pin(&snapshot, "test", &Identity::default(), at(self.now));
            assert_eq!(pinned.unwrap_err().kind(), Kind::NotFound);
            let job = Job::new(&snapshot.workload, self.now, disks.iter().map(|(n, d)| (n.as_str(), &**d)).collect());
            let e = job.on(Some(snapshot.clone())).run(&self.repo, &self.index).unwrap_err();
            assert!(e.to_string().contains("was forgotten"), "{e:?}");
        }
    }

    /// Pins a point, or ends a pin.
    fn pin(&mut self) -> usize {
        if self.pins.len() < 3 && !self.points.is_empty() {
            let at_point = self.dice.index(self.points.len());
            let point = self.points[at_point].clone();
            let pin = self.repo.pin(&point.snapshot, "test", &Identity::default(), at(self.now)).unwrap();
            assert_eq!(pin.warning(), None);
            self.pins.push((pin, point));
        } else if let Some((pin, _)) = self.pins.pop() {
            pin.release(at(self.now)).unwrap();
        }
        6
    }

    /// A backup that is broken off before it commits.
    fn break_off(&mut self) -> usize {
        let mut noise = vec![0; 500_000];
        self.dice.noise(&mut noise);
        let disk = noise.into();
        drop(Job::new(WORKLOADS[0], self.now, vec![("disk", &disk)]).prepare(&self.repo, &self.index).unwrap());
        10
    }

    /// Collects garbage; afterwards everything that is pinned can be read, with what is remembered from before and without.
    fn collect(&mut self) -> usize {
        let options = CollectOptions {
            repack_below: [0, 50, 99][self.dice.index(3)],
            max_repack: self.dice.once_in(3).then_some(2_000_000),
            // Sessions beat by a clock that does not run here.
            dead_after: u64::MAX,
            ..collecting(self.dir.path(), self.now)
        };
        let report = collect(&self.repo, &options).unwrap();
        assert!(report.unwalkable.is_empty() && report.damaged.is_empty() && report.lost == 0, "{report:?}");
        assert!(report.unpinned.is_empty() && report.revoked.is_empty(), "{report:?}");
        self.removed += report.removed.packs;
        learn(&self.repo, &self.index).unwrap();
        for reader in [&self.reader, &reader(&self.repo).unwrap()] {
            for (_, point) in &self.pins {
                (0..point.disks.len()).for_each(|disk| compare_disk(reader, point, disk).unwrap());
            }
        }
        11
    }

    /// Another process takes over: nothing is cached.
    fn reopen(&mut self) -> usize {
        self.sessions += 1;
        self.repo = open(self.store.clone(), self.sessions).unwrap();
        self.reader = reader(&self.repo).unwrap();
        7
    }

    /// The index is closed and opened again, or thrown away and learnt from the deltas.
    fn reopen_index(&mut self) -> usize {
        let discard = self.dice.once_in(2);
        self.close_index();
        if discard {
            Index::discard(self.dir.path()).unwrap();
        }
        self.index = open_index(&self.repo, self.dir.path()).unwrap();
        assert!(self.index.discarded().is_none() && !self.index.is_guest());
        8
    }

    /// The index is thrown away, and learnt from the packs alone.
    fn learn_again(&mut self) -> usize {
        self.close_index();
        Index::discard(self.dir.path()).unwrap();
        let options = coffer_repo::index::IndexOptions::default();
        let index = Index::open(self.dir.path(), self.repo.keys().repo(), options).unwrap();
        let report = learn_packs(&self.repo, &index).unwrap();
        assert!(report.left_out.is_empty());
        assert_eq!(learn(&self.repo, &index).unwrap().left_out.len(), 0);
        self.index = Arc::new(index);
        9
    }

    /// Lets go of the index; a stand-in in another directory takes its place for the moment.
    fn close_index(&mut self) {
        let aside = tempfile::tempdir().unwrap();
        let options = coffer_repo::index::IndexOptions::default();
        let stand_in = Index::open(aside.path(), self.repo.keys().repo(), options).unwrap();
        self.index = Arc::new(stand_in);
    }

    /// The points are those of the model, in order.
    fn compare_points(&self) -> Result<(), String> {
        let found = self.repo.points().map_err(|e| format!("{e:?}"))?;
        if !found.damaged.is_empty() {
            return Err(format!("{:?}", found.damaged));
        }
        let mut due: Vec<&Snapshot> = self.points.iter().map(|p| &p.snapshot).collect();
        due.sort_by_key(|s| (s.time(), s.id()));
        if found.snapshots.iter().ne(due.iter().copied()) {
            return Err(format!("points {:?}, due {due:?}", found.snapshots));
        }
        Ok(())
    }
}

/// Windows in which a disk is as it was.
fn unchanged(old: &DiskContent, new: &DiskContent) -> BTreeSet<u64> {
    let (old, new) = (&old.stretches[&0], &new.stretches[&0]);
    let window = usize::try_from(WINDOW).unwrap();
    let same = old.chunks(window).zip(new.chunks(window)).enumerate().filter(|(_, (old, new))| old == new);
    same.map(|(i, _)| i as u64).collect()
}

/// A disk of a point is mapped and reads as it was backed up.
fn compare_disk(reader: &Arc<Reader>, point: &Point, disk: usize) -> Result<(), String> {
    let (name, content) = &point.disks[disk];
    let device = reader.disk(&point.snapshot, name).map_err(|e| format!("{e:?}"))?;
    let read = read_runs(&device, WINDOW).map_err(|e| format!("{e:?}"))?;
    if read == content.runs(WINDOW) { Ok(()) } else { Err(format!("{name} of {} differs", point.snapshot.name)) }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

#[test]
fn a_long_life_is_as_the_model_says() {
    let (seed, steps) = (number("COFFER_MODEL_SEED", SEED), number("COFFER_MODEL_STEPS", STEPS));
    println!("COFFER_MODEL_SEED={seed} COFFER_MODEL_STEPS={steps}");
    let mut life = Life::new(seed);
    for _ in 0..steps {
        life.step();
    }
    for point in &life.points {
        for disk in 0..point.disks.len() {
            compare_disk(&life.reader, point, disk).unwrap();
        }
    }
    println!(
        "writes, backups, by guests, reads, of all, forgets, pins, reopened, index, learnt, broken off, collections:"
    );
    println!("{:?}; {} packs collected", life.done, life.removed);
    assert!(life.removed > 20);
    assert!(life.done.iter().all(|n| *n > 0), "something was never done: {:?}", life.done);
}

/// The guard of the model: it notices a flipped byte, and a point too many or too few.
#[test]
fn the_model_notices() {
    let mut life = Life::new(1);
    life.machines[0] = vec![3; 1 << 20];
    while life.points.len() < 2 {
        life.back_up(false);
    }
    life.compare_points().unwrap();
    let mut point = life.points.remove(0);
    assert!(life.compare_points().is_err());
    compare_disk(&life.reader, &point, 0).unwrap();
    let mut bytes = (*point.disks[0].1).clone();
    if let Some(byte) = bytes.stretches.get_mut(&0).and_then(|b| b.last_mut()) {
        *byte ^= 1;
    } else {
        bytes.size = 1;
    }
    point.disks[0].1 = Arc::new(bytes);
    assert!(compare_disk(&life.reader, &point, 0).is_err());
}
