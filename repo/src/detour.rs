//! How a chunk or node is read that is not, or not whole, where a map says: from where it lies as well, or by parity.
//!
//! ```text
//!   hint -> pack A gone, or the frame damaged
//!             LIST moved/A/ -> a place in B -> read, authenticate, check the id -> bytes
//!                                  not there either: LIST moved/B/ -> a place in C ...
//!             nowhere: all of A and its parity -> repaired in memory -> the frame -> bytes
//! ```
//!
//! Not here: the bytes of records ([`crate::moved`]) and of parity ([`crate::parity`]), the first attempt, what a frame holds.
//! What holds: nothing found on the way is trusted: a frame counts only after whoever asked has authenticated it and checked its
//! id; nothing is written; one search tries at most [`PLACES`] places and reads at most [`RECORDS`] records a pack; what is kept
//! takes [`TABLES`] bytes and, after damage, [`MENDED`] packs; what is remembered of moved records is read again before a search
//! fails, since a collector may have moved things once more. No lock is held over I/O.

use crate::backend::Put;
use crate::cache::Weighed;
use crate::crypto::TAG_LEN;
use crate::disk_map::{Hint, NODE_MAX};
use crate::entropy::fresh;
use crate::error::{Error, Kind, Result};
use crate::id::{PackUid, RecordId};
use crate::location::{IndexKey, Location, PackKind, Stored};
use crate::moved::{self, MAX_LINES, Moved, Relocated};
use crate::pack::OpenPack;
use crate::parity::{self, Parity};
use crate::repository::Repository;
use crate::sealed::ObjectKind;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, UnitWeighter, Weighter};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Places that one search tries.
const PLACES: usize = 32;
/// Records about one pack that are read: a collector merges them, so that more are a writer's mischief.
const RECORDS: usize = 256;
/// How often records are read while a collector changes them.
const PASSES: usize = 3;
/// Bytes of moved records kept: some 100,000 frames.
const TABLES: u64 = 4 << 20;
/// How many packs' keys are kept, and how many packs are known to be gone or past repair.
const PACKS: usize = 1024;
/// How many repaired packs are kept: of 32 MiB as writers make them, [`parity::PACK_MAX`] at most.
const MENDED: u64 = 2;

/// What is done with a frame that may be the one: authenticate, expand, check the id.
pub(crate) type Open<'a, T> = dyn FnMut(&OpenPack, &Location, &mut [u8]) -> Result<T> + 'a;

/// The moved records of one pack, sorted by key.
struct Table(Vec<Relocated>);

impl Table {
    fn of(&self, key: IndexKey) -> impl Iterator<Item = Hint> {
        let first = self.0.partition_point(|line| line.key < key);
        self.0.iter().skip(first).take_while(move |line| line.key == key).map(|line| line.to)
    }
}

impl<K> Weighter<K, Arc<Table>> for Weighed {
    fn weight(&self, _: &K, table: &Arc<Table>) -> u64 {
        (size_of_val(table.0.as_slice()) + size_of::<Table>()) as u64
    }
}

/// How the content of a damaged pack was read all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remedy {
    /// What is needed of it lies elsewhere as well.
    Copies,
    /// It was repaired in memory by its parity, at least in part. Nothing was written: 'heal' does that.
    Parity,
}

/// A pack in memory as it was before it was damaged, if its parity can be believed: its frames tell.
pub(crate) struct Mended {
    bytes: Vec<u8>,
    pub(crate) open: OpenPack,
}

impl Mended {
    /// The bytes of a frame.
    pub(crate) fn frame(&self, at: &Location) -> Option<Vec<u8>> {
        let end = usize::try_from(at.end()).ok()?;
        self.bytes.get(at.offset as usize..end).map(<[u8]>::to_vec)
    }
}

type OnDamage = Box<dyn Fn(&str, Remedy) + Send + Sync>;

/// Finds what does not lie where it should. Shared by everything that reads for one purpose.
pub(crate) struct Detours {
    repo: Arc<Repository>,
    /// Only of packs with records: of the others a record may come at any time.
    tables: Cache<PackUid, Arc<Table>, Weighed>,
    packs: Cache<(PackKind, PackUid), Arc<OpenPack>>,
    /// Packs that do not exist any more. They never come back.
    gone: Cache<PackUid, ()>,
    mended: Cache<(PackKind, PackUid), Arc<Mended>>,
    /// Packs that parity cannot repair.
    hopeless: Cache<PackUid, ()>,
    /// Damaged packs, and what helped so far.
    remedies: Mutex<BTreeMap<(PackKind, PackUid), Remedy>>,
    on_damage: OnceLock<OnDamage>,
    taken: AtomicU64,
}

