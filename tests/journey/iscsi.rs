//! Initiators that others made, at the target: QEMU's that boots a machine, libiscsi's and QEMU's tools, and the Linux kernel's with
//! open-iscsi's programs, whose disk loses its server twice and goes on.
//!
//! Not here: libiscsi's suite ([`crate::conformance`]); what one command does. What holds: a fork is the same disk over iSCSI and over
//! NBD, one after the other.

use crate::guest::{boot, guest, inside, machine, prepare};
use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::program::{Running, attempt, run};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

const TARGET: &str = "iqn.2026-01.test:disks";
const NBD: &str = "nbd+unix:///disk?socket=nbd.sock";

/// A target with one or more portals.
pub(crate) struct Served {
    pub(crate) server: Running,
    ports: Vec<String>,
}

impl Served {
    /// Serves what `more` says at so many portals, whose ports are free ones.
    pub(crate) fn start(coffer: &Coffer, portals: usize, more: &[&str]) -> Served {
        Served::at(coffer, &vec!["0".to_owned(); portals], more)
    }

    /// The same at these ports.
    fn at(coffer: &Coffer, ports: &[String], more: &[&str]) -> Served {
        let places: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let mut arguments = vec!["serve", "iscsi", "--target", TARGET];
        places.iter().for_each(|place| arguments.extend(["--listen", place]));
        arguments.extend(more);
        let mut server = Running::start(&mut coffer.command(&arguments));
        let found = |said: &str| -> Vec<String> {
            // A line for each disk of each portal, the portals in their order.
            let mut ports = Vec::new();
            for line in said.lines().filter(|line| line.ends_with(&format!("{TARGET}/0"))) {
                ports.extend(line.split("iscsi://127.0.0.1:").nth(1).and_then(|rest| rest.split('/').next()));
            }
            ports.into_iter().map(str::to_owned).collect()
        };
        server.wait_until("all its portals", |server| found(&server.err()).len() == ports.len());
        let ports = found(&server.err());
        Served { server, ports }
    }

    /// A disk by the way of a portal.
    pub(crate) fn url(&self, portal: usize, lun: u16) -> String {
        format!("iscsi://127.0.0.1:{}/{TARGET}/{lun}", self.ports[portal])
    }

    fn end(self) {
        let ended = self.server.terminate();
        assert!(ended.status.success(), "{ended}");
    }
}

/// The fork `lab` over NBD, while `with` goes on.
fn over_nbd(coffer: &Coffer, with: impl FnOnce()) {
    let server = coffer.start(&["serve", "nbd", "--listen", "unix:nbd.sock", "disk=fork:lab"], "listening on");
    with();
    let ended = server.terminate();
    assert!(ended.status.success(), "{ended}");
}

fn io(coffer: &Coffer, uri: &str, commands: &[&str]) {
    let mut command = coffer.outside("qemu-io");
    command.args(["-f", "raw"]);
    for text in commands {
        command.args(["-c", text]);
    }
    let out = run(command.arg(uri));
    // A pattern that is not there is no failure of the program.
    assert!(!out.contains("failed"), "{out}");
}

fn compare(coffer: &Coffer, one: &str, other: &str) {
    run(coffer.outside("qemu-img").args(["compare", "-f", "raw", "-F", "raw", one, other]));
}

#[test]
fn a_guest_boots_from_iscsi() {
    let coffer = Coffer::new();
    let kernel = prepare(&coffer, "brief");
    coffer.run(&["backup", "-w", "guest", "root.raw"]);
    coffer.run(&["fork", "create", "lab", "guest@latest"]);

    let served = Served::start(&coffer, 1, &["--lun", "0=fork:lab", "--lun", "1=guest@latest"]);
    for boots in 1..=2 {
        let said = run(&mut machine(&coffer, &format!("{kernel}/vmlinuz"), &served.url(0, 0)));
        assert!(said.contains(&format!("COFFER-BOOT-OK boots={boots} dataok=yes")), "{said}");
    }
    // The point is as it was, and takes no writes: what the machine writes goes nowhere.
    let said = boot(&coffer, &kernel, &served.url(0, 1));
    assert!(said.contains("COFFER-BOOT-OK boots=1 dataok=yes"), "{said}");
    compare(&coffer, "root.raw", &served.url(0, 1));
    served.end();

    over_nbd(&coffer, || {
        run(coffer.outside("nbdcopy").args([NBD, "lived.raw"]));
        io(&coffer, NBD, &["write -P 0x5a 200M 64k", "flush"]);
    });
    assert_eq!(inside(&coffer, "lived.raw", "/var/boots"), b"boot\nboot\n");
    let served = Served::start(&coffer, 1, &["--lun", "0=fork:lab"]);
    io(&coffer, &served.url(0, 0), &["read -P 0x5a 200M 64k"]);
    served.end();
}

/// A guest that attaches its disk by the kernel's own initiator.
struct Attached {
    running: Running,
}

