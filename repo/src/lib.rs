//! Coffer's repository: see `ARCHITECTURE.md` and `repo/FORMAT.md`.

pub mod backend;
pub mod cancel;
pub mod cbor;
pub mod certificate;
pub mod chunker;
pub mod crypto;
mod cursor;
pub mod descriptor;
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
pub mod pack;
pub mod seal;
pub mod sealed;
pub mod time;
pub mod window;
pub mod zero;

pub use error::{Error, Kind, Result};
