//! `coffer verify`: whether everything can still be read.

use crate::budgets::parse_size;
use crate::context::Context;
use crate::environment;
use crate::exit::Result;
use crate::output::{self, size};
use crate::signal;
use crate::since::Since;
use crate::terminal::{Sample, Unit};
use coffer_repo::verify::{DataCheck, Harm, Problem, Remedy, Report, VerifyOptions, VerifyProgress, verify};
use coffer_repo::{Error, Kind};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

/// Verify that everything is there, is genuine and fits together; with --data, that all content can be read
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Also read and check content: 'all' of it, such a share as '5%', drawn anew each time, or with 'oldest:5%' the share that
    /// was not checked for longest
    #[arg(long, value_name = "all|N%|oldest:N%", value_parser = parse_share)]
    data: Option<DataCheck>,

    /// Leave out content that was checked since then: a time as 'snapshots' writes it, or a length of time as in 1m or 7d12h
    /// (years, months, days, hours)
    #[arg(long, value_name = "TIME", requires = "data")]
    since: Option<Since>,

    /// Read at most so much a second, as in 100M
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_rate: Option<u64>,

    /// Do not keep in the repository what was found sound
    #[arg(long)]
    no_record: bool,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let repo = context.open()?;
        let cancel = signal::cancel(&context.terminal)?;
        let now = environment::now()?;
        let options = VerifyOptions {
            data: self.data.unwrap_or(DataCheck::None),
            unread_since: self.since.map(|since| since.before(now)),
            max_rate: self.max_rate,
            // Only the authority's word counts for it.
            keep: (!self.no_record && repo.keys().is_full()).then_some(now),
            ..VerifyOptions::default()
        };
        let progress = VerifyProgress::default();
        let work = || verify(&repo, options, &progress, &cancel);
        let report = match context.terminal.during("verifying", Unit::Count, &|| sample(&progress), work) {
            Err(e) if e.kind() == Kind::Cancelled && options.data != DataCheck::None && options.keep.is_some() => {
                let since = options.unread_since.map_or(now, |since| since.min(now));
                return Err(e
                    .within(format!("what was read is kept: 'verify --since {since}' goes on from here"))
                    .into());
            }
            other => other?,
        };
        if let Some(why) = &report.not_kept {
            context.terminal.notice(format_args!("what was found sound could not be kept in the repository: {why}"));
        }
        warn(context, &report);
        context.print(object(&report, options.keep.is_some() && report.not_kept.is_none()), &text(&report))?;
        fail_if_lost(&report, &repo.backend().location())
    }
}

/// Warns of what is damaged and hurts nobody yet.
pub(crate) fn warn(context: &Context, report: &Report) {
    let repairable = report.problems.iter().filter(|problem| problem.remedy.is_some()).count();
    if repairable > 0 {
        context.terminal.warn(format_args!(
            "{repairable} pack(s) are damaged, and still read by their parity; 'coffer heal' replaces what is damaged"
        ));
    }
}

/// Fails if something is damaged beyond what reading can make up for.
pub(crate) fn fail_if_lost(report: &Report, location: &str) -> Result<()> {
    match report.problems.iter().filter(|problem| problem.remedy.is_none()).count() {
        0 => Ok(()),
        n => {
            Err(Error::corrupt(format!("verification found {n} problem(s) in {location}; see 'coffer heal --help'"))
                .into())
        }
    }
}

/// Parses what follows `--data`.
pub(crate) fn parse_share(text: &str) -> std::result::Result<DataCheck, String> {
    if text == "all" {
        return Ok(DataCheck::All);
    }
    let (kind, share): (fn(u8) -> DataCheck, &str) = match text.strip_prefix("oldest:") {
        Some(share) => (DataCheck::Oldest, share),
        None => (DataCheck::Percent, text),
    };
    match share.strip_suffix('%').and_then(|digits| digits.parse().ok()) {
        Some(share @ 1..=100) => Ok(kind(share)),
        _ => Err("neither 'all' nor a share from 1% to 100%, or oldest:1% to oldest:100%".to_owned()),
    }
}

