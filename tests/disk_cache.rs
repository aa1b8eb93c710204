//! The disk cache under everything that may happen to it: several of it in one folder, harm of every kind, a folder that goes, a
//! store that lies once, a budget that is small.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use coffer_repo::backend::cached::{CacheOptions, Cached, Intake, UNWRITTEN, clear, slack, usage};
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, Listed, Put};
use coffer_repo::{Kind, Result};
use coffer_tests::counting::Counting;
use coffer_tests::dice::Dice;
use coffer_tests::disk::DiskContent;
use coffer_tests::distant::Distant;
use coffer_tests::program::LIMIT;
use coffer_tests::rig::{self, Job};
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
/// More than any test keeps.
const PLENTY: u64 = 1 << 30;

/// Objects with names of packs, of every kind of length.
fn objects(seed: u64) -> Vec<(String, Vec<u8>)> {
    let mut dice = Dice::new(seed);
    let lengths = [1, 100, 4096, 5000, 256 << 10, (256 << 10) + 1, MIB, 2 * MIB + 12_345, 5 * MIB];
    let object = |(i, len): (usize, usize)| {
        let mut bytes = vec![0; len];
        dice.noise(&mut bytes);
        (format!("{}/{i:02x}/{i:032x}", if i % 3 == 0 { "trees" } else { "packs" }), bytes)
    };
    lengths.into_iter().enumerate().map(object).collect()
}

fn filled(objects: &[(String, Vec<u8>)]) -> Memory {
    let memory = Memory::default();
    for (name, bytes) in objects {
        assert_eq!(memory.put(name, &[bytes]).unwrap(), Put::Created);
    }
    memory
}

/// A cache in `folder` that has nothing to complain of.
fn cached(store: &Arc<impl Backend + 'static>, folder: &Path, budget_bytes: u64, intake: Intake) -> Cached {
    let options = CacheOptions { folder: folder.to_owned(), budget_bytes, intake };
    Cached::new(Arc::clone(store) as Arc<dyn Backend>, options, |e| panic!("{e:?}")).unwrap()
}

fn read(store: &dyn Backend, name: &str, offset: usize, len: usize) -> Result<Vec<u8>> {
    let mut out = vec![0xee; len];
    store.get_range(name, offset as u64, &mut out).map(|()| out)
}

/// Reads everything, in pieces of a length that divides nothing.
fn read_all(store: &dyn Backend, objects: &[(String, Vec<u8>)]) {
    for (name, bytes) in objects {
        for (i, part) in bytes.chunks(300_007).enumerate() {
            assert!(read(store, name, i * 300_007, part.len()).unwrap() == part, "{name}");
        }
    }
}

/// Files of the cache.
fn files(folder: &Path) -> Vec<PathBuf> {
    let list = |folder: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(folder).map_or(Vec::new(), |found| found.flatten().map(|entry| entry.path()).collect())
    };
    list(folder).iter().flat_map(|folder| list(folder)).collect()
}

#[test]
fn the_second_process_reads_nothing_from_the_store() {
    let (dir, objects) = (tempfile::tempdir().unwrap(), objects(1));
    let folder = dir.path().join("not/made/yet");
    let store = Arc::new(Counting::new(filled(&objects)));
    let first = cached(&store, &folder, PLENTY, Intake::Keep);
    read_all(&first, &objects);
    let fetched = store.counts().reads;
    assert!((9..80).contains(&fetched), "{fetched} reads for 12 MiB in 9 objects");
    read_all(&first, &objects);
    assert_eq!(store.counts().reads, fetched, "what is not written yet is there, too");
    first.settle();

    // Beside the first, and after it.
    for intake in [Intake::Keep, Intake::Pass] {
        read_all(&cached(&store, &folder, PLENTY, intake), &objects);
    }
    drop(first);
    read_all(&cached(&store, &folder, PLENTY, Intake::Keep), &objects);
    assert_eq!(store.counts().reads, fetched);
    assert_eq!(usage(&folder).unwrap().objects, 9);
}

