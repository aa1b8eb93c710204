//! The mount over a real repository: backups appear, read back, are pinned while open, and damage is an error.

use crate::bytes_device::BytesDevice;
use coffer_mount::{MountOptions, Report, RepositoryCatalog, Session};
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, list_sorted};
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
use coffer_repo::window::{Filled, Window, WindowSource};
use coffer_repo::writer::{DiskSpec, Writer, WriterOptions};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

const WINDOW: u32 = 1 << 20;

/// A disk image as a source.
struct Image<'a> {
    bytes: &'a [u8],
    next: AtomicU64,
}

impl WindowSource for Image<'_> {
    fn next(&self, window: &mut Window) -> coffer_repo::Result<Filled> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let mut windows = self.bytes.chunks(usize::try_from(WINDOW).unwrap());
        let Some(bytes) = windows.nth(usize::try_from(index).unwrap()) else { return Ok(Filled::End) };
        window.make_room(bytes.len()).copy_from_slice(bytes);
        Ok(Filled::Bytes(index))
    }

    fn size(&self) -> coffer_repo::Result<u64> {
        Ok(self.bytes.len() as u64)
    }
}

/// A repository in memory, and a mount of it that refreshes at every look.
struct Bench {
    session: Session,
    reported: Arc<Mutex<Vec<String>>>,
    directory: TempDir,
    store: Arc<Memory>,
    repo: Arc<Repository>,
    index: Arc<Index>,
    _index_directory: TempDir,
}

impl Bench {
    fn new() -> Self {
        let store = Arc::new(Memory::default());
        let cost = PassphraseCost { memory_kib: 64, passes: 1, lanes: 1 };
        let options = InitOptions {
            credential: Credential::Passphrase("secret".to_owned().into()),
            slot: SlotOptions { label: "test".into(), created: at(1), cost },
            disk: DiskParams { window: WINDOW.into(), ..DiskParams::default() },
            stream: StreamParams::default(),
            aead: Aead::preferred(),
            parity: false,
        };
        let backend = Arc::<Memory>::clone(&store);
        let repo = Arc::new(Repository::init(backend, options, Arc::new(Seeded::new(11))).unwrap());
        let index_directory = TempDir::new().unwrap();
        let index = Index::open(&index_directory.path().join("index"), repo.keys().repo(), IndexOptions::default());

        let reported = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&reported);
        let report: Report = Arc::new(move |e| sink.lock().unwrap().push(format!("{e:?}")));
        let reader = Reader::new(Arc::clone(&repo), ReaderOptions::default()).unwrap();
        let clock = Arc::new(|| at(2_000));
        let catalog =
            RepositoryCatalog::new(Arc::clone(&repo), reader, Identity::default(), clock, Arc::clone(&report));
        let directory = TempDir::new().unwrap();
        let options = MountOptions { refresh: Duration::ZERO, ..MountOptions::default() };
        let session = Session::mount(directory.path(), Arc::new(catalog), options, report).unwrap();
        let index = Arc::new(index.unwrap());
        Bench { session, reported, directory, store, repo, index, _index_directory: index_directory }
    }

    fn back_up(&self, seconds: u64, disks: &[(&str, &[u8])]) -> Snapshot {
        let options = WriterOptions { pack_bytes: 1 << 20, ..WriterOptions::default() };
        let identity = Identity::default();
        let mut writer = Writer::begin(&self.repo, &self.index, "web", None, identity, options, at(seconds)).unwrap();
        for (name, bytes) in disks {
            let spec = DiskSpec { name: (*name).into(), block_size: 512, platform: None };
            writer.disk(spec, &Image { bytes, next: AtomicU64::new(0) }, &Cancel::default()).unwrap();
        }
        writer.commit(Vec::new()).unwrap()
    }

    fn path(&self, inner: &str) -> std::path::PathBuf {
        self.directory.path().join(inner)
    }

    /// Pins that hold: claims without a decision that were not forgotten.
    fn pins(&self) -> usize {
        let folders = self.repo.folders().unwrap();
        folders.claims.iter().filter(|(name, decided)| !**decided && !folders.forgotten.contains(&name.id)).count()
    }

    /// Unmounts; returns what was reported.
    fn end(&self) -> Vec<String> {
        self.session.stop().unwrap();
        self.session.wait().unwrap();
        assert_eq!(self.pins(), 0);
        self.reported.lock().unwrap().clone()
    }
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_seconds(seconds).unwrap()
}

