//! Locks against removal: what points need stays, whoever attacks the store; audits find what is not locked; gc lets locked space wait.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;

use bench::{Bench, Image, at, image, pass, read_all};
use coffer_repo::backend::lock::ObjectLock;
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::vault::Vault;
use coffer_repo::backend::{Backend, Listed, Put};
use coffer_repo::cancel::Cancel;
use coffer_repo::chunker::DiskParams;
use coffer_repo::collector::{CollectOptions, CollectProgress, CollectReport, collect};
use coffer_repo::entropy::{Entropy, Seeded};
use coffer_repo::index::{Index, IndexOptions};
use coffer_repo::lock_for::LockFor;
use coffer_repo::locks::{LockOptions, LockReport, audit, extend, reveal};
use coffer_repo::repository::{InitOptions, Repository};
use coffer_repo::snapshot::{Identity, Snapshot};
use coffer_repo::writer::{DiskSpec, Writer, WriterOptions};
use coffer_repo::{Kind, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// When it all begins.
const BEGIN: u64 = 1_000_000;

/// A repository in a vault, and a clock that both go by.
struct Scene {
    vault: Arc<Vault>,
    repo: Arc<Repository>,
    dir: tempfile::TempDir,
    index: Arc<Index>,
    now: u64,
}

fn fine() -> InitOptions {
    let disk = DiskParams { min: 8 << 10, mean: 16 << 10, max: 32 << 10, window: 1 << 20, ..DiskParams::default() };
    InitOptions { disk, ..Bench::options() }
}

fn entropy(seed: u64) -> Arc<dyn Entropy> {
    Arc::new(Seeded::new(seed))
}

fn term(seconds: u64) -> Option<LockFor> {
    Some(LockFor::from_seconds(seconds).unwrap())
}

impl Scene {
    fn new(seed: u64) -> Scene {
        let vault = Arc::new(Vault::new(at(BEGIN)));
        let repo = Arc::new(Repository::init(vault.clone(), fine(), entropy(seed)).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("index"), repo.keys().repo(), IndexOptions::default()).unwrap();
        Scene { vault, repo, dir, index: Arc::new(index), now: BEGIN }
    }

    fn pass_time(&mut self, seconds: u64) {
        self.now += seconds;
        self.vault.set_clock(at(self.now));
    }

    fn back_up(
        &self,
        workload: &str,
        bytes: &[u8],
        parent: Option<Snapshot>,
        lock_for: Option<LockFor>,
    ) -> Result<Snapshot> {
        let (backend, keys) = (self.repo.backend(), self.repo.keys());
        let certificates = self.repo.all_certificates()?;
        self.index.sync(backend, keys, &certificates, &mut |_, _| Ok(()))?;
        let options = WriterOptions { workers: 2, pack_bytes: 300 << 10, lock_for, ..WriterOptions::default() };
        let (identity, time) = (Identity::default(), at(self.now));
        let mut writer = Writer::begin(&self.repo, &self.index, workload, parent, identity, options, time)?;
        let window = self.repo.geometry().window;
        let source = Image { bytes, window, next: AtomicU64::new(0), tells_holes: false };
        let spec = DiskSpec { name: "d".into(), block_size: 512, platform: None };
        writer.disk(spec, &source, &Cancel::default())?;
        writer.commit(Vec::new())
    }

    fn gc_at(&self, clock: u64) -> CollectReport {
        let mut options = CollectOptions::new(self.dir.path().to_owned(), Identity::default(), at(clock));
        (options.pack_bytes, options.memory, options.repack_below, options.threads) = (300 << 10, 1 << 20, 90, 2);
        let report = collect(&self.repo, &options, &CollectProgress::default(), &Cancel::default()).unwrap();
        assert!(report.unwalkable.is_empty() && report.damaged.is_empty() && report.lost == 0, "{report:?}");
        report
    }

    fn gc(&self) -> CollectReport {
        self.gc_at(self.now)
    }

    fn options(&self) -> LockOptions {
        LockOptions { threads: 2, now: at(self.now) }
    }

    fn audit(&self) -> LockReport {
        audit(&self.repo, self.options(), &Cancel::default()).unwrap()
    }

    fn extend(&self) -> LockReport {
        extend(&self.repo, self.options(), &Cancel::default()).unwrap()
    }

    fn forget(&self, point: &Snapshot) {
        self.repo.forget(point.name, at(self.now)).unwrap();
    }

    /// The repository after somebody removed all that the store lets anybody remove, and hid the rest; and after that was revealed.
    fn survivors(&self, seed: u64) -> Arc<Repository> {
        let vault = Arc::new(self.vault.clone_state());
        vault.attack();
        assert_eq!(vault.size("repo").unwrap(), None, "all is hidden");
        let mut hidden = Vec::new();
        vault
            .each_hidden("", &mut |object| {
                hidden.push(object.name);
                Ok(())
            })
            .unwrap();
        for name in hidden {
            vault.reveal(&name).unwrap();
        }
        Arc::new(Repository::open(vault, &pass("secret"), entropy(seed)).unwrap())
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        self.vault.names().into_iter().filter(|name| name.starts_with(prefix)).collect()
    }
}

/// The same bytes with noise in a place of its own.
fn changed(bytes: &[u8], seed: u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let start = usize::try_from(seed * 77_777).unwrap() % (bytes.len() - (200 << 10));
    bytes[start..start + (150 << 10)].copy_from_slice(&image(seed, 150 << 10));
    bytes
}

/// A few numbers drawn one after another.
struct Dice(Seeded);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes).unwrap();
        u64::from_le_bytes(bytes) % n
    }
}

