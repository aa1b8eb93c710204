//! Long reads that expand in place: the same bytes, and the same errors, as those that go through the cache.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;

use bench::{Bench, back_up, image};
use coffer_repo::Kind;
use coffer_repo::backend::{Backend, Put, list_sorted};
use coffer_repo::entropy::{Entropy, Seeded};
use coffer_repo::location::PackKind;
use coffer_repo::reader::{DiskReader, Reader, ReaderOptions};
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::Snapshot;
use std::sync::Arc;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// A disk with holes, and with content that comes again.
fn disk() -> Vec<u8> {
    let once = image(3, 3 * MIB);
    let hole = vec![0; MIB + 5 * 4096];
    [&once[..], &hole, &once, &image(4, MIB / 2 + 512)].concat()
}

/// A disk whose long reads, alone as they are, are a crowd for a reader of one thread and none for one of a thousand.
fn open(repo: &Arc<Repository>, point: &Snapshot, threads: usize) -> (Arc<Reader>, DiskReader) {
    let reader = Reader::new(Arc::clone(repo), ReaderOptions { threads, ..ReaderOptions::default() }).unwrap();
    let disk = reader.disk(point, "d").unwrap();
    (reader, disk)
}

#[test]
fn long_reads_of_a_crowd_give_the_same_bytes_past_the_cache() {
    let (bench, repo) = Bench::fine();
    let bytes = disk();
    let point = back_up(&repo, &bench.index(&repo), &[("d", &bytes)], None, 10);
    for (threads, is_cached) in [(1, false), (64, true)] {
        let (_reader, disk) = open(&repo, &point, threads);
        let mut read = vec![0xee; MIB];
        disk.read_at(100, &mut read).unwrap();
        assert!(read == bytes[100..][..MIB]);
        let mut again = vec![0; 64 * KIB];
        assert_eq!(disk.try_read_at(500 * KIB as u64, &mut again).unwrap(), is_cached, "{threads} threads");

        let random = Seeded::new(5);
        let number = || {
            let mut bytes = [0; 4];
            random.fill(&mut bytes).unwrap();
            u32::from_le_bytes(bytes) as usize
        };
        for _ in 0..60 {
            let offset = number() % bytes.len();
            let most = if number() % 4 == 0 { 8 * KIB } else { 2 * MIB };
            let len = (number() % most).min(bytes.len() - offset);
            let mut read = vec![0xee; len];
            disk.read_at(offset as u64, &mut read).unwrap();
            assert!(read == bytes[offset..offset + len], "{len} bytes at {offset}");
        }
    }
}

#[test]
fn what_is_damaged_is_repaired_or_named() {
    let (bench, repo) = Bench::with_parity();
    let bytes = image(1, 3 * MIB);
    let point = back_up(&repo, &bench.index(&repo), &[("d", &bytes)], None, 10);
    let pack = list_sorted(&*bench.memory, PackKind::Data.prefix()).unwrap().remove(0).name;
    let mut damaged = bench.memory.get(&pack).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    bench.memory.delete(&pack).unwrap();
    assert_eq!(bench.memory.put(&pack, &[&damaged]).unwrap(), Put::Created);

    let (reader, disk) = open(&repo, &point, 1);
    let mut read = vec![0; bytes.len()];
    disk.read_at(0, &mut read).unwrap();
    assert!(read == bytes);
    assert_eq!(reader.detours(), 1);

    for parity in list_sorted(&*bench.memory, coffer_repo::parity::PREFIX).unwrap() {
        bench.memory.delete(&parity.name).unwrap();
    }
    let (_reader, disk) = open(&repo, &point, 1);
    let error = disk.read_at(0, &mut read).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let said = error.to_string();
    assert!(said.contains(&pack) && said.contains("disk 'd'"), "{said}");
    // What lies around it can be read, wherever the writer's threads put it.
    let piece = 256 * KIB;
    let unread = (0..bytes.len()).step_by(piece).filter(|&at| match disk.read_at(at as u64, &mut read[..piece]) {
        Ok(()) => {
            assert!(read[..piece] == bytes[at..at + piece], "at {at}");
            false
        }
        Err(e) => {
            assert_eq!(e.kind(), Kind::Corrupt);
            true
        }
    });
    assert!((1..=2).contains(&unread.count()), "one chunk is damaged");
}
