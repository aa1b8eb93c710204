//! Reading from a store that is far away: enough is under way at once, in requests that are long enough. Counted, not timed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use coffer_repo::backend::Backend;
use coffer_repo::backend::cached::{CacheOptions, Cached, Intake};
use coffer_repo::backend::memory::Memory;
use coffer_repo::reader::{DiskReader, Reader, ReaderOptions};
use coffer_repo::snapshot::Snapshot;
use coffer_repo::writer::WriterOptions;
use coffer_tests::dice::Dice;
use coffer_tests::disk::DiskContent;
use coffer_tests::distant::{Distant, Traffic};
use coffer_tests::rig::{self, Job};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// A continent away.
const LATENCY: Duration = Duration::from_millis(50);
/// What 100 MB a second carry in that time: less under way at once, and the line is idle.
const LINE: u64 = 5_000_000;
/// Bytes of the disk, all of them noise.
const SIZE: u64 = 160 * MIB;

struct Far {
    memory: Memory,
    point: Snapshot,
    bytes: Vec<u8>,
}

/// A point of one disk, made as the program makes it.
fn far() -> Far {
    let scratch = tempfile::tempdir().unwrap();
    let memory = Arc::new(Memory::default());
    let repo = rig::init_usual(Arc::clone(&memory) as Arc<dyn Backend>, 1).unwrap();
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    Dice::new(9).noise(&mut bytes);
    let content = DiskContent::from(bytes);
    let index = rig::open_index(&repo, scratch.path()).unwrap();
    let job = Job { options: WriterOptions::default(), ..Job::new("web", 10, vec![("vda", &content)]) };
    let point = job.run(&repo, &index).unwrap();
    let bytes = content.stretches.into_values().next().unwrap();
    Far { memory: memory.clone_state(), point, bytes }
}

impl Far {
    /// The disk, read over `line` or by way of what lies before it.
    fn disk(&self, store: Arc<dyn Backend>, options: ReaderOptions) -> DiskReader {
        let repo = rig::open(store, 2).unwrap();
        Reader::new(repo, options).unwrap().disk(&self.point, "vda").unwrap()
    }

    /// Reads a stretch in pieces, in order, and sees that it is right.
    fn read(&self, disk: &DiskReader, from: u64, to: u64, piece: u64) {
        let index = |at: u64| usize::try_from(at).unwrap();
        let mut out = vec![0; index(piece)];
        let mut at = from;
        while at < to {
            let out = &mut out[..index((to - at).min(piece))];
            disk.read_at(at, out).unwrap();
            assert!(*out == self.bytes[index(at)..][..out.len()], "at {at}");
            at += piece;
        }
    }
}

fn assert_fills_the_line(traffic: Traffic, what: &str) {
    assert!(traffic.most_bytes >= LINE, "{what}: {traffic:?}");
    assert!(traffic.bytes / traffic.requests >= 256 << 10, "{what}: {traffic:?}");
}

#[test]
fn a_sequential_reader_keeps_the_line_full() {
    let far = far();
    let options = ReaderOptions { threads: 2, ..ReaderOptions::default() };
    let line = Arc::new(Distant::new(far.memory.clone_state(), LATENCY));
    let disk = far.disk(Arc::clone(&line) as Arc<dyn Backend>, options);
    // It learns how far away the store is by reading.
    far.read(&disk, 0, 32 * MIB, 128 << 10);
    line.take();
    far.read(&disk, 32 * MIB, SIZE, 128 << 10);
    let traffic = line.take();
    assert_fills_the_line(traffic, "reading ahead");
    assert!(traffic.bytes < (SIZE - 20 * MIB) * 11 / 10, "hardly anything was read twice: {traffic:?}");

    let folder = tempfile::tempdir().unwrap();
    let line = Arc::new(Distant::new(far.memory.clone_state(), LATENCY));
    let cache = CacheOptions { folder: folder.path().to_owned(), budget_bytes: 1 << 30, intake: Intake::Keep };
    let cached = Cached::new(Arc::clone(&line) as Arc<dyn Backend>, cache, |e| panic!("{e:?}")).unwrap();
    let disk = far.disk(Arc::new(cached), options);
    far.read(&disk, 0, 32 * MIB, 128 << 10);
    line.take();
    far.read(&disk, 32 * MIB, SIZE, 128 << 10);
    let traffic = line.take();
    assert_fills_the_line(traffic, "through a disk cache");
    assert!(traffic.bytes < (SIZE - 20 * MIB) * 11 / 10, "hardly anything was read twice: {traffic:?}");
}

/// As a restore reads: a few workers with long reads, and nothing ahead of them.
#[test]
fn workers_with_long_reads_keep_the_line_full() {
    let far = far();
    let line = Arc::new(Distant::new(far.memory.clone_state(), LATENCY));
    let options = ReaderOptions { threads: 2, readahead_bytes: 0, ..ReaderOptions::default() };
    let disk = far.disk(Arc::clone(&line) as Arc<dyn Backend>, options);
    for begin in [0, 32 * MIB] {
        line.take();
        thread::scope(|scope| {
            for worker in 0..4 {
                let (far, disk) = (&far, &disk);
                let from = begin + worker * 8 * MIB;
                scope.spawn(move || far.read(disk, from, from + 8 * MIB, 4 * MIB));
            }
        });
    }
    let traffic = line.take();
    assert!(traffic.most_requests >= 16, "{traffic:?}");
}
