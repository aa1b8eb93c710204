//! Broken repositories: every object of a frozen one cut short, flipped, deleted and swapped; what is damaged is an
//! error that names the object, what is not damaged stays readable, and never is a byte handed out that was not backed
//! up.
//!
//! Not here: what is stored of this: nothing; the damage is done in memory. What holds: small objects are cut at every
//! length and flipped in every byte, large ones in a seeded sample, whose seed is printed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "seeds are told, so that a failure can be repeated")]

use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, Put, list_sorted};
use coffer_repo::catalog::Points;
use coffer_repo::pack::{self, PackHeader};
use coffer_repo::repository::Repository;
use coffer_repo::sealed::ObjectKind;
use coffer_repo::snapshot::{ClaimName, ClaimPart};
use coffer_repo::{Error, Kind};
use coffer_tests::dice::Dice;
use coffer_tests::golden::{Golden, open, read_snapshot};
use coffer_tests::rig::{learn, learn_packs};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

const SEED: u64 = 20_261_121;
/// Objects up to this length are damaged everywhere.
const SMALL: usize = 1100;
/// How many places of a larger object are damaged.
const SAMPLE: usize = 150;

/// One thing done to a store: the damaged objects are to be named by errors.
struct Damage {
    what: String,
    /// Objects whose bytes are not their own any more.
    damaged: Vec<String>,
    /// The object that is missing, if any.
    deleted: Option<String>,
    store: Memory,
}

/// Of the damage that should not matter for reading, one in so many is tried on all that can be read.
const SPOT_CHECKS: usize = 25;

/// Says which damage a test failed at.
struct Context<'a>(&'a str);

impl Drop for Context<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("at: {} (seed {SEED})", self.0);
        }
    }
}

/// A frozen repository and what is to be read from it.
struct Original {
    golden: Golden,
    memory: Memory,
    names: Vec<String>,
    /// Per snapshot: its id, what it holds, and the objects that reading it needs beyond keys and descriptor.
    snapshots: Vec<(String, Value, BTreeSet<String>)>,
}

impl Original {
    fn new() -> Self {
        let golden = Golden::new("v1-aes");
        let memory = golden.memory();
        let names: Vec<String> = list_sorted(&memory, "").unwrap().into_iter().map(|o| o.name).collect();
        let mut original = Original { golden, memory, names, snapshots: Vec::new() };
        for shown in original.golden.manifest().as_array().unwrap() {
            let id = shown["id"].as_str().unwrap().to_owned();
            let needs = original.needs(&id);
            original.snapshots.push((id, shown.clone(), needs));
        }
        original
    }

    /// Finds by deleting one after the other what a snapshot cannot be read without.
    fn needs(&self, id: &str) -> BTreeSet<String> {
        let movable = |n: &&String| !n.starts_with("keys/") && *n != "repo";
        let needed = self.names.iter().filter(movable).filter(|name| {
            let store = self.memory.clone_state();
            store.delete(name).unwrap();
            let repo = open(&self.golden, Arc::new(store), "password").unwrap();
            let points = repo.points().unwrap();
            let point = points.snapshots.iter().find(|s| s.id().to_string() == id);
            point.is_none_or(|s| read_snapshot(&repo, s).is_err())
        });
        needed.cloned().collect()
    }

    fn with(&self, name: &str, bytes: &[u8], what: String) -> Damage {
        let store = self.memory.clone_state();
        replace(&store, name, bytes);
        Damage { what, damaged: vec![name.to_owned()], deleted: None, store }
    }

    /// Places in an object of `len` bytes: all of them, or a sample that includes both ends.
    fn places(len: usize, dice: &mut Dice) -> Vec<usize> {
        if len <= SMALL {
            return (0..len).collect();
        }
        let ends = (0..300).chain(len - 200..len).filter(|i| i % 7 == 0);
        ends.chain((0..SAMPLE).map(|_| dice.index(len))).collect()
    }

    fn truncations<'a>(&'a self, name: &'a str, dice: &mut Dice) -> impl Iterator<Item = Damage> + use<'a> {
        let whole = self.memory.get(name).unwrap();
        let places = Self::places(whole.len(), dice);
        places.into_iter().map(move |len| self.with(name, &whole[..len], format!("{name} cut to {len} bytes")))
    }

    fn flips<'a>(&'a self, name: &'a str, dice: &mut Dice) -> impl Iterator<Item = Damage> + use<'a> {
        let whole = self.memory.get(name).unwrap();
        let places: Vec<_> = Self::places(whole.len(), dice).into_iter().map(|at| (at, dice.below(8))).collect();
        places.into_iter().map(move |(at, bit)| {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << bit;
            self.with(name, &flipped, format!("{name} with bit {bit} of byte {at} flipped"))
        })
    }

    fn deletion(&self, name: &str) -> Damage {
        let store = self.memory.clone_state();
        store.delete(name).unwrap();
        Damage { what: format!("{name} deleted"), damaged: Vec::new(), deleted: Some(name.to_owned()), store }
    }