#[test]
fn what_is_only_passed_on_is_not_kept() {
    let (dir, objects) = (tempfile::tempdir().unwrap(), objects(2));
    let store = Arc::new(Counting::new(filled(&objects)));
    let pass = cached(&store, dir.path(), PLENTY, Intake::Pass);
    read_all(&pass, &objects);
    pass.settle();
    assert_eq!(usage(dir.path()).unwrap().objects, 0);
    let ranges: usize = objects.iter().map(|(_, bytes)| bytes.len().div_ceil(300_007)).sum();
    assert_eq!(store.counts().reads, ranges as u64, "each range was read as it was asked for");
}

#[test]
fn what_several_miss_at_once_is_fetched_once() {
    let (dir, objects) = (tempfile::tempdir().unwrap(), objects(3));
    let store = Arc::new(Counting::new(Distant::new(filled(&objects), Duration::from_millis(100))));
    let cached = cached(&store, dir.path(), PLENTY, Intake::Keep);
    let (name, bytes) = &objects[8];
    thread::scope(|scope| {
        for i in 0..8 {
            let cached = &cached;
            scope.spawn(move || assert!(read(cached, name, i * 1000, 70_000).unwrap() == bytes[i * 1000..][..70_000]));
        }
    });
    assert_eq!(store.counts().reads, 1);
}

/// Several caches in one folder, several threads each, and somebody who harms the files in every way: every answer is right.
#[test]
fn whatever_happens_to_the_files_the_bytes_are_right() {
    const SEED: u64 = 0xcac4e;
    let (dir, objects) = (tempfile::tempdir().unwrap(), objects(4));
    let folder = dir.path().join("cache");
    let store = Arc::new(Counting::new(filled(&objects)));
    let budget = 6 * MIB as u64;
    // More than fits, so that files go all the time.
    let caches: Vec<Cached> = (0..3).map(|_| cached(&store, &folder, budget, Intake::Keep)).collect();
    let (is_over, harms) = (AtomicBool::new(false), Mutex::new(BTreeSet::new()));
    // On a loaded machine it takes a while until each was done to a file that was there.
    let began = Instant::now();
    let all_done = || harms.lock().unwrap().len() == 6 || began.elapsed() > LIMIT;
    thread::scope(|scope| {
        let readers: Vec<_> = (0..6)
            .map(|reader: usize| {
                let (cached, objects, all_done) = (&caches[reader % 3], &objects, &all_done);
                scope.spawn(move || {
                    let mut dice = Dice::new(SEED + reader as u64);
                    for round in 0.. {
                        if round >= 1500 && all_done() {
                            break;
                        }
                        let (name, bytes) = &objects[dice.index(objects.len())];
                        let longest = 1 << (8 + dice.index(13));
                        let range = dice.range(bytes.len(), longest);
                        let past = if dice.once_in(20) { dice.index(10_000) } else { 0 };
                        match read(cached, name, range.start, range.len() + past) {
                            Ok(out) => {
                                assert!(range.end + past <= bytes.len(), "{name} {range:?} + {past}");
                                assert!(out == bytes[range.start..range.end + past], "{name} {range:?}, seed {SEED}");
                            }
                            Err(e) => {
                                assert_eq!(e.kind(), Kind::Corrupt, "{e:?}");
                                assert!(range.end + past > bytes.len(), "{name} {range:?}: {e:?}");
                            }
                        }
                        if dice.once_in(100) {
                            cached.doubt(name, range.start as u64, range.len() as u64);
                        }
                    }
                })
            })
            .collect();
        let vandal = scope.spawn(|| {
            let mut dice = Dice::new(SEED + 100);
            while !is_over.load(Relaxed) {
                let harm = dice.below(6);
                if harm_one(&folder, harm, &mut dice) {
                    harms.lock().unwrap().insert(harm);
                }
            }
        });
        for reader in readers {
            reader.join().unwrap();
        }
        is_over.store(true, Relaxed);
        vandal.join().unwrap();
    });
    assert_eq!(harms.lock().unwrap().len(), 6, "every kind of harm was done");
    for cached in &caches {
        cached.settle();
    }
    read_all(&caches[0], &objects);
    let most = budget + 3 * slack(budget);
    assert!(usage(&folder).unwrap().bytes <= most, "{:?}, not more than {most}", usage(&folder).unwrap());
}

