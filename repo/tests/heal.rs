//! Healing from parity, copies, other repositories and disks: what is healed is read by everybody, what is not is told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;

use bench::{Bench, Meddled, at, back_up, back_up_as, image, leaves, read_all};
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, Put, list_sorted};
use coffer_repo::cancel::Cancel;
use coffer_repo::collector::{CollectOptions, CollectProgress, CollectReport, collect};
use coffer_repo::disk_map::LeafContent;
use coffer_repo::entropy::{Entropy, Seeded};
use coffer_repo::heal::{Donor, DonorDisk, HealOptions, HealProgress, HealReport, heal};
use coffer_repo::id::PackUid;
use coffer_repo::key_slot::{Credential, PassphraseCost, SlotOptions};
use coffer_repo::location::PackKind;
use coffer_repo::pack;
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::{Identity, Snapshot};
use coffer_repo::verify::{DataCheck, VerifyOptions, VerifyProgress, verify};
use coffer_repo::{Error, Kind, Result};
use std::sync::Arc;

const LEN: usize = 6 << 20 | 777;

struct Bytes(Vec<u8>);

impl DonorDisk for Bytes {
    fn name(&self) -> String {
        "bytes".to_owned()
    }

    fn size(&self) -> Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let start = usize::try_from(offset).unwrap();
        let from = self.0.get(start..start + out.len()).ok_or_else(|| Error::internal("beyond the end"))?;
        out.copy_from_slice(from);
        Ok(())
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Seeded::new(seed).fill(&mut bytes).unwrap();
    bytes
}

/// A point with a disk of several packs, whose map has two levels.
fn fill(bench: &Bench, repo: &Arc<Repository>) -> (Snapshot, Vec<u8>) {
    let bytes = noise(1, LEN);
    (back_up(repo, &bench.index(repo), &[("d", &bytes), ("e", &image(5, 300_000))], None, 10), bytes)
}

/// The packs that a disk of a point leads to.
fn packs_of(repo: &Arc<Repository>, point: &Snapshot, disk: &str) -> Vec<PackUid> {
    let leaves = leaves(repo, point.disk(disk).unwrap());
    let hints = leaves.iter().flat_map(|(_, leaf)| &leaf.entries).filter_map(|entry| match entry.content {
        LeafContent::Chunk { hint, .. } => Some(hint.pack),
        LeafContent::Unreadable => None,
    });
    hints.collect()
}

/// Packs that hold nothing but chunks of disk "d": more than one.
fn packs_of_d(repo: &Arc<Repository>, point: &Snapshot) -> Vec<String> {
    let (mut packs, others) = (packs_of(repo, point, "d"), packs_of(repo, point, "e"));
    packs.sort();
    packs.dedup();
    packs.retain(|pack| !others.contains(pack));
    packs.into_iter().map(|pack| pack::name(PackKind::Data, pack)).collect()
}

fn names(store: &dyn Backend, prefix: &str) -> Vec<String> {
    list_sorted(store, prefix).unwrap().into_iter().map(|object| object.name).collect()
}

fn options(data: DataCheck) -> HealOptions {
    HealOptions {
        verify: VerifyOptions { data, threads: 2, ..VerifyOptions::default() },
        dry_run: false,
        parity: false,
        identity: Identity::default(),
        now: at(100),
    }
}

