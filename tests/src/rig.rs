//! A repository under test: making, opening, backing up and reading, in as few words as the tests need.
//!
//! Not here: what a test expects. What holds: everything is made with seeded entropy and told times, so that a run
//! repeats; passphrases cost next to nothing here.

// A harness speaks by failing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

use crate::disk::{DiskContent, DiskSource, read_bytes};
use coffer_repo::Result;
use coffer_repo::backend::Backend;
use coffer_repo::cancel::Cancel;
use coffer_repo::chunker::{DiskParams, StreamParams};
use coffer_repo::collector::{self, CollectOptions, CollectProgress, CollectReport};
use coffer_repo::copy::{Copier, CopyOptions, Made, Outcome, PointCopy};
use coffer_repo::crypto::Aead;
use coffer_repo::entropy::{Entropy, Seeded};
use coffer_repo::index::{Index, IndexOptions, MemoryBudget, SyncReport};
use coffer_repo::key_slot::{Credential, PassphraseCost, SlotOptions};
use coffer_repo::reader::{Reader, ReaderOptions};
use coffer_repo::repository::{InitOptions, Repository};
use coffer_repo::snapshot::{Identity, Snapshot};
use coffer_repo::time::Timestamp;
use coffer_repo::writer::{DiskSpec, Writer, WriterOptions};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Bytes of a window in the repositories of [`init`]: the least there can be.
pub const WINDOW: u64 = 1 << 20;

/// The passphrase of the repositories of [`init`].
#[must_use]
pub fn passphrase() -> Credential {
    Credential::Passphrase("rig".to_owned().into())
}

/// Seconds since 1970.
#[must_use]
pub fn at(seconds: u64) -> Timestamp {
    Timestamp::from_seconds(seconds).unwrap()
}

/// A slot that is cheap to open.
#[must_use]
pub fn slot(label: &str, seconds: u64) -> SlotOptions {
    SlotOptions {
        label: label.to_owned(),
        created: at(seconds),
        cost: PassphraseCost { memory_kib: 64, passes: 1, lanes: 1 },
    }
}

/// Makes a repository with windows of [`WINDOW`] bytes in `store`.
pub fn init(store: Arc<dyn Backend>, seed: u64) -> Result<Arc<Repository>> {
    init_cut(store, seed, DiskParams { window: WINDOW, ..DiskParams::default() })
}

/// Makes a repository with chunks of 4 to 16 KiB in `store`, so that small disks have many.
pub fn init_fine(store: Arc<dyn Backend>, seed: u64) -> Result<Arc<Repository>> {
    init_cut(
        store,
        seed,
        DiskParams { min: 4 << 10, mean: 8 << 10, max: 16 << 10, window: WINDOW, ..DiskParams::default() },
    )
}

/// Makes a repository in `store` that cuts disks as those do that the program makes.
pub fn init_usual(store: Arc<dyn Backend>, seed: u64) -> Result<Arc<Repository>> {
    init_cut(store, seed, DiskParams::default())
}

/// Makes a repository that cuts disks so.
pub fn init_cut(store: Arc<dyn Backend>, seed: u64, disk: DiskParams) -> Result<Arc<Repository>> {
    let options = InitOptions {
        credential: passphrase(),
        slot: slot("rig", 1),
        disk,
        stream: StreamParams::default(),
        aead: Aead::preferred(),
        parity: false,
    };
    Repository::init(store, options, entropy(seed)).map(Arc::new)
}

/// Opens a repository of [`init`] or [`init_fine`]. Another seed than any before: two sessions never draw the same random bytes.
pub fn open(store: Arc<dyn Backend>, seed: u64) -> Result<Arc<Repository>> {
    Repository::open(store, &passphrase(), entropy(seed)).map(Arc::new)
}

fn entropy(seed: u64) -> Arc<dyn Entropy> {
    Arc::new(Seeded::new(seed))
}

/// Opens the index in `dir` and learns all index deltas.
pub fn open_index(repo: &Repository, dir: &Path) -> Result<Arc<Index>> {
    let memory = MemoryBudget { block_cache: 4 << 20, write_buffers: 4 << 20 };
    let index = Index::open(dir, repo.keys().repo(), IndexOptions { memory, fetchers: 2 })?;
    learn(repo, &index)?;
    Ok(Arc::new(index))
}

/// Learns the index deltas that are not known yet.
pub fn learn(repo: &Repository, index: &Index) -> Result<SyncReport> {
    index.sync(repo.backend(), repo.keys(), &repo.certificates(), &mut |_, _| Ok(()))
}

/// Learns the packs that no index delta tells of.
pub fn learn_packs(repo: &Repository, index: &Index) -> Result<SyncReport> {
    index.sync_packs(repo.backend(), repo.keys(), &repo.certificates(), &mut |_, _| Ok(()))
}

