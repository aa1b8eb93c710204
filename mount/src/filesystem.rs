//! What a file-system call means, without a kernel: refreshing the listing, opening and pinning, reading, seeking.
//!
//! Not here: the kernel's types (`fuse.rs`), names and numbers (`tree.rs`). What holds: no lock is held over I/O; a
//! snapshot with open disks is pinned once; a listing that fails leaves the one before in place, and is reported; bytes
//! that cannot be read are an error, never zeroes and never a short read.

use crate::catalog::{Catalog, Pinned, Point};
use crate::handle::{Handle, Handles};
use crate::session::Report;
use crate::tree::{Attributes, Inode, Listing, Tree};
use crate::{Error, Result};
use coffer_gateway::{BlockDevice, Content};
use coffer_repo::id::SnapshotId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How many extents one step of a seek asks for: bounds its memory.
const EXTENTS_PER_STEP: usize = 256;

/// What a seek looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Bytes that have to be read.
    Data,
    /// Zeroes that take no space, or the end.
    Hole,
}

/// What `df` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Size of all disks in bytes.
    pub(crate) bytes: u64,
    /// Files and directories.
    pub(crate) nodes: u64,
}

/// A disk somebody has open.
struct OpenDisk {
    // The device goes before the pin that keeps its bytes.
    device: Arc<dyn BlockDevice>,
    _pin: Arc<dyn Pinned>,
    /// `WORKLOAD@TIME:DISK`, for messages.
    label: String,
}

/// When the listing was last asked for, and whether somebody is asking.
struct Freshness {
    due: Instant,
    is_running: bool,
}

/// All snapshots of a catalog as a tree of files.
pub(crate) struct SnapshotFilesystem {
    catalog: Arc<dyn Catalog>,
    refresh: Duration,
    report: Report,
    tree: Mutex<Tree>,
    freshness: Mutex<Freshness>,
    pins: Mutex<HashMap<SnapshotId, Weak<dyn Pinned>>>,
    disks: Handles<OpenDisk>,
    directories: Handles<Listing>,
}

impl SnapshotFilesystem {
    /// Reads the first listing, so that a repository that cannot be read is an error here and not an empty directory.
    /// `refresh` is how old a listing may get; `report` hears of every error and warning.
    pub(crate) fn new(catalog: Arc<dyn Catalog>, refresh: Duration, report: Report) -> Result<Self> {
        let mut tree = Tree::new();
        tree.update(catalog.points()?);
        let due = Instant::now() + refresh;
        Ok(SnapshotFilesystem {
            catalog,
            refresh,
            report,
            tree: Mutex::new(tree),
            freshness: Mutex::new(Freshness { due, is_running: false }),
            pins: Mutex::new(HashMap::new()),
            disks: Handles::new(),
            directories: Handles::new(),
        })
    }

    /// Tells the user what went wrong.
    pub(crate) fn report(&self, error: &Error) {
        (self.report)(error);
    }

    /// Finds `name` in `parent` and counts one lookup; `None` when there is no such name.
    pub(crate) fn lookup(&self, parent: Inode, name: &str) -> Result<Option<Attributes>> {
        self.refresh();
        self.tree().lookup(parent, name)
    }

    /// Counts one lookup of an entry that is handed out with its attributes; `None` when it is gone meanwhile.
    pub(crate) fn remember(&self, inode: Inode) -> Option<Attributes> {
        self.tree().remember(inode)
    }

    /// Takes back `count` lookups.
    pub(crate) fn forget(&self, inode: Inode, count: u64) {
        self.tree().forget(inode, count);
    }

    pub(crate) fn attributes(&self, inode: Inode) -> Result<Attributes> {
        self.tree().attributes(inode)
    }

    pub(crate) fn read_link(&self, inode: Inode) -> Result<Box<str>> {
        self.tree().link(inode)
    }

    pub(crate) fn totals(&self) -> Totals {
        let (nodes, bytes) = self.tree().totals();
        Totals { bytes, nodes }
    }

    /// Opens a directory as it is now: what is read from the handle does not change under the reader.
    pub(crate) fn open_directory(&self, inode: Inode) -> Result<Handle> {
        self.refresh();
        let listing = self.tree().listing(inode)?;
        Ok(self.directories.insert(listing))
    }

    pub(crate) fn directory(&self, handle: Handle) -> Result<Arc<Listing>> {
        self.directories.get(handle)
    }

    pub(crate) fn close_directory(&self, handle: Handle) {
        self.directories.remove(handle);
    }

