//! A regular file or a block device as a disk that can be written.
//!
//! Not here: which file it should be, and whether what it holds may be overwritten. What holds: the file is this process's
//! alone as far as programs respect that: it is locked, a block device is opened exclusively, and one that QEMU has open is
//! refused; after a sync that failed nothing is written or synced any more, since nobody knows what is on the disk then.
//!
//! Syncs take turns, under a lock that is held over I/O: the kernel tells of a failure once only, and of two that run at the same
//! time one would be told that all is well.

use crate::device::{BlockDevice, Content, Durability, Extent, Zeroing, check_range};
use crate::{Error, Kind, Result};
use rustix::fs::{Advice, FallocateFlags, FlockOperation, OFlags, SeekFrom, fadvise, fallocate, fcntl_lock, flock};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::fs::{File, OpenOptions};
use std::io::{IoSliceMut, Result as IoResult};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Zeroes that are written at once where nothing faster works.
const ZEROES: u64 = 1 << 20;

/// A file that holds a disk, byte for byte.
pub struct FileDevice {
    file: File,
    path: PathBuf,
    size: u64,
    block_size: u32,
    is_block_device: bool,
    failed: OnceLock<Error>,
    syncs: Mutex<()>,
}

impl FileDevice {
    /// Makes the file with `size` bytes that are all a hole, durably. It must not exist.
    pub fn create(path: &Path, size: u64) -> Result<Self> {
        let made = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let file = made.map_err(|e| Error::io(format!("making {}", path.display()), e))?;
        file.set_len(size)
            .and_then(|()| file.sync_all())
            .map_err(|e| Error::io(format!("giving {} its {size} bytes", path.display()), e))?;
        let device = Self::with(file, path, false)?;
        device.settle_name()?;
        Ok(device)
    }

    /// Opens a file or a block device that exists. `Locked` when it is in use.
    pub fn open(path: &Path) -> Result<Self> {
        let of = std::fs::metadata(path).map_err(|e| Error::io(format!("looking at {}", path.display()), e))?;
        let is_block_device = of.file_type().is_block_device();
        if !is_block_device && !of.is_file() {
            return Err(Error::invalid(format!("{} is neither a file nor a block device", path.display())));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if is_block_device {
            let exclusive = i32::try_from(OFlags::EXCL.bits()).map_err(|_| Error::internal("O_EXCL"))?;
            options.custom_flags(exclusive);
        }
        let file = options.open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::ResourceBusy => {
                let why = "it, or a partition of it, is mounted, swapped to or part of a volume";
                Error::new(Kind::Locked, format!("{} is in use: {why}", path.display())).with_source(e)
            }
            _ => Error::io(format!("opening {} for writing", path.display()), e),
        })?;
        Self::with(file, path, is_block_device)
    }

    fn with(file: File, path: &Path, is_block_device: bool) -> Result<Self> {
        lock(&file).map_err(|e| e.within(path.display()))?;
        let failed = |e: Errno| Error::io(format!("asking for the size of {}", path.display()), e.into());
        let size = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(failed)?;
        let block_size = match is_block_device {
            true => rustix::fs::ioctl_blksszget(&file).map_err(failed)?.clamp(512, 4096),
            false => 512,
        };
        let path = path.to_owned();
        Ok(FileDevice {
            file,
            path,
            size,
            block_size,
            is_block_device,
            failed: OnceLock::new(),
            syncs: Mutex::default(),
        })
    }

    /// Whether it is a block device and no file.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.is_block_device
    }

    /// Sees that it is still what its path leads to, and makes that durable: whoever opens the path finds what was written here.
    /// `NotFound` when it was removed or replaced.
    pub fn settle_name(&self) -> Result<()> {
        let failed = |e| Error::io(format!("looking at {}", self.path.display()), e);
        let gone = || {
            let why = "was removed, or another took its place, while it was written to";
            Error::not_found(format!("{} {why}; bring it back", self.path.display()))
        };
        let own = self.file.metadata().map_err(failed)?;
        let found = match std::fs::metadata(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(gone()),
            found => found.map_err(failed)?,
        };
        // A device has the same number by whatever file.
        if self.is_block_device {
            return if own.rdev() == found.rdev() { Ok(()) } else { Err(gone()) };
        }
        if (own.dev(), own.ino()) != (found.dev(), found.ino()) {
            return Err(gone());
        }
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let sync = File::open(folder).and_then(|folder| folder.sync_all());
        sync.map_err(|e| Error::io(format!("making the name of {} durable", self.path.display()), e))
    }

    fn done<T>(&self, what: &str, at: u64, result: IoResult<T>) -> Result<T> {
        result.map_err(|e| Error::io(format!("{what} {} at byte {at}", self.path.display()), e))
    }

    fn check(&self, range: &Range<u64>) -> Result<()> {
        check_range(self.size, range.start, range.end.saturating_sub(range.start))?;
        self.failed.get().map_or(Ok(()), |e| Err(e.duplicate()))
    }

    fn settle(&self, durability: Durability) -> Result<()> {
        match durability {
            Durability::Cached => Ok(()),
            Durability::Forced => self.flush(),
        }
    }

    /// Where the next bytes are, or the next hole, from `at` on; `None` when there are no more bytes.
    fn seek(&self, from: SeekFrom) -> Result<Option<u64>> {
        match rustix::fs::seek(&self.file, from) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            Err(e) => Err(Error::io(format!("asking {} where it has holes", self.path.display()), e.into())),
        }
    }

    /// The stretch that begins at `at`, up to `end`.
    fn stretch(&self, at: u64, end: u64) -> Result<Extent> {
        let extent = |end, content| Extent { range: at..end, content };
        if self.is_block_device {
            return Ok(extent(end, Content::Bytes));
        }
        Ok(match self.seek(SeekFrom::Data(at))? {
            None => extent(end, Content::Zero),
            Some(start) if start > at => extent(start.min(end), Content::Zero),
            Some(_) => {
                let hole = self.seek(SeekFrom::Hole(at))?.filter(|hole| *hole > at);
                extent(hole.unwrap_or(end).min(end), Content::Bytes)
            }
        })
    }

    fn write_zeroes(&self, range: &Range<u64>) -> Result<()> {
        let zeroes = vec![0; usize::try_from(ZEROES.min(range.end - range.start)).unwrap_or_default()];
        let mut at = range.start;
        while at < range.end {
            let len = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(zeroes.len());
            let piece = zeroes.get(..len).unwrap_or_default();
            self.done("writing", at, self.file.write_all_at(piece, at))?;
            at += len as u64;
        }
        Ok(())
    }
}

