//! CONDUCTOR of what a hydration does to a stack: all of it is brought to a target, compared, and handed over, while it is in use.
//!
//! ```text
//!   begin    changes are tracked from now on; what the logbook does not say, or a layer touched, is to be copied
//!   round    copy what is marked, missed regions first -> flush the target -> compare what was copied
//!   run      a round of everything -> rounds of what was changed meanwhile, until little is -> barrier: a last round -> hand over
//! ```
//! Stages: [`super::tracker`] what is left, [`super::site`] one stretch, [`super::crew`] many at a time, [`super::logbook`] how far.
//!
//! Not here: what the stack and the target are, and how a hand-over becomes durable ([`super`]). What holds: nothing is handed over but
//! what was read back from the target and equals the stack, all of it, at one moment; whatever fails before that leaves the stack as
//! it is. Rounds get shorter, or writers wait: from one that does not halve what is left to the next each write waits twice as long,
//! and the limit of bytes a second is for as long as nobody waits.
//!
//! | after a crash | what is copied again |
//! |---|---|
//! | at any moment | what any layer touched, and what was copied since the last waypoint, some seconds ago |
//! | and a power cut | the same: a waypoint says only what was flushed on the target, and holds of the base alone |

use super::super::medium::Medium;
use super::super::stack::Stack;
use super::bitmap::Bitmap;
use super::crew::Crew;
use super::logbook::Logbook;
use super::progress::{HydrationProgress, Phase};
use super::site::{Gate, PIECE, Site, long_hole};
use super::tracker::{LAST, Tracker};
use super::waypoint::Waypoint;
use crate::device::BlockDevice;
use crate::export::Meter;
use crate::{Error, Limits, Result};
use coffer_repo::cancel::Cancel;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// As much of a hole is handled at once, in bytes.
const LONGEST_HOLE: u64 = 1 << 30;
/// Between two waypoints.
const LEG: Duration = Duration::from_secs(5);
/// How long each write waits at first, and at most.
const PATIENCE: Duration = Duration::from_millis(100);
const LONGEST_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at whether to stop.
const NAP: Duration = Duration::from_millis(50);

/// How a stack is brought to a target.
#[derive(Clone, Debug)]
pub struct TransferPlan {
    /// The target, as the logbook names it.
    pub target: String,
    /// What the stack builds on, as the logbook names it.
    pub base: String,
    /// Bytes a second that are copied, and again that are compared.
    pub rate: Option<NonZeroU64>,
    /// Threads that copy.
    pub workers: usize,
    /// Bring zeroes for what cannot be read.
    pub keep_going: bool,
}

/// What became of a hand-over.
pub enum HandOver {
    /// It is durable that the target is the disk.
    Done,
    /// It failed, and will not be found done by anybody.
    Failed(Error),
    /// Nobody knows which it is.
    Unknown(Error),
}

/// What a transfer did.
#[derive(Clone, Debug)]
pub struct Transferred {
    /// What could not be read and is zeroes now, in bytes, in order.
    pub unreadable: Vec<Range<u64>>,
    /// How long writers were held off for the last of it.
    pub pause: Duration,
}

/// A transfer that has begun.
pub struct Transfer<'a> {
    site: Site<'a>,
    scribe: Scribe,
    plan: TransferPlan,
    _tracking: Tracking<'a>,
}

/// Ends the tracking when a transfer ends, however that is.
struct Tracking<'a> {
    stack: &'a Stack,
    tracker: Arc<Tracker>,
}

/// Who keeps the logbook.
struct Scribe {
    logbook: Logbook,
    waypoint: Waypoint,
    next: Instant,
}

/// What comes next in a pass.
struct Next {
    regions: Range<u64>,
    /// As far as a look tells.
    is_hole: bool,
}

/// What one pass over a disk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Copy,
    Verify,
}

/// How a pass is made.
#[derive(Clone, Copy)]
struct Pass<'p> {
    task: Task,
    gate: Gate,
    meter: Option<&'p Meter>,
    cancel: &'p Cancel,
}

impl<'a> Transfer<'a> {
    /// Begins, or goes on where `logbook` says for the same target and base; another target's logbook is begun anew. From now on changes
    /// of the stack are tracked.
    pub fn begin(
        stack: &'a Stack,
        target: Arc<dyn BlockDevice>,
        logbook: Arc<dyn Medium>,
        plan: TransferPlan,
    ) -> Result<Self> {
        let (logbook, found) = Logbook::open(logbook)?;
        Self::resume(stack, target, logbook, found, plan)
    }

