//! CONDUCTOR of thawing: what a restore needs and cannot read yet, since it lies in a cold tier.
//!
//! ```text
//!   trees/ readable? ── no: all frozen trees come first, since only maps tell which packs are needed
//!     └ yes ─> needs: the packs that maps name -> trail: where moved records lead -> survey of packs/: which of them are cold
//!                 -> their states -> look: counted      ask: asked for      wait: asked for, polled until all can be read
//! ```
//! One listing tells the class of every pack, so that only cold ones are asked about one by one. While it is waited, one pack is polled
//! at a time, the next one when it is ready: packs that were asked for together are thawed together.
//!
//! Not here: how a store thaws ([`crate::backend::archive`]); reading. What holds: looking changes nothing; nothing is asked for twice
//! while it is being thawed, so that whoever was interrupted says the same again; the time that is given only decides which copies
//! are made to last longer, by their dates. Memory: as `needs` and `trail` say, and the names of packs that are not ready, 100 bytes each.

use crate::backend::archive::{Archive, Order, State, Surveyed};
use crate::cancel::Cancel;
use crate::collector::PackSum;
use crate::crew::Crew;
use crate::error::{Error, Kind, Result};
use crate::id::PackUid;
use crate::location::PackKind;
use crate::lock_for::Due;
use crate::locks::needs;
use crate::locks::trail::{self, Trail};
use crate::pack;
use crate::repository::Repository;
use crate::snapshot::{ClaimName, Snapshot};
use crate::time::Timestamp;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Packs that are named as missing, at most.
const MOST_NAMED: usize = 10_000;
/// Polls in a row that may fail in a way that passes, before a wait of hours is given up.
const FAILED_POLLS: u32 = 10;
/// Seconds of half a day: a copy is short once less than half of the days that are asked for is left.
const HALF_DAY: u64 = 12 * 60 * 60;

/// How something is thawed.
#[derive(Clone, Copy, Debug)]
pub struct ThawOptions {
    /// Requests at a time, and threads that walk maps.
    pub threads: usize,
    /// What is asked for.
    pub order: Order,
    /// The time now: a thawed copy of which less than half of the days is left is asked for once more.
    pub now: Timestamp,
    /// Before the second poll; each pause is twice as long as the last one.
    pub first_pause: Duration,
    /// The longest pause between two polls.
    pub longest_pause: Duration,
}

impl ThawOptions {
    /// The defaults.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        ThawOptions {
            threads: 16,
            order: Order::default(),
            now,
            first_pause: Duration::from_secs(2),
            longest_pause: Duration::from_secs(60),
        }
    }
}

/// What a report is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// All packs of maps that lie in a cold tier, needed or not: until they can be read nobody knows what is needed.
    Maps,
    /// The packs that hold the content.
    #[default]
    Packs,
}

/// What was found. Asking for it is reported as it was found, too.
#[derive(Debug, Default)]
pub struct ThawReport {
    /// What is counted.
    pub stage: Stage,
    /// Packs that are needed and there.
    pub needed: PackSum,
    /// Of them, those that nobody had asked for.
    pub frozen: PackSum,
    /// Of them, those that were being thawed.
    pub thawing: PackSum,
    /// When the first of the thawed copies ends.
    pub until: Option<Timestamp>,
    /// Packs that are needed and not there, the first 10,000.
    pub missing: Vec<String>,
    /// Why not all that is needed is known: a map is damaged.
    pub unreadable: Vec<(ClaimName, Error)>,
    /// Names of what cannot be read yet.
    waiting: Vec<String>,
}

impl ThawReport {
    /// Whether everything could be read.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.waiting.is_empty() && self.stage == Stage::Packs
    }
}

/// Looks what the disks of `point` need and cannot be read.
pub fn look(repo: &Arc<Repository>, point: &Snapshot, options: ThawOptions, cancel: &Cancel) -> Result<ThawReport> {
    Run { repo, archive: repo.archive()?, options, cancel }.survey(point, Deed::Look)
}

/// Asks the store for everything that the disks of `point` need and that is frozen.
pub fn ask(repo: &Arc<Repository>, point: &Snapshot, options: ThawOptions, cancel: &Cancel) -> Result<ThawReport> {
    Run { repo, archive: repo.archive()?, options, cancel }.survey(point, Deed::Ask)
}

/// Asks, and waits until everything can be read: `tell` is told what was found and asked for, and how many of its packs could be read
/// since. What was asked for goes on thawing when this is stopped.
pub fn wait(
    repo: &Arc<Repository>,
    point: &Snapshot,
    options: ThawOptions,
    cancel: &Cancel,
    tell: &mut dyn FnMut(&ThawReport, u64) -> Result<()>,
) -> Result<ThawReport> {
    let run = Run { repo, archive: repo.archive()?, options, cancel };
    let mut pause = options.first_pause;
    loop {
        // Again after a wait: maps that can be read now name packs, and the first copies may have ended before the last was made.
        let report = run.survey(point, Deed::Ask)?;
        if report.is_ready() {
            return Ok(report);
        }
        tell(&report, 0)?;
        for (name, done) in report.waiting.iter().zip(1..) {
            run.until_ready(name, &mut pause)?;
            tell(&report, done)?;
        }
    }
}

/// Whether anything is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Look,
    Ask,
}

