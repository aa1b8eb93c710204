//! `coffer backup`: disks become a point.

use crate::context::Context;
use crate::environment;
use crate::exit::{Result, describe};
use crate::output::{self, size};
use crate::signal;
use crate::terminal::{Sample, Terminal, Unit};
use coffer_mover::backup::{Backup, BackupPlan, BackupReport};
use coffer_mover::image_format::ImageFormat;
use coffer_mover::source::SourceOptions;
use coffer_repo::index::{Index, IndexOptions, LEARN_EVERY, Learner, LearnerOptions};
use coffer_repo::lock_for::LockFor;
use coffer_repo::repository::Repository;
use coffer_repo::seal;
use coffer_repo::snapshot::Snapshot;
use coffer_repo::time::Timestamp;
use coffer_repo::writer::{Progress, WriterOptions};
use coffer_repo::{Error, Kind};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// At how many random places a source's word that something is unchanged is checked.
const SAMPLED_PLACES: usize = 16;

/// How often a backup is made that a collector overtakes: what it relied on is gone then, and the next time it is not relied on.
pub(crate) const ATTEMPTS: u32 = 3;

/// How long a backup waits for its index before it begins with what that knows.
const LEARN_PATIENCE: Duration = Duration::from_secs(10);

/// By how much a point may lie ahead of the clock before that is worth a word.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// Back up disks
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What the disks belong to: points of one workload follow each other
    #[arg(short, long)]
    workload: String,

    /// The disks: files, devices, nbd:// URIs or -. DISK names one in the point; without it, its file's name does
    #[arg(required = true, value_name = "[DISK=]SOURCE")]
    sources: Vec<String>,

    /// A word to remember the point by, or several with commas between them; may be repeated
    #[arg(long = "tag", value_name = "TAG[,TAG..]", value_delimiter = ',')]
    tags: Vec<String>,

    /// Read and count, but store nothing
    #[arg(long)]
    dry_run: bool,

    /// Go on where a source cannot be read; what is lost is named, and reading it from the point is an error
    #[arg(long)]
    keep_going: bool,

    /// Read a device although it is mounted read-write: what is read may not be of one moment
    #[arg(long)]
    live: bool,

    /// The format of image files. Without it, name and content decide
    #[arg(long, value_parser = str::parse::<ImageFormat>)]
    format: Option<ImageFormat>,

    /// Compress so hard, from 1 to 19
    #[arg(long, value_name = "LEVEL", default_value_t = 1, value_parser = clap::value_parser!(i32).range(seal_levels()))]
    compression: i32,

    /// Lock everything that the point needs against removal for so long, in a bucket with object lock: hours, days, weeks or years,
    /// as in 30d. See 'coffer locks'
    #[arg(long, value_name = "TERM", value_parser = str::parse::<LockFor>)]
    lock_for: Option<LockFor>,

    /// Whose stored content is relied on, rather than stored again
    #[arg(long, value_enum, default_value_t = DedupScope::Trusted)]
    dedup_scope: DedupScope,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum DedupScope {
    /// This writer's own, and that of full keys
    Trusted,
    /// That of every writer with a certificate
    All,
}

