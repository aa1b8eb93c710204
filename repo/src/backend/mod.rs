//! The seam to storage: named, immutable objects in a flat namespace with `/` in their names.
//!
//! Not here: what the objects mean, retries (a wrapper's matter), encryption. Synchronous on purpose: a backend that speaks
//! to sockets keeps a private runtime and blocks on it.
//!
//! The contract, run over every implementation by `tests/backend_contract.rs`:
//! - Names are those that [`check_name`] lets through; any other is `Invalid`. No object's name is the beginning of another's
//!   followed by `/`: a store of files cannot hold both `a` and `a/b`.
//! - [`Backend::put`] is atomic, create-only and durable on return: a reader sees all bytes or no object; of several puts
//!   under one name exactly one answers [`Put::Created`]. A crash leaves the whole object or none. After a put that failed
//!   the object may be there or not (an acknowledgement can be lost), but never a part of it.
//! - [`Backend::get`] is exact or an error: never short, never padded. A missing object is `NotFound`; a range beyond the
//!   object's end is `Corrupt` (whoever asks knows the length from an authenticated source).
//! - [`Backend::list`] reports every object under the prefix whose put returned before the call began (stores that cannot
//!   promise that are weak), in no particular order, and never a half-written one. No lock is held while the callback runs:
//!   it may call the backend.
//! - What a store cannot promise of that a probe finds out, as far as it shows ([`crate::probe`]); `put` may then answer `Created` to
//!   several, and listings and reads lag. Nothing else of the contract may be missing.
//! - [`Backend::delete`] is durable on return, and of a missing object succeeds: what is deleted next, and may explain what
//!   was deleted now, never goes first.

pub mod address;
pub mod archive;
pub mod cached;
pub mod faulty;
pub mod local;
pub mod lock;
pub mod memory;
#[cfg(feature = "object-stores")]
pub mod object;
pub mod schedule;
pub mod secrets;
pub mod tiered;
pub mod vault;

use crate::entropy::Entropy;
use crate::error::{Error, Result};
use crate::store_class::StoreClass;
use address::Address;
use archive::Archive;
use local::Local;
use lock::ObjectLock;
use schedule::MinuteOfDay;
use secrets::Secrets;
use std::fmt;
use std::sync::Arc;
use tiered::Tiered;

/// Longest name, in bytes.
pub const MAX_NAME: usize = 1024;
/// Longest part of a name, in bytes: what file systems take as a file's name.
pub const MAX_PART: usize = 255;
/// Most parts of a name. Bounds how deep a listing descends.
pub const MAX_PARTS: usize = 8;
/// The first part that no object's name has: where a store of files keeps what is not yet an object.
pub const RESERVED_PART: &str = "tmp";

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

    /// The bytes from `offset` on, `max` of them (at least one) or as many as there are, and the object's whole length. `Corrupt` when
    /// that is less than `offset`.
    fn get_up_to(&self, name: &str, offset: u64, max: usize) -> Result<(Vec<u8>, u64)> {
        let length = self.size(name)?.ok_or_else(|| Error::not_found(format!("there is no object '{name}'")))?;
        let left = length.checked_sub(offset);
        let left = left.ok_or_else(|| Error::corrupt(format!("'{name}' ends before byte {offset}")))?;
        let mut bytes = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(max)];
        self.get_range(name, offset, &mut bytes)?;
        Ok((bytes, length))
    }

    /// The object's length, `None` when it does not exist.
    fn size(&self, name: &str) -> Result<Option<u64>>;

    /// Calls `each` for every object whose name begins with `prefix` (empty, or ending in `/`). `each` may stop the listing
    /// by returning an error, which is passed on.
    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()>;

    /// Removes the object if it is there. `Retained` when the store keeps it: it is locked.
    fn delete(&self, name: &str) -> Result<()>;

    /// What is known to be weak about the store, whatever a probe of it finds: the class it has at best, and why, in words. A store
    /// that stands before another one passes its answer on.
    fn weakness(&self) -> Option<(StoreClass, String)> {
        None
    }

    /// What was read of `len` bytes from byte `offset` on is not what was put, as keys and ids tell. A store that keeps copies
    /// nearer than the object lets go of them and answers `true`: reading again may give other bytes.
    fn doubt(&self, _name: &str, _offset: u64, _len: u64) -> bool {
        false
    }

    /// The store's locks, when objects can be locked in stores of this kind. Whoever wraps a store hands on what it has.
    fn object_lock(&self) -> Option<&dyn ObjectLock> {
        None
    }

    /// The store's cold tiers, when stores of this kind have some that objects are thawed from. Whoever wraps a store hands on what it has.
    fn archive(&self) -> Option<&dyn Archive> {
        None
    }

    /// The store with its cold tiers, when it may have some. Whoever wraps a store hands on what it has.
    fn tiers(&self) -> Option<&Tiered> {
        None
    }
}

