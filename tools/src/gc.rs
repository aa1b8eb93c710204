//! `coffer gc`: removes what no point needs.

use crate::budgets::parse_size;
use crate::context::Context;
use crate::environment;
use crate::exit::Result;
use crate::locks;
use crate::output::size;
use crate::signal;
use crate::terminal::{Sample, Unit};
use coffer_repo::Error;
use coffer_repo::collector::{CollectOptions, CollectProgress, CollectReport, PackSum, Waiting, collect};
use coffer_repo::snapshot::{Claim, ClaimName};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

/// Collect garbage: remove what no point, mount, export or running backup needs; safe beside all of them
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Show what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,

    /// Copy at most so much out of packs that are mostly unneeded, as in 10G; without it there is no limit
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_repack: Option<u64>,

    /// Copy out of packs of which at most so many of a hundred bytes are needed
    #[arg(long, value_name = "PERCENT", default_value = "50", value_parser = clap::value_parser!(u8).range(0..=99))]
    repack_below: u8,

    /// Also copy out of the packs that are sealed to data keys of before the last 'coffer key rotate'
    #[arg(long)]
    rotate: bool,

    /// Memory for the collection; what does not fit goes to scratch files in the cache directory
    #[arg(long, value_name = "SIZE", default_value = "128M", value_parser = parse_size)]
    max_memory: u64,

    /// Days after which backups that never committed, and mounts and exports that show no life, count as dead
    #[arg(long, value_name = "DAYS", default_value = "7")]
    dead_after: u32,
}

/// How far a collection steps back for others that want the processor: they get about ten times its share.
const NICE: i32 = 10;

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let repo = context.open()?;
        let cancel = signal::cancel(&context.terminal)?;
        let scratch = context.cache_folder(&repo)?;
        std::fs::create_dir_all(&scratch).map_err(|e| Error::io(format!("making {}", scratch.display()), e))?;
        let options = CollectOptions {
            dry_run: self.dry_run,
            max_repack: self.max_repack,
            repack_below: self.repack_below,
            rotate: self.rotate,
            memory: usize::try_from(self.max_memory).unwrap_or(usize::MAX),
            dead_after: u64::from(self.dead_after) * 86_400,
            ..CollectOptions::new(scratch, environment::identity(), environment::now()?)
        };
        // Backups, mounts and exports of this host go first. Threads started from here on inherit it; a refusal changes nothing.
        let _ = rustix::process::nice(NICE);
        let progress = CollectProgress::default();
        let work = || collect(&repo, &options, &progress, &cancel);
        let report = context.terminal.during("collecting", Unit::Bytes, &|| sample(&progress), work)?;
        for (uid, error) in &report.damaged {
            context
                .terminal
                .warn(format!("pack {uid} is left alone, since it is damaged: {error}; see 'coffer verify'"));
        }
        for ClaimName { id, time, .. } in &report.contested {
            context.terminal.warn(format_args!(
                "the backup {id} of {time} was revoked while it was being committed: it is no point, and what it holds stays; \
                 'coffer forget --undecided {id}' ends it"
            ));
        }
        if report.lost > 0 {
            let lost = report.lost;
            context.terminal.warn(format!("{lost} chunks that points need are missing; 'coffer verify' says which"));
        }
        if report.cold_condemned.packs > 0 {
            let packs = report.cold_condemned.packs;
            context.terminal.warn(format!(
                "{packs} packs in cold tiers were to go and are needed after all; records of what was forgotten stay as long as \
                 they do: 'coffer tier recall' brings them home, where the next collection empties them"
            ));
        }
        // Locks last: of copies that were just made, too.
        let raised = if self.dry_run { None } else { locks::raise_at_end(context, &repo, options.now, &cancel)? };
        let mut object = object(&report, self.dry_run);
        let mut text = text(&report, self.dry_run);
        if let Some(raised) = raised {
            text += &format!("locks      {} of {} objects raised\n", raised.short, raised.objects);
            object["locks"] = locks::object(&raised);
        }
        context.print(object, &text)?;
        match report.unwalkable.into_iter().next() {
            None => Ok(()),
            Some((name, error)) => {
                let whose = |claim: Claim| format!("{}@{}", claim.workload, claim.time);
                let point = repo.read_claim(name).map_or_else(|_| name.to_string(), whose);
                Err(error
                    .within(format!("nothing was removed, since {point} cannot be walked (see 'coffer verify')"))
                    .into())
            }
        }
    }
}

