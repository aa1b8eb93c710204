//! Verification of sound and broken repositories; what it says is hurt is compared with what a reader meets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;

use bench::{Bench, at, back_up, back_up_as, image, leaves, merge, pass};
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, Listed, Put, list_sorted};
use coffer_repo::cancel::Cancel;
use coffer_repo::disk_map::{LeafContent, Node};
use coffer_repo::entropy::{Entropy, Seeded, fresh};
use coffer_repo::id::SnapshotId;
use coffer_repo::key_slot::{Credential, PassphraseCost, SlotOptions};
use coffer_repo::location::PackKind;
use coffer_repo::pack;
use coffer_repo::reader::{Reader, ReaderOptions};
use coffer_repo::repository::Repository;
use coffer_repo::sealed::ObjectKind;
use coffer_repo::snapshot::{Claim, ClaimKind, ClaimName, Decision, Identity, Snapshot};
use coffer_repo::verify::{DataCheck, Report, VerifyOptions, VerifyProgress, verify};
use coffer_repo::{Kind, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};

fn run(repo: &Arc<Repository>, data: DataCheck) -> Result<Report> {
    verify(
        repo,
        VerifyOptions { data, threads: 3, ..VerifyOptions::default() },
        &VerifyProgress::default(),
        &Cancel::default(),
    )
}

/// Three points of two workloads that share much: trees of three levels, a root that is a leaf, a disk of zeroes.
fn fill(bench: &Bench, repo: &Arc<Repository>) -> Vec<Snapshot> {
    let index = bench.index(repo);
    let mut large = vec![0; 257 << 20];
    large[..400_000].copy_from_slice(&image(1, 400_000));
    large[(256 << 20) + 5000..][..300_000].copy_from_slice(&image(2, 300_000));
    let small = image(3, 40_000);
    let first =
        back_up_as("web", repo, &index, &[("large", &large), ("small", &small), ("zero", &[0; 100_000])], None, 10);
    large[200_000..205_000].fill(7);
    let second = back_up_as("web", repo, &index, &[("large", &large), ("small", &small)], Some(first.clone()), 20);
    let third = back_up_as("db", repo, &index, &[("data", &image(1, 300_000))], None, 30);
    vec![first, second, third]
}

type Hurt = BTreeMap<(SnapshotId, String), Vec<Range<u64>>>;

/// What a reader cannot read, block by block where a window does not read whole.
fn unreadable(repo: &Arc<Repository>, points: &[Snapshot]) -> Hurt {
    let mut hurt = Hurt::new();
    for point in points {
        let reader = Reader::new(Arc::clone(repo), ReaderOptions::default()).unwrap();
        for disk in &point.disks {
            let key = (point.id(), disk.name.clone());
            let Ok(open) = reader.disk(point, &disk.name) else {
                let whole = 0..disk.size;
                hurt.insert(key, vec![whole]);
                continue;
            };
            let mut ranges = Vec::new();
            let read = |range: Range<u64>| {
                let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
                open.read_at(range.start, &mut bytes)
            };
            let parts = |range: Range<u64>, len: usize| {
                range.clone().step_by(len).map(move |at| at..(at + len as u64).min(range.end))
            };
            for window in parts(0..disk.size, 1 << 20).filter(|w| read(w.clone()).is_err()) {
                for block in parts(window, 4096) {
                    if let Err(e) = read(block.clone()) {
                        assert_eq!(e.kind(), Kind::Corrupt, "{e:?}");
                        merge(&mut ranges, block);
                    }
                }
            }
            if !ranges.is_empty() {
                hurt.insert(key, ranges);
            }
        }
    }
    hurt
}

/// What a report says is hurt, whatever object is to blame.
fn reported(report: &Report) -> Hurt {
    let mut blocks: BTreeMap<_, BTreeSet<(u64, u64)>> = BTreeMap::new();
    for harm in report.problems.iter().flat_map(|p| &p.hurts) {
        assert!(harm.ranges.iter().zip(harm.ranges.iter().skip(1)).all(|(a, b)| a.end < b.start), "{harm:?}");
        let of = blocks.entry((harm.snapshot, harm.disk.clone())).or_default();
        of.extend(harm.ranges.iter().map(|r| (r.start, r.end)));
    }
    let merged = |ranges: BTreeSet<(u64, u64)>| {
        ranges.into_iter().fold(Vec::new(), |mut merged, (start, end)| {
            merge(&mut merged, start..end);
            merged
        })
    };
    blocks.into_iter().map(|(key, ranges)| (key, merged(ranges))).collect()
}

fn replace(memory: &Memory, name: &str, bytes: &[u8]) {
    memory.delete(name).unwrap();
    assert_eq!(memory.put(name, &[bytes]).unwrap(), Put::Created);
}

