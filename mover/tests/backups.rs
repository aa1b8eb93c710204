//! Backups of what outside programs made, into a repository and back out of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod programs;

use coffer_gateway::{BlockDevice, SnapshotDevice};
use coffer_mover::backup::{Backup, BackupPlan, BackupReport};
use coffer_mover::restore::{RestoreOptions, RestoreProgress, restore};
use coffer_mover::source::SourceOptions;
use coffer_mover::target::{self, RestoredDisk, TargetOptions};
use coffer_mover::{Error, Kind, Result};
use coffer_repo::backend::Backend;
use coffer_repo::backend::memory::Memory;
use coffer_repo::cancel::Cancel;
use coffer_repo::chunker::{DiskParams, StreamParams};
use coffer_repo::crypto::Aead;
use coffer_repo::entropy::Seeded;
use coffer_repo::index::{Index, IndexOptions};
use coffer_repo::key_slot::{Credential, PassphraseCost, SlotOptions};
use coffer_repo::reader::{Reader, ReaderOptions};
use coffer_repo::repository::{InitOptions, Repository};
use coffer_repo::snapshot::{Identity, Snapshot};
use coffer_repo::time::Timestamp;
use coffer_repo::writer::{DiskSpec, Writer, WriterOptions};
use programs::{Server, raw_disk, run, text};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const MIB: u64 = 1 << 20;

struct Bench {
    folder: tempfile::TempDir,
    memory: Arc<Memory>,
    repo: Arc<Repository>,
    index: Arc<Index>,
    raw: PathBuf,
    bytes: Vec<u8>,
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_seconds(seconds).unwrap()
}

impl Bench {
    /// A repository with windows of a MiB, and a disk of 24 MiB to back up.
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let memory: Arc<Memory> = Arc::default();
        let cost = PassphraseCost { memory_kib: 64, passes: 1, lanes: 1 };
        let options = InitOptions {
            credential: Credential::Passphrase("secret".to_owned().into()),
            slot: SlotOptions { label: "test".into(), created: at(1), cost },
            disk: DiskParams { window: 1 << 20, ..DiskParams::default() },
            stream: StreamParams::default(),
            aead: Aead::preferred(),
            parity: false,
        };
        let repo = Arc::new(Repository::init(memory.clone(), options, Arc::new(Seeded::new(7))).unwrap());
        let index = Index::open(&folder.path().join("index"), repo.keys().repo(), IndexOptions::default()).unwrap();
        let raw = folder.path().join("disk.raw");
        raw_disk(&raw, 24 * MIB, &[0..70_000, 3 * MIB - 5000..5 * MIB, 24 * MIB - 100..24 * MIB]);
        let bytes = std::fs::read(&raw).unwrap();
        Bench { folder, memory, repo, index: Arc::new(index), raw, bytes }
    }

    fn plan(&self, sources: &[String]) -> BackupPlan {
        BackupPlan {
            workload: "web".into(),
            sources: sources.to_vec(),
            parent: None,
            tags: vec!["tag".into()],
            identity: Identity::default(),
            source: SourceOptions::default(),
            keep_going: false,
            sampled_places: 16,
            writer: WriterOptions { workers: 3, ..WriterOptions::default() },
        }
    }

    fn back_up(&self, plan: BackupPlan) -> Result<BackupReport> {
        let cancel = Cancel::default();
        Backup::begin(&self.repo, &self.index, plan, at(100), &cancel)?.run(&cancel)
    }

    fn read(&self, snapshot: &Snapshot, disk: &str) -> Vec<u8> {
        let reader = Reader::new(Arc::clone(&self.repo), ReaderOptions::default()).unwrap();
        let disk = reader.disk(snapshot, disk).unwrap();
        let mut bytes = vec![1; usize::try_from(disk.size()).unwrap()];
        disk.read_at(0, &mut bytes).unwrap();
        bytes
    }

    fn objects(&self) -> usize {
        let mut count = 0;
        self.memory
            .list("", &mut |_| {
                count += 1;
                Ok(())
            })
            .unwrap();
        count
    }

    fn snapshots(&self) -> usize {
        self.repo.points().unwrap().snapshots.len()
    }

    /// An nbdkit server of 2 MiB that fails for one byte.
    fn bad_export(&self, folder: &Path) -> Server {
        let pread = format!(
            "pread=if [ $4 -le {MIB} ] && [ $(($4+$3)) -gt {MIB} ]; then echo EIO bad >&2; exit 1; fi; \
             head -c $3 /dev/zero | tr '\\0' x"
        );
        Server::nbdkit(folder, &["eval", "get_size=echo 2097152", &pread])
    }
}

#[test]
fn several_disks_of_several_kinds_make_one_snapshot_and_equal_ones_are_stored_once() {
    let bench = Bench::new();
    let image = bench.folder.path().join("root.qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-c", "-O", "qcow2", text(&bench.raw), text(&image)]);
    let server = Server::nbdkit(bench.folder.path(), &["file", text(&bench.raw)]);
    let sources = [text(&bench.raw).to_owned(), text(&image).to_owned(), format!("vdc={}", server.uri())];
    let plan = bench.plan(&sources);
    let cancel = Cancel::default();
    let backup = Backup::begin(&bench.repo, &bench.index, plan, at(100), &cancel).unwrap();
    let progress = backup.progress();
    let report = backup.run(&cancel).unwrap();

    let names: Vec<&str> = report.snapshot.disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["disk", "root", "vdc"]);
    for name in names {
        assert!(bench.read(&report.snapshot, name) == bench.bytes, "{name} differs");
    }
    assert!(report.warnings.is_empty() && report.unreadable.is_empty());
    assert_eq!(report.snapshot.tags, ["tag"]);
    assert_eq!(bench.snapshots(), 1);
    let filled = 2 * MIB + 5000 + 70_000 + 100;
    let new = progress.new_raw.load(Ordering::Relaxed);
    assert!(new < filled + 64 * 1024, "{new} bytes are new of {filled}");
}

