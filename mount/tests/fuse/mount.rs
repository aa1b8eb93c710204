//! The mount over devices in memory: names, bytes, holes, coming and going, stopping. Needs the programs cmp, cp, dd, find, fio,
//! fusermount3, ls, mknod, mount, qemu-img, setpriv, umount and unshare.

use crate::bytes_device::{BytesDevice, Random};
use coffer_gateway::BlockDevice;
use coffer_mount::memory_catalog::MemoryCatalog;
use coffer_mount::{Detached, Kind, MountOptions, Point, PointDisk, Report, Session};
use coffer_repo::id::SnapshotId;
use coffer_repo::time::Timestamp;
use rustix::fs::{Advice, SeekFrom};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};
use tempfile::TempDir;

/// 2026-11-21T02-00-00Z.
const TIME: u64 = 1_795_226_400;

/// The path of the disk that [`Mounted::with`] shows.
const DISK: &str = "web/2026-11-21T02-00-00Z/sda.raw";

const SIZE: usize = 24 << 20;

const HOLES: [Range<u64>; 3] = [0..1 << 20, 5 << 20..13 << 20, 23 << 20..24 << 20];

/// Refreshes at every look, so that nothing depends on time.
const EVERY_LOOK: Duration = Duration::ZERO;

/// A mount in a directory of its own, and what it reported.
struct Mounted {
    session: Session,
    catalog: Arc<MemoryCatalog>,
    reported: Arc<Mutex<Vec<String>>>,
    directory: TempDir,
}

impl Mounted {
    fn empty() -> Self {
        let catalog = Arc::new(MemoryCatalog::default());
        let directory = TempDir::new().unwrap();
        let (session, reported) = mount(directory.path(), &catalog, EVERY_LOOK);
        Mounted { session, catalog, reported, directory }
    }

    /// Shows one point of workload `web` with `device` as disk `sda`.
    fn with(device: &Arc<BytesDevice>) -> Self {
        let mounted = Mounted::empty();
        add(&mounted.catalog, "web", 1, TIME, device);
        mounted
    }

    fn path(&self, inner: &str) -> PathBuf {
        self.directory.path().join(inner)
    }

    /// Unmounts, and expects nothing to have been reported. Whether something was open is not asked: a program that another
    /// test starts has a copy of our files for a moment.
    fn end(self) {
        self.session.stop().unwrap();
        self.session.wait().unwrap();
        assert_eq!(self.catalog.pins_held(), 0);
        assert_eq!(*self.reported.lock().unwrap(), Vec::<String>::new());
    }
}

fn mount(directory: &Path, catalog: &Arc<MemoryCatalog>, refresh: Duration) -> (Session, Arc<Mutex<Vec<String>>>) {
    let reported = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&reported);
    let report: Report = Arc::new(move |e| sink.lock().unwrap().push(format!("{e:?}")));
    let options = MountOptions { refresh, ..MountOptions::default() };
    (Session::mount(directory, Arc::<MemoryCatalog>::clone(catalog), options, report).unwrap(), reported)
}

fn add(catalog: &MemoryCatalog, workload: &str, id: u8, seconds: u64, device: &Arc<BytesDevice>) {
    let point = Point {
        id: SnapshotId([id; 16]),
        workload: workload.to_owned(),
        time: Timestamp::from_seconds(seconds).unwrap(),
        disks: vec![PointDisk { name: "sda".to_owned(), size: device.size() }],
    };
    catalog.add(point, vec![Arc::<BytesDevice>::clone(device)]);
}

fn sparse_device() -> Arc<BytesDevice> {
    Arc::new(BytesDevice::random(5, SIZE, &HOLES))
}