/// Whether an error has nothing to do with where something lies, so that looking elsewhere is no use.
fn is_final(e: &Error) -> bool {
    matches!(e.kind(), Kind::Cancelled | Kind::Internal | Kind::WrongKey)
}

impl Detours {
    pub(crate) fn new(repo: Arc<Repository>) -> Result<Self> {
        Ok(Detours {
            repo,
            tables: crate::cache::weighed(TABLES, 4096)?,
            packs: Cache::new(PACKS),
            gone: Cache::new(PACKS),
            mended: a_few(MENDED)?,
            hopeless: Cache::new(PACKS),
            remedies: Mutex::default(),
            on_damage: OnceLock::new(),
            taken: AtomicU64::new(0),
        })
    }

    /// Has `tell` called, once a pack and remedy, with the names of damaged packs. The first to ask is served.
    pub(crate) fn on_damage(&self, tell: OnDamage) {
        // Whoever comes second has a reader that somebody else listens to.
        let _ = self.on_damage.set(tell);
    }

    /// What helped against the damage of a pack so far: the costlier remedy if there were two.
    pub(crate) fn remedy(&self, kind: PackKind, pack: PackUid) -> Option<Remedy> {
        self.remedies.lock().unwrap_or_else(PoisonError::into_inner).get(&(kind, pack)).copied()
    }

    pub(crate) fn note(&self, kind: PackKind, pack: PackUid, remedy: Remedy) {
        let news = {
            let mut remedies = self.remedies.lock().unwrap_or_else(PoisonError::into_inner);
            let known = remedies.get(&(kind, pack)).copied();
            remedies.insert((kind, pack), known.map_or(remedy, |known| known.max(remedy)));
            known.is_none_or(|known| known < remedy)
        };
        if let (true, Some(tell)) = (news, self.on_damage.get()) {
            tell(&crate::pack::name(kind, pack), remedy);
        }
    }

    /// Forgets what helped so far: something was healed meanwhile, and other remedies may do now.
    pub(crate) fn reconsider(&self) {
        self.remedies.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether a search found that this pack does not exist.
    pub(crate) fn is_gone(&self, pack: PackUid) -> bool {
        self.gone.get(&pack).is_some()
    }

    /// How often something was found elsewhere.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Relaxed)
    }

    /// Where to look for `stored` first: `at`, unless that pack is known to be gone and it is remembered where this lies now.
    pub(crate) fn shortcut(&self, stored: &Stored, at: &Location) -> Location {
        let moved = || {
            self.gone.get(&at.pack)?;
            self.tables.get(&at.pack)?.of(stored.key()).next()
        };
        moved().map_or(*at, |to| place(to, at.raw_len))
    }

    /// What `open` makes of `stored`, which failed with `e` where it should lie, and what helped. When it is nowhere else either, `e`
    /// it is.
    pub(crate) fn instead<T>(
        &self,
        stored: &Stored,
        at: &Location,
        e: Error,
        open: &mut Open<'_, T>,
    ) -> Result<(T, Remedy)> {
        if is_final(&e) {
            return Err(e);
        }
        let kind = stored.pack_kind();
        let failed = |failed: Error| failed.within(&e);
        if let Some(found) = self.search(stored, at, &mut |place| self.read(kind, place, open)).map_err(failed)? {
            self.taken.fetch_add(1, Relaxed);
            if !self.is_gone(at.pack) {
                match self.repo.backend().size(&crate::pack::name(kind, at.pack)) {
                    Ok(None) => self.gone.insert(at.pack, ()),
                    Ok(Some(_)) | Err(_) => self.note(kind, at.pack, Remedy::Copies),
                }
            }
            return Ok((found, Remedy::Copies));
        }
        // Of a frozen pack parity makes nothing: there is nothing to read and nothing wrong with it.
        if e.kind() == Kind::Frozen {
            return Err(e);
        }
        let mended = self.mended(kind, at.pack).map_err(failed)?;
        let Some((mended, mut frame)) = mended.and_then(|m| m.frame(at).map(|frame| (m, frame))) else { return Err(e) };
        match open(&mended.open, at, &mut frame) {
            Ok(found) => {
                self.taken.fetch_add(1, Relaxed);
                self.note(kind, at.pack, Remedy::Parity);
                Ok((found, Remedy::Parity))
            }
            Err(worse) if is_final(&worse) => Err(worse),
            Err(_) => Err(e),
        }
    }

