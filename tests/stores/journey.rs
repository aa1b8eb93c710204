//! Whole stories of the command on a store: from a disk to a repository there and back through every door.

use coffer_repo::backend::list_sorted;
use coffer_tests::coffer::Coffer;
use coffer_tests::dice::Dice;
use coffer_tests::image::{self, MIB};
use coffer_tests::program::run;
use coffer_tests::service::Place;
use coffer_tests::service::azurite::Azurite;
use coffer_tests::service::ceph::Ceph;
use coffer_tests::service::gcs::FakeGcs;
use coffer_tests::service::seaweedfs::SeaweedFs;
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

const SEED: u64 = 20_601;
const SIZE: u64 = 48 * MIB;

/// A disk as it was yesterday and as it is today; all of it noise, but for a hole.
fn two_days(coffer: &Coffer) {
    image::make(&coffer.path("old.raw"), SIZE, &[0..20 * MIB, 30 * MIB..SIZE], SEED);
    std::fs::copy(coffer.path("old.raw"), coffer.path("new.raw")).unwrap();
    let today = OpenOptions::new().write(true).open(coffer.path("new.raw")).unwrap();
    let mut noise = [0; 100_000];
    Dice::new(SEED + 1).noise(&mut noise);
    today.write_all_at(&noise, 33 * MIB).unwrap();
}

/// Makes a repository, backs up both days, and reads both back.
fn begin(place: Place) -> Coffer {
    let coffer = Coffer::new_in(place);
    two_days(&coffer);
    coffer.fails(&["init"], &["already"]);
    let first = coffer.json(&["backup", "-w", "web", "vda=old.raw"]);
    assert_eq!(first["new_bytes"], 38 * MIB, "{first}");
    let second = coffer.json(&["backup", "-w", "web", "vda=new.raw"]);
    let new = second["new_bytes"].as_u64().unwrap();
    // What changed, and the chunks around it.
    assert!((100_000..MIB).contains(&new), "{second}");
    assert_eq!(coffer.snapshots().len(), 2);
    coffer.assert_restores("web@-1", "old.raw");
    coffer.assert_restores("web@latest", "new.raw");
    coffer
}

/// The first day goes, and only what it had alone.
fn forget_and_collect(coffer: &Coffer) {
    coffer.run(&["forget", "web@-1"]);
    let collected = coffer.json(&["gc", "--dead-after", "0", "--repack-below", "99"]);
    assert!(collected["removed"]["packs"].as_u64().unwrap() > 0, "{collected}");
    coffer.assert_restores("web@latest", "new.raw");
}

fn sound(coffer: &Coffer) {
    let verified = coffer.json(&["verify", "--data", "all"]);
    assert_eq!(verified["problems"], json!([]), "{verified}");
}

fn doors(coffer: &Coffer) {
    std::fs::create_dir(coffer.path("mnt")).unwrap();
    let mount = coffer.start(&["mount", "mnt"], "mounted at");
    coffer.assert_same("new.raw", "mnt/web/latest/vda.raw");
    assert!(mount.terminate().status.success());

    coffer.run(&["fork", "create", "lab", "web@latest"]);
    let doors = ["serve", "nbd", "--listen", "unix:nbd.sock", "point=web@latest", "lab=fork:lab"];
    let server = coffer.start(&doors, "listening on");
    let uri = |name: &str| format!("nbd+unix:///{name}?socket=nbd.sock");
    run(coffer.outside("qemu-img").args(["compare", "-f", "raw", "-F", "raw", "new.raw", &uri("point")]));
    let io =
        run(coffer.outside("qemu-io").args(["-f", "raw", "-c", "write -P 0x5b 40M 64k", "-c", "flush", &uri("lab")]));
    assert!(!io.contains("failed"), "{io}");
    let made = coffer.json(&["fork", "commit", "lab", "--tag", "lab"]);
    assert_eq!(made["snapshot"]["tags"][0], "lab", "{made}");
    assert!(server.terminate().status.success());
    coffer.run(&["fork", "drop", "lab"]);
    std::fs::copy(coffer.path("new.raw"), coffer.path("lab.raw")).unwrap();
    let lab = OpenOptions::new().write(true).open(coffer.path("lab.raw")).unwrap();
    lab.write_all_at(&[0x5b; 64 << 10], 40 * MIB).unwrap();
    coffer.assert_restores("web@latest", "lab.raw");
    coffer.run(&["forget", "web@latest"]);
    coffer.assert_restores("web@latest", "new.raw");
}

