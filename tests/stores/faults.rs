//! The product over a network and a store that fail after a seeded plan: what it does is right or ends in a clear error, and nothing
//! is ever half-committed.
//!
//! The kinds of fault are those of `repo/src/backend/faulty.rs`, made where they happen: between the program and a real store.

use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::program::{Ended, attempt};
use coffer_tests::proxy::{Fault, Faults, Link, Proxy};
use coffer_tests::service::seaweedfs::SeaweedFs;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const SEED: u64 = 20_603;
const SIZE: u64 = 24 * MIB;

/// Sees that a program that failed said why in one line, and that one that did not says nothing of it.
fn is_clear(ended: &Ended) -> bool {
    let is_done = matches!(ended.status.code(), Some(0 | 3));
    assert!(is_done || ended.status.code() == Some(1), "{ended}");
    assert!(!ended.err.contains("panicked"), "{ended}");
    let last = ended.err.trim_end().lines().next_back().unwrap_or_default();
    assert!(is_done || last.len() > 20, "no reason: {ended}");
    is_done
}

#[test]
fn what_is_done_through_faults_is_right_or_ends_in_a_clear_error() {
    println!("seed {SEED}");
    let place = SeaweedFs::shared().bucket("faults");
    let direct = Coffer::new_in(place.clone());
    let proxy = Proxy::start(SeaweedFs::shared().port(), Link::default());
    // Its own caches: what came through faults stays behind them.
    let faulty = Coffer::prepare().at(place.through(proxy.port()).with("patience=20"));
    let mild = [Fault::Reset, Fault::Busy, Fault::Throttled, Fault::Lost, Fault::Delayed, Fault::Cut];
    // What a client cannot tell from a store that lost bytes ends reads, so that it comes seldom.
    let hard = [Fault::Shortened, Fault::Flipped];
    let (mut done, mut failed) = (0, 0);
    for round in 0..8 {
        image::make(&faulty.path("disk.raw"), SIZE, &[0..16 * MIB], SEED);
        let disk = OpenOptions::new().write(true).open(faulty.path("disk.raw")).unwrap();
        disk.write_all_at(&[u8::try_from(round).unwrap(); 300_000], (2 * u64::try_from(round).unwrap()) * MIB).unwrap();
        let shares = mild.map(|fault| (fault, 40)).into_iter().chain(hard.map(|fault| (fault, 8)));
        let shares: BTreeMap<Fault, u16> = shares.collect();
        proxy.plan(Faults { seed: SEED + u64::try_from(round).unwrap(), shares });

        let before = direct.snapshots();
        let ended = attempt(&mut faulty.command(&["backup", "-w", "web", "vda=disk.raw"]));
        let now = direct.snapshots();
        match is_clear(&ended) {
            true => assert_eq!(now.len(), before.len() + 1, "{ended}"),
            // The answer to the last of its requests may be what was lost: then the point is there, and whole.
            false => assert!(now.len() <= before.len() + 1, "{ended}"),
        }
        std::fs::copy(faulty.path("disk.raw"), direct.path("disk.raw")).unwrap();
        if now.len() > before.len() {
            direct.assert_restores("web@latest", "disk.raw");
            let restored = attempt(&mut faulty.command(&["restore", "web@latest", "--to", "restored.raw"]));
            if is_clear(&restored) {
                faulty.assert_same("disk.raw", "restored.raw");
                done += 1;
            } else {
                failed += 1;
            }
            let _ = std::fs::remove_file(faulty.path("restored.raw"));
        } else {
            failed += 1;
        }
    }
    let struck = proxy.struck();
    println!("{done} done, {failed} ended in an error; {} requests, of which struck: {struck:?}", proxy.requests());
    assert!(done > 0, "nothing works through faults: {struck:?}");
    mild.iter().for_each(|fault| assert!(struck.contains_key(fault), "no {fault:?} came: {struck:?}"));
    assert_eq!(direct.json(&["verify", "--data", "all"])["problems"], json!([]));
    // What failed left nothing that a collection minds.
    let collected = direct.json(&["gc", "--dead-after", "0"]);
    assert_eq!(collected["damaged"], json!([]), "{collected}");
    assert_eq!(direct.json(&["verify", "--data", "all"])["problems"], json!([]));
}

/// Each alone, and always: then nothing can succeed that depends on it, and what is told names it.
#[test]
fn a_store_that_never_works_is_given_up_with_its_reason() {
    let place = SeaweedFs::shared().bucket("never");
    let direct = Coffer::new_in(place.clone());
    image::make(&direct.path("disk.raw"), MIB, &[0..MIB], SEED);
    direct.run(&["backup", "-w", "web", "vda=disk.raw"]);
    let proxy = Proxy::start(SeaweedFs::shared().port(), Link::default());
    let faulty = direct.at(place.through(proxy.port()).with("patience=3"));
    for (fault, word) in [(Fault::Reset, "reset"), (Fault::Busy, "503"), (Fault::Throttled, "429")] {
        proxy.plan(Faults { seed: SEED, shares: BTreeMap::from([(fault, 1000)]) });
        let asked = proxy.requests();
        let told = faulty.fails(&["snapshots"], &["127.0.0.1"]);
        println!("{fault:?}: {told}");
        assert!(told.to_lowercase().contains(word), "{told}");
        let asked = proxy.requests() - asked;
        assert!((2..100).contains(&asked), "{asked} requests");
    }
    proxy.plan(Faults { seed: SEED, shares: BTreeMap::from([(Fault::Flipped, 1000)]) });
    let told = faulty.fails(&["restore", "web@latest", "--to", "wrong.raw"], &[]);
    println!("Flipped: {told}");
    proxy.plan(Faults::default());
    faulty.assert_restores("web@latest", "disk.raw");
}

/// Every put loses its answer once in a while; each is one commit and no more.
#[test]
fn lost_answers_make_nothing_twice() {
    let place = SeaweedFs::shared().bucket("lost");
    let direct = Coffer::new_in(place.clone());
    let proxy = Proxy::start(SeaweedFs::shared().port(), Link { latency: Duration::from_millis(2), rate: None });
    let faulty = Coffer::prepare().at(place.through(proxy.port()));
    image::make(&faulty.path("disk.raw"), 4 * MIB, &[0..4 * MIB], SEED);
    for round in 0..4 {
        proxy.plan(Faults { seed: SEED + round, shares: BTreeMap::from([(Fault::Lost, 300)]) });
        faulty.run(&["backup", "-w", "web", "vda=disk.raw"]);
        assert_eq!(direct.snapshots().len(), usize::try_from(round).unwrap() + 1);
    }
    assert!(proxy.struck()[&Fault::Lost] > 3, "{:?}", proxy.struck());
    std::fs::copy(faulty.path("disk.raw"), direct.path("disk.raw")).unwrap();
    direct.assert_restores("web@latest", "disk.raw");
    assert_eq!(direct.json(&["verify", "--data", "all"])["problems"], json!([]));
}
