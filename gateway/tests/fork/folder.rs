//! Forks of points of a repository: names, owners, pins, and what is left of them.

use crate::chance::Chance;
use crate::rig::contents;
use coffer_gateway::fork::{BootId, Fork, ForkName, Forks};
use coffer_gateway::{BlockDevice, Durability, Kind, Result, SnapshotDevice};
use coffer_repo::backend::Backend;
use coffer_repo::backend::memory::Memory;
use coffer_repo::cancel::Cancel;
use coffer_repo::chunker::{DiskParams, StreamParams};
use coffer_repo::collector::{CollectOptions, CollectProgress, collect};
use coffer_repo::crypto::Aead;
use coffer_repo::entropy::{Seeded, System};
use coffer_repo::index::{Index, IndexOptions};
use coffer_repo::key_slot::{Credential, PassphraseCost, SlotOptions};
use coffer_repo::reader::{Reader, ReaderOptions};
use coffer_repo::repository::{InitOptions, Repository};
use coffer_repo::snapshot::{Identity, Snapshot};
use coffer_repo::time::Timestamp;
use coffer_repo::window::{Filled, Window, WindowSource};
use coffer_repo::writer::{DiskSpec, Writer, WriterOptions};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

pub(crate) const WINDOW: usize = 1 << 20;
pub(crate) const BLOCK: usize = 4096;
const BOOT: BootId = BootId([1; 16]);

/// A disk image as a source.
struct Image<'a> {
    bytes: &'a [u8],
    /// What cannot be read, in blocks.
    lost: &'a [Range<usize>],
    next: AtomicUsize,
}

impl WindowSource for Image<'_> {
    fn next(&self, window: &mut Window) -> Result<Filled> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let Some(bytes) = self.bytes.chunks(WINDOW).nth(index) else { return Ok(Filled::End) };
        window.make_room(bytes.len()).copy_from_slice(bytes);
        let within =
            |block: usize| (block * BLOCK).clamp(index * WINDOW, index * WINDOW + bytes.len()) - index * WINDOW;
        for lost in self.lost.iter().map(|lost| within(lost.start)..within(lost.end)).filter(|lost| !lost.is_empty()) {
            window.unreadable.push(lost.start as u32..lost.end as u32);
        }
        Ok(Filled::Bytes(index as u64))
    }

    fn size(&self) -> Result<u64> {
        Ok(self.bytes.len() as u64)
    }
}

/// A repository with a point, and a place for forks.
pub(crate) struct Stage {
    pub(crate) folder: TempDir,
    pub(crate) memory: Arc<Memory>,
    pub(crate) repo: Arc<Repository>,
    pub(crate) index: Arc<Index>,
    pub(crate) point: Snapshot,
    /// Of the disk vda; there is another, vdb.
    pub(crate) bytes: Vec<u8>,
    pub(crate) forks: Forks,
}

pub(crate) fn credential() -> Credential {
    Credential::Passphrase("test".to_owned().into())
}

pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp::from_seconds(seconds).unwrap()
}

pub(crate) fn name(text: &str) -> ForkName {
    text.parse().unwrap()
}

/// Name, contents, blocks that cannot be read.
type ImageOf<'a> = (&'a str, &'a [u8], &'a [Range<usize>]);

fn backed_up(repo: &Arc<Repository>, index: &Arc<Index>, workload: &str, disks: &[ImageOf<'_>], time: u64) -> Snapshot {
    let options = WriterOptions { workers: 1, ..WriterOptions::default() };
    let mut writer = Writer::begin(repo, index, workload, None, Identity::default(), options, at(time)).unwrap();
    for (name, bytes, lost) in disks.iter().copied() {
        let spec = DiskSpec { name: name.into(), block_size: 512, platform: None };
        writer.disk(spec, &Image { bytes, lost, next: AtomicUsize::new(0) }, &Cancel::default()).unwrap();
        writer.set_token(name, format!("token of {name}"));
    }
    writer.commit(Vec::new()).unwrap()
}

impl Stage {
    pub(crate) fn new() -> Stage {
        Stage::with(&[])
    }

    /// Of vda the blocks `lost` cannot be read.
    pub(crate) fn with(lost: &[Range<usize>]) -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let slot = SlotOptions {
            label: "test".into(),
            created: at(1),
            cost: PassphraseCost { memory_kib: 64, passes: 1, lanes: 1 },
        };
        let options = InitOptions {
            credential: credential(),
            slot,
            disk: DiskParams { window: WINDOW as u64, ..DiskParams::default() },
            stream: StreamParams::default(),
            aead: Aead::preferred(),
            parity: false,
        };
        let memory = Arc::new(Memory::default());
        let backend: Arc<dyn Backend> = memory.clone();
        let repo = Arc::new(Repository::init(backend, options, Arc::new(Seeded::new(1))).unwrap());
        let index = Index::open(&folder.path().join("index"), repo.keys().repo(), IndexOptions::default()).unwrap();
        let index = Arc::new(index);
        let bytes = Chance::new(1).bytes(3 << 20);
        let disks = [("vda", &bytes[..], lost), ("vdb", &Chance::new(2).bytes(WINDOW + 5000), &[])];
        let point = backed_up(&repo, &index, "web", &disks, 10);
        let forks = Forks::new(folder.path().join("state/forks"));
        Stage { folder, memory, repo, index, point, bytes, forks }
    }

    /// A backup of all of a disk as vda, of a workload of its own.
    pub(crate) fn backed_up(&self, bytes: &[u8], lost: &[Range<usize>], time: u64) -> Snapshot {
        backed_up(&self.repo, &self.index, "whole", &[("vda", bytes, lost)], time)
    }

    pub(crate) fn create(&self, fork: &str) -> Result<()> {
        let identity = Identity::default();
        self.forks.create(&self.repo, &name(fork), &self.point, &self.point.disks[0], &identity, at(20), BOOT)?;
        Ok(())
    }

    pub(crate) fn open(&self, fork: &str) -> Result<Fork> {
        let reader = Reader::new(Arc::clone(&self.repo), ReaderOptions::default())?;
        self.forks.open(&self.repo, &reader, &name(fork), BOOT, at(25), Arc::new(System))
    }

    /// Collects as if a year had passed; how many packs went.
    pub(crate) fn collect(&self) -> u64 {
        let options = CollectOptions::new(self.folder.path().to_owned(), Identity::default(), at(40_000_000));
        let report = collect(&self.repo, &options, &CollectProgress::default(), &Cancel::default()).unwrap();
        report.removed.packs
    }

    /// What a disk of a point holds.
    pub(crate) fn restored(&self, point: &Snapshot, disk: &str) -> Vec<u8> {
        let reader = Reader::new(Arc::clone(&self.repo), ReaderOptions::default()).unwrap();
        contents(&SnapshotDevice::new(reader.disk(point, disk).unwrap(), None))
    }

    fn entries(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("state/forks")).unwrap().count()
    }
}

