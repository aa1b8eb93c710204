//! Restores into what outside programs read: every kind of target holds what the device holds, an interrupted restore goes
//! on, and nothing is overwritten by accident.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod programs;

use coffer_gateway::{BlockDevice, Durability, Extent, Faults, FaultyDevice, MemoryDevice};
use coffer_mover::restore::{RestoreOptions, RestoreProgress, RestoreReport, restore};
use coffer_mover::target::{self, RestoredDisk, Space, TargetOptions};
use coffer_mover::{Error, Kind, Result};
use coffer_repo::cancel::Cancel;
use coffer_repo::id::SnapshotId;
use programs::{LoopDevice, Mounted, Server, bytes, raw_disk, run, text};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const MIB: u64 = 1 << 20;
const PIECE: u64 = 64 * MIB;
const SIZE: u64 = 200 * MIB;
const FILLED: [Range<u64>; 5] =
    [0..70_000, 9 * MIB + 4096..9 * MIB + 300_000, PIECE - 8192..PIECE + 8192, 130 * MIB..142 * MIB, SIZE - 5000..SIZE];

fn device_of(size: u64, filled: &[Range<u64>]) -> MemoryDevice {
    let device = MemoryDevice::new(size);
    for range in filled {
        device.write_at(range.start, &bytes(range.clone()), Durability::Cached).unwrap();
    }
    device
}

fn disk(size: u64) -> RestoredDisk {
    RestoredDisk { snapshot: SnapshotId([3; 16]), name: "vda".into(), size }
}

fn force() -> TargetOptions {
    TargetOptions { force: true, ..TargetOptions::default() }
}

fn verified() -> RestoreOptions {
    RestoreOptions { verify: true, ..RestoreOptions::default() }
}

fn restore_to(
    device: &dyn BlockDevice,
    location: &str,
    target: &TargetOptions,
    options: &RestoreOptions,
) -> Result<RestoreReport> {
    let target = target::open(location, &disk(device.size()), target)?;
    restore(device, target, options, &RestoreProgress::default(), &Cancel::default())
}

/// Says whether qemu finds a file's disk the same as the one the device was made from.
fn assert_same(folder: &Path, format: &str, target: &Path) {
    let want = folder.join("want.raw");
    raw_disk(&want, SIZE, &FILLED);
    run("qemu-img", &["compare", "-f", "raw", "-F", format, text(&want), text(target)]);
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_raw_file_is_as_sparse_as_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vda.raw");
    let report = restore_to(&device_of(SIZE, &FILLED), text(&path), &TargetOptions::default(), &verified()).unwrap();
    assert_eq!(report.written + report.zero, SIZE);
    assert!(report.is_verified && report.resumed == 0 && report.unreadable.is_empty());
    assert_eq!(names(folder.path()), ["vda.raw"]);
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), SIZE);
    assert!(metadata.blocks() * 512 < 14 * MIB, "{} bytes are allocated", metadata.blocks() * 512);
    let want = folder.path().join("want.raw");
    raw_disk(&want, SIZE, &FILLED);
    run("cmp", &[text(&want), text(&path)]);
}

#[test]
fn a_raw_file_is_allocated_when_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vda.raw");
    let options = TargetOptions { space: Space::Allocated, ..TargetOptions::default() };
    restore_to(&device_of(SIZE, &FILLED), text(&path), &options, &verified()).unwrap();
    assert!(std::fs::metadata(&path).unwrap().blocks() * 512 >= SIZE);
    assert_same(folder.path(), "raw", &path);
}

#[test]
fn a_qcow2_file_is_sound_and_equal() {
    let folder = tempfile::tempdir().unwrap();
    for space in [Space::Sparse, Space::Allocated] {
        let path = folder.path().join("vda.qcow2");
        let options = TargetOptions { space, ..force() };
        let report = restore_to(&device_of(SIZE, &FILLED), text(&path), &options, &verified()).unwrap();
        assert!(report.is_verified);
        run("qemu-img", &["check", "-q", "-f", "qcow2", text(&path)]);
        assert_same(folder.path(), "qcow2", &path);
        let allocated = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert_eq!(space == Space::Allocated, allocated >= SIZE, "{space:?}: {allocated}");
    }
}

#[test]
fn disks_of_odd_length_and_of_no_length_are_restored() {
    let folder = tempfile::tempdir().unwrap();
    for size in [0, 1, 513, MIB + 3] {
        let device = device_of(size, std::slice::from_ref(&(size / 2..size)));
        for name in ["odd.raw", "odd.qcow2"] {
            let path = folder.path().join(name);
            restore_to(&device, text(&path), &force(), &verified()).unwrap_or_else(|e| panic!("{size} {name}: {e:?}"));
        }
        let got = std::fs::read(folder.path().join("odd.raw")).unwrap();
        assert_eq!(got.len() as u64, size);
        assert!(got[usize::try_from(size / 2).unwrap()..] == bytes(size / 2..size));
    }
}

