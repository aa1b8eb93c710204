//! Carries one data pack from one store to another.
//!
//! ```text
//!   GET whole -> header, table of contents, every frame's tag and id -> PUT there -> its size there -> lock as here
//!     -> is it still wanted there? -> DELETE here
//! ```
//!
//! Not here: which packs. What holds: nothing goes here before all of it was proven and lies there, locked for as long as it is here;
//! what is there already, by an attempt that ended half-way or by somebody else at the same time, is compared if it can be read; what was put there is never
//! taken back, since another one may have relied on it and removed the pack here. Nobody goes the other way meanwhile ([`super::turn`]).

use super::{TransferOptions, locks_of};
use crate::backend::lock::ObjectLock;
use crate::backend::{Backend, Put};
use crate::error::{Error, Kind, Result};
use crate::id::PackUid;
use crate::location::{PackKind, Stored};
use crate::pack::{self, Entry};
use crate::repository::Repository;
use crate::seal::Decompressor;
use crate::time::Timestamp;

/// What became of a pack.
pub(super) enum Outcome {
    /// It lies there, and no more here.
    Moved,
    /// It lies there, and here as well, since this place keeps it.
    Doubled,
    /// It is locked here, and cannot be there: it stayed.
    Unlockable,
    /// It stayed, since it is about to be removed. A copy may lie there, which the next collection removes.
    Condemned,
    /// It stayed, since it is damaged, or what lies there under its name is.
    Damaged(Error),
    /// It lies here no more.
    Gone,
}

/// What a thread keeps for itself.
pub(super) struct Scratch {
    sealed: Vec<u8>,
    plain: Vec<u8>,
    decompressor: Decompressor,
}

impl Scratch {
    pub(super) fn new() -> Result<Self> {
        Ok(Scratch { sealed: Vec::new(), plain: Vec::new(), decompressor: Decompressor::new()? })
    }
}

/// From where, to where.
pub(super) struct Transfer<'a> {
    repo: &'a Repository,
    from: &'a dyn Backend,
    to: &'a dyn Backend,
    from_lock: Option<&'a dyn ObjectLock>,
    to_lock: Option<&'a dyn ObjectLock>,
    /// Asked once a pack lies there, before it goes here.
    goes_on: &'a (dyn Fn(PackUid) -> Result<bool> + Sync),
    now: Timestamp,
}

impl<'a> Transfer<'a> {
    pub(super) fn new(
        repo: &'a Repository,
        from: &'a dyn Backend,
        to: &'a dyn Backend,
        goes_on: &'a (dyn Fn(PackUid) -> Result<bool> + Sync),
        options: &TransferOptions,
    ) -> Result<Self> {
        let (from_lock, to_lock) = (locks_of(from)?, locks_of(to)?);
        Ok(Transfer { repo, from, to, from_lock, to_lock, goes_on, now: options.now })
    }

    /// Carries a pack over.
    pub(super) fn carry(&self, uid: PackUid, scratch: &mut Scratch) -> Result<Outcome> {
        let name = pack::name(PackKind::Data, uid);
        let locked = match self.locked_until(&name) {
            Err(e) if e.kind() == Kind::NotFound => return Ok(Outcome::Gone),
            locked => locked?,
        };
        if locked.is_some() && self.to_lock.is_none() {
            return Ok(Outcome::Unlockable);
        }
        let bytes = match self.from.get(&name) {
            Err(e) if e.kind() == Kind::NotFound => return Ok(Outcome::Gone),
            bytes => bytes?,
        };
        match check(self.repo, uid, &bytes, scratch) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::WrongKey | Kind::Unsupported) => {
                return Ok(Outcome::Damaged(e.within(name)));
            }
            Err(e) => return Err(e),
        }
        if self.to.put(&name, &[&bytes])? == Put::Exists {
            match self.to.get(&name) {
                Ok(there) if there == bytes => {}
                Ok(_) => {
                    let why =
                        format!("{name} lies in {} already, with other bytes; delete it there", self.to.location());
                    return Ok(Outcome::Damaged(Error::corrupt(why)));
                }
                // Whether it can be read is seen when it is thawed; or a collector was faster.
                Err(e) if matches!(e.kind(), Kind::Frozen | Kind::NotFound) => {}
                Err(e) => return Err(e),
            }
        }
        match self.to.size(&name)? {
            Some(len) if len == bytes.len() as u64 => {}
            Some(len) => {
                let why = format!("{name} has {len} bytes in {}, and {} are due", self.to.location(), bytes.len());
                return Err(Error::corrupt(why));
            }
            // A collector was faster.
            None => return Ok(Outcome::Condemned),
        }
        if let (Some(until), Some(lock)) = (locked, self.to_lock)
            && lock.locked_until(&name)? < Some(until)
        {
            lock.lock(&name, until).map_err(|e| e.within(format_args!("locking '{name}' until {until}")))?;
        }
        if !(self.goes_on)(uid)? {
            return Ok(Outcome::Condemned);
        }
        match self.from.delete(&name) {
            Ok(()) => Ok(Outcome::Moved),
            Err(e) if e.kind() == Kind::Retained => Ok(Outcome::Doubled),
            Err(e) => Err(e),
        }
    }

    /// Until when the pack is locked here, unless that is past. A clock of ours that is ahead gets nothing removed: the store's own decides.
    fn locked_until(&self, name: &str) -> Result<Option<Timestamp>> {
        match self.from_lock {
            None => Ok(None),
            Some(lock) => Ok(lock.locked_until(name)?.filter(|until| *until > self.now)),
        }
    }
}

/// Sees that `bytes` are the whole pack and that every frame in it is the chunk that it is said to be.
fn check(repo: &Repository, uid: PackUid, bytes: &[u8], scratch: &mut Scratch) -> Result<()> {
    let open = repo.open_pack_of(PackKind::Data, uid, bytes)?;
    let longest = repo.chunk_max();
    for Entry { stored, location } in pack::contents_of(repo.keys(), PackKind::Data, uid, bytes)? {
        let wrong = || Error::corrupt(format!("what lies at offset {} is not {stored}", location.offset));
        let range = usize::try_from(location.offset).ok().zip(usize::try_from(location.end()).ok());
        let sealed = range.and_then(|(start, end)| bytes.get(start..end)).ok_or_else(wrong)?;
        if location.raw_len > longest {
            return Err(Error::corrupt(format!("a chunk of {} bytes", location.raw_len)));
        }
        let Scratch { sealed: copy, plain, decompressor } = scratch;
        copy.clear();
        copy.extend_from_slice(sealed);
        let (codec, packed) = open.open_frame(&location, copy)?;
        decompressor.decompress(codec, packed, location.raw_len, plain)?;
        if stored != Stored::Chunk(repo.keys().id_key().chunk_id(plain)) {
            return Err(wrong());
        }
    }
    Ok(())
}
