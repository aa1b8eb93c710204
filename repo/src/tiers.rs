//! CONDUCTOR of cold tiers: other stores, by name, in which old data packs of the repository lie.
//!
//! ```text
//!   add      is the place free? -> feature, mark there, record here
//!   move     points, the newest first -> which packs only old points need (choice)
//!            -> each: read whole and check, PUT there, lock as at home, DELETE at home (transfer)
//!   recall   all packs of a tier, the same the other way round, while nobody moves into it (turn)
//!   remove   nothing lies there? -> record, mark
//! ```
//! A pack is as old as the newest point that needs it: what a recent point needs stays warm, however long ago it was written. What
//! no point needs is the collector's, and stays where it is.
//!
//! Not here: finding packs that lie in tiers ([`crate::backend::tiered`]), what addresses mean, secrets. What holds: a pack is
//! removed in one place only after it was read whole, every frame of it opened and its id checked, and after the other place has all
//! of its bytes and keeps them as long; interrupted anywhere, it lies in one of the two places or in both, and the same once more
//! goes on; a tier goes only while nothing lies in it. Memory: as `locks/needs.rs` says for choosing, 60 bytes a pack, and for each
//! thread a pack and its longest chunk.

mod choice;
mod transfer;
mod turn;

use crate::backend::lock::ObjectLock;
use crate::backend::tiered::{TierSource, Tiered};
use crate::backend::{Backend, Put, list_sorted};
use crate::cancel::Cancel;
use crate::certificate::Certificates;
use crate::collector::PackSum;
use crate::crew::Crew;
use crate::descriptor;
use crate::error::{Error, Kind, Result};
use crate::features;
use crate::id::PackUid;
use crate::keys::Keys;
use crate::location::PackKind;
use crate::pace::Pace;
use crate::pack;
use crate::repository::Repository;
use crate::sealed::{self, ObjectKind};
use crate::snapshot::ClaimName;
use crate::store_class::StoreClass;
use crate::tier::{self, Tier, TierName};
use crate::time::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use transfer::{Outcome, Transfer};
use turn::{Course, Turn};

/// Opens the store that a tier's record names, with whatever secrets this host has for it.
pub type OpenTier = Arc<dyn Fn(&TierName, &Tier) -> Result<Arc<dyn Backend>> + Send + Sync>;

/// How packs are moved.
#[derive(Clone, Copy, Debug)]
pub struct TransferOptions {
    /// Change nothing; the report says what would be done.
    pub dry_run: bool,
    /// Packs that are moved at a time.
    pub threads: usize,
    /// Bytes a second that are read, at most.
    pub max_rate: Option<u64>,
    /// Nobody moves packs the other way any more, whatever a killed process left.
    pub take_over: bool,
    /// For the locks of packs: those that ended by then are not made again elsewhere.
    pub now: Timestamp,
}

impl TransferOptions {
    /// The defaults.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        TransferOptions { dry_run: false, threads: 4, max_rate: None, take_over: false, now }
    }
}

/// How far it is; sampled by whoever shows it.
#[derive(Debug, Default)]
pub struct TransferProgress {
    /// Bytes of the packs that are to go; known once they are chosen.
    pub due: AtomicU64,
    /// Of those, dealt with.
    pub done: AtomicU64,
}

/// What was moved, or would be.
#[derive(Debug, Default)]
pub struct TransferReport {
    /// Packs that are to go.
    pub due: PackSum,
    /// Packs that went.
    pub moved: PackSum,
    /// Packs that are there now, and stay here as well for as long as this place keeps them: they are locked.
    pub doubled: PackSum,
    /// Packs that stayed, since they are locked here and cannot be there.
    pub unlockable: PackSum,
    /// Packs that stayed, since a collector is about to remove them, or they are damaged and known to be.
    pub condemned: PackSum,
    /// Packs that stayed, since they are damaged; `coffer verify` says whose they are.
    pub damaged: Vec<(PackUid, Error)>,
    /// Points that cannot be read: what they need may have been taken for old.
    pub unreadable: Vec<(ClaimName, Error)>,
}

/// Reads the tiers' records and opens their stores.
struct Records {
    home: Arc<dyn Backend>,
    keys: Arc<Keys>,
    open: OpenTier,
}

