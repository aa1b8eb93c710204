//! CONDUCTOR of locks: what kept points need stays locked for as long as they are kept, and what is not is named.
//!
//! ```text
//!   points that ask for locks -> due (lock_for) -> needs: their packs -> trail: where these lead -> and what is needed to open
//!   anything: descriptor, keys, certificates -> padlock: look, or raise what is short           (audit also: what is hidden?)
//! ```
//! What a point needs: its claim and decision, every pack that its maps name, the packs that moved records lead to from these, those
//! records, and the repository's own objects. A lock is as long as the longest that any of the points asks for. Not locked: index deltas,
//! parity, notes, sessions, forgets and condemned records, without which every point can be read.
//!
//! Not here: how a store locks ([`crate::backend::lock`]); the locks of a backup that is being made ([`crate::writer`]); what gc does
//! with what is locked ([`crate::collector`]). What holds: nothing here makes a lock shorter or removes an object; points that were
//! forgotten raise nothing any more; the time that is given decides which locks are renewed, and never when one ends: that is the
//! store's own clock. Memory as `needs` and `trail` say, and the names of what is short, hidden or missing, 10,000 each at most.

pub(crate) mod needs;
pub(crate) mod padlock;
pub(crate) mod trail;

use crate::backend::lock::{Hidden, ObjectLock};
use crate::backend::{Backend, list_sorted};
use crate::cancel::Cancel;
use crate::crew::Crew;
use crate::descriptor;
use crate::epoch::Epoch;
use crate::error::{Error, Kind, Result};
use crate::key_slot;
use crate::lock_for::Due;
use crate::pack;
use crate::probe;
use crate::repository::Repository;
use crate::snapshot::{ClaimName, Snapshot};
use crate::tier;
use crate::time::Timestamp;
use padlock::{Deed, Tally};
pub use padlock::{MOST_NAMED, Short};
use std::sync::Arc;
use trail::Trail;

/// How locks are looked at.
#[derive(Clone, Copy, Debug)]
pub struct LockOptions {
    /// Requests for locks at a time, and threads that walk maps.
    pub threads: usize,
    /// What locks are due by; the store's own clock decides when they end.
    pub now: Timestamp,
}

impl LockOptions {
    /// The defaults.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        LockOptions { threads: 16, now }
    }
}

/// How the locks of a repository are.
#[derive(Debug, Default)]
pub struct LockReport {
    /// Kept points that ask for locks.
    pub points: u64,
    /// Objects that they need and that are there.
    pub objects: u64,
    /// How many of those were locked too short, or not at all.
    pub short: u64,
    /// The first [`MOST_NAMED`] of them.
    pub named: Vec<Short>,
    /// Objects that they need and that are not there, the first [`MOST_NAMED`].
    pub missing: Vec<String>,
    /// Objects that something hides: the first [`MOST_NAMED`]. Only an audit looks for them.
    pub hidden: Vec<Hidden>,
    /// How many there are.
    pub hidden_count: u64,
    /// Points that cannot be read, and what they need is not known.
    pub unreadable: Vec<(ClaimName, Error)>,
}

impl LockReport {
    /// Whether there is anything to be done.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.short == 0 && self.hidden_count == 0 && self.missing.is_empty() && self.unreadable.is_empty()
    }
}

/// Looks at the locks of everything that kept points need, and changes nothing.
pub fn audit(repo: &Arc<Repository>, options: LockOptions, cancel: &Cancel) -> Result<LockReport> {
    let lock = repo.object_lock()?;
    let mut report = survey(repo, lock, Deed::Look, options, cancel)?;
    each_hidden(lock, cancel, &mut |hidden| {
        report.hidden_count += 1;
        if report.hidden.len() < MOST_NAMED {
            report.hidden.push(hidden);
        }
        Ok(())
    })?;
    Ok(report)
}

/// Raises the locks of everything that kept points need, where less than half of the term is left.
pub fn extend(repo: &Arc<Repository>, options: LockOptions, cancel: &Cancel) -> Result<LockReport> {
    survey(repo, repo.object_lock()?, Deed::Raise, options, cancel)
}

/// Removes whatever hides the objects that a repository is opened by, which takes no key: how many of them show again. Only names that a
/// repository has are touched, since nothing says yet that the store holds one.
pub fn reveal_own(store: &dyn Backend, cancel: &Cancel) -> Result<u64> {
    let lock = lock_of(store)?;
    let mut revealed = 0;
    let mut reveal = |name: &str| {
        cancel.check()?;
        match lock.reveal(name) {
            Ok(()) => revealed += 1,
            Err(e) if e.kind() == Kind::NotFound => {}
            Err(e) => return Err(e),
        }
        Ok(())
    };
    reveal(descriptor::OBJECT_NAME)?;
    for prefix in OWN {
        lock.each_hidden(prefix, &mut |hidden| reveal(&hidden.name))?;
    }
    Ok(revealed)
}