pub(crate) fn seal_levels() -> std::ops::RangeInclusive<i64> {
    i64::from(*seal::LEVELS.start())..=i64::from(*seal::LEVELS.end())
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let repo = context.open()?;
        repo.check_writable()?;
        let cancel = signal::cancel(&context.terminal)?;
        let (mut index, mut learner, _scratch) = match self.dry_run {
            true => private_index(context, &repo).map(|(index, scratch)| (index, None, Some(scratch)))?,
            false => learning_index(context, &repo).map(|(index, learner)| (index, Some(learner), None))?,
        };
        let began = Instant::now();
        let mut attempts_left = ATTEMPTS;
        let (report, progress) = loop {
            attempts_left -= 1;
            let plan = self.plan(context.points(&repo)?, self.lock_for.or(context.settings.lock_for));
            let now = time_after(plan.parent.as_ref().map(Snapshot::time), environment::now()?, &context.terminal)?;
            let backup = Backup::begin(&repo, &index, plan, now, &cancel)?;
            let (progress, total) = (backup.progress(), backup.size()?);
            let sample = || sample(&progress, total);
            match context.terminal.during("backing up", Unit::Bytes, &sample, || backup.run(&cancel)) {
                Ok(report) => break (report, progress),
                // A stream cannot be read twice.
                Err(e) if e.kind() == Kind::Overtaken && total.is_some() && attempts_left > 0 => {
                    context.terminal.notice(format_args!("{}: it is made once more", describe(&e)));
                    context.learn(&repo, &index)?;
                }
                // What its damage hides may be stored: what was uploaded since is found when it is made again.
                Err(e) if index.is_damaged() && !self.dry_run && total.is_some() && attempts_left > 0 => {
                    context.terminal.notice(format_args!("{}: the backup is made once more", describe(&e)));
                    drop((index, learner));
                    let (another, its_learner) = learning_index(context, &repo)?;
                    (index, learner) = (another, Some(its_learner));
                }
                Err(e) => return Err(e.into()),
            }
        };
        let took = began.elapsed();
        for warning in &report.warnings {
            context.terminal.warn(warning);
        }
        for (disk, ranges) in &report.unreadable {
            context.terminal.warn(format_args!("disk {disk}: could not be read: {}", output::ranges(ranges)));
        }
        let summary = Summary { report: &report, progress: &progress, took, is_dry: self.dry_run };
        context.print(summary.object(), &summary.text())
    }
}

impl Arguments {
    /// What to do, given the points there are.
    fn plan(&self, points: Vec<Snapshot>, lock_for: Option<LockFor>) -> BackupPlan {
        BackupPlan {
            workload: self.workload.clone(),
            sources: self.sources.clone(),
            parent: points.into_iter().rfind(|point| point.workload == self.workload),
            tags: self.tags.clone(),
            identity: environment::identity(),
            source: SourceOptions {
                live: self.live,
                format: self.format,
                scratch: environment::scratch(),
                ..SourceOptions::default()
            },
            keep_going: self.keep_going,
            sampled_places: SAMPLED_PLACES,
            writer: WriterOptions {
                compression_level: self.compression,
                trust_everyone: self.dedup_scope == DedupScope::All,
                dry_run: self.dry_run,
                lock_for,
                ..WriterOptions::default()
            },
        }
    }
}

/// The time of a new point: now, but after the point it follows, so that the later one is always the latest, also of two in
/// one second or after the clock was set back.
pub(crate) fn time_after(
    parent: Option<Timestamp>,
    now: Timestamp,
    terminal: &Terminal,
) -> coffer_repo::Result<Timestamp> {
    let Some(last) = parent.filter(|last| *last >= now) else { return Ok(now) };
    if last.seconds() - now.seconds() > CLOCK_TOLERANCE.as_secs() {
        terminal.warn(format_args!(
            "the point before is of {last}, and the clock says {now}; the new one is dated after it"
        ));
    }
    Timestamp::from_seconds(last.seconds() + 1)
}

/// This machine's index, which goes on to learn what other machines store while the backup runs: the backup does not wait for all
/// that there is to learn.
fn learning_index(context: &Context, repo: &Arc<Repository>) -> Result<(Arc<Index>, Learner)> {
    let (index, is_in_step) = context.index_within(repo, Some(LEARN_PATIENCE))?;
    if !is_in_step {
        context.terminal.notice(
            "there is much to learn of what is stored: it is learnt while the backup runs, and what is not known yet is stored again",
        );
    }
    let first = if is_in_step { LEARN_EVERY } else { Duration::ZERO };
    let terminal = Arc::clone(&context.terminal);
    let learner = Learner::start(repo, &index, LearnerOptions { first, every: LEARN_EVERY }, move |learnt| {
        if let Err(e) = learnt {
            terminal.notice(format_args!(
                "what others stored meanwhile is not known, and may be stored again: {}",
                describe(&e)
            ));
        }
    })?;
    Ok((index, learner))
}