#[test]
fn nothing_is_wrong_with_a_sound_repository() {
    let (bench, repo) = Bench::fine();
    assert_eq!(run(&repo, DataCheck::All).unwrap().problems, []);
    let points = fill(&bench, &repo);
    repo.pin(&points[0], "mount", &Identity::default(), at(40)).unwrap().release(at(41)).unwrap();
    let structure = run(&repo, DataCheck::None).unwrap();
    let packs = |prefix| list_sorted(&*bench.memory, prefix).unwrap().len() as u64;
    assert_eq!(structure.problems, []);
    assert_eq!((structure.points, structure.packs, structure.data_packs), (3, packs("packs/") + packs("trees/"), 0));
    let mut distinct = BTreeMap::new();
    for disk in points.iter().flat_map(|p| &p.disks) {
        for (window, leaf) in leaves(&repo, disk) {
            // Roots are looked at once a point, stored leaves once.
            let root = (repo.geometry().root_level(disk.size) == 0).then_some(disk as *const _);
            distinct.insert(format!("{root:?} {leaf:?}"), (window, leaf));
        }
    }
    assert_eq!(structure.chunks, distinct.values().map(|(_, leaf)| leaf.entries.len() as u64).sum::<u64>());
    let all = run(&repo, DataCheck::All).unwrap();
    assert_eq!((all.problems, all.data_packs), (vec![], packs("packs/")));
    let stored: u64 = list_sorted(&*bench.memory, "packs/").unwrap().iter().map(|o| o.size).sum();
    assert!(all.bytes - structure.bytes <= stored && all.bytes - structure.bytes > stored * 9 / 10);
    for (share, due) in [(1, 1), (50, packs("packs/").div_ceil(2)), (100, packs("packs/"))] {
        let report = run(&repo, DataCheck::Percent(share)).unwrap();
        assert_eq!((report.problems, report.data_packs), (vec![], due), "{share}%");
    }
    for share in [0, 101] {
        assert_eq!(run(&repo, DataCheck::Percent(share)).unwrap_err().kind(), Kind::Invalid);
    }
}

/// Every kind of damage to every kind of object, at places drawn from a seed.
#[test]
fn damage_is_found_and_what_it_hurts_is_exact() {
    let (bench, repo) = Bench::fine();
    let points = fill(&bench, &repo);
    repo.pin(&points[0], "mount", &Identity::default(), at(40)).unwrap().release(at(41)).unwrap();
    let key = coffer_repo::crypto::Secret::random(&*bench.entropy).unwrap();
    let file = Credential::from_key_file(&coffer_repo::key_slot::key_file(&key).unwrap()).unwrap();
    let slot = SlotOptions { label: "w".into(), created: at(2), cost: PassphraseCost::default() };
    repo.export_writer(&file, &slot).unwrap();
    let whole = bench.memory.clone_state();
    let objects = list_sorted(&whole, "").unwrap();
    let mut harmful = 0;
    for seed in 0..120u64 {
        let draws = Seeded::new(seed);
        let draw = |below: u64| u64::from_le_bytes(fresh(&draws).unwrap()) % below;
        let Listed { name, size } = &objects[usize::try_from(seed).unwrap() % objects.len()];
        let memory = Arc::new(whole.clone_state());
        let mut bytes = whole.get(name).unwrap();
        let place = usize::try_from(draw(*size)).unwrap();
        let packs = name.starts_with("packs/") || name.starts_with("trees/");
        let what = match draw(4) {
            0 if packs => {
                memory.delete(name).unwrap();
                "deleted"
            }
            1 => {
                bytes.truncate(place);
                replace(&memory, name, &bytes);
                "truncated"
            }
            2 => {
                let end = (place + 5000).min(bytes.len());
                draws.fill(&mut bytes[place..end]).unwrap();
                replace(&memory, name, &bytes);
                "overwritten"
            }
            _ => {
                bytes[place] ^= 1 << draw(8);
                replace(&memory, name, &bytes);
                "flipped"
            }
        };
        let case = format!("seed {seed}: {name} {what} at {place}");
        let repo = match Repository::open(memory.clone(), &pass("secret"), bench.entropy.clone()) {
            Ok(repo) => Arc::new(repo),
            Err(e) => {
                assert!(name == "repo" || name.starts_with("keys/"), "{case}: {e:?}");
                continue;
            }
        };
        let report = run(&repo, DataCheck::All).unwrap();
        let readable = repo.points().unwrap().snapshots;
        let hurt = unreadable(&repo, &readable);
        assert_eq!(reported(&report), hurt, "{case}\n{report:#?}");
        harmful += usize::from(!hurt.is_empty());
        let named: Vec<&str> = report.problems.iter().map(|p| p.object.as_str()).collect();
        // A node that no map leads to (the leaf that became a root) is read by nobody, and a forgotten pin is on its way out.
        let forgotten = repo.forgotten().unwrap();
        let unused = name.starts_with("trees/") && hurt.is_empty()
            || ClaimName::parse(name).is_some_and(|(claim, _)| forgotten.contains(&claim.id));
        let unused = named.is_empty() && unused;
        assert!(named == [name.as_str()] || unused, "{case}: {named:?}");
    }
    assert!(harmful > 20, "{harmful}");
}

