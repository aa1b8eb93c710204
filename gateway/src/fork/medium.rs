//! What a fork lies on: a file that can have holes, or what a test puts in its place.
//!
//! ```text
//!   Layer (blocks), Journal (records)  ->  Medium  <-  FileMedium, the tests' lossy one
//! ```
//! Not here: what is written. What holds: what was written and not synced may be lost, sector by sector and in any order, when
//! the power fails; what was written survives the process. A medium never retries a failed sync: after one nobody knows what is
//! on the disk.
//!
//! Unsafe: one system call that no safe binding has. It takes numbers only, and a descriptor that is borrowed for its length.
#![allow(unsafe_code, reason = "the header says why")]

use crate::{Error, Kind, Result};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::fs::{File, OpenOptions};
use std::io::{IoSliceMut, Result as IoResult};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes at offsets. May be called from any thread.
pub trait Medium: Send + Sync {
    /// Fills `out` from `offset` on. Holes read as zeroes; beyond the end is `Corrupt`: something cut the medium off.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()>;

    /// As [`Medium::read_at`], but only from memory and without waiting; `false`: not so, and `out` holds anything.
    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool>;

    /// Writes `bytes` at `offset`. `Full` when there is no space.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Says that `range` was written and will be synced in a moment: storage may begin with it. Advice only; nothing is durable.
    fn hasten(&self, range: Range<u64>) {
        let _ = range;
    }

    /// Makes everything durable that was written before the call.
    fn sync(&self) -> Result<()>;

    /// Takes space for `range`, so that writing there does not lack it. `Full` when there is none.
    fn allocate(&self, range: Range<u64>) -> Result<()>;

    /// Gives the space of `range` back; it reads as zeroes then.
    fn punch(&self, range: Range<u64>) -> Result<()>;

    /// Length in bytes.
    fn len(&self) -> Result<u64>;

    /// Cuts off or extends with a hole.
    fn set_len(&self, len: u64) -> Result<()>;

    /// Whether nothing is on it.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A sparse file.
pub struct FileMedium {
    file: File,
    path: PathBuf,
    /// The file system takes no space ahead, or gives none back: a full disk may then show on a flush.
    is_plain: AtomicBool,
}

impl FileMedium {
    /// Makes the file, which must not exist, for its owner only.
    pub fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        Self::with(file, path)
    }

    /// Opens the file, which must exist.
    pub fn open(path: &Path) -> Result<Self> {
        Self::with(OpenOptions::new().read(true).write(true).open(path), path)
    }

    fn with(file: IoResult<File>, path: &Path) -> Result<Self> {
        let file = file.map_err(|e| Error::io(format!("opening {}", path.display()), e))?;
        Ok(FileMedium { file, path: path.to_owned(), is_plain: AtomicBool::new(false) })
    }

    fn done<T>(&self, what: &str, result: IoResult<T>) -> Result<T> {
        result.map_err(|e| Error::io(format!("{what} {}", self.path.display()), e))
    }

    /// What `fallocate` says; a file system that cannot is left alone from then on.
    fn fallocate(&self, what: &str, flags: FallocateFlags, range: Range<u64>) -> Result<()> {
        if range.is_empty() || self.is_plain.load(Ordering::Relaxed) {
            return Ok(());
        }
        loop {
            match fallocate(&self.file, flags, range.start, range.end - range.start) {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    self.is_plain.store(true, Ordering::Relaxed);
                    return Ok(());
                }
                result => return self.done(what, result.map_err(Into::into)),
            }
        }
    }
}

impl Medium for FileMedium {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        match self.file.read_exact_at(out, offset) {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                let path = self.path.display();
                Err(Error::corrupt(format!("{path} was cut off before byte {}", offset + out.len() as u64)))
            }
            result => self.done("reading", result),
        }
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        let len = out.len();
        match preadv2(&self.file, &mut [IoSliceMut::new(out)], offset, ReadWriteFlags::NOWAIT) {
            Ok(read) => Ok(read == len),
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Ok(false),
            Err(e) => self.done("reading", Err(e.into())),
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.done("writing", self.file.write_all_at(bytes, offset))
    }

    fn hasten(&self, range: Range<u64>) {
        let number = |n: u64| libc::off64_t::try_from(n).unwrap_or(0);
        let (offset, len) = (number(range.start), number(range.end.saturating_sub(range.start)));
        // SAFETY: no memory is passed. What goes wrong shows when it is synced: this begins the writing and waits for nothing.
        let _ = unsafe { libc::sync_file_range(self.file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    }

    fn sync(&self) -> Result<()> {
        // Whatever it was that failed, it is no lack of space to the one who flushes.
        self.done("syncing", self.file.sync_data()).map_err(|e| e.with_kind(Kind::Unavailable))
    }

    fn allocate(&self, range: Range<u64>) -> Result<()> {
        self.fallocate("taking space for", FallocateFlags::empty(), range)
    }

    fn punch(&self, range: Range<u64>) -> Result<()> {
        self.fallocate("giving back space of", FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, range)
    }

    fn len(&self) -> Result<u64> {
        self.done("looking at", self.file.metadata()).map(|m| m.len())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.done("resizing", self.file.set_len(len))
    }
}
