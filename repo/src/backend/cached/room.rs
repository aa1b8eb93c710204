//! How much lies in the cache, how much may, and what goes when it is too much: files that were not used for longest.
//!
//! ```text
//!   take(bytes)   out of what this process was granted
//!                 spent: lock (flock, never waited for) -> count all files -> remove the oldest -> grant a step
//! ```
//! Processes share the folder and count it anew each time, so that they need to know nothing of each other. What a process was
//! granted and has not written yet is the slack: see [`slack`].
//!
//! Not here: what a file holds. What holds: nothing is written that was not granted; a grant is given only while the files take
//! the budget at most; 5 % of the file system stay free for others. Whoever cannot have the lock gets no grant: somebody else is
//! counting, and what was fetched meanwhile is not kept.

use super::shelf::PIECE;
use crate::error::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The file in the folder whose lock whoever removes files holds.
const LOCK: &str = "lock";
/// Bytes that a write takes beside its own, at most: tables of checksums, the file's own block, rounding.
const OVERHEAD: u64 = 16 << 10;
/// The part of a file system that stays free: one of so many.
const RESERVE: u64 = 20;

/// What lies in a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Files: objects of which something is kept.
    pub objects: u64,
    /// Bytes that they take on the disk.
    pub bytes: u64,
}

/// How far the files may exceed a budget, in bytes, for each process that fills the cache: a 64th of it, and two pieces at least.
#[must_use]
pub fn slack(budget_bytes: u64) -> u64 {
    (budget_bytes / 64).max(2 * (PIECE + OVERHEAD))
}

/// What lies in the cache in `folder`. A folder that is not there is empty.
pub fn usage(folder: &Path) -> Result<Usage> {
    let files = files(folder).map_err(|e| Error::io(format!("counting the disk cache in {}", folder.display()), e))?;
    Ok(Usage { objects: files.len() as u64, bytes: files.iter().map(|file| file.bytes).sum() })
}

/// Removes the cache in `folder`. Whoever uses it meanwhile is not disturbed, and may begin to fill it again.
pub fn clear(folder: &Path) -> Result<()> {
    // Whoever fills it meanwhile puts files into folders that are being removed.
    for attempt in 1.. {
        match std::fs::remove_dir_all(folder) {
            Ok(()) => break,
            Err(e) if e.kind() == io::ErrorKind::NotFound => break,
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty && attempt < 16 => {}
            Err(e) => return Err(Error::io(format!("removing the disk cache in {}", folder.display()), e)),
        }
    }
    Ok(())
}

/// A file of the cache.
struct Kept {
    path: PathBuf,
    /// On the disk.
    bytes: u64,
    /// When it was used last, in seconds and nanoseconds.
    used: (i64, i64),
}

/// This process's part of the folder.
pub(super) struct Room {
    folder: PathBuf,
    budget: u64,
    step: u64,
    /// Bytes that may be written.
    granted: u64,
    /// Whether the disk was full: then what lies here now is the budget.
    is_full: bool,
}

impl Room {
    pub(super) fn new(folder: PathBuf, budget: u64) -> Self {
        Room { folder, budget, step: slack(budget), granted: 0, is_full: false }
    }

    /// Whether `bytes` more may be written.
    pub(super) fn take(&mut self, bytes: u64) -> Result<bool> {
        let bytes = bytes.saturating_add(bytes.div_ceil(PIECE).saturating_mul(OVERHEAD));
        if self.granted < bytes {
            let granted = self.grant();
            let failed = |e| Error::io(format!("making room in the disk cache in {}", self.folder.display()), e);
            self.granted = granted.map_err(failed)?;
        }
        match self.granted.checked_sub(bytes) {
            Some(left) => self.granted = left,
            None => return Ok(false),
        }
        Ok(true)
    }

    /// The disk is full, although this process was granted what it wrote.
    pub(super) fn shrink(&mut self) {
        (self.is_full, self.granted) = (true, 0);
    }

