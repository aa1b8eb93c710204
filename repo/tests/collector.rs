//! Collecting garbage: what goes, what stays, what is read afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;

use bench::{Bench, at, back_up, back_up_as, image, pass, read_all};
use coffer_repo::backend::list_sorted;
use coffer_repo::cancel::Cancel;
use coffer_repo::collector::{CollectOptions, CollectProgress, CollectReport, collect};
use coffer_repo::location::PackKind;
use coffer_repo::pack;
use coffer_repo::repository::Repository;
use coffer_repo::sealed::ObjectKind;
use coffer_repo::snapshot::{Decision, Identity, Snapshot};
use coffer_repo::verify::{DataCheck, VerifyOptions, VerifyProgress, verify};
use coffer_repo::{Kind, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Long after everything else happens.
const LATE: u64 = 100_000_000;

fn options(bench: &Bench) -> CollectOptions {
    let mut options = CollectOptions::new(bench.dir.path().to_owned(), Identity::default(), at(LATE));
    options.pack_bytes = 1 << 20;
    options.memory = 1 << 20;
    options
}

fn run(bench: &Bench, repo: &Arc<Repository>, change: impl FnOnce(&mut CollectOptions)) -> Result<CollectReport> {
    let mut options = options(bench);
    change(&mut options);
    collect(repo, &options, &CollectProgress::default(), &Cancel::default())
}

fn gc(bench: &Bench, repo: &Arc<Repository>) -> CollectReport {
    let report = run(bench, repo, |_| {}).unwrap();
    assert!(report.unwalkable.is_empty() && report.damaged.is_empty() && report.lost == 0, "{report:?}");
    report
}

/// Bytes of everything in the store, by the first part of the name.
fn contents(repo: &Repository) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    repo.backend()
        .list("", &mut |object| {
            let first = object.name.split('/').next().unwrap_or_default().to_owned();
            found.entry(first).or_default().push(object.name);
            Ok(())
        })
        .unwrap();
    found
}

fn size(repo: &Repository) -> u64 {
    let mut bytes = 0;
    for kind in ["packs/", "trees/", "parity/", "index/"] {
        bytes += list_sorted(repo.backend(), kind).unwrap().iter().map(|o| o.size).sum::<u64>();
    }
    bytes
}