fn run(repo: &Arc<Repository>, donors: &[Donor<'_>], options: &HealOptions) -> Result<HealReport> {
    heal(repo, donors, options, &HealProgress::default(), &Cancel::default())
}

/// Sees that nothing is wrong any more and that the disk is as it was, for one who opens the repository anew.
fn check_whole(store: &Arc<Memory>, point: &Snapshot, bytes: &[u8]) {
    let repo = open(store.clone(), 98);
    assert!(read_all(&repo, point, "d").unwrap() == bytes);
    let options = VerifyOptions { data: DataCheck::All, threads: 2, ..VerifyOptions::default() };
    let report = verify(&repo, options, &VerifyProgress::default(), &Cancel::default()).unwrap();
    assert_eq!(report.problems, []);
}

fn open(store: Arc<dyn Backend>, seed: u64) -> Arc<Repository> {
    Arc::new(Repository::open(store, &bench::pass("secret"), Arc::new(Seeded::new(seed))).unwrap())
}

fn flip(store: &Memory, name: &str, at: usize) {
    let mut bytes = store.get(name).unwrap();
    bytes[at] ^= 1;
    store.delete(name).unwrap();
    assert_eq!(store.put(name, &[&bytes]).unwrap(), Put::Created);
}

#[test]
fn parity_heals_without_anybodys_help() {
    let (bench, repo) = Bench::with_parity();
    let (point, bytes) = fill(&bench, &repo);
    let packs: Vec<_> = ["packs/", "trees/"].into_iter().flat_map(|prefix| names(&*bench.memory, prefix)).collect();
    for name in &packs {
        let middle = bench.memory.get(name).unwrap().len() / 2;
        flip(&bench.memory, name, middle);
    }
    let repo = open(bench.memory.clone(), 50);
    let report = run(&repo, &[], &options(DataCheck::All)).unwrap();
    assert!(report.chunks >= 1 && report.nodes >= 1, "{report:?}");
    assert_eq!(report.sources, [("parity".to_owned(), report.chunks + report.nodes)].into());
    assert_eq!(report.after.problems, []);
    assert_eq!(report.after.healed.len(), packs.len());
    // Now the parity may go.
    for name in names(&*bench.memory, "parity/") {
        bench.memory.delete(&name).unwrap();
    }
    check_whole(&bench.memory, &point, &bytes);
    // Nothing is left to be done, and nothing is done twice.
    let before = names(&*bench.memory, "");
    let again = run(&open(bench.memory.clone(), 51), &[], &options(DataCheck::All)).unwrap();
    assert_eq!((again.chunks, again.nodes), (0, 0));
    assert_eq!(names(&*bench.memory, ""), before);
}

#[test]
fn another_copy_of_the_repository_gives_back_packs_that_are_gone() {
    let (bench, repo) = Bench::new();
    let (point, bytes) = fill(&bench, &repo);
    let copy = Arc::new(bench.memory.clone_state());
    for prefix in ["packs/", "trees/"] {
        names(&*bench.memory, prefix).iter().for_each(|name| bench.memory.delete(name).unwrap());
    }
    let donor = [Donor::Repository(open(copy.clone(), 60))];
    let repo = open(bench.memory.clone(), 61);
    // Finding what is gone needs no reading of content.
    let report = run(&repo, &donor, &options(DataCheck::None)).unwrap();
    assert_eq!(report.after.problems, []);
    assert!(report.nodes > 1 && report.chunks > 50, "{report:?}");
    check_whole(&bench.memory, &point, &bytes);
}

#[test]
fn a_disk_gives_back_what_it_still_holds_wherever_it_lies() {
    let (bench, repo) = Bench::new();
    let (point, bytes) = fill(&bench, &repo);
    bench.memory.delete(&packs_of_d(&repo, &point)[0]).unwrap();
    let whole = Bytes(bytes.clone());
    let shifted = |by: usize| Bytes([vec![0x11; by], bytes.clone()].concat());
    let (windows, blocks, sectors) = (shifted(3 << 20), shifted(5 * 4096), shifted(3 * 512));
    let strange = Bytes(noise(9, LEN));
    for (what, disk, heals) in [
        ("as it was", &whole, true),
        ("three windows further on", &windows, true),
        ("five blocks", &blocks, true),
        ("three sectors", &sectors, true),
        ("another", &strange, false),
    ] {
        let store = Arc::new(bench.memory.clone_state());
        let repo = open(store.clone(), 70);
        let report = run(&repo, &[Donor::Disk(disk)], &options(DataCheck::None)).unwrap();
        assert_eq!(report.after.problems.is_empty(), heals, "{what}");
        if heals {
            assert_eq!(report.sources.keys().collect::<Vec<_>>(), ["bytes"], "{what}");
            check_whole(&store, &point, &bytes);
        } else {
            assert_eq!(report.chunks, 0);
            assert!(!report.after.problems[0].hurts.is_empty());
        }
    }
}

#[test]
fn donors_heal_together_what_none_of_them_holds_alone() {
    let (bench, repo) = Bench::new();
    let (point, bytes) = fill(&bench, &repo);
    names(&*bench.memory, "packs/").iter().for_each(|name| bench.memory.delete(name).unwrap());
    let repo = open(bench.memory.clone(), 80);
    let half = LEN / 2;
    let front = Bytes([&bytes[..half], &vec![0x22; LEN - half]].concat());
    let back = Bytes([&vec![0x22; half - 8192], &bytes[half - 8192..]].concat());
    let other = Bytes(image(5, 300_000));
    let first = run(&repo, &[Donor::Disk(&front), Donor::Disk(&other)], &options(DataCheck::None)).unwrap();
    let lost = |report: &HealReport| -> u64 {
        let hurts = report.after.problems.iter().flat_map(|problem| &problem.hurts);
        hurts.flat_map(|harm| &harm.ranges).map(|range| range.end - range.start).sum()
    };
    // What the front does not hold, and at most the chunk on the border.
    let missing = (LEN - half) as u64;
    assert!((missing - 4096..missing + 262_144).contains(&lost(&first)), "{}", lost(&first));
    let second = run(&repo, &[Donor::Disk(&back)], &options(DataCheck::None)).unwrap();
    let border = lost(&second);
    assert!(border <= 262_144 && first.chunks > 0 && second.chunks > 0, "{border}");
    let third = run(&repo, &[Donor::Disk(&Bytes(bytes.clone()))], &options(DataCheck::None)).unwrap();
    assert_eq!(lost(&third), 0);
    check_whole(&bench.memory, &point, &bytes);
}

/// Other keys, other ids: what lies at the same place of the same disk is tried.
#[test]
fn another_repository_gives_what_its_points_hold() {
    let (bench, repo) = Bench::new();
    let (point, bytes) = fill(&bench, &repo);
    let other = Bench { memory: Arc::default(), dir: tempfile::tempdir().unwrap(), entropy: Arc::new(Seeded::new(9)) };
    let theirs = Arc::new(Repository::init(other.memory.clone(), Bench::options(), other.entropy.clone()).unwrap());
    let index = other.index(&theirs);
    let d: (&str, &[u8]) = ("d", &bytes);
    back_up_as("web", &theirs, &index, &[d, ("e", &image(5, 300_000))], None, 5);
    // A newer point there has other bytes.
    back_up_as("web", &theirs, &index, &[("d", &noise(3, LEN))], None, 6);
    back_up_as("db", &theirs, &index, &[d], None, 7);
    names(&*bench.memory, "packs/").iter().for_each(|name| bench.memory.delete(name).unwrap());
    let repo = open(bench.memory.clone(), 90);
    let report = run(&repo, &[Donor::Repository(theirs)], &options(DataCheck::None)).unwrap();
    assert_eq!(report.after.problems, []);
    check_whole(&bench.memory, &point, &bytes);
}

#[test]
fn a_dry_run_tells_and_changes_nothing() {
    let (bench, repo) = Bench::with_parity();
    let (point, bytes) = fill(&bench, &repo);
    let packs = packs_of_d(&repo, &point);
    flip(&bench.memory, &packs[0], 5000);
    bench.memory.delete(&packs[1]).unwrap();
    let before = list_sorted(&*bench.memory, "").unwrap();
    let dry = HealOptions { dry_run: true, parity: true, ..options(DataCheck::All) };
    let donor = Bytes(bytes);
    let told = run(&open(bench.memory.clone(), 40), &[Donor::Disk(&donor)], &dry).unwrap();
    assert_eq!(list_sorted(&*bench.memory, "").unwrap(), before);
    assert!(!told.after.problems.is_empty());
    let done = run(&open(bench.memory.clone(), 41), &[Donor::Disk(&donor)], &options(DataCheck::All)).unwrap();
    assert_eq!((told.chunks, told.nodes, &told.sources), (done.chunks, done.nodes, &done.sources));
    assert!(told.sources.contains_key("parity") && told.sources.contains_key("bytes"), "{told:?}");
}

#[test]
fn parity_is_made_for_packs_that_have_none_and_are_whole() {
    let (bench, repo) = Bench::new();
    let (point, bytes) = fill(&bench, &repo);
    let packs = names(&*bench.memory, "packs/");
    let hurt = packs_of_d(&repo, &point).remove(0);
    flip(&bench.memory, &hurt, 5000);
    let with_parity = HealOptions { parity: true, ..options(DataCheck::All) };
    let report = run(&open(bench.memory.clone(), 30), &[Donor::Disk(&Bytes(bytes.clone()))], &with_parity).unwrap();
    let repo = open(bench.memory.clone(), 31);
    assert!(repo.wants_parity());
    let all = packs.len() as u64 + names(&*bench.memory, "trees/").len() as u64;
    // All but the damaged one, and the new one.
    assert_eq!((report.parities, repo.packs_without_parity().unwrap().len()), (all, 1));
    check_whole(&bench.memory, &point, &bytes);
    for name in packs_of_d(&repo, &point).iter().filter(|name| **name != hurt) {
        flip(&bench.memory, name, 10_000);
    }
    assert!(read_all(&open(bench.memory.clone(), 32), &point, "d").unwrap() == bytes);
    assert_eq!(list_sorted(&*bench.memory, PackKind::Data.prefix()).unwrap().len(), packs.len() + 1);
}

fn gc(bench: &Bench, repo: &Arc<Repository>) -> CollectReport {
    let options = CollectOptions::new(bench.dir.path().to_owned(), Identity::default(), at(10_000));
    collect(repo, &options, &CollectProgress::default(), &Cancel::default()).unwrap()
}

/// What was healed is in use although the damaged pack is still there, and goes on being so.
#[test]
fn collecting_keeps_what_was_healed() {
    let (bench, repo) = Bench::new();
    let (point, bytes) = fill(&bench, &repo);
    packs_of_d(&repo, &point).iter().for_each(|name| flip(&bench.memory, name, 5000));
    run(&open(bench.memory.clone(), 21), &[Donor::Disk(&Bytes(bytes.clone()))], &options(DataCheck::All)).unwrap();
    let before = names(&*bench.memory, "");
    for seed in 22..24 {
        let report = gc(&bench, &open(bench.memory.clone(), seed));
        assert_eq!((report.dead.packs, report.spared.packs, report.lost), (0, 0, 0), "{report:?}");
        let packs = |names: &[String]| -> Vec<String> {
            names.iter().filter(|name| pack::parse_name(name).is_some()).cloned().collect()
        };
        assert_eq!(packs(&names(&*bench.memory, "")), packs(&before));
        check_whole(&bench.memory, &point, &bytes);
    }
}

#[test]
fn no_backup_relies_on_what_was_found_damaged_and_the_next_one_heals_the_last() {
    let (bench, repo) = Bench::new();
    let (point, bytes) = fill(&bench, &repo);
    let hurt = packs_of_d(&repo, &point).remove(0);
    let (_, uid) = pack::parse_name(&hurt).unwrap();
    flip(&bench.memory, &hurt, 5000);
    let repo = open(bench.memory.clone(), 11);
    let index = bench.index(&repo);
    let disks: [(&str, &[u8]); 1] = [("d", &bytes)];
    let unaware = back_up_as("db", &repo, &index, &disks, None, 20);
    assert!(packs_of(&repo, &unaware, "d").contains(&uid), "nobody knows yet");
    assert_eq!(read_all(&repo, &unaware, "d").unwrap_err().kind(), Kind::Corrupt);

    let keeping = VerifyOptions { data: DataCheck::All, keep: Some(at(30)), threads: 2, ..VerifyOptions::default() };
    let found = verify(&repo, keeping, &VerifyProgress::default(), &Cancel::default()).unwrap();
    assert_eq!((found.problems.len(), found.not_kept), (1, None));
    assert_eq!(repo.shunned().unwrap(), [uid].into());
    assert!(repo.condemned().unwrap().is_empty(), "and no collector is about to remove it");
    let known = names(&*bench.memory, "condemned/");
    verify(&repo, keeping, &VerifyProgress::default(), &Cancel::default()).unwrap();
    assert_eq!(names(&*bench.memory, "condemned/"), known, "once is enough");

    // As another machine, and as the next of the same, whose parent's map leads there.
    let child = back_up(&repo, &index, &disks, Some(point.clone()), 40);
    let other = back_up_as("mail", &repo, &index, &disks, None, 41);
    for new in [&child, &other] {
        assert!(!packs_of(&repo, new, "d").contains(&uid));
        assert!(read_all(&repo, new, "d").unwrap() == bytes);
    }
    let healed = run(&open(bench.memory.clone(), 12), &[], &options(DataCheck::All)).unwrap();
    assert_eq!(healed.sources.keys().collect::<Vec<_>>(), ["other packs"]);
    assert_eq!(healed.after.problems, []);
    for point in [&point, &unaware] {
        check_whole(&bench.memory, point, &bytes);
    }
    // Claims are swept although the damaged pack is still there.
    repo.forget(unaware.name, at(50)).unwrap();
    let report = gc(&bench, &open(bench.memory.clone(), 13));
    assert_eq!((report.swept, report.lost), (1, 0), "{report:?}");
    check_whole(&bench.memory, &point, &bytes);
}

/// A leaf that is lost takes no backup along that reads everything anyway.
#[test]
fn a_backup_goes_on_from_a_parent_whose_map_is_damaged() {
    let (bench, repo) = Bench::new();
    let (point, bytes) = fill(&bench, &repo);
    names(&*bench.memory, "trees/").iter().for_each(|name| bench.memory.delete(name).unwrap());
    let repo = open(bench.memory.clone(), 14);
    assert_eq!(read_all(&repo, &point, "d").unwrap_err().kind(), Kind::Corrupt);
    let index = bench.index(&repo);
    let child = back_up(&repo, &index, &[("d", &bytes)], Some(point), 20);
    assert!(read_all(&repo, &child, "d").unwrap() == bytes);
}

#[test]
fn healing_may_be_stopped_anywhere_and_begun_again() {
    let (bench, repo) = Bench::with_parity();
    let (point, bytes) = fill(&bench, &repo);
    let all: Vec<_> = ["packs/", "trees/"].into_iter().flat_map(|prefix| names(&*bench.memory, prefix)).collect();
    for name in &all {
        flip(&bench.memory, name, bench.memory.get(name).unwrap().len() / 2);
    }
    let mut stopped = 0;
    for after in [1, 10, 40, 60, 80, 90, 100, 110, 120, 130] {
        let store = Arc::new(bench.memory.clone_state());
        let (cancel, calls) = (Cancel::default(), std::sync::atomic::AtomicUsize::new(0));
        let trigger = cancel.clone();
        let meddled = Meddled::new(Arc::clone(&store), move |_| {
            if calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == after {
                trigger.cancel();
            }
        });
        let repo = open(Arc::new(meddled), 15);
        match heal(&repo, &[], &options(DataCheck::All), &HealProgress::default(), &cancel) {
            Err(e) => {
                assert_eq!(e.kind(), Kind::Cancelled);
                stopped += 1;
            }
            Ok(report) => assert_eq!(report.after.problems, []),
        }
        assert!(read_all(&open(store.clone(), 16), &point, "d").unwrap() == bytes, "{after}");
        run(&open(store.clone(), 17), &[], &options(DataCheck::All)).unwrap();
        names(&*store, "parity/").iter().for_each(|name| store.delete(name).unwrap());
        check_whole(&store, &point, &bytes);
    }
    assert!(stopped > 3, "{stopped}");
}

#[test]
fn a_writer_heals_nothing() {
    let (bench, repo) = Bench::new();
    fill(&bench, &repo);
    let key = coffer_repo::crypto::Secret::random(&*bench.entropy).unwrap();
    let credential = Credential::from_key_file(&coffer_repo::key_slot::key_file(&key).unwrap()).unwrap();
    let slot = SlotOptions { label: "mover".into(), created: at(2), cost: PassphraseCost::default() };
    repo.export_writer(&credential, &slot).unwrap();
    let writer = bench.open(&credential).unwrap();
    assert_eq!(run(&writer, &[], &options(DataCheck::None)).unwrap_err().kind(), Kind::WrongKey);
}
