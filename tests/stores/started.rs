//! What the harness starts works, before anything is tried on it.

use coffer_tests::service::azurite::Azurite;
use coffer_tests::service::ceph::Ceph;
use coffer_tests::service::gcs::FakeGcs;
use coffer_tests::service::seaweedfs::SeaweedFs;

#[test]
fn seaweedfs() {
    println!("{:?}", SeaweedFs::shared().bucket("started"));
}

#[test]
fn ceph() {
    println!("{:?}", Ceph::shared().bucket("started"));
    println!("{:?}", Ceph::shared().container("started-swift"));
    println!("{}", Ceph::shared().status());
}

#[test]
fn azurite() {
    println!("{:?}", Azurite::shared().container("started"));
}

#[test]
fn gcs() {
    println!("{:?}", FakeGcs::shared().bucket("started"));
}