fn is_sound(repo: &Arc<Repository>) {
    let options = VerifyOptions { data: DataCheck::All, threads: 2, ..VerifyOptions::default() };
    let report = verify(repo, options, &VerifyProgress::default(), &Cancel::default()).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

fn forget(repo: &Repository, snapshot: &Snapshot) {
    repo.forget(snapshot.name, at(LATE)).unwrap();
}

/// As `bytes`, with a stretch of noise in the middle.
fn changed(bytes: &[u8], seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let middle = (bytes.len() / 2) & !4095;
    bytes[middle..middle + len].copy_from_slice(&image(seed, len));
    bytes
}

#[test]
fn what_only_forgotten_points_need_goes_and_the_rest_stays() {
    let (bench, repo) = Bench::fine();
    let index = bench.index(&repo);
    let first = image(1, 6 << 20);
    let second = changed(&first, 2, 1 << 20);
    let a = back_up(&repo, &index, &[("d", &first)], None, 10);
    let b = back_up(&repo, &index, &[("d", &second)], Some(a.clone()), 20);
    let alone = back_up_as("other", &repo, &index, &[("x", &image(3, 4 << 20))], None, 30);
    drop(index);
    let full = size(&repo);
    let nothing = gc(&bench, &repo);
    assert_eq!((nothing.removed.packs, nothing.dead.packs), (0, 0));

    forget(&repo, &alone);
    let before = size(&repo);
    let planned = run(&bench, &repo, |o| o.dry_run = true).unwrap();
    assert_eq!(size(&repo), before);
    let done = gc(&bench, &repo);
    assert_eq!((planned.dead, planned.repacked), (done.dead, done.repacked));
    assert!(done.removed.packs >= 2 && size(&repo) < full / 4 * 3, "{done:?}");
    assert_eq!(u64::try_from(done.freed).unwrap(), before - size(&repo));
    assert!(read_all(&repo, &a, "d").unwrap() == first && read_all(&repo, &b, "d").unwrap() == second);
    is_sound(&repo);

    // What the first point alone needs is a part of its packs: copied out of, when it is little.
    forget(&repo, &a);
    let done = run(&bench, &repo, |o| o.repack_below = 100).unwrap();
    assert!(done.repacked.packs > 0 && done.copied > 0, "{done:?}");
    assert!(read_all(&repo, &b, "d").unwrap() == second);
    is_sound(&repo);

    forget(&repo, &b);
    gc(&bench, &repo);
    gc(&bench, &repo);
    let left = contents(&repo);
    let names: Vec<&str> = left.keys().map(String::as_str).collect();
    assert_eq!(names, ["index", "keys", "repo"], "{left:?}");
}

/// Points whose chunks were moved again and again are read, built upon, and collected in the end.
#[test]
fn maps_lead_to_what_was_moved_often() {
    let (bench, repo) = Bench::fine();
    let mut disk = image(1, 3 << 20);
    let mut points: Vec<(Snapshot, Vec<u8>)> = Vec::new();
    for round in 0..6u64 {
        let index = bench.index(&repo);
        index.sync(repo.backend(), repo.keys(), &repo.all_certificates().unwrap(), &mut |_, _| Ok(())).unwrap();
        disk = changed(&disk, 10 + round, 400_000);
        let parent = points.last().map(|(snapshot, _)| snapshot.clone());
        points.push((back_up(&repo, &index, &[("d", &disk)], parent, 10 * (round + 1)), disk.clone()));
        let report = run(&bench, &repo, |o| o.repack_below = 100).unwrap();
        assert!(report.unwalkable.is_empty() && report.lost == 0, "{report:?}");
        for (point, bytes) in &points {
            assert!(read_all(&repo, point, "d").unwrap() == *bytes, "round {round}");
        }
        if round % 2 == 1 {
            forget(&repo, &points.remove(0).0);
        }
        is_sound(&repo);
    }
    for (point, _) in &points {
        forget(&repo, point);
    }
    gc(&bench, &repo);
    gc(&bench, &repo);
    assert_eq!(contents(&repo).keys().cloned().collect::<Vec<_>>(), ["index", "keys", "repo"]);
}

/// Many moves leave few records to search through.
#[test]
fn what_was_moved_a_hundred_times_is_found() {
    let (bench, repo) = Bench::fine();
    let disk = image(1, 100 << 10);
    let point = back_up(&repo, &bench.index(&repo), &[("d", &disk)], None, 10);
    for round in 0..100 {
        let report = run(&bench, &repo, |o| o.repack_below = 100).unwrap();
        assert!(report.removed.packs > 0 && report.lost == 0, "round {round}: {report:?}");
    }
    assert!(read_all(&repo, &point, "d").unwrap() == disk);
    is_sound(&repo);
    let mut about: BTreeMap<String, usize> = BTreeMap::new();
    for name in &contents(&repo)["moved"] {
        *about.entry(name.split('/').nth(1).unwrap().to_owned()).or_default() += 1;
    }
    assert!(about.values().all(|records| *records < 12), "{about:?}");
}

#[test]
fn what_a_pin_holds_stays_until_the_pin_ends() {
    let (bench, repo) = Bench::fine();
    let bytes = image(1, 2 << 20);
    let point = back_up(&repo, &bench.index(&repo), &[("d", &bytes)], None, 10);
    let pin = repo.pin(&point, "mount", &Identity::default(), at(LATE)).unwrap();
    forget(&repo, &point);
    for _ in 0..2 {
        assert_eq!(gc(&bench, &repo).removed.packs, 0);
        assert!(read_all(&repo, &point, "d").unwrap() == bytes);
    }
    // However old it is: its session beats.
    assert_eq!(run(&bench, &repo, |o| o.dead_after = 0).unwrap().removed.packs, 0);
    pin.release(at(LATE)).unwrap();
    assert!(gc(&bench, &repo).removed.packs > 0);
    assert_eq!(repo.points().unwrap().snapshots, []);
}

/// A pin of a process that died, a claim of a backup that died: they hold what they hold until they are old enough.
#[test]
fn what_the_dead_left_is_ended_when_it_is_old() {
    let (bench, repo) = Bench::fine();
    let bytes = image(1, 2 << 20);
    let point = back_up(&repo, &bench.index(&repo), &[("d", &bytes)], None, 10);
    std::mem::forget(repo.pin(&point, "mount", &Identity::default(), at(LATE - 1000)).unwrap());
    forget(&repo, &point);
    // A decision that was never taken.
    let index = bench.index(&repo);
    let dead = back_up_as("dead", &repo, &index, &[("d", &image(2, 2 << 20))], None, 20);
    repo.backend().delete(&dead.name.decision()).unwrap();
    drop(index);
    let repo = bench.open(&pass("secret")).unwrap();
    // Sessions beat by the clock they were given: that of the pin's is old by now.
    let with = |age| run(&bench, &repo, move |o| (o.dead_after, o.now) = (age, at(LATE + 10_000)));
    let early = with(1 << 40).unwrap();
    assert_eq!((early.removed.packs, early.revoked.len(), early.unpinned.len()), (0, 0, 0));
    assert!(read_all(&repo, &point, "d").unwrap() == bytes);
    let planned = run(&bench, &repo, |o| {
        (o.dead_after, o.now, o.dry_run) = (1000, at(LATE + 10_000), true);
    });
    assert_eq!(planned.unwrap().revoked.len(), 1);
    let late = with(1000).unwrap();
    assert_eq!((late.revoked.len(), late.unpinned.len()), (1, 1), "{late:?}");
    assert!(late.removed.packs > 0);
    // It wakes up: the register says no, for good.
    assert_eq!(repo.decide(dead.name, Decision::Commit).unwrap(), Some(Decision::Revoke));
    gc(&bench, &repo);
    assert_eq!(repo.decide(dead.name, Decision::Commit).unwrap(), Some(Decision::Revoke));
}

#[test]
fn a_root_that_cannot_be_walked_keeps_everything() {
    let (bench, repo) = Bench::fine();
    let index = bench.index(&repo);
    let a = back_up(&repo, &index, &[("d", &image(1, 3 << 20))], None, 10);
    let b = back_up_as("other", &repo, &index, &[("d", &image(2, 3 << 20))], None, 20);
    forget(&repo, &b);
    let tree = list_sorted(repo.backend(), PackKind::Tree.prefix()).unwrap().remove(0);
    let (_, uid) = pack::parse_name(&tree.name).unwrap();
    let bytes = repo.backend().get(&tree.name).unwrap();
    repo.backend().delete(&tree.name).unwrap();
    // Whose of the two the tree pack is does not matter to the one that is forgotten: make it the other's.
    let before = contents(&repo);
    let report = run(&bench, &repo, |_| {}).unwrap();
    if report.unwalkable.is_empty() {
        let _ = repo.backend().put(&tree.name, &[&bytes]).unwrap();
        let other = list_sorted(repo.backend(), PackKind::Tree.prefix()).unwrap().pop().unwrap();
        assert_ne!(other.name, tree.name);
        repo.backend().delete(&other.name).unwrap();
    }
    let report = run(&bench, &repo, |_| {}).unwrap();
    assert_eq!(report.unwalkable.iter().map(|(name, _)| *name).collect::<Vec<_>>(), [a.name], "{uid}");
    assert!(report.unwalkable[0].1.to_string().contains("trees/"), "{:?}", report.unwalkable);
    assert_eq!((report.removed.packs, report.swept), (0, 0));
    assert!(contents(&repo)["packs"] == before["packs"] || before["packs"].len() > contents(&repo)["packs"].len());
}

/// A backup died between its claim and its check, relying on a map that has gone since.
#[test]
fn an_undecided_claim_that_relies_on_what_is_gone_is_revoked_at_once() {
    let (bench, repo) = Bench::fine();
    let index = bench.index(&repo);
    let kept = back_up(&repo, &index, &[("d", &image(1, 3 << 20))], None, 10);
    let trees = |repo: &Repository| list_sorted(repo.backend(), PackKind::Tree.prefix()).unwrap();
    let old = trees(&repo);
    let dead = back_up_as("dead", &repo, &index, &[("d", &image(2, 3 << 20))], None, LATE - 10);
    let committed = repo.backend().get(&dead.name.decision()).unwrap();
    for tree in trees(&repo) {
        if !old.contains(&tree) {
            repo.backend().delete(&tree.name).unwrap();
        }
    }
    // As long as it counts, that is damage.
    let report = run(&bench, &repo, |_| {}).unwrap();
    assert_eq!(report.unwalkable.iter().map(|(name, _)| *name).collect::<Vec<_>>(), [dead.name]);
    assert_eq!((report.removed.packs, report.revoked.len()), (0, 0));
    assert!(repo.backend().get(&dead.name.decision()).unwrap() == committed);

    repo.backend().delete(&dead.name.decision()).unwrap();
    let before = contents(&repo);
    let planned = run(&bench, &repo, |o| o.dry_run = true).unwrap();
    assert!(planned.unwalkable.is_empty() && planned.dead.packs > 0, "{planned:?}");
    assert_eq!(planned.revoked, [dead.name]);
    assert_eq!(contents(&repo), before);
    let report = gc(&bench, &repo);
    assert_eq!((report.revoked, report.removed), (vec![dead.name], planned.dead));
    assert_eq!(repo.decide(dead.name, Decision::Commit).unwrap(), Some(Decision::Revoke));
    assert!(read_all(&repo, &kept, "d").unwrap() == image(1, 3 << 20));
    is_sound(&repo);
}

#[test]
fn a_claim_of_an_unknown_kind_stops_everything() {
    let (bench, repo) = Bench::fine();
    let point = back_up(&repo, &bench.index(&repo), &[("d", &image(1, 1 << 20))], None, 10);
    let strange = coffer_repo::snapshot::ClaimName { id: coffer_repo::id::SnapshotId([9; 16]), ..point.name };
    let mut claim =
        coffer_repo::cbor::Map::decode(&repo.get_record(ObjectKind::Claim, &point.name.claim()).unwrap().body).unwrap();
    claim.remove("kind");
    claim.insert("kind", "tape");
    let _ = repo.put_record(ObjectKind::Claim, &strange.claim(), &claim.encode().unwrap()).unwrap();
    forget(&repo, &point);
    let error = run(&bench, &repo, |_| {}).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("tape"), "{error}");
}

