//! CONDUCTOR of garbage collection: which packs nobody needs, and how they go without locks and without a clock.
//!
//! ```text
//!   janitor    undecided claims of the dead are revoked, pins of the dead forgotten
//!   survey     LIST moved, forgets, claims; every map that counts is walked; each mention of a frame goes to a spool; undecided
//!              claims that rely on what is gone are revoked
//!   plan       what each pack holds that is needed; which go, which are copied out of first: mostly-dead ones and, when keys are
//!              rotated, all data packs that are sealed to an older epoch; what is locked is left alone
//!   for each batch of packs:
//!     evacuate   tables of contents; what only they hold is copied into new packs, published and read back
//!     condemn    PUT condemned/<id>: from now on no commit relies on these packs
//!     judge      LIST moved, forgets, claims, condemned, packs again; maps that came meanwhile are walked; a pack whose
//!                every needed frame has a proven copy in a pack that nobody condemns may go, any other is spared
//!     remove     PUT moved/<pack>, LIST condemned and packs: whoever would be sent nowhere is spared; DELETE the packs, and moved
//!                records that nobody is sent by
//!   deltas     index deltas that are small or name what is gone are merged
//!   sweep      dead claims, decisions, forgets, notes, condemned records, sessions
//! ```
//!
//! Not here: what keeps points ([`crate::catalog`]). What holds (the argument is in ARCHITECTURE.md, "Collecting garbage"):
//! any number of collectors, writers and readers run at the same time; a pack is condemned before the claims are listed that
//! decide about it; a copy counts only when it was read and its id checked, in a pack that exists and that no visible record
//! condemns; tombstones go after what they entomb; when a root cannot be walked nothing is removed. Stopped anywhere, it leaves
//! copies that the next run finds unneeded, and condemned packs that the next run deals with first. Of a pack in a cold tier nothing is
//! read: it goes when nothing in it is needed, and what it holds proves nothing. Memory: [`CollectOptions::memory`]
//! for spools and for what is copied in one batch, 100 bytes a pack and a claim, 60 more a data pack when keys are rotated, 40 a
//! distinct node (16 MiB of distinct content), 40 a pack that is locked and not needed, two open packs, two index deltas of at most [`deltas::MOST`] entries.

mod deltas;
mod evacuation;
mod janitor;
mod judgement;
mod mention;
mod plan;
mod removal;
mod roots;
mod stock;
mod survey;
mod sweep;

use crate::cancel::Cancel;
use crate::census;
use crate::crew::Crew;
use crate::error::{Error, Result};
use crate::id::PackUid;
use crate::location::PackKind;
use crate::repository::Repository;
use crate::session::Sessions;
use crate::snapshot::{ClaimName, Identity};
use crate::time::Timestamp;
use deltas::Deltas;
use evacuation::{Batch, Evacuation};
use judgement::{Judgement, condemn};
use plan::{Draft, Plan};
pub use removal::Waiting;
use std::collections::HashSet;
use std::ops::AddAssign;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use stock::Stock;
use survey::Survey;
pub(crate) use survey::copy_of;

/// How garbage is collected.
#[derive(Clone, Debug)]
pub struct CollectOptions {
    /// Change nothing; the report says what would be done.
    pub dry_run: bool,
    /// Bytes of frames that are copied out of mostly-dead packs, at most. `None`: no limit.
    pub max_repack: Option<u64>,
    /// A pack is copied out of when at most so many of a hundred of its bytes are needed.
    pub repack_below: u8,
    /// Copy out of every data pack whose key is sealed to an older data-key epoch than the newest, too.
    pub rotate: bool,
    /// Bytes of memory for spools and batches.
    pub memory: usize,
    /// A directory for what does not fit; the files have no names there and vanish with the process.
    pub scratch: PathBuf,
    /// Threads that walk maps.
    pub threads: usize,
    /// Length at which a new data pack is closed, in bytes.
    pub pack_bytes: usize,
    /// Age in seconds at which undecided claims and pins of processes that beat no more count as dead.
    pub dead_after: u64,
    /// Who collects, for the session's record.
    pub identity: Identity,
    /// For ages and records; no safety depends on it.
    pub now: Timestamp,
}