    /// The pack repaired in memory by its parity; `None` when there is no parity, or not enough, or no pack. An error is not about
    /// the pack.
    pub(crate) fn mended(&self, kind: PackKind, pack: PackUid) -> Result<Option<Arc<Mended>>> {
        if self.hopeless.get(&pack).is_some() {
            return Ok(None);
        }
        let mended = self.mended.get_or_insert_with(&(kind, pack), || match self.mend(kind, pack) {
            Ok(mended) => mended.map(Arc::new).ok_or(None),
            Err(e) => Err(Some(e)),
        });
        match mended {
            Ok(mended) => Ok(Some(mended)),
            Err(None) => {
                self.hopeless.insert(pack, ());
                Ok(None)
            }
            // Parity is an aid: where it cannot be read now, it is no help now.
            Err(Some(e)) if e.kind().is_transient() => Ok(None),
            Err(Some(e)) => Err(e),
        }
    }

    fn mend(&self, kind: PackKind, uid: PackUid) -> Result<Option<Mended>> {
        let store = self.repo.backend();
        let name = crate::pack::name(kind, uid);
        let (Some(pack_len), Some(parity_len)) = (store.size(&name)?, store.size(&parity::name(uid))?) else {
            return Ok(None);
        };
        if parity_len > parity::OBJECT_MAX as u64 {
            return Ok(None);
        }
        let mend = || -> Result<Mended> {
            let object = store.get(&parity::name(uid))?;
            let parity = Parity::decode(kind, uid, &object)?;
            let mut bytes = vec![0; parity.pack_len()];
            for stretch in parity.stretches() {
                let there = usize::try_from(pack_len).unwrap_or(usize::MAX).min(stretch.end);
                if let Some(into) = bytes.get_mut(stretch.start..there) {
                    // What cannot be read is as good as damaged.
                    let _ = store.get_range(&name, stretch.start as u64, into);
                }
            }
            let bytes = parity.repair(bytes)?.bytes;
            Ok(Mended { open: self.repo.open_pack_of(kind, uid, &bytes)?, bytes })
        };
        match mend() {
            Ok(mended) => Ok(Some(mended)),
            Err(e) if matches!(e.kind(), Kind::Cancelled | Kind::Internal | Kind::Unavailable) => Err(e),
            Err(_) => Ok(None),
        }
    }

    /// Tries the places besides `at` where `stored` may lie until `attempt` answers.
    pub(crate) fn search<T>(
        &self,
        stored: &Stored,
        at: &Location,
        attempt: &mut dyn FnMut(&Location) -> Result<T>,
    ) -> Result<Option<T>> {
        let longest = match stored {
            Stored::Chunk(_) => self.repo.chunk_max(),
            Stored::Node(_) => NODE_MAX,
        };
        if at.raw_len > longest {
            return Ok(None);
        }
        let mut search = Search { tried: vec![*at], packs: vec![at.pack], remembered: false, hindrance: None };
        for _ in 0..PASSES {
            let tried = search.tried.len();
            if let Some(found) = self.walk(stored, &mut search, attempt)? {
                return Ok(Some(found));
            }
            // A collector may have moved it on since the records were read: as long as they said something new, they are read again.
            if search.tried.len() == tried && !search.remembered {
                break;
            }
            search.packs.drain(..).for_each(|pack| drop(self.tables.remove(&pack)));
            (search.packs, search.remembered) = (vec![at.pack], false);
        }
        search.hindrance.map_or(Ok(None), Err)
    }

    fn walk<T>(
        &self,
        stored: &Stored,
        search: &mut Search,
        attempt: &mut dyn FnMut(&Location) -> Result<T>,
    ) -> Result<Option<T>> {
        let raw_len = search.tried.first().map_or(0, |at| at.raw_len);
        let mut next = 0;
        while let Some(pack) = search.packs.get(next).copied() {
            next += 1;
            for to in self.table(pack, search)?.of(stored.key()) {
                let at = place(to, raw_len);
                if !search.packs.contains(&at.pack) {
                    search.packs.push(at.pack);
                }
                if search.tried.contains(&at) || u64::from(at.stored_len) > u64::from(raw_len) + TAG_LEN as u64 {
                    continue;
                }
                if search.tried.len() > PLACES {
                    return Ok(None);
                }
                search.tried.push(at);
                match attempt(&at) {
                    Ok(found) => return Ok(Some(found)),
                    Err(e) if is_final(&e) => return Err(e),
                    Err(e) => {
                        let is_later = e.kind().is_transient() || e.kind() == Kind::Frozen;
                        search.hindrance = search.hindrance.take().or(Some(e).filter(|_| is_later));
                    }
                }
            }
        }
        Ok(None)
    }

