//! A raw file as a target: as long as the disk, with holes where the disk is zero.
//!
//! Not here: whether an existing file may be overwritten. What holds: the file was emptied when it was opened, or holds what
//! the same restore wrote, so that what is not written reads as zeroes; it is locked against a second restore.

use super::{DiskTarget, Order, Space, Start, sync_name};
use crate::source::{FileDisk, RandomDisk};
use crate::{Error, Kind, Result};
use rustix::fs::{Advice, FallocateFlags, FlockOperation};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// An open file.
pub(super) struct FileTarget {
    file: File,
    path: PathBuf,
}

impl FileTarget {
    /// Opens the file at `path` and gives it `size` bytes.
    pub(super) fn open(path: &Path, size: u64, start: Start, space: Space) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(start == Start::Fresh)
            .truncate(false)
            .open(path)
            .map_err(|e| Error::io("opening it for writing", e))?;
        lock(&file)?;
        if start == Start::Fresh {
            // Emptied only now: under the lock it is nobody else's.
            file.set_len(0).and_then(|()| file.set_len(size)).map_err(|e| Error::io("sizing it", e))?;
            if space == Space::Allocated && size > 0 {
                rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size)
                    .map_err(|e| Error::io(format!("allocating {size} bytes"), e.into()))?;
            }
        }
        Ok(FileTarget { file, path: path.to_owned() })
    }
}

/// Takes the file for this process.
pub(super) fn lock(file: &File) -> Result<()> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(Error::new(Kind::Locked, "another program has it locked; is it being restored?")),
        Err(e) => Err(Error::io("locking it", e.into())),
    }
}

impl DiskTarget for FileTarget {
    fn order(&self) -> Order {
        Order::Any
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| Error::io(format!("writing at byte {offset}"), e))
    }

    fn zero(&self, _range: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("making it durable", e))
    }

    fn read_back(&self) -> Result<Box<dyn RandomDisk + '_>> {
        read_back(&self.file)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io("making it durable", e))?;
        sync_name(&self.path)
    }
}

/// What was written, to be read from storage: reading what lies in memory would prove little. Advice: where it is not taken,
/// memory is read.
pub(super) fn read_back(file: &File) -> Result<Box<dyn RandomDisk>> {
    let _ = rustix::fs::fadvise(file, 0, None::<NonZeroU64>, Advice::DontNeed);
    let file = file.try_clone().map_err(|e| Error::io("reading it back", e))?;
    Ok(Box::new(FileDisk::new(file)))
}
