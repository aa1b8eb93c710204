//! The local index: is this chunk or node stored, and where? Asked by writers and by garbage collection, never by readers.
//!
//! Derived and disposable: everything in it comes from index deltas or, without them, from the packs' tables of contents; a
//! directory that is damaged or belongs to another repository is emptied and learnt anew. Its answers are hints: a writer
//! checks before it commits that the packs it relies on exist, and a reader checks every byte.
//!
//! ```text
//! Index ── folder   which process owns the directory
//!       ├─ store    RocksDB: rows, batches, crash rules
//!       ├─ learner  sync again and again while a backup runs
//!       └─ sync     index deltas and tables of contents -> rows
//! ```
//! One process per host owns the database; another one that opens the same directory, a *guest*, sees what the owner has
//! flushed and keeps what it learns itself in a private database that goes with it. A guest goes on with its last view when
//! the owner dies or throws the database away.
//!
//! What holds: all methods take `&self` and may be called from any thread; looking up takes no lock; memory is bounded by
//! [`IndexOptions`] plus 16 bytes for every pack a guest has dropped.

mod folder;
mod learner;
mod store;
mod sync;

pub use learner::{LEARN_EVERY, Learner, LearnerOptions};
pub use store::MemoryBudget;
pub use sync::{Progress, SyncReport};

use crate::error::{Error, Kind, Result};
use crate::id::{PackUid, RepoId, SignerId};
use crate::index_delta::{IndexDelta, PackEntries};
use crate::location::{Location, Stored};
use folder::Folder;
use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use store::{Access, Store};

/// How an index is opened.
#[derive(Clone, Copy, Debug)]
pub struct IndexOptions {
    /// Memory of the database. A guest has two databases, and so up to twice as much.
    pub memory: MemoryBudget,
    /// How many objects are fetched at a time while learning.
    pub fetchers: usize,
}

impl Default for IndexOptions {
    fn default() -> Self {
        IndexOptions { memory: MemoryBudget { block_cache: 64 << 20, write_buffers: 32 << 20 }, fetchers: 8 }
    }
}

/// Whose packs a writer relies on for content that it does not upload itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Those of every certified writer.
    Anyone,
    /// Those that these signed: the writer itself and the authority, as a rule.
    Only(BTreeSet<SignerId>),
}

impl Trust {
    fn covers(&self, signer: &SignerId) -> bool {
        match self {
            Trust::Anyone => true,
            Trust::Only(signers) => signers.contains(signer),
        }
    }
}

/// The local index of one repository.
pub struct Index {
    // In this order: the databases close before the folder is let go.
    own: Store,
    shared: Option<Shared>,
    folder: Folder,
    options: IndexOptions,
    discarded: Option<Error>,
}

/// What a guest sees of the owner's database.
struct Shared {
    view: Store,
    /// Whose view it is: RocksDB would follow another database at the same path and mix the two up.
    identity: Vec<u8>,
    /// Set when that has happened all the same.
    mixed_up: AtomicBool,
    /// Packs that are gone but that the view still has.
    dropped: Mutex<HashSet<PackUid>>,
}

impl Index {
    /// Opens the index of `repo` in `dir`, which belongs to this repository alone, as its owner or as a guest. What is unusable
    /// there is thrown away; [`discarded`](Self::discarded) says so. Nothing is learnt yet: that is [`sync`](Self::sync).
    pub fn open(dir: &Path, repo: RepoId, options: IndexOptions) -> Result<Self> {
        let folder = Folder::take(dir)?;
        let (own, shared, discarded) = match folder.private() {
            None => {
                let (own, discarded) = open_owned(&folder, repo, options)?;
                (own, None, discarded)
            }
            Some(private) => {
                let own = private.join("own");
                let own = Store::open(&own, repo, options.memory, private.join("damaged"), &Access::Create)?;
                let access = Access::View(&private.join("view"));
                // An owner that is just creating or replacing its database, or whose database is damaged, leaves nothing to
                // see: the guest then learns everything itself.
                let identity = store::identity(&folder.database());
                let view = Store::open(&folder.database(), repo, options.memory, folder.damage_mark(), &access).ok();
                let unchanged = identity == store::identity(&folder.database());
                let shared = view.zip(identity).filter(|_| unchanged).map(|(view, identity)| Shared {
                    view,
                    identity,
                    mixed_up: AtomicBool::new(false),
                    dropped: Mutex::default(),
                });
                (own, shared, None)
            }
        };
        Ok(Index { own, shared, folder, options, discarded })
    }

    /// Throws away what is in `dir`, so that the next [`open`](Self::open) begins anew. `Locked` while a process owns it.
    pub fn discard(dir: &Path) -> Result<()> {
        let folder = Folder::take(dir)?;
        if folder.private().is_some() {
            return Err(Error::new(
                Kind::Locked,
                format!("the index in {} is in use; end the other coffer first", dir.display()),
            ));
        }
        if folder.database().exists() {
            folder::remove_dir(&folder.set_aside()?)?;
        }
        folder::remove_file(&folder.damage_mark())
    }

