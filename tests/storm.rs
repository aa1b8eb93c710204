//! The implementation in a storm: writers, collectors, forgets, pins and janitors use one simulated store at the same time, one
//! operation after the other in an order that a seed decides, while operations fail, are done without being acknowledged, are
//! done twice, and actors die.
//!
//! At random moments and in the end every point that was committed and not forgotten reads back; after three quiet collections
//! nothing is left that no point needs. The last tests break the rules that the safety argument rests on, one at a time, from
//! outside, and see that this is noticed.
//!
//! Not here: the protocol's model, which is searched exhaustively. What holds: a seed that fails prints itself and what was done;
//! `COFFER_SEED=N` repeats it, `COFFER_SEEDS=N` tries more, and both together so many from there on.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test is a program: it may read its environment")]
#![allow(clippy::print_stdout, reason = "seeds are told, so that a failure can be repeated")]

#[path = "storm/cast.rs"]
mod cast;

use cast::Actor;
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, Put, list_sorted};
use coffer_repo::store_class::StoreClass;
use coffer_tests::audit::{Audit, Failure};
use coffer_tests::dice::Dice;
use coffer_tests::rig::{open, open_index};
use coffer_tests::simulation::{ActorStore, Lens, Simulation, Weather};
use coffer_tests::stage::Stage;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

/// How many seeds CI tries.
const SEEDS: u64 = 2000;
/// After so many seeds a broken rule has to be noticed.
const MOST: u64 = 3000;

static STAGE: LazyLock<Stage> = LazyLock::new(|| Stage::build(scratch().path()));

/// A directory in memory, where there is one: databases that live for a moment need no disk.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Rules that are broken.
#[derive(Clone, Copy, Debug, Default)]
struct Broken {
    writers: Lens,
    collectors: Lens,
    /// Listings are late.
    weak: bool,
    /// Puts replace each other. No rule is broken by that where it is known.
    overwriting: bool,
    /// Nobody is told that they do.
    unknown: bool,
}

/// What an actor does.
type Act = fn(&mut Actor<'_>);

/// What a storm came to.
struct Outcome {
    failures: Vec<Failure>,
    trace: String,
}

/// Runs the storm of one seed.
fn storm(seed: u64, broken: Broken) -> Outcome {
    let mut dice = Dice::new(seed);
    let rough = [0, 0, 20, 80, 200][dice.index(5)];
    let weather = Weather {
        lost: rough,
        unacknowledged: rough,
        twice: rough,
        crash: rough / 4,
        sticky: [0, 5000, 9000, 9800][dice.index(4)],
        listing_delay: if broken.weak { 60 } else { 0 },
        overwriting: broken.overwriting,
    };
    let (dir, store) = (scratch(), Arc::new(STAGE.store.clone_state()));
    if broken.overwriting && !broken.unknown {
        StoreClass::Overwriting.record(&*store).unwrap();
    }
    let simulation = Simulation::new(Arc::clone(&store), seed, weather);
    // No two open the repository with the same seed: they would draw the same random bytes.
    let mut entropy = (seed + 1) << 16;
    let mut next = || {
        entropy += 16;
        entropy
    };
    let audit = Audit::new(Arc::clone(&store), open(store, next()).unwrap(), &STAGE, dir.path());
    let mut number = 0;
    let mut actor = |title: &str, lens: Lens, dice: &mut Dice| {
        number += 1;
        let store = simulation.actor(&format!("{title} {number}"), lens);
        let repo = open(Arc::clone(&store) as _, next()).unwrap();
        Actor { store, repo, dice: Dice::new(dice.number()), audit: &audit, dir: dir.path(), number }
    };
    let mut play: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for _ in 0..1 + dice.below(3) {
        let mut writer = actor("writer", broken.writers, &mut dice);
        let index = open_index(&writer.repo, &dir.path().join(writer.number.to_string())).unwrap();
        play.push(Box::new(move || run(Arc::clone(&writer.store), move || writer.write(&index))));
    }
    for _ in 0..1 + dice.below(3) {
        let mut collector = actor("collector", broken.collectors, &mut dice);
        play.push(Box::new(move || run(Arc::clone(&collector.store), move || collector.collect())));
    }
    let others: [(&str, u64, Act); 4] = [
        ("forgetter", 2, |actor| actor.forget()),
        ("janitor", 3, |actor| actor.revoke()),
        ("reader", 2, |actor| actor.read()),
        ("auditor", 1, |actor| actor.audit()),
    ];
    for (title, one_in, act) in others {
        if dice.once_in(one_in) {
            let mut other = actor(title, Lens::Clear, &mut dice);
            play.push(Box::new(move || run(Arc::clone(&other.store), move || act(&mut other))));
        }
    }
    simulation.begin();
    std::thread::scope(|scope| play.into_iter().for_each(|act| drop(scope.spawn(act))));
    let mut failures = audit.failures();
    if failures.is_empty() {
        failures.extend(audit.settle(next()).err());
    }
    Outcome { failures, trace: simulation.trace() }
}

/// Lets an actor act; whatever happens, the others do not wait for it afterwards.
fn run(store: Arc<ActorStore>, act: impl FnOnce()) {
    struct End(Arc<ActorStore>);
    impl Drop for End {
        fn drop(&mut self) {
            self.0.end();
        }
    }
    let _end = End(store);
    act();
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// Calls `each` with the outcomes of many seeds, several at a time since a storm is waiting for most of its time, until it says that it is enough.
fn try_seeds(seeds: std::ops::Range<u64>, broken: Broken, each: &(dyn Fn(u64, Outcome) -> bool + Sync)) {
    let next = AtomicU64::new(seeds.start);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= seeds.end {
                        break;
                    }
                    if !each(seed, storm(seed, broken)) {
                        next.store(seeds.end, Ordering::SeqCst);
                    }
                }
            });
        }
    });
}

