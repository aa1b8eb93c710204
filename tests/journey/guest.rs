//! A machine is backed up, and boots from its backup as it is; every outside program sees the disk that was backed up.

use coffer_tests::coffer::Coffer;
use coffer_tests::program::{Running, outside, run};
use coffer_tests::{image, nbd};
use std::path::PathBuf;

const EXPORT: &str = "nbd+unix:///root?socket=nbd.sock";

/// Runs guest.sh in the journey's folder.
fn guest(coffer: &Coffer, arguments: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/journey/guest.sh");
    run(coffer.outside("bash").arg(script).args(arguments));
}

/// Boots the guest from `disk`, whose writes are dropped, and gives what it said on its serial port.
fn boot(coffer: &Coffer, kernel: &str, disk: &str) -> String {
    let mut qemu = coffer.outside("qemu-system-x86_64");
    qemu.args(["-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", "192", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", kernel, "-initrd", "initrd"])
        .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off", "-snapshot"])
        .args(["-drive", &format!("file={disk},format=raw,if=virtio")]);
    run(&mut qemu)
}

#[test]
fn a_guest_boots_from_its_backup() {
    let coffer = Coffer::new();
    let kernel = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guest"));
    let kernel = kernel.to_str().unwrap();
    guest(&coffer, &["kernel", kernel]);
    guest(&coffer, &["initrd", kernel, "initrd"]);
    guest(&coffer, &["root", "root.raw", "256M"]);
    coffer.run(&["backup", "-w", "guest", "root.raw"]);
    let points = coffer.snapshots();

    let arguments = ["serve", "nbd", "--listen", "unix:nbd.sock", "root=guest@latest"];
    let server: Running = coffer.start(&arguments, "listening on");
    for attempt in ["first", "second"] {
        // Twice, and both are the first boot: what a guest writes goes nowhere.
        let said = boot(&coffer, &format!("{kernel}/vmlinuz"), EXPORT);
        assert!(said.contains("COFFER-BOOT-OK boots=1 dataok=yes"), "{attempt} boot: {said}");
    }
    run(coffer.outside("qemu-img").args(["compare", "-f", "raw", "-F", "raw", "root.raw", EXPORT]));
    run(coffer.outside("nbdcopy").args([EXPORT, "copied.raw"]));
    coffer.assert_same("root.raw", "copied.raw");
    assert_eq!(nbd::data(&mut coffer.outside("nbdinfo"), EXPORT), image::stretches(&coffer.path("root.raw")));
    let ended = server.terminate();
    assert!(ended.status.success(), "{ended}");

    coffer.run(&["restore", "guest@latest", "--to", "restored.raw"]);
    coffer.assert_same("root.raw", "restored.raw");
    run(outside("e2fsck").arg("-fn").arg(coffer.path("restored.raw")));
    coffer.run(&["restore", "guest@latest:root", "--to", "restored.qcow2"]);
    run(coffer.outside("qemu-img").args(["compare", "-f", "raw", "-F", "qcow2", "root.raw", "restored.qcow2"]));
    run(coffer.outside("qemu-img").args(["check", "-f", "qcow2", "restored.qcow2"]));
    assert_eq!(coffer.snapshots(), points);
}