/// Does one harm, if there is something to do it to.
fn harm_one(folder: &Path, harm: u64, dice: &mut Dice) -> bool {
    // Seldom, so that there is something to harm.
    if harm == 5 {
        thread::sleep(Duration::from_millis(30));
        return clear(folder).is_ok();
    }
    let files = files(folder);
    if files.is_empty() {
        return false;
    }
    let path = &files[dice.index(files.len())];
    match harm {
        0 => std::fs::remove_file(path).is_ok(),
        1 => std::fs::copy(&files[dice.index(files.len())], path).is_ok(),
        _ => {
            let Ok(file) = OpenOptions::new().write(true).open(path) else { return false };
            let len = file.metadata().unwrap().len().max(1);
            match harm {
                2 => file.set_len(dice.below(len)).is_ok(),
                3 => file.write_all_at(&[0x5a; 9], dice.below(len)).is_ok(),
                _ => file.write_all_at(&[0; 4096], dice.below(len) / 4096 * 4096).is_ok(),
            }
        }
    }
}

#[test]
fn the_budget_is_kept_by_all_together_and_what_was_used_last_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice::new(5);
    let objects: Vec<(String, Vec<u8>)> = (0..48)
        .map(|i| {
            let mut bytes = vec![0; MIB];
            dice.noise(&mut bytes);
            (format!("packs/{i:02x}/{i:032x}"), bytes)
        })
        .collect();
    let store = Arc::new(Counting::new(filled(&objects)));
    let budget = 16 * MIB as u64;
    let caches: Vec<Cached> = (0..2).map(|_| cached(&store, dir.path(), budget, Intake::Keep)).collect();
    for (i, object) in objects.iter().enumerate() {
        let cached = &caches[i % 2];
        read_all(cached, std::slice::from_ref(object));
        cached.settle();
        let taken = usage(dir.path()).unwrap().bytes;
        assert!(taken <= budget + 2 * slack(budget), "{taken} after {i}");
    }
    let taken = usage(dir.path()).unwrap().bytes;
    assert!(taken > budget / 2, "{taken}: it is used, too");
    let before = store.counts().reads;
    read_all(&caches[0], &objects[44..]);
    assert_eq!(store.counts().reads, before, "the last ones are there");
    read_all(&caches[0], &objects[..1]);
    assert!(store.counts().reads > before, "and the first one is not");
}

/// A folder that cannot be written to costs nothing but the cache, and is told of once.
#[test]
fn a_folder_that_cannot_be_made_is_told_of_once() {
    let (dir, objects) = (tempfile::tempdir().unwrap(), objects(6));
    std::fs::write(dir.path().join("file"), b"in the way").unwrap();
    let told = Arc::new(AtomicU64::new(0));
    let tell = Arc::clone(&told);
    let options = CacheOptions { folder: dir.path().join("file/cache"), budget_bytes: PLENTY, intake: Intake::Keep };
    let cached = Cached::new(Arc::new(filled(&objects)), options, move |e| {
        assert!(e.to_string().contains("file/cache"), "{e}");
        tell.fetch_add(1, Relaxed);
    })
    .unwrap();
    for _ in 0..3 {
        read_all(&cached, &objects);
        cached.settle();
    }
    assert_eq!(told.load(Relaxed), 1);
}

/// More at once than may wait to be written: the rest is not kept, and every byte is right.
#[test]
fn what_is_too_much_at_once_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let len = usize::try_from(UNWRITTEN).unwrap() * 2;
    let bytes = vec![7; len];
    let memory = Arc::new(filled(&[("packs/00/00".to_owned(), bytes)]));
    let cached = cached(&memory, dir.path(), PLENTY, Intake::Keep);
    assert!(read(&cached, "packs/00/00", 0, len).unwrap().iter().all(|byte| *byte == 7));
    cached.settle();
    assert_eq!(usage(dir.path()).unwrap().objects, 0, "a fetch is kept whole or not at all");
    for at in (0..len).step_by(8 * MIB) {
        assert!(read(&cached, "packs/00/00", at, 8 * MIB).unwrap().iter().all(|byte| *byte == 7));
        cached.settle();
    }
    assert!(usage(dir.path()).unwrap().bytes >= len as u64);
}

