//! Coffer's file views: today the FUSE mount of all snapshots, later the guest file systems inside them.
//!
//! ```text
//!   kernel --/dev/fuse--> fuse.rs            translates calls, nothing else
//!                           |
//!                       filesystem.rs        what a call means: refresh, open, read, seek
//!                       /       |     \
//!                  tree.rs  handle.rs  catalog.rs (seam) <-- repository_catalog.rs, memory_catalog.rs (tests)
//!                      |
//!                  file_name.rs
//!
//!   session.rs: from mounting to unmounting      mount_point.rs: attaching to a directory, detaching from it
//! ```
//!
//! The tree is `WORKLOAD/TIME/DISK.raw` and `WORKLOAD/latest`, read-only. What holds: whatever is open goes on working
//! until it is closed, forgotten or not, because its snapshot is pinned; bytes that cannot be read are an error for
//! exactly those bytes, never zeroes.

pub mod catalog;
mod errno;
mod file_name;
mod filesystem;
mod fuse;
mod handle;
pub mod memory_catalog;
mod mount_point;
pub mod repository_catalog;
pub mod session;
mod tree;

pub use catalog::{Catalog, Pinned, Point, PointDisk, Report};
pub use coffer_gateway::{Error, Kind, Result};
pub use repository_catalog::RepositoryCatalog;
pub use session::{Detached, MountOptions, Session};