impl Records {
    fn read(&self, name: &TierName) -> Result<Tier> {
        let object = name.object();
        let bytes = self.home.get(&object)?;
        // Of the authority's, so that its own certificate is all that it takes.
        let record = sealed::open(&self.keys, &Certificates::new(&self.keys), ObjectKind::Tier, &object, &bytes)?;
        Tier::decode(&record.body).map_err(|e| e.within(object))
    }
}

impl TierSource for Records {
    fn names(&self) -> Result<Vec<String>> {
        Ok(names_in(&*self.home)?.iter().map(|name| name.as_str().to_owned()).collect())
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Backend>> {
        let name: TierName = name.parse()?;
        let store = (self.open)(&name, &self.read(&name)?)?;
        // A folder on which nothing is mounted looks like a tier from which everything is gone.
        if store.size(&name.mark(self.keys.repo()))?.is_none() {
            let why = format!(
                "{} does not have the mark of this tier (object '{}'): is it mounted, and the right place?",
                store.location(),
                name.mark(self.keys.repo())
            );
            return Err(Error::new(Kind::Unavailable, why));
        }
        Ok(store)
    }
}

impl Repository {
    /// The same repository with its cold tiers, whose stores `open` opens when they are first needed.
    pub fn with_tiers(self, open: OpenTier) -> Result<Self> {
        let keys = self.shared_keys();
        self.behind(|home| {
            let source = Records { home: Arc::clone(&home), keys, open };
            Ok(Arc::new(Tiered::new(home, Box::new(source))))
        })
    }

    /// The cold tiers by name, as their records say; damaged ones as errors.
    pub fn tiers(&self) -> Result<Vec<(TierName, Result<Tier>)>> {
        Ok(names_in(self.backend())?.into_iter().map(|name| (name.clone(), self.tier(&name))).collect())
    }

    /// A cold tier's record. `NotFound` when there is none of that name.
    pub fn tier(&self, name: &TierName) -> Result<Tier> {
        let object = name.object();
        let record = self.get_record(ObjectKind::Tier, &object).map_err(|e| match e.kind() {
            Kind::NotFound => unknown(name),
            _ => e,
        })?;
        Tier::decode(&record.body).map_err(|e| e.within(object))
    }

