//! `coffer thaw`: what a point needs and lies in a cold tier is made readable; and what a restore says or does about it first.
//!
//! Not here: thawing ([`coffer_repo::thaw`]). What holds: a restore meets no frozen pack after its first byte, as far as the store's
//! rules tell; where they tell nothing of cold tiers it costs one request.

use crate::context::{Context, choose_disk};
use crate::environment;
use crate::exit::{Result, wrong_use};
use crate::output::{self, size};
use crate::signal;
use crate::terminal::{Sample, Unit};
use coffer_repo::backend::archive::{Order, Speed};
use coffer_repo::cancel::Cancel;
use coffer_repo::collector::PackSum;
use coffer_repo::point::PointName;
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::Snapshot;
use coffer_repo::thaw::{self, Stage, ThawOptions, ThawReport};
use coffer_repo::{Error, Kind};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};

/// Missing packs that are shown as text; JSON has more.
const SHOWN: usize = 100;

/// Have the store thaw what a point needs and lies in a cold tier, as S3 Glacier; run again it tells how far that is
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXPLANATION)]
pub(crate) struct Arguments {
    /// Which point, or which disk of it
    #[arg(value_name = "POINT[:DISK]", value_parser = PointName::parse)]
    point: PointName,

    /// Tell what must be thawed, and ask for nothing
    #[arg(long, conflicts_with_all = ["wait", "days", "speed"])]
    dry_run: bool,

    /// Wait until all of it can be read; may be interrupted and said again
    #[arg(long)]
    wait: bool,

    /// For how many days it can be read then
    #[arg(long, value_name = "N", default_value_t = Order::default().days, value_parser = days)]
    days: u32,

    /// How soon: standard, bulk (later and cheaper) or expedited (within minutes, dear, not from the deep archive)
    #[arg(long, default_value_t = Speed::default(), value_parser = str::parse::<Speed>)]
    speed: Speed,
}

const EXPLANATION: &str = "\
Packs get into a cold tier by a lifecycle rule of the bucket, which has to be about packs/ alone, or by -o storage-class=GLACIER or \
DEEP_ARCHIVE, with which only packs are put. To list and check backups, and to make more, takes no pack; to restore, mount, serve or copy \
one does. Amazon thaws in 3 to 5 hours (12 from the deep archive), --speed bulk in 5 to 12 (48), --speed expedited in minutes. The store \
charges for it; what it thawed lies there for --days as a copy, and then it is frozen again, with nobody's doing.";

/// How many days a copy may be wanted for.
pub(crate) fn days(text: &str) -> std::result::Result<u32, String> {
    let days = text.parse().ok().filter(|days| (1..=Order::MOST_DAYS).contains(days));
    days.ok_or_else(|| format!("say a number of days from 1 to {}", Order::MOST_DAYS))
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        if self.point.path.is_some() {
            return Err(wrong_use("packs are thawed for whole disks: name POINT[:DISK]"));
        }
        let repo = context.open()?;
        // Before anything is walked.
        repo.archive()?;
        let snapshot = context.find(&repo, &self.point)?;
        let wanted = match self.point.disk {
            None => snapshot.clone(),
            Some(_) => only(&snapshot, &choose_disk(&self.point, &snapshot)?.name),
        };
        let cancel = signal::cancel(&context.terminal)?;
        let options = options(Order { days: self.days, speed: self.speed })?;
        let report = match (self.dry_run, self.wait) {
            (true, _) => context
                .terminal
                .counting("looking for frozen packs", |_| thaw::look(&repo, &wanted, options, &cancel))?,
            (false, true) => wait(context, &repo, &wanted, options, &cancel)?,
            (false, false) => {
                context.terminal.counting("asking for frozen packs", |_| thaw::ask(&repo, &wanted, options, &cancel))?
            }
        };
        warn(context, &report);
        let mut object = object(&report);
        object["snapshot"] = output::snapshot(&snapshot);
        object["disks"] = wanted.disks.iter().map(|disk| disk.name.as_str()).collect();
        object["dry_run"] = self.dry_run.into();
        context.print(object, &self.text(&report))
    }

    fn text(&self, report: &ThawReport) -> String {
        let row = |what: &str, amount: PackSum| vec![what.to_owned(), amount.packs.to_string(), size(amount.bytes)];
        let needed = if report.stage == Stage::Maps { "of maps, cold" } else { "needed" };
        let rows = [row(needed, report.needed), row("frozen", report.frozen), row("thawing", report.thawing)];
        let table = output::table(&["", "packs", "size"], 1, rows);
        let ends = report.until.map(|until| format!(" until {until}")).unwrap_or_default();
        let verdict = match (report.is_ready(), report.stage) {
            (true, _) => format!("all that is needed can be read{ends}"),
            (false, Stage::Maps) if self.dry_run => {
                "the maps of disks are frozen themselves, and come first".to_owned()
            }
            (false, Stage::Maps) => {
                "the maps of disks were asked for; when they are thawed say this again for what they name".to_owned()
            }
            (false, Stage::Packs) if self.dry_run => "say this without --dry-run to have it thawed".to_owned(),
            (false, Stage::Packs) => "it was asked for; say this again to see how far it is, or --wait".to_owned(),
        };
        format!("{table}{verdict}\n")
    }
}

