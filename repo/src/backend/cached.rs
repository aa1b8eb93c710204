//! A store with a cache on this machine's disk in front of it: what was read of packs once is read from there.
//!
//! ```text
//!   get_range -> inflow   is it being fetched, or not written yet?      -> wait for it, or take it
//!             -> shelf    does it lie on the disk, and is it whole?      -> take it
//!             -> store    the missing pieces of 256 KiB, one GET for neighbours
//!                   \--> inflow -> scribe -> room (budget) -> shelf      on a thread of its own, or not at all
//! ```
//! The bytes are those of the store: sealed frames. Nothing here is ever needed: the folder may be deleted at any moment, by
//! anybody, as may any file of it; what a crash tears, or a disk garbles, is found by its checksum and fetched again.
//!
//! Any number of processes share a folder. They share no memory and wait for no lock: an object never changes, so that whoever
//! writes a block writes the same bytes in the same place (`shelf.rs`).
//!
//! Not here: what the bytes mean. Reading proves them, and whoever finds that they are not what was put says so
//! ([`Backend::doubt`]): then they leave the cache, and the store is asked again. Listings, sizes, suffixes, whole objects, puts
//! and deletions go to the store: so does whoever wants to know whether something exists, or is sound (collectors and
//! verification do not use a cache). An object that was deleted by others may be read from here for as long as it lies here.
//!
//! What holds: no read fails, or waits for the disk to be written, because of the cache; a piece that several readers of this
//! process miss at once is fetched once; memory is what is being fetched and [`UNWRITTEN`] bytes; the folder's size is the budget
//! and some slack (`room.rs`).

mod inflow;
mod recency;
mod room;
mod scribe;
mod shelf;

use super::archive::Archive;
use super::lock::ObjectLock;
use super::tiered::Tiered;
use super::{Backend, Listed, Put};
use crate::error::{Error, Kind, Result};
use crate::location::PackKind;
use crate::store_class::StoreClass;
use inflow::{Fetch, Fetched, Inflow, Ours};
use quick_cache::sync::Cache;
pub use room::{Usage, clear, slack, usage};
use scribe::Scribe;
use shelf::{PIECE, Place, Shelf};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes that were fetched and may wait to be written. What comes beyond them is not kept.
pub const UNWRITTEN: u64 = 32 << 20;
/// Of how many objects the length is remembered.
const LENGTHS: usize = 16_384;

/// What becomes of bytes that the cache does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intake {
    /// They are fetched with what lies around them, and kept.
    Keep,
    /// They are fetched and not kept: for whoever reads much and everything once, as a restore does.
    Pass,
}

/// Where a cache lies and what it may take.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// Its folder, which is made when the first bytes are kept. It must be this cache's alone, and one repository's.
    pub folder: PathBuf,
    /// Bytes on the disk that all processes together may take, but for [`slack`].
    pub budget_bytes: u64,
    /// What becomes of bytes that it does not have.
    pub intake: Intake,
}

/// A store behind a cache.
pub struct Cached {
    store: Arc<dyn Backend>,
    intake: Intake,
    shelf: Arc<Shelf>,
    inflow: Arc<Inflow>,
    scribe: Scribe,
    /// Lengths of objects of which something was fetched.
    lengths: Cache<u64, u64>,
}

impl Cached {
    /// Puts a cache before `store`. Nothing is read or written yet. `tell` hears, once and from any thread, why the cache keeps
    /// nothing more, or less than it may: that it cannot be written, or that its disk is full.
    pub fn new(
        store: Arc<dyn Backend>,
        options: CacheOptions,
        tell: impl Fn(&Error) + Send + Sync + 'static,
    ) -> Result<Cached> {
        let CacheOptions { folder, budget_bytes, intake } = options;
        let (shelf, inflow) = (Arc::new(Shelf::new(folder.clone())), Arc::new(Inflow::default()));
        let room = room::Room::new(folder, budget_bytes);
        let scribe = Scribe::start(Arc::clone(&shelf), Arc::clone(&inflow), room, Box::new(tell))?;
        Ok(Cached { store, intake, shelf, inflow, scribe, lengths: Cache::new(LENGTHS) })
    }

    /// Waits until everything that was fetched so far is written, or given up.
    pub fn settle(&self) {
        self.scribe.settle();
    }