fn names(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// Runs an outside program that has to succeed, and returns what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the kernel forget the pages of `file`.
fn drop_pages(file: &File) {
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

#[test]
fn shows_names_sizes_and_times() {
    let device = sparse_device();
    let mounted = Mounted::with(&device);
    add(&mounted.catalog, "a/b", 2, TIME + 1, &device);
    add(&mounted.catalog, "web", 3, TIME - 3600, &device);
    assert_eq!(names(&mounted.path("")), ["a%2Fb", "web"].map(str::to_owned).into());
    let expected = ["2026-11-21T01-00-00Z", "2026-11-21T02-00-00Z", "latest"].map(str::to_owned);
    assert_eq!(names(&mounted.path("web")), expected.into());
    assert_eq!(fs::read_link(mounted.path("web/latest")).unwrap(), Path::new("2026-11-21T02-00-00Z"));
    assert_eq!(names(&mounted.path("web/latest")), ["sda.raw".to_owned()].into());

    let disk = fs::metadata(mounted.path(DISK)).unwrap();
    assert!(disk.is_file());
    assert_eq!(disk.len(), SIZE as u64);
    assert_eq!(disk.modified().unwrap(), UNIX_EPOCH + Duration::from_secs(TIME));
    assert_eq!((disk.mode() & 0o7777, disk.nlink(), disk.uid()), (0o400, 1, rustix::process::getuid().as_raw()));
    assert!(disk.blocks() < disk.len() / 512, "cp would not look for holes");
    let workload = fs::metadata(mounted.path("web")).unwrap();
    assert_eq!(
        (workload.mode() & 0o7777, workload.nlink(), workload.mtime()),
        (0o500, 4, i64::try_from(TIME).unwrap())
    );
    let space = rustix::fs::statvfs(mounted.path("")).unwrap();
    assert_eq!((space.f_blocks * space.f_frsize, space.f_bfree), (3 * SIZE as u64, 0));

    let device = disk.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let read_ahead = fs::read_to_string(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb")).unwrap();
    assert_eq!(read_ahead.trim(), "4096");

    let missing = fs::metadata(mounted.path("web/2026-11-21T02-00-00Z/sdb.raw")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let write = File::create(mounted.path("web/new")).unwrap_err();
    assert_eq!(write.kind(), ErrorKind::ReadOnlyFilesystem);
    mounted.end();
}

#[test]
fn lists_ten_thousand_points() {
    let catalog = Arc::new(MemoryCatalog::default());
    let device = sparse_device();
    for n in 0..10_000u32 {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        let point = Point {
            id: SnapshotId(id),
            workload: format!("machine {}", n % 10),
            time: Timestamp::from_seconds(TIME + u64::from(n)).unwrap(),
            disks: vec![PointDisk { name: "sda".to_owned(), size: SIZE as u64 }],
        };
        catalog.add(point, vec![Arc::<BytesDevice>::clone(&device)]);
    }
    let directory = TempDir::new().unwrap();
    let (session, _) = mount(directory.path(), &catalog, MountOptions::default().refresh);
    let root = directory.path().to_str().unwrap();
    assert_eq!(run("find", &[root, "-name", "sda.raw", "-size", &format!("{SIZE}c")]).lines().count(), 10_000);
    // ls -l asks for every name's attributes, and prints a line with the total before the 1000 points and the link.
    assert_eq!(run("ls", &["-l", &format!("{root}/machine 3")]).lines().count(), 1 + 1000 + 1);
    session.stop().unwrap();
    session.wait().unwrap();
}

#[test]
fn outside_programs_read_the_same_bytes() {
    let device = sparse_device();
    let mounted = Mounted::with(&device);
    let scratch = TempDir::new().unwrap();
    let expected = scratch.path().join("expected");
    fs::write(&expected, &device.bytes).unwrap();
    let (expected, disk) = (expected.to_str().unwrap(), mounted.path(DISK));
    let disk = disk.to_str().unwrap();
    run("cmp", &[expected, disk]);
    let copy = scratch.path().join("copy");
    let copy = copy.to_str().unwrap();
    run("dd", &[&format!("if={disk}"), &format!("of={copy}"), "iflag=direct", "bs=1M", "status=none"]);
    run("cmp", &[expected, copy]);
    run("dd", &[&format!("if={disk}"), &format!("of={copy}"), "bs=4097", "status=none"]);
    run("cmp", &[expected, copy]);
    mounted.end();
}

#[test]
fn holes_survive_the_way_through() {
    let device = sparse_device();
    let mounted = Mounted::with(&device);
    let disk = mounted.path(DISK);
    {
        let file = File::open(&disk).unwrap();
        let mut found = Vec::new();
        let mut at = 0;
        while at < SIZE as u64 {
            let start = rustix::fs::seek(&file, SeekFrom::Hole(at)).unwrap();
            at = rustix::fs::seek(&file, SeekFrom::Data(start)).unwrap_or(SIZE as u64);
            found.push(start..at);
        }
        assert_eq!(found, HOLES);
        let beyond = rustix::fs::seek(&file, SeekFrom::Data(SIZE as u64)).unwrap_err();
        assert_eq!(beyond, rustix::io::Errno::NXIO);
    }
    let scratch = TempDir::new().unwrap();
    let copy = scratch.path().join("copy");
    run("cp", &[disk.to_str().unwrap(), copy.to_str().unwrap()]);
    run("cmp", &[disk.to_str().unwrap(), copy.to_str().unwrap()]);
    let holes: u64 = HOLES.iter().map(|h| h.end - h.start).sum();
    let copied = fs::metadata(&copy).unwrap().blocks() * 512;
    assert!(copied <= SIZE as u64 - holes + (64 << 10), "cp without options wrote {copied} bytes");

    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", disk.to_str().unwrap()]);
    let zero = map.lines().filter(|l| l.contains("\"zero\": true")).count();
    assert_eq!((zero, map.lines().count()), (3, 5), "{map}");
    mounted.end();
}

/// As fsx does to a file that may not be written: reads of all kinds, in random order, by several threads.
#[test]
fn random_reads_of_all_kinds_agree() {
    let seed = 20_261_121;
    println!("seed {seed}");
    let device = sparse_device();
    let mounted = Mounted::with(&device);
    let disk = mounted.path(DISK);
    std::thread::scope(|scope| {
        for thread in 1..=6 {
            let (device, disk) = (&device, &disk);
            scope.spawn(move || {
                let mut random = Random(seed + thread);
                let mut file = File::open(disk).unwrap();
                let mut out = vec![0; 3 << 20];
                for step in 0..400 {
                    match random.below(20) {
                        0 => file = File::open(disk).unwrap(),
                        1 => drop_pages(&file),
                        2 => {
                            let from = random.below(SIZE as u64);
                            let is_hole = |at| HOLES.iter().any(|h| h.contains(&at));
                            let found = rustix::fs::seek(&file, SeekFrom::Hole(from)).unwrap();
                            assert!(found == SIZE as u64 || is_hole(found));
                            assert!(is_hole(from) == (found == from), "thread {thread} step {step}: {from} {found}");
                        }
                        kind => {
                            let most = if kind < 12 { 20_000 } else { out.len() as u64 };
                            let offset = random.below(SIZE as u64 + 10_000);
                            let out = &mut out[..usize::try_from(random.below(most)).unwrap()];
                            let length = file.read_at(out, offset).unwrap();
                            let start = usize::try_from(offset).unwrap().min(SIZE);
                            let end = (start + out.len()).min(SIZE);
                            let same = out[..length] == device.bytes[start..end];
                            assert!(same, "thread {thread} step {step}: {length} bytes at {offset}");
                        }
                    }
                }
            });
        }
    });
    mounted.end();
}

#[test]
fn fio_verifies_what_it_wrote() {
    let scratch = TempDir::new().unwrap();
    let written = scratch.path().join("written");
    let job = |file: &Path, mode: &[&str]| {
        let filename = format!("--filename={}", file.display());
        let common =
            ["--name=v", &filename, "--size=16m", "--bs=4k", "--verify=crc32c", "--verify_fatal=1", "--minimal"];
        run("fio", &[&common, mode].concat());
    };
    job(&written, &["--rw=randwrite", "--do_verify=0", "--ioengine=psync"]);
    let device = Arc::new(BytesDevice { bytes: fs::read(&written).unwrap(), ..BytesDevice::default() });
    let mounted = Mounted::with(&device);
    let reading = ["--readonly", "--invalidate=0", "--rw=randread", "--allow_file_create=0"];
    job(&mounted.path(DISK), &[&reading[..], &["--ioengine=psync", "--numjobs=4", "--thread"]].concat());
    job(&mounted.path(DISK), &[&reading[..], &["--ioengine=libaio", "--direct=1", "--iodepth=32"]].concat());
    mounted.end();
}

#[test]
fn the_kernel_keeps_what_it_has_read() {
    let device = sparse_device();
    let mounted = Mounted::with(&device);
    assert!(fs::read(mounted.path(DISK)).unwrap() == device.bytes);
    let before = device.reads.load(Ordering::Relaxed);
    assert!(before > 0);
    assert!(fs::read(mounted.path("web/latest/sda.raw")).unwrap() == device.bytes);
    // Not none: where memory is short the kernel drops some pages again.
    let more = device.reads.load(Ordering::Relaxed) - before;
    assert!(more < before / 2, "the second reader was not served by the page cache: {before} reads, and {more} more");
    mounted.end();
}

#[test]
fn points_come_and_go_under_open_files() {
    let device = sparse_device();
    let mounted = Mounted::with(&device);
    let file = File::open(mounted.path(DISK)).unwrap();
    let again = File::open(mounted.path(DISK)).unwrap();
    assert_eq!((mounted.catalog.pins_held(), mounted.catalog.pins_taken()), (1, 1));

    add(&mounted.catalog, "web", 2, TIME + 60, &device);
    assert_eq!(fs::read_link(mounted.path("web/latest")).unwrap(), Path::new("2026-11-21T02-01-00Z"));
    mounted.catalog.forget(SnapshotId([1; 16]));
    assert_eq!(fs::metadata(mounted.path(DISK)).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(names(&mounted.path("web")), ["2026-11-21T02-01-00Z", "latest"].map(str::to_owned).into());

    let mut out = vec![0; 1 << 20];
    for file in [&file, &again] {
        drop_pages(file);
        file.read_exact_at(&mut out, 2 << 20).unwrap();
        assert!(out == device.bytes[2 << 20..3 << 20]);
    }
    drop(file);
    again.read_exact_at(&mut out, 20 << 20).unwrap();
    drop(again);
    mounted.catalog.forget(SnapshotId([2; 16]));
    assert_eq!(names(&mounted.path("")), BTreeSet::new());
    mounted.end();
}

#[test]
fn damage_is_an_error_for_exactly_those_bytes() {
    let bad = 3_145_728..3_145_728 + 65_536;
    let device = Arc::new(BytesDevice { unreadable: vec![bad.clone()], ..BytesDevice::random(8, 8 << 20, &[]) });
    let mounted = Mounted::with(&device);
    let file = File::open(mounted.path(DISK)).unwrap();
    let mut page = [0; 4096];
    for round in 0..2 {
        for at in (0..8u64 << 20).step_by(4096) {
            match file.read_exact_at(&mut page, at) {
                Ok(()) => {
                    assert!(!bad.contains(&at), "round {round}: damage at {at} was read");
                    let start = usize::try_from(at).unwrap();
                    assert!(page == device.bytes[start..start + 4096], "round {round}, offset {at}");
                }
                Err(e) => {
                    assert_eq!(e.raw_os_error(), Some(5), "{e}");
                    assert!(bad.contains(&at), "round {round}: {e} at {at}, which is whole");
                }
            }
        }
        drop_pages(&file);
    }
    let reported = mounted.reported.lock().unwrap().clone();
    assert!(
        reported.iter().all(|r| r.contains("Corrupt") && r.contains("web@2026-11-21T02-00-00Z:sda")),
        "{reported:?}"
    );
    assert!(!reported.is_empty());
}

#[test]
fn stopping_with_an_open_file_frees_the_directory_and_keeps_the_file() {
    let device = sparse_device();
    let Mounted { session, catalog, directory, .. } = Mounted::with(&device);
    let disk = directory.path().join(DISK);
    let file = File::open(&disk).unwrap();
    assert_eq!(session.stop().unwrap(), Detached::InUse);
    assert!(names(directory.path()).is_empty(), "the directory is free");

    // A second mount at the same place, which the end of the first one must leave alone.
    let (second, _) = mount(directory.path(), &catalog, EVERY_LOOK);
    let mut out = vec![0; 1 << 20];
    file.read_exact_at(&mut out, 14 << 20).unwrap();
    assert!(out == device.bytes[14 << 20..15 << 20]);
    assert_eq!(catalog.pins_held(), 1);
    assert_eq!(session.stop().unwrap(), Detached::Clean, "a second stop does nothing");
    drop(file);
    session.wait().unwrap();
    drop(session);
    assert_eq!(catalog.pins_held(), 0);
    assert!(disk.exists(), "the end of the first mount took the second one away");
    assert_eq!(second.stop().unwrap(), Detached::Clean);
    second.wait().unwrap();
}

#[test]
fn unmounting_from_outside_ends_the_session() {
    let mounted = Mounted::with(&sparse_device());
    run("umount", &[mounted.directory.path().to_str().unwrap()]);
    mounted.session.wait().unwrap();
    assert_eq!(mounted.session.stop().unwrap(), Detached::Clean);
}

#[test]
fn dropping_a_session_unmounts() {
    let Mounted { session, directory, .. } = Mounted::with(&sparse_device());
    assert!(directory.path().join(DISK).exists());
    drop(session);
    assert!(names(directory.path()).is_empty());
}

#[test]
fn a_mount_point_has_to_be_a_free_directory() {
    let catalog = Arc::new(MemoryCatalog::default());
    let refused = |directory: &Path| {
        let options = MountOptions::default();
        let report: Report = Arc::new(|e| panic!("{e}"));
        let refused = Session::mount(directory, Arc::<MemoryCatalog>::clone(&catalog), options, report).err().unwrap();
        (refused.kind(), refused.to_string())
    };
    let scratch = TempDir::new().unwrap();
    let (kind, text) = refused(&scratch.path().join("missing"));
    assert!(kind == Kind::NotFound && text.contains("does not exist"), "{text}");
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    let (kind, text) = refused(&file);
    assert!(kind == Kind::Invalid && text.contains("not a directory"), "{text}");

    // A directory that holds something is allowed, as by other FUSE programs: it is hidden for a while.
    let (session, _) = mount(scratch.path(), &catalog, EVERY_LOOK);
    assert!(!file.exists());
    let (kind, text) = refused(scratch.path());
    assert!(kind == Kind::Locked && text.contains("in use"), "{text}");
    assert_eq!(session.stop().unwrap(), Detached::Clean);
    session.wait().unwrap();
    assert!(file.exists());
    let (kind, _) = refused(Path::new("/proc"));
    assert_eq!(kind, Kind::Locked);
}

/// A process that dies leaves its mount behind, which answers nothing any more.
#[test]
fn a_dead_mount_is_refused_and_does_not_hang() {
    let scratch = TempDir::new().unwrap();
    let directory = scratch.path().join("mount");
    fs::create_dir(&directory).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "mount::dies_while_mounted", "--ignored"])
        .current_dir(scratch.path())
        .output()
        .unwrap();
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(fs::read_dir(&directory).unwrap_err().kind(), ErrorKind::NotConnected, "{output:?}");
    let catalog = Arc::new(MemoryCatalog::default());
    let refused =
        Session::mount(&directory, Arc::<MemoryCatalog>::clone(&catalog), MountOptions::default(), Arc::new(|_| ()));
    assert_eq!(refused.err().unwrap().kind(), Kind::Locked);
    run("fusermount3", &["-u", directory.to_str().unwrap()]);
    let (session, _) = mount(&directory, &catalog, EVERY_LOOK);
    assert_eq!(session.stop().unwrap(), Detached::Clean);
}

#[test]
#[ignore = "run by a_dead_mount_is_refused_and_does_not_hang, as a process that dies"]
fn dies_while_mounted() {
    let _session = mount(Path::new("mount"), &Arc::new(MemoryCatalog::default()), EVERY_LOOK);
    std::process::abort();
}

/// What the next test runs: a `/dev/fuse` for everybody, as most systems have it, in a mount namespace of its own, and then
/// the program `$1` as a user without privileges.
const AS_NOBODY: &str = "
    set -e
    mount -t tmpfs -o mode=755 tmpfs dev
    mknod -m 666 dev/fuse c 10 229
    mount --bind dev/fuse /dev/fuse
    exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$1\" --exact mount::without_privileges --ignored --nocapture
";

/// Runs the test below as another user.
#[test]
fn works_without_privileges() {
    let scratch = TempDir::new().unwrap();
    fs::copy(std::env::current_exe().unwrap(), scratch.path().join("test")).unwrap();
    fs::create_dir(scratch.path().join("dev")).unwrap();
    std::os::unix::fs::chown(scratch.path(), Some(65534), Some(65534)).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", AS_NOBODY, "sh", "./test"])
        .current_dir(scratch.path())
        .env("TMPDIR", scratch.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
}

#[test]
#[ignore = "run by works_without_privileges, as another user"]
fn without_privileges() {
    assert_eq!(rustix::process::getuid().as_raw(), 65534);
    let device = sparse_device();
    let mounted = Mounted::with(&device);
    let disk = mounted.path(DISK);
    assert!(fs::read(&disk).unwrap() == device.bytes);
    assert_eq!(fs::metadata(&disk).unwrap().uid(), 65534);
    assert_eq!(mounted.session.stop().unwrap(), Detached::Clean);
    mounted.end();

    let mounted = Mounted::with(&device);
    let file = File::open(mounted.path(DISK)).unwrap();
    assert_eq!(mounted.session.stop().unwrap(), Detached::InUse);
    file.read_exact_at(&mut [0; 100], 3 << 20).unwrap();
    drop(file);
    mounted.session.wait().unwrap();

    let options = MountOptions { allow_other: true, ..MountOptions::default() };
    let directory = TempDir::new().unwrap();
    let refused = Session::mount(directory.path(), Arc::new(MemoryCatalog::default()), options, Arc::new(|_| ()));
    let text = refused.err().unwrap().to_string();
    assert!(text.contains("user_allow_other"), "{text}");
}
