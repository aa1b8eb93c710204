//! `coffer copy`: points of this repository also become points of another one.

use crate::backup::{self, ATTEMPTS, seal_levels};
use crate::budgets::parse_rate;
use crate::context::{Context, choose_all, whole_points};
use crate::environment;
use crate::exit::{Failure, Result, describe};
use crate::output::{self, short, size};
use crate::settings::{Opener, StoreOption, parse_option};
use crate::signal;
use crate::since::Since;
use crate::store;
use crate::terminal::{Sample, Unit};
use coffer_mover::range_list::RangeList;
use coffer_repo::cancel::Cancel;
use coffer_repo::copy::{Copier, CopyOptions, Made, Outcome, PointCopy};
use coffer_repo::index::Index;
use coffer_repo::point;
use coffer_repo::reader::ReaderOptions;
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::Snapshot;
use coffer_repo::time::Timestamp;
use coffer_repo::writer::WriterOptions;
use coffer_repo::{Error, Kind};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Copy points to another repository, with other keys: all of them, or those named. What is there is skipped, so that run again it copies
/// what is new
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXPLANATION)]
pub(crate) struct Arguments {
    /// The points; without any, all that the options below leave
    #[arg(value_name = "POINT", conflicts_with_all = ["workload", "since", "last"])]
    points: Vec<String>,

    /// Where to: a repository that is there already ('init' makes one)
    #[arg(long, value_name = "LOCATION")]
    to: String,

    /// Say something about the object store in which that is, as '-o' does about this one's
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_option)]
    to_option: Vec<StoreOption>,

    /// Open that one by the passphrase in this file. Without it COFFER_TO_PASSWORD_FILE, or else by what opens this one
    #[arg(long, value_name = "FILE", conflicts_with = "to_key_file")]
    to_password_file: Option<PathBuf>,

    /// Open that one by this key file; a writer's key is enough. Without it COFFER_TO_KEY_FILE
    #[arg(long, value_name = "FILE")]
    to_key_file: Option<PathBuf>,

    /// Only points of this workload; may be repeated
    #[arg(short, long, value_name = "WORKLOAD")]
    workload: Vec<String>,

    /// Only points since then: a time as 'snapshots' writes it, or a length of time as in 1m or 7d12h (years, months, days, hours)
    #[arg(long, value_name = "TIME")]
    since: Option<Since>,

    /// Only the newest N points of each workload
    #[arg(long, value_name = "N")]
    last: Option<NonZeroUsize>,

    /// Tell what would be copied, and copy nothing
    #[arg(long)]
    dry_run: bool,

    /// Copy what is left of a damaged point, rather than nothing of it; what is lost is named, and reading it from the copy is an error
    #[arg(long)]
    keep_going: bool,

    /// Read each copy back that is made, and compare it with its original
    #[arg(long)]
    verify: bool,

    /// Read at most so much a second, as in 100M
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    max_rate: Option<NonZeroU64>,

    /// Compress so hard, from 1 to 19
    #[arg(long, value_name = "LEVEL", default_value_t = 1, value_parser = clap::value_parser!(i32).range(seal_levels()))]
    compression: i32,
}

const EXPLANATION: &str = "\
A copy has the time, the tags and everything else of its original, and is protected if that is. WORKLOAD@TIME names the same in both \
repositories; ids differ. Nothing is ever forgotten at the destination, which may have rules of its own; what it forgot is copied \
again for as long as it is wanted here: --since and --last say how much that is.

Interrupted or killed, the same command goes on. Several may copy to one repository at once: nothing is there twice.";

