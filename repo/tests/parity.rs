//! Reads and verification of packs that are damaged and have parity.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;

use bench::{Bench, back_up, image, pass, read_all};
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, Listed, Put, list_sorted};
use coffer_repo::cancel::Cancel;
use coffer_repo::entropy::Seeded;
use coffer_repo::location::PackKind;
use coffer_repo::pack;
use coffer_repo::parity;
use coffer_repo::reader::{MapContent, Reader, ReaderOptions, Remedy};
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::Snapshot;
use coffer_repo::verify::{DataCheck, Report, VerifyOptions, VerifyProgress, verify};
use coffer_repo::{Error, Kind, Result};
use std::sync::{Arc, Mutex};

/// A point of one disk.
fn fill(bench: &Bench, repo: &Arc<Repository>) -> (Snapshot, Vec<u8>) {
    let bytes = image(1, 5 << 20 | 777);
    (back_up(repo, &bench.index(repo), &[("d", &bytes)], None, 10), bytes)
}

fn packs(store: &dyn Backend) -> Vec<Listed> {
    PackKind::ALL.into_iter().flat_map(|kind| list_sorted(store, kind.prefix()).unwrap()).collect()
}

fn replace(store: &Memory, name: &str, bytes: &[u8]) {
    store.delete(name).unwrap();
    assert_eq!(store.put(name, &[bytes]).unwrap(), Put::Created);
}

/// Flips a bit in so many 64ths of a pack, evenly.
fn flip(store: &Memory, name: &str, shards: usize) {
    let mut bytes = store.get(name).unwrap();
    let step = bytes.len() / shards;
    for byte in bytes.iter_mut().skip(step / 2).step_by(step).take(shards) {
        *byte ^= 0x10;
    }
    replace(store, name, &bytes);
}

fn open(store: Arc<dyn Backend>) -> Arc<Repository> {
    Arc::new(Repository::open(store, &pass("secret"), Arc::new(Seeded::new(99))).unwrap())
}

fn run(repo: &Arc<Repository>) -> Report {
    let options = VerifyOptions { data: DataCheck::All, threads: 2, ..VerifyOptions::default() };
    verify(repo, options, &VerifyProgress::default(), &Cancel::default()).unwrap()
}

/// How reading a disk fails.
fn failure(repo: &Arc<Repository>, point: &Snapshot) -> Option<Kind> {
    read_all(repo, point, "d").err().map(|e| e.kind())
}

#[test]
fn every_pack_has_parity_where_it_is_wanted_and_only_there() {
    for (wanted, (bench, repo)) in [(true, Bench::with_parity()), (false, Bench::new())] {
        assert_eq!(repo.wants_parity(), wanted);
        assert_eq!(bench.open(&pass("secret")).unwrap().wants_parity(), wanted);
        fill(&bench, &repo);
        let packs = packs(&*bench.memory);
        let parities = list_sorted(&*bench.memory, parity::PREFIX).unwrap();
        let of = |pack: &Listed| parity::name(pack::parse_name(&pack.name).unwrap().1);
        let mut due: Vec<_> = packs.iter().map(of).filter(|_| wanted).collect();
        due.sort();
        assert_eq!(parities.iter().map(|o| o.name.clone()).collect::<Vec<_>>(), due);
        let report = run(&repo);
        assert_eq!((report.problems, report.healed, report.without_parity), (vec![], vec![], 0));
    }
}

