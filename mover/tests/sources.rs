//! Sources against the programs that make and serve images: what is read is what the disk holds, holes are left alone, and
//! what must be refused is refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod programs;

use coffer_mover::Kind;
use coffer_mover::image_format::ImageFormat;
use coffer_mover::source::{self, Access, DiskSource, FeedOptions, SourceOptions, WindowFeed};
use coffer_repo::window::{Filled, Window, WindowSource};
use programs::{LoopDevice, Mounted, Server, byte, raw_disk, run, text};
use std::ops::Range;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;
const WINDOW: u32 = 1 << 20;

/// A disk of 48 MiB with something at its start, in its middle, across a window's boundary and at its end.
const SIZE: u64 = 48 * MIB;
const FILLED: [Range<u64>; 4] =
    [0..70_000, 9 * MIB + 4096..9 * MIB + 300_000, 20 * MIB - 5000..20 * MIB + 5000, SIZE - 1000..SIZE];

struct Read {
    bytes: Vec<u8>,
    unreadable: Vec<Range<u64>>,
    windows: u64,
}

fn options() -> SourceOptions {
    SourceOptions::default()
}

fn open(spec: &str, options: &SourceOptions) -> Box<dyn DiskSource> {
    source::open(spec, options).unwrap_or_else(|e| panic!("{e:?}"))
}

/// Reads a source's only disk to its end, and ends the source.
fn read_all(source: Box<dyn DiskSource>, keep_going: bool) -> Read {
    let [disk] = source.disks() else { panic!("one disk was due") };
    let Access::Random(random) = &disk.access else { panic!("random access was due") };
    let feed = WindowFeed::new(&**random, &disk.name, FeedOptions { window_size: WINDOW, keep_going }).unwrap();
    let mut read =
        Read { bytes: vec![0; usize::try_from(random.size().unwrap()).unwrap()], unreadable: vec![], windows: 0 };
    let mut window = Window::default();
    loop {
        match feed.next(&mut window).unwrap_or_else(|e| panic!("{e:?}")) {
            Filled::End => break,
            Filled::Bytes(index) => {
                let start = usize::try_from(index * u64::from(WINDOW)).unwrap();
                read.bytes[start..start + window.bytes.len()].copy_from_slice(&window.bytes);
                read.windows += 1;
            }
            Filled::Zero(_) => {}
            Filled::Unchanged(index) | Filled::Changed { index, .. } => {
                panic!("window {index} unchanged since nothing")
            }
        }
    }
    feed.size().unwrap();
    read.unreadable = feed.unreadable().unwrap().ranges().to_vec();
    assert_eq!(source.finish().unwrap(), [None]);
    read
}

/// Says where two disks differ rather than print them.
fn assert_same(got: &[u8], want: &[u8], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let difference = got.iter().zip(want).position(|(a, b)| a != b);
    assert_eq!(difference, None, "{what}: first difference");
}

fn original(folder: &Path) -> (PathBuf, Vec<u8>) {
    let path = folder.join("original.raw");
    raw_disk(&path, SIZE, &FILLED);
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes)
}

#[test]
fn every_format_reads_like_the_raw_disk_it_was_made_from_and_holes_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, want) = original(folder.path());
    // qemu does not tell where a VHDX is empty.
    for (extension, most, arguments) in [
        ("raw", 20, &["-O", "raw"][..]),
        ("qcow2", 20, &["-O", "qcow2"]),
        ("qcow2", 20, &["-c", "-O", "qcow2"]),
        ("qcow2", 20, &["-O", "qcow2", "-o", "cluster_size=4096"]),
        ("vmdk", 20, &["-O", "vmdk"]),
        ("vmdk", 20, &["-O", "vmdk", "-o", "subformat=streamOptimized"]),
        ("vmdk", 20, &["-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"]),
        ("vhdx", 48, &["-O", "vhdx"]),
        ("vdi", 20, &["-O", "vdi"]),
    ] {
        // A name that qemu would take for something else, were it not absolute.
        let image = folder.path().join(format!("json:{{}},a b.{extension}"));
        let mut all = vec!["convert", "-f", "raw"];
        all.extend(arguments);
        all.extend([text(&raw), text(&image)]);
        run("qemu-img", &all);
        let read = read_all(open(&format!("vda={}", text(&image)), &options()), false);
        assert_same(&read.bytes, &want, &format!("{arguments:?}"));
        assert!(read.windows <= most, "{arguments:?}: {} of 48 windows were read", read.windows);
        std::fs::remove_file(&image).unwrap();
    }
}