/// A long life: points are made with locks and without, on each other, forgotten and collected, locks are raised or not. Whatever
/// happens, an attacker takes nothing that a point needs whose own term is not over, be it forgotten, and what is kept and raised in
/// time is never unlocked.
#[test]
fn nothing_that_a_point_needs_goes_before_its_date() {
    for seed in [1, 2, 3] {
        let mut scene = Scene::new(seed);
        let mut dice = Dice(Seeded::new(1000 + seed));
        let mut disks = [image(10 + seed, 2 << 20), image(20 + seed, 1 << 20)];
        // With bytes, and until when at least everything is locked.
        let mut points: Vec<(Snapshot, Vec<u8>, Option<u64>)> = Vec::new();
        let mut kept: Vec<Snapshot> = Vec::new();
        for step in 0..60 {
            match dice.below(9) {
                0..=3 => {
                    let machine = usize::try_from(dice.below(2)).unwrap();
                    disks[machine] = changed(&disks[machine], seed * 1000 + step);
                    let workload = ["web", "db"][machine];
                    let lock_for = [None, term(1000), term(5000)][usize::try_from(dice.below(3)).unwrap()];
                    let parent = kept.iter().rfind(|point| point.workload == workload && dice.below(4) > 0).cloned();
                    let point = scene.back_up(workload, &disks[machine], parent, lock_for).unwrap();
                    let until = lock_for.map(|term| scene.now + term.seconds());
                    points.push((point.clone(), disks[machine].clone(), until));
                    kept.push(point);
                }
                4 | 5 if kept.len() > 2 => {
                    let gone = kept.remove(usize::try_from(dice.below(kept.len() as u64)).unwrap());
                    scene.forget(&gone);
                }
                6 => drop(scene.gc()),
                7 => {
                    scene.extend();
                    assert!(scene.audit().is_clean(), "seed {seed}, step {step}: {:?}", scene.audit());
                    for point in kept.iter().filter(|point| point.lock_for.is_some()) {
                        let until = scene.now + point.lock_for.unwrap().seconds() / 2;
                        let entry = points.iter_mut().find(|(other, ..)| other.id() == point.id()).unwrap();
                        entry.2 = entry.2.max(Some(until));
                    }
                }
                _ => scene.pass_time(dice.below(1500)),
            }
            if !points.iter().any(|(.., until)| until.is_some_and(|until| until > scene.now)) {
                continue;
            }
            let survivors = scene.survivors(seed * 10_000 + step);
            for (point, bytes, until) in &points {
                if until.is_some_and(|until| until > scene.now) {
                    let found =
                        survivors.points().unwrap().snapshots.into_iter().find(|other| other.id() == point.id());
                    let found = found.unwrap_or_else(|| panic!("seed {seed}, step {step}: a point is gone"));
                    assert!(read_all(&survivors, &found, "d").unwrap() == *bytes, "seed {seed}, step {step}");
                }
            }
        }
        assert!(points.iter().filter(|(.., until)| until.is_some()).count() > 3, "seed {seed} locks next to nothing");
        // All locks end, and all space becomes free.
        scene.pass_time(100_000);
        kept.iter().for_each(|point| scene.forget(point));
        scene.gc();
        let report = scene.gc();
        assert_eq!(report.waiting.objects, 0);
        assert_eq!((scene.names("packs/"), scene.names("trees/")), (vec![], vec![]), "seed {seed}");
        assert_eq!((scene.names("snapshots/"), scene.names("forgets/")), (vec![], vec![]), "seed {seed}");
    }
}

