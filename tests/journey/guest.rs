//! A machine is backed up, and boots from its backup as it is; every outside program sees the disk that was backed up. And it
//! lives on a fork of it, through the death of its machine and of its server.

use coffer_tests::coffer::Coffer;
use coffer_tests::program::{Running, attempt, outside, run};
use coffer_tests::{image, nbd};
use std::path::PathBuf;
use std::process::Command;

const EXPORT: &str = "nbd+unix:///root?socket=nbd.sock";

/// Runs guest.sh in the journey's folder.
fn guest(coffer: &Coffer, arguments: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/journey/guest.sh");
    run(coffer.outside("bash").arg(script).args(arguments));
}

/// Makes what the guest boots from, and its disk root.raw, for a guest that is `brief` or `busy`. Gives the folder of the kernel.
pub(crate) fn prepare(coffer: &Coffer, guest_is: &str) -> String {
    let kernel = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guest"));
    let kernel = kernel.to_str().unwrap().to_owned();
    guest(coffer, &["kernel", &kernel]);
    guest(coffer, &["initrd", &kernel, "initrd"]);
    guest(coffer, &[guest_is, "root.raw", "256M"]);
    kernel
}

/// Boots the guest from `disk`, whose writes are dropped, and gives what it said on its serial port.
fn boot(coffer: &Coffer, kernel: &str, disk: &str) -> String {
    run(machine(coffer, &format!("{kernel}/vmlinuz"), disk).arg("-snapshot"))
}

/// The guest's machine; what it says on its serial port goes to standard output.
fn machine(coffer: &Coffer, kernel: &str, disk: &str) -> Command {
    let mut qemu = coffer.outside("qemu-system-x86_64");
    qemu.args(["-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", "192", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", kernel, "-initrd", "initrd"])
        .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
        .args(["-drive", &format!("file={disk},format=raw,if=virtio")]);
    qemu
}

#[test]
fn a_guest_boots_from_its_backup() {
    let coffer = Coffer::new();
    let kernel = prepare(&coffer, "brief");
    coffer.run(&["backup", "-w", "guest", "root.raw"]);
    let points = coffer.snapshots();

    let arguments = ["serve", "nbd", "--listen", "unix:nbd.sock", "root=guest@latest"];
    let server: Running = coffer.start(&arguments, "listening on");
    for attempt in ["first", "second"] {
        // Twice, and both are the first boot: what a guest writes goes nowhere.
        let said = boot(&coffer, &kernel, EXPORT);
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

/// Each boot adds a line to a file, syncs, and says how many there are.
#[test]
fn a_guest_lives_on_a_fork() {
    let coffer = Coffer::new();
    let kernel = format!("{}/vmlinuz", prepare(&coffer, "brief"));
    coffer.run(&["backup", "-w", "guest", "root.raw"]);
    coffer.run(&["fork", "create", "alive", "guest@latest"]);
    let serve = || coffer.start(&["serve", "nbd", "--listen", "unix:nbd.sock", "root=fork:alive"], "listening on");

    let mut server = serve();
    for (boot, dies) in [(1, "nobody"), (2, "the machine"), (3, "the server"), (4, "nobody")] {
        let mut machine = Running::start(&mut machine(&coffer, &kernel, EXPORT));
        let said = format!("COFFER-BOOT-OK boots={boot} dataok=yes");
        machine.wait_until("the guest to have booted", |machine| machine.out().contains("COFFER-BOOT-OK"));
        assert!(machine.out().contains(&said), "boot {boot}: {}", machine.out());
        match dies {
            "the machine" => machine.kill(),
            "the server" => {
                server.kill();
                // It has no disk any more.
                machine.kill();
                std::fs::remove_file(coffer.path("nbd.sock")).unwrap();
                server = serve();
            }
            _ => assert!(machine.wait().status.success()),
        }
    }
    run(coffer.outside("nbdcopy").args([EXPORT, "lived.raw"]));
    // It died twice: its journal may have something to replay (1), but nothing is broken.
    let checked = attempt(outside("e2fsck").arg("-fp").arg(coffer.path("lived.raw")));
    assert!(matches!(checked.status.code(), Some(0 | 1)), "{checked}");
    assert!(server.terminate().status.success());
    coffer.assert_restores("guest@latest", "root.raw");
}