/// Bytes of an object about which the liar lies once.
const PIECE: u64 = 256 << 10;

/// A store whose first answer about each piece is wrong.
#[derive(Debug)]
struct Liar {
    inner: Memory,
    told: Mutex<BTreeSet<(String, u64)>>,
}

impl Backend for Liar {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        self.inner.put(name, parts)
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.inner.get(name)
    }

    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        self.inner.get_range(name, offset, out)?;
        let mut told = self.told.lock().unwrap();
        let end = offset + out.len() as u64;
        for piece in offset / PIECE..end.div_ceil(PIECE) {
            if told.insert((name.to_owned(), piece)) {
                // Every byte, so that whatever is wanted of it is wrong.
                let from = usize::try_from((piece * PIECE).max(offset) - offset).unwrap();
                let to = usize::try_from(((piece + 1) * PIECE).min(end) - offset).unwrap();
                out[from..to].iter_mut().for_each(|byte| *byte ^= 1);
            }
        }
        Ok(())
    }

    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        self.inner.get_suffix(name, max)
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        self.inner.size(name)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        self.inner.list(prefix, each)
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.inner.delete(name)
    }
}

/// Wrong bytes with right checksums get into the cache, as a store may send them, or somebody may put them there: the reader finds
/// out, the store is asked again, and nothing is called damaged.
#[test]
fn what_turns_out_wrong_is_fetched_again_and_is_no_damage() {
    let (dir, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let memory = Arc::new(Memory::default());
    let repo = rig::init(Arc::clone(&memory) as Arc<dyn Backend>, 1).unwrap();
    let mut noise = vec![0; 6 * MIB];
    Dice::new(7).noise(&mut noise);
    let content = DiskContent { size: 8 << 20, stretches: [(4096, noise)].into(), unreadable: Vec::new() };
    let index = rig::open_index(&repo, scratch.path()).unwrap();
    let point = Job::new("web", 10, vec![("vda", &content)]).run(&repo, &index).unwrap();
    let expected = rig::read_disk(&repo, &point, "vda").unwrap();

    let liar = Arc::new(Liar { inner: memory.clone_state(), told: Mutex::default() });
    for seed in 2..4 {
        let cached = Arc::new(cached(&liar, dir.path(), PLENTY, Intake::Keep));
        let repo = rig::open(Arc::clone(&cached) as Arc<dyn Backend>, seed).unwrap();
        let reader = rig::reader(&repo).unwrap();
        let disk = reader.disk(&point, "vda").unwrap();
        assert!(coffer_tests::disk::read_bytes(&disk).unwrap() == expected);
        assert_eq!(reader.detours(), 0, "nothing was called damaged");
        cached.settle();
    }
    assert!(usage(dir.path()).unwrap().bytes > 6 << 20);
}

/// What a process of before kept is all that a point is read from.
#[test]
fn a_point_is_read_from_the_cache_alone() {
    let (dir, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let memory = Arc::new(Memory::default());
    let repo = rig::init(Arc::clone(&memory) as Arc<dyn Backend>, 1).unwrap();
    let mut noise = vec![0; 9 * MIB];
    Dice::new(8).noise(&mut noise);
    let content = DiskContent { size: 300 << 20, stretches: [(70 << 20, noise)].into(), unreadable: Vec::new() };
    let index = rig::open_index(&repo, scratch.path()).unwrap();
    let point = Job::new("web", 10, vec![("vda", &content)]).run(&repo, &index).unwrap();
    let expected = rig::read_disk(&repo, &point, "vda").unwrap();

    let mut counts = Vec::new();
    for seed in 2..4 {
        let store = Arc::new(Counting::new(memory.clone_state()));
        let cached = Arc::new(cached(&store, dir.path(), PLENTY, Intake::Keep));
        let repo = rig::open(Arc::clone(&cached) as Arc<dyn Backend>, seed).unwrap();
        let before = store.counts().reads;
        assert!(rig::read_disk(&repo, &point, "vda").unwrap() == expected);
        counts.push(store.counts().reads - before);
        cached.settle();
    }
    assert!(counts[0] > 20 && counts[1] == 0, "{counts:?}");
}