#[test]
fn a_writers_key_collects_nothing() {
    let (bench, repo) = Bench::fine();
    let slot = coffer_repo::key_slot::SlotOptions { label: "mover".into(), ..Bench::options().slot };
    repo.export_writer(&pass("mover"), &slot).unwrap();
    let writer = bench.open(&pass("mover")).unwrap();
    let error = run(&bench, &writer, |_| {}).unwrap_err();
    assert_eq!(error.kind(), Kind::WrongKey);
    assert!(error.to_string().contains("collect garbage"), "{error}");
}

/// A pack that a collector condemned and could not remove, because somebody came to need it: the next run copies out of it.
#[test]
fn condemned_packs_that_are_needed_are_emptied_later() {
    let (bench, repo) = Bench::fine();
    let bytes = image(1, 2 << 20);
    let point = back_up(&repo, &bench.index(&repo), &[("d", &bytes)], None, 10);
    let packs: Vec<_> = PackKind::ALL
        .into_iter()
        .flat_map(|kind| list_sorted(repo.backend(), kind.prefix()).unwrap())
        .map(|object| pack::parse_name(&object.name).unwrap().1)
        .collect();
    let record = coffer_repo::snapshot::Condemned { packs: packs.clone(), damaged: false };
    let name = format!("condemned/{}", coffer_repo::id::RecordId([1; 16]));
    let _ = repo.put_record(ObjectKind::Condemned, &name, &record.encode().unwrap()).unwrap();
    let report = gc(&bench, &repo);
    assert_eq!(report.removed.packs, packs.len() as u64);
    assert!(read_all(&repo, &point, "d").unwrap() == bytes);
    assert!(!contents(&repo).contains_key("condemned"));
    is_sound(&repo);
}

