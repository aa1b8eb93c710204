//! A repository in memory, disks of noise and text, and backups of them: what the tests of this room begin with.
//!
//! Not here: any test. What holds: everything random is seeded, so that a repository is the same in every run.

#![allow(dead_code, unreachable_pub, reason = "each test file is a crate of its own and uses its own part of this")]

use coffer_repo::Result;
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, Listed, Put};
use coffer_repo::cancel::Cancel;
use coffer_repo::chunker::{DiskParams, StreamParams};
use coffer_repo::crypto::Aead;
use coffer_repo::disk_map::{Leaf, Node};
use coffer_repo::entropy::{Entropy, Seeded};
use coffer_repo::index::{Index, IndexOptions};
use coffer_repo::key_slot::{Credential, PassphraseCost, SlotOptions};
use coffer_repo::location::{Location, PackKind};
use coffer_repo::pack;
use coffer_repo::reader::{Reader, ReaderOptions};
use coffer_repo::repository::{InitOptions, Repository};
use coffer_repo::seal::Decompressor;
use coffer_repo::snapshot::{Disk, Identity, Snapshot};
use coffer_repo::time::Timestamp;
use coffer_repo::window::{Filled, Window, WindowSource};
use coffer_repo::writer::{DiskSpec, Writer, WriterOptions};
use coffer_repo::zero::is_zero;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub struct Image<'a> {
    pub bytes: &'a [u8],
    pub window: u64,
    pub next: AtomicU64,
    /// Whether windows of zeroes are told apart, as a source that knows its holes does, or read.
    pub tells_holes: bool,
}

impl WindowSource for Image<'_> {
    fn next(&self, window: &mut Window) -> Result<Filled> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let start = usize::try_from(index * self.window).unwrap();
        if start >= self.bytes.len() {
            return Ok(Filled::End);
        }
        let end = (start + usize::try_from(self.window).unwrap()).min(self.bytes.len());
        if self.tells_holes && is_zero(&self.bytes[start..end]) {
            return Ok(Filled::Zero(index));
        }
        window.make_room(end - start).copy_from_slice(&self.bytes[start..end]);
        Ok(Filled::Bytes(index))
    }

    fn size(&self) -> Result<u64> {
        Ok(self.bytes.len() as u64)
    }
}

pub struct Bench {
    pub memory: Arc<Memory>,
    pub dir: tempfile::TempDir,
    pub entropy: Arc<dyn Entropy>,
}

impl Bench {
    /// Windows of 1 MiB.
    pub fn new() -> (Self, Arc<Repository>) {
        Self::with(Self::options())
    }

    /// Chunks of 16 KiB in the mean, so that small disks have many.
    pub fn fine() -> (Self, Arc<Repository>) {
        let disk = DiskParams { min: 8 << 10, mean: 16 << 10, max: 32 << 10, window: 1 << 20, ..DiskParams::default() };
        Self::with(InitOptions { disk, ..Self::options() })
    }

    /// Packs get parity.
    pub fn with_parity() -> (Self, Arc<Repository>) {
        Self::with(InitOptions { parity: true, ..Self::options() })
    }

    fn with(options: InitOptions) -> (Self, Arc<Repository>) {
        let bench =
            Bench { memory: Arc::default(), dir: tempfile::tempdir().unwrap(), entropy: Arc::new(Seeded::new(7)) };
        let repo = Repository::init(bench.memory.clone(), options, bench.entropy.clone()).unwrap();
        (bench, Arc::new(repo))
    }

    /// A repository that the passphrase "secret" opens, with windows of 1 MiB.
    pub fn options() -> InitOptions {
        let cost = PassphraseCost { memory_kib: 64, passes: 1, lanes: 1 };
        InitOptions {
            credential: pass("secret"),
            slot: SlotOptions { label: "test".into(), created: at(1), cost },
            disk: DiskParams { window: 1 << 20, ..DiskParams::default() },
            stream: StreamParams::default(),
            aead: Aead::preferred(),
            parity: false,
        }
    }

    pub fn open(&self, credential: &Credential) -> Result<Arc<Repository>> {
        Repository::open(self.memory.clone(), credential, self.entropy.clone()).map(Arc::new)
    }

    pub fn index(&self, repo: &Repository) -> Arc<Index> {
        Arc::new(Index::open(&self.dir.path().join("index"), repo.keys().repo(), IndexOptions::default()).unwrap())
    }
}

/// A store in which something happens in between: before every put and every read of a range.
pub struct Meddled {
    store: Arc<Memory>,
    meddle: Box<dyn Fn(&str) + Send + Sync>,
}

impl Meddled {
    pub fn new(store: Arc<Memory>, meddle: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Meddled { store, meddle: Box::new(meddle) }
    }
}

impl fmt::Debug for Meddled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

impl Backend for Meddled {
    fn location(&self) -> String {
        self.store.location()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        (self.meddle)(name);
        self.store.put(name, parts)
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.store.get(name)
    }

    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        (self.meddle)(name);
        self.store.get_range(name, offset, out)
    }

    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        self.store.get_suffix(name, max)
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        self.store.size(name)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        self.store.list(prefix, each)
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.store.delete(name)
    }
}