/// One backup.
#[derive(Clone)]
pub struct Job<'a> {
    /// The protected thing.
    pub workload: &'a str,
    /// When it begins, in seconds since 1970.
    pub time: u64,
    /// What it builds on.
    pub parent: Option<Snapshot>,
    /// Names and contents.
    pub disks: Vec<(&'a str, &'a DiskContent)>,
    /// Windows of the first disk that the source says are as in the parent.
    pub unchanged: BTreeSet<u64>,
    /// How it is done.
    pub options: WriterOptions,
}

impl<'a> Job<'a> {
    /// A full backup by one worker into small packs, so that its operations come in one order and are many.
    #[must_use]
    pub fn new(workload: &'a str, time: u64, disks: Vec<(&'a str, &'a DiskContent)>) -> Self {
        let options = WriterOptions { workers: 1, uploads: 1, pack_bytes: 300 << 10, ..WriterOptions::default() };
        Job { workload, time, parent: None, disks, unchanged: BTreeSet::new(), options }
    }

    /// The same on top of `parent`.
    #[must_use]
    pub fn on(self, parent: Option<Snapshot>) -> Self {
        Job { parent, ..self }
    }

    /// Backs up and commits.
    pub fn run(self, repo: &Arc<Repository>, index: &Arc<Index>) -> Result<Snapshot> {
        self.prepare(repo, index)?.commit(Vec::new())
    }

    /// Everything but the commit.
    pub fn prepare(self, repo: &Arc<Repository>, index: &Arc<Index>) -> Result<Writer> {
        let Job { workload, time, parent, disks, mut unchanged, options } = self;
        let mut writer = Writer::begin(repo, index, workload, parent, Identity::default(), options, at(time))?;
        for (name, content) in disks {
            let source = DiskSource::incremental(content, repo.geometry().window, std::mem::take(&mut unchanged));
            let spec = DiskSpec { name: name.to_owned(), block_size: 512, platform: None };
            writer.disk(spec, &source, &Cancel::default())?;
        }
        Ok(writer)
    }
}

/// How garbage is collected here: by one thread, so that its operations come in one order; small packs, little memory.
#[must_use]
pub fn collecting(scratch: &Path, now: u64) -> CollectOptions {
    CollectOptions {
        threads: 1,
        memory: 1 << 20,
        pack_bytes: 300 << 10,
        ..CollectOptions::new(scratch.to_owned(), Identity::default(), at(now))
    }
}

/// Collects garbage.
pub fn collect(repo: &Arc<Repository>, options: &CollectOptions) -> Result<CollectReport> {
    collector::collect(repo, options, &CollectProgress::default(), &Cancel::default())
}

/// A reader with small budgets and no helpers to speak of.
pub fn reader(repo: &Arc<Repository>) -> Result<Arc<Reader>> {
    Reader::new(Arc::clone(repo), ReaderOptions { cache_bytes: 4 << 20, readahead_bytes: 1 << 20, threads: 1 })
}

/// Everything on a disk of a snapshot, read with nothing cached.
pub fn read_disk(repo: &Arc<Repository>, snapshot: &Snapshot, disk: &str) -> Result<Vec<u8>> {
    read_bytes(&reader(repo)?.disk(snapshot, disk)?)
}

/// How points are copied here: by one worker into small packs, so that operations come in one order.
#[must_use]
pub fn copying(now: u64) -> CopyOptions {
    let writer = WriterOptions { workers: 1, uploads: 1, pack_bytes: 300 << 10, ..WriterOptions::default() };
    CopyOptions {
        keep_going: false,
        verify: false,
        max_rate: None,
        writer,
        identity: Identity::default(),
        now: at(now),
    }
}

/// What copies points of `source` to `destination`.
pub fn copier(source: &Arc<Repository>, destination: &Arc<Repository>, options: CopyOptions) -> Result<Copier> {
    Copier::begin(source, reader(source)?, destination, destination.points()?.snapshots, options)
}

/// Copies one of `points`, and compares it if that is wanted. Damage is an error.
pub fn copy_point(
    copier: &mut Copier,
    index: &Arc<Index>,
    point: &Snapshot,
    points: &[Snapshot],
    options: &CopyOptions,
) -> Result<Made> {
    let never = Cancel::default();
    let copy = PointCopy::begin(copier, index, point, points)?.expect("nobody forgets points meanwhile");
    let made = match copy.run(&never)? {
        Outcome::Made(made) => *made,
        Outcome::Damaged(e) => return Err(e),
    };
    if options.verify {
        let compared = AtomicU64::new(0);
        copier.compare(point, &made.snapshot, &compared, &never)?;
        assert_eq!(compared.into_inner(), point.logical_bytes());
    }
    copier.add(made.snapshot.clone());
    Ok(made)
}

/// Copies all points that `destination` lacks.
pub fn copy_all(
    source: &Arc<Repository>,
    destination: &Arc<Repository>,
    index: &Arc<Index>,
    options: &CopyOptions,
) -> Result<Vec<Made>> {
    let mut copier = copier(source, destination, options.clone())?;
    let points = source.points()?.snapshots;
    let due = copier.due(&points.iter().collect::<Vec<_>>());
    due.into_iter().map(|point| copy_point(&mut copier, index, point, &points, options)).collect()
}
