//! Forks: writable copies of disks of points.
//!
//! ```text
//!   Forks (folder)  ->  Fork (opened)  ->  Stack  ->  Layer  ->  base: a SnapshotDevice, or the layer below
//!   create list open drop   freeze                      journal, data, map     Medium: files, or the tests' lossy ones
//!                           Commit: what is frozen becomes a point, and that the fork's base
//!                           erasure: all of it becomes zeroes, and its keys go
//!                           Hydration: all of it is brought to a target, and handed over to that: Heir
//! ```
//! Not here: doors, which take a fork as any other device. What holds: stated by [`layer`], per seam.

mod block_map;
pub mod commit;
mod erasure;
mod folder;
mod header;
mod heir;
pub mod hydration;
mod journal;
mod lanes;
pub mod layer;
pub mod medium;
mod opened;
mod range_locks;
mod record;
mod replay;
mod rounds;
pub mod stack;
mod windows;

pub use commit::{Commit, CommitPlan};
pub use folder::{ForkName, Forks, ListedFork};
pub use header::ForkHeader;
pub use hydration::{
    HandOver, Hydration, HydrationPlan, HydrationProgress, Phase, Transfer, TransferPlan, Transferred, Waypoint,
};
pub use layer::{Layer, Media};
pub use medium::{FileMedium, Medium};
pub use opened::Fork;
pub use stack::Stack;

/// Which start of the machine this is: what was written and not synced survives within one. The kernel's
/// `/proc/sys/kernel/random/boot_id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootId(pub [u8; 16]);