pub fn pass(text: &str) -> Credential {
    Credential::Passphrase(text.to_owned().into())
}

pub fn at(seconds: u64) -> Timestamp {
    Timestamp::from_seconds(seconds).unwrap()
}

/// Backs up disks of the workload "web", reading all their bytes.
pub fn back_up(
    repo: &Arc<Repository>,
    index: &Arc<Index>,
    disks: &[(&str, &[u8])],
    parent: Option<Snapshot>,
    now: u64,
) -> Snapshot {
    let images: Vec<_> = disks.iter().map(|(name, bytes)| (*name, image_of(repo, bytes, false))).collect();
    commit("web", repo, index, &images, parent, now)
}

/// Backs up disks of any workload; holes are told and not read.
pub fn back_up_as(
    workload: &str,
    repo: &Arc<Repository>,
    index: &Arc<Index>,
    disks: &[(&str, &[u8])],
    parent: Option<Snapshot>,
    now: u64,
) -> Snapshot {
    let images: Vec<_> = disks.iter().map(|(name, bytes)| (*name, image_of(repo, bytes, true))).collect();
    commit(workload, repo, index, &images, parent, now)
}

fn image_of<'a>(repo: &Repository, bytes: &'a [u8], tells_holes: bool) -> Image<'a> {
    Image { bytes, window: repo.geometry().window, next: AtomicU64::new(0), tells_holes }
}

fn commit(
    workload: &str,
    repo: &Arc<Repository>,
    index: &Arc<Index>,
    disks: &[(&str, Image<'_>)],
    parent: Option<Snapshot>,
    now: u64,
) -> Snapshot {
    let options = WriterOptions { workers: 3, pack_bytes: 1 << 20, ..WriterOptions::default() };
    let mut writer = Writer::begin(repo, index, workload, parent, Identity::default(), options, at(now)).unwrap();
    for (name, image) in disks {
        let spec = DiskSpec { name: (*name).into(), block_size: 512, platform: None };
        writer.disk(spec, image, &Cancel::default()).unwrap();
    }
    writer.commit(vec![]).unwrap()
}

pub fn read_all(repo: &Arc<Repository>, snapshot: &Snapshot, disk: &str) -> Result<Vec<u8>> {
    let reader = Reader::new(Arc::clone(repo), ReaderOptions::default())?;
    let disk = reader.disk(snapshot, disk)?;
    let mut out = vec![0xaa; usize::try_from(disk.size()).unwrap()];
    for (i, piece) in out.chunks_mut(300_001).enumerate() {
        disk.read_at(i as u64 * 300_001, piece)?;
    }
    Ok(out)
}

/// Noise, text, zeroes and a partial last block.
pub fn image(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; len];
    let noise = Seeded::new(seed);
    for (i, piece) in bytes.chunks_mut(96 << 10).enumerate() {
        match i % 4 {
            0 => noise.fill(piece).unwrap(),
            1 => piece.iter_mut().enumerate().for_each(|(j, b)| *b = b"Coffer keeps it. "[(i * 7 + j) % 17]),
            2 => noise.fill(&mut piece[..8192.min(len - i * (96 << 10))]).unwrap(),
            _ => {}
        }
    }
    bytes
}

/// Every leaf of a disk's map, with its window, by plain descent: what the flows that skip and share are measured against.
pub fn leaves(repo: &Repository, disk: &Disk) -> Vec<(u64, Leaf)> {
    fn descend(repo: &Repository, raw: &[u8], base: u64, out: &mut Vec<(u64, Leaf)>) {
        match Node::decode(raw, repo.geometry().window).unwrap() {
            Node::Leaf(leaf) => out.push((base, leaf)),
            Node::Inner(inner) => {
                for child in &inner.children {
                    let first = base + u64::from(child.slot) * repo.geometry().windows_of_level(inner.level - 1);
                    descend(repo, &read_node(repo, &child.hint), first, out);
                }
            }
        }
    }
    let mut out = Vec::new();
    if !disk.root.is_empty() {
        descend(repo, &disk.root, 0, &mut out);
    }
    out
}

fn read_node(repo: &Repository, at: &Location) -> Vec<u8> {
    let mut sealed = vec![0; at.stored_len as usize];
    repo.backend().get_range(&pack::name(PackKind::Tree, at.pack), u64::from(at.offset), &mut sealed).unwrap();
    let open = repo.open_pack(PackKind::Tree, at.pack).unwrap();
    let (codec, bytes) = open.open_frame(at, &mut sealed).unwrap();
    let mut raw = Vec::new();
    Decompressor::new().unwrap().decompress(codec, bytes, at.raw_len, &mut raw).unwrap();
    raw
}

/// Adds a range to sorted ones that end nowhere behind it, merging neighbours.
pub fn merge(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
        _ => ranges.push(range),
    }
}
