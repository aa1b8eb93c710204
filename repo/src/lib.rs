//! Coffer's repository: see `ARCHITECTURE.md` and `repo/FORMAT.md`.

pub mod backend;
pub mod cancel;
pub mod cbor;
pub mod certificate;
pub mod chunker;
pub mod crypto;
pub mod disk_map;
pub mod entropy;
pub mod error;
pub mod id;
pub mod key_slot;
pub mod keys;
pub mod sealed;
pub mod snapshot;
pub mod time;
pub mod window;
pub mod zero;

pub use error::{Error, Kind, Result};
