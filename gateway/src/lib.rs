//! Coffer's gateway: block devices and the doors that serve them.
//!
//! ```text
//!   nbd::Server  ->  Exports  ->  dyn BlockDevice        what is offered, by name
//!   nbd::NbdClient                is one                 what others offer
//!   serving                                              what servers of disks are made of
//!   control, metrics                                     a running process is asked, and told
//! ```
//! Not here: how a snapshot is stored (the repository), file systems, iSCSI. What holds: devices are synchronous and may be
//! called from any thread; errors keep the repository's kinds up to the edge of each door.

pub mod control;
pub mod device;
mod door;
mod export;
mod faulty_device;
mod file_device;
pub mod fork;
mod memory_device;
pub mod metrics;
pub mod nbd;
pub mod serving;
mod snapshot_changes;
mod snapshot_device;
pub mod target;

pub use coffer_repo::{Error, Kind, Result};
pub use device::{BlockDevice, Content, Durability, Extent, Zeroing};
pub use export::{
    Access, Activity, ActivityTotals, ChangeSource, Changes, Deed, Export, Exports, LATENCY_BOUNDS, Limits, Live,
    Meter, Network, Peer, Permit, Taken,
};
pub use faulty_device::{Faults, FaultyDevice};
pub use file_device::FileDevice;
pub use memory_device::MemoryDevice;
pub use snapshot_changes::SnapshotChanges;
pub use snapshot_device::SnapshotDevice;