/// Chunks that lie twice: the copy nobody is led to goes only once the other one was read.
#[test]
fn a_copy_that_is_damaged_is_no_copy() {
    let (bench, repo) = Bench::fine();
    let bytes = image(1, 2 << 20);
    // Two indexes that know nothing of each other: everything is stored twice.
    let point = back_up(&repo, &bench.index(&repo), &[("d", &bytes)], None, 10);
    let packs_of = || {
        let listed = list_sorted(repo.backend(), PackKind::Data.prefix()).unwrap();
        listed.into_iter().map(|object| object.name).collect::<Vec<_>>()
    };
    let first = packs_of();
    let (elsewhere, _) = Bench::fine();
    let twin = back_up_as("twin", &repo, &elsewhere.index(&repo), &[("d", &bytes)], None, 20);
    forget(&repo, &twin);
    // The pack that the point is led to is damaged: the twin's are the only good copies.
    for name in &first {
        let mut whole = repo.backend().get(name).unwrap();
        let middle = whole.len() / 2;
        whole[middle] ^= 1;
        repo.backend().delete(name).unwrap();
        let _ = repo.backend().put(name, &[&whole]).unwrap();
    }
    let report = run(&bench, &repo, |_| {}).unwrap();
    assert!(report.spared.packs > 0, "{report:?}");
    // What is left is what healing needs: every frame of the point is in some pack.
    let good: usize = packs_of().iter().filter(|name| !first.contains(name)).count();
    assert!(good > 0);
    assert!(read_all(&repo, &point, "d").is_err());
}