    fn tiered(&self) -> Result<&Tiered> {
        self.backend().tiers().ok_or_else(|| Error::internal("the repository was opened without its cold tiers"))
    }
}

/// The names of the tiers that a repository's own store has records of, sorted.
fn names_in(home: &dyn Backend) -> Result<Vec<TierName>> {
    let records = list_sorted(home, tier::PREFIX)?;
    Ok(records.iter().filter_map(|object| TierName::of_object(&object.name)).collect())
}

fn unknown(name: &TierName) -> Error {
    Error::not_found(format!("there is no cold tier '{name}'; see 'coffer tier list'"))
}

/// Makes `store`, which `tier` says where it is, a tier of the repository. `Invalid` when there is one of that name, or when the place is
/// a repository, or a tier already, be it by another name or another repository's.
pub fn add(repo: &Repository, name: &TierName, tier: &Tier, store: &dyn Backend) -> Result<()> {
    repo.check_full("add cold tiers")?;
    repo.check_writable()?;
    let (home, own) = (repo.backend(), repo.keys().repo());
    let taken = || Error::invalid(format!("there is a cold tier '{name}' already; see 'coffer tier list'"));
    if home.size(&name.object())?.is_some() {
        return Err(taken());
    }
    let place = store.location();
    if store.size(descriptor::OBJECT_NAME)?.is_some() {
        let why = format!("{place} is a repository, this one or another; a cold tier needs a place of its own");
        return Err(Error::invalid(why));
    }
    for object in list_sorted(store, tier::MARKS)? {
        match TierName::of_mark(&object.name) {
            Some((repo, other)) if repo == own && home.size(&other.object())?.is_none() => {
                // Left by an addition that did not come to its end, or by a removal.
                if other != *name {
                    store.delete(&object.name)?;
                }
            }
            Some((repo, other)) if repo == own => {
                return Err(Error::invalid(format!("{place} is the cold tier '{other}' already")));
            }
            _ => {
                let why = format!("{place} is a cold tier of another repository (it has the object '{}')", object.name);
                return Err(Error::invalid(why));
            }
        }
    }
    // From here on who knows nothing of tiers does not open the repository: it would take packs there for lost.
    let (Put::Created | Put::Exists) = home.put(features::TIERS, &[])?;
    let (Put::Created | Put::Exists) = store.put(&name.mark(own), &[])?;
    match repo.put_record(ObjectKind::Tier, &name.object(), &tier.encode()?)? {
        Put::Created => Ok(()),
        Put::Exists => Err(taken()),
    }
}

/// What lies in a tier.
pub fn stock(repo: &Repository, name: &TierName) -> Result<PackSum> {
    sum_of(&*repo.tiered()?.tier(name.as_str())?)
}

/// Ends a tier in which nothing lies; `Retained` while something does. With `is_lost` nobody looks: its store is gone for good, and what
/// lay there is lost.
pub fn remove(repo: &Repository, name: &TierName, is_lost: bool) -> Result<()> {
    repo.check_full("remove cold tiers")?;
    repo.check_writable()?;
    let home = repo.backend();
    let record = home.get(&name.object()).map_err(|e| match e.kind() {
        Kind::NotFound => unknown(name),
        _ => e,
    })?;
    if is_lost {
        return home.delete(&name.object());
    }
    let refuse = |sum: PackSum| {
        let PackSum { packs, bytes } = sum;
        let why = format!(
            "{packs} packs ({bytes} bytes) lie in the cold tier '{name}'; 'coffer tier recall {name}' brings them home"
        );
        Err(Error::new(Kind::Retained, why))
    };
    let store = repo.tiered()?.tier(name.as_str())?;
    let sum = sum_of(&*store)?;
    if sum.packs > 0 {
        return refuse(sum);
    }
    home.delete(&name.object())?;
    // Whoever moves a pack looks for the record between putting it there and removing it here: he misses it, or is seen now.
    let sum = sum_of(&*store)?;
    if sum.packs > 0 {
        let (Put::Created | Put::Exists) = home.put(&name.object(), &[&record])?;
        return refuse(sum);
    }
    store.delete(&name.mark(repo.keys().repo()))
}

/// Moves the data packs into a tier that no point after `before` needs, and some older one does. `Unsupported` when points ask for
/// locks that the tier cannot give; `Locked` while somebody recalls packs from it.
pub fn move_old(
    repo: &Arc<Repository>,
    name: &TierName,
    before: Timestamp,
    options: &TransferOptions,
    progress: &TransferProgress,
    cancel: &Cancel,
) -> Result<TransferReport> {
    check_may_move(repo)?;
    let tiered = repo.tiered()?;
    let store = tiered.tier(name.as_str())?;
    let _turn = take_turn(repo, name, Course::In, options)?;
    let crew = Crew { threads: options.threads, cancel };
    let choice::Choice { old, unreadable, asks_for_locks } = choice::choose(repo, before, crew)?;
    if asks_for_locks && locks_of(&*store)?.is_none() {
        let why = format!(
            "points of this repository are locked against removal, and the cold tier '{name}' ({}) cannot lock: that takes a \
             bucket of an S3 store, made with object lock",
            store.location()
        );
        return Err(Error::new(Kind::Unsupported, why));
    }
    let mut report = TransferReport { unreadable, ..TransferReport::default() };
    let condemned = repo.shunned()?;
    let mut due = Vec::new();
    list_packs(tiered.home(), &mut |uid, bytes| {
        if !old.contains(&uid) {
            return;
        }
        match condemned.contains(&uid) {
            true => report.condemned.add(bytes),
            false => due.push((uid, bytes)),
        }
    })?;
    let goes_on = |uid: PackUid| {
        // After the pack was put there: a collector that has condemned it deletes it at home itself. And who removes a tier looks
        // into it after its record is gone.
        if tiered.home().size(&name.object())?.is_none() {
            return Err(Error::new(Kind::Overtaken, format!("the cold tier '{name}' was removed meanwhile")));
        }
        Ok(!repo.shunned()?.contains(&uid))
    };
    let transfer = Transfer::new(repo, tiered.home(), &*store, &goes_on, options)?;
    run(transfer, due, options, progress, crew, report)
}

/// Brings all packs of a tier home. `Locked` while somebody moves packs into it.
pub fn recall(
    repo: &Arc<Repository>,
    name: &TierName,
    options: &TransferOptions,
    progress: &TransferProgress,
    cancel: &Cancel,
) -> Result<TransferReport> {
    check_may_move(repo)?;
    let tiered = repo.tiered()?;
    let store = tiered.tier(name.as_str())?;
    let _turn = take_turn(repo, name, Course::Out, options)?;
    let mut due = Vec::new();
    list_packs(&*store, &mut |uid, bytes| due.push((uid, bytes)))?;
    let transfer = Transfer::new(repo, &*store, tiered.home(), &|_| Ok(true), options)?;
    run(transfer, due, options, progress, Crew { threads: options.threads, cancel }, TransferReport::default())
}

fn check_may_move(repo: &Repository) -> Result<()> {
    repo.check_full("move packs between tiers")?;
    repo.keys().check_newest("move packs between tiers")?;
    repo.check_writable()
}

/// Whoever changes nothing needs no turn.
fn take_turn<'a>(
    repo: &'a Repository,
    name: &TierName,
    course: Course,
    options: &TransferOptions,
) -> Result<Option<Turn<'a>>> {
    if options.dry_run {
        return Ok(None);
    }
    if repo.store_class() == Some(StoreClass::Lagging) {
        let why = format!(
            "packs are not moved between tiers in {}: a probe found that its listings or reads may show what was, so that two who move \
             the same packs might not see each other",
            repo.backend().location()
        );
        return Err(Error::new(Kind::Unsupported, why));
    }
    Turn::take(repo, name, course, options.take_over).map(Some)
}

