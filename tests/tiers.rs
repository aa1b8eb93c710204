//! Cold tiers: old packs lie elsewhere, and every point reads as before; whatever is interrupted, nothing is lost; collectors read nothing
//! there.
//!
//! Not here: the command (`tools/tests/command/tiers.rs`), the store with its tiers alone (`repo/src/backend/tiered.rs`). What holds: a seed
//! that fails prints itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "seeds are told, so that a failure can be repeated")]

use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::vault::Vault;
use coffer_repo::backend::{Backend, Listed, Put, list_sorted};
use coffer_repo::cancel::Cancel;
use coffer_repo::collector::{CollectOptions, CollectReport};
use coffer_repo::entropy::Seeded;
use coffer_repo::index::{Index, IndexOptions};
use coffer_repo::key_slot::Credential;
use coffer_repo::lock_for::LockFor;
use coffer_repo::locks::{self, LockOptions};
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::Snapshot;
use coffer_repo::tier::{Tier, TierName};
use coffer_repo::tiers::{self, OpenTier, TransferOptions, TransferProgress, TransferReport};
use coffer_repo::verify::{DataCheck, VerifyOptions, VerifyProgress, verify};
use coffer_repo::{Error, Kind, Result};
use coffer_tests::below::Below;
use coffer_tests::dice::Dice;
use coffer_tests::disk::DiskContent;
use coffer_tests::rig::{
    Job, at, collect, collecting, init, init_fine, learn, learn_packs, open_index, passphrase, read_disk, slot,
};
use coffer_tests::simulation::{ActorStore, Lens, Simulation, Weather};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// When packs are moved and garbage is collected: long after the points.
const NOW: u64 = 1_000_000;
/// Storms.
const SEEDS: u64 = 150;

/// Stores of tiers, by their URLs.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<BTreeMap<String, Arc<dyn Backend>>>>);

impl Shelf {
    fn set(&self, url: &str, store: Arc<dyn Backend>) {
        self.0.lock().unwrap().insert(url.to_owned(), store);
    }

    fn take_away(&self, url: &str) -> Arc<dyn Backend> {
        self.0.lock().unwrap().remove(url).unwrap()
    }

    fn get(&self, url: &str) -> Result<Arc<dyn Backend>> {
        let store = self.0.lock().unwrap().get(url).map(Arc::clone);
        store.ok_or_else(|| Error::not_found(format!("{url}: no such folder")))
    }

    fn opener(&self) -> OpenTier {
        let shelf = self.clone();
        Arc::new(move |_, tier| shelf.get(&tier.url))
    }

    fn open(&self, home: Arc<dyn Backend>, seed: u64) -> Result<Arc<Repository>> {
        let repo = Repository::open(home, &passphrase(), Arc::new(Seeded::new(seed)))?;
        Ok(Arc::new(repo.with_tiers(self.opener())?))
    }
}

/// A store from which nothing is read: its objects would have to be thawed.
#[derive(Debug)]
struct Frozen<S>(S, AtomicBool);

impl<S: Backend> Frozen<S> {
    fn new(store: S) -> Arc<Self> {
        Arc::new(Frozen(store, AtomicBool::new(false)))
    }

    fn freeze(&self) {
        self.1.store(true, Ordering::SeqCst);
    }

    fn check(&self, name: &str) -> Result<()> {
        match self.1.load(Ordering::SeqCst) {
            true => Err(Error::new(Kind::Unavailable, format!("'{name}' is frozen"))),
            false => Ok(()),
        }
    }
}

impl<S: Backend> Backend for Frozen<S> {
    fn location(&self) -> String {
        self.0.location()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        self.0.put(name, parts)
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.check(name).and_then(|()| self.0.get(name))
    }

    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check(name).and_then(|()| self.0.get_range(name, offset, out))
    }

    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        self.check(name).and_then(|()| self.0.get_suffix(name, max))
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        self.0.size(name)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        self.0.list(prefix, each)
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.0.delete(name)
    }
}

fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Dice::new(seed).noise(&mut bytes);
    bytes
}

fn name() -> TierName {
    "cold".parse().unwrap()
}

fn tier(url: &str) -> Tier {
    Tier { url: url.to_owned(), options: Vec::new(), added: at(5) }
}

