//! `coffer fork`: writable copies of disks of points, on this machine.
//!
//! Not here: what a fork is ([`coffer_gateway::fork`]). What holds: one process has a fork; what takes long and concerns its content is an
//! errand, which that process does: this one when nobody else has it, else the one that does, by the fork's socket.

mod hydrate;

use crate::backup::{ATTEMPTS, Summary, sample, time_after};
use crate::context::{Context, choose_disk, entropy};
use crate::environment;
use crate::exit::{Failure, Result, describe};
use crate::output::{self, size};
use crate::signal;
use crate::terminal::Unit;
use clap::Subcommand;
use coffer_gateway::Export;
use coffer_gateway::control::fork_socket::{self, ForkSocket, Teller};
use coffer_gateway::control::{Errand, Outcome};
use coffer_gateway::fork::{CommitPlan, Fork, ForkHeader, ForkName, Forks, ListedFork};
use coffer_mover::backup::BackupReport;
use coffer_repo::Kind;
use coffer_repo::backend::cached::Intake;
use coffer_repo::cancel::Cancel;
use coffer_repo::point::PointName;
use coffer_repo::reader::{Reader, ReaderOptions};
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::Snapshot;
use coffer_repo::writer::WriterOptions;
use hydrate::Hydrate;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Make writable copies of disks, which take space only for what is written to them
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(Create),
    List(List),
    Commit(Commit),
    Hydrate(Hydrate),
    Drop(Drop),
}

/// Make a fork of a disk; 'coffer serve nbd ... fork:NAME' serves it
#[derive(Debug, clap::Args)]
struct Create {
    /// What to call it: up to 64 of A-Z a-z 0-9 . _ -
    name: ForkName,

    /// Of what
    #[arg(value_parser = PointName::parse, value_name = "POINT[:DISK]")]
    point: PointName,
}

/// List the forks of the repository on this machine
#[derive(Debug, clap::Args)]
struct List {}

/// Make a point of what a fork is now, and have the fork go on from there
#[derive(Debug, clap::Args)]
struct Commit {
    /// Which one
    name: ForkName,

    /// A word to remember the point by, or several with commas between them; may be repeated
    #[arg(long = "tag", value_name = "TAG[,TAG..]", value_delimiter = ',')]
    tags: Vec<String>,
}

/// Drop forks: what was written to them is gone, and their points are no longer held; what they were handed over to is not touched
#[derive(Debug, clap::Args)]
struct Drop {
    /// Which ones
    #[arg(required = true, value_name = "NAME")]
    names: Vec<ForkName>,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        match &self.command {
            Command::Create(create) => create.run(context),
            Command::List(list) => list.run(context),
            Command::Commit(commit) => commit.run(context),
            Command::Hydrate(hydrate) => hydrate.run(context),
            Command::Drop(drop) => drop.run(context),
        }
    }
}

impl Create {
    fn run(&self, context: &Context) -> Result<()> {
        let repo = context.open()?;
        let forks = forks(context, &repo)?;
        let snapshot = context.find(&repo, &self.point)?;
        let disk = choose_disk(&self.point, &snapshot)?;
        let (identity, now, boot) = (environment::identity(), environment::now()?, environment::boot()?);
        let header = forks.create(&repo, &self.name, &snapshot, disk, &identity, now, boot)?;
        let text = format!("made fork {} of {}\n", self.name, origin(&header));
        context.print(json!({ "fork": object(&self.name, &header) }), &text)
    }
}

impl List {
    fn run(&self, context: &Context) -> Result<()> {
        let repo = context.open()?;
        let forks = forks(context, &repo)?.list()?;
        let objects: Vec<Value> = forks
            .iter()
            .map(|fork| {
                let mut object = match &fork.header {
                    Ok(header) => self::object(&fork.name, header),
                    Err(e) => json!({ "name": fork.name.to_string(), "error": describe(e) }),
                };
                object["taken"] = fork.taken.into();
                object["is_open"] = fork.is_open.into();
                object
            })
            .collect();
        for fork in &forks {
            if let Err(e) = &fork.header {
                context.terminal.warn(format_args!("fork '{}' is damaged: {}", fork.name, describe(e)));
            }
        }
        let table = output::table(&["fork", "of", "made", "state", "size", "taken"], 4, forks.iter().map(row));
        context.print(json!({ "forks": objects }), &table)
    }
}

impl Commit {
    fn run(&self, context: &Context) -> Result<()> {
        on_fork(context, &self.name, Errand::Commit { tags: self.tags.clone() }, ReaderOptions::default())
    }
}

/// Has something done to a fork: here, or by the process that has it open.
fn on_fork(context: &Context, name: &ForkName, errand: Errand, options: ReaderOptions) -> Result<()> {
    let repo = context.open_cached(Intake::Pass)?;
    let reader = context.reader(&repo, options)?;
    let outcome = match open(context, &repo, &reader, name) {
        Err(Failure::Failed(e)) if e.kind() == Kind::Locked => {
            let folder = forks(context, &repo)?.folder(name);
            let sent = context.terminal.relay("waiting", |tell| fork_socket::send(&folder, &errand, tell))?;
            sent.ok_or(e)?
        }
        fork => {
            let (fork, cancel) = (fork?, signal::cancel(&context.terminal)?);
            let outcome = run_errand(context, &repo, name, &fork, errand, &cancel);
            let closed = fork.close();
            let outcome = outcome?;
            closed?;
            outcome
        }
    };
    context.print(outcome.object, &outcome.text)
}

