//! Coffer's gateway: block devices and the doors that serve them.

pub mod device;
pub mod snapshot_device;

pub use coffer_repo::{Error, Kind, Result};
pub use device::{BlockDevice, Content, Durability, Extent, Zeroing};
pub use snapshot_device::SnapshotDevice;