fn options() -> TransferOptions {
    TransferOptions { threads: 1, ..TransferOptions::new(at(NOW)) }
}

fn move_old(repo: &Arc<Repository>, before: u64, options: &TransferOptions) -> Result<TransferReport> {
    tiers::move_old(repo, &name(), at(before), options, &TransferProgress::default(), &Cancel::default())
}

fn recall(repo: &Arc<Repository>) -> Result<TransferReport> {
    recall_by(repo, &options())
}

fn recall_by(repo: &Arc<Repository>, options: &TransferOptions) -> Result<TransferReport> {
    tiers::recall(repo, &name(), options, &TransferProgress::default(), &Cancel::default())
}

fn packs(store: &dyn Backend) -> BTreeSet<String> {
    list_sorted(store, "packs/").unwrap().into_iter().map(|object| object.name).collect()
}

/// A repository whose tier `cold` is another store, with an old point and one that changed half of it.
struct Place {
    home: Arc<dyn Backend>,
    cold: Arc<dyn Backend>,
    shelf: Shelf,
    repo: Arc<Repository>,
    index: Arc<Index>,
    old: Snapshot,
    young: Snapshot,
    contents: [Vec<u8>; 2],
    folder: TempDir,
}

impl Place {
    fn new(home: Arc<dyn Backend>, cold: Arc<dyn Backend>) -> Place {
        Self::locked(home, cold, None)
    }

    fn locked(home: Arc<dyn Backend>, cold: Arc<dyn Backend>, lock_for: Option<LockFor>) -> Place {
        let shelf = Shelf::default();
        shelf.set("/cold", Arc::clone(&cold));
        init(Arc::clone(&home), 1).unwrap();
        let repo = shelf.open(Arc::clone(&home), 2).unwrap();
        let folder = scratch();
        let index = open_index(&repo, &folder.path().join("index")).unwrap();
        let first = noise(3, 3 << 20);
        let mut second = first.clone();
        second[..2 << 20].copy_from_slice(&noise(4, 2 << 20));
        let back_up = |time: u64, bytes: &[u8], parent: Option<Snapshot>| {
            let content: DiskContent = bytes.to_vec().into();
            let mut job = Job::new("web", time, vec![("d", &content)]).on(parent);
            job.options.lock_for = lock_for;
            job.run(&repo, &index).unwrap()
        };
        let old = back_up(10, &first, None);
        let young = back_up(1000, &second, Some(old.clone()));
        tiers::add(&repo, &name(), &tier("/cold"), &*cold).unwrap();
        Place { home, cold, shelf, repo, index, old, young, contents: [first, second], folder }
    }

    fn memories() -> Place {
        Place::new(Arc::new(Memory::default()), Arc::new(Memory::default()))
    }

    fn collecting(&self) -> CollectOptions {
        CollectOptions { repack_below: 99, ..collecting(self.folder.path(), NOW) }
    }

    fn collect(&self) -> Result<CollectReport> {
        collect(&self.repo, &self.collecting())
    }

    fn assert_reads(&self, repo: &Arc<Repository>) {
        assert_eq!(read_disk(repo, &self.old, "d").unwrap(), self.contents[0]);
        assert_eq!(read_disk(repo, &self.young, "d").unwrap(), self.contents[1]);
    }
}

fn assert_sound(repo: &Arc<Repository>) {
    let options = VerifyOptions { data: DataCheck::All, threads: 2, ..VerifyOptions::default() };
    let report = verify(repo, options, &VerifyProgress::default(), &Cancel::default()).unwrap();
    assert_eq!(report.problems, []);
}

