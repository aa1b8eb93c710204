//! The contract of [`Backend`], as a suite that every implementation must pass.
//!
//! Not here: what one implementation promises beyond it (its own tests), or what becomes of flows above a store that breaks
//! it. What holds: each check begins with an empty store of its own; it fails by panicking where the breach is seen.

// A suite speaks by failing, also when it is a library.
#![allow(clippy::unwrap_used)]

use coffer_repo::backend::{Backend, Listed, MAX_PART, Put, list_sorted};
use coffer_repo::{Error, Kind};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

/// Who puts at once under one name.
const RACERS: usize = 8;

/// One point of the contract, on an empty store.
type Check = fn(&dyn Backend);

/// What a store promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The whole contract.
    Strong,
    /// All but put-if-absent, as Swift and B2: of several puts at once under one name more than one may be told that it
    /// created the object. So `one_of_racing_puts_creates` cannot hold, and `racing_puts_leave_one_whole` stands in for it.
    /// One put after another still counts.
    Weak,
    /// What fake-gcs-server does of it: as [`Class::Weak`], but it ignores the condition of an upload in one piece, and garbles its
    /// answer to the request for the end of an empty object. Google's own store does neither.
    FakeGcs,
}

/// Runs the whole suite. `make` returns an empty store each time. Panics at the first breach.
pub fn run(make: &dyn Fn() -> Arc<dyn Backend>) {
    run_as(Class::Strong, make);
}

/// Runs what a store of that class promises.
pub fn run_as(class: Class, make: &dyn Fn() -> Arc<dyn Backend>) {
    let (again, racing): (Check, Check) = match class {
        Class::Strong => (the_first_put_counts, one_of_racing_puts_creates),
        Class::Weak => (the_first_put_counts, racing_puts_leave_one_whole),
        Class::FakeGcs => (the_last_put_counts, racing_puts_leave_one_whole),
    };
    let checks: [Check; 16] = [
        again,
        racing,
        ranges_are_exact_or_corrupt,
        ranges_end_where_objects_do,
        suffixes_are_the_end,
        if class == Class::FakeGcs { |_| () } else { suffixes_of_nothing_are_empty },
        empty_objects_are_objects,
        large_objects_are_whole,
        what_is_missing_is_not_found,
        only_allowed_names_are_taken,
        listings_are_complete,
        listings_during_puts,
        callbacks_may_stop_and_call,
        deletion_is_final,
        deleted_names_can_be_put_again,
        many_threads,
    ];
    for check in checks {
        let store = make();
        assert_eq!(names(&*store, ""), [""; 0], "{} is not empty to begin with", store.location());
        check(&*store);
    }
}

fn the_first_put_counts(store: &dyn Backend) {
    assert_eq!(store.put("repo", &[b"one", b"", b" two"]).unwrap(), Put::Created);
    assert_eq!(store.put("repo", &[b"other, and longer"]).unwrap(), Put::Exists);
    assert_eq!(store.put("repo", &[]).unwrap(), Put::Exists);
    assert_eq!(store.get("repo").unwrap(), b"one two");
    assert_eq!(store.size("repo").unwrap(), Some(7));
    assert_eq!(store.put("empty", &[]).unwrap(), Put::Created);
    assert_eq!(store.put("empty", &[b"late"]).unwrap(), Put::Exists);
    assert_eq!(store.get("empty").unwrap(), b"");
}

fn the_last_put_counts(store: &dyn Backend) {
    create(store, "repo", b"one");
    create(store, "repo", b"other, and longer");
    assert_eq!(store.get("repo").unwrap(), b"other, and longer");
    assert_eq!(store.size("repo").unwrap(), Some(17));
}

/// Rounds in which puts race: fifty, or ten and as many as half a minute has, since SeaweedFS takes seconds to decide one.
fn rounds() -> impl Iterator<Item = u32> {
    let began = Instant::now();
    (0..50).take_while(move |round| *round < 10 || began.elapsed() < Duration::from_secs(30))
}

fn one_of_racing_puts_creates(store: &dyn Backend) {
    for round in rounds() {
        let name = format!("snapshots/tag/{round}/decision");
        let outcomes = race(store, &name);
        let winners = winners(&outcomes);
        assert_eq!(winners.len(), 1, "round {round}: {outcomes:?}");
        assert_eq!(store.get(&name).unwrap(), of_racer(winners[0]), "round {round}: the loser's bytes");
    }
}

fn racing_puts_leave_one_whole(store: &dyn Backend) {
    for round in rounds() {
        let name = format!("snapshots/tag/{round}/decision");
        let winners = winners(&race(store, &name));
        let left = store.get(&name).unwrap();
        assert!(winners.iter().any(|racer| left == of_racer(*racer)), "round {round}: not one of {winners:?}");
    }
}

