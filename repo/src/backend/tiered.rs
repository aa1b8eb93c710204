//! A store and its cold tiers: other stores in which some of its data packs lie, under the same names.
//!
//! ```text
//!   read packs/ab/x -> home                     is it there?  -> done
//!                   -> LIST tiers/, each tier   is it there?  -> done, and asked there first the next time
//!                   -> home once more           it was recalled meanwhile
//!   list packs/     -> home -> tiers -> home    each name once, and home's size
//!   put, all other names                        home alone
//!
//!   move      PUT tier, then DELETE home        so that at any moment a pack lies in one of the two, or in both
//!   recall    PUT home, then DELETE tier
//! ```
//!
//! Not here: what says which tiers there are and how they are opened ([`TierSource`]); which packs move ([`crate::tiers`]).
//!
//! What holds:
//! - Nothing but data packs is ever looked for in a tier. A put goes home, and no tier is asked whether it has the name: names of packs
//!   are random, and bytes under one name are the same everywhere.
//! - A pack that lies somewhere all the while is found by every read and every listing that begins, whatever moves meanwhile: who looks
//!   home, then in the tiers, then home again sees it on one side of one step. (One that is moved and recalled within one call may be missed: it is
//!   taken for gone as a collected one is, and loses nothing.)
//! - A tier that cannot be opened hurts whoever needs it: a pack that is not at home, or a list of packs. Such an error is never `NotFound`,
//!   which would say that a pack is gone.
//! - Where no pack is missing or listed no request is made but those to home.
//! - A delete is of all places. Whoever decided about a pack by where it lay removes it there and nowhere else ([`Tiered::home`],
//!   [`Tiered::delete_in_tiers`]): what was put elsewhere since is another one's, and decided about again.
//!
//! Memory: [`FOUND`] places of packs; of a listing 20 bytes a pack, where there are tiers.

use super::archive::{Archive, Order, State, Surveyed};
use super::lock::{Hidden, Kept, ObjectLock};
use super::{Backend, Listed, Put, check_prefix};
use crate::error::{Error, Kind, Result};
use crate::id::PackUid;
use crate::location::PackKind;
use crate::pack;
use crate::store_class::StoreClass;
use crate::time::Timestamp;
use quick_cache::sync::Cache;
use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Of how many packs it is remembered in which tier they were found.
const FOUND: usize = 65_536;

/// What tiers there are, and how they are opened.
pub trait TierSource: Send + Sync {
    /// The names of the tiers there are now, sorted.
    fn names(&self) -> Result<Vec<String>>;

    /// Opens the store of a tier, and sees that it is that tier's.
    fn open(&self, name: &str) -> Result<Arc<dyn Backend>>;
}

/// Where a pack lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// In the repository's own store.
    Home,
    /// In the tier of this name.
    Tier(&'a str),
}

/// A store with its tiers.
pub struct Tiered {
    home: Arc<dyn Backend>,
    source: Box<dyn TierSource>,
    /// Those there were when it was last looked; `None`: nobody looked so far.
    known: RwLock<Option<Vec<Arc<Tier>>>>,
    found: Cache<PackUid, Arc<Tier>>,
}

/// A tier, opened when it is first needed.
struct Tier {
    name: String,
    /// Held while it is opened: whoever else needs it has to wait for that anyway.
    store: Mutex<Option<Arc<dyn Backend>>>,
}

/// A tier and its store.
type Opened = (Arc<Tier>, Arc<dyn Backend>);

impl Tier {
    /// Its store. A tier that could not be opened is tried again the next time.
    fn open(&self, source: &dyn TierSource) -> Result<Arc<dyn Backend>> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = &*store {
            return Ok(Arc::clone(store));
        }
        let opened = source.open(&self.name).map_err(|e| self.told(e))?;
        *store = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// An error of this tier's. It never says that something does not exist: that is for who has looked everywhere to say.
    fn told(&self, e: Error) -> Error {
        let kind = match e.kind() {
            Kind::NotFound => Kind::Unavailable,
            kind => kind,
        };
        e.with_kind(kind).within(format_args!("the cold tier '{}'", self.name))
    }
}

impl Tiered {
    /// `home` with what tiers `source` says there are. Nothing is read yet.
    #[must_use]
    pub fn new(home: Arc<dyn Backend>, source: Box<dyn TierSource>) -> Tiered {
        Tiered { home, source, known: RwLock::default(), found: Cache::new(FOUND) }
    }