/// Noise with holes, and a length that is no multiple of a block.
fn image(seed: u64) -> Vec<u8> {
    BytesDevice::random(seed, 9_000_000, &[1 << 20..3 << 20, 5 << 20..5_500_000]).bytes
}

#[test]
fn backups_appear_and_read_back() {
    let bench = Bench::new();
    assert_eq!(fs::read_dir(bench.path("")).unwrap().count(), 0);
    let (first, second, other) = (image(1), image(2), image(3));
    bench.back_up(1_000, &[("root", &first), ("db 1", &other), ("empty", &[])]);
    assert!(fs::read(bench.path("web/latest/root.raw")).unwrap() == first);
    bench.back_up(1_060, &[("root", &second)]);
    assert_eq!(fs::read_link(bench.path("web/latest")).unwrap(), Path::new("1970-01-01T00-17-40Z"));
    assert!(fs::read(bench.path("web/latest/root.raw")).unwrap() == second);
    assert!(fs::read(bench.path("web/1970-01-01T00-16-40Z/root.raw")).unwrap() == first);
    assert!(fs::read(bench.path("web/1970-01-01T00-16-40Z/db 1.raw")).unwrap() == other);
    assert!(fs::read(bench.path("web/1970-01-01T00-16-40Z/empty.raw")).unwrap().is_empty());
    let file = File::open(bench.path("web/latest/root.raw")).unwrap();
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap(), 1 << 20);
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(1 << 20)).unwrap(), 3 << 20);
    drop(file);
    assert_eq!(bench.end(), Vec::<String>::new());
}

#[test]
fn an_open_disk_is_pinned_and_outlives_its_forgetting() {
    let bench = Bench::new();
    let bytes = image(4);
    let snapshot = bench.back_up(1_000, &[("root", &bytes), ("data", &bytes)]);
    let path = bench.path("web/latest/root.raw");
    let file = File::open(&path).unwrap();
    let beside = File::open(bench.path("web/latest/data.raw")).unwrap();
    assert_eq!(bench.pins(), 1, "one pin for both disks");
    bench.repo.forget(snapshot.name, at(1_500)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(fs::read_dir(bench.path("")).unwrap().count(), 0);
    let mut out = vec![0; bytes.len()];
    file.read_exact_at(&mut out, 0).unwrap();
    assert!(out == bytes);
    drop((file, beside));
    assert_eq!(bench.end(), Vec::<String>::new());
}

#[test]
fn a_damaged_claim_hides_no_other_and_is_reported_once() {
    let bench = Bench::new();
    let bytes = image(5);
    bench.back_up(1_000, &[("root", &bytes)]);
    let damaged = bench.back_up(1_060, &[("root", &bytes)]).name.claim();
    let mut claim = bench.store.get(&damaged).unwrap();
    let middle = claim.len() / 2;
    claim[middle] ^= 1;
    bench.store.delete(&damaged).unwrap();
    let _ = bench.store.put(&damaged, &[&claim]).unwrap();
    for _ in 0..3 {
        assert_eq!(fs::read_dir(bench.path("web")).unwrap().count(), 2, "one point and the link to it");
    }
    assert!(fs::read(bench.path("web/latest/root.raw")).unwrap() == bytes);
    let reported = bench.end();
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert!(reported[0].contains("Corrupt") && reported[0].contains(&damaged), "{reported:?}");
}

#[test]
fn a_missing_pack_is_an_io_error_and_named() {
    let bench = Bench::new();
    let bytes = image(6);
    bench.back_up(1_000, &[("root", &bytes)]);
    let packs: Vec<String> = list_sorted(&*bench.store, "packs/").unwrap().into_iter().map(|o| o.name).collect();
    packs.iter().for_each(|pack| bench.store.delete(pack).unwrap());
    let file = File::open(bench.path("web/latest/root.raw")).unwrap();
    let mut out = [0; 4096];
    assert_eq!(file.read_exact_at(&mut out, 0).unwrap_err().raw_os_error(), Some(5));
    file.read_exact_at(&mut out, 2 << 20).unwrap();
    assert_eq!(out, [0; 4096], "a hole needs no pack");
    drop(file);
    let reported = bench.end();
    assert!(!reported.is_empty());
    assert!(reported.iter().all(|r| packs.iter().any(|p| r.contains(p)) && r.contains("web@")), "{reported:?}");
}
