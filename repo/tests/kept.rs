//! What verifications keep: when each pack was read and each point found sound, and what is read next because of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;

use bench::{Bench, at, back_up, pass};
use coffer_repo::backend::{Put, list_sorted};
use coffer_repo::cancel::Cancel;
use coffer_repo::collector::{CollectOptions, CollectProgress, collect};
use coffer_repo::entropy::{Entropy, Seeded};
use coffer_repo::id::RecordId;
use coffer_repo::key_slot::{Credential, PassphraseCost, SlotOptions};
use coffer_repo::repository::Repository;
use coffer_repo::sealed::ObjectKind;
use coffer_repo::snapshot::{Identity, Snapshot};
use coffer_repo::verified::{self, Level, Proof, Verified};
use coffer_repo::verify::{DataCheck, Ledger, Report, VerifyOptions, VerifyProgress, verify};
use coffer_repo::{Kind, Result};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

fn options(data: DataCheck, keep: u64) -> VerifyOptions {
    VerifyOptions { data, keep: Some(at(keep)), threads: 2, ..VerifyOptions::default() }
}

fn run(repo: &Arc<Repository>, options: VerifyOptions) -> Result<Report> {
    let report = verify(repo, options, &VerifyProgress::default(), &Cancel::default())?;
    assert_eq!(report.not_kept, None);
    Ok(report)
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Seeded::new(seed).fill(&mut bytes).unwrap();
    bytes
}

/// Two points: the second has a disk more.
fn fill(bench: &Bench, repo: &Arc<Repository>) -> Vec<Snapshot> {
    let index = bench.index(repo);
    let bytes = noise(1, 9 << 20);
    let first = back_up(repo, &index, &[("d", &bytes)], None, 10);
    let second = back_up(repo, &index, &[("d", &bytes), ("e", &noise(2, 5 << 20))], Some(first.clone()), 20);
    vec![first, second]
}

fn packs(repo: &Repository) -> usize {
    list_sorted(repo.backend(), "packs/").unwrap().len()
}

fn shown(ledger: &Ledger, point: &Snapshot) -> (Option<u64>, Option<u64>) {
    let time = |level| ledger.point(point.id(), level).map(|time| time.seconds());
    (time(Level::Structure), time(Level::Data))
}

#[test]
fn a_point_is_proven_as_far_as_was_looked() {
    let (bench, repo) = Bench::new();
    let points = fill(&bench, &repo);
    assert_eq!(repo.proven().unwrap().packs.len(), 0);
    run(&repo, options(DataCheck::None, 100)).unwrap();
    let ledger = repo.proven().unwrap();
    assert_eq!((shown(&ledger, &points[0]), ledger.packs.len()), ((Some(100), None), 0));
    run(&repo, options(DataCheck::All, 200)).unwrap();
    run(&repo, options(DataCheck::None, 300)).unwrap();
    let ledger = repo.proven().unwrap();
    for point in &points {
        assert_eq!(shown(&ledger, point), (Some(300), Some(200)));
    }
    assert_eq!(ledger.packs.len(), packs(&repo));
    assert!(ledger.packs.values().all(|time| *time == at(200)));
    // The last record says it all; a collector removes the others.
    assert_eq!((ledger.records.len(), ledger.superseded.len()), (1, 2));
    let collecting = CollectOptions::new(bench.dir.path().to_owned(), Identity::default(), at(400));
    collect(&repo, &collecting, &CollectProgress::default(), &Cancel::default()).unwrap();
    let ledger = repo.proven().unwrap();
    assert_eq!((ledger.records.len(), ledger.superseded.len()), (1, 0));
    assert_eq!(shown(&ledger, &points[1]), (Some(300), Some(200)));
    // What is kept is found in order, by a verification that keeps nothing.
    let before = list_sorted(repo.backend(), "").unwrap();
    let report = run(&repo, VerifyOptions { keep: None, ..options(DataCheck::All, 0) }).unwrap();
    assert_eq!(report.problems, []);
    assert_eq!(list_sorted(repo.backend(), "").unwrap(), before);
}