/// Puts under one name at once, each by a racer: what they were told.
fn race(store: &dyn Backend, name: &str) -> Vec<(usize, Put)> {
    let start = Barrier::new(RACERS);
    thread::scope(|scope| {
        let race = |racer: usize| {
            let start = &start;
            scope.spawn(move || {
                let content = of_racer(racer);
                start.wait();
                let put = store.put(name, &[&content]).unwrap();
                // Whoever is told that the object exists, or that it made it, can read it at once and whole.
                let read = store.get(name).unwrap();
                assert!((0..RACERS).any(|racer| read == of_racer(racer)));
                (racer, put)
            })
        };
        let racers: Vec<_> = (0..RACERS).map(race).collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    })
}

fn winners(outcomes: &[(usize, Put)]) -> Vec<usize> {
    outcomes.iter().filter(|(_, put)| *put == Put::Created).map(|(racer, _)| *racer).collect()
}

/// What a racer puts: content and length tell whose it is.
fn of_racer(racer: usize) -> Vec<u8> {
    pattern(racer, 1000 + racer)
}

fn ranges_are_exact_or_corrupt(store: &dyn Backend) {
    let content = pattern(1, 10_000);
    create(store, "packs/00/a", &content);
    for (offset, len) in [(0, 0), (0, 1), (0, 10_000), (1, 4096), (4095, 2), (9_999, 1), (10_000, 0)] {
        let mut out = vec![0xee; len];
        store.get_range("packs/00/a", offset as u64, &mut out).unwrap();
        assert_eq!(out, content[offset..offset + len], "{len} bytes at {offset}");
    }
    for (offset, len) in [(0, 10_001), (9_999, 2), (10_000, 1), (10_001, 0), (1 << 40, 1), (u64::MAX, 0), (u64::MAX, 1)]
    {
        let error = store.get_range("packs/00/a", offset, &mut vec![0; len]).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{len} bytes at {offset}: {error}");
        assert!(error.context().contains("packs/00/a"), "the error names the object: {error}");
    }
}

fn ranges_end_where_objects_do(store: &dyn Backend) {
    let content = pattern(4, 10_000);
    create(store, "packs/00/a", &content);
    for (offset, max, len) in [(0, 1, 1), (0, 10_000, 10_000), (4095, 1 << 20, 5905), (9_999, 2, 1), (10_000, 7, 0)] {
        let (bytes, whole) = store.get_up_to("packs/00/a", offset as u64, max).unwrap();
        assert_eq!(whole, 10_000);
        assert_eq!(bytes, content[offset..offset + len], "up to {max} bytes at {offset}");
    }
    for offset in [10_001, 1 << 40, u64::MAX] {
        let error = store.get_up_to("packs/00/a", offset, 1).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "at {offset}: {error}");
        assert!(error.context().contains("packs/00/a"), "the error names the object: {error}");
    }
}

fn suffixes_are_the_end(store: &dyn Backend) {
    let content = pattern(2, 1000);
    create(store, "a", &content);
    for (max, len) in [(0, 0), (1, 1), (64, 64), (999, 999), (1000, 1000), (1001, 1000), (1 << 20, 1000)] {
        let (bytes, whole) = store.get_suffix("a", max).unwrap();
        assert_eq!(whole, 1000);
        assert_eq!(bytes, content[1000 - len..], "the last {max}");
    }
}

fn suffixes_of_nothing_are_empty(store: &dyn Backend) {
    create(store, "e/none", b"");
    assert_eq!(store.get_suffix("e/none", 64).unwrap(), (vec![], 0));
    assert_eq!(store.get_suffix("e/none", 0).unwrap(), (vec![], 0));
}

fn empty_objects_are_objects(store: &dyn Backend) {
    for (name, parts) in [("e/none", &[][..]), ("e/one", &[&b""[..]]), ("e/two", &[b"", b""])] {
        assert_eq!(store.put(name, parts).unwrap(), Put::Created);
        assert_eq!(store.get(name).unwrap(), b"");
        assert_eq!(store.size(name).unwrap(), Some(0));
        store.get_range(name, 0, &mut []).unwrap();
        assert_eq!(store.get_range(name, 0, &mut [0]).unwrap_err().kind(), Kind::Corrupt);
    }
    assert_eq!(names(store, "e/"), ["e/none", "e/one", "e/two"]);
}

