//! What a file-system call means, without a kernel: refreshing the listing, opening and pinning, reading, seeking.
//!
//! Not here: the kernel's types (`fuse.rs`), names and numbers (`tree.rs`). What holds: no lock is held over I/O; a
//! snapshot with open disks is pinned once; a listing that fails leaves the one before in place, and is reported; bytes
//! that cannot be read are an error, never zeroes and never a short read.

use crate::catalog::{Catalog, Pinned, Point, Report};
use crate::handle::{Handle, Handles};
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
        let out = match out.get_mut(..length) {
            Some(out) if length > 0 => out,
            _ => return Ok(0),
        };
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

#[cfg(test)]
#[path = "../tests/fuse/bytes_device.rs"]
mod bytes_device;

#[cfg(test)]
mod tests {
    use super::bytes_device::{BytesDevice, Random};
    use super::*;
    use crate::catalog::PointDisk;
    use crate::memory_catalog::MemoryCatalog;
    use crate::{Kind, tree::NodeKind};
    use coffer_repo::time::Timestamp;
    use std::sync::atomic::{AtomicBool, Ordering};

    const SIZE: usize = 1 << 20;

    /// A point at second `id` with two disks of [`SIZE`] bytes.
    fn add(catalog: &MemoryCatalog, id: u8) {
        let disks = ["a", "b"].map(|name| PointDisk { name: name.to_owned(), size: SIZE as u64 });
        let time = Timestamp::from_seconds(id.into()).unwrap();
        let point = Point { id: SnapshotId([id; 16]), workload: "w".to_owned(), time, disks: disks.to_vec() };
        let device = |n| Arc::new(BytesDevice::random(u64::from(id) * 2 + n, SIZE, &[])) as Arc<dyn BlockDevice>;
        catalog.add(point, vec![device(1), device(2)]);
    }

