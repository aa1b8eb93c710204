//! `coffer fork hydrate`: a fork becomes an ordinary disk somewhere else.

use super::on_fork;
use crate::budgets::parse_rate;
use crate::context::Context;
use crate::exit::Result;
use crate::output::{self, size};
use crate::terminal::{Sample, Unit};
use coffer_gateway::control::{Errand, HydrationWish, Outcome};
use coffer_gateway::fork::{Fork, ForkName, Hydration, HydrationPlan, HydrationProgress, Phase, Transferred};
use coffer_gateway::target::{Overwrite, Place};
use coffer_mover::range_list::RangeList;
use coffer_repo::Kind;
use coffer_repo::cancel::Cancel;
use coffer_repo::reader::ReaderOptions;
use serde_json::json;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Threads that copy.
const WORKERS: usize = 4;

/// Copy a fork to a disk, compare, and hand the fork over to it. Begun again after it was interrupted, it goes on where it was
#[derive(Debug, clap::Args)]
pub(super) struct Hydrate {
    /// Which one
    name: ForkName,

    /// Where to: a file, which is made if there is none, a block device or an nbd:// URI
    #[arg(long, value_name = "TARGET", value_parser = str::parse::<Place>)]
    to: Place,

    /// The most bytes a second that are copied, as in 50M, but for the last of it, which writers wait for
    #[arg(long, value_name = "BYTES", value_parser = parse_rate)]
    max_rate: Option<NonZeroU64>,

    /// Overwrite what the target holds
    #[arg(long)]
    force: bool,

    /// Begin anew, whatever was copied before and wherever to
    #[arg(long)]
    restart: bool,

    /// Have zeroes, and name them, where the disk could not be read when the backup was made
    #[arg(long)]
    keep_going: bool,
}

impl Hydrate {
    pub(super) fn run(&self, context: &Context) -> Result<()> {
        let wish = HydrationWish {
            to: self.to.to_string(),
            rate: self.max_rate.map(NonZeroU64::get),
            force: self.force,
            restart: self.restart,
            keep_going: self.keep_going,
        };
        // The copiers themselves are a crowd that reads long stretches: fetching ahead of them would only cost copies.
        let options = ReaderOptions { readahead_bytes: 0, ..ReaderOptions::default() };
        on_fork(context, &self.name, Errand::Hydrate(wish), options)
    }
}

fn plan(wish: &HydrationWish) -> Result<HydrationPlan> {
    Ok(HydrationPlan {
        to: wish.to.parse()?,
        rate: wish.rate.and_then(NonZeroU64::new),
        workers: WORKERS,
        overwrite: if wish.force { Overwrite::Always } else { Overwrite::IfEmpty },
        restart: wish.restart,
        keep_going: wish.keep_going,
    })
}

/// A fork that was handed over.
struct Hydrated {
    target: String,
    progress: Arc<HydrationProgress>,
    done: Transferred,
    took: Duration,
}

/// Hydrates an open fork, in use or not.
pub(super) fn hydrate(
    context: &Context,
    name: &ForkName,
    fork: &Fork,
    wish: &HydrationWish,
    cancel: &Cancel,
) -> Result<Outcome> {
    let began = Instant::now();
    let hydration = Hydration::begin(fork, &plan(wish)?)?;
    let (progress, target) = (hydration.progress(), hydration.target().to_owned());
    let sample = || sample(&progress);
    let done = context.terminal.during("hydrating", Unit::Bytes, &sample, || hydration.run(cancel));
    let done = done.map_err(|e| match e.kind() {
        Kind::Cancelled => e.within("the fork is as it was; the same command goes on where this one was"),
        _ => e,
    })?;
    Ok(Hydrated { target, progress, done, took: began.elapsed() }.outcome(context, name))
}

/// Copying is half of it, comparing the other.
fn sample(progress: &HydrationProgress) -> Sample {
    let note = match progress.phase() {
        Phase::Copying => "copying",
        Phase::Verifying => "comparing",
        Phase::CatchingUp => "catching up with what is written",
        Phase::HandingOver | Phase::Done => "handing over",
    };
    let size = progress.size();
    let done = size - progress.remaining() + progress.verified().min(size);
    Sample { done, total: Some(size.saturating_mul(2)), note: note.to_owned() }
}

impl Hydrated {
    /// What is said of it; what is lost is warned of.
    fn outcome(&self, context: &Context, name: &ForkName) -> Outcome {
        let Hydrated { target, progress, done, took } = self;
        let mut unreadable = RangeList::default();
        done.unreadable.iter().for_each(|range| unreadable.add(range.clone()));
        if !unreadable.is_empty() {
            let named = output::ranges(&unreadable);
            context.terminal.warn(format_args!("fork {name}: zeroes now, since lost: {named}"));
        }
        let (seconds, pause) = (took.as_secs_f64(), done.pause.as_secs_f64());
        let mut text = format!("handed fork {name} over to {target} in {seconds:.1} s; writers waited {pause:.2} s\n");
        text += &format!("wrote {}, left out {} of zeroes", size(progress.copied()), size(progress.zero()));
        if progress.resumed() > 0 {
            text += &format!(", found {} done by an earlier run", size(progress.resumed()));
        }
        text += ", read it back and found it right\n";
        let object = json!({
            "fork": name.to_string(),
            "target": target,
            "duration_seconds": seconds,
            "pause_seconds": pause,
            "size": progress.size(),
            "written": progress.copied(),
            "zero": progress.zero(),
            "resumed": progress.resumed(),
            "verified": progress.verified(),
            "unreadable": output::ranges_object(&unreadable),
        });
        Outcome { object, text }
    }
}