#[test]
fn a_table_of_contents_that_is_lost_hurts_nobody_who_can_look() {
    let (bench, repo) = Bench::fine();
    let points = fill(&bench, &repo);
    let packs = list_sorted(&*bench.memory, "packs/").unwrap();
    for Listed { name, size } in &packs {
        let mut bytes = bench.memory.get(name).unwrap();
        bytes[usize::try_from(*size).unwrap() - 100] ^= 1;
        replace(&bench.memory, name, &bytes);
    }
    let report = run(&repo, DataCheck::None).unwrap();
    assert_eq!(report.problems.len(), packs.len());
    assert!(report.problems.iter().all(|p| p.kind == Kind::Corrupt && p.hurts.is_empty()), "{report:#?}");
    assert_eq!(unreadable(&repo, &points), Hurt::new());
}

#[test]
fn a_leaf_that_leads_to_the_wrong_place_is_found() {
    let (bench, repo) = Bench::fine();
    let index = bench.index(&repo);
    let bytes = image(3, 50_000);
    let point = back_up(&repo, &index, &[("d", &bytes)], None, 10);
    let mut disks = point.disks.clone();
    let Node::Leaf(mut leaf) = Node::decode(&disks[0].root, repo.geometry().window).unwrap() else { panic!() };
    let LeafContent::Chunk { hint, .. } = &mut leaf.entries[1].content else { panic!() };
    hint.offset += 1;
    let (pack, entry) = (hint.pack, leaf.entries[1]);
    disks[0].root = Node::Leaf(leaf).encode().unwrap();
    let claim = Claim {
        kind: ClaimKind::Snapshot { disks, stats: point.stats },
        time: at(20),
        workload: "web".into(),
        tags: vec![],
        identity: Identity::default(),
        parents: vec![],
        copied: None,
        extra: coffer_repo::cbor::Map::new(),
    };
    let name = ClaimName { id: SnapshotId([9; 16]), time: at(20), ..point.name };
    assert_eq!(repo.put_record(ObjectKind::Claim, &name.claim(), &claim.encode().unwrap()).unwrap(), Put::Created);
    assert_eq!(repo.decide(name, Decision::Commit).unwrap(), Some(Decision::Commit));
    for data in [DataCheck::None, DataCheck::All] {
        let report = run(&repo, data).unwrap();
        let [problem] = &report.problems[..] else { panic!("{report:#?}") };
        assert_eq!(problem.object, pack::name(PackKind::Data, pack));
        let [harm] = &problem.hurts[..] else { panic!("{report:#?}") };
        assert_eq!((harm.snapshot, harm.disk.as_str(), harm.workload.as_str()), (name.id, "d", "web"));
        let due = entry.start_bytes()..entry.end_bytes().min(bytes.len() as u64);
        assert_eq!(harm.ranges, [due]);
        assert_eq!(reported(&report), unreadable(&repo, &repo.points().unwrap().snapshots));
    }
}

#[test]
fn a_claim_that_is_gone_and_a_stranger_are_named() {
    let (bench, repo) = Bench::fine();
    let points = fill(&bench, &repo);
    bench.memory.delete(&points[1].name.claim()).unwrap();
    assert_eq!(bench.memory.put("forgets/none", &[b"x"]).unwrap(), Put::Created);
    let report = run(&repo, DataCheck::All).unwrap();
    let named: Vec<_> = report.problems.iter().map(|p| (p.object.clone(), p.kind)).collect();
    assert_eq!(named, [("forgets/none".to_owned(), Kind::Unsupported), (points[1].name.claim(), Kind::Corrupt)]);
    assert_eq!(report.points, 2);
}

