//! A disk of 64 TiB: what lies between its data costs next to nothing, and reading asks for no more than on a small one.

use coffer_repo::reader::{Reader, ReaderOptions};
use coffer_tests::coffer::Coffer;
use coffer_tests::counting::{Counting, Counts};
use coffer_tests::image::{self, MIB};
use coffer_tests::kernel::Mounted;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const TIB: u64 = 1 << 40;
/// Objects, or parts of them, that it takes to open a repository with one snapshot and read a block of its disk: the
/// descriptor; the key slot; claim and decision; up to three nodes below the root; the head of the data pack, and the chunk.
const READS: u64 = 9;

/// Where a disk of `size` bytes holds something: at both ends and in the middle.
fn filled(size: u64) -> [Range<u64>; 3] {
    [0..2 * MIB, size / 2 - MIB..size / 2 + MIB, size - 2 * MIB..size]
}

/// The bytes of a file's stretches.
fn read(path: &Path, ranges: &[Range<u64>]) -> Vec<Vec<u8>> {
    let file = File::open(path).unwrap();
    let read = |range: &Range<u64>| {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        file.read_exact_at(&mut bytes, range.start).unwrap();
        bytes
    };
    ranges.iter().map(read).collect()
}

/// What is asked of the store to open the only point there is and read 4 KiB in the middle of its disk.
fn first_read(coffer: &Coffer, size: u64) -> Counts {
    let mut store = None;
    let repo = coffer.open(|local| {
        let counting = Arc::new(Counting::new(local));
        store = Some(Arc::clone(&counting));
        counting
    });
    let points = repo.points().unwrap().snapshots;
    let options = ReaderOptions { readahead_bytes: 0, ..ReaderOptions::default() };
    let disk = Reader::new(repo, options).unwrap().disk(&points[0], "disk").unwrap();
    assert_eq!(disk.size(), size);
    disk.read_at(size / 2, &mut [0; 4096]).unwrap();
    store.unwrap().counts()
}

#[test]
fn sixty_four_tebibytes_are_read_like_one() {
    let [one, many] = [TIB, 64 * TIB].map(|size| {
        let coffer = Coffer::new();
        // ext4 ends at 16 TiB.
        let _tmpfs = Mounted::mount("tmpfs", "tmpfs", "size=64m", &coffer.path("large"));
        let (file, restored) = ("large/disk.raw", "large/restored.raw");
        image::make(&coffer.path(file), size, &filled(size), 20_268);
        let began = Instant::now();
        let made = coffer.json(&["backup", "-w", "huge", file]);
        println!("{} TiB: backed up in {:.1} s", size / TIB, began.elapsed().as_secs_f64());
        assert_eq!((&made["snapshot"]["size"], &made["new_bytes"]), (&size.into(), &(6 * MIB).into()), "{made}");

        // Before the restore, whose ended pin is one more object to read.
        let counts = first_read(&coffer, size);
        println!("{} TiB: {counts:?} to open and read a block", size / TIB);

        let began = Instant::now();
        let done = coffer.json(&["restore", "huge@latest", "--to", restored]);
        println!("{} TiB: restored in {:.1} s", size / TIB, began.elapsed().as_secs_f64());
        assert_eq!((&done["written"], &done["size"]), (&(6 * MIB).into(), &size.into()), "{done}");
        let [expected, found] = [file, restored].map(|name| read(&coffer.path(name), &filled(size)));
        assert!(expected == found, "the disk of {size} bytes differs");

        counts
    });
    // One level of nodes more.
    assert_eq!(many, Counts { reads: one.reads + 1, ..one });
    assert!(many.reads <= READS, "{many:?}");
}
