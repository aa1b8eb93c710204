//! Coffer's gateway: block devices and the doors that serve them.

pub mod device;
mod export;
mod faulty_device;
mod memory_device;
pub mod nbd;
mod snapshot_device;

pub use coffer_repo::{Error, Kind, Result};
pub use device::{BlockDevice, Content, Durability, Extent, Zeroing};
pub use export::{Export, Exports};
pub use faulty_device::{Faults, FaultyDevice};
pub use memory_device::MemoryDevice;
pub use snapshot_device::SnapshotDevice;