/// A pack is gone and another cut, as by a hand that had no business there; what is told names the way out, and that works.
fn damage_and_heal(coffer: &Coffer) {
    let store = coffer.store();
    let mut packs = list_sorted(&*store, "packs/").unwrap();
    packs.sort_by_key(|pack| std::cmp::Reverse(pack.size));
    let [gone, cut, ..] = &packs[..] else { panic!("{packs:?}") };
    let bytes = store.get(&cut.name).unwrap();
    store.delete(&gone.name).unwrap();
    store.delete(&cut.name).unwrap();
    let half = store.put(&cut.name, &[&bytes[..bytes.len() / 2]]).unwrap();
    assert_eq!(half, coffer_repo::backend::Put::Created);
    // What is cut comes back by its parity where that is enough; what is gone has none to rely on.
    coffer.fails(&["verify"], &["problem", "coffer heal"]);
    // By the disk cache it would succeed: what was read once lies there.
    coffer.fails(&["restore", "web@latest", "--to", "failed.raw", "--disk-cache", "0"], &["--keep-going"]);
    coffer.run(&["heal", "--from", "new.raw"]);
    sound(coffer);
    coffer.assert_restores("web@latest", "new.raw");
}

fn whole(place: Place) {
    let coffer = begin(place);
    doors(&coffer);
    forget_and_collect(&coffer);
    sound(&coffer);
    damage_and_heal(&coffer);
}

#[test]
fn all_of_it_on_seaweedfs() {
    whole(SeaweedFs::shared().bucket("journey"));
}

#[test]
fn all_of_it_on_ceph_below_a_prefix() {
    whole(Ceph::shared().bucket("journey").below("backups/site-1"));
}

#[test]
fn there_and_back_on_azurite() {
    let coffer = begin(Azurite::shared().container("journey"));
    forget_and_collect(&coffer);
    sound(&coffer);
}

#[test]
fn there_and_back_on_fake_gcs_server() {
    let coffer = begin(FakeGcs::shared().bucket("journey"));
    forget_and_collect(&coffer);
    sound(&coffer);
}

/// Nothing is collected: without put-if-absent that is not sound.
#[test]
fn there_and_back_on_swift() {
    let coffer = begin(Ceph::shared().container("journey-swift"));
    coffer.run(&["forget", "web@-1"]);
    assert_eq!(coffer.snapshots().len(), 1);
    sound(&coffer);
}

/// Two repositories in one bucket know nothing of each other; a prefix is not the beginning of another's name.
#[test]
fn repositories_share_a_bucket() {
    let bucket = SeaweedFs::shared().bucket("shared");
    let [one, other] = ["site", "site-2"].map(|name| Coffer::new_in(bucket.clone().below(name)));
    File::create(one.path("disk.raw")).unwrap().set_len(MIB).unwrap();
    one.run(&["backup", "-w", "web", "vda=disk.raw"]);
    assert_eq!((one.snapshots().len(), other.snapshots().len()), (1, 0));
    let outside = list_sorted(&*bucket.open(), "").unwrap();
    assert!(outside.iter().all(|object| object.name.starts_with("site/") || object.name.starts_with("site-2/")));
    let inside = list_sorted(&*one.store(), "").unwrap().len() + list_sorted(&*other.store(), "").unwrap().len();
    assert_eq!(outside.len(), inside);
}