#[test]
fn what_only_old_points_need_moves_and_comes_back() {
    let place = Place::memories();
    let Place { home, cold, repo, .. } = &place;
    let all = packs(&**home);
    let dry = move_old(repo, 500, &TransferOptions { dry_run: true, ..options() }).unwrap();
    assert_eq!((packs(&**home), packs(&**cold).len()), (all.clone(), 0));
    let moved = move_old(repo, 500, &options()).unwrap();
    assert_eq!((dry.due, moved.moved.packs > 2, dry.due), (moved.due, true, moved.moved));
    assert!(!packs(&**home).is_empty() && packs(&**home).is_disjoint(&packs(&**cold)));
    assert_eq!(&packs(&**home) | &packs(&**cold), all);
    assert_eq!(packs(repo.backend()), all);
    assert_eq!(tiers::stock(repo, &name()).unwrap(), moved.moved);
    place.assert_reads(repo);
    place.assert_reads(&place.shelf.open(Arc::clone(home), 9).unwrap());
    assert_sound(repo);
    // Only the old point reads there.
    let away = place.shelf.take_away("/cold");
    let elsewhere = place.shelf.open(Arc::clone(home), 10).unwrap();
    assert_eq!(read_disk(&elsewhere, &place.young, "d").unwrap(), place.contents[1]);
    let e = read_disk(&elsewhere, &place.old, "d").unwrap_err();
    assert!(e.kind() == Kind::Unavailable && e.to_string().contains("'cold'"), "{e}");
    place.shelf.set("/cold", away);
    assert_eq!(move_old(repo, 500, &options()).unwrap().due.packs, 0);
    // Everything, and back.
    assert!(move_old(repo, 1000, &options()).unwrap().moved.packs > 0);
    assert_eq!((packs(&**home).len(), packs(&**cold)), (0, all.clone()));
    place.assert_reads(repo);
    assert_eq!(recall(repo).unwrap().moved.packs, all.len() as u64);
    assert_eq!((packs(&**home), packs(&**cold).len()), (all, 0));
    place.assert_reads(repo);
}

#[test]
fn an_index_learns_cold_packs_and_a_backup_relies_on_them() {
    let place = Place::memories();
    move_old(&place.repo, 1000, &options()).unwrap();
    let index = open_index(&place.repo, &place.folder.path().join("other")).unwrap();
    learn_packs(&place.repo, &index).unwrap();
    let content: DiskContent = place.contents[0].clone().into();
    let again = Job::new("db", 2000, vec![("d", &content)]).run(&place.repo, &index).unwrap();
    assert_eq!(again.stats.new_chunks, 0);
    assert_eq!(packs(&*place.home).len(), 0);
    assert_eq!(read_disk(&place.repo, &again, "d").unwrap(), place.contents[0]);
    // What the new point needs is recent, and stays where it is for all that.
    assert_eq!(move_old(&place.repo, 1500, &options()).unwrap().due.packs, 0);
}

#[test]
fn a_damaged_pack_stays() {
    let place = Place::memories();
    let whole = packs(&*place.home);
    let damaged = whole.iter().find(|name| place.home.size(name).unwrap() > Some(100_000)).unwrap();
    let mut bytes = place.home.get(damaged).unwrap();
    bytes[50_000] ^= 1;
    place.home.delete(damaged).unwrap();
    assert_eq!(place.home.put(damaged, &[&bytes]).unwrap(), Put::Created);
    let report = move_old(&place.repo, 1000, &options()).unwrap();
    let [(uid, error)] = report.damaged.as_slice() else { panic!("{report:?}") };
    assert!(damaged.ends_with(&uid.to_string()) && error.kind() == Kind::Corrupt, "{error}");
    assert_eq!(packs(&*place.home), BTreeSet::from([damaged.clone()]));
    assert_eq!(report.moved.packs, whole.len() as u64 - 1);
}

#[test]
fn a_copy_that_is_none_is_not_relied_on() {
    let place = Place::memories();
    let name = packs(&*place.home).pop_first().unwrap();
    let mut bytes = place.home.get(&name).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    assert_eq!(place.cold.put(&name, &[&bytes]).unwrap(), Put::Created);
    let report = move_old(&place.repo, 1000, &options()).unwrap();
    let [(uid, error)] = report.damaged.as_slice() else { panic!("{report:?}") };
    assert!(name.ends_with(&uid.to_string()) && error.to_string().contains("other bytes"), "{error}");
    assert_eq!(packs(&*place.home), BTreeSet::from([name]));
    place.assert_reads(&place.repo);
}