/// The points, what is done with them, and what came of it.
struct Run<'a> {
    context: &'a Context,
    copier: Copier,
    /// All of the source.
    points: &'a [Snapshot],
    destination: Arc<Repository>,
    /// Of the destination; there while it is not being made again.
    index: Option<Arc<Index>>,
    cancel: Cancel,
    verify: bool,
    copied: Vec<(&'a Snapshot, Made)>,
    damaged: Vec<(&'a Snapshot, Error)>,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let names = whole_points(&self.points)?;
        let source = context.open()?;
        let destination = self.open_destination(context)?;
        let cancel = signal::cancel(&context.terminal)?;
        let points = context.points(&source)?;
        let now = environment::now()?;
        let wanted: Vec<&Snapshot> = match names.is_empty() {
            true => self.choose(&points, now)?,
            false => choose_all(&names, &points)?,
        };
        // Workers are a crowd that reads long stretches: fetching ahead of them would only cost copies.
        let reader = context.reader(&source, ReaderOptions { readahead_bytes: 0, ..ReaderOptions::default() })?;
        let there = context.points(&destination)?;
        let copier = Copier::begin(&source, reader, &destination, there, self.options(now))?;
        let due = copier.due(&wanted);
        if self.dry_run {
            let would = due.iter().map(|point| format!("  {}\n", title(point))).collect::<String>();
            let text = format!("would copy {}; nothing was stored\n{would}", counted(due.len(), wanted.len()));
            let due: Vec<Value> = due.into_iter().map(output::snapshot).collect();
            let object =
                json!({ "dry_run": true, "to": destination.backend().location(), "wanted": wanted.len(), "due": due });
            return context.print(object, &text);
        }
        let began = Instant::now();
        let mut run = Run {
            context,
            copier,
            points: &points,
            destination: Arc::clone(&destination),
            index: None,
            cancel,
            verify: self.verify,
            copied: Vec::new(),
            damaged: Vec::new(),
        };
        run.all(&due)?;
        run.warn(&wanted);
        let protected = run.protect(&source, &wanted)?;
        let took = began.elapsed().as_secs_f64();
        let skipped = wanted.len() - due.len();
        let text = run.text(&destination.backend().location(), (wanted.len(), skipped), protected, took);
        let mut object = run.object(protected);
        object["dry_run"] = false.into();
        object["to"] = destination.backend().location().into();
        object["wanted"] = wanted.len().into();
        object["skipped"] = skipped.into();
        object["duration_seconds"] = took.into();
        context.print(object, &text)
    }

    fn open_destination(&self, context: &Context) -> Result<Arc<Repository>> {
        let named = match (&self.to_password_file, &self.to_key_file) {
            (Some(file), _) => Some(Opener::PasswordFile(file.clone())),
            (None, Some(file)) => Some(Opener::KeyFile(file.clone())),
            (None, None) => context.settings.to_opener.clone(),
        };
        let address = store::address(&self.to, &self.to_option)?;
        let opened = context.open_at(&address, named.as_ref().unwrap_or(&context.settings.opener));
        opened.map_err(|failure| match failure {
            Failure::Failed(e) if e.kind() == Kind::WrongKey && named.is_none() => e
                .within("what opens this repository does not open that one; say --to-password-file or --to-key-file")
                .into(),
            other => other,
        })
    }

    /// The points that the options leave.
    fn choose<'a>(&self, points: &'a [Snapshot], now: Timestamp) -> Result<Vec<&'a Snapshot>> {
        let mut by_workload: BTreeMap<&str, Vec<&Snapshot>> = BTreeMap::new();
        for workload in &self.workload {
            by_workload.insert(workload, point::of_workload(points, workload)?);
        }
        if self.workload.is_empty() {
            points.iter().for_each(|point| by_workload.entry(&point.workload).or_default().push(point));
        }
        let since = self.since.map(|since| since.before(now));
        let mut chosen = Vec::new();
        for mut of in by_workload.into_values() {
            let keep = self.last.map_or(of.len(), NonZeroUsize::get);
            of.drain(..of.len().saturating_sub(keep));
            chosen.extend(of.into_iter().filter(|point| since.is_none_or(|since| point.time() >= since)));
        }
        Ok(chosen)
    }

    fn options(&self, now: Timestamp) -> CopyOptions {
        CopyOptions {
            keep_going: self.keep_going,
            verify: self.verify,
            max_rate: self.max_rate.map(NonZeroU64::get),
            writer: WriterOptions { compression_level: self.compression, ..WriterOptions::default() },
            identity: environment::identity(),
            now,
        }
    }
}

