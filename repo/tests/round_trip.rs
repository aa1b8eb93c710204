//! Backups through the writer and reads through the reader, over the memory backend: the room as its users see it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;

use bench::{Bench, Image, Meddled, at, back_up, image, pass, read_all};
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, Put, list_sorted};
use coffer_repo::cancel::Cancel;
use coffer_repo::entropy::Seeded;
use coffer_repo::key_slot::{Credential, PassphraseCost, SlotOptions};
use coffer_repo::pack;
use coffer_repo::reader::{MapContent, Reader, ReaderOptions};
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::Identity;
use coffer_repo::window::{Filled, Window, WindowSource};
use coffer_repo::writer::{DiskSpec, Writer, WriterOptions};
use coffer_repo::{Error, Kind, Result};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

#[test]
fn what_goes_in_comes_out_and_is_stored_once() {
    let (bench, repo) = Bench::new();
    let index = bench.index(&repo);
    let (a, b) = (image(1, 9 << 20 | 12_345), image(2, 3 << 20));
    let first =
        back_up(&repo, &index, &[("root", &a), ("data", &b), ("empty", &[]), ("zero", &vec![0; 5 << 20])], None, 10);
    assert_eq!(read_all(&repo, &first, "root").unwrap(), a);
    assert_eq!(read_all(&repo, &first, "data").unwrap(), b);
    assert_eq!(read_all(&repo, &first, "empty").unwrap(), Vec::<u8>::new());
    assert_eq!(read_all(&repo, &first, "zero").unwrap(), vec![0; 5 << 20]);
    assert!(first.stats.new_stored < (a.len() + b.len()) as u64);

    let mut changed = a.clone();
    changed[4 << 20..(4 << 20) + 5000].fill(0x55);
    let second = back_up(&repo, &index, &[("root", &changed)], Some(first.clone()), 20);
    assert_eq!(read_all(&repo, &second, "root").unwrap(), changed);
    assert!(second.stats.new_raw <= 3 * 262_144, "{:?}", second.stats);
    assert_eq!(second.parents, [first.id()]);

    // Another repository handle, without any index, and with the contents moved by whole blocks: all known.
    let reopened = bench.open(&pass("secret")).unwrap();
    let points = reopened.points().unwrap();
    assert_eq!(points.snapshots, [first.clone(), second]);
    assert_eq!(read_all(&reopened, &points.snapshots[0], "root").unwrap(), a);
    let mut moved = vec![0; 1 << 20];
    moved.extend_from_slice(&a);
    let third = back_up(&repo, &index, &[("moved", &moved)], None, 30);
    assert_eq!(third.stats.new_chunks, 0, "{:?}", third.stats);
    assert_eq!(read_all(&repo, &third, "moved").unwrap(), moved);
}

#[test]
fn extents_tell_data_from_zero() {
    let (bench, repo) = Bench::new();
    let index = bench.index(&repo);
    let mut bytes = vec![0u8; 300 << 20];
    bytes[0] = 1;
    bytes[5 << 20..6 << 20].fill(2);
    bytes[299 << 20] = 3;
    let snapshot = back_up(&repo, &index, &[("d", &bytes)], None, 10);
    let reader = Reader::new(repo, ReaderOptions::default()).unwrap();
    let disk = reader.disk(&snapshot, "d").unwrap();
    let all: Vec<_> = disk
        .extents(0..disk.size(), 100)
        .unwrap()
        .into_iter()
        .map(|e| (e.range.start, e.range.end, e.content))
        .collect();
    use MapContent::{Data, Zero};
    let mib = |n: u64| n << 20;
    assert_eq!(
        all,
        [
            (0, 4096, Data),
            (4096, mib(5), Zero),
            (mib(5), mib(6), Data),
            (mib(6), mib(299), Zero),
            (mib(299), mib(299) + 4096, Data),
            (mib(299) + 4096, mib(300), Zero)
        ]
    );
    assert_eq!(disk.extents(mib(7)..mib(8), 1).unwrap().len(), 1);
    let two = disk.extents(1..mib(300), 2).unwrap();
    assert_eq!((two[0].range.clone(), two[1].range.clone()), (1..4096, 4096..mib(5)));
    assert!(disk.extents(0..mib(300) + 1, 2).is_err());
}