/// An index for one dry run, which learns what would be stored and must not tell the next backup.
fn private_index(context: &Context, repo: &Repository) -> Result<(Arc<Index>, TempDir)> {
    let folder = context.cache_folder(repo)?;
    let failed = |e| Error::io(format!("making a folder for the dry run's index in {}", folder.display()), e);
    std::fs::create_dir_all(&folder).map_err(failed)?;
    let scratch = tempfile::Builder::new().prefix("dry-run-").tempdir_in(&folder).map_err(failed)?;
    let index = Index::open(scratch.path(), repo.keys().repo(), IndexOptions::default())?;
    context.learn(repo, &index)?;
    Ok((Arc::new(index), scratch))
}

pub(crate) fn sample(progress: &Progress, total: Option<u64>) -> Sample {
    let (done, new) = (load(&progress.done), load(&progress.new_raw));
    // The last window of a disk counts as a whole one.
    let done = total.map_or(done, |total| done.min(total));
    Sample { done, total, note: format!("{} new, stored in {}", size(new), size(load(&progress.new_stored))) }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// What is said of a backup that was made.
pub(crate) struct Summary<'a> {
    pub(crate) report: &'a BackupReport,
    pub(crate) progress: &'a Progress,
    pub(crate) took: Duration,
    pub(crate) is_dry: bool,
}

impl Summary<'_> {
    pub(crate) fn object(&self) -> Value {
        let Progress { read, zero, reused, .. } = self.progress;
        let mut snapshot = output::snapshot(&self.report.snapshot);
        if self.is_dry {
            snapshot["id"] = Value::Null;
        }
        let unreadable = self.report.unreadable.iter();
        let unreadable: serde_json::Map<String, Value> =
            unreadable.map(|(disk, ranges)| (disk.clone(), output::ranges_object(ranges))).collect();
        json!({
            "snapshot": snapshot,
            "dry_run": self.is_dry,
            "duration_seconds": self.took.as_secs_f64(),
            "read": load(read),
            "zero": load(zero),
            "reused": load(reused),
            "new_chunks": self.report.snapshot.stats.new_chunks,
            "new_bytes": self.report.snapshot.stats.new_raw,
            "stored_bytes": self.report.snapshot.stats.new_stored,
            "unreadable": unreadable,
        })
    }

    pub(crate) fn text(&self) -> String {
        let Progress { read, zero, reused, .. } = self.progress;
        let snapshot = &self.report.snapshot;
        let point = format!("{}@{}", snapshot.workload, snapshot.time());
        let title = match self.is_dry {
            true => format!("would make {point}; nothing was stored"),
            false => format!("made {point} ({})", output::short(snapshot.id())),
        };
        format!(
            "{title}\n\
             disks   {} in {}\n\
             read    {}, {} of it zero, {} of it stored already\n\
             new     {} in {} chunks, stored in {}\n\
             time    {:.1} s\n",
            size(snapshot.logical_bytes()),
            snapshot.disks.len(),
            size(load(read)),
            size(load(zero)),
            size(load(reused)),
            size(snapshot.stats.new_raw),
            snapshot.stats.new_chunks,
            size(snapshot.stats.new_stored),
            self.took.as_secs_f64(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_dated_after_the_one_it_follows() {
        let terminal = Terminal::new(true);
        let after = |parent: Option<u64>, now| {
            let at = |seconds| Timestamp::from_seconds(seconds).unwrap();
            time_after(parent.map(at), at(now), &terminal).unwrap().seconds()
        };
        assert_eq!(after(None, 1000), 1000);
        assert_eq!(after(Some(999), 1000), 1000);
        assert_eq!(after(Some(1000), 1000), 1001);
        assert_eq!(after(Some(1060), 1000), 1061);
        assert!(!terminal.has_warned());
        assert_eq!(after(Some(1061), 1000), 1062);
        assert!(terminal.has_warned());
    }
}