impl CollectOptions {
    /// The defaults, with 128 MiB of memory.
    #[must_use]
    pub fn new(scratch: PathBuf, identity: Identity, now: Timestamp) -> Self {
        let threads = std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 8);
        CollectOptions {
            dry_run: false,
            max_repack: None,
            repack_below: 50,
            rotate: false,
            memory: 128 << 20,
            scratch,
            threads,
            pack_bytes: 32 << 20,
            dead_after: 7 * 86_400,
            identity,
            now,
        }
    }
}

/// How far a collection is; sampled by whoever shows it.
#[derive(Debug, Default)]
pub struct CollectProgress {
    /// Claims that were read.
    pub claims: AtomicU64,
    /// Distinct nodes that were walked.
    pub nodes: AtomicU64,
    /// Bytes of packs that the plan wants to remove; known once it is made.
    pub due: AtomicU64,
    /// Of those, dealt with.
    pub done: AtomicU64,
    /// Bytes of frames copied.
    pub copied: AtomicU64,
}

/// A number of packs and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackSum {
    /// How many.
    pub packs: u64,
    /// Bytes of their objects.
    pub bytes: u64,
}

impl PackSum {
    pub(crate) fn add(&mut self, bytes: u64) {
        *self += PackSum { packs: 1, bytes };
    }
}

impl AddAssign for PackSum {
    fn add_assign(&mut self, other: PackSum) {
        self.packs += other.packs;
        self.bytes += other.bytes;
    }
}

/// What a collection did, or would do.
#[derive(Debug, Default)]
pub struct CollectReport {
    /// Packs of the repository when it began.
    pub found: PackSum,
    /// Packs that nothing needs.
    pub dead: PackSum,
    /// Packs that are mostly dead.
    pub repacked: PackSum,
    /// Packs of older data-key epochs that are needed.
    pub rotated: PackSum,
    /// Bytes of frames that are needed of both.
    pub copied: u64,
    /// Packs of running sessions that nothing needs yet: left alone.
    pub young: PackSum,
    /// Packs that were condemned and are needed after all: somebody came to rely on them meanwhile, or collects them too.
    pub spared: PackSum,
    /// What would go and is locked: left alone, or refused by the store.
    pub waiting: Waiting,
    /// Packs that would go, or be copied out of, and lie frozen in a cold tier: left alone until somebody thaws them.
    pub frozen: PackSum,
    /// Packs that are left alone since they, or the other copies of what they hold, are in cold tiers and would have to be thawed.
    pub cold: PackSum,
    /// Packs in cold tiers that are condemned and needed: claims are not swept while there are any, and a recall is the way out.
    pub cold_condemned: PackSum,
    /// Packs that were removed.
    pub removed: PackSum,
    /// Bytes of all objects that were removed, less those that were written.
    pub freed: i64,
    /// Undecided claims that were revoked.
    pub revoked: Vec<ClaimName>,
    /// Undecided claims that were committed and revoked at the same time, and are no points: what they hold stays until they are
    /// forgotten.
    pub contested: Vec<ClaimName>,
    /// Pins of the dead that were forgotten.
    pub unpinned: Vec<ClaimName>,
    /// Claims whose records were swept.
    pub swept: u64,
    /// Index deltas that were merged into others.
    pub merged_deltas: u64,
    /// Roots that cannot be walked: nothing is removed then.
    pub unwalkable: Vec<(ClaimName, Error)>,
    /// Frames that maps need and that are nowhere; `coffer verify` says whose they are.
    pub lost: u64,
    /// Packs that were left alone because something is wrong with them.
    pub damaged: Vec<(PackUid, Error)>,
}

