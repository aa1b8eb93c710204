//! Coffer's repository: see `ARCHITECTURE.md` and `repo/FORMAT.md`.

pub mod backend;
pub mod cancel;
pub mod chunker;
pub mod entropy;
pub mod error;
pub mod id;
pub mod time;
pub mod window;
pub mod zero;

pub use error::{Error, Kind, Result};