/// Does an errand to an open fork, in use or not.
fn run_errand(
    context: &Context,
    repo: &Arc<Repository>,
    name: &ForkName,
    fork: &Fork,
    errand: Errand,
    cancel: &Cancel,
) -> Result<Outcome> {
    match errand {
        Errand::Commit { tags } => commit(context, repo, fork, &tags, cancel),
        Errand::Hydrate(wish) => hydrate::hydrate(context, name, fork, &wish, cancel),
    }
}

/// Does errands for other commands, for as long as this process has the fork.
pub(crate) fn open_socket(
    context: &Context,
    repo: &Arc<Repository>,
    name: &ForkName,
    fork: &Arc<Fork>,
) -> Result<ForkSocket> {
    let folder = forks(context, repo)?.folder(name);
    let (context, repo, name, fork) = (context.clone(), Arc::clone(repo), name.clone(), Arc::clone(fork));
    let work = move |errand: Errand, teller: &Arc<Teller>| {
        let listener = Arc::clone(teller);
        let told = context.told(move |word| listener.tell(&word));
        let what = errand.to_string();
        context.terminal.notice(format_args!("fork '{name}': asked to {what}"));
        let outcome = run_errand(&told, &repo, &name, &fork, errand, teller.cancel()).map_err(Failure::into_error);
        match &outcome {
            Ok(_) => context.terminal.notice(format_args!("fork '{name}': the {what} is done")),
            Err(e) => context.terminal.notice(format_args!("fork '{name}': the {what} failed: {}", describe(e))),
        }
        outcome
    };
    Ok(ForkSocket::open(&folder, work)?)
}

/// Commits an open fork, in use or not. One that a collector overtakes is made once more.
fn commit(context: &Context, repo: &Arc<Repository>, fork: &Fork, tags: &[String], cancel: &Cancel) -> Result<Outcome> {
    let index = context.index(repo)?;
    let began = Instant::now();
    let mut attempts_left = ATTEMPTS;
    loop {
        attempts_left -= 1;
        let (workload, origin) = (fork.header().workload, fork.header().point.time);
        let points = context.points(repo)?;
        let last = points.iter().filter(|point| point.workload == workload).map(Snapshot::time).max();
        let plan = CommitPlan {
            tags: tags.to_vec(),
            identity: environment::identity(),
            time: time_after(last.max(Some(origin)), environment::now()?, &context.terminal)?,
            writer: WriterOptions { lock_for: context.settings.lock_for, ..WriterOptions::default() },
        };
        let commit = coffer_gateway::fork::Commit::begin(fork, &index, plan)?;
        let (progress, total) = (commit.progress(), Some(commit.size()));
        let sample = || sample(&progress, total);
        match context.terminal.during("committing", Unit::Bytes, &sample, || commit.run(cancel)) {
            Ok(snapshot) => {
                let report = BackupReport { snapshot, unreadable: BTreeMap::new(), warnings: Vec::new() };
                let summary = Summary { report: &report, progress: &progress, took: began.elapsed(), is_dry: false };
                return Ok(Outcome { object: summary.object(), text: summary.text() });
            }
            Err(e) if e.kind() == Kind::Overtaken && attempts_left > 0 => {
                context.terminal.notice(format_args!("{}: it is made once more", describe(&e)));
                context.learn(repo, &index)?;
            }
            Err(e) => return Err(e.into()),
        }
    }
}

impl Drop {
    fn run(&self, context: &Context) -> Result<()> {
        let repo = context.open()?;
        let forks = forks(context, &repo)?;
        for name in &self.names {
            forks.remove(&repo, name, environment::now()?)?;
        }
        let names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
        let text: String = names.iter().map(|name| format!("dropped fork {name}\n")).collect();
        context.print(json!({ "dropped": names }), &text)
    }
}

/// Opens a fork to be served.
pub(crate) fn open(context: &Context, repo: &Arc<Repository>, reader: &Arc<Reader>, name: &ForkName) -> Result<Fork> {
    Ok(forks(context, repo)?.open(repo, reader, name, environment::boot()?, environment::now()?, entropy())?)
}

/// A fork as an export.
pub(crate) fn export(called: &str, name: &ForkName, fork: Arc<Fork>) -> Export {
    let description = format!("fork {name} of {}", origin(&fork.header()));
    Export { description, ..Export::new(called.to_owned(), fork) }
}

fn forks(context: &Context, repo: &Repository) -> Result<Forks> {
    Ok(Forks::new(context.settings.state()?.join(repo.keys().repo().to_string()).join("forks")))
}

fn origin(header: &ForkHeader) -> String {
    format!("{}@{}:{}", header.workload, header.point.time, header.disk)
}

fn object(name: &ForkName, header: &ForkHeader) -> Value {
    json!({
        "name": name.to_string(),
        "point": header.point.id.to_string(),
        "workload": header.workload,
        "point_time": header.point.time.to_string(),
        "disk": header.disk,
        "size": header.size,
        "time": header.created.to_string(),
        "time_seconds": header.created.seconds(),
        "pin": header.pin.id.to_string(),
        "handed_to": header.handed_to,
    })
}

fn row(fork: &ListedFork) -> Vec<String> {
    let mut state = if fork.is_open { "open".to_owned() } else { String::new() };
    if let Ok(ForkHeader { handed_to: Some(target), .. }) = &fork.header {
        let comma = if state.is_empty() { "" } else { ", " };
        state += &format!("{comma}handed over to {target}");
    }
    let (of, made, bytes) = match &fork.header {
        Ok(header) => (origin(header), header.created.to_string(), size(header.size)),
        Err(_) => ("damaged".to_owned(), String::new(), String::new()),
    };
    vec![fork.name.to_string(), of, made, state, bytes, size(fork.taken)]
}
