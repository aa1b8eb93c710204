//! Disks as a test knows them: contents to back up, and what was read back as runs to compare.
//!
//! Not here: repositories ([`crate::rig`]). What holds: a disk costs memory only for the stretches that hold something,
//! so that a test can have one of a tebibyte.

// A harness speaks by failing.
#![allow(clippy::unwrap_used)]

use coffer_repo::Result;
use coffer_repo::disk_map::BLOCK;
use coffer_repo::reader::{DiskReader, MapContent};
use coffer_repo::window::{Filled, Window, WindowSource};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a disk holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskContent {
    /// Size in bytes.
    pub size: u64,
    /// Stretches by offset, in order, without overlap; everything between them is zero.
    pub stretches: BTreeMap<u64, Vec<u8>>,
    /// What a source cannot read, in bytes: whole blocks, but for the disk's end; sorted.
    pub unreadable: Vec<Range<u64>>,
}

impl From<Vec<u8>> for DiskContent {
    fn from(bytes: Vec<u8>) -> Self {
        DiskContent { size: bytes.len() as u64, stretches: [(0, bytes)].into(), unreadable: Vec::new() }
    }
}

impl DiskContent {
    /// Fills `window` with the bytes of `range`; false when all of them are zero and can be read.
    fn fill(&self, range: &Range<u64>, window: &mut Window) -> bool {
        let overlap = |at: u64, len: usize| at.max(range.start)..(at + len as u64).min(range.end);
        let held: Vec<_> = self.stretches.iter().filter(|(at, bytes)| !overlap(**at, bytes.len()).is_empty()).collect();
        let lost: Vec<_> = self.unreadable.iter().filter(|r| r.start < range.end && range.start < r.end).collect();
        if held.is_empty() && lost.is_empty() {
            return false;
        }
        window.make_room(index(range.end - range.start)).fill(0);
        for (at, bytes) in held {
            let part = overlap(*at, bytes.len());
            let into = index(part.start - range.start)..index(part.end - range.start);
            window.bytes[into].copy_from_slice(&bytes[index(part.start - at)..index(part.end - at)]);
        }
        for lost in lost {
            let part = lost.start.max(range.start) - range.start..lost.end.min(range.end) - range.start;
            window.bytes[index(part.start)..index(part.end)].fill(0);
            window.unreadable.push(u32::try_from(part.start).unwrap()..u32::try_from(part.end).unwrap());
        }
        true
    }

    /// What [`read_runs`] is to find.
    #[must_use]
    pub fn runs(&self, window: u64) -> Vec<Run> {
        let held = self.stretches.iter().map(|(at, bytes)| *at..at + bytes.len() as u64);
        let touched = held.chain(self.unreadable.iter().cloned()).filter(|r| !r.is_empty());
        let windows: BTreeSet<u64> = touched.flat_map(|r| r.start / window..=(r.end - 1) / window).collect();
        let mut runs = Vec::new();
        for start in windows.into_iter().map(|number| number * window) {
            let mut found = Window::default();
            self.fill(&(start..(start + window).min(self.size)), &mut found);
            let mut open: Option<(Run, blake3::Hasher)> = None;
            for (at, block) in
                found.bytes.chunks(BLOCK as usize).enumerate().map(|(i, b)| (i as u64 * u64::from(BLOCK), b))
            {
                let lost = found.unreadable.iter().any(|r| (u64::from(r.start)..u64::from(r.end)).contains(&at));
                let zero = !lost && block.iter().all(|b| *b == 0);
                if let Some((run, hasher)) = open.take_if(|(run, _)| zero || run.hash.is_none() != lost) {
                    runs.push(finished(run, &hasher));
                }
                if !zero {
                    let begun = || Run { offset: start + at, len: 0, hash: (!lost).then(String::new) };
                    let (run, hasher) = open.get_or_insert_with(|| (begun(), blake3::Hasher::new()));
                    run.len += block.len() as u64;
                    hasher.update(block);
                }
            }
            runs.extend(open.map(|(run, hasher)| finished(run, &hasher)));
        }
        runs
    }
}

fn finished(run: Run, hasher: &blake3::Hasher) -> Run {
    Run { hash: run.hash.map(|_| hasher.finalize().to_string()), ..run }
}

/// Hands out a disk's windows.
pub struct DiskSource<'a> {
    content: &'a DiskContent,
    window: u64,
    /// Windows that are as in the parent snapshot, and said to be.
    unchanged: BTreeSet<u64>,
    next: AtomicU64,
}

impl<'a> DiskSource<'a> {
    /// All windows, of `window` bytes each.
    #[must_use]
    pub fn new(content: &'a DiskContent, window: u64) -> Self {
        DiskSource { content, window, unchanged: BTreeSet::new(), next: AtomicU64::new(0) }
    }

    /// As [`DiskSource::new`], but says of the windows `unchanged` only that they are as in the parent snapshot.
    #[must_use]
    pub fn incremental(content: &'a DiskContent, window: u64, unchanged: BTreeSet<u64>) -> Self {
        DiskSource { unchanged, ..DiskSource::new(content, window) }
    }
}

impl WindowSource for DiskSource<'_> {
    fn next(&self, window: &mut Window) -> Result<Filled> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let start = number * self.window;
        if start >= self.content.size {
            return Ok(Filled::End);
        }
        if self.unchanged.contains(&number) {
            return Ok(Filled::Unchanged(number));
        }
        let range = start..(start + self.window).min(self.content.size);
        Ok(if self.content.fill(&range, window) { Filled::Bytes(number) } else { Filled::Zero(number) })
    }

    fn size(&self) -> Result<u64> {
        Ok(self.content.size)
    }
}

/// A stretch of a disk that is not zero, as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// BLAKE3 of the bytes, in hex; `None`: it could not be read at the source.
    pub hash: Option<String>,
}

/// Reads all of a disk that is not zero. Runs end at multiples of `window`, however long they are.
pub fn read_runs(disk: &DiskReader, window: u64) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for extent in disk.extents(0..disk.size(), usize::MAX)? {
        let mut at = extent.range.start;
        while at < extent.range.end && extent.content != MapContent::Zero {
            let end = extent.range.end.min((at / window + 1) * window);
            let mut bytes = vec![0xa5; index(end - at)];
            let hash = if extent.content == MapContent::Data {
                disk.read_at(at, &mut bytes)?;
                Some(blake3::hash(&bytes).to_string())
            } else {
                None
            };
            runs.push(Run { offset: at, len: end - at, hash });
            at = end;
        }
    }
    Ok(runs)
}

/// All bytes of a small disk.
pub fn read_bytes(disk: &DiskReader) -> Result<Vec<u8>> {
    // Never a multiple of anything, so that every read begins and ends within chunks.
    const PIECE: usize = 700_001;
    let mut bytes = vec![0xa5; index(disk.size())];
    let mut at = 0;
    for piece in bytes.chunks_mut(PIECE) {
        disk.read_at(at, piece)?;
        at += piece.len() as u64;
    }
    Ok(bytes)
}

/// A byte count as an index; no test disk's stretch is longer than memory.
fn index(n: u64) -> usize {
    usize::try_from(n).unwrap()
}