/// Removes whatever hides objects. What is hidden by something that is locked itself stays hidden, and is returned with the reason.
pub fn reveal(repo: &Repository, cancel: &Cancel) -> Result<(u64, Vec<(String, Error)>)> {
    let lock = repo.object_lock()?;
    let (mut revealed, mut failed) = (0, Vec::new());
    each_hidden(lock, cancel, &mut |Hidden { name, .. }| {
        match lock.reveal(&name) {
            Ok(()) => revealed += 1,
            Err(e) if matches!(e.kind(), Kind::Retained | Kind::NotFound) => failed.push((name, e)),
            Err(e) => return Err(e),
        }
        Ok(())
    })?;
    Ok((revealed, failed))
}

/// What is hidden in a whole store, but for the names of probes: puts of one name that race are what these are for, and may leave
/// several versions until a collector removes them.
fn each_hidden(lock: &dyn ObjectLock, cancel: &Cancel, each: &mut dyn FnMut(Hidden) -> Result<()>) -> Result<()> {
    lock.each_hidden("", &mut |hidden| {
        cancel.check()?;
        if hidden.name.starts_with(probe::PREFIX) { Ok(()) } else { each(hidden) }
    })
}

fn survey(
    repo: &Arc<Repository>,
    lock: &dyn ObjectLock,
    deed: Deed,
    options: LockOptions,
    cancel: &Cancel,
) -> Result<LockReport> {
    let crew = Crew { threads: options.threads, cancel };
    let points = repo.points()?;
    let mut asking: Vec<(&Snapshot, Due)> = Vec::new();
    for point in &points.snapshots {
        if let Some(term) = point.lock_for {
            asking.push((point, term.due(point.time(), options.now)?));
        }
    }
    let mut report = LockReport { points: asking.len() as u64, unreadable: points.damaged, ..LockReport::default() };
    asking.sort_by_key(|(point, due)| (std::cmp::Reverse(*due), point.name));
    let Some((_, longest)) = asking.first().copied() else { return Ok(report) };
    let (mut packs, unwalkable) = needs::gather(repo, &asking, crew)?;
    report.unreadable.extend(unwalkable.into_list());
    let Trail { records, packs: led } = trail::follow(repo, &mut packs)?;
    let own = own_objects(repo)?;
    let Tally { objects, short, named, missing } = padlock::work(lock, deed, crew, |hand| {
        own.into_iter().try_for_each(|name| hand((name, longest)))?;
        for (point, due) in &asking {
            hand((point.name.claim(), *due))?;
            hand((point.name.decision(), *due))?;
        }
        records.into_iter().try_for_each(&mut *hand)?;
        packs.iter().try_for_each(|(kind, uid, due)| hand((pack::name(kind, uid), due)))
    })?;
    (report.objects, report.short, report.named, report.missing) = (objects, short, named, missing);
    report.missing.retain(|name| pack::parse_name(name).is_none_or(|(_, uid)| !led.contains(&uid)));
    Ok(report)
}

/// Prefixes of what nothing can be opened or believed without, besides the descriptor: features, key slots, certificates, epochs, and
/// where cold tiers are.
const OWN: [&str; 5] = ["features/", key_slot::PREFIX, "writers/", Epoch::PREFIX, tier::PREFIX];

/// The names of all that, and the descriptor's.
pub(crate) fn own_objects(repo: &Repository) -> Result<Vec<String>> {
    let mut names = vec![descriptor::OBJECT_NAME.to_owned()];
    for prefix in OWN {
        names.extend(list_sorted(repo.backend(), prefix)?.into_iter().map(|object| object.name));
    }
    Ok(names)
}

impl Repository {
    /// The store's locks. `Unsupported` when objects cannot be locked in it.
    pub fn object_lock(&self) -> Result<&dyn ObjectLock> {
        lock_of(self.backend())
    }
}

fn lock_of(store: &dyn Backend) -> Result<&dyn ObjectLock> {
    let lock = store.object_lock().ok_or_else(|| {
        let location = store.location();
        let why = format!(
            "objects cannot be locked in {location}: that takes a bucket of an S3 store, made with object lock"
        );
        Error::new(Kind::Unsupported, why)
    })?;
    lock.check()?;
    Ok(lock)
}