#[test]
fn a_writer_adds_and_cannot_read_or_remove() {
    let (bench, repo) = Bench::new();
    let key = coffer_repo::crypto::Secret::random(&*bench.entropy).unwrap();
    let text = coffer_repo::key_slot::key_file(&key).unwrap();
    let credential = Credential::from_key_file(&text).unwrap();
    let slot = SlotOptions { label: "mover 1".into(), created: at(2), cost: PassphraseCost::default() };
    repo.export_writer(&credential, &slot).unwrap();
    let writer = bench.open(&credential).unwrap();
    let bytes = image(3, 3 << 20);
    let index = bench.index(&writer);
    let snapshot = back_up(&writer, &index, &[("d", &bytes)], None, 10);
    assert_eq!(read_all(&writer, &snapshot, "d").unwrap_err().kind(), Kind::WrongKey);
    assert_eq!(writer.forget(snapshot.name, at(11)).unwrap_err().kind(), Kind::WrongKey);
    let full = bench.open(&pass("secret")).unwrap();
    let seen = full.points().unwrap();
    assert_eq!((seen.snapshots.len(), seen.damaged.len()), (1, 0));
    assert_eq!(read_all(&full, &seen.snapshots[0], "d").unwrap(), bytes);
    // The writer builds on its own point; the authority does not rely on the writer's packs unless told to.
    let second = back_up(&writer, &index, &[("d", &bytes)], Some(snapshot), 20);
    assert_eq!(second.stats.new_chunks, 0);
    let third = back_up(&full, &index, &[("other", &bytes)], None, 30);
    assert!(third.stats.new_chunks > 0);
}

/// Another thread fetches the writer's certificate after this one looked for it and before it gave up.
#[test]
fn a_certificate_that_another_thread_fetches_serves_this_one() {
    let (bench, repo) = Bench::new();
    let credential = pass("mover");
    repo.export_writer(&credential, &Bench::options().slot).unwrap();
    let writer = bench.open(&credential).unwrap();
    let point = back_up(&writer, &bench.index(&writer), &[("d", &image(1, 1 << 20))], None, 10);
    let other: Arc<OnceLock<Weak<Repository>>> = Arc::default();
    let of = Arc::clone(&other);
    let store = Arc::new(Meddled::new(bench.memory.clone(), move |name| {
        if name.starts_with("packs/")
            && let Some(repo) = of.get().and_then(Weak::upgrade)
        {
            repo.all_certificates().unwrap();
        }
    }));
    let repo = Arc::new(Repository::open(store, &pass("secret"), bench.entropy.clone()).unwrap());
    other.set(Arc::downgrade(&repo)).unwrap();
    let packs = list_sorted(repo.backend(), "packs/").unwrap();
    let (kind, uid) = pack::parse_name(&packs[0].name).unwrap();
    assert_eq!(repo.certificates().writers().count(), 0);
    repo.open_pack(kind, uid).unwrap();
    assert!(read_all(&repo, &point, "d").unwrap() == image(1, 1 << 20));
}

#[test]
fn pins_and_forgets() {
    let (bench, repo) = Bench::new();
    let index = bench.index(&repo);
    let snapshot = back_up(&repo, &index, &[("d", &image(4, 1 << 20))], None, 10);
    let before = bench.memory.clone_state();
    let pin = repo.pin(&snapshot, "mount", &Identity::default(), at(11)).unwrap();
    assert_eq!(pin.warning(), None);
    assert_eq!(repo.points().unwrap().snapshots.len(), 1);
    pin.release(at(12)).unwrap();
    assert_eq!(repo.forgotten().unwrap().len(), 1);
    repo.forget(snapshot.name, at(13)).unwrap();
    repo.forget(snapshot.name, at(14)).unwrap();
    assert!(repo.points().unwrap().snapshots.is_empty());
    assert_eq!(repo.pin(&snapshot, "mount", &Identity::default(), at(15)).unwrap_err().kind(), Kind::NotFound);
    // A child of a forgotten parent is not committed.
    let mut writer =
        Writer::begin(&repo, &index, "web", Some(snapshot), Identity::default(), WriterOptions::default(), at(16))
            .unwrap();
    let bytes = image(4, 1 << 20);
    let source = Image { bytes: &bytes, window: 1 << 20, next: AtomicU64::new(0), tells_holes: false };
    writer.disk(DiskSpec { name: "d".into(), block_size: 512, platform: None }, &source, &Cancel::default()).unwrap();
    assert!(writer.commit(vec![]).unwrap_err().to_string().contains("forgotten"));
    assert!(repo.points().unwrap().snapshots.is_empty());
    assert!(before.size("repo").unwrap().is_some());
}