#[test]
fn nothing_is_overwritten_without_force() {
    let folder = tempfile::tempdir().unwrap();
    let device = device_of(SIZE, &FILLED);
    for name in ["vda.raw", "vda.qcow2"] {
        let path = folder.path().join(name);
        std::fs::write(&path, b"precious").unwrap();
        let error = restore_to(&device, text(&path), &TargetOptions::default(), &verified()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains("--force"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        restore_to(&device, text(&path), &force(), &verified()).unwrap();
    }
    assert_same(folder.path(), "raw", &folder.path().join("vda.raw"));
    for (location, kind) in [
        (text(folder.path()), Kind::Invalid),
        ("/dev/null", Kind::Invalid),
        ("a.vmdk", Kind::Unsupported),
        ("s3:x", Kind::Unsupported),
    ] {
        assert_eq!(restore_to(&device, location, &force(), &verified()).unwrap_err().kind(), kind, "{location}");
    }
}

/// A device that fails once so many bytes were read.
struct Failing {
    below: MemoryDevice,
    left: AtomicU64,
}

impl BlockDevice for Failing {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let length = out.len() as u64;
        let had = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(length));
        had.map_err(|_| Error::new(Kind::Unavailable, "the store went away"))?;
        self.below.read_at(offset, out)
    }

    fn try_read_at(&self, _offset: u64, _out: &mut [u8]) -> Result<bool> {
        Ok(false)
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        self.below.extents(range, max)
    }
}

#[test]
fn an_interrupted_restore_goes_on_with_what_is_missing() {
    // Forty pieces with a MiB in each.
    let size = 40 * PIECE;
    let filled: Vec<Range<u64>> = (0..40).map(|i| i * PIECE + 5 * MIB..i * PIECE + 6 * MIB).collect();
    for name in ["vda.raw", "vda.qcow2"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let one = RestoreOptions { workers: 1, ..verified() };
        let failing = Failing { below: device_of(size, &filled), left: AtomicU64::new(36 * MIB) };
        let error = restore_to(&failing, text(&path), &TargetOptions::default(), &one).unwrap_err();
        assert_eq!(error.context(), "the store went away");
        assert_eq!(names(folder.path()), [name.to_owned(), format!("{name}.coffer-restore")]);

        // Another snapshot's restore does not go on from here.
        let other = RestoredDisk { snapshot: SnapshotId([4; 16]), ..disk(size) };
        let error = target::open(text(&path), &other, &TargetOptions::default()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("--force"), "{error}");

        // A file that took its place is not the file that was filled.
        let aside = folder.path().join("aside");
        std::fs::rename(&path, &aside).unwrap();
        std::fs::copy(&aside, &path).unwrap();
        let error = restore_to(&failing, text(&path), &TargetOptions::default(), &one).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        std::fs::rename(&aside, &path).unwrap();

        // Enough for the eight pieces of forty that are missing, and for reading all of them to verify.
        let rest = Failing { below: device_of(size, &filled), left: AtomicU64::new(48 * MIB) };
        let report = restore_to(&rest, text(&path), &TargetOptions::default(), &one).unwrap();
        assert_eq!(report.resumed, 32 * PIECE);
        assert_eq!(report.written, 8 * MIB);
        assert!(report.is_verified);
        assert_eq!(names(folder.path()), [name]);
    }
}

#[test]
fn a_second_restore_into_the_same_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["vda.raw", "vda.qcow2"] {
        let path = folder.path().join(name);
        let first = target::open(text(&path), &disk(SIZE), &TargetOptions::default()).unwrap();
        for options in [TargetOptions::default(), force()] {
            let error = target::open(text(&path), &disk(SIZE), &options).map(|_| ()).unwrap_err();
            assert!(format!("{error:?}").contains("lock"), "{error:?}");
        }
        drop(first);
        let device = device_of(SIZE, &FILLED);
        restore_to(&device, text(&path), &TargetOptions::default(), &verified()).unwrap();
    }
}