#[test]
fn an_audit_names_every_object_that_lost_its_lock_and_what_is_hidden() {
    let scene = Scene::new(1);
    let first = image(1, 2 << 20);
    let plain = scene.back_up("web", &first, None, None).unwrap();
    // Moved away from where the point's maps look for them.
    let other = scene.back_up("other", &image(2, 1 << 20), None, None).unwrap();
    let second = changed(&first, 3);
    scene.back_up("web", &second, Some(plain.clone()), term(1000)).unwrap();
    scene.forget(&other);
    assert!(scene.audit().is_clean(), "{:?}", scene.audit());
    let needed: Vec<String> =
        scene.vault.names().into_iter().filter(|name| matches!(scene.vault.locked_until(name), Ok(Some(_)))).collect();
    for prefix in ["repo", "keys/", "packs/", "trees/", "snapshots/"] {
        assert!(needed.iter().any(|name| name.starts_with(prefix)), "{prefix}");
    }
    assert_eq!(needed.len() as u64, scene.audit().objects);
    for name in &needed {
        scene.vault.unlock(name);
        let report = scene.audit();
        let named: Vec<&str> = report.named.iter().map(|short| short.name.as_str()).collect();
        assert_eq!((report.short, named), (1, vec![name.as_str()]));
        assert_eq!(scene.extend().short, 1);
        scene.vault.hide(name);
        let report = scene.audit();
        assert!(report.hidden.iter().any(|hidden| hidden.name == *name) && !report.is_clean(), "{name}");
        scene.vault.reveal(name).unwrap();
        assert!(scene.audit().is_clean(), "{name}: {:?}", scene.audit());
    }
    scene.vault.hide("repo");
    scene.vault.replace(&needed[0], b"theirs");
    assert_eq!(scene.audit().hidden_count, 2);
    let (revealed, failed) = reveal(&scene.repo, &Cancel::default()).unwrap();
    assert_eq!((revealed, failed.len(), scene.audit().is_clean()), (2, 0, true));
    // What is gone altogether.
    let pack = needed.iter().find(|name| name.starts_with("packs/")).unwrap();
    scene.vault.unlock(pack);
    scene.vault.delete(pack).unwrap();
    assert_eq!(scene.audit().missing, std::slice::from_ref(pack));
}