#[test]
fn a_fork_is_made_listed_opened_written_and_dropped() {
    let stage = Stage::new();
    assert!(stage.forks.list().unwrap().is_empty());
    stage.create("lab").unwrap();
    stage.create("other.1").unwrap();
    assert_eq!(stage.create("lab").unwrap_err().kind(), Kind::Locked);
    let fork = stage.open("lab").unwrap();
    assert_eq!((fork.size(), fork.block_size()), (3 << 20, 512));
    assert!(contents(&fork) == stage.bytes);
    fork.write_at(1000, b"mine", Durability::Cached).unwrap();
    fork.close().unwrap();
    // One owner; the others hear of it.
    let error = stage.open("lab").err().unwrap();
    assert_eq!(error.kind(), Kind::Locked);
    assert!(error.to_string().contains("another process"), "{error}");
    assert_eq!(stage.forks.remove(&stage.repo, &name("lab"), at(30)).unwrap_err().kind(), Kind::Locked);
    let listed = stage.forks.list().unwrap();
    let seen: Vec<_> = listed.iter().map(|f| (f.name.to_string(), f.is_open)).collect();
    assert_eq!(seen, [("lab".to_owned(), true), ("other.1".to_owned(), false)]);
    assert_eq!(listed[0].header.as_ref().unwrap().disk, "vda");
    drop(fork);
    let fork = stage.open("lab").unwrap();
    let mut expected = stage.bytes.clone();
    expected[1000..1004].copy_from_slice(b"mine");
    assert!(contents(&fork) == expected);
    drop(fork);
    assert!(contents(&stage.open("other.1").unwrap()) == stage.bytes, "forks are apart");
    stage.forks.remove(&stage.repo, &name("lab"), at(30)).unwrap();
    assert_eq!(stage.open("lab").err().map(|e| e.kind()), Some(Kind::NotFound));
    assert_eq!(stage.entries(), 1);
}

#[test]
fn a_forgotten_point_stays_as_long_as_a_fork_of_it() {
    let stage = Stage::new();
    stage.create("lab").unwrap();
    stage.repo.forget(stage.point.name, at(21)).unwrap();
    assert_eq!(stage.collect(), 0);
    assert!(contents(&stage.open("lab").unwrap()) == stage.bytes);
    stage.forks.remove(&stage.repo, &name("lab"), at(30)).unwrap();
    assert!(stage.collect() > 0);
}

#[test]
fn a_fork_whose_pin_was_ended_says_so() {
    let stage = Stage::new();
    stage.create("lab").unwrap();
    let pin = stage.forks.list().unwrap()[0].header.as_ref().unwrap().pin;
    stage.repo.forget(pin, at(22)).unwrap();
    let error = stage.open("lab").err().unwrap();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.to_string().contains("lost what it builds on") && error.to_string().contains("web"), "{error}");
    stage.forks.remove(&stage.repo, &name("lab"), at(30)).unwrap();
}

#[test]
fn what_a_crash_left_half_made_or_half_dropped_is_cleared_away_with_its_pin() {
    let stage = Stage::new();
    stage.create("lab").unwrap();
    let forks = stage.folder.path().join("state/forks");
    std::fs::rename(forks.join("lab"), forks.join(".lab.0123")).unwrap();
    assert!(stage.forks.list().unwrap().is_empty());
    stage.create("next").unwrap();
    assert_eq!(stage.entries(), 1);
    stage.forks.remove(&stage.repo, &name("next"), at(30)).unwrap();
    stage.repo.forget(stage.point.name, at(31)).unwrap();
    assert!(stage.collect() > 0, "no pin is left");
}

#[test]
fn a_header_that_was_tampered_with_opens_nothing() {
    let stage = Stage::new();
    stage.create("lab").unwrap();
    let path = stage.folder.path().join("state/forks/lab/fork");
    let bytes = std::fs::read(&path).unwrap();
    for at in (0..bytes.len()).step_by(3) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        assert!(stage.open("lab").is_err(), "byte {at}");
    }
    std::fs::write(&path, bytes).unwrap();
    stage.open("lab").unwrap();
}

#[test]
fn names_are_plain() {
    for good in ["a", "A.b_c-9", &"x".repeat(64)] {
        assert_eq!(name(good).to_string(), good);
    }
    for bad in ["", ".", "..", ".a", "a/b", "a b", "ä", &"x".repeat(65)] {
        assert_eq!(bad.parse::<ForkName>().unwrap_err().kind(), Kind::Invalid, "{bad}");
    }
}
