//! A catalog of devices in memory: for tests, and for measuring the mount without a repository below it.
//!
//! What holds: as with a repository, a forgotten point vanishes from the listing at once and stays readable while pinned.

use crate::catalog::{Catalog, Pinned, Point};
use crate::{Error, Result};
use coffer_gateway::BlockDevice;
use coffer_repo::id::SnapshotId;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Points whose disks are devices given by the caller.
#[derive(Default)]
pub struct MemoryCatalog {
    points: Mutex<Vec<(Point, Devices)>>,
    /// Pins held now, and pins ever taken.
    held: Arc<AtomicUsize>,
    taken: AtomicUsize,
}

/// The devices of one point, in the order of its disks.
type Devices = Arc<[Arc<dyn BlockDevice>]>;

impl MemoryCatalog {
    /// Adds a point; `devices` are its disks, in the order of `point.disks`.
    pub fn add(&self, point: Point, devices: Vec<Arc<dyn BlockDevice>>) {
        self.points().push((point, devices.into()));
    }

    /// Drops a point from the listing.
    pub fn forget(&self, id: SnapshotId) {
        self.points().retain(|(point, _)| point.id != id);
    }

    /// How many pins are held now.
    pub fn pins_held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    /// How many pins were ever taken.
    pub fn pins_taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    fn points(&self) -> MutexGuard<'_, Vec<(Point, Devices)>> {
        self.points.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Catalog for MemoryCatalog {
    fn points(&self) -> Result<Vec<Point>> {
        Ok(MemoryCatalog::points(self).iter().map(|(point, _)| point.clone()).collect())
    }

    fn pin(&self, point: &Point) -> Result<Arc<dyn Pinned>> {
        let points = MemoryCatalog::points(self);
        let (point, devices) = points
            .iter()
            .find(|(p, _)| p.id == point.id)
            .ok_or_else(|| Error::not_found(format!("snapshot {} was forgotten", point.id)))?;
        self.held.fetch_add(1, Ordering::SeqCst);
        self.taken.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(MemoryPin { point: point.clone(), devices: Arc::clone(devices), held: Arc::clone(&self.held) }))
    }
}

struct MemoryPin {
    point: Point,
    devices: Devices,
    held: Arc<AtomicUsize>,
}

impl Pinned for MemoryPin {
    fn open(&self, disk: &str) -> Result<Arc<dyn BlockDevice>> {
        let found = self.point.disks.iter().zip(self.devices.iter()).find(|(d, _)| d.name == disk);
        let (_, device) =
            found.ok_or_else(|| Error::not_found(format!("snapshot {} has no disk {disk}", self.point.id)))?;
        Ok(Arc::clone(device))
    }
}

impl Drop for MemoryPin {
    fn drop(&mut self) {
        self.held.fetch_sub(1, Ordering::SeqCst);
    }
}