impl<'a> Run<'a> {
    /// Copies everything that is due.
    fn all(&mut self, due: &[&'a Snapshot]) -> Result<()> {
        for (number, point) in due.iter().enumerate() {
            let which = match due.len() {
                1 => String::new(),
                of => format!(" {} of {of}", number + 1),
            };
            self.one(point, &which).map_err(|failure| match failure {
                Failure::Failed(e) if number > 0 => {
                    e.within(format!("after {number} of {} points ('copy' goes on from here)", due.len())).into()
                }
                other => other,
            })?;
        }
        Ok(())
    }

    /// Copies a point, once more when that is overtaken by a collector or by another copy.
    fn one(&mut self, point: &'a Snapshot, which: &str) -> Result<()> {
        let terminal = &self.context.terminal;
        let mut attempts_left = ATTEMPTS;
        loop {
            attempts_left -= 1;
            self.copier.look_for(point)?;
            if !self.copier.copies(point).is_empty() {
                terminal.notice(format_args!("{} was copied by somebody else meanwhile", title(point)));
                return Ok(());
            }
            let index = self.index()?;
            let Some(copy) = PointCopy::begin(&self.copier, &index, point, self.points)? else {
                terminal.notice(format_args!("{} was forgotten meanwhile, and was left out", title(point)));
                return Ok(());
            };
            // Once is enough: it is the store that cannot be written.
            if let Some(warning) = copy.warning().filter(|_| self.copied.is_empty()) {
                terminal.notice(warning);
            }
            let (progress, total) = (copy.progress(), Some(point.logical_bytes()));
            let work = || copy.run(&self.cancel);
            let sample = || backup::sample(&progress, total);
            match terminal.during(&format!("copying{which}"), Unit::Bytes, &sample, work) {
                Ok(outcome) => return self.note(point, outcome, which),
                Err(e) if e.kind() == Kind::Overtaken && attempts_left > 0 => {
                    terminal.notice(format_args!("{}: it is made once more", describe(&e)));
                    self.context.learn(&self.destination, &index)?;
                    self.copier.relist()?;
                }
                // What its damage hides may be stored: what was uploaded since is found when it is made again.
                Err(e) if index.is_damaged() && attempts_left > 0 => {
                    terminal.notice(format_args!("{}: the copy is made once more", describe(&e)));
                    drop(index);
                    self.index = None;
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The destination's index, in step with it.
    fn index(&mut self) -> Result<Arc<Index>> {
        if let Some(index) = &self.index {
            return Ok(Arc::clone(index));
        }
        let index = self.context.index(&self.destination)?;
        self.index = Some(Arc::clone(&index));
        Ok(index)
    }

    /// Takes note of what came of a point, and compares it, if that is wanted.
    fn note(&mut self, point: &'a Snapshot, outcome: Outcome, which: &str) -> Result<()> {
        let terminal = &self.context.terminal;
        let made = match outcome {
            Outcome::Made(made) => *made,
            Outcome::Damaged(e) => {
                let way_out = "'heal' may help; --keep-going copies what is left";
                terminal.warn(format_args!(
                    "{} is damaged and was not copied ({way_out}): {}",
                    title(point),
                    describe(&e)
                ));
                self.damaged.push((point, e));
                return Ok(());
            }
        };
        for (disk, ranges) in &made.lost {
            let named = output::ranges(&listed(ranges));
            terminal.warn(format_args!("{}: disk {disk}: damaged, and lost to the copy: {named}", title(point)));
        }
        self.copier.add(made.snapshot.clone());
        if self.verify {
            let (compared, total) = (AtomicU64::new(0), Some(point.logical_bytes()));
            let sample = || Sample { done: compared.load(Ordering::Relaxed), total, note: String::new() };
            let work = || self.copier.compare(point, &made.snapshot, &compared, &self.cancel);
            terminal.during(&format!("comparing{which}"), Unit::Bytes, &sample, work)?;
        }
        self.copied.push((point, made));
        Ok(())
    }

    /// Warns of copies that are there and not as they should be.
    fn warn(&self, wanted: &[&Snapshot]) {
        let terminal = &self.context.terminal;
        let unreadable = |point: &Snapshot| point.disks.iter().map(|disk| disk.unreadable).sum::<u64>();
        for point in wanted {
            let copies = self.copier.copies(point);
            let is_new = |copy: &Snapshot| self.copied.iter().any(|(_, made)| made.snapshot.id() == copy.id());
            for copy in copies.iter().filter(|copy| unreadable(copy) > unreadable(point) && !is_new(copy)) {
                let lost = size(unreadable(copy) - unreadable(point));
                terminal.warn(format_args!(
                    "the copy {} of {} lacks {lost} that were damaged when it was made; once this is healed, forget it there and \
                     copy it again",
                    short(copy.id()),
                    title(point)
                ));
            }
            if copies.len() > 1 {
                let ids: Vec<String> = copies.iter().map(|copy| short(copy.id())).collect();
                terminal.warn(format_args!("{} is there more than once: {}", title(point), ids.join(", ")));
            }
        }
    }

    /// Protects copies of what is protected. How many.
    fn protect(&self, source: &Repository, wanted: &[&Snapshot]) -> Result<usize> {
        let (held, there) = (self.context.protected(source)?, self.context.protected(&self.destination)?);
        match self.copier.protect(wanted, &held, &there) {
            Err(e) if e.kind() == Kind::WrongKey => {
                self.context
                    .terminal
                    .warn(format_args!("copies of protected points are not protected: {}", describe(&e)));
                Ok(0)
            }
            protected => Ok(protected?),
        }
    }

    fn object(&self, protected: usize) -> Value {
        let copied = self.copied.iter().map(|(point, Made { snapshot, base, lost })| {
            let lost: serde_json::Map<String, Value> =
                lost.iter().map(|(disk, ranges)| (disk.clone(), output::ranges_object(&listed(ranges)))).collect();
            json!({
                "original": point.id().to_string(),
                "base": base.map(|id| id.to_string()),
                "snapshot": output::snapshot(snapshot),
                "lost": lost,
                "verified": self.verify,
            })
        });
        let damaged = self.damaged.iter().map(|(point, e)| {
            json!({
                "id": point.id().to_string(),
                "workload": point.workload,
                "time": point.time().to_string(),
                "why": describe(e),
            })
        });
        json!({
            "copied": copied.collect::<Vec<_>>(),
            "damaged": damaged.collect::<Vec<_>>(),
            "protected": protected,
            "read": self.sum(|copy| copy.stats.read),
            "new_bytes": self.sum(|copy| copy.stats.new_raw),
            "stored_bytes": self.sum(|copy| copy.stats.new_stored),
        })
    }

    fn text(&self, to: &str, (wanted, skipped): (usize, usize), protected: usize, took: f64) -> String {
        let mut text = String::new();
        for (point, made) in &self.copied {
            text += &format!("{} is {} there\n", title(point), short(made.snapshot.id()));
        }
        let points = counted(self.copied.len(), wanted);
        text += &format!("copied {points} to {to} in {took:.1} s, {skipped} were there already\n");
        if !self.copied.is_empty() {
            let compared = if self.verify { "; all was read back and found right" } else { "" };
            text += &format!(
                "read {}, new {}, stored in {}{compared}\n",
                size(self.sum(|copy| copy.stats.read)),
                size(self.sum(|copy| copy.stats.new_raw)),
                size(self.sum(|copy| copy.stats.new_stored)),
            );
        }
        if protected > 0 {
            text += &format!("protected {protected} copies, as their originals are\n");
        }
        text
    }

    fn sum(&self, of: impl Fn(&Snapshot) -> u64) -> u64 {
        self.copied.iter().map(|(_, made)| of(&made.snapshot)).sum()
    }
}

fn title(point: &Snapshot) -> String {
    format!("{}@{}", point.workload, point.time())
}

fn counted(some: usize, all: usize) -> String {
    format!("{some} of {all} point{}", if all == 1 { "" } else { "s" })
}

fn listed(ranges: &[std::ops::Range<u64>]) -> RangeList {
    let mut list = RangeList::default();
    ranges.iter().for_each(|range| list.add(range.clone()));
    list
}