/// The longest lock of any point that needs something holds, whichever came first, and only the points that are kept raise it.
#[test]
fn a_lock_is_as_long_as_the_longest_that_asks() {
    let mut scene = Scene::new(1);
    let bytes = image(1, 1 << 20);
    let long = scene.back_up("web", &bytes, None, term(8000)).unwrap();
    let pack = scene.names("packs/").remove(0);
    let until = |scene: &Scene| scene.vault.locked_until(&pack).unwrap().unwrap().seconds();
    assert_eq!(until(&scene), BEGIN + 8000);
    scene.pass_time(10);
    scene.back_up("web", &bytes, Some(long.clone()), term(800)).unwrap();
    assert_eq!(until(&scene), BEGIN + 8000);
    scene.pass_time(3000);
    assert!(scene.extend().short > 0, "the short one's own claim has less than half of its term left");
    assert_eq!(until(&scene), BEGIN + 8000, "more than half of the long one's is left");
    scene.pass_time(2000);
    scene.extend();
    assert!((BEGIN + 13_000..BEGIN + 14_100).contains(&until(&scene)), "{}", until(&scene) - BEGIN);
    let before = until(&scene);
    scene.forget(&long);
    scene.pass_time(7000);
    scene.extend();
    assert_eq!(until(&scene), before.max(scene.now + 800), "only the short one raises it now");
}

#[test]
fn gc_leaves_locked_packs_alone_and_says_what_waits() {
    let mut scene = Scene::new(1);
    let locked = scene.back_up("web", &image(1, 2 << 20), None, term(1000)).unwrap();
    let plain = scene.back_up("db", &image(2, 1 << 20), None, None).unwrap();
    let packs = |scene: &Scene| scene.names("packs/").len() + scene.names("trees/").len();
    let before = packs(&scene);
    scene.forget(&locked);
    scene.forget(&plain);
    let report = scene.gc();
    assert!(report.removed.packs > 0 && packs(&scene) < before);
    assert!(report.waiting.bytes > 256 << 10, "{:?}", report.waiting);
    assert_eq!((report.waiting.first, report.waiting.last), (Some(at(BEGIN + 1000)), Some(at(BEGIN + 1000))));
    // Its claim, its decision, and so its forget: tombstones outlive what they entomb.
    assert_eq!((scene.names("snapshots/").len(), scene.names("forgets/").len()), (2, 1));
    assert!(scene.names("condemned/").is_empty(), "what is left alone is not condemned");
    // What waits can be used again.
    let again = scene.back_up("web", &image(1, 2 << 20), None, None).unwrap();
    assert_eq!(again.stats.new_chunks, 0);
    scene.forget(&again);
    scene.pass_time(1000);
    let report = scene.gc();
    assert_eq!((report.waiting.objects, packs(&scene)), (0, 0));
    scene.gc();
    assert!(scene.names("snapshots/").is_empty() && scene.names("forgets/").is_empty());
}

/// The store's clock decides, and not a collector's that runs ahead.
#[test]
fn a_wrong_clock_of_a_collector_removes_nothing() {
    let scene = Scene::new(1);
    let bytes = image(1, 2 << 20);
    let first = scene.back_up("web", &bytes, None, term(1000)).unwrap();
    let second = scene.back_up("web", &changed(&bytes, 9), Some(first.clone()), term(1000)).unwrap();
    scene.forget(&first);
    for _ in 0..2 {
        let report = scene.gc_at(scene.now + 50_000);
        assert!(report.waiting.objects > 0 && report.removed.packs == 0 && report.copied == 0, "{report:?}");
    }
    assert!(read_all(&scene.repo, &second, "d").unwrap() == changed(&bytes, 9));
    assert!(scene.audit().is_clean(), "{:?}", scene.audit());
}

/// A vault in which somebody locks every pack in the moment in which any is condemned.
#[derive(Debug)]
struct Late {
    vault: Arc<Vault>,
    until: AtomicU64,
}

