//! Coffer's repository: see `ARCHITECTURE.md` and `repo/FORMAT.md`.

pub mod backend;
pub mod cbor;
pub mod certificate;
pub mod crypto;
pub mod entropy;
pub mod error;
pub mod id;
pub mod key_slot;
pub mod keys;
pub mod sealed;

pub use error::{Error, Kind, Result};
