//! Coffer's movers: how disks come into the repository and go out again.
//!
//! ```text
//!   backup:   location -> source (file | image | nbd | stream) -> sample -> source/feed -> repository writer -> commit
//!   restore:  location -> target (file | device | image | nbd | stream) -> transfer -> comparison -> done
//!                                                                              \-> checkpoint, so that it can go on
//! ```
//!
//! Not here: what a snapshot is made of (`coffer-repo`), NBD itself (`coffer-gateway`), and how a run is shown. What holds:
//! [`source::open`] and [`target::open`] are the only doors; whatever a source or target started (a child process, a
//! socket, later a hypervisor's job) ends when its value is dropped; memory is bounded by windows and slices times workers,
//! whatever the disk's size; bytes that could not be read are never passed off as zeroes.

pub mod backup;
pub mod donor;
pub mod image_format;
pub mod location;
pub mod range_list;
pub mod restore;
pub mod sample;
pub mod source;
pub mod target;

mod checkpoint;
mod comparison;
mod crew;
mod mounts;
mod qemu_nbd;
mod runs;
mod transfer;

pub use coffer_repo::{Error, Kind, Result};