/// Collects garbage. `WrongKey` for a key that does not read what is written now, as a writer's, since copies are read back;
/// `Unsupported` when there is a claim of an unknown kind, and on a store of the class [`StoreClass::Lagging`] unless it is a dry run.
///
/// [`StoreClass::Lagging`]: crate::store_class::StoreClass::Lagging
pub fn collect(
    repo: &Arc<Repository>,
    options: &CollectOptions,
    progress: &CollectProgress,
    cancel: &Cancel,
) -> Result<CollectReport> {
    repo.check_full("collect garbage")?;
    repo.keys().check_newest("collect garbage")?;
    repo.check_writable()?;
    if !options.dry_run {
        repo.check_collectable()?;
    }
    let session = if options.dry_run { None } else { Some(repo.session(&options.identity, options.now)?) };
    let mut report = CollectReport::default();
    janitor::tidy(repo, options, &mut report)?;
    // Deltas before packs: what a listed delta names was durable then, so that what is not listed now is gone.
    let deltas = Deltas::list(repo)?;
    let mut is_second_look = false;
    let (mut survey, mut stock, sessions, mut plan) = loop {
        let drawn = draw(repo, options, progress, cancel, &mut report)?;
        if report.lost == 0 || is_second_look {
            break drawn;
        }
        // What a root needed that was forgotten meanwhile may have been removed by another collector. Damage is found again.
        let (survey, ..) = drawn;
        let (_, revoked) = survey.end();
        let CollectReport { unpinned, contested, .. } = report;
        report = CollectReport { revoked, unpinned, contested, ..CollectReport::default() };
        is_second_look = true;
    };
    progress.due.store(plan.bytes(), Relaxed);
    let tag = session.as_ref().map(|session| session.tag()).unwrap_or_default();
    let mut own: HashSet<PackUid> = HashSet::new();
    while !options.dry_run
        && !survey.is_incomplete()
        && let Some(packs) = plan.next_batch()
    {
        let batch = Batch { repo, options, session: tag, survey: &survey, stock: &stock, condemned: &plan.condemned };
        let evacuation = Evacuation::run(batch, packs, progress, cancel, &mut report)?;
        condemn(repo, &evacuation.packs)?;
        own.extend(evacuation.packs.iter().map(|item| item.uid));
        if let Some(judgement) = Judgement::pass(repo, &mut survey, evacuation)? {
            stock = judgement.execute(repo, progress, &mut report)?;
        }
    }
    if !survey.is_incomplete() {
        deltas.merge(repo, options, &stock, &mut report)?;
        if !options.dry_run {
            sweep::sweep(repo, &mut survey, &sessions, &stock.orphaned_parity, &own, options.now, &mut report)?;
        }
    }
    (report.unwalkable, report.revoked) = survey.end();
    report.damaged.sort_by_key(|(uid, _)| *uid);
    report.damaged.dedup_by_key(|(uid, _)| *uid);
    Ok(report)
}

/// Looks at everything there is, and plans.
fn draw<'a>(
    repo: &'a Arc<Repository>,
    options: &'a CollectOptions,
    progress: &'a CollectProgress,
    cancel: &'a Cancel,
    report: &mut CollectReport,
) -> Result<(Survey<'a>, Stock, Sessions, Plan)> {
    let mut survey = Survey::begin(repo, options, progress, cancel, std::mem::take(&mut report.revoked))?;
    survey.look()?;
    let condemned = repo.condemned()?;
    let stock = Stock::list(repo)?;
    survey.look_for_moved()?;
    // Sessions after packs: whoever stored one of these said before that it runs.
    let sessions = Sessions::list(repo, options.now)?;
    let old = if options.rotate { old_packs(repo, &stock, options, cancel, report)? } else { HashSet::new() };
    let draft = Draft::make(options, &survey, &stock, &sessions, condemned, &old, report)?;
    let crew = Crew { threads: options.threads, cancel };
    let kept = removal::kept(repo, draft.packs(), crew)?;
    Ok((survey, stock, sessions, draft.plan(options, &kept, report)))
}

/// The data packs whose key is sealed to an older epoch than the newest, but for cold ones.
fn old_packs(
    repo: &Repository,
    stock: &Stock,
    options: &CollectOptions,
    cancel: &Cancel,
    report: &mut CollectReport,
) -> Result<HashSet<PackUid>> {
    let (newest, _) = repo.keys().data_key();
    let census = census::take(repo, Crew { threads: options.threads, cancel }, |hand| {
        let mut data = stock.iter().filter(|item| item.kind == PackKind::Data && !item.is_cold());
        data.try_for_each(|item| hand((item.uid, item.bytes)))
    })?;
    report.damaged.extend(census.damaged);
    Ok(census.packs.iter().filter(|pack| pack.epoch < newest).map(|pack| pack.uid).collect())
}