    /// Each object of a kind in the place of the next one of that kind.
    fn swaps(&self) -> impl Iterator<Item = Damage> + '_ {
        self.names.iter().enumerate().filter_map(|(i, one)| {
            let rest = &self.names[i + 1..];
            let other = rest.iter().find(|other| shape(other) == shape(one))?;
            let store = self.memory.clone_state();
            replace(&store, one, &self.memory.get(other).unwrap());
            replace(&store, other, &self.memory.get(one).unwrap());
            let damaged = vec![one.clone(), other.clone()];
            Some(Damage { what: format!("{one} and {other} swapped"), damaged, deleted: None, store })
        })
    }

    /// Reads everything there is in a damaged store and sees that it is as before or a proper error.
    fn check(&self, number: usize, damage: Damage) {
        let Damage { what, damaged, deleted, store } = damage;
        let _context = Context(&what);
        let store: Arc<dyn Backend> = Arc::new(store);
        let repo = match open(&self.golden, Arc::clone(&store), "password") {
            Ok(repo) => repo,
            Err(e) => return check_refusal(&e, &damaged, deleted.as_deref()),
        };
        let opens = |name: &String| name.starts_with("keys/") || name == "repo";
        assert!(!damaged.iter().any(|n| n == "repo"), "a damaged descriptor opened");
        let affected = |needs: &BTreeSet<String>| damaged.iter().chain(&deleted).any(|n| needs.contains(n));
        let snapshots = |all| self.snapshots.iter().filter(move |(_, _, needs)| all || affected(needs));
        let all = number.is_multiple_of(SPOT_CHECKS);
        let points = if all || snapshots(false).next().is_some() { repo.points().unwrap() } else { Points::default() };
        for (id, shown, needs) in snapshots(all) {
            let point = points.snapshots.iter().find(|s| s.id().to_string() == *id);
            match point.map(|s| read_snapshot(&repo, s)) {
                // Damage that no reader of a point looks at, such as that of a table of contents, is found below.
                Some(Ok(read)) => assert_eq!(read, *shown),
                Some(Err(e)) => {
                    assert!(affected(needs), "{id} is not damaged: {e:?}");
                    assert!(matches!(e.kind(), Kind::Corrupt | Kind::Unsupported), "{e:?}");
                    assert!(damaged.iter().chain(&deleted).any(|n| names(&e, n)), "not named: {e:?}");
                }
                None => assert!(affected(needs), "{id} is gone"),
            }
        }
        for (name, e) in &points.damaged {
            assert!(matches!(e.kind(), Kind::Corrupt | Kind::Unsupported), "{name}: {e:?}");
            assert!(damaged.iter().chain(&deleted).any(|n| names(e, n)), "not named: {e:?}");
        }
        for name in damaged.iter().filter(|n| !opens(n) && !n.starts_with("features/")) {
            let e = verify(&repo, name).expect_err("no check finds it");
            assert!(matches!(e.kind(), Kind::Corrupt | Kind::Unsupported), "{e:?}");
            assert!(names(&e, name), "not named: {e:?}");
        }
    }
}

/// What opening says of a damaged descriptor or key slot.
fn check_refusal(e: &Error, damaged: &[String], deleted: Option<&str>) {
    let kinds: &[Kind] = match deleted {
        Some("repo") => &[Kind::NotFound],
        Some(_) => &[Kind::WrongKey],
        // A slot in another one's place is whole, and this passphrase does not open it there.
        None if damaged.len() == 2 => &[Kind::WrongKey],
        None => &[Kind::Corrupt, Kind::Unsupported],
    };
    assert!(kinds.contains(&e.kind()), "{e:?}");
    let named = damaged.iter().any(|n| names(e, n));
    assert!(named || e.to_string().contains("descriptor") || kinds.len() == 1, "not named: {e:?}");
}

/// Whether an error says which object it is about: by its name, or by the id that is its last part.
fn names(e: &Error, object: &str) -> bool {
    let id = object.rsplit('/').next().filter(|last| last.len() >= 32).unwrap_or(object);
    e.to_string().contains(id) || e.to_string().contains(object)
}

/// Checks one object alone, as `verify` does: all of its bytes.
fn verify(repo: &Arc<Repository>, name: &str) -> Result<(), Error> {
    if let Some((kind, uid)) = pack::parse_name(name) {
        PackHeader::fetch(repo.backend(), repo.keys(), &*load_certificates(repo)?, kind, uid)?;
        let (entries, _) = pack::read_contents(repo.backend(), repo.keys(), kind, uid)?;
        let pack = repo.open_pack(kind, uid)?;
        for entry in entries {
            let mut sealed = vec![0; entry.location.stored_len as usize];
            repo.backend().get_range(name, u64::from(entry.location.offset), &mut sealed)?;
            pack.open_frame(&entry.location, &mut sealed)?;
        }
        return Ok(());
    }
    repo.get_record(record_kind(name), name).map(drop)
}

/// The certificates as a session knows them that has met every writer.
fn load_certificates(repo: &Arc<Repository>) -> Result<Arc<coffer_repo::certificate::Certificates>, Error> {
    repo.points()?;
    Ok(repo.certificates())
}

