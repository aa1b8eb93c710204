//! Many hosts, one repository: each has its own index and learns of the others' chunks while it writes, and one that has just
//! come opens and reads a disk after a handful of requests.
//!
//! Not here: processes and the program (the journey of that name), collectors. What holds: no assertion is about time; what is
//! waited for is waited for long.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "requests are told")]

use coffer_repo::backend::Backend;
use coffer_repo::backend::memory::Memory;
use coffer_repo::cancel::Cancel;
use coffer_repo::chunker::{DiskParams, StreamParams};
use coffer_repo::crypto::Aead;
use coffer_repo::entropy::Seeded;
use coffer_repo::index::{Learner, LearnerOptions};
use coffer_repo::key_slot::Credential;
use coffer_repo::point::PointName;
use coffer_repo::reader::{Reader, ReaderOptions};
use coffer_repo::repository::{InitOptions, Repository};
use coffer_repo::snapshot::{Identity, Snapshot};
use coffer_repo::window::{Filled, Window, WindowSource};
use coffer_repo::writer::{DiskSpec, Writer, WriterOptions};
use coffer_repo::{Error, Kind, Result};
use coffer_tests::counting::{Counting, Counts};
use coffer_tests::dice::Dice;
use coffer_tests::disk::{DiskContent, DiskSource};
use coffer_tests::rig::{Job, WINDOW, at, init, open, open_index, passphrase, read_disk, slot};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long something may take to be seen.
const PATIENCE: Duration = Duration::from_secs(300);
/// What opening a point and reading a block of a tebibyte may cost, descriptor and key slot apart.
const GETS: u64 = 6;

fn noise(seed: u64, len: usize) -> DiskContent {
    let mut bytes = vec![0; len];
    Dice::new(seed).noise(&mut bytes);
    bytes.into()
}

/// A source that hands out nothing until it may.
struct Gated<'a> {
    source: DiskSource<'a>,
    gate: &'a AtomicBool,
}

