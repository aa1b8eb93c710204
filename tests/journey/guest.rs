//! A machine is backed up, and boots from its backup as it is; every outside program sees the disk that was backed up. And it
//! lives on a fork of it, through the death of its machine and of its server.

use coffer_tests::coffer::Coffer;
use coffer_tests::program::{Running, attempt, outside, run};
use coffer_tests::{image, nbd};
use std::path::PathBuf;
use std::process::Command;

const EXPORT: &str = "nbd+unix:///root?socket=nbd.sock";

/// Runs guest.sh in the journey's folder.
pub(crate) fn guest(coffer: &Coffer, arguments: &[&str]) {
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
pub(crate) fn boot(coffer: &Coffer, kernel: &str, disk: &str) -> String {
    run(machine(coffer, &format!("{kernel}/vmlinuz"), disk).arg("-snapshot"))
}

/// The guest's machine; what it says on its serial port goes to standard output.
pub(crate) fn machine(coffer: &Coffer, kernel: &str, disk: &str) -> Command {
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
    // A point of what it became, made while it is served: what it wrote, and nothing broken.
    coffer.run(&["fork", "commit", "alive", "--tag", "lived"]);
    run(coffer.outside("nbdcopy").args([EXPORT, "lived.raw"]));
    assert!(server.terminate().status.success());
    coffer.assert_restores("guest@latest", "lived.raw");
    assert_eq!(inside(&coffer, "lived.raw", "/var/boots"), b"boot\n".repeat(4));
    coffer.assert_restores("guest@-1", "root.raw");
}

/// A file of a file system that is clean.
pub(crate) fn inside(coffer: &Coffer, image: &str, file: &str) -> Vec<u8> {
    run(coffer.outside("e2fsck").args(["-fn", image]));
    run(coffer.outside("debugfs").args(["-R", &format!("dump {file} dumped"), image]));
    std::fs::read(coffer.path("dumped")).unwrap()
}

/// The kernel's own client: what it synced is there after the death of its machine and of its server, and what it wrote until it
/// let go of the disk.
#[test]
fn a_kernel_mounts_a_fork() {
    let coffer = Coffer::new();
    let kernel = prepare(&coffer, "brief");
    guest(&coffer, &["client", &kernel, "client"]);
    coffer.run(&["backup", "-w", "guest", "root.raw"]);
    coffer.run(&["fork", "create", "lab", "guest@latest"]);
    let serve = || {
        let server = coffer.start(&["serve", "nbd", "--listen", "127.0.0.1:0", "root=fork:lab"], "listening on");
        let said = server.err();
        let port = said.split("127.0.0.1:").nth(1).and_then(|rest| rest.split('/').next()).unwrap().to_owned();
        (server, port)
    };
    let attach = |port: &str, word: &str| {
        let mut qemu = coffer.outside("qemu-system-x86_64");
        qemu.args(["-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-no-reboot", "-serial", "stdio", "-initrd", "client"])
            .args(["-kernel", &format!("{kernel}/vmlinuz")])
            .args(["-append", &format!("console=ttyS0 quiet panic=-1 mitigations=off nbd={port}/root {word}")])
            .args(["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="]);
        Running::start(&mut qemu)
    };
    let synced = |machine: &mut Running| {
        machine.wait_until("a sync", |machine| machine.out().contains("COFFER-NBD-SYNCED"));
        assert!(machine.out().contains("dataok=yes"), "{}", machine.out());
    };
    let written: Vec<u8> = b"coffer\n".iter().copied().cycle().take(3_000_000).collect();

    let (server, port) = serve();
    let mut machine = attach(&port, "stay");
    synced(&mut machine);
    server.kill();
    machine.kill();

    let (server, port) = serve();
    let uri = format!("nbd://127.0.0.1:{port}/root");
    run(coffer.outside("nbdcopy").args([&uri, "synced.raw"]));
    let checked = attempt(coffer.outside("e2fsck").args(["-fp", "synced.raw"]));
    // Its journal had something to replay (1), but nothing was broken.
    assert!(matches!(checked.status.code(), Some(0 | 1)), "{checked}");
    assert!(inside(&coffer, "synced.raw", "/written") == written);

    let mut machine = attach(&port, "leave");
    synced(&mut machine);
    let ended = machine.wait();
    assert!(ended.out.contains("COFFER-NBD-ENDED"), "{ended}");
    run(coffer.outside("nbdcopy").args([&uri, "left.raw"]));
    assert!(inside(&coffer, "left.raw", "/written") == written);
    assert!(server.terminate().status.success());
    coffer.assert_restores("guest@latest", "root.raw");
}
