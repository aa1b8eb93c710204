//! The catalog over a repository: listing by names, reading each claim once, pinning.
//!
//! What holds: a committed claim never changes, so it is read once; whether a point is there is decided by names alone, each
//! time. A damaged claim is reported once and hides no other. A pin ends when the last disk of its snapshot is closed; one
//! that cannot be ended is reported, and left to the janitor.

use crate::catalog::{Catalog, Pinned, Point, PointDisk, Report};
use crate::{Error, Kind, Result};
use coffer_gateway::{BlockDevice, SnapshotDevice};
use coffer_repo::catalog::Pin;
use coffer_repo::id::SnapshotId;
use coffer_repo::reader::Reader;
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::{ClaimName, Identity, Snapshot};
use coffer_repo::time::Timestamp;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a pin says it is for.
const PURPOSE: &str = "mount";

/// Tells the time; for the times of pins and their ends, on which nothing rests.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The snapshots of a repository.
pub struct RepositoryCatalog {
    repo: Arc<Repository>,
    reader: Arc<Reader>,
    identity: Identity,
    clock: Clock,
    report: Report,
    /// What the decided claims turned out to be: as many as the repository has.
    known: Mutex<HashMap<ClaimName, Known>>,
}

/// What a decided claim is.
#[derive(Clone)]
enum Known {
    Snapshot(Arc<Snapshot>),
    /// Revoked, or no snapshot.
    Other,
    /// Cannot be read, and was reported.
    Damaged,
}

impl RepositoryCatalog {
    /// The catalog of `repo`, read through `reader`; `identity` is who pins. `report` hears of damaged claims, of reading
    /// without a pin, and of pins that could not be ended.
    pub fn new(repo: Arc<Repository>, reader: Arc<Reader>, identity: Identity, clock: Clock, report: Report) -> Self {
        RepositoryCatalog { repo, reader, identity, clock, report, known: Mutex::default() }
    }

    /// What the claim at `name` is: read from the store if it is seen for the first time.
    fn learn(&self, name: ClaimName) -> Result<Known> {
        if let Some(known) = self.known().get(&name) {
            return Ok(known.clone());
        }
        let known = match self.repo.read_snapshot(name) {
            Ok(Some(snapshot)) => Known::Snapshot(Arc::new(snapshot)),
            Ok(None) => Known::Other,
            // Trying again would help against these, so they are not remembered: the listing fails.
            Err(e) if matches!(e.kind(), Kind::Unavailable | Kind::Cancelled | Kind::Internal) => return Err(e),
            Err(e) => {
                (self.report)(&e.within("a snapshot is not shown"));
                Known::Damaged
            }
        };
        self.known().insert(name, known.clone());
        Ok(known)
    }

    fn snapshot(&self, id: SnapshotId) -> Option<Arc<Snapshot>> {
        self.known().values().find_map(|known| match known {
            Known::Snapshot(snapshot) if snapshot.id() == id => Some(Arc::clone(snapshot)),
            _ => None,
        })
    }

    // Every update leaves the map whole, so a thread that died holding the lock is no reason to stop.
    fn known(&self) -> MutexGuard<'_, HashMap<ClaimName, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Catalog for RepositoryCatalog {
    fn points(&self) -> Result<Vec<Point>> {
        let folders = self.repo.folders()?;
        self.known().retain(|name, _| folders.claims.contains_key(name));
        let mut points = Vec::new();
        let decided = folders.claims.iter().filter(|(_, is_decided)| **is_decided).map(|(name, _)| *name);
        for name in decided.filter(|name| !folders.forgotten.contains(&name.id)) {
            if let Known::Snapshot(snapshot) = self.learn(name)? {
                points.push(point_of(&snapshot));
            }
        }
        Ok(points)
    }

    fn pin(&self, point: &Point) -> Result<Arc<dyn Pinned>> {
        let gone = || Error::not_found(format!("{}@{} was forgotten", point.workload, point.time));
        let snapshot = self.snapshot(point.id).ok_or_else(gone)?;
        let pin = self.repo.pin(&snapshot, PURPOSE, &self.identity, (self.clock)())?;
        if let Some(warning) = pin.warning() {
            (self.report)(&Error::new(Kind::Unavailable, warning));
        }
        let (clock, report) = (Arc::clone(&self.clock), Arc::clone(&self.report));
        Ok(Arc::new(PinnedSnapshot { snapshot, reader: Arc::clone(&self.reader), pin: Some(pin), clock, report }))
    }
}

fn point_of(snapshot: &Snapshot) -> Point {
    let disks = snapshot.disks.iter().map(|d| PointDisk { name: d.name.clone(), size: d.size }).collect();
    Point { id: snapshot.id(), workload: snapshot.workload.clone(), time: snapshot.time(), disks }
}

/// A snapshot that is held.
struct PinnedSnapshot {
    snapshot: Arc<Snapshot>,
    reader: Arc<Reader>,
    /// Taken when it is dropped.
    pin: Option<Pin>,
    clock: Clock,
    report: Report,
}

impl Pinned for PinnedSnapshot {
    fn open(&self, disk: &str) -> Result<Arc<dyn BlockDevice>> {
        // The pin is ended here and not by the device, so that failing to end it is heard of.
        Ok(Arc::new(SnapshotDevice::new(self.reader.disk(&self.snapshot, disk)?, None)))
    }
}

impl Drop for PinnedSnapshot {
    fn drop(&mut self) {
        let Some(pin) = self.pin.take() else { return };
        if let Err(e) = pin.release((self.clock)()) {
            let title = format!("{}@{}", self.snapshot.workload, self.snapshot.time());
            (self.report)(&e.within(format!("letting go of {title}, whose pin stays for now")));
        }
    }
}