#[test]
fn a_chain_of_images_reads_as_one_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, mut want) = original(folder.path());
    let top = folder.path().join("top.qcow2");
    let middle = folder.path().join("middle.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", text(&raw), text(&middle)]);
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(&middle), text(&top)]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 0x5a 4k 8k", text(&middle)]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 0xa5 8k 8k", "-c", "write -z 9M 1M", text(&top)]);
    let mib = usize::try_from(MIB).unwrap();
    want[4096..8192].fill(0x5a);
    want[8192..16384].fill(0xa5);
    want[9 * mib..10 * mib].fill(0);
    let read = read_all(open(text(&top), &options()), false);
    assert_same(&read.bytes, &want, "a chain");
}

#[test]
fn an_export_is_read_without_its_holes() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, want) = original(folder.path());
    let log = folder.path().join("log");
    let log_to = format!("logfile={}", log.display());
    let server = Server::nbdkit(folder.path(), &["--filter=log", "file", text(&raw), &log_to]);
    let read = read_all(open(&format!("vda={}", server.uri()), &options()), false);
    assert_same(&read.bytes, &want, "an export");
    let asked: u64 = std::fs::read_to_string(&log)
        .unwrap()
        .lines()
        .filter(|line| line.contains(" Read ") && line.contains("offset=0x"))
        .map(|line| {
            let count = line.split("count=0x").nth(1).unwrap().split(' ').next().unwrap();
            u64::from_str_radix(count, 16).unwrap()
        })
        .sum();
    let filled: u64 = FILLED.iter().map(|r| r.end - r.start).sum();
    assert!(asked >= filled && asked < filled + MIB, "{asked} bytes were read of {filled}");
}

#[test]
fn bad_sectors_of_an_export_are_found_to_the_block() {
    let folder = tempfile::tempdir().unwrap();
    let bad = 2 * MIB + 8192 + 100;
    let pread = format!(
        "pread=if [ $4 -le {bad} ] && [ $(($4+$3)) -gt {bad} ]; then echo EIO bad >&2; exit 1; fi; \
         head -c $3 /dev/zero | tr '\\0' x"
    );
    let server = Server::nbdkit(folder.path(), &["eval", "get_size=echo 3145728", &pread]);
    let read = read_all(open(&server.uri(), &options()), true);
    let lost = 2 * MIB + 8192..2 * MIB + 12288;
    assert_eq!(read.unreadable, std::slice::from_ref(&lost));
    for (at, got) in (0..).zip(&read.bytes) {
        assert_eq!(*got, if lost.contains(&at) { 0 } else { b'x' }, "byte {at}");
    }

    let source = open(&format!("vda={}", server.uri()), &options());
    let Access::Random(disk) = &source.disks()[0].access else { panic!("random access was due") };
    let feed = WindowFeed::new(&**disk, "vda", FeedOptions { window_size: WINDOW, keep_going: false }).unwrap();
    let mut window = Window::default();
    let error = std::iter::repeat_with(|| feed.next(&mut window)).find_map(Result::err).unwrap().to_string();
    assert!(error.starts_with("reading disk vda: bytes 2097152 to 3145728"), "{error}");
}

#[test]
fn a_lost_server_is_not_a_disk_of_bad_sectors() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::nbdkit(folder.path(), &["pattern", "8M"]);
    let source = open(&server.uri(), &options());
    let Access::Random(disk) = &source.disks()[0].access else { panic!("random access was due") };
    let feed = WindowFeed::new(&**disk, "vda", FeedOptions { window_size: WINDOW, keep_going: true }).unwrap();
    let mut window = Window::default();
    assert_eq!(feed.next(&mut window).unwrap(), Filled::Bytes(0));
    server.kill();
    assert!(feed.next(&mut window).is_err());
    assert!(feed.unreadable().unwrap().is_empty());
}

#[test]
fn a_file_that_changes_its_size_fails_the_run_by_name_and_range() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vda.raw");
    raw_disk(&path, 3 * MIB, std::slice::from_ref(&(0..3 * MIB)));
    let source = open(text(&path), &options());
    let Access::Random(disk) = &source.disks()[0].access else { panic!("random access was due") };
    for keep_going in [false, true] {
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        let feed = WindowFeed::new(&**disk, "vda", FeedOptions { window_size: WINDOW, keep_going }).unwrap();
        let mut window = Window::default();
        feed.next(&mut window).unwrap();
        file.set_len(MIB + 10_000).unwrap();
        let error = format!("{:?}", feed.next(&mut window).unwrap_err());
        assert!(error.contains("disk vda") && error.contains("byte"), "{error}");
        file.set_len(4 * MIB).unwrap();
        let error = feed.size().unwrap_err().to_string();
        assert!(error.contains("vda") && error.contains("4194304"), "{error}");
        file.set_len(3 * MIB).unwrap();
    }
}