#[test]
fn a_writers_key_verifies_structure_only() {
    let (bench, repo) = Bench::fine();
    fill(&bench, &repo);
    let key = coffer_repo::crypto::Secret::random(&*bench.entropy).unwrap();
    let file = Credential::from_key_file(&coffer_repo::key_slot::key_file(&key).unwrap()).unwrap();
    let slot = SlotOptions { label: "w".into(), created: at(2), cost: PassphraseCost::default() };
    repo.export_writer(&file, &slot).unwrap();
    let writer = bench.open(&file).unwrap();
    back_up_as("w", &writer, &bench.index(&writer), &[("d", &image(9, 100_000))], None, 50);
    assert_eq!(run(&writer, DataCheck::None).unwrap().problems, []);
    for data in [DataCheck::All, DataCheck::Percent(5)] {
        let refused = run(&writer, data).unwrap_err();
        assert_eq!(refused.kind(), Kind::WrongKey);
        assert!(refused.context().contains("verify data"), "{refused}");
    }
    let full = bench.open(&pass("secret")).unwrap();
    assert_eq!(run(&full, DataCheck::All).unwrap().problems, []);
}

/// One damaged certificate takes down what its own writer signed, and nothing else.
#[test]
fn a_damaged_certificate_hurts_its_own_writer_only() {
    let (bench, repo) = Bench::fine();
    let mut points = Vec::new();
    for (i, label) in ["one", "two"].into_iter().enumerate() {
        let key = coffer_repo::crypto::Secret::random(&*bench.entropy).unwrap();
        let file = Credential::from_key_file(&coffer_repo::key_slot::key_file(&key).unwrap()).unwrap();
        let slot = SlotOptions { label: label.into(), created: at(2), cost: PassphraseCost::default() };
        repo.export_writer(&file, &slot).unwrap();
        let writer = bench.open(&file).unwrap();
        let index = bench.index(&writer);
        let now = 10 + i as u64;
        points.push((
            writer.keys().signer().id(),
            back_up_as(label, &writer, &index, &[("d", &image(now, 90_000))], None, now),
        ));
    }
    let damaged = format!("writers/{}", points[0].0);
    replace(&bench.memory, &damaged, b"rubbish");
    let full = bench.open(&pass("secret")).unwrap();
    let seen = full.points().unwrap();
    assert_eq!(seen.snapshots, [points[1].1.clone()]);
    assert_eq!(seen.damaged.iter().map(|(name, _)| *name).collect::<Vec<_>>(), [points[0].1.name]);
    assert_eq!(unreadable(&full, &seen.snapshots), Hurt::new());
    let report = run(&full, DataCheck::All).unwrap();
    let named: BTreeSet<_> = report.problems.iter().map(|p| p.object.clone()).collect();
    assert!(named.contains(&damaged) && named.contains(&points[0].1.name.claim()), "{named:#?}");
    assert!(named.iter().all(|n| !n.starts_with(&points[1].1.name.to_string())), "{named:#?}");
}

type Act = Box<dyn FnOnce(&Memory) + Send>;

/// Acts once, when a pack's table of contents is first read.
struct Meanwhile {
    inner: Arc<Memory>,
    act: Mutex<Option<Act>>,
}

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl Backend for Meanwhile {
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
        self.inner.get_range(name, offset, out)
    }
    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        if let Some(act) = self.act.lock().unwrap().take() {
            act(&self.inner);
        }
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

#[test]
fn what_is_forgotten_and_removed_meanwhile_is_no_damage() {
    for forget in [true, false] {
        let (bench, repo) = Bench::fine();
        let points = fill(&bench, &repo);
        let act = {
            let (repo, points) = (Arc::clone(&repo), points.clone());
            move |memory: &Memory| {
                for point in &points {
                    if forget {
                        repo.forget(point.name, at(60)).unwrap();
                    }
                }
                // Nodes that were walked before they went were sound then, so only of data packs, none of whose tables was
                // read yet, is it certain what is found.
                let prefixes: &[&str] = if forget { &["packs/", "trees/"] } else { &["packs/"] };
                for object in prefixes.iter().flat_map(|prefix| list_sorted(memory, prefix).unwrap()) {
                    memory.delete(&object.name).unwrap();
                }
            }
        };
        let store = Meanwhile { inner: bench.memory.clone(), act: Mutex::new(Some(Box::new(act))) };
        let watched = Repository::open(Arc::new(store), &pass("secret"), bench.entropy.clone()).unwrap();
        let report = run(&Arc::new(watched), DataCheck::All).unwrap();
        if forget {
            assert_eq!(report.problems, []);
        } else {
            assert_eq!(reported(&report), unreadable(&repo, &points));
            assert!(report.problems.iter().all(|p| !p.hurts.is_empty()));
        }
        let folders = repo.folders().unwrap();
        assert_eq!(folders.forgotten.len(), if forget { 3 } else { 0 });
    }
}

#[test]
fn a_request_to_stop_is_honoured() {
    let (bench, repo) = Bench::fine();
    fill(&bench, &repo);
    let cancel = Cancel::default();
    cancel.cancel();
    let stopped = verify(&repo, VerifyOptions::default(), &VerifyProgress::default(), &cancel).unwrap_err();
    assert_eq!(stopped.kind(), Kind::Cancelled);
}
