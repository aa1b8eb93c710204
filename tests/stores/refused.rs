//! What is wrong before or beside the work: rights, names, clocks, certificates, quotas, a store that stops, objects that go. Each
//! ends with one line that says what to do, within bounded time, and nothing that was committed suffers.

use coffer_repo::backend::list_sorted;
use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::nbd::NbdKit;
use coffer_tests::program::{Running, attempt};
use coffer_tests::service::ceph::Ceph;
use coffer_tests::service::seaweedfs::{SeaweedFs, Tls};
use serde_json::json;

const SEED: u64 = 20_604;

/// Every S3 that is there, with a bucket of that name.
fn both(name: &str) -> [coffer_tests::service::Place; 2] {
    [SeaweedFs::shared().bucket(name), Ceph::shared().bucket(name)]
}

#[test]
fn wrong_credentials_and_buckets_that_are_not_there() {
    for place in both("refused") {
        let coffer = Coffer::new_in(place.clone());
        let wrong = coffer.at(place.clone().with_secret("AWS_SECRET_ACCESS_KEY", "nobodys-secret"));
        let told = wrong.fails(&["init"], &["does not know these credentials", "SignatureDoesNotMatch"]);
        assert!(!told.contains("nobodys-secret"), "{told}");
        // What a store says to HEAD has no reason with it.
        wrong.fails(&["snapshots"], &["credentials", "403"]);
        let unknown = wrong.at(place.clone().with_secret("AWS_ACCESS_KEY_ID", "NOBODY"));
        unknown.fails(&["init"], &["does not know these credentials", "InvalidAccessKeyId"]);
        unknown.fails(&["backup", "-w", "web", "vda=password"], &["credentials", "403"]);

        let mut missing = place.clone();
        missing.location = "s3://no-such-bucket/".to_owned();
        let missing = unknown.at(missing);
        missing.fails(&["init"], &["s3://no-such-bucket", "no such bucket"]);
        missing.fails(&["snapshots"], &["s3://no-such-bucket", "no such bucket"]);
        let empty = missing.at(place.below("elsewhere"));
        empty.fails(&["snapshots"], &["coffer init"]);
    }
}

/// A client whose clock is a day late, before a store that minds.
#[test]
fn a_clock_that_is_wrong() {
    let place = Ceph::shared().bucket("late");
    let coffer = Coffer::new_in(place);
    let mut late = coffer.outside("faketime");
    let command = coffer.command(&["init"]);
    late.env_clear().env("FAKETIME_DONT_FAKE_MONOTONIC", "1").args(["-f", "-1d"]).arg(command.get_program());
    late.args(command.get_args());
    late.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let ended = attempt(&mut late);
    assert_eq!(ended.status.code(), Some(1), "{ended}");
    assert!(ended.err.contains("clock") && ended.err.contains("RequestTimeTooSkewed"), "{ended}");
}

#[test]
fn certificates_that_nobody_knows() {
    let seaweed = SeaweedFs::start(Tls::On);
    let place = seaweed.bucket("tls").with("patience=5");
    let coffer = Coffer::prepare().at(place.clone());
    coffer.fails(&["init"], &["certificate"]);
    let coffer = coffer.at(place.with(&format!("ca-file={}", seaweed.certificate().display())));
    coffer.run(&["init"]);
    image::make(&coffer.path("disk.raw"), 4 * MIB, &[0..4 * MIB], SEED);
    coffer.run(&["backup", "-w", "web", "vda=disk.raw"]);
    coffer.assert_restores("web@latest", "disk.raw");
}

#[test]
fn a_store_that_stops_in_the_middle() {
    let seaweed = SeaweedFs::start(Tls::Off);
    let coffer = Coffer::new_in(seaweed.bucket("stops").with("patience=5"));
    image::make(&coffer.path("before.raw"), 4 * MIB, &[0..4 * MIB], SEED);
    coffer.run(&["backup", "-w", "web", "vda=before.raw"]);
    let store = coffer.store();
    // The rate is in bits per second: the source lasts longer than the store.
    let source = NbdKit::start(&["--filter=rate", "random", "size=512M", "seed=3", "rate=400M"]);
    let mut running = Running::start(&mut coffer.command(&["backup", "-w", "web", &format!("vda={}", source.uri)]));
    let packs = list_sorted(&*store, "packs/").unwrap().len();
    running.wait_until("a pack", |_| list_sorted(&*store, "packs/").unwrap().len() > packs);
    seaweed.kill();
    let ended = running.wait();
    assert_eq!(ended.status.code(), Some(1), "{ended}");
    assert!(ended.err.contains("s3://stops") && !ended.err.contains("panicked"), "{ended}");
    coffer.fails(&["snapshots"], &["s3://stops", "cannot be reached"]);

    seaweed.resume();
    assert_eq!(coffer.snapshots().len(), 1);
    coffer.assert_restores("web@latest", "before.raw");
    coffer.run(&["backup", "-w", "web", "vda=before.raw"]);
    assert_eq!(coffer.json(&["verify", "--data", "all"])["problems"], json!([]));
}

#[test]
fn an_object_that_goes_behind_our_back() {
    let coffer = Coffer::new_in(SeaweedFs::shared().bucket("gone"));
    image::make(&coffer.path("disk.raw"), 4 * MIB, &[0..4 * MIB], SEED);
    coffer.run(&["backup", "-w", "web", "vda=disk.raw"]);
    let store = coffer.store();
    for pack in list_sorted(&*store, "packs/").unwrap() {
        store.delete(&pack.name).unwrap();
    }
    coffer.fails(&["restore", "web@latest", "--to", "failed.raw"], &["packs/"]);
    coffer.fails(&["verify"], &["problem", "coffer heal"]);
    // The index still knows what is gone. No point is made of that: the run is made once more, and stores it anew, which heals what
    // there was.
    let done = coffer.json(&["backup", "-w", "copy", "vda=disk.raw"]);
    assert_eq!(done["new_bytes"], 4 * MIB, "{done}");
    coffer.assert_restores("copy@latest", "disk.raw");
    coffer.run(&["heal"]);
    coffer.assert_restores("web@latest", "disk.raw");
    assert_eq!(coffer.json(&["verify", "--data", "all"])["problems"], json!([]));
}

#[test]
fn a_quota_that_is_reached() {
    let place = Ceph::shared().bucket("quota");
    let coffer = Coffer::new_in(place);
    image::make(&coffer.path("small.raw"), MIB, &[0..MIB], SEED);
    image::make(&coffer.path("large.raw"), 64 * MIB, &[0..64 * MIB], SEED + 1);
    coffer.run(&["backup", "-w", "web", "vda=small.raw"]);
    Ceph::shared().limit("quota", 8 * MIB);
    coffer.fails(&["backup", "-w", "web", "vda=large.raw"], &["quota"]);
    assert_eq!(coffer.snapshots().len(), 1);
    coffer.assert_restores("web@latest", "small.raw");
}