/// Bytes of packs once the plan is made; until then what was looked at.
fn sample(progress: &CollectProgress) -> Sample {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let note = format!("{} claims, {} map nodes walked", load(&progress.claims), load(&progress.nodes));
    match load(&progress.due) {
        0 => Sample { done: 0, total: None, note },
        due => Sample { done: load(&progress.done), total: Some(due), note },
    }
}

fn object(report: &CollectReport, dry_run: bool) -> Value {
    let sum = |of: &PackSum| json!({ "packs": of.packs, "bytes": of.bytes });
    json!({
        "dry_run": dry_run,
        "found": sum(&report.found),
        "dead": sum(&report.dead),
        "repacked": sum(&report.repacked),
        "rotated": sum(&report.rotated),
        "copied_bytes": report.copied,
        "young": sum(&report.young),
        "spared": sum(&report.spared),
        "waiting": json!({
            "objects": report.waiting.objects,
            "bytes": report.waiting.bytes,
            "first": report.waiting.first.map(|time| time.to_string()),
            "last": report.waiting.last.map(|time| time.to_string()),
        }),
        "frozen": sum(&report.frozen),
        "cold": sum(&report.cold),
        "cold_condemned": sum(&report.cold_condemned),
        "removed": sum(&report.removed),
        "freed_bytes": report.freed,
        "revoked": report.revoked.iter().map(|name| name.id.to_string()).collect::<Vec<_>>(),
        "unpinned": report.unpinned.iter().map(|name| name.id.to_string()).collect::<Vec<_>>(),
        "contested": report.contested.iter().map(|name| name.id.to_string()).collect::<Vec<_>>(),
        "swept": report.swept,
        "merged_deltas": report.merged_deltas,
        "unwalkable": report.unwalkable.iter().map(|(name, e)| json!({
            "claim": name.to_string(),
            "why": e.to_string(),
        })).collect::<Vec<_>>(),
        "lost_chunks": report.lost,
        "damaged": report.damaged.iter().map(|(uid, _)| uid.to_string()).collect::<Vec<_>>(),
    })
}

/// What is not needed and locked.
fn waiting(of: &Waiting) -> String {
    let until = match (of.first, of.last) {
        (Some(first), Some(last)) if first == last => format!(" until {last}"),
        (Some(first), Some(last)) => format!(": the first until {first}, the last until {last}"),
        _ => String::new(),
    };
    format!("{} in {} objects, locked{until}", size(of.bytes), of.objects)
}

fn text(report: &CollectReport, dry_run: bool) -> String {
    let sum = |of: &PackSum| format!("{} in {} packs", size(of.bytes), of.packs);
    let mut text = format!("found      {}\nunneeded   {}\n", sum(&report.found), sum(&report.dead));
    let mut line = |title: &str, of: &PackSum, more: &str| {
        if of.packs > 0 {
            text += &format!("{title:<11}{}{more}\n", sum(of));
        }
    };
    line("repacked", &report.repacked, ", mostly unneeded");
    line("rotated", &report.rotated, ", sealed to older keys");
    let copied = PackSum { packs: report.repacked.packs + report.rotated.packs, bytes: report.copied };
    line("copied", &copied, "");
    line("young", &report.young, ", of running backups: left alone");
    line("spared", &report.spared, ", needed by somebody meanwhile: the next run deals with them");
    line("frozen", &report.frozen, ", in a cold tier: left alone");
    line("cold", &report.cold, ", mostly unneeded: left alone in cold tiers, or on account of what lies there");
    if report.waiting.objects > 0 {
        text += &format!("waiting    {}\n", waiting(&report.waiting));
    }
    if !report.revoked.is_empty() || !report.unpinned.is_empty() {
        let (claims, pins) = (report.revoked.len(), report.unpinned.len());
        text +=
            &format!("tidied     {claims} backups that never committed, {pins} mounts and exports that show no life\n");
    }
    if dry_run {
        text += "nothing was changed: it was a dry run\n";
    } else {
        text += &format!("removed    {}\n", sum(&report.removed));
        match u64::try_from(report.freed) {
            Ok(freed) => text += &format!("freed      {}\n", size(freed)),
            Err(_) => text += &format!("grown by   {}\n", size(report.freed.unsigned_abs())),
        }
    }
    text
}
