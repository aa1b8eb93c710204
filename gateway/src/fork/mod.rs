//! Forks: writable copies of disks of points.
//!
//! ```text
//!   Forks (folder)  ->  Fork  ->  Layer  ->  base: a SnapshotDevice, or the layer below
//!   create list open drop         journal, data, map     Medium: files, or the tests' lossy ones
//! ```
//! Not here: doors, which take a fork as any other device. What holds: stated by [`layer`], per seam.

mod block_map;
mod folder;
mod header;
mod journal;
mod lanes;
pub mod layer;
pub mod medium;
mod range_locks;
mod record;
mod replay;
mod rounds;

pub use folder::{Fork, ForkName, Forks, ListedFork};
pub use header::ForkHeader;
pub use layer::{Layer, Media};
pub use medium::{FileMedium, Medium};

/// Which start of the machine this is: what was written and not synced survives within one. The kernel's
/// `/proc/sys/kernel/random/boot_id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootId(pub [u8; 16]);
