//! The seam to a store's locks against removal, as S3 calls them object lock: until its date nobody removes an object, whoever he is.
//!
//! ```text
//!   put a ──> version 1 ── lock a until D ──> delete a: Retained, while the store's clock is before D
//!   anybody else's DELETE of the bare name ──> [marker] version 1      hidden: gets and lists do not show it, and it is there
//!   anybody else's PUT of the name         ──> version 2  version 1    replaced: gets show other bytes
//!                                 reveal a ──> version 1
//! ```
//!
//! Not here: what is to be locked and for how long ([`crate::locks`], [`crate::writer`]). What holds of every implementation:
//! - A lock can be made longer and never shorter, by nobody: S3's compliance mode, and no other counts.
//! - The store's own clock decides when a lock ends. A clock of ours that is wrong makes locks longer or shorter than was meant, or has
//!   them refused; nothing that a lock holds goes before the date that the store has.
//! - [`Backend::delete`](super::Backend::delete) of a locked object fails with `Retained` and changes nothing; of any other it frees its
//!   space: it removes all versions of the name, and puts no marker over them.
//! - What hides an object is somebody else's doing, since nothing here writes a name twice: the oldest version that is
//!   locked is the object, or the oldest where none is. (Of puts that race, stores may keep what those put who came too late.)

use crate::error::Result;
use crate::time::Timestamp;

/// A store whose objects can be locked.
pub trait ObjectLock: Send + Sync {
    /// Fails (`Unsupported`, with the way out) unless objects can be locked in this very place.
    fn check(&self) -> Result<()>;

    /// Locks `name` until `until`; a later date that it has already stays. `NotFound` when there is no such object; `Invalid` for a date
    /// that the store does not take, as one in the past.
    fn lock(&self, name: &str, until: Timestamp) -> Result<()>;

    /// Until when `name` is locked in compliance mode, be that in the past; `None`: it never was. `NotFound` when there is no such object.
    fn locked_until(&self, name: &str) -> Result<Option<Timestamp>>;

    /// What keeps `name` from being removed now, by the store's own clock; `None`: nothing. `NotFound` when there is no such object.
    fn kept(&self, name: &str) -> Result<Option<Kept>>;

    /// Calls `each` for every object whose name begins with `prefix` (empty, or ending in `/`) and that something hides.
    fn each_hidden(&self, prefix: &str, each: &mut dyn FnMut(Hidden) -> Result<()>) -> Result<()>;

    /// Removes whatever hides `name`. `Retained` when that is locked itself.
    fn reveal(&self, name: &str) -> Result<()>;
}

/// Why a store keeps an object: a lock in whatever mode, or a legal hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Until when; `None`: until somebody says otherwise.
    pub until: Option<Timestamp>,
}

/// An object that is there and does not show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// The object's whole name.
    pub name: String,
    /// What hides it.
    pub by: Hiding,
}

/// What hides an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hiding {
    /// A delete marker: it seems not to exist.
    Marker,
    /// Another version: it seems to have other bytes.
    Version,
}