#[test]
fn damage_to_four_shards_is_read_through_and_told_once() {
    let (bench, repo) = Bench::with_parity();
    let (point, bytes) = fill(&bench, &repo);
    let all = packs(&*bench.memory);
    for pack in &all {
        flip(&bench.memory, &pack.name, 4);
    }
    let before = list_sorted(&*bench.memory, "").unwrap();
    let repo = open(bench.memory.clone());
    let told = Arc::new(Mutex::new(Vec::new()));
    let reader = Reader::new(Arc::clone(&repo), ReaderOptions { cache_bytes: 0, ..ReaderOptions::default() }).unwrap();
    let listener = Arc::clone(&told);
    reader.on_damage(move |pack, remedy| {
        assert_eq!(remedy, Remedy::Parity);
        listener.lock().unwrap().push(pack.to_owned());
    });
    let disk = reader.disk(&point, "d").unwrap();
    let mut read = vec![0; bytes.len()];
    for _ in 0..3 {
        read.fill(0);
        disk.read_at(0, &mut read).unwrap();
        assert!(read == bytes);
    }
    told.lock().unwrap().sort();
    let mut names: Vec<_> = all.iter().map(|o| o.name.clone()).collect();
    names.sort();
    assert_eq!(*told.lock().unwrap(), names);

    let report = run(&repo);
    let shown: Vec<_> = report.problems.iter().map(|p| (p.object.clone(), p.hurts.len(), p.remedy)).collect();
    assert_eq!(shown, names.iter().map(|n| (n.clone(), 0, Some(Remedy::Parity))).collect::<Vec<_>>());
    assert_eq!(report.healed, []);
    // Neither reading nor verifying wrote anything.
    assert_eq!(list_sorted(&*bench.memory, "").unwrap(), before);
}

#[test]
fn every_part_of_a_pack_is_repaired() {
    let (bench, repo) = Bench::with_parity();
    let (point, bytes) = fill(&bench, &repo);
    for pack in packs(&*bench.memory) {
        let whole = bench.memory.get(&pack.name).unwrap();
        let last = whole.len() - 1;
        // Magic, version, feature bits, signature, key slot, first frame, table of contents, footer, magic.
        for at in [0, 8, 12, 40, 140, 280, last - 100, last - 40, last] {
            let store = bench.memory.clone_state();
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            replace(&store, &pack.name, &flipped);
            check(&store, &pack.name, &point, &bytes, &format!("{} flipped at {at}", pack.name));
        }
        for len in [last, whole.len() - whole.len() / 20] {
            let store = bench.memory.clone_state();
            replace(&store, &pack.name, &whole[..len]);
            check(&store, &pack.name, &point, &bytes, &format!("{} cut to {len}", pack.name));
        }
    }
}

fn check(store: &Memory, name: &str, point: &Snapshot, bytes: &[u8], what: &str) {
    let repo = open(Arc::new(store.clone_state()));
    assert!(read_all(&repo, point, "d").unwrap() == bytes, "{what}");
    let report = run(&repo);
    let shown: Vec<_> = report.problems.iter().map(|p| (p.object.as_str(), p.hurts.len(), p.remedy)).collect();
    assert_eq!(shown, [(name, 0, Some(Remedy::Parity))], "{what}");
}

#[test]
fn what_parity_cannot_repair_is_damage_and_false_parity_repairs_nothing() {
    let (bench, repo) = Bench::with_parity();
    let (point, bytes) = fill(&bench, &repo);
    let data: Vec<_> = list_sorted(&*bench.memory, PackKind::Data.prefix()).unwrap();
    let (kind, uid) = pack::parse_name(&data[0].name).unwrap();
    let garbage = image(9, usize::try_from(data[0].size).unwrap());
    let mut false_bytes = bench.memory.get(&data[0].name).unwrap();
    false_bytes[100_000..].copy_from_slice(&garbage[100_000..]);
    let breaks: [(&str, usize, Option<Vec<u8>>); 5] = [
        ("five shards of the pack", 5, Some(bench.memory.get(&parity::name(uid)).unwrap())),
        ("no parity", 1, None),
        ("parity that is none", 1, Some(garbage.clone())),
        ("parity of another content", 1, Some(parity::encode(kind, uid, &garbage).unwrap())),
        ("parity of another content behind the same header", 1, Some(parity::encode(kind, uid, &false_bytes).unwrap())),
    ];
    for (what, shards, parity) in breaks {
        let store = Arc::new(bench.memory.clone_state());
        flip(&store, &data[0].name, shards);
        store.delete(&parity::name(uid)).unwrap();
        if let Some(parity) = &parity {
            assert_eq!(store.put(&parity::name(uid), &[parity]).unwrap(), Put::Created);
        }
        let repo = open(store);
        assert_eq!(failure(&repo, &point), Some(Kind::Corrupt), "{what}");
        let report = run(&repo);
        assert_eq!(report.problems.len(), 1, "{what}");
        assert_eq!(report.problems[0].object, data[0].name, "{what}");
        assert!(!report.problems[0].hurts.is_empty() && report.problems[0].remedy.is_none(), "{what}");
        assert_eq!(report.without_parity, u64::from(parity.is_none()), "{what}");
    }
    // With the pack as it was, all of that hurts nobody.
    let store = Arc::new(bench.memory.clone_state());
    replace(&store, &parity::name(uid), &garbage);
    assert!(read_all(&open(store), &point, "d").unwrap() == bytes);
}

