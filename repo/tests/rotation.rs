//! Data-key epochs: how one begins, who reads what afterwards, what is sealed anew, and that a crash anywhere is finished.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;

use bench::{Bench, Meddled, at, back_up, back_up_as, image, pass, read_all};
use coffer_repo::backend::faulty::{Counted, Fatal, Faulty, Plan, Stop};
use coffer_repo::backend::{Backend, Put, list_sorted};
use coffer_repo::cancel::Cancel;
use coffer_repo::collector::{CollectOptions, CollectProgress, CollectReport, collect};
use coffer_repo::crypto::Secret;
use coffer_repo::entropy::Seeded;
use coffer_repo::epoch::Epoch;
use coffer_repo::id::{PackUid, SlotId};
use coffer_repo::key_slot::{Credential, PassphraseCost, SlotOptions};
use coffer_repo::location::PackKind;
use coffer_repo::pack;
use coffer_repo::repository::Repository;
use coffer_repo::rotation::{self, KeyStatus, Rotation};
use coffer_repo::sealed::ObjectKind;
use coffer_repo::snapshot::Identity;
use coffer_repo::verify::{DataCheck, Report, VerifyOptions, VerifyProgress, verify};
use coffer_repo::{Kind, Result};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Long after everything else happens.
const LATE: u64 = 100_000_000;

fn options(label: &str) -> SlotOptions {
    let cost = PassphraseCost { memory_kib: 64, passes: 1, lanes: 1 };
    SlotOptions { label: label.into(), created: at(5), cost }
}

fn rotate(repo: &Repository) -> Result<Rotation> {
    rotation::rotate(repo, at(100))
}

fn status(repo: &Repository) -> KeyStatus {
    rotation::status(repo, 2, &AtomicU64::new(0), &Cancel::default()).unwrap()
}

/// Packs by epoch.
fn packs(repo: &Repository) -> Vec<(u32, u64)> {
    status(repo).epochs.iter().map(|e| (e.epoch, e.sealed.packs)).collect()
}

fn gc(bench: &Bench, repo: &Arc<Repository>, change: impl FnOnce(&mut CollectOptions)) -> Result<CollectReport> {
    let mut options = CollectOptions::new(bench.dir.path().to_owned(), Identity::default(), at(LATE));
    options.pack_bytes = 1 << 20;
    options.rotate = true;
    change(&mut options);
    collect(repo, &options, &CollectProgress::default(), &Cancel::default())
}

fn data_packs(store: &dyn Backend) -> Vec<PackUid> {
    let names = list_sorted(store, PackKind::Data.prefix()).unwrap();
    names.iter().map(|object| pack::parse_name(&object.name).unwrap().1).collect()
}

/// Of how many data packs the key opens.
fn opens(repo: &Repository) -> usize {
    let open = |uid: &PackUid| match repo.open_pack(PackKind::Data, *uid) {
        Ok(_) => true,
        Err(e) if e.kind() == Kind::WrongKey => false,
        Err(e) => panic!("{e:?}"),
    };
    data_packs(repo.backend()).iter().filter(|uid| open(uid)).count()
}

fn slots(repo: &Repository) -> Vec<SlotId> {
    repo.key_slots().unwrap().into_iter().map(|(id, _)| id).collect()
}