    pub(super) fn resume(
        stack: &'a Stack,
        target: Arc<dyn BlockDevice>,
        mut logbook: Logbook,
        found: Option<Waypoint>,
        plan: TransferPlan,
    ) -> Result<Self> {
        let size = stack.size();
        if target.size() < size {
            let why = format!("the target has {} bytes, the fork has {size}", target.size());
            return Err(Error::invalid(why));
        }
        let tracker = Arc::new(Tracker::new(size));
        let waypoint = Waypoint { sequence: 0, copied: Vec::new(), ..first_waypoint(size, &plan) };
        let is_same = |found: &Waypoint| Waypoint { sequence: 0, copied: Vec::new(), ..found.clone() } == waypoint;
        let regions = tracker.regions(&(0..size));
        let copied = match found.filter(is_same) {
            Some(found) => Bitmap::of_bytes(regions.end, &found.copied),
            None => {
                logbook.clear()?;
                Bitmap::new(regions.end)
            }
        };
        stack.track(Arc::clone(&tracker))?;
        let tracking = Tracking { stack, tracker: Arc::clone(&tracker) };
        tracker.mark(&(0..size));
        let mut at = 0;
        while let Some(run) = copied.next_run(at..regions.end, regions.end) {
            tracker.dirty().clear(run.clone());
            at = run.end;
        }
        // Last: a mark that was cleared just now is of something that is in the layers.
        let resumed = size.saturating_sub(tracker.dirty().count().saturating_mul(tracker.region()));
        stack.each_touched(tracker.region(), |region| tracker.dirty().set(region..region + 1));
        let unverified = Bitmap::new(regions.end);
        unverified.set(regions);
        let progress = Arc::new(HydrationProgress::new(Arc::clone(&tracker), size, resumed));
        let (keep_going, unreadable) = (plan.keep_going, Mutex::default());
        let site = Site { stack, target, tracker, copied, unverified, progress, keep_going, unreadable };
        let mut scribe = Scribe { logbook, waypoint, next: Instant::now() };
        scribe.save(&site)?;
        Ok(Transfer { site, scribe, plan, _tracking: tracking })
    }

    /// Counters that go on while it runs.
    #[must_use]
    pub fn progress(&self) -> Arc<HydrationProgress> {
        Arc::clone(&self.site.progress)
    }

    /// Brings everything to the target, has `hand_over` make durable that it is the disk, and has the stack go on there. `hand_over` is
    /// called once, while nothing changes and the target is flushed and compared.
    pub fn run(mut self, cancel: &Cancel, hand_over: impl FnOnce() -> HandOver) -> Result<Transferred> {
        let limits = Limits { operations: None, bytes: self.plan.rate };
        let meters = self.plan.rate.map(|_| [Meter::new(limits), Meter::new(limits)]);
        let caught_up = self.catch_up(meters.as_ref(), cancel);
        if caught_up.as_ref().is_err_and(|e| e.kind() == crate::Kind::Cancelled) {
            // So that the next run redoes little. As good as can be.
            let _ = self.scribe.save(&self.site);
        }
        caught_up?;
        // So that little of it is left for the pause.
        self.site.stack.flush()?;
        self.site.target.flush()?;
        let began = Instant::now();
        let barrier = self.site.stack.barrier();
        self.site.progress.enter(Phase::HandingOver);
        self.round(Gate::Closed, None, cancel)?;
        if (self.site.tracker.dirty().count(), self.site.unverified.count()) != (0, 0) {
            return Err(Error::internal("something is left to be copied at the end of a hydration"));
        }
        // If it is not known what counts, both have to.
        self.site.stack.flush()?;
        match hand_over() {
            HandOver::Done => barrier.hand_over(Arc::clone(&self.site.target)),
            HandOver::Failed(error) => return Err(error),
            HandOver::Unknown(error) => {
                let why = "the fork could not be handed over, nor be kept from it for sure: it takes no more writes, and it and the \
                           target hold the same; see to the disk that forks lie on, and open it again";
                barrier.halt(Error::new(crate::Kind::Unavailable, format!("{why} ({error})")));
                return Err(error.within(why));
            }
        }
        self.site.progress.enter(Phase::Done);
        let unreadable = std::mem::take(&mut *self.site.unreadable.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Transferred { unreadable: joined(unreadable), pause: began.elapsed() })
    }

    /// Rounds, until little is left.
    fn catch_up(&mut self, meters: Option<&[Meter; 2]>, cancel: &Cancel) -> Result<()> {
        self.round(Gate::Open, meters, cancel)?;
        self.site.progress.enter(Phase::CatchingUp);
        let mut patience = Duration::ZERO;
        loop {
            let before = self.site.tracker.dirty().count();
            if before <= LAST {
                return Ok(());
            }
            self.round(Gate::Open, meters.filter(|_| patience.is_zero()), cancel)?;
            if self.site.tracker.dirty().count() > before / 2 {
                patience = (patience * 2).clamp(PATIENCE, LONGEST_PATIENCE);
                self.site.tracker.pace(patience);
            }
        }
    }

    /// Copies what is marked, and compares what was copied.
    fn round(&mut self, gate: Gate, meters: Option<&[Meter; 2]>, cancel: &Cancel) -> Result<()> {
        let [copying, verifying] = [0, 1].map(|which| meters.and_then(|meters| meters.get(which)));
        let copy = Pass { task: Task::Copy, gate, meter: copying, cancel };
        self.pass(copy)?;
        match gate {
            Gate::Open => self.scribe.save(&self.site)?,
            // What is written down now would be of use to nobody.
            Gate::Closed => self.site.target.flush()?,
        }
        if self.site.progress.phase() == Phase::Copying {
            self.site.progress.enter(Phase::Verifying);
        }
        self.pass(Pass { task: Task::Verify, meter: verifying, ..copy })
    }