#[test]
fn damage_is_named_and_never_zeroes() {
    let (bench, repo) = Bench::new();
    let index = bench.index(&repo);
    let bytes = image(5, 2 << 20);
    let snapshot = back_up(&repo, &index, &[("d", &bytes)], None, 10);
    let mut packs = Vec::new();
    bench
        .memory
        .list("packs/", &mut |o| {
            packs.push(o.name);
            Ok(())
        })
        .unwrap();
    for pack in &packs {
        let whole = bench.memory.get(pack).unwrap();
        bench.memory.delete(pack).unwrap();
        let e = read_all(&repo, &snapshot, "d").unwrap_err();
        assert_eq!(e.kind(), Kind::Corrupt);
        assert!(e.to_string().contains(pack.as_str()) && e.to_string().contains("disk 'd' of web@"), "{e:?}");
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        let _ = bench.memory.put(pack, &[&flipped]).unwrap();
        let e = read_all(&repo, &snapshot, "d").unwrap_err();
        assert!(e.kind() == Kind::Corrupt && e.to_string().contains(pack.as_str()), "{e:?}");
        bench.memory.delete(pack).unwrap();
        let _ = bench.memory.put(pack, &[&whole]).unwrap();
    }
    assert_eq!(read_all(&repo, &snapshot, "d").unwrap(), bytes);
}

#[test]
fn a_failing_source_commits_nothing() {
    struct Failing(AtomicU64);
    impl WindowSource for Failing {
        fn next(&self, window: &mut Window) -> Result<Filled> {
            let i = self.0.fetch_add(1, Ordering::Relaxed);
            if i == 3 {
                return Err(Error::new(Kind::Unavailable, "disk d: bytes 3 to 4"));
            }
            window.make_room(1 << 20).fill(7);
            Ok(Filled::Bytes(i))
        }
        fn size(&self) -> Result<u64> {
            Ok(100 << 20)
        }
    }
    let (bench, repo) = Bench::new();
    let index = bench.index(&repo);
    let mut writer =
        Writer::begin(&repo, &index, "web", None, Identity::default(), WriterOptions::default(), at(1)).unwrap();
    let spec = DiskSpec { name: "d".into(), block_size: 512, platform: None };
    let e = writer.disk(spec, &Failing(AtomicU64::new(0)), &Cancel::default()).unwrap_err();
    assert!(e.to_string().contains("bytes 3 to 4"), "{e:?}");
    drop(writer);
    assert!(repo.points().unwrap().snapshots.is_empty());
}

/// A range that could not be read belongs to no chunk, whatever the source left in its buffer.
#[test]
fn what_is_unreadable_is_an_error_to_read_and_nothing_else_is() {
    struct Holed(AtomicU64);
    impl WindowSource for Holed {
        fn next(&self, window: &mut Window) -> Result<Filled> {
            let i = self.0.fetch_add(1, Ordering::Relaxed);
            if i >= 2 {
                return Ok(Filled::End);
            }
            window.make_room(if i == 0 { 1 << 20 } else { 50_000 }).fill(7);
            window.unreadable.push(if i == 0 { 8192..16_384 } else { 49_152..50_000 });
            Ok(Filled::Bytes(i))
        }
        fn size(&self) -> Result<u64> {
            Ok((1 << 20) + 50_000)
        }
    }
    let (bench, repo) = Bench::new();
    let index = bench.index(&repo);
    let options = WriterOptions { workers: 1, uploads: 1, ..WriterOptions::default() };
    let mut writer = Writer::begin(&repo, &index, "web", None, Identity::default(), options, at(1)).unwrap();
    let spec = DiskSpec { name: "d".into(), block_size: 512, platform: None };
    writer.disk(spec, &Holed(AtomicU64::new(0)), &Cancel::default()).unwrap();
    let snapshot = writer.commit(vec![]).unwrap();
    let reader = Reader::new(Arc::clone(&repo), ReaderOptions::default()).unwrap();
    let disk = reader.disk(&snapshot, "d").unwrap();
    for (start, end, readable) in [
        (0, 8192, true),
        (8192, 16_384, false),
        (16_384, (1 << 20) + 49_152, true),
        ((1 << 20) + 49_152, (1 << 20) + 50_000, false),
    ] {
        let mut bytes = vec![0; end - start];
        let read = disk.read_at(start as u64, &mut bytes);
        assert_eq!(read.is_ok(), readable, "{start} to {end}: {read:?}");
        assert!(!readable || bytes == vec![7; end - start], "{start} to {end}");
    }
}

