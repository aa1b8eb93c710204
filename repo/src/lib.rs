//! Coffer's repository: see `ARCHITECTURE.md` and `repo/FORMAT.md`.

pub mod backend;
pub mod cancel;
pub mod cbor;
pub mod certificate;
pub mod crypto;
mod cursor;
pub mod entropy;
pub mod error;
pub mod id;
#[cfg(feature = "index")]
pub mod index;
pub mod index_delta;
pub mod key_slot;
pub mod keys;
pub mod location;
pub mod pack;
pub mod seal;
pub mod sealed;
pub mod time;
pub mod window;

pub use error::{Error, Kind, Result};