    /// The repository's own store.
    #[must_use]
    pub fn home(&self) -> &dyn Backend {
        &*self.home
    }

    /// The store of a tier. `NotFound` when there is none of that name.
    pub fn tier(&self, name: &str) -> Result<Arc<dyn Backend>> {
        let tiers = self.look()?;
        let tier = tiers.iter().find(|tier| tier.name == name);
        let none = || Error::not_found(format!("there is no cold tier '{name}'; see 'coffer tier list'"));
        tier.ok_or_else(none)?.open(&*self.source)
    }

    /// Removes a pack from tiers and not from home, if it lies in any. `Retained` when one of them keeps it.
    pub fn delete_in_tiers(&self, name: &str) -> Result<()> {
        let Some((PackKind::Data, uid)) = pack::parse_name(name) else { return Ok(()) };
        for tier in self.look()? {
            tier.open(&*self.source)?.delete(name).map_err(|e| tier.told(e))?;
        }
        self.found.remove(&uid);
        Ok(())
    }

    /// Calls `each` for all that is seen of data packs under `prefix`, and where: of a pack that lies in two places, or moves
    /// meanwhile, more than once. Home is listed first and last.
    pub fn list_places(&self, prefix: &str, each: &mut dyn FnMut(Listed, Place<'_>) -> Result<()>) -> Result<()> {
        let had_tiers = !self.look()?.is_empty();
        self.walk(prefix, had_tiers, each)
    }

    fn walk(&self, prefix: &str, had_tiers: bool, each: &mut dyn FnMut(Listed, Place<'_>) -> Result<()>) -> Result<()> {
        self.home.list(prefix, &mut |object| each(object, Place::Home))?;
        let tiers = self.look()?;
        if tiers.is_empty() {
            return Ok(());
        }
        if !had_tiers {
            // What was moved there before its turn in the listing came was not seen, and can be by now.
            let why = "a cold tier was added while packs were listed: the same once more sees all of them";
            return Err(Error::new(Kind::Unavailable, why));
        }
        let packs = if prefix.is_empty() { PackKind::Data.prefix() } else { prefix };
        for tier in &tiers {
            let store = tier.open(&*self.source)?;
            let mut stopped = None;
            let listed = store.list(packs, &mut |object| match pack::parse_name(&object.name) {
                None => Ok(()),
                Some(_) => each(object, Place::Tier(&tier.name)).map_err(|e| {
                    stopped = Some(e);
                    Error::internal("whoever lists has stopped")
                }),
            });
            // What the caller said is handed on as it is, and what the tier said with its name.
            match stopped {
                Some(e) => return Err(e),
                None => listed.map_err(|e| tier.told(e))?,
            }
        }
        // What is no pack was told of before.
        self.home.list(packs, &mut |object| match pack::parse_name(&object.name) {
            Some(_) => each(object, Place::Home),
            None => Ok(()),
        })
    }

    /// The tiers as they are now: one listing of a few names at home.
    fn look(&self) -> Result<Vec<Arc<Tier>>> {
        let names = self.source.names()?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let old = known.take().unwrap_or_default();
        let tier = |name: String| match old.iter().find(|tier| tier.name == name) {
            Some(tier) => Arc::clone(tier),
            None => Arc::new(Tier { name, store: Mutex::default() }),
        };
        let tiers: Vec<_> = names.into_iter().map(tier).collect();
        *known = Some(tiers.clone());
        Ok(tiers)
    }

    /// The tiers as they were when anybody last looked.
    fn seen(&self) -> Result<Vec<Arc<Tier>>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        known.map_or_else(|| self.look(), Ok)
    }

    /// What `ask` makes of the place where `name` lies; `Ok(None)` from it: it does not lie there.
    fn find<T>(&self, name: &str, mut ask: impl FnMut(&dyn Backend) -> Result<Option<T>>) -> Result<Option<T>> {
        let Some((PackKind::Data, uid)) = pack::parse_name(name) else { return ask(&*self.home) };
        if let Some(tier) = self.found.get(&uid)
            && let Ok(store) = tier.open(&*self.source)
        {
            match ask(&*store).map_err(|e| tier.told(e))? {
                Some(answer) => return Ok(Some(answer)),
                None => drop(self.found.remove(&uid)),
            }
        }
        if let Some(answer) = ask(&*self.home)? {
            return Ok(Some(answer));
        }
        let tiers = self.look()?;
        if tiers.is_empty() {
            return Ok(None);
        }
        let mut closed = None;
        for tier in &tiers {
            let store = match tier.open(&*self.source) {
                Ok(store) => store,
                Err(e) => {
                    closed.get_or_insert(e);
                    continue;
                }
            };
            if let Some(answer) = ask(&*store).map_err(|e| tier.told(e))? {
                self.found.insert(uid, Arc::clone(tier));
                return Ok(Some(answer));
            }
        }
        match (ask(&*self.home)?, closed) {
            (Some(answer), _) => Ok(Some(answer)),
            (None, None) => Ok(None),
            (None, Some(e)) => Err(e.within(format_args!("{name} is not at home, and may lie where nobody can look"))),
        }
    }

    /// As [`Tiered::find`] for what fails when there is no such object.
    fn get_by<T>(&self, name: &str, mut get: impl FnMut(&dyn Backend) -> Result<T>) -> Result<T> {
        let mut missing = None;
        let found = self.find(name, |store| match get(store) {
            Ok(answer) => Ok(Some(answer)),
            Err(e) if e.kind() == Kind::NotFound => {
                missing = Some(e);
                Ok(None)
            }
            Err(e) => Err(e),
        })?;
        found.ok_or_else(|| missing.unwrap_or_else(|| Error::not_found(format!("there is no object '{name}'"))))
    }

    /// The place whose lock of `name` counts: the tier, where it lies in one. What lies in both is on its way there, and home's copy
    /// goes when its lock ends.
    fn locked_place(&self, name: &str) -> Result<Option<Opened>> {
        if !matches!(pack::parse_name(name), Some((PackKind::Data, _))) {
            return Ok(None);
        }
        for tier in self.seen()? {
            let store = tier.open(&*self.source)?;
            if store.size(name).map_err(|e| tier.told(e))?.is_some() {
                return Ok(Some((tier, store)));
            }
        }
        Ok(None)
    }

    fn home_lock(&self) -> Result<&dyn ObjectLock> {
        self.home.object_lock().ok_or_else(|| cannot_lock(&*self.home))
    }
}

fn cannot_lock(store: &dyn Backend) -> Error {
    Error::new(Kind::Unsupported, format!("objects cannot be locked in {}", store.location()))
}

impl fmt::Debug for Tiered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tiered({:?})", self.home)
    }
}