fn is_sound(repo: &Arc<Repository>) {
    let report = look(repo, DataCheck::All).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

fn look(repo: &Arc<Repository>, data: DataCheck) -> Result<Report> {
    let options = VerifyOptions { data, threads: 2, ..VerifyOptions::default() };
    verify(repo, options, &VerifyProgress::default(), &Cancel::default())
}

#[test]
fn after_a_rotation_and_a_collection_the_old_key_opens_nothing() {
    let (bench, repo) = Bench::new();
    let index = bench.index(&repo);
    let writer = Credential::KeyFile(Secret::new([3; 32]));
    repo.export_writer(&writer, &options("mover")).unwrap();
    repo.add_key(&pass("other"), &options("other")).unwrap();
    let (first, second, third) = (image(1, 3 << 20), image(2, 2 << 20), image(3, 2 << 20));
    let a = back_up(&repo, &index, &[("d", &first)], None, 10);
    let before = data_packs(repo.backend()).len();

    let old = bench.open(&pass("other")).unwrap();
    let done = rotate(&repo).unwrap();
    assert_eq!((done.epoch, done.finished, done.removed.len()), (2, false, 1));
    // The session that rotated, one that begins now, and a writer's seal to the new key.
    let b = back_up_as("b", &repo, &index, &[("d", &second)], None, 20);
    let mover = bench.open(&writer).unwrap();
    assert_eq!(mover.keys().data_key(), repo.keys().data_key());
    let c = back_up_as("c", &mover, &index, &[("d", &third)], None, 30);
    let total = data_packs(repo.backend()).len();
    assert_eq!(packs(&repo), [(1, before as u64), (2, (total - before) as u64)]);
    assert_eq!((opens(&repo), opens(&bench.open(&pass("secret")).unwrap())), (total, total));
    for (point, bytes) in [(&a, &first), (&b, &second), (&c, &third)] {
        assert!(read_all(&repo, point, "d").unwrap() == *bytes);
    }

    // The other slot is behind: it opens, reads what is old, and says why it does not read what is new.
    for behind in [&old, &bench.open(&pass("other")).unwrap()] {
        assert_eq!(opens(behind), before);
        assert!(read_all(behind, &a, "d").unwrap() == first);
        let new = data_packs(repo.backend()).into_iter().find_map(|uid| behind.open_pack(PackKind::Data, uid).err());
        assert!(new.unwrap().context().contains("made before data-key epoch 2"));
        for refused in [
            rotate(behind).map(drop),
            gc(&bench, behind, |_| {}).map(drop),
            behind.add_key(&pass("more"), &options("more")).map(drop),
            behind.remove_key(done.slot),
            look(behind, DataCheck::All).map(drop),
        ] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.kind(), Kind::WrongKey);
            assert!(refused.context().contains("epoch 2"), "{refused}");
        }
    }
    let told = status(&repo);
    assert_eq!(told.behind.iter().map(|slot| slot.label.as_str()).collect::<Vec<_>>(), ["other"]);
    assert_eq!((told.newest, told.left.packs, &told.unfinished), (2, before as u64, &None));
    // What it backs up is sealed to the new key all the same, as a writer's backups are.
    let newcomer = bench.open(&pass("other")).unwrap();
    let d = back_up_as("d", &newcomer, &index, &[("d", &image(4, 1 << 20))], None, 40);
    assert!(read_all(&repo, &d, "d").unwrap() == image(4, 1 << 20));
    assert_eq!(read_all(&newcomer, &d, "d").unwrap_err().kind(), Kind::WrongKey);

    drop(index);
    let planned = gc(&bench, &repo, |o| o.dry_run = true).unwrap();
    assert_eq!(planned.rotated.packs, before as u64);
    let report = gc(&bench, &repo, |_| {}).unwrap();
    assert_eq!((report.rotated, report.removed.packs), (planned.rotated, before as u64 + report.dead.packs));
    let told = status(&repo);
    assert_eq!((told.left.packs, told.epochs.len(), told.newest), (0, 1, 2));
    let left = data_packs(repo.backend());
    assert!(!left.is_empty());
    assert_eq!((opens(&repo), opens(&old), opens(&bench.open(&pass("other")).unwrap())), (left.len(), 0, 0));
    for (point, bytes) in [(&a, &first), (&b, &second), (&c, &third)] {
        assert!(read_all(&repo, point, "d").unwrap() == *bytes);
        assert_eq!(read_all(&old, point, "d").unwrap_err().kind(), Kind::WrongKey);
    }
    is_sound(&bench.open(&pass("secret")).unwrap());
    assert_eq!(gc(&bench, &repo, |_| {}).unwrap().rotated.packs, 0);
}

#[test]
fn whoever_opened_before_a_rotation_reads_what_is_sealed_after_it() {
    let (bench, repo) = Bench::new();
    let index = bench.index(&repo);
    let bytes = image(1, 2 << 20);
    let point = back_up(&repo, &index, &[("d", &bytes)], None, 10);
    drop(index);
    // A mount, say: it has this point's maps, whose hints lead to packs that will be gone.
    let reading = bench.open(&pass("secret")).unwrap();
    rotate(&repo).unwrap();
    gc(&bench, &repo, |_| {}).unwrap();
    assert!(read_all(&reading, &point, "d").unwrap() == bytes);
    assert!(reading.keys().reads_newest());
}