    /// Fills `out` from what is here or on its way and fetches what is missing. `Ok(false)`: the store has to be asked for just
    /// this range, either because it does not end where the object does or because a fetch that was relied on failed.
    fn read(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<bool> {
        let place = self.shelf.place(name);
        let pieces = shelf::pieces(offset, out.len());
        let mut coming = self.inflow.find(name, &pieces);
        let missing = self.shelf.read(&place, offset, out, |piece| coming.iter().any(|f| f.pieces().contains(&piece)));
        if !missing.is_empty() {
            if self.intake == Intake::Pass {
                return Ok(false);
            }
            let (ours, others) = self.inflow.register(name, &missing);
            coming.extend(others);
            for fetch in ours {
                coming.push(self.fetch(&place, fetch)?);
            }
        }
        Ok(coming.iter().all(|fetch| fetch.copy(offset, out)))
    }

    /// Fetches the pieces of `ours` and hands them to whoever waits, and to the scribe.
    fn fetch(&self, place: &Place, ours: Ours<'_>) -> Result<Arc<Fetch>> {
        let fetched = self.fetch_pieces(place, &ours)?;
        let fetch = ours.here(fetched);
        self.scribe.take(&fetch);
        Ok(fetch)
    }

    /// The bytes of whole pieces, which end where the object ends. The first fetch of an object tells its length, so that no later one
    /// reaches beyond it; for tree packs, which are mostly shorter than a piece, it is asked for before.
    fn fetch_pieces(&self, place: &Place, ours: &Ours<'_>) -> Result<Fetched> {
        let (name, start, end) = (ours.name(), ours.pieces().start * PIECE, ours.pieces().end * PIECE);
        let long = |end: u64| end.checked_sub(start).and_then(|len| usize::try_from(len).ok()).filter(|len| *len > 0);
        let beyond = || Error::corrupt(format!("'{name}' ends before byte {start}"));
        let learn = |len: u64| self.lengths.insert(place.hash(), len);
        let mut known = self.lengths.get(&place.hash());
        if known.is_none() && name.starts_with(PackKind::Tree.prefix()) {
            known = self.store.size(name)?.inspect(|len| learn(*len));
        }
        let (bytes, len) = match known {
            Some(len) => {
                let mut bytes = vec![0; long(len.min(end)).ok_or_else(beyond)?];
                self.store.get_range(name, start, &mut bytes)?;
                (bytes, len)
            }
            None => self.store.get_up_to(name, start, long(end).ok_or_else(beyond)?).inspect(|(_, len)| learn(*len))?,
        };
        Ok(Fetched { bytes, is_end: len <= end })
    }
}

/// Whether ranges of this object are kept: those of packs, whose names are never used twice.
fn is_kept(name: &str) -> bool {
    PackKind::ALL.iter().any(|kind| name.starts_with(kind.prefix()))
}

impl fmt::Debug for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cached({:?})", self.store)
    }
}

impl Backend for Cached {
    fn location(&self) -> String {
        self.store.location()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        self.store.put(name, parts)
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.store.get(name)
    }

    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        let has_end = offset.checked_add(out.len() as u64).is_some_and(|end| end <= shelf::LONGEST);
        if !is_kept(name) || out.is_empty() || !has_end || !self.shelf.is_trusted() {
            return self.store.get_range(name, offset, out);
        }
        match self.read(name, offset, out) {
            Ok(true) => Ok(()),
            // The store knows best how to say that a range is beyond the end, and may have an answer to what was too much.
            Ok(false) => self.store.get_range(name, offset, out),
            Err(e) if e.kind() == Kind::Corrupt => self.store.get_range(name, offset, out),
            Err(e) => Err(e),
        }
    }

    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        self.store.get_suffix(name, max)
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        self.store.size(name)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        self.store.list(prefix, each)
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.store.delete(name)?;
        if is_kept(name) {
            // What is fetched from now on is not found. What was on its way must not be written after this returned.
            let place = self.shelf.place(name);
            self.inflow.void(name, &(0..u64::MAX));
            self.scribe.settle();
            self.lengths.remove(&place.hash());
            self.shelf.remove(&place);
        }
        Ok(())
    }

    fn weakness(&self) -> Option<(StoreClass, String)> {
        self.store.weakness()
    }

    fn object_lock(&self) -> Option<&dyn ObjectLock> {
        self.store.object_lock()
    }

    fn archive(&self) -> Option<&dyn Archive> {
        self.store.archive()
    }

    fn tiers(&self) -> Option<&Tiered> {
        self.store.tiers()
    }

    fn doubt(&self, name: &str, offset: u64, len: u64) -> bool {
        let Ok(len) = usize::try_from(len) else { return false };
        if !is_kept(name) || len == 0 || offset.checked_add(len as u64).is_none_or(|end| end > shelf::LONGEST) {
            return false;
        }
        let was_coming = self.inflow.void(name, &shelf::pieces(offset, len));
        self.scribe.settle();
        let was_there = self.shelf.erase(&self.shelf.place(name), offset, len);
        self.store.doubt(name, offset, len as u64) || was_coming || was_there
    }
}