    /// Opens a disk and pins its snapshot. A device of another size than listed is `Corrupt`: the kernel would fill the
    /// difference with zeroes.
    pub(crate) fn open(&self, inode: Inode) -> Result<Handle> {
        let place = self.tree().disk(inode)?;
        let disk = place.point.disks.get(place.disk).ok_or_else(|| Error::internal("a disk that its point lacks"))?;
        let label = format!("{}@{}:{}", place.point.workload, place.point.time, disk.name);
        let pin = self.pin(&place.point).map_err(|e| e.within(format!("opening {label}")))?;
        let device = pin.open(&disk.name).map_err(|e| e.within(format!("opening {label}")))?;
        if device.size() != disk.size {
            let found = device.size();
            return Err(Error::corrupt(format!("{label} is listed with {} bytes and has {found}", disk.size)));
        }
        Ok(self.disks.insert(OpenDisk { device, _pin: pin, label }))
    }

    /// Closes a disk; the last one of a snapshot lets go of it.
    pub(crate) fn close(&self, handle: Handle) {
        self.disks.remove(handle);
    }

    /// Fills `out` from `offset` on and says how much there was: less than asked for only at the disk's end.
    pub(crate) fn read(&self, handle: Handle, offset: u64, out: &mut [u8]) -> Result<usize> {
        let disk = self.disks.get(handle)?;
        let rest = disk.device.size().saturating_sub(offset);
        let length = usize::try_from(rest).map_or(out.len(), |rest| rest.min(out.len()));
        let Some(out) = out.get_mut(..length) else { return Ok(0) };
        disk.device.read_at(offset, out).map_err(|e| e.within(format!("reading {}", disk.label)))?;
        Ok(length)
    }

    /// The first place at or after `offset` that is `goal`; `None` beyond the end and when no data follows.
    pub(crate) fn seek(&self, handle: Handle, offset: u64, goal: Goal) -> Result<Option<u64>> {
        let disk = self.disks.get(handle)?;
        let size = disk.device.size();
        let mut at = offset;
        while at < size {
            let extents = disk.device.extents(at..size, EXTENTS_PER_STEP);
            let extents = extents.map_err(|e| e.within(format!("seeking in {}", disk.label)))?;
            // What cannot be read counts as data, so that a copy runs into the error instead of writing zeroes.
            let is_goal = |content: Content| (content == Content::Zero) == (goal == Goal::Hole);
            if let Some(found) = extents.iter().find(|e| is_goal(e.content)) {
                return Ok(Some(found.range.start.max(offset)));
            }
            match extents.last() {
                Some(last) if last.range.end > at => at = last.range.end,
                _ => return Err(Error::internal(format!("{} has no extent at offset {at}", disk.label))),
            }
        }
        Ok((goal == Goal::Hole && offset < size).then_some(size))
    }

    /// Takes in a new listing when the last one is too old and nobody else is at it. Others go on with the old one.
    fn refresh(&self) {
        {
            let mut freshness = self.freshness();
            if freshness.is_running || Instant::now() < freshness.due {
                return;
            }
            freshness.is_running = true;
        }
        match self.catalog.points() {
            Ok(points) => self.tree().update(points),
            Err(error) => self.report(&error.within("listing the snapshots again; showing the last listing")),
        }
        *self.freshness() = Freshness { due: Instant::now() + self.refresh, is_running: false };
    }

    /// The pin of `point`, shared by all its open disks.
    fn pin(&self, point: &Point) -> Result<Arc<dyn Pinned>> {
        if let Some(pin) = self.pins().get(&point.id).and_then(Weak::upgrade) {
            return Ok(pin);
        }
        let fresh = self.catalog.pin(point)?;
        if let Some(warning) = fresh.warning() {
            self.report(&Error::new(crate::Kind::Unavailable, warning));
        }
        let mut pins = self.pins();
        // Somebody may have been as quick: theirs is kept, ours is dropped, after the lock.
        if let Some(theirs) = pins.get(&point.id).and_then(Weak::upgrade) {
            drop(pins);
            return Ok(theirs);
        }
        pins.retain(|_, pin| pin.strong_count() > 0);
        pins.insert(point.id, Arc::downgrade(&fresh));
        Ok(fresh)
    }

    // Every update below a lock leaves the maps whole, so a thread that died under one is no reason to stop.
    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn freshness(&self) -> MutexGuard<'_, Freshness> {
        self.freshness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pins(&self) -> MutexGuard<'_, HashMap<SnapshotId, Weak<dyn Pinned>>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