#[test]
fn a_collection_within_a_limit_goes_on_where_it_was() {
    let (bench, repo) = Bench::new();
    let index = bench.index(&repo);
    let images: Vec<Vec<u8>> = (0..5).map(|n| image(10 + n, 1 << 20)).collect();
    let points: Vec<_> = (10..).zip(&images).map(|(now, i)| back_up(&repo, &index, &[("d", i)], None, now)).collect();
    drop(index);
    rotate(&repo).unwrap();
    let all = status(&repo).left;
    assert_eq!(all.packs, 5);
    let limit = all.bytes / 2;
    let mut left = all.packs;
    while left > 0 {
        let report = gc(&bench, &repo, |o| o.max_repack = Some(limit)).unwrap();
        let now = status(&repo).left.packs;
        assert!(now < left && report.copied <= limit, "{report:?}");
        left = now;
    }
    for (point, bytes) in points.iter().zip(&images) {
        assert!(read_all(&repo, point, "d").unwrap() == *bytes);
    }
    is_sound(&repo);
}

#[test]
fn of_two_rotations_at_once_one_fails_and_leaves_no_slot() {
    let (bench, repo) = Bench::new();
    repo.add_key(&pass("other"), &options("other")).unwrap();
    let before = slots(&repo);
    // The other one comes in between: its epoch is there when this one is published.
    let memory = bench.memory.clone();
    let store = Arc::new(Meddled::new(bench.memory.clone(), move |name| {
        if name.starts_with(Epoch::PREFIX) && memory.size(&Epoch::name(2)).unwrap().is_none() {
            let other = Repository::open(memory.clone(), &pass("secret"), Arc::new(Seeded::new(31))).unwrap();
            assert_eq!(rotate(&other).unwrap().epoch, 2);
        }
    }));
    let late = Repository::open(store, &pass("other"), bench.entropy.clone()).unwrap();
    let e = rotate(&late).unwrap_err();
    assert_eq!(e.kind(), Kind::Locked, "{e:?}");
    assert!(e.context().contains("epoch 2") && e.context().contains("key add"), "{e}");
    assert_eq!(slots(&repo).len(), before.len());
    let winner = bench.open(&pass("secret")).unwrap();
    assert!(winner.keys().reads_newest() && !bench.open(&pass("other")).unwrap().keys().reads_newest());
}

/// A rotation dies at every operation of the store in turn; the next one finishes it, or begins the one that never was.
#[test]
fn a_crash_anywhere_in_a_rotation_is_finished_by_the_next() {
    for (counted, fatal) in [(Counted::Every, Fatal::Lost), (Counted::Mutating, Fatal::Done)] {
        let (bench, repo) = Bench::new();
        let index = bench.index(&repo);
        let bytes = image(1, 1 << 20);
        let point = back_up(&repo, &index, &[("d", &bytes)], None, 10);
        let start = bench.memory.clone_state();
        let mut ended = false;
        let mut operations = 0;
        while !ended {
            operations += 1;
            let stop = Stop { at: operations, counted, fatal };
            let store = Arc::new(Faulty::new(start.clone_state(), Plan { stop: Some(stop), ..Plan::default() }));
            let crashed = Repository::open(store.clone(), &pass("secret"), Arc::new(Seeded::new(operations)))
                .and_then(|repo| rotate(&repo));
            ended = crashed.is_ok();
            let left = Arc::new(store.inner().clone_state());

            // Whatever is left opens, reads, and seals to a key that it reads.
            let open =
                |seed| Arc::new(Repository::open(left.clone(), &pass("secret"), Arc::new(Seeded::new(seed))).unwrap());
            let repo = open(1_000);
            let what = format!("{counted:?} {fatal:?} {operations}");
            assert!(read_all(&repo, &point, "d").unwrap() == bytes && repo.keys().reads_newest(), "{what}");
            let interrupted = status(&repo).unfinished;
            let begun = repo.keys().data_key().0;
            let slots_left = slots(&repo).len();
            assert_eq!(interrupted.is_some(), slots_left == 2, "{what}: {interrupted:?}");

            let next = rotate(&open(1_001)).unwrap();
            assert_eq!(next.finished, interrupted.is_some(), "{what}");
            let due = if next.finished { 2 } else { begun + 1 };
            assert_eq!((next.epoch, slots(&repo)), (due, vec![next.slot]), "{what}");
            let after = open(1_002);
            assert_eq!(after.keys().data_key().0, due, "{what}");
            assert!(status(&after).unfinished.is_none() && status(&after).behind.is_empty(), "{what}");
            // The first session, of before the last rotation, can still be read from.
            assert!(read_all(&after, &point, "d").unwrap() == bytes && opens(&repo) > 0, "{what}");
        }
        // A slot is put, the epoch is put, the other slot is deleted.
        assert!(operations > 3, "{operations}");
    }
}