    /// Makes room; how many bytes may be written now.
    fn grant(&mut self) -> io::Result<u64> {
        std::fs::create_dir_all(&self.folder)?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(self.folder.join(LOCK))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(0),
            Err(e) => return Err(e.into()),
        }
        let mut files = files(&self.folder)?;
        let mut used: u64 = files.iter().map(|file| file.bytes).sum();
        if std::mem::take(&mut self.is_full) {
            self.budget = self.budget.min(used);
        }
        let most = self.budget.min(used.saturating_add(free(&lock)?));
        // With some room besides, so that the next step does not begin with counting.
        let aim = if used > most.saturating_sub(self.step) { most - most / 8 } else { u64::MAX };
        files.sort_by_key(|file| file.used);
        for file in files {
            if used <= aim {
                break;
            }
            match std::fs::remove_file(&file.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => used -= file.bytes,
            }
        }
        Ok(if used <= most { self.step.min(most) } else { 0 })
    }
}

/// Bytes of the file system that the cache may still take.
fn free(file: &File) -> io::Result<u64> {
    let all = rustix::fs::fstatvfs(file)?;
    Ok(all.f_bavail.saturating_sub(all.f_blocks / RESERVE).saturating_mul(all.f_frsize))
}

/// The files in the folder. What disappears meanwhile is left out.
fn files(folder: &Path) -> io::Result<Vec<Kept>> {
    let mut kept = Vec::new();
    for entry in entries(folder)? {
        for file in entries(&entry)? {
            match file.symlink_metadata() {
                Ok(of) => kept.push(Kept { path: file, bytes: of.blocks() * 512, used: (of.mtime(), of.mtime_nsec()) }),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(kept)
}

/// What lies in a folder; nothing in what is no folder, or gone.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        other => other?,
    };
    entries.map(|entry| entry.map(|entry| entry.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    /// A file of `kib` KiB that was used at `second`.
    fn put(folder: &Path, name: &str, kib: usize, second: u64) {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, vec![1; kib << 10]).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(second)).unwrap();
    }

    #[test]
    fn the_oldest_go_when_it_is_too_much() {
        let folder = tempfile::tempdir().unwrap();
        for (i, second) in [50u64, 10, 40, 20, 30, 60, 70, 80].into_iter().enumerate() {
            put(folder.path(), &format!("0{i}/{second}"), 2 << 10, second);
        }
        assert_eq!(usage(folder.path()).unwrap(), Usage { objects: 8, bytes: 16 << 20 });
        let mut room = Room::new(folder.path().to_owned(), 8 << 20);
        assert!(room.take(100_000).unwrap());
        let mut left: Vec<u64> = files(folder.path())
            .unwrap()
            .iter()
            .map(|file| file.path.file_name().unwrap().to_str().unwrap().parse().unwrap())
            .collect();
        left.sort_unstable();
        assert_eq!(left, [60, 70, 80], "seven eighths of 8 MiB, whole files");
        clear(folder.path()).unwrap();
        assert_eq!(usage(folder.path()).unwrap(), Usage::default());
    }

    #[test]
    fn what_was_granted_is_bounded_and_nobody_waits_for_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let budget = 64 << 20;
        let mut room = Room::new(folder.path().to_owned(), budget);
        let mut taken = 0;
        let lock = File::create(folder.path().join(LOCK)).unwrap();
        assert!(room.take(PIECE).unwrap());
        taken += PIECE;
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        while room.take(PIECE).unwrap() {
            taken += PIECE;
        }
        assert!(taken <= slack(budget) && taken > slack(budget) / 2, "{taken}");
        flock(&lock, FlockOperation::Unlock).unwrap();
        assert!(room.take(PIECE).unwrap());
    }

    #[test]
    fn a_budget_smaller_than_a_piece_grants_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!Room::new(folder.path().to_owned(), 0).take(1).unwrap());
        assert!(!Room::new(folder.path().to_owned(), PIECE).take(PIECE).unwrap());
    }

    #[test]
    fn a_full_disk_makes_the_budget_smaller() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), "aa/old", 1024, 1);
        put(folder.path(), "aa/new", 2048, 2);
        let mut room = Room::new(folder.path().to_owned(), 1 << 30);
        assert!(room.take(PIECE).unwrap());
        assert_eq!(usage(folder.path()).unwrap().objects, 2);
        room.shrink();
        assert!(room.take(PIECE).unwrap());
        assert_eq!(usage(folder.path()).unwrap(), Usage { objects: 1, bytes: 2 << 20 });
    }
}