#[test]
fn collectors_remove_dead_cold_packs_and_read_none() {
    let cold = Frozen::new(Memory::default());
    let place = Place::new(Arc::new(Memory::default()), Arc::clone(&cold) as _);
    let moved = move_old(&place.repo, 1000, &options()).unwrap().moved;
    cold.freeze();
    assert!(read_disk(&place.shelf.open(Arc::clone(&place.home), 9).unwrap(), &place.young, "d").is_err());
    // Nothing to do, and nothing is read for that.
    let all = packs(&*cold);
    let report = place.collect().unwrap();
    assert_eq!((report.found.packs > moved.packs, report.lost, packs(&*cold)), (true, 0, all));
    place.repo.forget(place.old.name, at(NOW)).unwrap();
    let report = place.collect().unwrap();
    assert!(report.removed.packs > 2 && report.cold.packs > 0, "{report:?}");
    assert_eq!(
        (report.cold_condemned.packs, packs(&*place.home).len()),
        (0, 0),
        "nothing is copied out of a cold pack"
    );
    let left = packs(&*place.cold);
    assert!(!left.is_empty() && (left.len() as u64) < moved.packs);
    let again = place.collect().unwrap();
    assert_eq!((again.cold.packs, packs(&*place.cold)), (report.cold.packs, left));
    assert_eq!(list_sorted(&*place.home, "condemned/").unwrap(), []);
    // Where it is warm again it is copied out of.
    cold.1.store(false, Ordering::SeqCst);
    recall(&place.repo).unwrap();
    assert!(place.collect().unwrap().repacked.packs >= report.cold.packs);
    assert_eq!(read_disk(&place.repo, &place.young, "d").unwrap(), place.contents[1]);
    assert_sound(&place.repo);
}

/// A chunk lies in a cold pack, and once more in a warm one that nobody is led to: nobody proves the cold copy, so that the warm one stays.
#[test]
fn a_warm_copy_of_what_is_cold_stays() {
    let cold = Frozen::new(Memory::default());
    let place = Place::new(Arc::new(Memory::default()), Arc::clone(&cold) as _);
    let before = packs(&*place.home);
    // A host that knows nothing stores everything again.
    let content: DiskContent = place.contents[0].clone().into();
    let other = place.shelf.open(Arc::clone(&place.home), 31).unwrap();
    let blind = Index::open(&place.folder.path().join("blind"), other.keys().repo(), IndexOptions::default());
    let twin = Job::new("twin", 2000, vec![("d", &content)]).run(&other, &Arc::new(blind.unwrap())).unwrap();
    assert!(twin.stats.new_chunks > 0);
    let twins = &packs(&*place.home) - &before;
    move_old(&place.repo, 1500, &options()).unwrap();
    assert_eq!(packs(&*place.home), twins);
    cold.freeze();
    place.repo.forget(twin.name, at(NOW)).unwrap();
    for _ in 0..2 {
        let report = place.collect().unwrap();
        assert_eq!(report.cold.packs, twins.len() as u64, "{report:?}");
        assert_eq!(packs(&*place.home), twins);
    }
    cold.1.store(false, Ordering::SeqCst);
    recall(&place.repo).unwrap();
    place.collect().unwrap();
    assert!(packs(&*place.home).is_disjoint(&twins));
    place.assert_reads(&place.repo);
}

#[test]
fn without_a_tier_nothing_is_collected_and_the_rest_goes_on() {
    let place = Place::memories();
    move_old(&place.repo, 500, &options()).unwrap();
    let away = place.shelf.take_away("/cold");
    let repo = place.shelf.open(Arc::clone(&place.home), 9).unwrap();
    let e = collect(&repo, &place.collecting()).unwrap_err();
    assert!(e.kind() == Kind::Unavailable && e.to_string().contains("'cold'"), "{e}");
    let index = open_index(&repo, &place.folder.path().join("other")).unwrap();
    assert!(learn_packs(&repo, &index).is_err());
    // An empty folder in its place is not taken for it.
    place.shelf.set("/cold", Arc::new(Memory::default()));
    let e = collect(&repo, &place.collecting()).unwrap_err();
    assert!(e.kind() == Kind::Unavailable && e.to_string().contains("mounted"), "{e}");
    learn(&repo, &place.index).unwrap();
    let content: DiskContent = noise(77, 1 << 20).into();
    Job::new("new", 3000, vec![("d", &content)]).run(&repo, &place.index).unwrap();
    place.shelf.set("/cold", away);
    assert_eq!(collect(&repo, &place.collecting()).unwrap().lost, 0);
    place.assert_reads(&repo);
}