#[test]
fn what_a_guest_could_have_written_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let (_, secret) = original(folder.path());
    let trap = folder.path().join("guest.img");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "original.raw", text(&trap)]);
    let error = source::open(text(&trap), &options()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("--format qcow2") && error.to_string().contains("--format raw"), "{error}");

    let raw = SourceOptions { format: Some(ImageFormat::Raw), ..options() };
    let read = read_all(open(text(&trap), &raw), false);
    assert_same(&read.bytes, &std::fs::read(&trap).unwrap(), "taken as it is");
    let qcow2 = SourceOptions { format: Some(ImageFormat::Qcow2), ..options() };
    assert_same(&read_all(open(text(&trap), &qcow2), false).bytes, &secret, "taken as an image");
}

#[test]
fn what_cannot_be_a_source_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.qcow2");
    std::fs::write(&broken, b"QFI\xfb\0\0\0\x03 and nothing that makes sense of it").unwrap();
    let missing = folder.path().join("missing.raw");
    let pipe = folder.path().join("pipe");
    run("mkfifo", &[text(&pipe)]);
    for (spec, kind, word) in [
        (text(&pipe), Kind::Invalid, "a pipe is read as -"),
        (text(folder.path()), Kind::Invalid, "neither a file nor a block device"),
        (text(&missing), Kind::NotFound, "missing.raw"),
        (text(&broken), Kind::Unavailable, "qemu-nbd"),
        ("libvirt:web1", Kind::Unsupported, "libvirt:"),
        ("nbd+unix:///?socket=/nowhere/at/all", Kind::NotFound, "/nowhere/at/all"),
    ] {
        let error = source::open(spec, &options()).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), kind, "{spec}: {error:?}");
        assert!(error.to_string().contains(word), "{spec}: {error:?}");
    }
}

#[test]
fn an_image_that_is_being_written_is_refused_in_qemus_words() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("vda.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&image), "8M"]);
    let socket = folder.path().join("writer");
    let _writer = Server::start("qemu-nbd", &["-t", "-f", "qcow2", "-k", text(&socket), text(&image)], &socket);
    let error = source::open(text(&image), &options()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("lock"), "{error}");
}

#[test]
fn an_image_leaves_no_process_and_no_socket_behind() {
    let folder = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let image = folder.path().join("vda.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&image), "8M"]);
    let private = SourceOptions { scratch: scratch.path().to_owned(), ..options() };
    for finish in [true, false] {
        let source = open(text(&image), &private);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
        if finish {
            source.finish().unwrap();
        } else {
            drop(source);
        }
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
        // Nobody holds qemu's lock on the image: it can be written again.
        run("qemu-io", &["-f", "qcow2", "-c", "write 0 4k", text(&image)]);
    }
}

#[test]
fn a_block_device_is_read_unless_it_is_being_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk.raw");
    raw_disk(&file, 32 * MIB, &[]);
    run("mke2fs", &["-q", "-t", "ext4", "-b", "4096", text(&file)]);
    let want = std::fs::read(&file).unwrap();
    let device = LoopDevice::attach(&file, 4096);

    let source = open(text(&device.0), &options());
    assert_eq!(source.disks()[0].block_size, 4096);
    assert_same(&read_all(source, false).bytes, &want, "a device");

    let point = folder.path().join("mount");
    std::fs::create_dir(&point).unwrap();
    let mounted = Mounted::mount(&device.0, &point, "rw");
    let error = source::open(text(&device.0), &options()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("mounted read-write") && error.to_string().contains("--live"), "{error}");
    let live = SourceOptions { live: true, ..options() };
    assert!(open(text(&device.0), &live).warnings()[0].contains("not of one moment"));
    drop(mounted);

    let _read_only = Mounted::mount(&device.0, &point, "ro");
    assert!(open(text(&device.0), &options()).warnings().is_empty());
}

#[test]
fn the_last_bytes_of_a_file_of_odd_length_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.raw");
    let size = MIB + 4096 + 3;
    raw_disk(&path, size, std::slice::from_ref(&(MIB - 10..size)));
    let read = read_all(open(text(&path), &options()), false);
    assert_eq!(read.bytes.len() as u64, size);
    assert!((MIB - 10..size).all(|at| read.bytes[usize::try_from(at).unwrap()] == byte(at)));
}