#[test]
fn only_the_authority_begins_an_epoch() {
    let (bench, repo) = Bench::new();
    let writer = Credential::KeyFile(Secret::new([3; 32]));
    repo.export_writer(&writer, &options("mover")).unwrap();
    let mover = bench.open(&writer).unwrap();
    let stranger = coffer_repo::keys::Keys::generate(repo.keys().repo(), &Seeded::new(99)).unwrap();
    let epoch = Epoch { number: 2, public: stranger.data_key().1, time: at(9) };
    let name = Epoch::name(2);
    let refused = mover.put_record(ObjectKind::Epoch, &name, &epoch.encode().unwrap()).unwrap_err();
    assert_eq!(refused.kind(), Kind::WrongKey);
    assert_eq!(rotate(&mover).unwrap_err().kind(), Kind::WrongKey);

    // What somebody plants who can write to the store does not count, is reported, and stands in nobody's way.
    assert_eq!(bench.memory.put(&name, &[b"planted"]).unwrap(), Put::Created);
    let again = bench.open(&pass("secret")).unwrap();
    assert_eq!(again.keys().data_key(), repo.keys().data_key());
    let report = look(&again, DataCheck::None).unwrap();
    assert_eq!(report.problems.iter().map(|p| p.object.as_str()).collect::<Vec<_>>(), [name.as_str()]);
    assert_eq!(rotate(&again).unwrap().epoch, 3);
    assert_eq!(bench.open(&writer).unwrap().keys().data_key().0, 3);
}

/// The epoch's record is lost: what was sealed to its key is read all the same, and the next rotation publishes it again.
#[test]
fn a_lost_epoch_hides_nothing() {
    let (bench, repo) = Bench::new();
    let index = bench.index(&repo);
    rotate(&repo).unwrap();
    let bytes = image(1, 1 << 20);
    let point = back_up(&repo, &index, &[("d", &bytes)], None, 10);
    let newest = repo.keys().data_key();
    bench.memory.delete(&Epoch::name(2)).unwrap();
    let again = bench.open(&pass("secret")).unwrap();
    assert_eq!(again.keys().data_key().0, 1);
    assert!(read_all(&again, &point, "d").unwrap() == bytes);
    let done = rotate(&again).unwrap();
    assert_eq!((done.epoch, done.finished), (2, true));
    assert_eq!(bench.open(&pass("secret")).unwrap().keys().data_key(), newest);
}

#[test]
fn the_slot_that_was_used_is_the_one_that_is_kept() {
    let (bench, repo) = Bench::new();
    let other = repo.add_key(&pass("other"), &options("other")).unwrap();
    let own = *slots(&repo).iter().find(|id| **id != other).unwrap();
    // Both say that they open everything; only of its own the session knows.
    let e = repo.remove_key(own).unwrap_err();
    assert_eq!(e.kind(), Kind::Retained);
    assert!(e.context().contains("use another key"), "{e}");
    bench.open(&pass("other")).unwrap().remove_key(own).unwrap();
    // A session whose own slot is gone removes no other.
    assert_eq!(repo.remove_key(other).unwrap_err().kind(), Kind::Retained);
    assert_eq!(slots(&repo), [other]);
}