/// What is left of a damaged disk is read around the damage, at the grain of chunks and windows, and the damage is exact.
#[test]
fn what_is_left_is_told_from_what_is_lost() {
    let (bench, repo) = Bench::new();
    let (point, bytes) = fill(&bench, &repo);
    for name in packs(&*bench.memory).into_iter().map(|pack| pack.name) {
        let store = bench.memory.clone_state();
        flip(&store, &name, 3);
        let repo = open(Arc::new(store));
        let reader = Reader::new(Arc::clone(&repo), ReaderOptions::default()).unwrap();
        let disk = reader.disk(&point, "d").unwrap();
        let mut lost = 0;
        let mut at = 0;
        while at < disk.size() {
            // A few at a time, and not at boundaries of anything.
            let range = at..(at + 1_234_567).min(disk.size());
            for extent in disk.readable_extents(range, 3).unwrap() {
                assert_eq!(extent.range.start, at, "{name}");
                at = extent.range.end;
                let part = usize::try_from(extent.range.start).unwrap()..usize::try_from(extent.range.end).unwrap();
                let mut read = vec![0xaa; part.len()];
                match (extent.content, disk.read_at(extent.range.start, &mut read)) {
                    (MapContent::Unreadable, Err(e)) => {
                        assert_eq!(e.kind(), Kind::Corrupt);
                        lost += part.len();
                    }
                    (MapContent::Data, Ok(())) => assert!(read == bytes[part], "{name}"),
                    (MapContent::Zero, Ok(())) => assert!(read == bytes[part] && read.iter().all(|b| *b == 0)),
                    (content, read) => panic!("{name}: {:?} is {content:?}, reads {read:?}", extent.range),
                }
            }
        }
        let hurt: u64 = run(&repo).problems[0].hurts[0].ranges.iter().map(|r| r.end - r.start).sum();
        assert!(lost as u64 == hurt && lost > 0, "{name}: {lost} of {hurt}");
    }
}

/// A disk with a bad sector: reads that touch it fail.
#[derive(Debug)]
struct BadSector {
    store: Arc<Memory>,
    object: String,
    at: u64,
}

impl Backend for BadSector {
    fn location(&self) -> String {
        self.store.location()
    }
    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        self.store.put(name, parts)
    }
    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.store.get(name)
    }
    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        if name == self.object && (offset..offset + out.len() as u64).contains(&self.at) {
            return Err(Error::new(Kind::Unavailable, "a sector cannot be read"));
        }
        self.store.get_range(name, offset, out)
    }
    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        self.store.get_suffix(name, max)
    }
    fn size(&self, name: &str) -> Result<Option<u64>> {
        self.store.size(name)
    }
    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        self.store.list(prefix, each)
    }
    fn delete(&self, name: &str) -> Result<()> {
        self.store.delete(name)
    }
}

#[test]
fn what_cannot_be_read_is_repaired_like_what_is_wrong() {
    let (bench, repo) = Bench::with_parity();
    let (point, bytes) = fill(&bench, &repo);
    for pack in packs(&*bench.memory) {
        for at in [0, pack.size / 2] {
            let store = BadSector { store: bench.memory.clone(), object: pack.name.clone(), at };
            assert!(read_all(&open(Arc::new(store)), &point, "d").unwrap() == bytes, "{} at {at}", pack.name);
        }
    }
}