fn large_objects_are_whole(store: &dyn Backend) {
    const LEN: usize = 40 << 20;
    let content = pattern(3, LEN);
    let mut parts = Vec::new();
    let mut left = content.as_slice();
    for len in [1, 0, 128, 16 << 20, 4095, 7 << 20] {
        let (part, rest) = left.split_at(len);
        parts.push(part);
        left = rest;
    }
    parts.push(left);
    assert_eq!(store.put("packs/ff/large", &parts).unwrap(), Put::Created);
    assert_eq!(store.size("packs/ff/large").unwrap(), Some(LEN as u64));
    assert!(store.get("packs/ff/large").unwrap() == content, "the whole object differs");
    let mut out = vec![0; 1 << 20];
    for offset in [0, 127, (16 << 20) - 7, LEN - out.len()] {
        store.get_range("packs/ff/large", offset as u64, &mut out).unwrap();
        assert!(out == content[offset..offset + out.len()], "the range at {offset} differs");
    }
    let (tail, whole) = store.get_suffix("packs/ff/large", 64).unwrap();
    assert_eq!((tail.as_slice(), whole), (&content[LEN - 64..], LEN as u64));
}

fn what_is_missing_is_not_found(store: &dyn Backend) {
    create(store, "packs/00/there", b"x");
    for name in ["repo", "packs/00/other", "packs/01/there", "packs/00/there/below", "packs", "packs/00"] {
        assert_eq!(store.get(name).unwrap_err().kind(), Kind::NotFound, "{name}");
        assert_eq!(store.get_range(name, 0, &mut [0]).unwrap_err().kind(), Kind::NotFound, "{name}");
        assert_eq!(store.get_range(name, 0, &mut []).unwrap_err().kind(), Kind::NotFound, "{name}");
        assert_eq!(store.get_up_to(name, 0, 1).unwrap_err().kind(), Kind::NotFound, "{name}");
        let error = store.get_suffix(name, 1).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{name}");
        assert!(error.context().contains(name), "the error names the object: {error}");
        assert_eq!(store.size(name).unwrap(), None, "{name}");
        store.delete(name).unwrap();
    }
    assert_eq!(names(store, ""), ["packs/00/there"]);
}

fn only_allowed_names_are_taken(store: &dyn Backend) {
    let long = "x".repeat(MAX_PART);
    let good = ["a", "A-z_0.9+=", "...", "1/2/3/4/5/6/7/8", "x/tmp", &long];
    for name in good {
        create(store, name, name.as_bytes());
        assert_eq!(store.get(name).unwrap(), name.as_bytes());
    }
    let too_long = "x".repeat(MAX_PART + 1);
    let bad = [
        "", ".", "..", "/", "/x", "x/", "a//b", "../x", "b/..", "b/../c", "b/./c", "tmp", "tmp/x", "a b", "a\0", "a\n",
    ];
    for name in bad.into_iter().chain(["a\\b", "a:b", "\u{e4}", "1/2/3/4/5/6/7/8/9", &too_long]) {
        let kinds = [
            store.put(name, &[b"x"]).unwrap_err().kind(),
            store.get(name).unwrap_err().kind(),
            store.get_range(name, 0, &mut [0]).unwrap_err().kind(),
            store.get_suffix(name, 1).unwrap_err().kind(),
            store.get_up_to(name, 0, 1).unwrap_err().kind(),
            store.size(name).unwrap_err().kind(),
            store.delete(name).unwrap_err().kind(),
        ];
        assert_eq!(kinds, [Kind::Invalid; 7], "{name:?}");
    }
    for prefix in ["a", "/", "../", "a//", "./", "tmp/"] {
        assert_eq!(list_sorted(store, prefix).unwrap_err().kind(), Kind::Invalid, "{prefix:?}");
    }
    assert_eq!(names(store, "").len(), good.len());
}

fn listings_are_complete(store: &dyn Backend) {
    let mut all = BTreeSet::new();
    for pack in 0..300 {
        all.insert((format!("packs/{:02x}/{pack:04}", pack % 16), pack));
    }
    all.insert(("packs-of-another/x".to_owned(), 1));
    all.insert(("packs.x".to_owned(), 2));
    all.insert(("snapshots/t/1/claim".to_owned(), 3));
    for (name, len) in &all {
        create(store, name, &pattern(*len, *len));
    }
    for prefix in ["", "packs/", "packs/0a/", "snapshots/", "snapshots/t/1/", "missing/", "packs/0a/0010/", "packs.x/"]
    {
        let expected: Vec<Listed> = all
            .iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(name, len)| Listed { name: name.clone(), size: *len as u64 })
            .collect();
        assert_eq!(list_sorted(store, prefix).unwrap(), expected, "under {prefix:?}");
    }
}

