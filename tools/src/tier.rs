//! `coffer tier`: cold tiers by name, and which packs lie there.

use crate::budgets::parse_rate;
use crate::context::Context;
use crate::environment;
use crate::exit::{Result, describe, wrong_use};
use crate::output::{self, size};
use crate::settings::{StoreOption, parse_option};
use crate::signal;
use crate::since::Since;
use crate::store;
use crate::terminal::{Sample, Unit};
use clap::Subcommand;
use coffer_repo::Error;
use coffer_repo::backend::address::Address;
use coffer_repo::cancel::Cancel;
use coffer_repo::collector::PackSum;
use coffer_repo::repository::Repository;
use coffer_repo::tier::{Tier, TierName};
use coffer_repo::tiers::{self, TransferOptions, TransferProgress, TransferReport};
use serde_json::{Value, json};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Keep old packs in another store, or in another storage class
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXPLANATION)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXPLANATION: &str = "\
A cold tier is another place for packs of this repository: a folder, another bucket, or another path in the same bucket with a storage \
class of its own. Packs lie there under the names that they have at home. Everything else of the repository stays at home, so that \
points are listed, compared and backed up as ever; reading content finds each pack where it lies.

  coffer tier add deep s3://backups/cold --tier-option storage-class=GLACIER_IR
  coffer tier move deep --older-than 90d     packs that no point of the last 90 days needs
  coffer tier recall deep                    all of them back, as before the tier is removed

'move' may run at any time, beside backups, collections and restores, and is made to be run again and again, as after 'coffer forget' and \
'coffer gc'. A backup that finds a block of its disk stored in a cold pack relies on it there.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Say that there is one
    Add(Add),
    /// List them, with what lies there
    List,
    /// Move the packs there that only old points need
    Move(Move),
    /// Bring everything home that lies there
    Recall(Recall),
    /// Say that there is none any more; nothing may lie there
    Remove(Remove),
}

#[derive(Debug, clap::Args)]
struct Add {
    /// Its name: of a-z, 0-9, '-' and '_'
    name: TierName,

    /// Where it is, written as the location of a repository is. A folder is made if need be
    #[arg(value_name = "LOCATION")]
    location: String,

    /// Say something about the object store in which that is, as '-o' does about this one's; it is remembered. Secrets are not: they
    /// come from the usual variables, or the file that --tier-secret names on each host
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_option)]
    tier_option: Vec<StoreOption>,
}

#[derive(Debug, clap::Args)]
struct Move {
    /// Which tier
    name: TierName,

    /// Only packs that no point of so long a time needs, as in 90d or 1y (years, months, days, hours), or none after a time as
    /// 'snapshots' writes it
    #[arg(long, value_name = "TIME")]
    older_than: Since,

    #[command(flatten)]
    how: How,
}

#[derive(Debug, clap::Args)]
struct Recall {
    /// Which tier
    name: TierName,

    #[command(flatten)]
    how: How,
}

#[derive(Debug, clap::Args)]
struct How {
    /// Tell what would be moved, and move nothing
    #[arg(long)]
    dry_run: bool,

    /// Read at most so much a second, as in 100M
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    max_rate: Option<NonZeroU64>,

    /// Nobody moves packs of this tier the other way any more, on any host: go on in spite of what a killed 'move' or 'recall' left
    #[arg(long)]
    take_over: bool,
}

#[derive(Debug, clap::Args)]
struct Remove {
    /// Which tier
    name: TierName,

    /// Do not look what lies there: that store is gone for good, and what lay there is lost
    #[arg(long)]
    lost: bool,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        match &self.command {
            Command::Add(add) => add.run(context),
            Command::List => list(context),
            Command::Move(command) => command.run(context),
            Command::Recall(command) => command.run(context),
            Command::Remove(command) => command.run(context),
        }
    }
}

