//! Coffer's repository: deduplicated, compressed, encrypted snapshots of disks as immutable objects in a store.
//!
//! A snapshot is a claim that holds the roots of disk maps; a disk map names chunks; chunks lie sealed in packs; the index only
//! says where a chunk is, and can be rebuilt. Truth is the objects: delete the index and nothing committed is lost.
//!
//! Two files are tables of contents of the rest: [`writer`] (windows -> chunks -> packs -> disk map -> claim, check, decision) and
//! [`reader`] (range -> leaf -> chunk -> frame -> bytes). Besides: [`repository`] opens and makes repositories, [`catalog`] lists,
//! pins and forgets points, [`point`] finds them by name, [`verify`] proves them readable, [`stats`] says what they take, [`diff`]
//! compares them. Bytes that are stored are encoded in pure files: [`descriptor`], [`key_slot`], [`sealed`], [`snapshot`],
//! [`disk_map`], [`pack`], [`index_delta`], [`cbor`]; FORMAT.md says each of them byte by byte.
//!
//! What holds everywhere: nothing unauthenticated is used; nothing counts before its decision; nothing is acknowledged before it
//! is durable; memory is bounded by numbers that are written down; no clock, environment or global is read. Who may run at the
//! same time as whom, and why, is a table in `ARCHITECTURE.md`.

pub mod backend;
mod cache;
pub mod cancel;
pub mod catalog;
pub mod cbor;
pub mod certificate;
pub mod chunker;
mod crew;
pub mod crypto;
mod cursor;
pub mod descriptor;
pub mod diff;
pub mod disk_map;
pub mod entropy;
pub mod error;
pub mod features;
pub mod id;
#[cfg(feature = "index")]
pub mod index;
pub mod index_delta;
pub mod key_slot;
pub mod keys;
pub mod location;
mod nodes;
pub mod pack;
pub mod point;
pub mod reader;
pub mod repository;
pub mod seal;
pub mod sealed;
mod session;
pub mod snapshot;
pub mod stats;
pub mod time;
mod tree;
pub mod verify;
pub mod window;
#[cfg(feature = "index")]
pub mod writer;
pub mod zero;

pub use error::{Error, Kind, Result};

#[cfg(test)]
mod vectors;
