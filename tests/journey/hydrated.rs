//! A fork becomes an ordinary disk: a file, an export of somebody else's, a disk of QEMU's. It is interrupted and goes on; and a machine
//! that runs on the fork all the while loses nothing, whether QEMU mirrors the disk by itself or is told that it has moved.

use crate::guest::prepare;
use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::kernel::{LoopDevice, Mounted};
use coffer_tests::program::{Running, attempt, outside, run};
use coffer_tests::qmp::Qmp;
use serde_json::json;
use std::io::Write;
use std::os::unix::net::UnixStream;

const SIZE: u64 = 24 * MIB;
const LAB: &str = "nbd+unix:///lab?socket=nbd.sock";
const SERVE: [&str; 5] = ["serve", "nbd", "--listen", "unix:nbd.sock", "lab=fork:lab"];

fn io(coffer: &Coffer, uri: &str, commands: &[&str]) {
    let mut command = coffer.outside("qemu-io");
    command.args(["-f", "raw"]);
    for text in commands {
        command.args(["-c", text]);
    }
    let out = run(command.arg(uri));
    assert!(!out.contains("failed"), "{out}");
}

fn serve(coffer: &Coffer) -> Running {
    let _ = std::fs::remove_file(coffer.path("nbd.sock"));
    coffer.start(&SERVE, "listening on")
}

/// A fork with writes of its own; what it holds is in fork.raw.
fn forked() -> Coffer {
    let coffer = Coffer::new();
    image::make(&coffer.path("disk.raw"), SIZE, &[0..10 * MIB, 14 * MIB..SIZE], 20_501);
    coffer.run(&["backup", "-w", "web", "vda=disk.raw"]);
    coffer.run(&["fork", "create", "lab", "web@latest"]);
    let server = serve(&coffer);
    io(&coffer, LAB, &["write -P 0x5a 1M 64k", "write -P 0x5b 12800 512", "discard 3M 2M", "write -P 0x5c 12M 128k"]);
    run(coffer.outside("nbdcopy").args([LAB, "fork.raw"]));
    assert!(server.terminate().status.success());
    coffer
}

#[test]
fn a_fork_becomes_a_file_though_it_is_interrupted() {
    let coffer = forked();
    std::fs::write(coffer.path("small.raw"), b"small").unwrap();
    std::fs::write(coffer.path("full.raw"), vec![1; usize::try_from(SIZE).unwrap()]).unwrap();
    coffer.fails(&["fork", "hydrate", "lab", "--to", "small.raw"], &["small.raw", "5 bytes", "larger"]);
    coffer.fails(&["fork", "hydrate", "lab", "--to", "full.raw"], &["full.raw", "not empty", "--force"]);
    coffer.fails(&["fork", "hydrate", "nowhere", "--to", "web.raw"], &["no fork 'nowhere'", "lab"]);

    // As slow as to be found at it. Asked to stop it writes down how far it is; killed it has done so some time ago.
    let slow = ["fork", "hydrate", "lab", "--to", "web.raw", "--max-rate", "1M"];
    let mut slow_run = Running::start(&mut coffer.command(&slow));
    slow_run.wait_until("a first MiB", |_| copied(&coffer) >= MIB);
    coffer.fails(&["fork", "hydrate", "lab", "--to", "web.raw"], &["open in another process"]);
    coffer.fails(&["fork", "commit", "lab"], &["open in another process"]);
    let ended = slow_run.terminate();
    assert!(ended.status.code() == Some(1) && ended.err.contains("goes on where this one was"), "{ended}");
    let before = copied(&coffer);
    let mut slow_run = Running::start(&mut coffer.command(&slow));
    slow_run.wait_until("another MiB", |_| copied(&coffer) >= before + MIB);
    slow_run.kill();
    coffer.fails(&["fork", "hydrate", "lab", "--to", "other.raw"], &["web.raw", "--restart"]);

    // What was interrupted is the fork still.
    let server = serve(&coffer);
    io(&coffer, LAB, &["read -P 0x5a 1M 64k", "write -P 0x5d 20M 4k"]);
    run(coffer.outside("nbdcopy").args([LAB, "fork.raw"]));
    assert!(server.terminate().status.success());
    let done = coffer.json(&["fork", "hydrate", "lab", "--to", "web.raw"]);
    assert!(done["resumed"].as_u64().unwrap() >= 256 << 10, "{done}");
    assert_eq!(done["verified"], SIZE, "{done}");
    coffer.assert_same("fork.raw", "web.raw");
    run(coffer.outside("qemu-img").args(["compare", "-f", "raw", "-F", "raw", "fork.raw", "web.raw"]));
    assert!(copied(&coffer) <= SIZE - 2 * MIB, "its holes are holes");

    // It says where it is, and serves that.
    let listed = coffer.json(&["fork", "list"]);
    assert_eq!(listed["forks"][0]["handed_to"], coffer.path("web.raw").to_str().unwrap(), "{listed}");
    coffer.fails(&["fork", "commit", "lab"], &["handed over to", "web.raw"]);
    coffer.fails(&["fork", "hydrate", "lab", "--to", "third.raw"], &["handed over to", "web.raw"]);
    let server = serve(&coffer);
    io(&coffer, LAB, &["read -P 0x5d 20M 4k", "write -P 0x5e 5M 64k", "flush"]);
    assert!(server.terminate().status.success());
    io(&coffer, "web.raw", &["read -P 0x5e 5M 64k"]);
    coffer.run(&["fork", "drop", "lab"]);
    io(&coffer, "web.raw", &["read -P 0x5e 5M 64k"]);
    coffer.assert_restores("web@latest", "disk.raw");
}