impl Add {
    fn run(&self, context: &Context) -> Result<()> {
        if self.tier_option.iter().any(|(name, _)| name == "secret-file") {
            let why = "the file with a tier's secrets is each host's own matter: say --tier-secret NAME=FILE there";
            return Err(wrong_use(why));
        }
        let repo = context.open()?;
        let address = match store::address(&self.location, &self.tier_option)? {
            Address::Folder(path) => Address::Folder(free_folder(context, &path)?),
            object @ Address::Object(_) => object,
        };
        let store = store::create_tier(&address, context.settings.tier_secret(&self.name))?;
        let tier = Tier { url: address.to_string(), options: self.tier_option.clone(), added: environment::now()? };
        tiers::add(&repo, &self.name, &tier, &*store)?;
        let text = format!("cold tier '{}' is {}\n", self.name, tier.url);
        context.print(json!({ "name": self.name.as_str(), "url": tier.url }), &text)
    }
}

/// The folder's absolute path. One within the repository's own folder would have its packs listed as the repository's.
fn free_folder(context: &Context, path: &Path) -> Result<PathBuf> {
    let text = |path: &Path| path.to_str().map(str::to_owned);
    let absolute = std::path::absolute(path).map_err(|e| Error::io(format!("finding {}", path.display()), e))?;
    if text(&absolute).is_none() {
        return Err(wrong_use(format!("{}: the path of a cold tier has to be text", absolute.display())));
    }
    if let Address::Folder(home) = context.address()? {
        let home = std::fs::canonicalize(&home).map_err(|e| Error::io(format!("finding {}", home.display()), e))?;
        let real = absolute.ancestors().find_map(|part| {
            let rest = absolute.strip_prefix(part).ok()?;
            Some(std::fs::canonicalize(part).ok()?.join(rest))
        });
        let real = real.unwrap_or_else(|| absolute.clone());
        if real != home && real.starts_with(&home) {
            let why = format!("{} lies within the repository's own folder, {}", absolute.display(), home.display());
            return Err(Error::invalid(why).into());
        }
    }
    Ok(absolute)
}

fn list(context: &Context) -> Result<()> {
    let repo = context.open()?;
    let (mut objects, mut rows) = (Vec::new(), Vec::new());
    for (name, tier) in repo.tiers()? {
        let looked = tier.and_then(|tier| {
            tiers::stock(&repo, &name).map_or_else(|e| Ok((tier.clone(), Err(e))), |sum| Ok((tier.clone(), Ok(sum))))
        });
        let (tier, sum) = match looked {
            Ok((tier, sum)) => (Some(tier), sum),
            Err(e) => (None, Err(e)),
        };
        if let Err(e) = &sum {
            context.terminal.warn(format_args!("what lies in the cold tier '{name}' is not known: {}", describe(e)));
        }
        let sum = sum.ok();
        let url = tier.as_ref().map(|tier| tier.url.clone());
        let options = tier.iter().flat_map(|tier| &tier.options).map(|(name, value)| format!("{name}={value}"));
        let options: Vec<String> = options.collect();
        rows.push(vec![
            name.to_string(),
            sum.map_or("?".to_owned(), |sum| sum.packs.to_string()),
            sum.map_or("?".to_owned(), |sum| size(sum.bytes)),
            [url.iter().cloned().collect(), options.clone()].concat().join(" "),
        ]);
        objects.push(json!({
            "name": name.as_str(),
            "url": url,
            "options": options,
            "added": tier.map(|tier| tier.added.to_string()),
            "packs": sum.map(|sum| sum.packs),
            "bytes": sum.map(|sum| sum.bytes),
        }));
    }
    let text = match rows.is_empty() {
        true => "there are no cold tiers; 'coffer tier add' makes one\n".to_owned(),
        false => output::table(&["name", "packs", "size", "where"], 2, rows),
    };
    context.print(json!({ "tiers": objects }), &text)
}

impl Move {
    fn run(&self, context: &Context) -> Result<()> {
        let Move { name, older_than, how } = self;
        let before = older_than.before(environment::now()?);
        how.run(context, name, Course::There, |repo, options, progress, cancel| {
            tiers::move_old(repo, name, before, options, progress, cancel)
        })
    }
}

impl Recall {
    fn run(&self, context: &Context) -> Result<()> {
        let Recall { name, how } = self;
        how.run(context, name, Course::Home, |repo, options, progress, cancel| {
            tiers::recall(repo, name, options, progress, cancel)
        })
    }
}

