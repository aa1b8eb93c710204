//! Journeys: whole stories of the real program and of outside programs around it, from a disk to a repository and back.
//!
//! Not here: what one room can prove alone, and wrong use of the command (`tools/tests`). What holds: each journey has a
//! folder, sockets and devices of its own, so that all may run at the same time; outside programs that are missing fail;
//! seeds are fixed. Needs root, for loop devices, mounts and the guest's device nodes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "what was measured is told, not asserted")]

#[path = "journey/block_device.rs"]
mod block_device;
#[path = "journey/collected.rs"]
mod collected;
#[path = "journey/conformance.rs"]
mod conformance;
#[path = "journey/copied.rs"]
mod copied;
#[path = "journey/crowd.rs"]
mod crowd;
#[path = "journey/disk_cache.rs"]
mod disk_cache;
#[path = "journey/far.rs"]
mod far;
#[path = "journey/fleet.rs"]
mod fleet;
#[path = "journey/forks.rs"]
mod forks;
#[path = "journey/formats.rs"]
mod formats;
#[path = "journey/full_disk.rs"]
mod full_disk;
#[path = "journey/gateway.rs"]
mod gateway;
#[path = "journey/guest.rs"]
mod guest;
#[path = "journey/healing.rs"]
mod healing;
#[path = "journey/huge.rs"]
mod huge;
#[path = "journey/hydrated.rs"]
mod hydrated;
#[path = "journey/iscsi.rs"]
mod iscsi;
#[path = "journey/killed.rs"]
mod killed;
#[path = "journey/kills.rs"]
mod kills;
#[path = "journey/lost_index.rs"]
mod lost_index;
#[path = "journey/mounted.rs"]
mod mounted;
#[path = "journey/overtaken.rs"]
mod overtaken;
#[path = "journey/retention.rs"]
mod retention;
#[path = "journey/rotation.rs"]
mod rotation;
#[path = "journey/together.rs"]
mod together;
#[path = "journey/unreadable.rs"]
mod unreadable;