/// What a source leaves out must not become zeroes.
#[test]
fn a_source_that_ends_early_commits_nothing() {
    struct Short(AtomicU64);
    impl WindowSource for Short {
        fn next(&self, window: &mut Window) -> Result<Filled> {
            let i = self.0.fetch_add(1, Ordering::Relaxed);
            if i >= 3 {
                return Ok(Filled::End);
            }
            window.make_room(1 << 20).fill(7);
            Ok(Filled::Bytes(i))
        }
        fn size(&self) -> Result<u64> {
            Ok((3 << 20) + 1)
        }
    }
    let (bench, repo) = Bench::new();
    let index = bench.index(&repo);
    let mut writer =
        Writer::begin(&repo, &index, "web", None, Identity::default(), WriterOptions::default(), at(1)).unwrap();
    let spec = DiskSpec { name: "d".into(), block_size: 512, platform: None };
    let e = writer.disk(spec, &Short(AtomicU64::new(0)), &Cancel::default()).unwrap_err();
    assert!(e.to_string().contains("did not hand out window 3 of the 4"), "{e:?}");
}

/// Making a repository again after a crash leaves two slots that the passphrase opens; one of them is the repository's.
#[test]
fn a_slot_left_behind_by_a_crash_does_not_lock_anybody_out() {
    for seed in 100..108 {
        let (bench, repo) = Bench::new();
        let left =
            Repository::init(Arc::new(Memory::default()), Bench::options(), Arc::new(Seeded::new(seed))).unwrap();
        for slot in coffer_repo::backend::list_sorted(left.backend(), "keys/").unwrap() {
            let bytes = left.backend().get(&slot.name).unwrap();
            assert_eq!(bench.memory.put(&slot.name, &[&bytes]).unwrap(), Put::Created);
        }
        assert_eq!(bench.open(&pass("secret")).unwrap().keys().repo(), repo.keys().repo(), "seed {seed}");
        assert_eq!(bench.open(&pass("wrong")).unwrap_err().kind(), Kind::WrongKey);
    }
}

#[test]
fn wrong_passphrase_and_no_repository_are_told_apart() {
    let (bench, _repo) = Bench::new();
    assert_eq!(bench.open(&pass("wrong")).unwrap_err().kind(), Kind::WrongKey);
    let empty = Repository::open(Arc::new(Memory::default()), &pass("secret"), bench.entropy.clone()).unwrap_err();
    assert_eq!(empty.kind(), Kind::NotFound);
    assert!(empty.to_string().contains("coffer init"));
}

#[test]
fn a_forget_that_the_authority_did_not_sign_hides_nothing() {
    let (bench, repo) = Bench::new();
    let index = bench.index(&repo);
    let snapshot = back_up(&repo, &index, &[("d", &image(6, 1 << 20))], None, 10);
    let name = format!("forgets/{}", snapshot.id());
    assert_eq!(bench.memory.put(&name, &[b"whatever a thief can write"]).unwrap(), Put::Created);
    assert_eq!(repo.points().unwrap().snapshots, std::slice::from_ref(&snapshot));
    bench.memory.delete(&name).unwrap();
    repo.forget(snapshot.name, at(11)).unwrap();
    assert!(repo.points().unwrap().snapshots.is_empty());
    assert!(bench.open(&pass("secret")).unwrap().points().unwrap().snapshots.is_empty());
}