/// Bytes that the target takes.
fn copied(coffer: &Coffer) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(coffer.path("web.raw")).map_or(0, |of| of.blocks() * 512)
}

#[test]
fn a_fork_becomes_an_export_of_somebody_elses() {
    let coffer = forked();
    std::fs::File::create(coffer.path("far.raw")).unwrap().set_len(SIZE + MIB).unwrap();
    let uri = "nbd+unix:///far?socket=far.sock";
    let mut command = coffer.outside("qemu-nbd");
    command.args(["-f", "raw", "-x", "far", "--persistent", "--discard=unmap", "-k"]);
    // It wants to know the whole path.
    command.arg(coffer.path("far.sock")).arg("far.raw");
    let mut far = Running::start(&mut command);
    far.wait_until("its socket", |_| coffer.path("far.sock").exists());
    let done = coffer.json(&["fork", "hydrate", "lab", "--to", uri]);
    assert_eq!(done["verified"], SIZE, "{done}");
    run(coffer.outside("cmp").args(["--bytes", &SIZE.to_string(), "fork.raw", "far.raw"]));
    let server = serve(&coffer);
    io(&coffer, LAB, &["write -P 0x5f 7M 64k", "flush"]);
    assert!(server.terminate().status.success());
    io(&coffer, uri, &["read -P 0x5f 7M 64k"]);
    far.kill();
    coffer.fails(&SERVE, &["'lab' was handed over to", "far.sock", "drop"]);
    coffer.run(&["fork", "drop", "lab"]);
}

#[test]
fn a_fork_becomes_a_block_device_that_nobody_uses() {
    let coffer = forked();
    let device = |file: &str, size: u64| {
        std::fs::File::create(coffer.path(file)).unwrap().set_len(size).unwrap();
        LoopDevice::attach(&coffer.path(file))
    };
    let small = device("small.raw", SIZE - MIB);
    coffer.fails(&["fork", "hydrate", "lab", "--to", small.path()], &[small.path(), "the disk needs"]);
    image::make_ext4(&coffer.path("used.raw"), SIZE + MIB, 20_502);
    let target = LoopDevice::attach(&coffer.path("used.raw"));
    let mounted = Mounted::mount(target.path(), "ext4", "rw", &coffer.path("mnt"));
    let hydrate = ["fork", "hydrate", "lab", "--to", target.path(), "--force"];
    coffer.fails(&hydrate, &[target.path(), "in use", "mounted"]);
    drop(mounted);
    coffer.fails(&hydrate[..5], &[target.path(), "not empty", "--force"]);
    let done = coffer.json(&hydrate);
    assert_eq!(done["verified"], SIZE, "{done}");
    run(coffer.outside("cmp").args(["--bytes", &SIZE.to_string(), "fork.raw", target.path()]));
    let server = serve(&coffer);
    io(&coffer, LAB, &["write -P 0x60 9M 64k", "flush", "discard 1M 1M", "read -P 0x60 9M 64k"]);
    coffer.fails(&["fork", "drop", "lab"], &["open in another process"]);
    assert!(server.terminate().status.success());
    io(&coffer, target.path(), &["read -P 0x60 9M 64k", "read -P 0 1M 1M"]);
}