impl Backend for Tiered {
    fn location(&self) -> String {
        self.home.location()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        self.home.put(name, parts)
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.get_by(name, |store| store.get(name))
    }

    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        self.get_by(name, |store| store.get_range(name, offset, out))
    }

    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        self.get_by(name, |store| store.get_suffix(name, max))
    }

    fn get_up_to(&self, name: &str, offset: u64, max: usize) -> Result<(Vec<u8>, u64)> {
        self.get_by(name, |store| store.get_up_to(name, offset, max))
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        self.find(name, |store| store.size(name))
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        check_prefix(prefix)?;
        if !prefix.is_empty() && !prefix.starts_with(PackKind::Data.prefix()) {
            return self.home.list(prefix, each);
        }
        if self.look()?.is_empty() {
            return self.walk(prefix, false, &mut |object, _| each(object));
        }
        let mut seen: HashSet<PackUid> = HashSet::new();
        self.walk(prefix, true, &mut |object, _| match pack::parse_name(&object.name) {
            Some((PackKind::Data, uid)) if !seen.insert(uid) => Ok(()),
            _ => each(object),
        })
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.home.delete(name)?;
        self.delete_in_tiers(name)
    }

    fn weakness(&self) -> Option<(StoreClass, String)> {
        self.home.weakness()
    }

    fn doubt(&self, name: &str, offset: u64, len: u64) -> bool {
        self.home.doubt(name, offset, len)
    }

    fn object_lock(&self) -> Option<&dyn ObjectLock> {
        self.home.object_lock().map(|_| self as &dyn ObjectLock)
    }

    fn archive(&self) -> Option<&dyn Archive> {
        // Who cannot look finds out why when he asks.
        let may_have_tiers = || !self.seen().is_ok_and(|tiers| tiers.is_empty());
        (self.home.archive().is_some() || may_have_tiers()).then_some(self as &dyn Archive)
    }

    fn tiers(&self) -> Option<&Tiered> {
        Some(self)
    }
}

