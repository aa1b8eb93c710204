//! Coffer's repository: see `ARCHITECTURE.md` and `repo/FORMAT.md`.

pub mod backend;
pub mod cbor;
pub mod crypto;
pub mod entropy;
pub mod error;
pub mod id;

pub use error::{Error, Kind, Result};