impl WindowSource for Gated<'_> {
    fn next(&self, window: &mut Window) -> Result<Filled> {
        let begun = Instant::now();
        while !self.gate.load(Ordering::SeqCst) {
            if begun.elapsed() > PATIENCE {
                return Err(Error::new(Kind::Unavailable, "nothing was learnt"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.source.next(window)
    }

    fn size(&self) -> Result<u64> {
        self.source.size()
    }
}

/// A backup that has begun when another host publishes stores none of it again.
#[test]
fn a_backup_under_way_learns_what_others_publish() {
    let store: Arc<dyn Backend> = Arc::new(Memory::default());
    let (first, second) = (init(Arc::clone(&store), 1).unwrap(), open(Arc::clone(&store), 2).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let [one, other] =
        [(&first, "1"), (&second, "2")].map(|(repo, of)| open_index(repo, &dir.path().join(of)).unwrap());
    let disk = noise(7, 3_000_000);
    let gate: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
    let options = LearnerOptions { first: Duration::ZERO, every: Duration::from_millis(20) };
    let learner = Learner::start(&second, &other, options, move |learnt| {
        if learnt.unwrap().learnt > 0 {
            gate.store(true, Ordering::SeqCst);
        }
    })
    .unwrap();
    let late = std::thread::scope(|scope| {
        let (second, other, disk) = (&second, &other, &disk);
        let late = scope.spawn(move || {
            let options = WriterOptions { workers: 1, ..WriterOptions::default() };
            let mut writer = Writer::begin(second, other, "db", None, Identity::default(), options, at(20)).unwrap();
            let source = Gated { source: DiskSource::new(disk, WINDOW), gate };
            let spec = DiskSpec { name: "d".to_owned(), block_size: 512, platform: None };
            writer.disk(spec, &source, &Cancel::default()).unwrap();
            writer.commit(Vec::new()).unwrap()
        });
        Job::new("web", 10, vec![("d", disk)]).run(&first, &one).unwrap();
        late.join().unwrap()
    });
    drop(learner);
    assert_eq!(late.stats.new_chunks, 0, "{:?}", late.stats);
    assert!(read_disk(&first, &late, "d").unwrap() == disk.stretches[&0]);
}

/// Hosts with indices of their own, all at once, again and again: what was visible when a backup began is never stored again.
#[test]
fn many_hosts_back_up_at_once() {
    const HOSTS: u64 = 6;
    const ROUNDS: u64 = 4;
    let store: Arc<dyn Backend> = Arc::new(Memory::default());
    init(Arc::clone(&store), 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let shared = noise(1, 2_000_000).stretches[&0].clone();
    let content = |host: u64, round: u64| -> DiskContent {
        let mut bytes = shared.clone();
        bytes.extend_from_slice(&noise(100 + host, 200_000).stretches[&0]);
        bytes.extend_from_slice(&noise(1000 + host * ROUNDS + round, 100_000).stretches[&0]);
        bytes.into()
    };
    let stored = AtomicU64::new(0);
    for round in 0..ROUNDS {
        std::thread::scope(|scope| {
            for host in 0..HOSTS {
                let (store, dir, stored, content) = (&store, dir.path(), &stored, &content);
                scope.spawn(move || {
                    let repo = open(Arc::clone(store), 10 + round * HOSTS + host).unwrap();
                    let index = open_index(&repo, &dir.join(host.to_string())).unwrap();
                    let disk = content(host, round);
                    let workload = format!("host {host}");
                    let made = Job::new(&workload, 100 + round, vec![("d", &disk)]).run(&repo, &index).unwrap();
                    stored.fetch_add(made.stats.new_raw, Ordering::SeqCst);
                    // A chunk that spans the border of old and new is new.
                    let most = 300_000 + 2 * 262_144;
                    assert!(round == 0 || made.stats.new_raw <= most, "round {round}: {:?}", made.stats);
                });
            }
        });
    }
    let repo = open(store, 1000).unwrap();
    let points = repo.points().unwrap();
    assert!(points.damaged.is_empty(), "{:?}", points.damaged);
    assert_eq!(points.snapshots.len() as u64, HOSTS * ROUNDS);
    for snapshot in &points.snapshots {
        let host: u64 = snapshot.workload.strip_prefix("host ").unwrap().parse().unwrap();
        let disk = content(host, snapshot.time().seconds() - 100);
        assert!(read_disk(&repo, snapshot, "d").unwrap() == disk.stretches[&0], "{}", snapshot.name);
    }
    println!("{HOSTS} hosts, {ROUNDS} rounds: {} bytes stored", stored.into_inner());
}

const TIB: u64 = 1 << 40;

/// The key file of this number.
fn key(number: u64) -> Credential {
    Credential::from_key_file(&format!("coffer-key-1:{number:064x}\n")).unwrap()
}

/// A repository with windows of the usual size and one point of a disk of a tebibyte, signed by the authority or by a writer's key.
fn tebibyte(by_writer: bool) -> (Arc<Memory>, Credential, DiskContent) {
    let store = Arc::new(Memory::default());
    let options = InitOptions {
        credential: passphrase(),
        slot: slot("rig", 1),
        disk: DiskParams::default(),
        stream: StreamParams::default(),
        aead: Aead::preferred(),
        parity: false,
    };
    let mut repo = Arc::new(Repository::init(Arc::clone(&store) as _, options, Arc::new(Seeded::new(1))).unwrap());
    let mover = key(99);
    if by_writer {
        // Others' certificates, too.
        for n in 0..3 {
            repo.export_writer(&key(n), &slot("another", 2)).unwrap();
        }
        repo.export_writer(&mover, &slot("mover", 2)).unwrap();
        repo = Arc::new(Repository::open(Arc::clone(&store) as _, &mover, Arc::new(Seeded::new(2))).unwrap());
    }
    // A boot sector, and a little in each of some hundred windows: many nodes on two levels, and many packs.
    let stretch = |n: u64| (n * (TIB / 400) / 65_536 * 65_536, noise(n, 65_536).stretches[&0].clone());
    let disk = DiskContent { size: TIB, stretches: (0..400).map(stretch).collect(), unreadable: vec![] };
    let dir = tempfile::tempdir().unwrap();
    let index = open_index(&repo, dir.path()).unwrap();
    for (workload, time) in [("web", 10), ("db", 15), ("web", 20)] {
        Job::new(workload, time, vec![("d", &noise(time, 100_000))]).run(&repo, &index).unwrap();
    }
    Job::new("web", 30, vec![("d", &disk)]).run(&repo, &index).unwrap();
    (store, passphrase(), disk)
}

/// What it takes to open the newest point of a workload, pin it, and read a block of its disk, descriptor and key slot apart.
fn first_read(by_writer: bool, offset: u64) -> Counts {
    let (store, credential, disk) = tebibyte(by_writer);
    let counting = Arc::new(Counting::new(store.clone_state()));
    let repo = Arc::new(Repository::open(Arc::clone(&counting) as _, &credential, Arc::new(Seeded::new(3))).unwrap());
    let opened = counting.counts();
    let slots = repo.key_slots().unwrap().len() as u64;
    let before = counting.counts();
    let point = repo.find_point(&PointName::parse("web@latest").unwrap()).unwrap().expect("the newest point");
    assert_eq!(point.time(), at(30));
    let pin = repo.pin(&point, "test", &Identity::default(), at(40)).unwrap();
    assert_eq!(pin.warning(), None);
    let reader =
        Reader::new(Arc::clone(&repo), ReaderOptions { readahead_bytes: 0, ..ReaderOptions::default() }).unwrap();
    let mut read = vec![0; 4096];
    reader.disk(&point, "d").unwrap().read_at(offset, &mut read).unwrap();
    let counts = counting.counts();
    let (at, bytes) = disk.stretches.range(..=offset).next_back().unwrap();
    let from = usize::try_from(offset - at).unwrap();
    assert!(read == bytes[from..from + 4096]);
    // The descriptor, and a slot or more until one opens.
    let of_opening = opened.reads - opened.sizes;
    assert!((2..=1 + slots).contains(&of_opening), "{opened:?}");
    Counts {
        reads: counts.reads - before.reads,
        sizes: counts.sizes - before.sizes,
        lists: counts.lists - before.lists + opened.lists,
    }
}

#[test]
fn a_host_that_has_just_come_reads_after_a_handful_of_requests() {
    for (title, by_writer, offset) in [
        ("the first block", false, 0),
        ("a block far away", false, 399 * (TIB / 400) / 65_536 * 65_536),
        ("the first block, backed up with a writer's key", true, 0),
    ] {
        let Counts { reads, sizes, lists } = first_read(by_writer, offset);
        println!("{title}: {} GET, {sizes} HEAD, {lists} LIST", reads - sizes);
        assert!(reads - sizes <= GETS, "{title}: {} GET, {sizes} HEAD, {lists} LIST", reads - sizes);
        assert!(sizes <= 4 && lists <= 5, "{title}: {sizes} HEAD, {lists} LIST");
    }
}

/// However a point is named, it is found by reading little where it would be found by reading all, and only there.
#[test]
fn one_point_is_found_as_among_all() {
    let store: Arc<dyn Backend> = Arc::new(Memory::default());
    let repo = init(Arc::clone(&store), 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let index = open_index(&repo, dir.path()).unwrap();
    let disk = noise(1, 20_000);
    let made: Vec<Snapshot> =
        [("web", 10), ("web", 20), ("web", 30), ("db", 20), ("web", 40), ("web", 40), ("web", 50)]
            .into_iter()
            .map(|(workload, time)| Job::new(workload, time, vec![("d", &disk)]).run(&repo, &index).unwrap())
            .collect();
    repo.forget(made[1].name, at(60)).unwrap();
    repo.forget(made[6].name, at(60)).unwrap();
    // Nobody decided it, and it is the newest.
    let pin = repo.pin(&made[2], "test", &Identity::default(), at(70)).unwrap();
    let repo = open(store, 2).unwrap();
    let points = repo.points().unwrap().snapshots;
    let mut names: Vec<String> =
        ["web@latest", "web@-1", "web@-2", "web@-3", "web@-4", "db@latest", "db@-1", "no@latest", "web", "beef"]
            .map(str::to_owned)
            .into();
    names.extend([10, 20, 30, 40, 50, 60].map(|time| format!("web@{}", at(time))));
    names.extend(made.iter().flat_map(|s| [s.id().to_string(), s.id().to_string()[..6].to_uppercase()]));
    let mut found_at_once = 0;
    for text in names {
        let name = PointName::parse(&text).unwrap();
        let lean = repo.find_point(&name).unwrap();
        match name.find(&points) {
            Ok(found) => assert!(lean.as_ref().is_none_or(|lean| lean == found), "{text}: {lean:?}"),
            Err(_) => assert_eq!(lean, None, "{text}"),
        }
        found_at_once += usize::from(lean.is_some());
    }
    assert!(found_at_once >= 15, "{found_at_once}");
    drop(pin);
}