struct Run<'a> {
    repo: &'a Arc<Repository>,
    archive: &'a dyn Archive,
    options: ThawOptions,
    cancel: &'a Cancel,
}

impl Run<'_> {
    fn survey(&self, point: &Snapshot, deed: Deed) -> Result<ThawReport> {
        let mut trees = Vec::new();
        self.archive.survey(PackKind::Tree.prefix(), &mut |object| {
            trees.extend(Some(object).filter(|object| object.is_cold));
            self.cancel.check()
        })?;
        let maps = self.states(trees, deed)?;
        if !maps.waiting.is_empty() {
            return Ok(ThawReport { stage: Stage::Maps, ..maps });
        }
        // All are needed alike, and now.
        let all = [(point, Due::at(self.options.now))];
        let (mut packs, unwalkable) = needs::gather(self.repo, &all, self.crew())?;
        let Trail { packs: led, .. } = trail::follow(self.repo, &mut packs)?;
        let data = packs.iter().filter(|(kind, ..)| *kind == PackKind::Data);
        let mut wanted: HashSet<PackUid> = data.map(|(_, uid, _)| uid).collect();
        let (mut warm, mut cold) = (PackSum::default(), Vec::new());
        self.archive.survey(PackKind::Data.prefix(), &mut |object| {
            let is_wanted = pack::parse_name(&object.name).is_some_and(|(_, uid)| wanted.remove(&uid));
            match (is_wanted, object.is_cold) {
                (true, true) => cold.push(object),
                (true, false) => warm.add(object.size),
                (false, _) => {}
            }
            self.cancel.check()
        })?;
        let mut report = self.states(cold, deed)?;
        report.needed += warm;
        // What a moved record leads from or to is not missed on its account.
        let missing = wanted.into_iter().filter(|uid| !led.contains(uid)).map(|uid| pack::name(PackKind::Data, uid));
        report.missing.extend(missing.take(MOST_NAMED));
        report.missing.sort_unstable();
        report.unreadable = unwalkable.into_list();
        Ok(report)
    }

    /// Looks at cold objects one by one, and asks for what is frozen if that is the deed.
    fn states(&self, cold: Vec<Surveyed>, deed: Deed) -> Result<ThawReport> {
        let one = |object: Surveyed, report: &mut ThawReport| {
            let state = match self.archive.state(&object.name) {
                Ok(state) => state,
                Err(e) if e.kind() == Kind::NotFound => {
                    report.missing.push(object.name);
                    return Ok(());
                }
                Err(e) => return Err(e),
            };
            report.needed.add(object.size);
            if deed == Deed::Ask && (state == State::Frozen || self.is_short(state)) {
                self.archive.thaw(&object.name, self.options.order)?;
            }
            match state {
                State::Ready { until } => report.until = earlier(report.until, until),
                State::Frozen => report.frozen.add(object.size),
                State::Thawing => report.thawing.add(object.size),
            }
            if !matches!(state, State::Ready { .. }) {
                report.waiting.push(object.name);
            }
            Ok(())
        };
        let feed = |hand: &mut dyn FnMut(Surveyed) -> Result<()>| cold.into_iter().try_for_each(hand);
        let parts = self.crew().run(|| Ok(ThawReport::default()), one, feed)?;
        Ok(parts.into_iter().fold(ThawReport::default(), |mut all, part| {
            all.needed += part.needed;
            all.frozen += part.frozen;
            all.thawing += part.thawing;
            all.until = earlier(all.until, part.until);
            all.missing.extend(part.missing);
            all.waiting.extend(part.waiting);
            all
        }))
    }

    /// Polls one pack until it can be read, or is gone.
    fn until_ready(&self, name: &str, pause: &mut Duration) -> Result<()> {
        let mut failures = 0;
        loop {
            self.cancel.check()?;
            match self.archive.state(name) {
                Ok(State::Ready { .. }) => return Ok(()),
                Ok(State::Thawing) => failures = 0,
                // Its copy was made and has ended, or the store lost the request.
                Ok(State::Frozen) => self.archive.thaw(name, self.options.order)?,
                Err(e) if e.kind() == Kind::NotFound => return Ok(()),
                Err(e) if e.kind().is_transient() && failures < FAILED_POLLS => failures += 1,
                Err(e) => return Err(e),
            }
            self.cancel.sleep_until(Instant::now() + *pause)?;
            *pause = pause.saturating_mul(2).min(self.options.longest_pause);
        }
    }

    /// Whether less than half of the days that are asked for is left of a copy.
    fn is_short(&self, state: State) -> bool {
        let least = self.options.now.seconds().saturating_add(u64::from(self.options.order.days) * HALF_DAY);
        matches!(state, State::Ready { until: Some(until) } if until.seconds() < least)
    }

    fn crew(&self) -> Crew<'_> {
        Crew { threads: self.options.threads, cancel: self.cancel }
    }
}

fn earlier(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.into_iter().chain(other).min()
}

impl Repository {
    /// The store's cold tiers. `Unsupported`, with the way out, when nothing can be thawed in it.
    pub fn archive(&self) -> Result<&dyn Archive> {
        self.backend().archive().ok_or_else(|| {
            let why = "that takes an S3 store, and credentials; in Azure set a blob's tier with the provider's tools, and what other \
                       stores call cold is read without being thawed";
            Error::new(Kind::Unsupported, format!("nothing can be thawed in {}: {why}", self.backend().location()))
        })
    }
}