impl Backend for Late {
    fn location(&self) -> String {
        self.vault.location()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        let until = self.until.load(Ordering::Relaxed);
        if name.starts_with("condemned/") && until > 0 {
            let names = self.vault.names().into_iter();
            for name in names.filter(|name| name.starts_with("packs/") || name.starts_with("trees/")) {
                self.vault.lock(&name, at(until))?;
            }
        }
        self.vault.put(name, parts)
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.vault.get(name)
    }

    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        self.vault.get_range(name, offset, out)
    }

    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        self.vault.get_suffix(name, max)
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        self.vault.size(name)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        self.vault.list(prefix, each)
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.vault.delete(name)
    }

    fn object_lock(&self) -> Option<&dyn ObjectLock> {
        self.vault.object_lock()
    }
}

/// What a collector is about to remove is locked under its hands: the store refuses, nothing goes wrong, and it goes later.
#[test]
fn a_lock_that_comes_late_is_no_failure() {
    let mut scene = Scene::new(1);
    let bytes = image(1, 2 << 20);
    let first = scene.back_up("web", &bytes, None, None).unwrap();
    let second = scene.back_up("web", &changed(&bytes, 9), Some(first.clone()), None).unwrap();
    let alone = scene.back_up("db", &image(4, 1 << 20), None, None).unwrap();
    let late = Arc::new(Late { vault: scene.vault.clone(), until: AtomicU64::new(BEGIN + 500) });
    scene.repo = Arc::new(Repository::open(late.clone(), &pass("secret"), entropy(77)).unwrap());
    scene.forget(&first);
    scene.forget(&alone);
    let report = scene.gc();
    assert!(report.waiting.bytes > 0 && report.removed.packs == 0, "{report:?}");
    assert_eq!(report.waiting.last, Some(at(BEGIN + 500)));
    late.until.store(0, Ordering::Relaxed);
    // Condemned and locked: left alone, and nobody comes to rely on it.
    let report = scene.gc();
    assert!(report.waiting.bytes > 0, "{report:?}");
    let again = scene.back_up("db", &image(4, 1 << 20), None, None).unwrap();
    assert!(again.stats.new_chunks > 0);
    assert!(read_all(&scene.repo, &second, "d").unwrap() == changed(&bytes, 9));
    scene.pass_time(500);
    [scene.gc(), scene.gc()].iter().for_each(|report| assert_eq!(report.waiting.objects, 0));
    assert!(read_all(&scene.repo, &second, "d").unwrap() == changed(&bytes, 9));
    assert!(read_all(&scene.repo, &again, "d").unwrap() == image(4, 1 << 20));
    scene.forget(&second);
    scene.forget(&again);
    scene.gc();
    scene.gc();
    assert_eq!((scene.names("packs/"), scene.names("snapshots/"), scene.names("condemned/")), (vec![], vec![], vec![]));
}

#[test]
fn a_backup_that_cannot_be_locked_is_none() {
    // The store's clock is far ahead.
    let scene = Scene::new(1);
    scene.vault.set_clock(at(BEGIN + 5000));
    let error = scene.back_up("web", &image(1, 1 << 20), None, term(1000)).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("not committed"), "{error}");
    assert!(scene.repo.points().unwrap().snapshots.is_empty());
    // No locks at all: known before anything is read.
    let memory = Arc::new(Memory::default());
    let repo = Arc::new(Repository::init(memory.clone(), fine(), entropy(5)).unwrap());
    let index = Index::open(&scene.dir.path().join("other"), repo.keys().repo(), IndexOptions::default()).unwrap();
    let options = WriterOptions { lock_for: term(1000), ..WriterOptions::default() };
    let begun = Writer::begin(&repo, &Arc::new(index), "web", None, Identity::default(), options, at(BEGIN));
    assert_eq!(begun.err().unwrap().kind(), Kind::Unsupported);
    assert_eq!(audit(&repo, LockOptions::new(at(BEGIN)), &Cancel::default()).unwrap_err().kind(), Kind::Unsupported);
}