/// What a restore does about what is frozen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wish {
    /// It says what it is, and ends.
    Refuse,
    /// It has it thawed, and waits.
    Wait(Order),
}

/// Sees before a restore that a disk of a point can be read.
pub(crate) fn before_restore(
    context: &Context,
    repo: &Arc<Repository>,
    (snapshot, disk): (&Snapshot, &str),
    wish: Wish,
    cancel: &Cancel,
) -> Result<()> {
    let Some(archive) = repo.backend().archive() else { return Ok(()) };
    let wanted = only(snapshot, disk);
    let report = match wish {
        Wish::Wait(order) => {
            wait(context, repo, &wanted, options(order)?, cancel)?;
            return Ok(());
        }
        Wish::Refuse if !archive.may_freeze()? => return Ok(()),
        Wish::Refuse => context
            .terminal
            .counting("looking for frozen packs", |_| thaw::look(repo, &wanted, options(Order::default())?, cancel))?,
    };
    if report.is_ready() {
        return Ok(());
    }
    let name = format!("{}@{}:{disk}", snapshot.workload, snapshot.time());
    let (what, of) = match report.stage {
        Stage::Maps => ("the maps of disks lie in a cold tier: ", "cold packs of maps"),
        Stage::Packs => ("", "packs that it takes"),
    };
    let why = format!(
        "{name} cannot be restored yet, and nothing was written: {what}of {} {of} {} ({}) are frozen and {} ({}) are being thawed; \
         'coffer restore --thaw' has them thawed, waits and restores, 'coffer thaw {name}' has them thawed and ends",
        report.needed.packs,
        report.frozen.packs,
        size(report.frozen.bytes),
        report.thawing.packs,
        size(report.thawing.bytes),
    );
    Err(Error::new(Kind::Frozen, why).into())
}

fn options(order: Order) -> coffer_repo::Result<ThawOptions> {
    Ok(ThawOptions { order, ..ThawOptions::new(environment::now()?) })
}

/// A point with one of its disks.
fn only(snapshot: &Snapshot, disk: &str) -> Snapshot {
    let mut snapshot = snapshot.clone();
    snapshot.disks.retain(|other| other.name == disk);
    snapshot
}

/// Waits until everything can be read, and shows how far it is.
fn wait(
    context: &Context,
    repo: &Arc<Repository>,
    wanted: &Snapshot,
    options: ThawOptions,
    cancel: &Cancel,
) -> Result<ThawReport> {
    let state = Mutex::new(Sample { done: 0, total: None, note: String::new() });
    let state = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let mut tell = |report: &ThawReport, done: u64| {
        let mut waiting = report.frozen;
        waiting += report.thawing;
        if done == 0 {
            let what = if report.stage == Stage::Maps { "packs of maps" } else { "packs" };
            context.terminal.notice(format_args!(
                "thawing {} {what}, {} ({} of them were asked for before); interrupted, it goes on when the same is said again",
                waiting.packs,
                size(waiting.bytes),
                report.thawing.packs
            ));
        }
        *state() = Sample { done, total: Some(waiting.packs), note: String::new() };
        Ok(())
    };
    let work = || thaw::wait(repo, wanted, options, cancel, &mut tell);
    let waited = context.terminal.during("thawing", Unit::Count, &|| state().clone(), work);
    Ok(waited.map_err(|e| match e.kind() {
        Kind::Cancelled => e.within("what was asked for goes on thawing"),
        _ => e,
    })?)
}

fn warn(context: &Context, report: &ThawReport) {
    for name in report.missing.iter().take(SHOWN) {
        context.terminal.warn(format_args!("{name} is needed and not there; see 'coffer verify'"));
    }
    if report.missing.len() > SHOWN {
        context.terminal.warn(format_args!("{} more packs are needed and not there", report.missing.len() - SHOWN));
    }
    for (_, error) in &report.unreadable {
        let why = crate::exit::describe(error);
        context.terminal.warn(format_args!("a map is damaged, and not all that is needed is known: {why}"));
    }
    if report.stage == Stage::Maps {
        let why =
            "a rule of the bucket freezes trees/, which every command reads; have it leave alone everything but packs/";
        context.terminal.warn(why);
    }
}

fn object(report: &ThawReport) -> Value {
    let amount = |amount: PackSum| json!({ "packs": amount.packs, "bytes": amount.bytes });
    json!({
        "stage": match report.stage {
            Stage::Maps => "maps",
            Stage::Packs => "packs",
        },
        "is_ready": report.is_ready(),
        "needed": amount(report.needed),
        "frozen": amount(report.frozen),
        "thawing": amount(report.thawing),
        "ready_until": report.until.map(|until| until.to_string()),
        "ready_until_seconds": report.until.map(coffer_repo::time::Timestamp::seconds),
        "missing": report.missing,
    })
}