fn listings_during_puts(store: &dyn Backend) {
    const OLD: usize = 100;
    const LEN: usize = 100_000;
    /// Objects that each writer puts at most: where puts are quicker than looks each listing would be a multiple of the last.
    const MOST: usize = 150;
    let name = |i: usize| format!("index/{:02x}/{i:06}", i % 7);
    for i in 0..OLD {
        create(store, &name(i), &pattern(i, LEN));
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for writer in 0..2 {
            let stop = &stop;
            scope.spawn(move || {
                let own = (OLD + writer..).step_by(2).take(MOST);
                own.take_while(|_| !stop.load(Ordering::Relaxed))
                    .for_each(|i| create(store, &name(i), &pattern(i, LEN)));
            });
        }
        let listing = scope.spawn(|| {
            let mut looked_at = BTreeSet::new();
            for _ in 0..10 {
                let listed = list_sorted(store, "index/").unwrap();
                let once: BTreeSet<&str> = listed.iter().map(|o| o.name.as_str()).collect();
                assert_eq!(once.len(), listed.len(), "an object was listed twice");
                assert!(
                    (0..OLD).all(|i| once.contains(name(i).as_str())),
                    "an object older than the listing is missing"
                );
                for object in &listed {
                    assert_eq!(object.size, LEN as u64, "{} is listed half-written", object.name);
                    if looked_at.insert(object.name.clone()) {
                        let (bytes, len) = store.get_suffix(&object.name, 1).unwrap();
                        assert_eq!((bytes.len(), len), (1, LEN as u64), "{} is half-written", object.name);
                    }
                }
            }
        });
        let listed = listing.join();
        stop.store(true, Ordering::Relaxed);
        listed.unwrap();
    });
}

fn callbacks_may_stop_and_call(store: &dyn Backend) {
    for i in 0..10 {
        create(store, &format!("forgets/{i}"), b"x");
    }
    let mut seen = 0;
    let stopped = store.list("forgets/", &mut |_| {
        seen += 1;
        if seen == 3 { Err(Error::new(Kind::Cancelled, "enough")) } else { Ok(()) }
    });
    assert_eq!((stopped.unwrap_err().kind(), seen), (Kind::Cancelled, 3));
    store
        .list("forgets/", &mut |object| {
            assert_eq!(store.get(&object.name)?, b"x");
            store.delete(&object.name)
        })
        .unwrap();
    assert_eq!(names(store, ""), [""; 0]);
}

fn deletion_is_final(store: &dyn Backend) {
    for name in ["moved/u/1", "moved/u/2", "moved/u2/1"] {
        create(store, name, b"xyz");
        store.get_range(name, 0, &mut [0; 3]).unwrap();
    }
    for _ in 0..2 {
        store.delete("moved/u/1").unwrap();
        assert_eq!(store.size("moved/u/1").unwrap(), None);
        assert_eq!(store.get("moved/u/1").unwrap_err().kind(), Kind::NotFound);
        assert_eq!(store.get_range("moved/u/1", 0, &mut [0; 3]).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(store.get_suffix("moved/u/1", 3).unwrap_err().kind(), Kind::NotFound);
    }
    store.delete("moved/u2/1").unwrap();
    assert_eq!(names(store, ""), ["moved/u/2"]);
    assert_eq!(store.get("moved/u/2").unwrap(), b"xyz");
}

fn deleted_names_can_be_put_again(store: &dyn Backend) {
    for content in [&b"first"[..], b"other"] {
        create(store, "sessions/s/1", content);
        let mut out = [0; 5];
        store.get_range("sessions/s/1", 0, &mut out).unwrap();
        assert_eq!(out, content);
        store.delete("sessions/s/1").unwrap();
    }
}

fn many_threads(store: &dyn Backend) {
    thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for i in 0..60 {
                    let seed = thread * 1000 + i;
                    // All threads share folders; some of these become empty again and again.
                    let (kept, gone) = (format!("packs/{:02x}/{seed}", i % 5), format!("moved/{}/{seed}", i % 3));
                    let content = pattern(seed, 1 + seed * 7 % 20_000);
                    create(store, &kept, &content);
                    create(store, &gone, &content);
                    let middle = content.len() / 2;
                    let mut out = vec![0; content.len() - middle];
                    store.get_range(&kept, middle as u64, &mut out).unwrap();
                    assert_eq!(out, content[middle..]);
                    assert_eq!(store.get(&gone).unwrap(), content);
                    store.delete(&gone).unwrap();
                    assert_eq!(store.size(&gone).unwrap(), None);
                }
            });
        }
    });
    assert_eq!(names(store, "").len(), 8 * 60);
    assert_eq!(names(store, "moved/"), [""; 0]);
}

fn create(store: &dyn Backend, name: &str, content: &[u8]) {
    assert_eq!(store.put(name, &[content]).unwrap(), Put::Created, "{name}");
}

fn names(store: &dyn Backend, prefix: &str) -> Vec<String> {
    list_sorted(store, prefix).unwrap().into_iter().map(|o| o.name).collect()
}

/// `len` bytes that differ from seed to seed and, nearly always, from offset to offset.
fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i.wrapping_mul(0x9e37_79b1).wrapping_add(seed.wrapping_mul(0x85eb_ca6b)) >> 11).to_le_bytes()[0])
        .collect()
}