    fn pass(&mut self, pass: Pass<'_>) -> Result<()> {
        let Transfer { site, scribe, plan, .. } = self;
        let site = &*site;
        let work = |regions: &Range<u64>, buffer: &mut Vec<u8>| match pass.task {
            Task::Copy => site.copy(regions, buffer),
            Task::Verify => site.verify(regions, pass.gate, buffer),
        };
        Crew::run(plan.workers, work, |crew| {
            let mut at = 0;
            while let Some(Next { regions, is_hole }) = site.next(pass.task, &mut at)? {
                pass.pace(site.tracker.bytes(&regions), is_hole)?;
                crew.wait_clear(&regions)?;
                match pass.task {
                    Task::Copy => site.tracker.dirty().clear(regions.clone()),
                    Task::Verify => site.unverified.clear(regions.clone()),
                }
                crew.give(regions);
                if (pass.task, pass.gate) == (Task::Copy, Gate::Open) && Instant::now() >= scribe.next {
                    scribe.save(site)?;
                }
            }
            Ok(())
        })
    }
}

impl Pass<'_> {
    /// Waits until `range` may be worked on. Holes cost nothing.
    fn pace(&self, range: Range<u64>, is_hole: bool) -> Result<()> {
        let length = range.end - range.start;
        loop {
            self.cancel.check()?;
            match self.meter.filter(|_| !is_hole).and_then(|meter| meter.admit(length)) {
                Some(wait) => std::thread::sleep(wait.min(NAP)),
                None => return Ok(()),
            }
        }
    }
}

impl Site<'_> {
    /// The regions that come next in a pass that has come to `at`.
    fn next(&self, task: Task, at: &mut u64) -> Result<Option<Next>> {
        let region = self.tracker.region();
        let usual = (PIECE / region).max(1);
        if task == Task::Copy
            && let Some(hot) = self.tracker.next_hot(usual)
        {
            return Ok(Some(Next { regions: hot, is_hole: false }));
        }
        let run = match task {
            Task::Copy => self.tracker.dirty().next_run(*at..u64::MAX, LONGEST_HOLE / region),
            Task::Verify => self.next_clean(*at, LONGEST_HOLE / region),
        };
        let Some(run) = run else { return Ok(None) };
        let near = run.start..run.end.min(run.start + usual);
        // A hole is taken at once, however long. What it is when it is worked on is looked at again then.
        let hole_end = |regions: &Range<u64>| {
            let bytes = self.tracker.bytes(regions);
            let hole = long_hole(&self.look(&bytes)?).map_or(0, |hole| hole.end);
            // The last region of the disk need not be whole.
            Ok::<_, Error>(if hole == bytes.end { regions.end } else { hole / region })
        };
        let is_hole = hole_end(&near)? == near.end;
        let regions = if is_hole { run.start..hole_end(&run)?.max(near.end) } else { near };
        *at = regions.end;
        Ok(Some(Next { regions, is_hole }))
    }

    /// Regions that are to be compared, and not to be copied before that.
    fn next_clean(&self, from: u64, longest: u64) -> Option<Range<u64>> {
        let mut at = from;
        loop {
            let run = self.unverified.next_run(at..u64::MAX, longest)?;
            match self.tracker.dirty().next_run(run.clone(), longest) {
                Some(dirty) if dirty.start == run.start => at = dirty.end,
                Some(dirty) => return Some(run.start..run.end.min(dirty.start)),
                None => return Some(run),
            }
        }
    }
}

impl Scribe {
    /// Writes down what was copied before any layer touched it, after it is durable. What was touched since stays in it: that it was is
    /// found in the layers by who goes on, or was taken back by a power cut, and then nothing of it is on the target.
    fn save(&mut self, site: &Site<'_>) -> Result<()> {
        let copied = site.copied.to_bytes();
        site.target.flush()?;
        self.logbook.save(Waypoint { copied, ..self.waypoint.clone() })?;
        self.next = Instant::now() + LEG;
        Ok(())
    }
}

impl Drop for Tracking<'_> {
    fn drop(&mut self) {
        self.tracker.pace(Duration::ZERO);
        self.stack.untrack();
    }
}

/// The waypoint that stands for nothing copied yet.
pub(super) fn first_waypoint(size: u64, plan: &TransferPlan) -> Waypoint {
    let region = Tracker::new(size).region();
    let none = vec![0; usize::try_from(size.div_ceil(region).div_ceil(8)).unwrap_or_default()];
    let (target, base) = (plan.target.clone(), plan.base.clone());
    Waypoint { sequence: 0, target, base, size, region, copied: none }
}

/// Ranges in order, those that meet as one.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}