/// Takes the file for this process.
fn lock(file: &File) -> Result<()> {
    let in_use = |who: &str| Error::new(Kind::Locked, format!("it is in use: {who} has it locked"));
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(in_use("another program")),
        Err(e) => return Err(Error::io("locking it", e.into())),
    }
    // QEMU locks bytes of its images. Only asked: it may open the file itself while this process has it, to take it over.
    match fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => fcntl_lock(file, FlockOperation::Unlock).map_err(|e| Error::io("unlocking it", e.into())),
        Err(Errno::WOULDBLOCK | Errno::ACCESS) => Err(in_use("a program that locks parts of files, as QEMU does,")),
        // A file system without such locks.
        Err(_) => Ok(()),
    }
}

impl BlockDevice for FileDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        check_range(self.size, offset, out.len() as u64)?;
        match self.file.read_exact_at(out, offset) {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                let end = offset + out.len() as u64;
                Err(Error::corrupt(format!("{} was cut off before byte {end}", self.path.display())))
            }
            result => self.done("reading", offset, result),
        }
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        check_range(self.size, offset, out.len() as u64)?;
        let len = out.len();
        match preadv2(&self.file, &mut [IoSliceMut::new(out)], offset, ReadWriteFlags::NOWAIT) {
            Ok(read) => Ok(read == len),
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Ok(false),
            Err(e) => self.done("reading", offset, Err(e.into())),
        }
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        check_range(self.size, range.start, range.end.saturating_sub(range.start))?;
        let (mut extents, mut at) = (Vec::new(), range.start);
        while at < range.end && extents.len() < max {
            let extent = self.stretch(at, range.end)?;
            at = extent.range.end;
            extents.push(extent);
        }
        Ok(extents)
    }

    fn evict(&self, range: Range<u64>) {
        if let Some(len) = NonZeroU64::new(range.end.saturating_sub(range.start)) {
            let _ = fadvise(&self.file, range.start, Some(len), Advice::DontNeed);
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<()> {
        self.check(&(offset..offset.saturating_add(bytes.len() as u64)))?;
        self.done("writing", offset, self.file.write_all_at(bytes, offset))?;
        self.settle(durability)
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.check(&range)?;
        let is_hole = |range: &Range<u64>| {
            let found = self.stretch(range.start, range.end);
            found.is_ok_and(|found| found.content == Content::Zero && found.range.end == range.end)
        };
        if range.is_empty() || how.may_unmap && is_hole(&range) {
            return self.settle(how.durability);
        }
        // Both have it read as zeroes; the first gives the space back too.
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let keep = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let ways = [punch, keep];
        let ways = if how.may_unmap { &ways[..] } else { &ways[1..] };
        for way in ways {
            match fallocate(&self.file, *way, range.start, range.end - range.start) {
                Ok(()) => return self.settle(how.durability),
                // Not this file system or device, or not at this alignment.
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {}
                Err(e) => return self.done("zeroing", range.start, Err(e.into())),
            }
        }
        if how.fast_only {
            return Err(Error::new(Kind::Unsupported, format!("{} cannot be zeroed quickly", self.path.display())));
        }
        self.write_zeroes(&range)?;
        self.settle(how.durability)
    }

    fn trim(&self, range: Range<u64>) -> Result<()> {
        self.check(&range)?;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if range.is_empty() {
            return Ok(());
        }
        match fallocate(&self.file, punch, range.start, range.end - range.start) {
            // Advice.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(()),
            Err(e) => self.done("trimming", range.start, Err(e.into())),
        }
    }

    fn flush(&self) -> Result<()> {
        let _turn = self.syncs.lock().unwrap_or_else(PoisonError::into_inner);
        self.check(&(0..0))?;
        self.file.sync_data().map_err(|e| {
            let path = self.path.display();
            let why = format!("{path} could not be synced, and takes no more writes: what was written may be lost");
            // Whatever it was that failed, it is no lack of space to the one who flushes.
            let error = Error::io(why, e).with_kind(Kind::Unavailable);
            let _ = self.failed.set(error.duplicate());
            error
        })
    }

    fn compare_and_write(&self, _offset: u64, _expected: &[u8], _new: &[u8]) -> Result<Option<usize>> {
        Err(Error::new(Kind::Unsupported, format!("{}: files have no compare-and-write", self.path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNMAP: Zeroing = Zeroing { may_unmap: true, fast_only: false, durability: Durability::Cached };

    #[test]
    fn a_file_is_a_disk_with_holes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let device = FileDevice::create(&path, 1 << 20).unwrap();
        assert!(FileDevice::create(&path, 1).is_err(), "it is there already");
        let zero = Extent { range: 0..1 << 20, content: Content::Zero };
        assert_eq!(device.extents(0..1 << 20, 9).unwrap(), [zero]);
        device.write_at(65_536, &[7; 65_536], Durability::Forced).unwrap();
        let found = device.extents(0..1 << 20, 9).unwrap();
        assert_eq!(found[1], Extent { range: 65_536..131_072, content: Content::Bytes });
        assert_eq!((found.len(), device.extents(0..1 << 20, 2).unwrap().len()), (3, 2));
        device.zero(65_536..131_072, UNMAP).unwrap();
        assert_eq!(device.extents(0..1 << 20, 9).unwrap().len(), 1);
        device.zero(1000..5000, Zeroing { may_unmap: false, ..UNMAP }).unwrap();
        device.write_at((1 << 20) - 1, &[1], Durability::Cached).unwrap();
        device.evict(0..1 << 20);
        let mut last = [0; 2];
        device.read_at((1 << 20) - 2, &mut last).unwrap();
        assert_eq!(last, [0, 1]);
        assert_eq!(device.write_at(1 << 20, &[1], Durability::Cached).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn a_file_has_one_user() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let device = FileDevice::create(&path, 4096).unwrap();
        assert_eq!(FileDevice::open(&path).err().unwrap().kind(), Kind::Locked);
        drop(device);
        FileDevice::open(&path).unwrap();
        assert_eq!(FileDevice::open(folder.path()).err().unwrap().kind(), Kind::Invalid);
        assert_eq!(FileDevice::open(&folder.path().join("no")).err().unwrap().kind(), Kind::NotFound);
    }

    #[test]
    fn a_file_that_was_cut_off_is_damaged_and_no_zeroes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let device = FileDevice::create(&path, 8192).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
        assert_eq!(device.read_at(4096, &mut [0]).unwrap_err().kind(), Kind::Corrupt);
    }
}