/// What opening a store takes that an address cannot hold.
#[derive(Clone)]
pub struct Given {
    /// What proves to an object store who we are.
    pub secrets: Secrets,
    /// Random numbers, for the pauses between attempts.
    pub entropy: Arc<dyn Entropy>,
    /// The minute of the day, for limits by the time of day.
    pub minute: MinuteOfDay,
}

/// Opens the store at an address; nothing is written. `NotFound`: the folder does not exist; `Invalid`: what was said about an
/// object store is not complete. Whether an object store is there is seen by the first call.
pub fn open(address: &Address, given: &Given) -> Result<Arc<dyn Backend>> {
    match address {
        Address::Folder(path) => Ok(Arc::new(Local::open(path)?)),
        Address::Object(address) => open_object(address, given),
    }
}

/// The same for a new repository: a folder is made if it does not exist, and a bucket has to be there.
pub fn create(address: &Address, given: &Given) -> Result<Arc<dyn Backend>> {
    match address {
        Address::Folder(path) => Ok(Arc::new(Local::create(path)?)),
        Address::Object(address) => open_object(address, given),
    }
}

#[cfg(feature = "object-stores")]
fn open_object(address: &address::ObjectAddress, given: &Given) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(object::ObjectStore::open(address, given)?))
}

#[cfg(not(feature = "object-stores"))]
fn open_object(address: &address::ObjectAddress, _: &Given) -> Result<Arc<dyn Backend>> {
    Err(Error::new(
        crate::Kind::Unsupported,
        format!("{address}: this program was built without object stores; name a folder"),
    ))
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

/// Refuses a name that the contract does not allow, with [`Kind::Invalid`](crate::error::Kind::Invalid): names have one to
/// [`MAX_PARTS`] parts joined by `/`, each of 1 to [`MAX_PART`] bytes of `[a-z0-9A-Z._=+-]` and neither `.` nor `..`; the first
/// is not [`RESERVED_PART`]; the whole has at most [`MAX_NAME`] bytes. What passes cannot leave the repository's folder.
pub fn check_name(name: &str) -> Result<()> {
    let is_allowed = |c: u8| c.is_ascii_alphanumeric() || b"._=+-".contains(&c);
    let is_part = |part: &str| {
        !part.is_empty() && part.len() <= MAX_PART && part != "." && part != ".." && part.bytes().all(is_allowed)
    };
    let is_name = name.len() <= MAX_NAME
        && name.split('/').count() <= MAX_PARTS
        && name.split('/').all(is_part)
        && name.split('/').next() != Some(RESERVED_PART);
    if is_name { Ok(()) } else { Err(Error::invalid(format!("{name:?} cannot be the name of an object"))) }
}

/// Refuses a listing's prefix that is neither empty nor a name followed by `/`, with
/// [`Kind::Invalid`](crate::error::Kind::Invalid).
pub fn check_prefix(prefix: &str) -> Result<()> {
    if prefix.is_empty() {
        return Ok(());
    }
    match prefix.strip_suffix('/') {
        Some(name) => check_name(name).map_err(|e| e.within("listing")),
        None => Err(Error::invalid(format!("listing: the prefix {prefix:?} does not end in '/'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_held_to_their_limits() {
        for good in [
            "repo",
            "a/b",
            "A.z_=+-9",
            "...",
            "packs/ff/0123",
            "x/tmp",
            "tmpx",
            &"x".repeat(MAX_PART),
            "1/2/3/4/5/6/7/8",
        ] {
            check_name(good).unwrap();
        }
        let bad = [
            "", "/", "/x", "x/", "a//b", ".", "..", "a/../b", "a/.", "tmp", "tmp/x", "a b", "a\0b", "a\nb", "\u{e9}",
            "a\\b", "#1",
        ];
        for bad in bad.into_iter().chain([&*"x".repeat(MAX_PART + 1), "1/2/3/4/5/6/7/8/9", &*"abc/".repeat(300)]) {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn prefixes_are_empty_or_a_name_and_a_slash() {
        for good in ["", "a/", "a/b/"] {
            check_prefix(good).unwrap();
        }
        for bad in ["a", "/", "../", "a//", "tmp/"] {
            assert!(check_prefix(bad).is_err(), "{bad:?}");
        }
    }
}