/// A machine that adds a line to a file every second, and stops when it is told to.
struct Machine {
    running: Running,
    qmp: Qmp,
}

impl Machine {
    /// Starts it with the disk `root` of the server at nbd.sock.
    fn start(coffer: &Coffer, kernel: &str) -> Machine {
        let mut qemu = coffer.outside("qemu-system-x86_64");
        qemu.args(["-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", "192", "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-no-reboot", "-kernel", &format!("{kernel}/vmlinuz"), "-initrd", "initrd"])
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off", "-serial", "chardev:serial"])
            .args(["-chardev", "socket,id=serial,path=serial.sock,server=on,wait=off,logfile=serial.log"])
            .args(["-qmp", "unix:qmp.sock,server=on,wait=off"])
            .args(["-blockdev", "driver=nbd,node-name=far,server.type=unix,server.path=nbd.sock,export=root"])
            .args(["-blockdev", "driver=raw,node-name=disk,file=far,discard=unmap"])
            .args(["-device", "virtio-blk-pci,drive=disk"]);
        let running = Running::start(&mut qemu);
        Machine { running, qmp: Qmp::connect(&coffer.path("qmp.sock")) }
    }

    /// Waits for so many more lines.
    fn live(&mut self, coffer: &Coffer, more: usize) {
        let lines = || std::fs::read_to_string(coffer.path("serial.log")).unwrap().matches("COFFER-TICK").count();
        let due = lines() + more;
        self.running.wait_until("the guest to go on", |_| lines() >= due);
    }

    /// Has it stop, and sees that `disk` is whole and has all that the guest was told it has.
    fn stop(self, coffer: &Coffer, disk: &str) {
        UnixStream::connect(coffer.path("serial.sock")).unwrap().write_all(b"stop\n").unwrap();
        assert!(self.running.wait().status.success());
        let said = std::fs::read_to_string(coffer.path("serial.log")).unwrap();
        let ticks: u64 =
            said.split("COFFER-STOP ticks=").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
        let checked = attempt(outside("e2fsck").arg("-fn").arg(coffer.path(disk)));
        assert_eq!(checked.status.code(), Some(0), "{checked}");
        let kept = run(outside("debugfs").args(["-R", "cat /var/ticks"]).arg(coffer.path(disk)));
        let kept: Vec<u64> = kept.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(kept, (1..=ticks).collect::<Vec<_>>(), "{said}");
    }
}

/// Whoever asked goes away: the copying ends, the server goes on, and so does the next who asks.
#[test]
fn who_hangs_up_ends_a_hydration_and_nothing_else() {
    let coffer = forked();
    let server = serve(&coffer);
    let mut asks =
        Running::start(&mut coffer.command(&["fork", "hydrate", "lab", "--to", "web.raw", "--max-rate", "1M"]));
    asks.wait_until("a first MiB", |_| copied(&coffer) >= MIB);
    coffer.fails(&["fork", "commit", "lab"], &["being committed", "hydrated"]);
    asks.kill();
    io(&coffer, LAB, &["write -P 0x61 2M 1M", "flush"]);
    let mut server = server;
    server.wait_until("the end of what was asked for", |server| server.err().contains("the hydrate failed"));
    run(coffer.outside("nbdcopy").args([LAB, "fork.raw"]));
    let done = coffer.json(&["fork", "hydrate", "lab", "--to", "web.raw"]);
    assert!(done["resumed"].as_u64().unwrap() > 0, "{done}");
    coffer.assert_same("fork.raw", "web.raw");
    io(&coffer, LAB, &["write -P 0x62 20M 64k", "flush", "read -P 0x61 2M 1M"]);
    run(coffer.outside("qemu-io").args(["-f", "raw", "-r", "-c", "read -P 0x62 20M 64k", "web.raw"]));
    assert!(server.terminate().status.success());
}