impl Attached {
    fn boot(coffer: &Coffer, kernel: &str, port: &str, words: &str) -> Attached {
        let line = format!("console=ttyS0 quiet panic=-1 mitigations=off target={TARGET} port={port} {words}");
        let mut qemu = coffer.outside("qemu-system-x86_64");
        qemu.args(["-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-no-reboot", "-initrd", "client", "-kernel", &format!("{kernel}/vmlinuz")])
            .args(["-append", &line, "-serial", "chardev:serial"])
            .args(["-chardev", "socket,id=serial,path=serial.sock,server=on,wait=off,logfile=serial.log"])
            .args(["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="]);
        Attached { running: Running::start(&mut qemu) }
    }

    /// Waits until it has synced so many more lines; gives what it has said.
    fn live(&mut self, coffer: &Coffer, more: usize) -> String {
        let due = ticks(&said(coffer)) + more;
        self.running.wait_until("the guest to go on", |_| {
            let said = said(coffer);
            assert!(!said.contains("COFFER-ISCSI-FAILED"), "{said}");
            ticks(&said) >= due
        });
        said(coffer)
    }

    /// Has it let go of the disk; gives how many lines it has synced.
    fn stop(self, coffer: &Coffer) -> usize {
        UnixStream::connect(coffer.path("serial.sock")).unwrap().write_all(b"stop\n").unwrap();
        let ended = self.running.wait();
        let said = said(coffer);
        assert!(ended.status.success() && said.contains("COFFER-ISCSI-ENDED"), "{said}");
        ticks(&said)
    }
}

/// What the guest has said on its serial port.
fn said(coffer: &Coffer) -> String {
    std::fs::read_to_string(coffer.path("serial.log")).unwrap_or_default()
}

fn ticks(said: &str) -> usize {
    said.matches("COFFER-ISCSI-TICK").count()
}

fn assert_says(said: &str, lines: &[&str]) {
    for line in lines {
        assert!(said.contains(&format!("COFFER-ISCSI-{line}")), "{line}: {said}");
    }
}