/// Carries the packs over, several at a time.
fn run(
    transfer: Transfer<'_>,
    due: Vec<(PackUid, u64)>,
    options: &TransferOptions,
    progress: &TransferProgress,
    crew: Crew<'_>,
    mut report: TransferReport,
) -> Result<TransferReport> {
    due.iter().for_each(|(_, bytes)| report.due.add(*bytes));
    progress.due.store(report.due.bytes, Relaxed);
    if options.dry_run {
        return Ok(report);
    }
    let pace = Pace::new(options.max_rate);
    let one = |(uid, bytes): (PackUid, u64), (scratch, report): &mut (transfer::Scratch, TransferReport)| {
        pace.take(bytes, crew.cancel)?;
        match transfer.carry(uid, scratch)? {
            Outcome::Moved => report.moved.add(bytes),
            Outcome::Doubled => report.doubled.add(bytes),
            Outcome::Unlockable => report.unlockable.add(bytes),
            Outcome::Condemned => report.condemned.add(bytes),
            Outcome::Damaged(e) => report.damaged.push((uid, e)),
            Outcome::Gone => {}
        }
        progress.done.fetch_add(bytes, Relaxed);
        Ok(())
    };
    let begin = || Ok((transfer::Scratch::new()?, TransferReport::default()));
    let parts = crew.run(begin, one, |hand| due.into_iter().try_for_each(hand))?;
    for (_, part) in parts {
        report.moved += part.moved;
        report.doubled += part.doubled;
        report.unlockable += part.unlockable;
        report.condemned += part.condemned;
        report.damaged.extend(part.damaged);
    }
    report.damaged.sort_by_key(|(uid, _)| *uid);
    Ok(report)
}

/// A store's locks, where objects can be locked in this very place.
fn locks_of(store: &dyn Backend) -> Result<Option<&dyn ObjectLock>> {
    let Some(lock) = store.object_lock() else { return Ok(None) };
    match lock.check() {
        Ok(()) => Ok(Some(lock)),
        Err(e) if e.kind() == Kind::Unsupported => Ok(None),
        Err(e) => Err(e),
    }
}

/// How many data packs lie in a store.
fn sum_of(store: &dyn Backend) -> Result<PackSum> {
    let mut sum = PackSum::default();
    list_packs(store, &mut |_, bytes| sum.add(bytes))?;
    Ok(sum)
}

/// The data packs of one store, with their bytes.
fn list_packs(store: &dyn Backend, each: &mut dyn FnMut(PackUid, u64)) -> Result<()> {
    store.list(PackKind::Data.prefix(), &mut |object| {
        if let Some((PackKind::Data, uid)) = pack::parse_name(&object.name) {
            each(uid, object.size);
        }
        Ok(())
    })
}
