//! `coffer locks`: whether what points need is locked against removal, and for long enough.

use crate::context::Context;
use crate::environment;
use crate::exit::{Result, describe};
use crate::output;
use crate::signal;
use crate::store;
use clap::Subcommand;
use coffer_repo::Kind;
use coffer_repo::backend::lock::Hiding;
use coffer_repo::cancel::Cancel;
use coffer_repo::descriptor;
use coffer_repo::locks::{self, LockOptions, LockReport};
use coffer_repo::repository::Repository;
use coffer_repo::time::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;

/// Objects of each kind that are shown as text; JSON has more.
const SHOWN: usize = 100;

/// Look after locks against removal, in buckets with object lock
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXPLANATION)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXPLANATION: &str = "\
'coffer backup --lock-for 30d' locks everything that its point needs, so that nobody can remove it for 30 days, whatever \
credentials he has. For as long as the point is kept its locks are raised, by 'coffer gc' or 'coffer locks extend', whenever \
less than half of the term is left: run one of them at least that often. A forgotten point's locks are raised no more, and its \
space becomes free when they end.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Name what is locked too short, is missing or hidden; exits with 3 when there is anything
    Audit,
    /// Raise locks of which less than half is left
    Extend {
        /// Tell what would be raised, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Show again what somebody hid who could not remove it: takes away delete markers, and versions laid over an object
    Reveal,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let cancel = signal::cancel(&context.terminal)?;
        let own = match self.command {
            Command::Reveal => reveal_own(context, &cancel)?,
            _ => 0,
        };
        let repo = context.open()?;
        let options = LockOptions::new(environment::now()?);
        match self.command {
            Command::Audit => {
                let report = watched(context, "looking at locks", || locks::audit(&repo, options, &cancel))?;
                warn(context, &repo, &report);
                let verdict = if report.is_clean() { "everything is locked as it should be\n" } else { "" };
                context.print(object(&report), &format!("{}{verdict}", text(&report, "too short")))
            }
            Command::Extend { dry_run: true } => {
                let report = watched(context, "looking at locks", || locks::audit(&repo, options, &cancel))?;
                let mut object = object(&report);
                object["dry_run"] = true.into();
                context.print(object, &text(&report, "would be raised"))
            }
            Command::Extend { dry_run: false } => {
                let report = raised(context, &repo, options, &cancel)?;
                let mut object = object(&report);
                object["dry_run"] = false.into();
                context.print(object, &text(&report, "raised"))
            }
            Command::Reveal => {
                let (revealed, failed) = watched(context, "revealing", || locks::reveal(&repo, &cancel))?;
                for (name, error) in &failed {
                    context.terminal.warn(format_args!("{name} stays hidden: {}", describe(error)));
                }
                let left: Vec<&str> = failed.iter().map(|(name, _)| name.as_str()).collect();
                let revealed = revealed + own;
                let text = format!("{revealed} objects show again\n");
                context.print(json!({ "revealed": revealed, "still_hidden": left }), &text)
            }
        }
    }
}

/// Where the descriptor does not show, shows what the repository is opened by. How many objects.
fn reveal_own(context: &Context, cancel: &Cancel) -> Result<u64> {
    let store = store::open_existing(&context.address()?)?;
    match store.size(descriptor::OBJECT_NAME)? {
        Some(_) => Ok(0),
        None => watched(context, "revealing", || locks::reveal_own(&*store, cancel)),
    }
}

fn watched<T>(context: &Context, title: &str, work: impl FnOnce() -> coffer_repo::Result<T> + Send) -> Result<T>
where
    T: Send,
{
    Ok(context.terminal.counting(title, |_| work())?)
}

/// Raises what is due, and warns of what cannot be: as gc does at its end.
fn raised(context: &Context, repo: &Arc<Repository>, options: LockOptions, cancel: &Cancel) -> Result<LockReport> {
    let report = watched(context, "raising locks", || locks::extend(repo, options, cancel))?;
    for name in report.missing.iter().take(SHOWN) {
        context.terminal.warn(format_args!("{name} is not there and cannot be locked; see 'coffer verify'"));
    }
    warn_unreadable(context, repo, &report);
    Ok(report)
}

/// Raises the locks of kept points, if any asks for some. `None`: none does, or the store has no locks.
pub(crate) fn raise_at_end(
    context: &Context,
    repo: &Arc<Repository>,
    now: Timestamp,
    cancel: &Cancel,
) -> Result<Option<LockReport>> {
    match repo.object_lock() {
        Err(e) if e.kind() == Kind::Unsupported => return Ok(None),
        other => drop(other?),
    }
    let report = raised(context, repo, LockOptions::new(now), cancel)?;
    Ok((report.points > 0).then_some(report))
}

fn warn(context: &Context, repo: &Repository, report: &LockReport) {
    let say = |line: String| context.terminal.warn(line);
    for short in report.named.iter().take(SHOWN) {
        let least = short.least;
        say(match short.until {
            Some(until) => format!("{} is locked until {until} only, and should be until {least}", short.name),
            None => format!("{} is not locked, and should be until {least}", short.name),
        });
    }
    let more = |count: u64| count.saturating_sub(SHOWN as u64);
    if more(report.short) > 0 {
        say(format!("{} more objects are locked too short", more(report.short)));
    }
    if report.short > 0 {
        say("'coffer locks extend' locks them".to_owned());
    }
    for hidden in report.hidden.iter().take(SHOWN) {
        say(match hidden.by {
            Hiding::Marker => format!("{} is hidden: somebody deleted it, and it is there", hidden.name),
            Hiding::Version => format!("{} is hidden: somebody laid another version over it", hidden.name),
        });
    }
    if more(report.hidden_count) > 0 {
        say(format!("{} more objects are hidden", more(report.hidden_count)));
    }
    if report.hidden_count > 0 {
        say("'coffer locks reveal' shows them again".to_owned());
    }
    for name in report.missing.iter().take(SHOWN) {
        say(format!("{name} is needed and not there; see 'coffer verify'"));
    }
    warn_unreadable(context, repo, report);
}

fn warn_unreadable(context: &Context, repo: &Repository, report: &LockReport) {
    for (name, error) in &report.unreadable {
        let point = repo.read_claim(*name).map_or_else(|_| name.to_string(), |c| format!("{}@{}", c.workload, c.time));
        let why = describe(error);
        context.terminal.warn(format_args!("{point} cannot be read, and not all that it needs is known: {why}"));
    }
}

pub(crate) fn object(report: &LockReport) -> Value {
    let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
    let short = report.named.iter().map(
        |short| json!({ "object": short.name, "locked_until": time(short.until), "due": short.least.to_string() }),
    );
    let hidden = report.hidden.iter().map(|hidden| {
        let by = match hidden.by {
            Hiding::Marker => "marker",
            Hiding::Version => "version",
        };
        json!({ "object": hidden.name, "by": by })
    });
    json!({
        "points": report.points,
        "objects": report.objects,
        "short_count": report.short,
        "short": short.collect::<Vec<_>>(),
        "hidden_count": report.hidden_count,
        "hidden": hidden.collect::<Vec<_>>(),
        "missing": report.missing,
        "unreadable": report.unreadable.iter().map(|(name, _)| name.id.to_string()).collect::<Vec<_>>(),
    })
}

fn text(report: &LockReport, short: &str) -> String {
    let rows = [
        ("points", report.points),
        ("objects", report.objects),
        (short, report.short),
        ("hidden", report.hidden_count),
        ("missing", report.missing.len() as u64),
    ];
    output::table(&["", "count"], 1, rows.map(|(what, count)| vec![what.to_owned(), count.to_string()]))
}