#[test]
fn nothing_is_lost_and_nothing_is_left() {
    weather_storms(Broken::default(), SEEDS);
}

/// The same on a store without put-if-absent.
#[test]
fn nothing_is_lost_where_puts_replace_each_other() {
    weather_storms(Broken { overwriting: true, ..Broken::default() }, SEEDS / 2);
}

fn weather_storms(broken: Broken, seeds: u64) {
    let (first, many) = (number("COFFER_SEED"), number("COFFER_SEEDS"));
    let many = many.unwrap_or(if first.is_some() { 1 } else { seeds });
    let seeds = first.unwrap_or(0)..first.unwrap_or(0) + many;
    let operations = AtomicU64::new(0);
    let failed = Mutex::new(None);
    try_seeds(seeds.clone(), broken, &|seed, Outcome { failures, trace }| {
        operations.fetch_add(trace.lines().count() as u64, Ordering::Relaxed);
        let is_well = failures.is_empty();
        if !is_well {
            *failed.lock().unwrap() = Some((seed, failures, trace));
        }
        is_well
    });
    if let Some((seed, failures, trace)) = failed.into_inner().unwrap() {
        panic!("{trace}\nCOFFER_SEED={seed}: {failures:#?}");
    }
    println!("seeds {seeds:?}, {} operations", operations.into_inner());
}

#[test]
fn a_seed_repeats() {
    for seed in 0..20 {
        let [first, second] = [(); 2].map(|()| storm(seed, Broken::default()).trace);
        for (one, other) in first.lines().zip(second.lines()) {
            assert_eq!(one, other, "seed {seed}");
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}

/// The seed that noticed.
fn is_noticed(broken: Broken) {
    let noticed = Mutex::new(None);
    try_seeds(0..MOST, broken, &|seed, outcome| {
        let why = outcome.failures.into_iter().find(|failure| matches!(failure, Failure::Loss(_)));
        let is_enough = why.is_some();
        if let Some(why) = why {
            *noticed.lock().unwrap() = Some((seed, why));
        }
        !is_enough
    });
    let noticed = noticed.into_inner().unwrap();
    println!("{broken:?}: {noticed:?}");
    assert!(noticed.is_some(), "{broken:?} was not noticed in {MOST} seeds");
}

#[test]
fn writers_that_see_no_condemned_records_are_noticed() {
    is_noticed(Broken { writers: Lens::NothingCondemned, ..Broken::default() });
}

#[test]
fn collectors_that_see_old_claims_are_noticed() {
    is_noticed(Broken { collectors: Lens::OldClaims, ..Broken::default() });
}

#[test]
fn decisions_that_replace_others_are_noticed() {
    is_noticed(Broken { writers: Lens::PlainDecisions, ..Broken::default() });
}

/// Why a store has to be probed.
#[test]
fn puts_that_replace_others_unknown_to_all_are_noticed() {
    is_noticed(Broken { overwriting: true, unknown: true, ..Broken::default() });
}

/// Why garbage is not collected on stores of the weak class.
#[test]
fn late_listings_are_noticed() {
    is_noticed(Broken { weak: true, ..Broken::default() });
}

/// What the other tests rest on: the audit notices every object that is missing, and every one that is too much.
#[test]
fn the_audit_notices() {
    let dir = scratch();
    let store = Arc::new(STAGE.store.clone_state());
    let audit = |store: &Arc<Memory>, dir: &Path| -> Result<(), Failure> {
        let repo = open(Arc::clone(store) as _, 1 << 15).unwrap();
        Audit::new(Arc::clone(store), repo, &STAGE, dir).settle(1 << 14)
    };
    audit(&store, dir.path()).unwrap();
    let all: Vec<String> = list_sorted(&*store, "").unwrap().into_iter().map(|o| o.name).collect();
    let mut missed = 0;
    for name in
        all.iter().filter(|name| ["packs/", "trees/", "snapshots/", "moved/"].iter().any(|p| name.starts_with(p)))
    {
        // All records about one pack are as good as one.
        let one = name.strip_prefix("moved/").and_then(|name| name.split_once('/')).map_or(&**name, |(pack, _)| pack);
        let without = Arc::new(store.clone_state());
        all.iter().filter(|other| other.contains(one)).for_each(|other| without.delete(other).unwrap());
        let is_revoked = name.ends_with("/decision") && !all.contains(&name.replace("/decision", "/claim"));
        assert_eq!(audit(&without, dir.path()).is_err(), !is_revoked, "{name}");
        missed += 1;
    }
    assert!(missed > 8, "{all:?}");
    for extra in
        ["packs/00/00000000000000000000000000000000", "condemned/00000000000000000000000000000000", "sessions/x"]
    {
        let with = Arc::new(store.clone_state());
        assert_eq!(with.put(extra, &[b"x"]).unwrap(), Put::Created);
        assert!(audit(&with, dir.path()).is_err(), "{extra}");
    }
}