    /// A file system that refreshes at every look, and what it reported.
    fn filesystem(catalog: Arc<dyn Catalog>) -> (SnapshotFilesystem, Arc<Mutex<Vec<String>>>) {
        let reported = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&reported);
        let report: Report = Arc::new(move |e| sink.lock().unwrap().push(e.to_string()));
        (SnapshotFilesystem::new(catalog, Duration::ZERO, report).unwrap(), reported)
    }

    fn find(filesystem: &SnapshotFilesystem, path: &[&str]) -> Option<Attributes> {
        let mut found = filesystem.attributes(Inode::ROOT).unwrap();
        for name in path {
            found = filesystem.lookup(found.inode, name).unwrap()?;
        }
        Some(found)
    }

    fn disk_at(second: u8, disk: &str) -> [String; 3] {
        ["w".to_owned(), format!("1970-01-01T00-00-{second:02}Z"), format!("{disk}.raw")]
    }

    fn open(filesystem: &SnapshotFilesystem, second: u8, disk: &str) -> Handle {
        let path = disk_at(second, disk);
        let found = find(filesystem, &path.each_ref().map(String::as_str)).unwrap();
        assert_eq!(found.kind, NodeKind::Disk);
        filesystem.open(found.inode).unwrap()
    }

    #[test]
    fn reads_what_the_device_holds_and_stops_at_its_end() {
        let catalog = Arc::new(MemoryCatalog::default());
        add(&catalog, 1);
        let (filesystem, _) = filesystem(catalog);
        let expected = BytesDevice::random(4, SIZE, &[]).bytes;
        let handle = open(&filesystem, 1, "b");
        let seed = 77;
        let mut random = Random(seed);
        for _ in 0..500 {
            let offset = random.below(SIZE as u64 + 5000);
            let mut out = vec![0xaa; usize::try_from(random.below(9000)).unwrap()];
            let length = filesystem.read(handle, offset, &mut out).unwrap();
            let start = usize::try_from(offset).unwrap().min(SIZE);
            let end = (start + out.len()).min(SIZE);
            assert_eq!(out[..length], expected[start..end], "seed {seed}, offset {offset}");
        }
    }

    #[test]
    fn open_disks_of_a_snapshot_share_one_pin() {
        let catalog = Arc::new(MemoryCatalog::default());
        add(&catalog, 1);
        add(&catalog, 2);
        let (filesystem, _) = filesystem(Arc::clone(&catalog) as Arc<dyn Catalog>);
        assert_eq!(catalog.pins_taken(), 0, "looking takes no pin");
        let handles = [(1, "a"), (1, "a"), (1, "b")].map(|(second, disk)| open(&filesystem, second, disk));
        assert_eq!((catalog.pins_held(), catalog.pins_taken()), (1, 1));
        let other = open(&filesystem, 2, "a");
        assert_eq!(catalog.pins_held(), 2);
        for handle in handles {
            assert!(catalog.pins_held() == 2);
            filesystem.close(handle);
        }
        assert_eq!(catalog.pins_held(), 1);
        filesystem.close(open(&filesystem, 1, "a"));
        assert_eq!(catalog.pins_taken(), 3);
        drop(filesystem);
        assert_eq!(catalog.pins_held(), 0, "handle {other:?} was left open at the end of the mount");
    }

    #[test]
    fn racing_opens_leave_one_pin() {
        let catalog = Arc::new(MemoryCatalog::default());
        add(&catalog, 1);
        let (filesystem, _) = filesystem(Arc::clone(&catalog) as Arc<dyn Catalog>);
        for _ in 0..50 {
            let threads = 4;
            let barrier = std::sync::Barrier::new(threads);
            let handles: Vec<Handle> = std::thread::scope(|scope| {
                let open = || {
                    barrier.wait();
                    open(&filesystem, 1, "a")
                };
                let running: Vec<_> = (0..threads).map(|_| scope.spawn(open)).collect();
                running.into_iter().map(|t| t.join().unwrap()).collect()
            });
            assert_eq!(catalog.pins_held(), 1);
            handles.into_iter().for_each(|h| filesystem.close(h));
            assert_eq!(catalog.pins_held(), 0);
        }
    }

    #[test]
    fn new_points_appear_and_forgotten_ones_vanish_but_stay_open() {
        let catalog = Arc::new(MemoryCatalog::default());
        add(&catalog, 1);
        let (filesystem, reported) = filesystem(Arc::clone(&catalog) as Arc<dyn Catalog>);
        let handle = open(&filesystem, 1, "a");
        let inode = find(&filesystem, &disk_at(1, "b").each_ref().map(String::as_str)).unwrap().inode;
        add(&catalog, 2);
        let latest = find(&filesystem, &["w", "latest"]).unwrap();
        assert_eq!(filesystem.read_link(latest.inode).unwrap().as_ref(), "1970-01-01T00-00-02Z");
        catalog.forget(SnapshotId([1; 16]));
        assert!(find(&filesystem, &disk_at(1, "a").each_ref().map(String::as_str)).is_none());
        let mut out = [0; 100];
        assert_eq!(filesystem.read(handle, 5, &mut out).unwrap(), 100);
        assert_eq!(out[..], BytesDevice::random(3, SIZE, &[]).bytes[5..105]);
        assert!(filesystem.open(inode).is_ok(), "held by the open disk beside it");
        assert!(reported.lock().unwrap().is_empty());
    }

    #[test]
    fn a_forgotten_point_cannot_be_opened_any_more() {
        let catalog = Arc::new(MemoryCatalog::default());
        add(&catalog, 1);
        let (filesystem, _) = filesystem(Arc::clone(&catalog) as Arc<dyn Catalog>);
        let inode = find(&filesystem, &disk_at(1, "a").each_ref().map(String::as_str)).unwrap().inode;
        catalog.forget(SnapshotId([1; 16]));
        assert_eq!(filesystem.open(inode).unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn an_open_directory_does_not_change_under_its_reader() {
        let catalog = Arc::new(MemoryCatalog::default());
        add(&catalog, 1);
        let (filesystem, _) = filesystem(Arc::clone(&catalog) as Arc<dyn Catalog>);
        let w = find(&filesystem, &["w"]).unwrap().inode;
        let handle = filesystem.open_directory(w).unwrap();
        add(&catalog, 2);
        assert_eq!(filesystem.directory(handle).unwrap().entries.len(), 2);
        let later = filesystem.open_directory(w).unwrap();
        assert_eq!(filesystem.directory(later).unwrap().entries.len(), 3);
        filesystem.close_directory(handle);
        assert!(filesystem.directory(handle).is_err());
    }

    #[test]
    fn seeks_along_extents() {
        let catalog = MemoryCatalog::default();
        let unreadable = 300 << 10..304 << 10;
        let device = BytesDevice {
            unreadable: vec![unreadable],
            ..BytesDevice::random(9, SIZE, &[0..64 << 10, 200 << 10..300 << 10, 1000 << 10..1024 << 10])
        };
        let point = Point {
            id: SnapshotId([1; 16]),
            workload: "w".to_owned(),
            time: Timestamp::from_seconds(1).unwrap(),
            disks: vec![PointDisk { name: "a".to_owned(), size: SIZE as u64 }],
        };
        catalog.add(point, vec![Arc::new(device)]);
        let (filesystem, _) = filesystem(Arc::new(catalog));
        let handle = open(&filesystem, 1, "a");
        let kib = |goal, from: u64| filesystem.seek(handle, from << 10, goal).unwrap().map(|at| at >> 10);
        for (from, data, hole) in [
            (0, Some(64), Some(0)),
            (63, Some(64), Some(63)),
            (64, Some(64), Some(200)),
            (250, Some(300), Some(250)),
            // What cannot be read is data.
            (301, Some(301), Some(1000)),
            (1000, None, Some(1000)),
            (1023, None, Some(1023)),
            (1024, None, None),
            (5000, None, None),
        ] {
            assert_eq!((kib(Goal::Data, from), kib(Goal::Hole, from)), (data, hole), "from {from} KiB");
        }
        let mut out = [0; 10];
        let refused = filesystem.read(handle, 302 << 10, &mut out).unwrap_err();
        assert_eq!(refused.kind(), Kind::Corrupt);
        assert!(refused.to_string().contains("w@1970-01-01T00-00-01Z:a"), "{refused}");
    }

    #[test]
    fn a_disk_without_holes_ends_in_one() {
        let catalog = Arc::new(MemoryCatalog::default());
        add(&catalog, 1);
        let (filesystem, _) = filesystem(catalog);
        let handle = open(&filesystem, 1, "a");
        assert_eq!(filesystem.seek(handle, 5, Goal::Hole).unwrap(), Some(SIZE as u64));
        assert_eq!(filesystem.seek(handle, 5, Goal::Data).unwrap(), Some(5));
    }

    #[test]
    fn a_device_of_another_size_is_refused() {
        let catalog = MemoryCatalog::default();
        let disks = vec![PointDisk { name: "a".to_owned(), size: 8192 }];
        let time = Timestamp::from_seconds(1).unwrap();
        let point = Point { id: SnapshotId([1; 16]), workload: "w".to_owned(), time, disks };
        catalog.add(point, vec![Arc::new(BytesDevice::random(1, 4096, &[]))]);
        let (filesystem, _) = filesystem(Arc::new(catalog));
        let inode = find(&filesystem, &disk_at(1, "a").each_ref().map(String::as_str)).unwrap().inode;
        assert_eq!(filesystem.open(inode).unwrap_err().kind(), Kind::Corrupt);
    }

    /// A catalog whose store goes away.
    struct Flaky {
        inner: MemoryCatalog,
        is_down: AtomicBool,
    }

    impl Catalog for Flaky {
        fn points(&self) -> Result<Vec<Point>> {
            match self.is_down.load(Ordering::Relaxed) {
                true => Err(Error::new(Kind::Unavailable, "the store does not answer")),
                false => Catalog::points(&self.inner),
            }
        }

        fn pin(&self, point: &Point) -> Result<Arc<dyn Pinned>> {
            self.inner.pin(point)
        }
    }

    #[test]
    fn a_store_that_does_not_answer_is_reported_and_the_listing_stays() {
        let flaky = Arc::new(Flaky { inner: MemoryCatalog::default(), is_down: AtomicBool::new(false) });
        add(&flaky.inner, 1);
        let (filesystem, reported) = filesystem(Arc::clone(&flaky) as Arc<dyn Catalog>);
        flaky.is_down.store(true, Ordering::Relaxed);
        assert!(find(&filesystem, &["w"]).is_some());
        assert!(reported.lock().unwrap()[0].contains("does not answer"));
        let report: Report = Arc::new(|_| ());
        assert!(SnapshotFilesystem::new(flaky, Duration::ZERO, report).is_err(), "a mount begins with a listing");
    }
}