/// Data packs once it is known how many there are; until then the chunks that were looked up.
pub(crate) fn sample(progress: &VerifyProgress) -> Sample {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let note = |of: &str| format!("{of}, {} read", size(load(&progress.bytes)));
    match load(&progress.data_packs_due) {
        0 => Sample { done: load(&progress.chunks), total: None, note: note("chunks looked up") },
        due => Sample { done: load(&progress.data_packs), total: Some(due), note: note("data packs") },
    }
}

pub(crate) fn object(report: &Report, is_kept: bool) -> Value {
    json!({
        "records": report.records,
        "points": report.points,
        "nodes": report.nodes,
        "chunks": report.chunks,
        "packs": report.packs,
        "data_packs": report.data_packs,
        "bytes": report.bytes,
        "problems": report.problems.iter().map(problem_object).collect::<Vec<_>>(),
        "healed": report.healed.iter().map(problem_object).collect::<Vec<_>>(),
        "without_parity": report.without_parity,
        "is_kept": is_kept,
    })
}

fn problem_object(problem: &Problem) -> Value {
    json!({
        "object": problem.object,
        "what": problem.what,
        "may_pass": problem.kind == Kind::Unavailable,
        "repairable": problem.remedy.is_some(),
        "hurts": problem.hurts.iter().map(harm_object).collect::<Vec<_>>(),
    })
}

fn harm_object(harm: &Harm) -> Value {
    json!({
        "id": harm.snapshot.to_string(),
        "workload": harm.workload,
        "time": harm.time.to_string(),
        "time_seconds": harm.time.seconds(),
        "disk": harm.disk,
        "ranges": harm.ranges.iter().map(|r| [r.start, r.end]).collect::<Vec<_>>(),
    })
}

pub(crate) fn text(report: &Report) -> String {
    let mut text = String::new();
    for problem in report.healed.iter().chain(&report.problems) {
        text += &format!("{}: {}\n", problem.object, problem.what);
        for Harm { snapshot, workload, time, disk, ranges } in &problem.hurts {
            let ranges: Vec<String> = ranges.iter().map(|r| format!("{} to {}", r.start, r.end)).collect();
            let id = output::short(snapshot);
            text += &format!("  hurts {workload}@{time}:{disk} ({id}): bytes {}\n", ranges.join(", "));
        }
        text += match problem.remedy {
            Some(Remedy::Copies) => "  hurts nothing: all that is needed of it lies elsewhere as well\n",
            Some(Remedy::Parity) => "  hurts nothing yet: it is read by its parity\n",
            None => "",
        };
    }
    text += &format!(
        "looked at {} points, {} records, {} nodes, {} chunks and {} packs; read {} data packs whole, {} in all\n",
        report.points,
        report.records,
        report.nodes,
        report.chunks,
        report.packs,
        report.data_packs,
        size(report.bytes),
    );
    if report.without_parity > 0 {
        text += &format!("{} packs have no parity; 'coffer heal --parity' makes it\n", report.without_parity);
    }
    match report.problems.len() {
        0 => text + "nothing is wrong\n",
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_all_or_some_of_a_hundred() {
        assert_eq!(parse_share("all"), Ok(DataCheck::All));
        assert_eq!(parse_share("1%"), Ok(DataCheck::Percent(1)));
        assert_eq!(parse_share("100%"), Ok(DataCheck::Percent(100)));
        assert_eq!(parse_share("oldest:5%"), Ok(DataCheck::Oldest(5)));
        for bad in ["oldest", "oldest:", "oldest:0%", "oldest:all", "", "none", "0%", "101%", "5", "5.5%", "%", "-1%"] {
            assert!(parse_share(bad).is_err(), "{bad}");
        }
    }
}