#[test]
fn a_place_is_one_tier_of_one_repository() {
    let place = Place::memories();
    let Place { repo, cold, home, shelf, .. } = &place;
    let refused = |name: &str, url: &str, store: &Arc<dyn Backend>, says: &str| {
        let e = tiers::add(repo, &name.parse().unwrap(), &tier(url), &**store).unwrap_err();
        assert!(e.kind() == Kind::Invalid && e.to_string().contains(says), "{e}");
    };
    refused("cold", "/new", &(Arc::new(Memory::default()) as _), "'cold' already");
    refused("twice", "/cold", cold, "the cold tier 'cold' already");
    refused("home", "/home", home, "is a repository");
    let other = init(Arc::new(Memory::default()), 50).unwrap();
    let e = tiers::add(&other, &name(), &tier("/cold"), &**cold).unwrap_err();
    assert!(e.to_string().contains("another repository"), "{e}");
    // What an addition left that did not come to its end is in nobody's way.
    let begun: Arc<dyn Backend> = Arc::new(Memory::default());
    let left: TierName = "left".parse().unwrap();
    assert_eq!(begun.put(&left.mark(repo.keys().repo()), &[]).unwrap(), Put::Created);
    tiers::add(repo, &"deep".parse().unwrap(), &tier("/deep"), &*begun).unwrap();
    assert_eq!(list_sorted(&*begun, "").unwrap().len(), 1);
    shelf.set("/deep", begun);
    let names: Vec<String> = repo.tiers().unwrap().into_iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["cold", "deep"]);
    assert_sound(repo);

    move_old(repo, 500, &options()).unwrap();
    let e = tiers::remove(repo, &name(), false).unwrap_err();
    assert!(e.kind() == Kind::Retained && e.to_string().contains("tier recall cold"), "{e}");
    recall(repo).unwrap();
    tiers::remove(repo, &name(), false).unwrap();
    assert_eq!(tiers::remove(repo, &name(), false).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(move_old(repo, 500, &options()).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(list_sorted(&**cold, "").unwrap(), []);
    tiers::add(repo, &name(), &tier("/cold"), &**cold).unwrap();
    assert!(move_old(repo, 500, &options()).unwrap().moved.packs > 0);
    shelf.take_away("/cold");
    let repo = shelf.open(Arc::clone(home), 11).unwrap();
    assert_eq!(tiers::remove(&repo, &name(), false).unwrap_err().kind(), Kind::Unavailable);
    tiers::remove(&repo, &name(), true).unwrap();
    assert_eq!(read_disk(&repo, &place.young, "d").unwrap(), place.contents[1]);
    assert_eq!(read_disk(&repo, &place.old, "d").unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn a_writers_key_backs_up_beside_tiers_and_moves_nothing() {
    let place = Place::memories();
    move_old(&place.repo, 1000, &options()).unwrap();
    assert!(place.home.size("features/incompat-tiers").unwrap().is_some());
    let credential = Credential::Passphrase("writer".to_owned().into());
    place.repo.export_writer(&credential, &slot("writer", 5)).unwrap();
    let writer = Repository::open(Arc::clone(&place.home), &credential, Arc::new(Seeded::new(60))).unwrap();
    let writer = Arc::new(writer.with_tiers(place.shelf.opener()).unwrap());
    let content: DiskContent = place.contents[0].clone().into();
    let again = Job::new("db", 2000, vec![("d", &content)]).run(&writer, &place.index).unwrap();
    assert_eq!(again.stats.new_chunks, 0);
    let none: Arc<dyn Backend> = Arc::new(Memory::default());
    for refused in [
        move_old(&writer, 500, &options()).map(drop),
        recall(&writer).map(drop),
        tiers::add(&writer, &"x".parse().unwrap(), &tier("/x"), &*none),
        tiers::remove(&writer, &name(), true),
    ] {
        assert_eq!(refused.unwrap_err().kind(), Kind::WrongKey);
    }
}

#[test]
fn packs_go_one_way_at_a_time() {
    let place = Place::memories();
    let Place { repo, home, .. } = &place;
    let left = |course: &str| format!("transfers/cold/{:032x}-{course}", 7);
    let set = |course: &str| assert_eq!(home.put(&left(course), &[]).unwrap(), Put::Created);
    // Others on the same way are welcome.
    set("in");
    assert!(move_old(repo, 500, &options()).unwrap().moved.packs > 0);
    let e = recall(repo).unwrap_err();
    assert!(e.kind() == Kind::Locked && e.to_string().contains("--take-over"), "{e}");
    assert_eq!(list_sorted(&**home, "transfers/").unwrap().len(), 1, "what was refused left nothing");
    recall_by(repo, &TransferOptions { take_over: true, ..options() }).unwrap();
    assert_eq!(list_sorted(&**home, "transfers/").unwrap(), []);
    set("out");
    assert_eq!(move_old(repo, 500, &options()).unwrap_err().kind(), Kind::Locked);
    assert_eq!(packs(&*place.cold).len(), 0);
    assert!(move_old(repo, 500, &TransferOptions { dry_run: true, ..options() }).unwrap().due.packs > 0);
}

/// A move makes no lock shorter: what is locked at home is locked there as long, and stays in both until home lets it go.
#[test]
fn locks_go_along() {
    let term: LockFor = "30d".parse().unwrap();
    let (home, cold) = (Arc::new(Vault::new(at(2000))), Arc::new(Vault::new(at(2000))));
    let place = Place::locked(Arc::clone(&home) as _, Arc::clone(&cold) as _, Some(term));
    let options = TransferOptions { now: at(2000), ..options() };
    let report = move_old(&place.repo, 500, &options).unwrap();
    assert!(report.doubled.packs > 2 && report.moved.packs == 0, "{report:?}");
    for name in packs(&*place.cold) {
        let until = |vault: &Vault| vault.object_lock().unwrap().locked_until(&name).unwrap();
        assert!(until(&cold).is_some() && until(&cold) >= until(&home), "{name}");
        assert_eq!(place.cold.delete(&name).unwrap_err().kind(), Kind::Retained);
    }
    place.assert_reads(&place.repo);
    // Raised from now on is what lies there; home's copies go when their locks have ended.
    let later = at(2000 + 29 * 86_400);
    home.set_clock(later);
    cold.set_clock(later);
    let lock_options = LockOptions::new(later);
    locks::extend(&place.repo, lock_options, &Cancel::default()).unwrap();
    assert!(locks::audit(&place.repo, lock_options, &Cancel::default()).unwrap().is_clean());
    let ended = at(2000 + 40 * 86_400);
    home.set_clock(ended);
    cold.set_clock(ended);
    let report = move_old(&place.repo, 500, &TransferOptions { now: ended, ..options }).unwrap();
    assert!(report.moved.packs > 2 && report.doubled.packs == 0, "{report:?}");
    assert!(packs(&*place.home).is_disjoint(&packs(&*place.cold)));
    for name in packs(&*place.cold) {
        assert_eq!(place.cold.delete(&name).unwrap_err().kind(), Kind::Retained, "{name}");
    }
    place.assert_reads(&place.repo);
}

#[test]
fn a_tier_without_locks_takes_no_points_that_ask_for_them() {
    let home = Arc::new(Vault::new(at(2000)));
    let place = Place::locked(home, Arc::new(Memory::default()), Some("30d".parse().unwrap()));
    let e = move_old(&place.repo, 500, &options()).unwrap_err();
    assert!(e.kind() == Kind::Unsupported && e.to_string().contains("object lock"), "{e}");
    assert_eq!(packs(&*place.cold).len(), 0);
}

/// What a host of the storm does; the weather may end it.
fn host(title: &str, store: &ActorStore, mut work: impl FnMut() -> Result<()>) -> Result<()> {
    match work() {
        // A put that was done twice finds its own object.
        Err(e) if store.has_failed() || e.context().contains("although its name is random") => {
            match matches!(e.kind(), Kind::Unavailable | Kind::Internal | Kind::Overtaken | Kind::Corrupt) {
                true => Ok(()),
                false => Err(e.within(title)),
            }
        }
        // Somebody goes the other way.
        Err(e) if matches!(e.kind(), Kind::Overtaken | Kind::Locked) => Ok(()),
        ended => ended.map_err(|e| e.within(title)),
    }
}

/// The contents of all points of a storm, by their times.
fn contents() -> BTreeMap<u64, DiskContent> {
    let mut bytes = noise(5, 200_000);
    let mut contents = BTreeMap::new();
    for time in [10, 20, 30, 40] {
        bytes[usize::try_from(time).unwrap() * 3000..][..40_000].copy_from_slice(&noise(time, 40_000));
        contents.insert(time, bytes.clone().into());
    }
    // Of old stuff and new.
    let old: &DiskContent = &contents[&10];
    let mut mixed = old.stretches[&0].clone();
    mixed[150_000..].copy_from_slice(&noise(9, 50_000));
    contents.insert(50, mixed.into());
    contents
}

/// A store with four points of a workload and an empty tier, which lies in the same store.
fn harbour(contents: &BTreeMap<u64, DiskContent>) -> Memory {
    let store: Arc<Memory> = Arc::default();
    init_fine(Arc::clone(&store) as _, 1).unwrap();
    let shelf = Shelf::default();
    let cold: Arc<dyn Backend> = Arc::new(Below::new(Arc::clone(&store) as _, "elsewhere"));
    shelf.set("/cold", Arc::clone(&cold));
    let repo = shelf.open(Arc::clone(&store) as _, 2).unwrap();
    let folder = scratch();
    let index = open_index(&repo, folder.path()).unwrap();
    let mut parent = None;
    for time in [10, 20, 30, 40] {
        let mut job = Job::new("web", time, vec![("d", &contents[&time])]).on(parent);
        job.options.pack_bytes = 40 << 10;
        parent = Some(job.run(&repo, &index).unwrap());
    }
    tiers::add(&repo, &name(), &tier("/cold"), &*cold).unwrap();
    store.clone_state()
}

/// Moves, recalls, collections and a backup at once, in an order and with faults that the seed decides; then every point reads as it
/// was, and what was left half done is finished by doing it again.
fn storm(seed: u64, harbour: &Memory, contents: &BTreeMap<u64, DiskContent>) {
    let mut dice = Dice::new(seed);
    let rough = [0, 0, 60, 200][dice.index(4)];
    let (lost, unacknowledged, twice) = (rough / 2, rough / 2, rough / 2);
    let sticky = [0, 5000, 9000][dice.index(3)];
    let weather = Weather { lost, unacknowledged, twice, crash: rough, sticky, listing_delay: 0, overwriting: false };
    let (store, folder) = (Arc::new(harbour.clone_state()), scratch());
    let simulation = Simulation::new(Arc::clone(&store), seed, weather);
    let enter = |title: &str, number: u64| {
        let store = simulation.actor(title, Lens::Clear);
        let shelf = Shelf::default();
        shelf.set("/cold", Arc::new(Below::new(Arc::clone(&store) as _, "elsewhere")));
        let repo = shelf.open(Arc::clone(&store) as _, (seed << 8) + 1000 + number).unwrap();
        (store, repo)
    };
    let movers: Vec<_> =
        (0..=dice.below(2)).map(|n| (enter(&format!("mover {n}"), n), dice.below(6), dice.index(2))).collect();
    let collectors: Vec<_> =
        (0..=dice.below(2)).map(|n| (enter(&format!("collector {n}"), 10 + n), dice.below(4))).collect();
    let (writer_store, writer) = enter("writer", 20);
    let index = open_index(&writer, &folder.path().join("index")).unwrap();
    let scratch_folder = folder.path();
    simulation.begin();
    let outcomes: Vec<Result<bool>> = std::thread::scope(|scope| {
        let mut hosts = Vec::new();
        for ((store, repo), before, course) in movers {
            hosts.push(scope.spawn(move || {
                let ended = host("mover", &store, || {
                    let before = 10 * (before + 1);
                    let turns: [&dyn Fn() -> Result<TransferReport>; 2] =
                        [&|| move_old(&repo, before, &options()), &|| recall(&repo)];
                    for n in [course, course + 1, course] {
                        match turns[n % 2]() {
                            Err(e) if e.kind() == Kind::Locked => {}
                            other => drop(other?),
                        }
                    }
                    Ok(())
                });
                drop(repo);
                store.end();
                ended.map(|()| false)
            }));
        }
        for ((store, repo), forgets) in collectors {
            hosts.push(scope.spawn(move || {
                let ended = host("collector", &store, || {
                    let points = repo.points()?.snapshots;
                    for point in points.iter().filter(|p| p.time().seconds() <= 10 * forgets) {
                        repo.forget(point.name, at(NOW))?;
                    }
                    for _ in 0..2 {
                        collect(&repo, &collecting(scratch_folder, NOW))?;
                    }
                    Ok(())
                });
                drop(repo);
                store.end();
                ended.map(|()| false)
            }));
        }
        hosts.push(scope.spawn(move || {
            let mut is_done = false;
            let ended = host("writer", &writer_store, || {
                learn(&writer, &index)?;
                let mut job = Job::new("db", 50, vec![("d", &contents[&50])]);
                job.options.pack_bytes = 40 << 10;
                job.run(&writer, &index)?;
                is_done = true;
                Ok(())
            });
            drop((index, writer));
            writer_store.end();
            ended.map(|()| is_done)
        }));
        hosts.into_iter().map(|host| host.join().unwrap()).collect()
    });
    let mut is_done = false;
    for outcome in outcomes {
        match outcome {
            Ok(done) => is_done |= done,
            Err(e) => panic!("seed {seed}: {e:?}\n{}", simulation.trace()),
        }
    }
    // The weather is over.
    let shelf = Shelf::default();
    let cold: Arc<dyn Backend> = Arc::new(Below::new(Arc::clone(&store) as _, "elsewhere"));
    shelf.set("/cold", Arc::clone(&cold));
    let repo = shelf.open(Arc::clone(&store) as _, (seed << 8) + 999).unwrap();
    let assert_reads = |when: &str| {
        let points = repo.points().unwrap();
        assert!(points.damaged.is_empty(), "seed {seed}: {:?}\n{}", points.damaged, simulation.trace());
        let times: BTreeSet<u64> = points.snapshots.iter().map(|point| point.time().seconds()).collect();
        assert!(times.contains(&40), "seed {seed}: {times:?}");
        assert!(!is_done || times.contains(&50), "seed {seed}: the backup is gone\n{}", simulation.trace());
        for point in &points.snapshots {
            let content = &contents[&point.time().seconds()];
            let read = read_disk(&repo, point, "d");
            let read =
                read.unwrap_or_else(|e| panic!("seed {seed}, {when}: {}: {e:?}\n{}", point.name, simulation.trace()));
            assert!(read == content.stretches[&0], "seed {seed}, {when}: {}\n{}", point.name, simulation.trace());
        }
    };
    assert_reads("after the storm");
    let mut collecting = collecting(folder.path(), NOW + 100 * 86_400);
    collecting.repack_below = 50;
    for _ in 0..3 {
        assert_eq!(collect(&repo, &collecting).unwrap().lost, 0, "seed {seed}");
        move_old(&repo, 30, &TransferOptions { take_over: true, ..options() }).unwrap();
    }
    assert_reads("after moving and collecting");
    recall_by(&repo, &TransferOptions { take_over: true, ..options() }).unwrap();
    assert_eq!(packs(&*cold), BTreeSet::new(), "seed {seed}");
    assert_eq!(list_sorted(&*store, "transfers/").unwrap(), [], "seed {seed}");
    collect(&repo, &collecting).unwrap();
    collect(&repo, &collecting).unwrap();
    assert_eq!(list_sorted(&*store, "condemned/").unwrap(), [], "seed {seed}");
    assert_reads("after recalling and collecting");
    tiers::remove(&repo, &name(), false).unwrap();
}

#[test]
fn moves_beside_everything_lose_nothing() {
    let contents = contents();
    let harbour = harbour(&contents);
    for seed in 0..SEEDS {
        println!("seed {seed}");
        storm(seed, &harbour, &contents);
    }
}