fn record_kind(name: &str) -> ObjectKind {
    match name.split('/').next().unwrap() {
        "index" => ObjectKind::IndexDelta,
        "writers" => ObjectKind::Certificate,
        "sessions" => ObjectKind::Session,
        "forgets" => ObjectKind::Forget,
        "condemned" => ObjectKind::Condemned,
        "moved" => ObjectKind::Moved,
        "notes" => ObjectKind::Note,
        "snapshots" => match ClaimName::parse(name).unwrap().1 {
            ClaimPart::Claim => ObjectKind::Claim,
            ClaimPart::Decision | ClaimPart::Intent | ClaimPart::Revoke => ObjectKind::Decision,
        },
        other => panic!("{other}"),
    }
}

/// Objects of one shape could be taken for each other.
fn shape(name: &str) -> (&str, &str) {
    (name.split('/').next().unwrap(), name.rsplit('/').next().filter(|last| last.len() < 32).unwrap_or_default())
}

fn replace(store: &Memory, name: &str, bytes: &[u8]) {
    store.delete(name).unwrap();
    assert_eq!(store.put(name, &[bytes]).unwrap(), Put::Created);
}

/// Checks every damage that `make` does to an object, on two threads.
fn check_all<'a, D, I>(original: &'a Original, make: D)
where
    D: Fn(&'a str, &mut Dice) -> I + Sync,
    I: Iterator<Item = Damage>,
{
    println!("seed {SEED}");
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(name) = original.names.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    let mut dice = Dice::new(SEED ^ name.len() as u64);
                    make(name, &mut dice).enumerate().for_each(|(i, damage)| original.check(i, damage));
                }
            });
        }
    });
}

#[test]
fn whatever_is_cut_short_is_found() {
    let original = Original::new();
    check_all(&original, |name, dice| original.truncations(name, dice));
}

#[test]
fn whatever_is_flipped_is_found() {
    let original = Original::new();
    check_all(&original, |name, dice| original.flips(name, dice));
}

#[test]
fn whatever_is_deleted_or_swapped_is_found() {
    let original = Original::new();
    check_all(&original, |name, _| std::iter::once(original.deletion(name)));
    original.swaps().for_each(|damage| original.check(0, damage));
}

/// What the other tests rest on: each snapshot needs some objects and not others.
#[test]
fn snapshots_stand_alone() {
    let original = Original::new();
    let needs: Vec<_> = original.snapshots.iter().map(|(_, _, needs)| needs).collect();
    for needs in &needs {
        for prefix in ["snapshots/", "packs/"] {
            assert!(needs.iter().any(|n| n.starts_with(prefix)), "{needs:?}");
        }
        assert!(needs.iter().all(|n| !n.starts_with("index/") && !n.starts_with("sessions/")), "{needs:?}");
    }
    let certificates = |needs: &BTreeSet<String>| needs.iter().filter(|n| n.starts_with("writers/")).cloned().collect();
    let certificates: Vec<Vec<String>> = needs.iter().map(|needs| certificates(needs)).collect();
    assert_eq!(certificates.iter().map(Vec::len).collect::<Vec<_>>(), [0, 0, 1, 1]);
    assert_ne!(certificates[2], certificates[3]);
}

/// Damaged index deltas are left out and named, and their packs speak for themselves.
#[test]
fn a_damaged_index_delta_costs_no_knowledge() {
    let original = Original::new();
    let deltas: Vec<_> = original.names.iter().filter(|n| n.starts_with("index/")).collect();
    let known = |repo: &Arc<Repository>, packs: bool| {
        let dir = tempfile::tempdir().unwrap();
        repo.points().unwrap();
        let options = coffer_repo::index::IndexOptions::default();
        let index = coffer_repo::index::Index::open(dir.path(), repo.keys().repo(), options).unwrap();
        let mut left_out = learn(repo, &index).unwrap().left_out;
        if packs {
            left_out.extend(learn_packs(repo, &index).unwrap().left_out);
        }
        let mut places = BTreeSet::new();
        for object in list_sorted(repo.backend(), "packs/").unwrap() {
            let (kind, uid) = pack::parse_name(&object.name).unwrap();
            for entry in pack::read_contents(repo.backend(), repo.keys(), kind, uid).unwrap().0 {
                for holder in index.holders(&entry.stored).unwrap() {
                    places.insert((*entry.stored.id(), holder.pack, holder.offset));
                }
            }
        }
        (places, left_out)
    };
    let open = |store| open(&original.golden, Arc::new(store), "password").unwrap();
    let (all, left_out) = known(&open(original.memory.clone_state()), false);
    assert!(left_out.is_empty() && !all.is_empty(), "{left_out:?}");
    for delta in deltas {
        let mut bytes = original.memory.get(delta).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        let damage = original.with(delta, &bytes, String::new());
        let (found, left_out) = known(&open(damage.store), true);
        assert_eq!(found, all);
        let [(name, e)] = left_out.as_slice() else { panic!("{left_out:?}") };
        assert!(name == delta && e.kind() == Kind::Corrupt, "{name}: {e:?}");
    }
}