    fn read<T>(&self, kind: PackKind, at: &Location, open: &mut Open<'_, T>) -> Result<T> {
        let pack = match self.packs.get(&(kind, at.pack)) {
            Some(pack) => pack,
            None => {
                let pack = Arc::new(self.repo.open_pack(kind, at.pack)?);
                self.packs.insert((kind, at.pack), Arc::clone(&pack));
                pack
            }
        };
        let (name, mut sealed) = (crate::pack::name(kind, at.pack), vec![0; at.stored_len as usize]);
        self.repo.believing(&name, u64::from(at.offset), u64::from(at.stored_len), || {
            self.repo.backend().get_range(&name, u64::from(at.offset), &mut sealed)?;
            open(&pack, at, &mut sealed)
        })
    }

    fn table(&self, pack: PackUid, search: &mut Search) -> Result<Arc<Table>> {
        if let Some(table) = self.tables.get(&pack) {
            search.remembered = true;
            return Ok(table);
        }
        let mut lines = self.repo.relocated(pack).map_err(|e| e.within("looking for another copy"))?;
        lines.sort_by_key(|line| line.key);
        let table = Arc::new(Table(lines));
        if !table.0.is_empty() {
            self.tables.insert(pack, Arc::clone(&table));
        }
        Ok(table)
    }
}

/// One search.
struct Search {
    /// The place that a map names first, then those that were tried.
    tried: Vec<Location>,
    /// Packs whose records are looked at, in that order.
    packs: Vec<PackUid>,
    /// Whether records were used that were read for an earlier search.
    remembered: bool,
    /// What kept a place from being read that may be readable later.
    hindrance: Option<Error>,
}

/// A cache of so many values and no more.
fn a_few<K: Eq + std::hash::Hash, V: Clone>(values: u64) -> Result<Cache<K, V>> {
    let options = OptionsBuilder::new()
        .shards(1)
        .estimated_items_capacity(usize::try_from(values).unwrap_or(usize::MAX))
        .weight_capacity(values)
        .build()
        .map_err(|e| Error::internal("making a cache").with_source(e))?;
    Ok(Cache::with_options(options, UnitWeighter, DefaultHashBuilder::default(), DefaultLifecycle::default()))
}

fn place(Hint { pack, offset, stored_len }: Hint, raw_len: u32) -> Location {
    Location { pack, offset, stored_len, raw_len }
}

impl Repository {
    /// Says where frames of `pack` lie now, or lie as well, for those who follow a map that leads there.
    pub fn put_relocated(&self, pack: PackUid, lines: &[Relocated]) -> Result<()> {
        for lines in lines.chunks(MAX_LINES) {
            let name = moved::name(pack, RecordId(fresh(self.entropy())?));
            if self.put_record(ObjectKind::Moved, &name, &Moved { lines: lines.to_vec() }.encode()?)? == Put::Exists {
                return Err(Error::internal(format!("{name} exists although its name is random")));
            }
        }
        Ok(())
    }

    /// Where frames of `pack` are said to lie: hints, in no order. A record that is damaged says nothing.
    pub fn relocated(&self, pack: PackUid) -> Result<Vec<Relocated>> {
        let mut lines = Vec::new();
        for _ in 0..PASSES {
            let mut names = Vec::new();
            self.backend().list(&moved::prefix(pack), &mut |object| {
                if names.len() < RECORDS {
                    names.push(object.name);
                }
                Ok(())
            })?;
            let mut is_whole = true;
            for name in names {
                match self.get_record(ObjectKind::Moved, &name).and_then(|record| Moved::decode(&record.body)) {
                    Ok(moved) => lines.extend(moved.lines),
                    // A collector merges the records: the one that says the same was put before.
                    Err(e) if e.kind() == Kind::NotFound => is_whole = false,
                    Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::Unsupported) => {}
                    Err(e) => return Err(e),
                }
            }
            if is_whole {
                break;
            }
        }
        Ok(lines)
    }
}