#[test]
fn what_was_backed_up_is_restored_where_it_came_from() {
    let bench = Bench::new();
    let report = bench.back_up(bench.plan(&[text(&bench.raw).to_owned()])).unwrap();
    let reader = Reader::new(Arc::clone(&bench.repo), ReaderOptions::default()).unwrap();
    let device = SnapshotDevice::new(reader.disk(&report.snapshot, "disk").unwrap(), None);
    let disk = RestoredDisk { snapshot: report.snapshot.id(), name: "disk".into(), size: device.size() };
    for name in ["restored.raw", "restored.qcow2"] {
        let path = bench.folder.path().join(name);
        let target = target::open(text(&path), &disk, &TargetOptions::default()).unwrap();
        let options = RestoreOptions { verify: true, ..RestoreOptions::default() };
        let restored = restore(&device, target, &options, &RestoreProgress::default(), &Cancel::default()).unwrap();
        assert!(restored.is_verified);
        let format = name.rsplit('.').next().unwrap();
        run("qemu-img", &["compare", "-f", "raw", "-F", format, text(&bench.raw), text(&path)]);
    }
}

#[test]
fn a_dry_run_reads_everything_and_stores_nothing() {
    let bench = Bench::new();
    let before = bench.objects();
    let mut plan = bench.plan(&[text(&bench.raw).to_owned()]);
    plan.writer.dry_run = true;
    let report = bench.back_up(plan).unwrap();
    assert!(report.snapshot.stats.read >= 2 * MIB && report.snapshot.stats.new_chunks > 0);
    assert_eq!((bench.objects(), bench.snapshots()), (before, 0));
}

#[test]
fn what_cannot_be_read_is_reported_or_fails_the_run() {
    let bench = Bench::new();
    let server = bench.bad_export(bench.folder.path());
    let sources = [format!("vda={}", server.uri())];
    let error = bench.back_up(bench.plan(&sources)).unwrap_err();
    assert!(error.to_string().contains("reading disk vda"), "{error}");
    assert_eq!(bench.snapshots(), 0);

    let report = bench.back_up(BackupPlan { keep_going: true, ..bench.plan(&sources) }).unwrap();
    let lost = MIB..MIB + 4096;
    assert_eq!(report.unreadable["vda"].ranges(), std::slice::from_ref(&lost));
    assert_eq!(report.snapshot.disks[0].unreadable, 4096);
    let reader = Reader::new(Arc::clone(&bench.repo), ReaderOptions::default()).unwrap();
    let disk = reader.disk(&report.snapshot, "vda").unwrap();
    let mut byte = [0];
    assert!(disk.read_at(lost.start, &mut byte).is_err(), "unreadable bytes were read");
    disk.read_at(lost.end, &mut byte).unwrap();
    assert_eq!(byte, *b"x");
}

#[test]
fn a_source_that_fails_leaves_no_snapshot_whatever_went_well_before() {
    let bench = Bench::new();
    let missing = bench.folder.path().join("missing.raw");
    let cases: [(&[String], Kind, &str); 2] = [
        (&[text(&bench.raw).to_owned(), text(&missing).to_owned()], Kind::NotFound, "missing.raw"),
        (&[text(&bench.raw).to_owned(), text(&bench.raw).to_owned()], Kind::Invalid, "two disks are called 'disk'"),
    ];
    for (sources, kind, word) in cases {
        let error: Error = bench.back_up(bench.plan(sources)).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().contains(word), "{error}");
    }
    assert_eq!(bench.snapshots(), 0);
}

#[test]
fn a_cancelled_backup_leaves_no_snapshot() {
    let bench = Bench::new();
    let cancel = Cancel::default();
    let plan = bench.plan(&[text(&bench.raw).to_owned()]);
    let backup = Backup::begin(&bench.repo, &bench.index, plan, at(100), &cancel).unwrap();
    cancel.cancel();
    assert_eq!(backup.run(&cancel).unwrap_err().kind(), Kind::Cancelled);
    assert_eq!(bench.snapshots(), 0);
}

#[test]
fn a_token_that_the_source_does_not_honour_means_a_full_read() {
    let bench = Bench::new();
    let plan = bench.plan(&[text(&bench.raw).to_owned()]);
    // A parent of other content with a token, as another kind of source would have left it.
    let zeroes = bench.folder.path().join("zeroes.raw");
    raw_disk(&zeroes, 24 * MIB, &[]);
    let cancel = Cancel::default();
    let identity = Identity::default();
    let mut writer =
        Writer::begin(&bench.repo, &bench.index, "web", None, identity, WriterOptions::default(), at(50)).unwrap();
    let stream = coffer_mover::source::Stream::new(std::fs::File::open(&zeroes).unwrap());
    let spec = DiskSpec { name: "disk".into(), block_size: 512, platform: None };
    writer.disk(spec, &stream.windows("disk", 1 << 20), &cancel).unwrap();
    writer.set_token("disk", "checkpoint-1".into());
    let parent = writer.commit(Vec::new()).unwrap();
    assert_eq!(parent.disks[0].token.as_deref(), Some("checkpoint-1"));

    let report = bench.back_up(BackupPlan { parent: Some(parent.clone()), ..plan }).unwrap();
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    assert!(bench.read(&report.snapshot, "disk") == bench.bytes, "the disk differs");
    assert_eq!(report.snapshot.parents, [parent.id()]);
    assert_eq!(report.snapshot.disks[0].token, None);
}
