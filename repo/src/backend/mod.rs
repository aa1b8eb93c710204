//! The seam to storage: named, immutable objects in a flat namespace with `/` in their names.
//!
//! Not here: what the objects mean, retries (a wrapper's matter), encryption. Synchronous on purpose: a backend that speaks
//! to sockets keeps a private runtime and blocks on it.
//!
//! The contract, run over every implementation by `tests/backend_contract.rs`:
//! - Names: one or more non-empty parts of `[a-z0-9A-Z._=+-]`, joined by `/`; no part is `.` or `..`.
//! - [`Backend::put`] is atomic, create-only and durable on return: a reader sees all bytes or no object; of several puts
//!   under one name exactly one answers [`Put::Created`]. A crash leaves the whole object or none.
//! - [`Backend::get`] is exact or an error: never short, never padded. A missing object is `NotFound`; a range beyond the
//!   object's end is `Corrupt` (whoever asks knows the length from an authenticated source).
//! - [`Backend::list`] reports every object under the prefix whose put returned before the call began (stores that cannot
//!   promise that are weak: see `design`), in no particular order, and never a half-written one.
//! - [`Backend::delete`] of a missing object succeeds.

use crate::error::Result;
use std::fmt;

/// What a [`Backend::put`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Put {
    /// The object did not exist and is now durable.
    Created,
    /// The name was taken; nothing was changed. Whether the bytes are the same is for the caller to find out.
    Exists,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The object's whole name.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
}

/// A store of immutable objects. The contract is the module's header.
pub trait Backend: Send + Sync + fmt::Debug {
    /// Where this is, for people: a path or a URL without secrets.
    fn location(&self) -> String;

    /// Creates `name` from `parts` laid end to end, durably, unless it exists.
    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put>;

    /// The whole object.
    fn get(&self, name: &str) -> Result<Vec<u8>>;

    /// Exactly `out.len()` bytes from byte `offset` on.
    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()>;

    /// The last `max` bytes of the object, or all of it when it is shorter, and the object's whole length.
    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)>;

    /// The object's length, `None` when it does not exist.
    fn size(&self, name: &str) -> Result<Option<u64>>;

    /// Calls `each` for every object whose name begins with `prefix` (empty, or ending in `/`). `each` may stop the listing
    /// by returning an error, which is passed on.
    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()>;

    /// Removes the object if it is there.
    fn delete(&self, name: &str) -> Result<()>;
}

/// All objects under `prefix`, sorted by name. For listings known to be small; packs are listed with the callback.
pub fn list_sorted(backend: &dyn Backend, prefix: &str) -> Result<Vec<Listed>> {
    let mut all = Vec::new();
    backend.list(prefix, &mut |o| {
        all.push(o);
        Ok(())
    })?;
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}