/// What may be frozen at home and in tiers. What lies in a store that freezes nothing can be read.
impl Archive for Tiered {
    fn may_freeze(&self) -> Result<bool> {
        if self.home.archive().map_or(Ok(false), Archive::may_freeze)? {
            return Ok(true);
        }
        for tier in self.look()? {
            let store = tier.open(&*self.source)?;
            if store.archive().map_or(Ok(false), Archive::may_freeze).map_err(|e| tier.told(e))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A pack that lies in two places comes once, as what is read of it: home's.
    fn survey(&self, prefix: &str, each: &mut dyn FnMut(Surveyed) -> Result<()>) -> Result<()> {
        let mut seen: HashSet<PackUid> = HashSet::new();
        let mut each = |object: Surveyed| match pack::parse_name(&object.name) {
            Some((PackKind::Data, uid)) if !seen.insert(uid) => Ok(()),
            _ => each(object),
        };
        survey(&*self.home, prefix, &mut each)?;
        let holds_packs = prefix.is_empty() || prefix.starts_with(PackKind::Data.prefix());
        let tiers = if holds_packs { self.look()? } else { Vec::new() };
        if tiers.is_empty() {
            return Ok(());
        }
        let packs = if prefix.is_empty() { PackKind::Data.prefix() } else { prefix };
        for tier in tiers {
            survey(&*tier.open(&*self.source)?, packs, &mut |object| match pack::parse_name(&object.name) {
                Some(_) => each(object),
                None => Ok(()),
            })?;
        }
        // What was recalled meanwhile was seen in neither place.
        survey(&*self.home, packs, &mut |object| match pack::parse_name(&object.name) {
            Some(_) => each(object),
            None => Ok(()),
        })
    }

    fn state(&self, name: &str) -> Result<State> {
        let state = self.find(name, |store| match store.archive() {
            Some(archive) => none_if_gone(archive.state(name)),
            None => Ok(store.size(name)?.map(|_| State::Ready { until: None })),
        })?;
        state.ok_or_else(|| Error::not_found(format!("there is no object '{name}'")))
    }

    fn thaw(&self, name: &str, order: Order) -> Result<()> {
        let asked = self.find(name, |store| match store.archive() {
            Some(archive) => none_if_gone(archive.thaw(name, order)),
            None => Ok(store.size(name)?.map(|_| ())),
        })?;
        asked.ok_or_else(|| Error::not_found(format!("there is no object '{name}'")))
    }
}

/// A store's survey; one that freezes nothing is listed.
fn survey(store: &dyn Backend, prefix: &str, each: &mut dyn FnMut(Surveyed) -> Result<()>) -> Result<()> {
    match store.archive() {
        Some(archive) => archive.survey(prefix, each),
        None => store.list(prefix, &mut |Listed { name, size }| each(Surveyed { name, size, is_cold: false })),
    }
}

fn none_if_gone<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(e) if e.kind() == Kind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Home's locks, and those of tiers for what lies there.
impl ObjectLock for Tiered {
    fn check(&self) -> Result<()> {
        self.home_lock()?.check()
    }

    fn lock(&self, name: &str, until: Timestamp) -> Result<()> {
        match self.locked_place(name)? {
            None => self.home_lock()?.lock(name, until),
            Some((tier, store)) => {
                let lock = store.object_lock().ok_or_else(|| tier.told(cannot_lock(&*store)))?;
                lock.lock(name, until).map_err(|e| tier.told(e))
            }
        }
    }

    fn locked_until(&self, name: &str) -> Result<Option<Timestamp>> {
        match self.locked_place(name)? {
            None => self.home_lock()?.locked_until(name),
            Some((tier, store)) => match store.object_lock() {
                Some(lock) => lock.locked_until(name).map_err(|e| tier.told(e)),
                None => Ok(None),
            },
        }
    }

    fn kept(&self, name: &str) -> Result<Option<Kept>> {
        let home = match self.home_lock()?.kept(name) {
            Err(e) if e.kind() == Kind::NotFound => Err(e),
            kept => Ok(kept?),
        };
        if let Ok(Some(kept)) = home {
            return Ok(Some(kept));
        }
        match self.locked_place(name)? {
            None => home,
            Some((tier, store)) => match store.object_lock() {
                Some(lock) if lock.check().is_ok() => lock.kept(name).map_err(|e| tier.told(e)),
                _ => Ok(None),
            },
        }
    }

    fn each_hidden(&self, prefix: &str, each: &mut dyn FnMut(Hidden) -> Result<()>) -> Result<()> {
        self.home_lock()?.each_hidden(prefix, each)?;
        if !prefix.is_empty() && !prefix.starts_with(PackKind::Data.prefix()) {
            return Ok(());
        }
        for tier in self.look()? {
            let store = tier.open(&*self.source)?;
            if let Some(lock) = store.object_lock().filter(|lock| lock.check().is_ok()) {
                lock.each_hidden(if prefix.is_empty() { PackKind::Data.prefix() } else { prefix }, each)?;
            }
        }
        Ok(())
    }

    fn reveal(&self, name: &str) -> Result<()> {
        match self.home_lock()?.reveal(name) {
            Err(e) if e.kind() == Kind::NotFound => {}
            other => return other,
        }
        for tier in self.look()? {
            let store = tier.open(&*self.source)?;
            if let Some(lock) = store.object_lock().filter(|lock| lock.check().is_ok()) {
                match lock.reveal(name) {
                    Err(e) if e.kind() == Kind::NotFound => {}
                    other => return other.map_err(|e| tier.told(e)),
                }
            }
        }
        Err(Error::not_found(format!("there is no object '{name}'")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::list_sorted;
    use crate::backend::memory::Memory;
    use std::collections::BTreeMap;

    /// Tiers by name; `None`: it cannot be opened.
    #[derive(Clone, Default)]
    struct Shelf(Arc<Mutex<BTreeMap<String, Option<Arc<Memory>>>>>);

    impl Shelf {
        fn add(&self, name: &str, store: Option<Arc<Memory>>) {
            self.0.lock().unwrap().insert(name.to_owned(), store);
        }
    }

    impl TierSource for Shelf {
        fn names(&self) -> Result<Vec<String>> {
            Ok(self.0.lock().unwrap().keys().cloned().collect())
        }

        fn open(&self, name: &str) -> Result<Arc<dyn Backend>> {
            match self.0.lock().unwrap().get(name) {
                Some(Some(store)) => Ok(Arc::clone(store) as _),
                _ => Err(Error::not_found("no such folder")),
            }
        }
    }

    struct Stage {
        home: Arc<Memory>,
        cold: Arc<Memory>,
        shelf: Shelf,
        store: Tiered,
    }

    fn stage() -> Stage {
        let (home, cold, shelf): (Arc<Memory>, Arc<Memory>, Shelf) = Default::default();
        shelf.add("cold", Some(Arc::clone(&cold)));
        let store = Tiered::new(Arc::clone(&home) as _, Box::new(shelf.clone()));
        Stage { home, cold, shelf, store }
    }

    fn data(n: u8) -> String {
        pack::name(PackKind::Data, PackUid([n; 16]))
    }

    fn put(store: &dyn Backend, name: &str) {
        assert_eq!(store.put(name, &[name.as_bytes()]).unwrap(), Put::Created);
    }

    #[test]
    fn a_pack_is_read_wherever_it_lies_and_where_it_goes_to() {
        let Stage { home, cold, store, .. } = stage();
        let name = data(1);
        let assert_read = || {
            assert_eq!(store.get(&name).unwrap(), name.as_bytes());
            assert_eq!(store.get_suffix(&name, 3).unwrap().1, name.len() as u64);
            assert_eq!(store.size(&name).unwrap(), Some(name.len() as u64));
            let mut out = [0; 5];
            store.get_range(&name, 0, &mut out).unwrap();
            assert_eq!(&out, b"packs");
        };
        put(&*home, &name);
        assert_read();
        put(&*cold, &name);
        assert_read();
        home.delete(&name).unwrap();
        assert_read();
        // Remembered in the tier, and recalled.
        put(&*home, &name);
        cold.delete(&name).unwrap();
        assert_read();
        store.delete(&name).unwrap();
        assert_eq!(store.size(&name).unwrap(), None);
        assert_eq!(store.get(&name).unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn listings_name_each_pack_once_and_nothing_else_of_a_tier() {
        let Stage { home, cold, store, .. } = stage();
        for name in [&data(1), &data(2), "repo", "trees/00/x", "packs/00/odd"] {
            put(&*home, name);
        }
        for name in [&data(2), &data(3), "tier/x/cold", "trees/00/y", "packs/odd"] {
            put(&*cold, name);
        }
        let names = |prefix: &str| -> Vec<String> {
            list_sorted(&store, prefix).unwrap().into_iter().map(|object| object.name).collect()
        };
        let odd = "packs/00/odd".to_owned();
        assert_eq!(names(""), [&odd, &data(1), &data(2), &data(3), "repo", "trees/00/x"]);
        assert_eq!(names("packs/"), [odd.clone(), data(1), data(2), data(3)]);
        assert_eq!(names("packs/03/"), [data(3)]);
        assert_eq!(names("trees/"), ["trees/00/x"]);
        store.home().delete(&data(2)).unwrap();
        assert!(cold.size(&data(2)).unwrap().is_some());
        store.delete_in_tiers(&data(2)).unwrap();
        assert_eq!(names("packs/"), [odd, data(1), data(3)]);
    }

    #[test]
    fn nothing_but_data_packs_is_looked_for_in_a_tier() {
        let Stage { cold, store, .. } = stage();
        for name in ["repo", &pack::name(PackKind::Tree, PackUid([4; 16])), "packs/odd"] {
            put(&*cold, name);
            assert_eq!(store.size(name).unwrap(), None, "{name}");
            assert_eq!(store.get(name).unwrap_err().kind(), Kind::NotFound, "{name}");
            store.delete(name).unwrap();
            assert!(cold.size(name).unwrap().is_some(), "{name}");
        }
    }

    #[test]
    fn a_tier_that_cannot_be_opened_hides_nothing_that_is_at_home_and_is_no_loss() {
        let Stage { home, cold, shelf, store } = stage();
        put(&*home, &data(1));
        put(&*cold, &data(2));
        shelf.add("away", None);
        assert_eq!(store.get(&data(1)).unwrap(), data(1).as_bytes());
        assert_eq!(store.get(&data(2)).unwrap(), data(2).as_bytes());
        for e in [store.get(&data(3)).unwrap_err(), list_sorted(&store, "packs/").unwrap_err()] {
            assert_eq!(e.kind(), Kind::Unavailable, "{e}");
            assert!(e.to_string().contains("'away'"), "{e}");
        }
        assert!(list_sorted(&store, "trees/").unwrap().is_empty());
        // Once it is back all is well.
        shelf.add("away", Some(Arc::default()));
        assert_eq!(store.get(&data(3)).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(list_sorted(&store, "packs/").unwrap().len(), 2);
    }

    #[test]
    fn a_tier_that_is_added_later_is_found() {
        let Stage { shelf, store, .. } = stage();
        assert_eq!(store.size(&data(9)).unwrap(), None);
        let later: Arc<Memory> = Arc::default();
        put(&*later, &data(9));
        shelf.add("later", Some(later));
        assert!(store.size(&data(9)).unwrap().is_some());
    }

    #[test]
    fn a_listing_in_which_the_first_tier_comes_up_is_no_listing() {
        let (home, shelf): (Arc<Memory>, Shelf) = Default::default();
        put(&*home, &data(1));
        let store = Tiered::new(home, Box::new(shelf.clone()));
        let mut seen = 0;
        let listed = store.list("packs/", &mut |_| {
            seen += 1;
            shelf.add("cold", Some(Arc::default()));
            Ok(())
        });
        assert_eq!((seen, listed.unwrap_err().kind()), (1, Kind::Unavailable));
    }

    #[test]
    fn whoever_lists_may_stop_it_anywhere() {
        let Stage { home, cold, store, .. } = stage();
        put(&*home, &data(1));
        put(&*cold, &data(2));
        for stop_at in 1..=2 {
            let mut seen = 0;
            let stopped = store.list("packs/", &mut |_| {
                seen += 1;
                if seen == stop_at { Err(Error::corrupt("enough")) } else { Ok(()) }
            });
            let e = stopped.unwrap_err();
            assert_eq!((seen, e.kind(), e.context()), (stop_at, Kind::Corrupt, "enough"));
        }
    }
}