impl Remove {
    fn run(&self, context: &Context) -> Result<()> {
        let repo = context.open()?;
        tiers::remove(&repo, &self.name, self.lost)?;
        let text = format!("there is no cold tier '{}' any more\n", self.name);
        context.print(json!({ "name": self.name.as_str(), "lost": self.lost }), &text)
    }
}

/// Which way packs go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    There,
    Home,
}

impl How {
    fn run(
        &self,
        context: &Context,
        name: &TierName,
        course: Course,
        work: impl FnOnce(
            &Arc<Repository>,
            &TransferOptions,
            &TransferProgress,
            &Cancel,
        ) -> coffer_repo::Result<TransferReport>,
    ) -> Result<()> {
        let repo = context.open()?;
        let cancel = signal::cancel(&context.terminal)?;
        let options = TransferOptions {
            dry_run: self.dry_run,
            max_rate: self.max_rate.map(NonZeroU64::get),
            take_over: self.take_over,
            ..TransferOptions::new(environment::now()?)
        };
        let progress = TransferProgress::default();
        let sample = || {
            let load = |bytes: &std::sync::atomic::AtomicU64| bytes.load(Ordering::Relaxed);
            let total = Some(load(&progress.due)).filter(|due| *due > 0);
            Sample { done: load(&progress.done), total, note: String::new() }
        };
        let title = if course == Course::There { "moving packs" } else { "recalling packs" };
        let run = || work(&repo, &options, &progress, &cancel);
        let report = context.terminal.during(title, Unit::Bytes, &sample, run)?;
        warn(context, &repo, &report, course);
        context.print(object(&report, name, self.dry_run), &text(&report, name, course, self.dry_run))
    }
}

fn warn(context: &Context, repo: &Repository, report: &TransferReport, course: Course) {
    let say = |line: String| context.terminal.warn(line);
    for (uid, error) in &report.damaged {
        let way_out = "'coffer verify' says whose it is, 'coffer heal' may help";
        say(format!("pack {uid} stays, since it is damaged ({way_out}): {}", describe(error)));
    }
    for (name, error) in &report.unreadable {
        let point = repo.read_claim(*name).map_or_else(|_| name.to_string(), |c| format!("{}@{}", c.workload, c.time));
        let why = describe(error);
        say(format!("{point} cannot be read, and what it needs may have been taken for old: {why}"));
    }
    if report.unlockable.packs > 0 {
        let (packs, where_to) = (report.unlockable.packs, if course == Course::There { "the tier" } else { "home" });
        say(format!("{packs} packs stay, since they are locked against removal and {where_to} has no locks"));
    }
}

fn object(report: &TransferReport, name: &TierName, dry_run: bool) -> Value {
    let sum = |of: &PackSum| json!({ "packs": of.packs, "bytes": of.bytes });
    json!({
        "name": name.as_str(),
        "dry_run": dry_run,
        "due": sum(&report.due),
        "moved": sum(&report.moved),
        "doubled": sum(&report.doubled),
        "unlockable": sum(&report.unlockable),
        "condemned": sum(&report.condemned),
        "damaged": report.damaged.iter().map(|(uid, _)| uid.to_string()).collect::<Vec<_>>(),
        "unreadable": report.unreadable.iter().map(|(name, _)| name.id.to_string()).collect::<Vec<_>>(),
    })
}

fn text(report: &TransferReport, name: &TierName, course: Course, dry_run: bool) -> String {
    let sum = |of: &PackSum| format!("{} in {} packs", size(of.bytes), of.packs);
    let to = match course {
        Course::There => format!("to the cold tier '{name}'"),
        Course::Home => format!("home from the cold tier '{name}'"),
    };
    let mut text = match dry_run {
        true => format!("would move {} {to}; nothing was moved\n", sum(&report.due)),
        false => format!("moved {} {to}\n", sum(&report.moved)),
    };
    if report.doubled.packs > 0 {
        text += &format!(
            "in both    {}, locked where they were until their date; the same again removes them then\n",
            sum(&report.doubled)
        );
    }
    if report.condemned.packs > 0 {
        text += &format!("left alone {}, which a collection is about to remove\n", sum(&report.condemned));
    }
    text
}