#[test]
fn what_the_backup_could_not_read_is_never_restored_silently() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vda.raw");
    let lost = 131 * MIB..131 * MIB + 8192;
    let faults = Faults { unreadable: vec![lost.clone()], ..Faults::default() };
    let device = FaultyDevice::new(Arc::new(device_of(SIZE, &FILLED)), faults);
    let error = restore_to(&device, text(&path), &TargetOptions::default(), &RestoreOptions::default()).unwrap_err();
    assert!(error.to_string().contains(&format!("bytes {} to {}", lost.start, lost.end)), "{error}");
    assert!(error.to_string().contains("--keep-going"), "{error}");

    let keep_going = RestoreOptions { keep_going: true, ..verified() };
    let report = restore_to(&device, text(&path), &TargetOptions::default(), &keep_going).unwrap();
    assert_eq!(report.unreadable.ranges(), std::slice::from_ref(&lost));
    let file = File::open(&path).unwrap();
    let mut got = vec![1; 8192 + 2];
    file.read_exact_at(&mut got, lost.start - 1).unwrap();
    let mut want = bytes(lost.start - 1..lost.end + 1);
    want[1..8193].fill(0);
    assert!(got == want, "the lost range or its neighbours differ");
}

#[test]
fn damage_is_never_restored_even_when_told_to_keep_going() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vda.raw");
    let failing = Failing { below: device_of(SIZE, &FILLED), left: AtomicU64::new(0) };
    let keep_going = RestoreOptions { keep_going: true, ..verified() };
    assert!(restore_to(&failing, text(&path), &TargetOptions::default(), &keep_going).is_err());
}

/// A file of `size` bytes none of which is zero.
fn dirty_file(path: &Path, size: u64) {
    std::fs::write(path, vec![0xff; usize::try_from(size).unwrap()]).unwrap();
}

#[test]
fn a_block_device_holds_the_disk_and_nothing_of_what_it_held() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backing");
    let device = device_of(SIZE, &FILLED);
    for space in [Space::Sparse, Space::Allocated] {
        dirty_file(&file, SIZE + MIB);
        let target = LoopDevice::attach(&file, 512);
        let gentle = TargetOptions { space, ..TargetOptions::default() };
        let error = restore_to(&device, text(&target.0), &gentle, &verified()).unwrap_err();
        assert!(error.to_string().contains("not empty") && error.to_string().contains("--force"), "{error}");

        let report = restore_to(&device, text(&target.0), &TargetOptions { space, ..force() }, &verified()).unwrap();
        assert!(report.is_verified);
        assert!(report.warnings[0].contains("1048576 bytes larger"), "{:?}", report.warnings);
        drop(target);
        let want = folder.path().join("want.raw");
        raw_disk(&want, SIZE, &FILLED);
        run("cmp", &["-n", &SIZE.to_string(), text(&want), text(&file)]);
    }

    let small = folder.path().join("small");
    raw_disk(&small, SIZE - MIB, &[]);
    let target = LoopDevice::attach(&small, 512);
    let error = restore_to(&device, text(&target.0), &force(), &verified()).unwrap_err();
    assert!(error.to_string().contains(&SIZE.to_string()), "{error}");
}

#[test]
fn a_mounted_device_is_refused_even_with_force() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backing");
    raw_disk(&file, SIZE, &[]);
    run("mke2fs", &["-q", "-t", "ext4", text(&file)]);
    let target = LoopDevice::attach(&file, 512);
    let point = folder.path().join("mount");
    std::fs::create_dir(&point).unwrap();
    let _mounted = Mounted::mount(&target.0, &point, "rw");
    let error = restore_to(&device_of(SIZE, &FILLED), text(&target.0), &force(), &verified()).unwrap_err();
    assert_eq!(error.kind(), Kind::Locked);
    assert!(error.to_string().contains("mounted"), "{error}");
}

#[test]
fn an_export_holds_the_disk_and_nothing_of_what_it_held() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backing");
    let device = device_of(SIZE, &FILLED);
    dirty_file(&file, SIZE);
    let server = Server::nbdkit(folder.path(), &["file", text(&file)]);
    let error = restore_to(&device, &server.uri(), &TargetOptions::default(), &verified()).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    restore_to(&device, &server.uri(), &force(), &verified()).unwrap();
    drop(server);
    assert_same(folder.path(), "raw", &file);

    std::fs::remove_file(folder.path().join("nbdkit.sock")).unwrap();
    let read_only = Server::nbdkit(folder.path(), &["--readonly", "file", text(&file)]);
    let error = restore_to(&device, &read_only.uri(), &force(), &verified()).unwrap_err();
    assert!(error.to_string().contains("read-only"), "{error}");
}

#[test]
fn a_cancelled_restore_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vda.raw");
    let device = device_of(SIZE, &FILLED);
    let target = target::open(text(&path), &disk(SIZE), &TargetOptions::default()).unwrap();
    let cancel = Cancel::default();
    cancel.cancel();
    let error = restore(&device, target, &verified(), &RestoreProgress::default(), &cancel).unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled);
}