/// A guest with its initiator, a fork of its disk, and the secrets of both sides.
fn prepare_attached(coffer: &Coffer) -> String {
    let kernel = prepare(coffer, "brief");
    guest(coffer, &["iscsi", &kernel, &format!("{kernel}-initiator"), "client"]);
    for (file, secret) in [("guest.secret", "secret-of-the-guest"), ("disk.secret", "secret-of-the-disk\n")] {
        std::fs::write(coffer.path(file), secret).unwrap();
        std::fs::set_permissions(coffer.path(file), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    coffer.run(&["backup", "-w", "guest", "root.raw"]);
    coffer.run(&["fork", "create", "lab", "guest@latest"]);
    kernel
}

/// Sees, over NBD, that the fork is whole and has what the guest synced so many times, and nothing of what it trimmed.
fn assert_lived(coffer: &Coffer, ticks: usize) {
    over_nbd(coffer, || {
        run(coffer.outside("nbdcopy").args([NBD, "lived.raw"]));
    });
    let kept = String::from_utf8(inside(coffer, "lived.raw", "/ticks")).unwrap();
    let expected: String = (1..=ticks).map(|number| format!("{number}\n")).collect();
    assert_eq!(kept, expected);
    let written: Vec<u8> = b"coffer\n".iter().copied().cycle().take(3_000_000).collect();
    assert!(inside(coffer, "lived.raw", "/written") == written);
    let lived = std::fs::read(coffer.path("lived.raw")).unwrap();
    assert!(!lived.windows(18).any(|bytes| bytes == b"trimmings\ntrimming"), "trimmed bytes are still there");
    coffer.assert_restores("guest@latest", "root.raw");
}

/// Both sides prove themselves by what is better than MD5.
#[test]
fn a_kernel_mounts_a_fork_and_outlives_its_server() {
    let coffer = Coffer::new();
    let kernel = prepare_attached(&coffer);
    let mutual = ["--lun", "0=fork:lab", "--initiator", "iqn.2026-01.test:guest", "--chap-user", "guest"];
    let mutual = [&mutual[..], &["--chap-secret", "guest.secret", "--target-user", "disk"]].concat();
    let mutual = [&mutual[..], &["--target-secret", "disk.secret"]].concat();

    let served = Served::start(&coffer, 1, &mutual);
    let ports = served.ports.clone();
    let mut attached = Attached::boot(&coffer, &kernel, &ports[0], "");
    let said = attached.live(&coffer, 2);
    assert_says(&said, &["CHAP MD5 no", "CHAP SHA1 yes", "CHAP SHA256 yes", "CHAP SHA3-256 yes"]);
    assert_says(&said, &["CHAP guessed no", "CHAP deceived no", "SYNCED dataok=yes digests=1,1"]);
    served.server.kill();
    let served = Served::at(&coffer, &ports, &mutual);
    attached.live(&coffer, 2);
    // Asked to end, it asks its initiators to log out first.
    served.end();
    let served = Served::at(&coffer, &ports, &mutual);
    attached.live(&coffer, 2);
    let ticks = attached.stop(&coffer);
    served.end();
    assert_lived(&coffer, ticks);
}

#[test]
fn a_kernel_may_use_md5_where_it_is_allowed() {
    let coffer = Coffer::new();
    let kernel = prepare_attached(&coffer);
    let one_way = ["--lun", "0=fork:lab", "--chap-user", "guest", "--chap-secret", "guest.secret", "--allow-md5"];
    let served = Served::start(&coffer, 1, &one_way);
    let mut attached = Attached::boot(&coffer, &kernel, &served.ports[0], "oneway");
    let said = attached.live(&coffer, 1);
    assert_says(&said, &["CHAP MD5 yes", "CHAP SHA3-256 yes", "CHAP guessed no", "SYNCED dataok=yes digests=1,1"]);
    let ticks = attached.stop(&coffer);
    served.end();
    assert_lived(&coffer, ticks);
}

#[test]
fn tools_of_others_read_write_and_discard() {
    let coffer = Coffer::new();
    let size = 24 * MIB;
    image::make(&coffer.path("disk.raw"), size, &[0..10 * MIB, 14 * MIB..size], 20_702);
    image::make(&coffer.path("other.raw"), size, &[MIB..7 * MIB, 20 * MIB..size], 20_703);
    coffer.run(&["backup", "-w", "web", "vda=disk.raw"]);
    coffer.run(&["fork", "create", "lab", "web@latest"]);
    let served = Served::start(&coffer, 1, &["--lun", "0=fork:lab", "--lun", "7=web@latest"]);
    let (fork, point) = (served.url(0, 0), served.url(0, 7));
    compare(&coffer, "disk.raw", &point);
    compare(&coffer, "disk.raw", &fork);
    io(&coffer, &fork, &["write -P 0x5a 1M 3M", "write -P 0x5b 12800 512", "write -z 5M 64k", "write -z -u 6M 1M"]);
    io(&coffer, &fork, &["discard 2M 1M", "flush", "read -P 0x5a 1M 1M", "read -P 0x5b 12800 512"]);
    io(&coffer, &fork, &["read -P 0 2M 1M", "read -P 0x5a 3M 1M", "read -P 0 5M 64k", "read -P 0 6M 1M"]);
    let refused = attempt(coffer.outside("qemu-io").args(["-f", "raw", "-c", "write 0 4096"]).arg(&point));
    assert!(!refused.status.success() || refused.out.contains("failed"), "{refused}");

    // All of another disk over it: what that lacks becomes holes.
    run(coffer.outside("qemu-img").args(["convert", "-n", "-f", "raw", "-O", "raw", "other.raw", &fork]));
    compare(&coffer, "other.raw", &fork);
    run(coffer.outside("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2", &fork, "copy.qcow2"]));
    run(coffer.outside("qemu-img").args(["compare", "-f", "raw", "-F", "qcow2", "other.raw", "copy.qcow2"]));
    compare(&coffer, "disk.raw", &point);
    served.end();
    over_nbd(&coffer, || compare(&coffer, "other.raw", NBD));
}

/// QEMU's own reads are small here: of larger ones from a disk with such blocks whose holes are zeroes it asks where data is, up to an
/// end that is no block's, and dies of that.
#[test]
fn a_disk_may_have_blocks_of_4096_bytes() {
    let coffer = Coffer::new();
    image::make(&coffer.path("disk.raw"), 8 * MIB, &[0..3 * MIB], 20_704);
    image::make(&coffer.path("other.raw"), 8 * MIB, &[MIB..2 * MIB, 5 * MIB..8 * MIB], 20_705);
    coffer.run(&["backup", "-w", "web", "vda=disk.raw"]);
    coffer.run(&["fork", "create", "lab", "web@latest"]);
    let served = Served::start(&coffer, 1, &["--lun", "0=fork:lab", "--block-size", "4096"]);
    let fork = served.url(0, 0);
    let capacity = run(coffer.outside("iscsi-readcapacity16").arg(&fork));
    let has = |name: &str, value: u64| {
        capacity.lines().any(|line| line.contains(name) && line.ends_with(&format!(":{value}")))
    };
    assert!(has("LOGICAL BLOCK LENGTH", 4096) && has("Total size", 8 * MIB), "{capacity}");
    run(coffer.outside("qemu-img").args(["convert", "-n", "-f", "raw", "-O", "raw", "other.raw", &fork]));
    io(
        &coffer,
        &fork,
        &["write -P 0x5a 64k 1M", "write -P 0x5b 12288 4096", "discard 6M 1M", "write -z 5M 64k", "flush"],
    );
    io(&coffer, &fork, &["read -P 0x5b 12288 4096", "read -P 0x5a 64k 16k", "read -P 0 6M 16k"]);
    served.end();
    io(
        &coffer,
        "other.raw",
        &["write -P 0x5a 64k 1M", "write -P 0x5b 12288 4096", "write -z 6M 1M", "write -z 5M 64k"],
    );
    over_nbd(&coffer, || compare(&coffer, "other.raw", NBD));
}