#[test]
fn the_share_that_was_not_read_for_longest_comes_next() {
    let (bench, repo) = Bench::new();
    let points = fill(&bench, &repo);
    let all = packs(&repo);
    assert!(all >= 6);
    let share = (all * 30).div_ceil(100);
    for round in 0..all.div_ceil(share) {
        let report = run(&repo, options(DataCheck::Oldest(30), 100 + round as u64)).unwrap();
        assert_eq!(report.data_packs, share as u64);
        let ledger = repo.proven().unwrap();
        assert_eq!(ledger.packs.len(), all.min((round + 1) * share));
        // Only once all was read, points are proven, as of what was read first.
        let due = ledger.packs.values().map(|time| time.seconds()).min().filter(|_| ledger.packs.len() == all);
        assert_eq!(shown(&ledger, &points[0]).1, due, "round {round}");
    }
    // Again from the beginning.
    let last = 200;
    run(&repo, options(DataCheck::Oldest(30), last)).unwrap();
    let ledger = repo.proven().unwrap();
    let times: BTreeSet<_> = ledger.packs.values().map(|time| time.seconds()).collect();
    assert!(times.contains(&last) && !times.contains(&100), "{times:?}");
    // A new pack comes before all others, and until it was read, nothing newer is said of anybody.
    let third = back_up(&repo, &bench.index(&repo), &[("f", &noise(3, 300_000))], None, 30);
    run(&repo, options(DataCheck::None, 300)).unwrap();
    assert_eq!(shown(&repo.proven().unwrap(), &third), (Some(300), None));
    run(&repo, options(DataCheck::Oldest(1), 400)).unwrap();
    assert!(shown(&repo.proven().unwrap(), &third).1.is_some());
}

#[test]
fn what_was_read_since_is_left_out() {
    let (bench, repo) = Bench::new();
    let points = fill(&bench, &repo);
    run(&repo, options(DataCheck::Oldest(50), 100)).unwrap();
    let first = repo.proven().unwrap().packs.len() as u64;
    let since = |since, keep| VerifyOptions { unread_since: Some(at(since)), ..options(DataCheck::All, keep) };
    let report = run(&repo, since(100, 200)).unwrap();
    assert_eq!(report.data_packs, packs(&repo) as u64 - first);
    assert_eq!(shown(&repo.proven().unwrap(), &points[0]).1, Some(100));
    assert_eq!(run(&repo, since(101, 300)).unwrap().data_packs, first);
    assert_eq!(shown(&repo.proven().unwrap(), &points[0]).1, Some(200));
    assert_eq!(run(&repo, since(1, 400)).unwrap().data_packs, 0);
}

#[test]
fn damage_unproves_the_pack_and_leaves_other_points_proven() {
    let (bench, repo) = Bench::new();
    let points = fill(&bench, &repo);
    run(&repo, options(DataCheck::All, 100)).unwrap();
    // A pack that only the second point needs.
    let needed = |point: &Snapshot, disk: &str| bench::leaves(&repo, point.disk(disk).unwrap());
    let hint = |leaf: &coffer_repo::disk_map::LeafEntry| match leaf.content {
        coffer_repo::disk_map::LeafContent::Chunk { hint, .. } => hint.pack,
        coffer_repo::disk_map::LeafContent::Unreadable => panic!("a block that could not be read"),
    };
    let of = |point, disk| -> BTreeSet<_> {
        needed(point, disk).iter().flat_map(|(_, leaf)| leaf.entries.iter().map(hint).collect::<Vec<_>>()).collect()
    };
    let shared = of(&points[0], "d");
    let victim = *of(&points[1], "e").iter().find(|pack| !shared.contains(pack)).unwrap();
    let name = coffer_repo::pack::name(coffer_repo::location::PackKind::Data, victim);
    let mut bytes = repo.backend().get(&name).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    repo.backend().delete(&name).unwrap();
    assert_eq!(repo.backend().put(&name, &[&bytes]).unwrap(), Put::Created);
    let report = run(&repo, options(DataCheck::All, 200)).unwrap();
    assert_eq!(report.problems.len(), 1);
    let ledger = repo.proven().unwrap();
    assert_eq!((ledger.packs.len(), ledger.packs.contains_key(&victim)), (packs(&repo) - 1, false));
    assert_eq!(shown(&ledger, &points[0]), (Some(200), Some(200)));
    assert_eq!(shown(&ledger, &points[1]), (Some(100), Some(100)), "when it was last proven readable");
}

