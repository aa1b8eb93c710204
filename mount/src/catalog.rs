//! The seam between the mount and what it shows: the points there are, and a way to hold and open one.
//!
//! Not here: names of files, inodes, refreshing. What holds: a [`Pinned`] point stays readable until it is dropped, even
//! when it is forgotten meanwhile; a point's content never changes.

use crate::{Error, Result};
use coffer_gateway::BlockDevice;
use coffer_repo::id::SnapshotId;
use coffer_repo::time::Timestamp;
use std::sync::Arc;

/// Where errors and warnings go that no caller waits for. Called from several threads at once.
pub type Report = Arc<dyn Fn(&Error) + Send + Sync>;

/// A committed snapshot, as far as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// The snapshot.
    pub id: SnapshotId,
    /// What was protected; any text.
    pub workload: String,
    /// When it was taken.
    pub time: Timestamp,
    /// Its disks; their names differ.
    pub disks: Vec<PointDisk>,
}

/// One disk of a [`Point`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointDisk {
    /// The disk's name; any text.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
}

/// Where the mount's content comes from. Called from several threads at once.
pub trait Catalog: Send + Sync {
    /// The points there are now, in any order. May do I/O.
    fn points(&self) -> Result<Vec<Point>>;

    /// Holds `point` so that it stays readable until the last copy is dropped. `NotFound` when it was forgotten. May do I/O.
    fn pin(&self, point: &Point) -> Result<Arc<dyn Pinned>>;
}

/// A point that is held. Dropping it lets go, which may do I/O.
pub trait Pinned: Send + Sync {
    /// Opens the disk of that name, read-only.
    fn open(&self, disk: &str) -> Result<Arc<dyn BlockDevice>>;
}