    /// Why the content found when opening was thrown away, if it was.
    #[must_use]
    pub fn discarded(&self) -> Option<&Error> {
        self.discarded.as_ref()
    }

    /// Whether its owner found it damaged since it was opened: opened again, it is thrown away and begins anew.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        !self.is_guest() && self.folder.damage_mark().exists()
    }

    /// Whether this process is a guest beside the owner.
    #[must_use]
    pub fn is_guest(&self) -> bool {
        self.folder.private().is_some()
    }

    /// Where `stored` lies: of the places in packs whose signer is trusted the one learnt first.
    pub fn lookup(&self, stored: &Stored, trust: &Trust) -> Result<Option<Location>> {
        let mut found = None;
        self.places(stored, &mut |signer, location| {
            if trust.covers(signer) {
                found = Some(location);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// Everywhere `stored` lies, whoever put it there: for garbage collection and healing, which read and check.
    pub fn holders(&self, stored: &Stored) -> Result<Vec<Location>> {
        let mut found = Vec::new();
        // A guest may have learnt itself what its view shows meanwhile.
        let mut seen = HashSet::new();
        self.places(stored, &mut |_, location| {
            if seen.insert(location) {
                found.push(location);
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    fn places(&self, stored: &Stored, each: &mut dyn FnMut(&SignerId, Location) -> ControlFlow<()>) -> Result<()> {
        let mut broken = false;
        if let Some((shared, view)) = self.shared.as_ref().and_then(|s| Some((s, s.view()?))) {
            let mut gone = Ok(());
            view.places(stored, &mut |pack, location| {
                match shared.dropped.lock() {
                    Ok(dropped) if dropped.contains(&pack.uid) => return ControlFlow::Continue(()),
                    Ok(_) => {}
                    Err(_) => gone = Err(Error::internal("a thread died while dropping packs")),
                }
                let flow = each(&pack.signer, location);
                broken = flow.is_break();
                flow
            })?;
            gone?;
        }
        if broken {
            return Ok(());
        }
        self.own.places(stored, &mut |pack, location| each(&pack.signer, location))
    }

    /// Learns packs that are durable but that no index delta names yet.
    pub fn record(&self, packs: &[PackEntries]) -> Result<()> {
        self.own.record(packs)
    }

    /// Learns the delta that this process has just published as `name`, and makes it durable and visible to guests.
    pub fn published(&self, name: &str, delta: &IndexDelta) -> Result<()> {
        self.own.ingest(name, delta)?;
        self.own.flush()
    }

    /// Lets go of packs that were found missing or were deleted, so that nobody relies on them.
    pub fn drop_packs(&self, uids: &[PackUid]) -> Result<()> {
        if let Some(shared) = &self.shared {
            let mut dropped =
                shared.dropped.lock().map_err(|_| Error::internal("a thread died while dropping packs"))?;
            dropped.extend(uids);
        }
        self.own.drop_packs(uids)?;
        self.own.flush()
    }
}

impl Shared {
    /// The view, unless it cannot be relied on.
    fn view(&self) -> Option<&Store> {
        (!self.mixed_up.load(Ordering::Acquire)).then_some(&self.view)
    }

    /// Sees what the owner has flushed. `Unavailable` when the owner has replaced the database at `path`: the view then stays as
    /// it is, or, when the replacement came in between, is given up.
    fn catch_up(&self, path: &Path) -> Result<()> {
        let replaced = || store::identity(path).as_ref() != Some(&self.identity);
        let reason = || Error::new(Kind::Unavailable, "the owner of the index has replaced it");
        if replaced() {
            return Err(reason());
        }
        let caught_up = self.view.catch_up();
        if replaced() {
            self.mixed_up.store(true, Ordering::Release);
            return Err(reason());
        }
        caught_up
    }
}

/// Opens the owner's database; one that does not open, or not as this repository's, is replaced by an empty one.
fn open_owned(folder: &Folder, repo: RepoId, options: IndexOptions) -> Result<(Store, Option<Error>)> {
    let path = folder.database();
    let open = |access| Store::open(&path, repo, options.memory, folder.damage_mark(), &access);
    if !path.exists() {
        return Ok((open(Access::Create)?, None));
    }
    let reason = if folder.damage_mark().exists() {
        Error::corrupt("an earlier run found the index damaged")
    } else {
        match open(Access::Existing) {
            Ok(store) => return Ok((store, None)),
            Err(reason) => reason,
        }
    };
    // RocksDB's errors do not tell a missing file from a full disk. What tells them is whether an empty database opens in its
    // place; if not, the old one is put back, for the fault lies elsewhere.
    let aside = folder.set_aside()?;
    match open(Access::Create) {
        Ok(store) => {
            folder::remove_dir(&aside)?;
            folder::remove_file(&folder.damage_mark())?;
            Ok((store, Some(reason)))
        }
        Err(e) => {
            folder::remove_dir(&path)?;
            std::fs::rename(&aside, &path).map_err(|e| folder::io_error("renaming", &aside, e))?;
            Err(e)
        }
    }
}

#[cfg(test)]
mod tests;
