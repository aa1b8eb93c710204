//! The contract of storage, over every store that can be had here.

use coffer_tests::contract::{Class, run_as};
use coffer_tests::service::Place;
use coffer_tests::service::azurite::Azurite;
use coffer_tests::service::ceph::Ceph;
use coffer_tests::service::gcs::FakeGcs;
use coffer_tests::service::seaweedfs::SeaweedFs;
use std::sync::atomic::{AtomicU32, Ordering};

fn keeps_it(class: Class, place: &Place) {
    let made = AtomicU32::new(0);
    run_as(class, &|| {
        let number = made.fetch_add(1, Ordering::Relaxed);
        place.clone().below(&number.to_string()).open()
    });
}

#[test]
fn seaweedfs_keeps_it_by_s3() {
    keeps_it(Class::Strong, &SeaweedFs::shared().bucket("contract"));
}

#[test]
fn ceph_keeps_it_by_s3() {
    keeps_it(Class::Strong, &Ceph::shared().bucket("contract"));
}

/// Swift's protocol cannot say "unless it exists".
#[test]
fn ceph_keeps_it_by_swift_but_for_races() {
    keeps_it(Class::Weak, &Ceph::shared().container("contract-swift"));
}

#[test]
fn azurite_keeps_it() {
    keeps_it(Class::Strong, &Azurite::shared().container("contract"));
}

#[test]
fn fake_gcs_server_keeps_what_it_can() {
    keeps_it(Class::FakeGcs, &FakeGcs::shared().bucket("contract"));
}