fn alive() -> (Coffer, String) {
    let coffer = Coffer::new();
    let kernel = prepare(&coffer, "busy");
    coffer.run(&["backup", "-w", "guest", "root.raw"]);
    coffer.run(&["fork", "create", "lab", "guest@latest"]);
    (coffer, kernel)
}

#[test]
fn qemu_mirrors_a_fork_to_a_file_and_the_guest_goes_on() {
    let (coffer, kernel) = alive();
    let server = coffer.start(&["serve", "nbd", "--listen", "unix:nbd.sock", "root=fork:lab"], "listening on");
    let mut machine = Machine::start(&coffer, &kernel);
    machine.live(&coffer, 3);
    let size = std::fs::metadata(coffer.path("root.raw")).unwrap().len();
    std::fs::File::create(coffer.path("web.raw")).unwrap().set_len(size).unwrap();
    let qmp = &mut machine.qmp;
    qmp.execute("blockdev-add", json!({ "driver": "file", "node-name": "file", "filename": "web.raw" }));
    qmp.execute("blockdev-add", json!({ "driver": "raw", "node-name": "local", "file": "file" }));
    let mirror =
        json!({ "job-id": "move", "device": "disk", "target": "local", "sync": "full", "copy-mode": "write-blocking" });
    qmp.execute("blockdev-mirror", mirror);
    qmp.wait_for_jobs("mirror that is ready", |jobs| jobs.iter().all(|job| job["ready"] == true) && !jobs.is_empty());
    qmp.execute("job-complete", json!({ "id": "move" }));
    qmp.wait_for_jobs("end of the mirror", <[_]>::is_empty);
    // The fork is nobody's any more.
    assert!(server.terminate().status.success());
    machine.live(&coffer, 3);
    machine.stop(&coffer, "web.raw");
    coffer.run(&["fork", "drop", "lab"]);
}

#[test]
fn a_fork_is_hydrated_under_a_guest_and_qemu_told_where_its_disk_is() {
    let (coffer, kernel) = alive();
    let server = coffer.start(&["serve", "nbd", "--listen", "unix:nbd.sock", "root=fork:lab"], "listening on");
    let mut machine = Machine::start(&coffer, &kernel);
    machine.live(&coffer, 3);
    coffer.fails(&["fork", "hydrate", "lab", "--to", "root.raw"], &["root.raw", "--force"]);
    let done = coffer.json(&["fork", "hydrate", "lab", "--to", "web.raw"]);
    println!("writers waited {} s", done["pause_seconds"]);
    assert_eq!(done["target"], coffer.path("web.raw").to_str().unwrap(), "{done}");
    coffer.fails(&["fork", "hydrate", "lab", "--to", "other.raw"], &["handed over to", "web.raw"]);
    coffer.fails(&["fork", "commit", "lab"], &["handed over to", "web.raw"]);
    // Through the server first, which has it written to the file.
    machine.live(&coffer, 2);
    machine.qmp.execute("blockdev-add", json!({ "driver": "file", "node-name": "file", "filename": "web.raw" }));
    let disk = json!({ "driver": "raw", "node-name": "disk", "file": "file", "discard": "unmap" });
    machine.qmp.execute("blockdev-reopen", json!({ "options": [disk] }));
    machine.qmp.execute("blockdev-del", json!({ "node-name": "far" }));
    assert!(server.terminate().status.success());
    machine.live(&coffer, 3);
    machine.stop(&coffer, "web.raw");
    let listed = coffer.json(&["fork", "list"]);
    assert_eq!(listed["forks"][0]["handed_to"], coffer.path("web.raw").to_str().unwrap(), "{listed}");
    coffer.run(&["fork", "drop", "lab"]);
    coffer.assert_restores("guest@latest", "root.raw");
}
