//! CONDUCTOR of hydrations: a fork, in use or not, becomes an ordinary disk somewhere else, and goes on there.
//!
//! ```text
//!   Hydration::begin   one at a time, and no commit beside it -> logbook -> the target opened, or made
//!   Hydration::run     Transfer: copy, compare, barrier -> the header says where it was handed over to, durably -> requests go there
//! ```
//! Not here: what is copied when ([`transfer`]), targets ([`crate::target`]), who shows it. What holds: until the header says so the fork
//! is the disk, and every write that was acknowledged is in it; from then on the target is. At the moment of that both hold the same and
//! nobody writes. A fork is not committed while it is hydrated: a commit exchanges the base that the logbook speaks of. What a commit
//! between two runs leaves of a logbook does not count any more.
//!
//! | it fails | then |
//! |---|---|
//! | before the header | the fork goes on as it was, and the logbook remains |
//! | in placing the header, which is then undone | the same |
//! | in that, and it cannot be undone | the fork takes no more writes: whichever header counts, nothing is lost |
//! | after the header | it is done |
//!
//! The fork's layers and its pin stay until it is dropped; dropping it does not touch the target.

mod bitmap;
mod crew;
mod logbook;
mod progress;
mod site;
mod tracker;
pub mod transfer;
mod waypoint;

use super::folder::{place_header, sync_folder};
use super::header::ForkHeader;
use super::medium::{FileMedium, Medium};
use super::opened::{Fork, Ledger};
use crate::device::BlockDevice;
use crate::target::{Overwrite, Place, Target};
use crate::{Error, Kind, Result};
use coffer_repo::cancel::Cancel;
use logbook::Logbook;
use std::num::NonZeroU64;
use std::sync::{Arc, MutexGuard};
use transfer::first_waypoint;

pub use progress::{HydrationProgress, Phase};
pub(in crate::fork) use tracker::Tracker;
pub use transfer::{HandOver, Transfer, TransferPlan, Transferred};
pub use waypoint::Waypoint;

/// The logbook, in the fork's folder.
const LOGBOOK: &str = "hydration";

/// How a fork is hydrated.
#[derive(Clone, Debug)]
pub struct HydrationPlan {
    /// Where to.
    pub to: Place,
    /// Bytes a second that are copied, and again that are compared; while writers have to wait for it, there is no limit.
    pub rate: Option<NonZeroU64>,
    /// Threads that copy, each with 2 MiB.
    pub workers: usize,
    /// Whether what the target holds may be overwritten.
    pub overwrite: Overwrite,
    /// Begin anew, whatever was copied before, and wherever to.
    pub restart: bool,
    /// Have zeroes where the fork cannot be read.
    pub keep_going: bool,
}

/// A hydration under way.
pub struct Hydration<'a> {
    fork: &'a Fork,
    ledger: MutexGuard<'a, Ledger>,
    transfer: Transfer<'a>,
    target: Target,
    name: String,
}

impl<'a> Hydration<'a> {
    /// Opens the target, and begins or goes on. `Locked` when the fork is being committed or hydrated, or the target is in use; `Invalid`
    /// when the fork was handed over, when the target is too small or not empty, and when another one has been begun with.
    pub fn begin(fork: &'a Fork, plan: &HydrationPlan) -> Result<Self> {
        fork.repo.check_full("hydrate forks")?;
        let ledger = fork.take_ledger()?;
        fork.stack.check()?;
        let (size, target) = (fork.size(), plan.to.to_string());
        let (mut logbook, found) = Logbook::open(logbook_of(fork)?)?;
        let found = found.filter(|_| !plan.restart);
        if let Some(found) = found.as_ref().filter(|found| found.target != target) {
            let why = format!("a hydration of the fork to {} has begun: go on with that", found.target);
            return Err(Error::invalid(format!("{why}, or say --restart to give it up and begin with another target")));
        }
        let overwrite = if found.is_some() { Overwrite::Always } else { plan.overwrite };
        let is_needed = found.as_ref().is_some_and(|found| found.copied.iter().any(|byte| *byte != 0));
        let opened = match plan.to.exists() {
            true => Some(plan.to.open_for(size, overwrite)?),
            false if is_needed => {
                let why = "bring it back, or say --restart to copy everything again";
                return Err(Error::not_found(format!(
                    "{target}, which a part of the fork was copied to, is gone; {why}"
                )));
            }
            false => None,
        };
        let named = TransferPlan {
            target: target.clone(),
            base: fork.header().pin.to_string(),
            rate: plan.rate,
            workers: plan.workers,
            keep_going: plan.keep_going,
        };
        if found.is_none() {
            // Before the target is made: so what a crash leaves of it is known to be ours.
            logbook.clear()?;
            logbook.save(first_waypoint(size, &named))?;
        }
        let opened = match opened {
            Some(opened) => opened,
            None => plan.to.create(size).inspect_err(|_| {
                // Nothing was begun. As good as can be.
                let _ = logbook.clear();
            })?,
        };
        let transfer = Transfer::resume(&fork.stack, opened.device(), logbook, found, named)?;
        Ok(Hydration { fork, ledger, transfer, target: opened, name: target })
    }

    /// Counters that go on while it runs.
    #[must_use]
    pub fn progress(&self) -> Arc<HydrationProgress> {
        self.transfer.progress()
    }

    /// Where to, as the fork will have it.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.name
    }

    /// Copies, compares and hands over. Cancelled, or killed, it goes on when it is begun again.
    pub fn run(self, cancel: &Cancel) -> Result<Transferred> {
        let Hydration { fork, ledger, transfer, target, name } = self;
        let done = transfer.run(cancel, || match target.settle_name() {
            Ok(()) => hand_over(fork, &ledger, name),
            Err(e) => HandOver::Failed(e),
        })?;
        // As good as can be: nobody reads it any more.
        let _ = std::fs::remove_file(fork.folder.join(LOGBOOK));
        Ok(done)
    }
}

/// Has the header say that the fork was handed over.
fn hand_over(fork: &Fork, ledger: &Ledger, name: String) -> HandOver {
    let old = fork.header();
    let new = match fork.draft(&ledger.keys, ForkHeader { handed_to: Some(name), ..old.clone() }) {
        Ok(header) => header,
        Err(e) => return HandOver::Failed(e),
    };
    let Err(failed) = place_header(&fork.folder) else {
        fork.set_header(new);
        return HandOver::Done;
    };
    // Either of the two may count now: until the old one does for sure, nothing may be written.
    match fork.draft(&ledger.keys, old).and_then(|old| place_header(&fork.folder).map(|()| old)) {
        Ok(old) => {
            fork.set_header(old);
            HandOver::Failed(failed)
        }
        Err(_) => HandOver::Unknown(failed),
    }
}

/// The fork's logbook, made if there is none.
fn logbook_of(fork: &Fork) -> Result<Arc<dyn Medium>> {
    let path = fork.folder.join(LOGBOOK);
    match FileMedium::open(&path) {
        Err(e) if e.kind() == Kind::NotFound => {
            let made = FileMedium::create(&path)?;
            sync_folder(&fork.folder)?;
            Ok(Arc::new(made))
        }
        opened => Ok(Arc::new(opened?)),
    }
}
