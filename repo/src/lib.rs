//! Coffer's repository: see `ARCHITECTURE.md` and `repo/FORMAT.md`.

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