#[test]
fn an_interrupted_run_keeps_what_it_read_and_the_next_goes_on() {
    let (bench, repo) = Bench::new();
    fill(&bench, &repo);
    let (cancel, progress) = (Cancel::default(), VerifyProgress::default());
    let slow = VerifyOptions { max_rate: Some(8 << 20), threads: 1, ..options(DataCheck::All, 100) };
    let stopped = std::thread::scope(|scope| {
        let run = scope.spawn(|| verify(&repo, slow, &progress, &cancel));
        while progress.data_packs.load(Relaxed) < 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
        cancel.cancel();
        run.join().unwrap()
    });
    assert_eq!(stopped.unwrap_err().kind(), Kind::Cancelled);
    let read = progress.data_packs.load(Relaxed);
    assert_eq!(repo.proven().unwrap().packs.len() as u64, read);
    assert!(read < packs(&repo) as u64);
    let rest = VerifyOptions { unread_since: Some(at(100)), ..options(DataCheck::All, 200) };
    assert_eq!(run(&repo, rest).unwrap().data_packs, packs(&repo) as u64 - read);
    assert_eq!(repo.proven().unwrap().packs.len(), packs(&repo));
}

#[test]
fn a_rate_is_kept() {
    let (bench, repo) = Bench::new();
    fill(&bench, &repo);
    let begun = Instant::now();
    let limited = VerifyOptions { max_rate: Some(8 << 20), keep: None, ..options(DataCheck::All, 0) };
    let report = run(&repo, limited).unwrap();
    // No machine can take less: 8 MiB a second, but for the burst of a quarter of a second and the last pack of each thread.
    let least = Duration::from_millis(report.bytes.saturating_sub(5 << 20) / ((8 << 20) / 1000));
    assert!(begun.elapsed() >= least && least > Duration::from_secs(1), "{least:?} for {}", report.bytes);
}

#[test]
fn only_the_authority_proves_anything() {
    let (bench, repo) = Bench::new();
    let points = fill(&bench, &repo);
    let key = coffer_repo::crypto::Secret::random(&*bench.entropy).unwrap();
    let credential = Credential::from_key_file(&coffer_repo::key_slot::key_file(&key).unwrap()).unwrap();
    let slot = SlotOptions { label: "mover".into(), created: at(2), cost: PassphraseCost::default() };
    repo.export_writer(&credential, &slot).unwrap();
    let writer = bench.open(&credential).unwrap();
    assert_eq!(run(&writer, options(DataCheck::None, 100)).unwrap_err().kind(), Kind::WrongKey);
    let forged = Verified {
        proofs: vec![Proof { time: at(1), level: Level::Data, packs: vec![], points: vec![points[0].id()] }],
        superseded: Vec::new(),
    };
    let name = verified::name(RecordId([1; 16]));
    let put = writer.put_record(ObjectKind::Verified, &name, &forged.encode().unwrap());
    assert_eq!(put.unwrap_err().kind(), Kind::WrongKey);
    // A record that is damaged proves nothing, hides no other, and is named.
    assert_eq!(repo.backend().put(&name, &[b"no record"]).unwrap(), Put::Created);
    let report = run(&repo, options(DataCheck::None, 100)).unwrap();
    assert_eq!(report.problems.iter().map(|p| p.object.as_str()).collect::<Vec<_>>(), [name.as_str()]);
    assert_eq!(shown(&repo.proven().unwrap(), &points[0]), (Some(100), None));
    // Reading what was proven needs no full key.
    let seen = bench.open(&credential).unwrap().proven().unwrap();
    assert_eq!(shown(&seen, &points[0]), (Some(100), None));
    assert!(bench.open(&pass("secret")).is_ok());
}
