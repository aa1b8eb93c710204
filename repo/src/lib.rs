//! Coffer's repository: deduplicated, compressed, encrypted snapshots of disks as immutable objects in a store.
//!
//! A snapshot is a claim that holds the roots of disk maps; a disk map names chunks; chunks lie sealed in packs; the index only
//! says where a chunk is, and can be rebuilt. Truth is the objects: delete the index and nothing committed is lost.
//!
//! Two files are tables of contents of the rest: [`writer`] (windows -> chunks -> packs -> disk map -> claim, check, decision) and
//! [`reader`] (range -> leaf -> chunk -> frame -> bytes). Besides: [`repository`] opens and makes repositories, [`catalog`] lists
//! and pins points, [`protection`] protects and forgets them, [`retention`] says which ones rules keep, [`point`] finds them by
//! name, [`rotation`] gives new packs another key, [`probe`] finds out what the store promises ([`store_class`]), [`locks`] keeps what is
//! locked against removal so, [`tiers`] moves old packs to other stores, [`thaw`] has what is frozen there made readable, [`verify`]
//! proves points readable, [`heal`] makes them so again, [`stats`] says what they take, [`diff`] compares them, [`copy`] copies them
//! to another repository. Bytes that are stored are encoded in pure files: [`descriptor`], [`key_slot`],
//! [`epoch`], [`sealed`], [`snapshot`], [`note`], [`tier`], [`disk_map`], [`pack`], [`parity`], [`index_delta`], [`moved`], [`verified`],
//! [`cbor`]; FORMAT.md says each of them byte by byte.
//!
//! What holds everywhere: nothing unauthenticated is used; nothing counts before its decision; nothing is acknowledged before it
//! is durable; memory is bounded by numbers that are written down; no clock, environment or global is read. Who may run at the
//! same time as whom, and why, is a table in `ARCHITECTURE.md`.

pub mod backend;
mod cache;
pub mod cancel;
pub mod catalog;
pub mod cbor;
mod census;
pub mod certificate;
pub mod chunker;
pub mod collector;
#[cfg(feature = "index")]
pub mod copy;
mod crew;
pub mod crypto;
mod cursor;
mod data_key;
pub mod descriptor;
mod detour;
pub mod diff;
pub mod disk_map;
pub mod entropy;
pub mod epoch;
pub mod error;
pub mod features;
mod finder;
pub mod fork_key;
mod frames;
pub mod heal;
pub mod id;
#[cfg(feature = "index")]
pub mod index;
pub mod index_delta;
pub mod key_slot;
mod keyring;
pub mod keys;
pub mod location;
pub mod lock_for;
pub mod locks;
pub mod moved;
mod nodes;
pub mod note;
mod pace;
pub mod pack;
pub mod parity;
pub mod point;
pub mod probe;
pub mod protection;
pub mod reader;
mod register;
pub mod repository;
pub mod retention;
pub mod rotation;
pub mod seal;
pub mod sealed;
pub mod session;
pub mod snapshot;
mod spool;
pub mod stats;
pub mod store_class;
pub mod thaw;
pub mod tier;
pub mod tiers;
pub mod time;
mod tree;
mod unwalkable;
pub mod verified;
pub mod verify;
pub mod window;
#[cfg(feature = "index")]
pub mod writer;
pub mod zero;

pub use error::{Error, Kind, Result};

#[cfg(test)]
mod vectors;
