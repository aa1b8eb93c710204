//! Block devices as sources and as targets.

use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::kernel::{LoopDevice, Mounted};
use coffer_tests::program::run;
use std::fs::File;

const SIZE: u64 = 32 * MIB;

#[test]
fn a_device_is_backed_up_and_restored_and_one_in_use_only_on_demand() {
    let coffer = Coffer::new();
    image::make_ext4(&coffer.path("disk.raw"), SIZE, 20_270);
    let device = LoopDevice::attach(&coffer.path("disk.raw"));
    let source = format!("vda={}", device.path());
    coffer.run(&["backup", "-w", "web", &source]);
    coffer.assert_restores("web@latest", "disk.raw");

    let mounted = Mounted::mount(device.path(), "ext4", "rw", &coffer.path("mnt"));
    coffer.fails(&["backup", "-w", "web", &source], &[device.path(), "mounted read-write", "--live"]);
    assert_eq!(coffer.snapshots().len(), 1);
    let made = coffer.warned(&["backup", "-w", "web", "--live", &source]);
    assert!(made["warnings"].to_string().contains("not of one moment"), "{made}");
    mounted.remount("ro");
    coffer.fails(&["restore", "web@latest", "--to", device.path(), "--force"], &[device.path(), "in use"]);
    drop(mounted);

    File::create(coffer.path("other.raw")).unwrap().set_len(SIZE).unwrap();
    let other = LoopDevice::attach(&coffer.path("other.raw"));
    coffer.run(&["restore", "web@-1", "--to", other.path(), "--verify"]);
    run(coffer.outside("e2fsck").args(["-fn", other.path()]));
    coffer.fails(&["restore", "web@latest", "--to", other.path()], &["not empty", "--force"]);
    coffer.run(&["restore", "web@latest", "--to", other.path(), "--force", "--verify"]);
    coffer.run(&["restore", "web@latest", "--to", "restored.raw"]);
    run(coffer.outside("cmp").args([other.path(), "restored.raw"]));
}

#[test]
fn a_device_that_is_shorter_than_it_says_is_an_error() {
    let coffer = Coffer::new();
    image::make(&coffer.path("disk.raw"), SIZE, &[0..SIZE], 20_271);
    let device = LoopDevice::attach(&coffer.path("disk.raw"));
    File::options().write(true).open(coffer.path("disk.raw")).unwrap().set_len(SIZE / 2).unwrap();
    let source = format!("vda={}", device.path());
    coffer.fails(&["backup", "-w", "web", &source], &["vda", &(SIZE / 2).to_string()]);
    assert!(coffer.snapshots().is_empty());
}
