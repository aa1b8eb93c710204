//! Coffer's repository: see `ARCHITECTURE.md` and `repo/FORMAT.md`.

pub mod backend;
pub mod cancel;
pub mod cbor;
pub mod certificate;
pub mod chunker;
pub mod crypto;
pub mod descriptor;
pub mod entropy;
pub mod error;
pub mod features;
pub mod id;
pub mod key_slot;
pub mod keys;
pub mod sealed;
pub mod time;
pub mod window;
pub mod zero;

pub use error::{Error, Kind, Result};

#[cfg(test)]
mod vectors;
