//! `coffer verify`: whether everything can still be read.

use crate::context::Context;
use crate::exit::Result;
use crate::output::{self, size};
use crate::signal;
use crate::terminal::{Sample, Unit};
use coffer_repo::verify::{DataCheck, Harm, Problem, Report, VerifyOptions, VerifyProgress, verify};
use coffer_repo::{Error, Kind};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

/// Verify that everything is there, is genuine and fits together; with --data, that all content can be read
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Also read and check content: 'all' of it, or such a share as '5%', drawn anew each time
    #[arg(long, value_name = "all|N%", value_parser = parse_share)]
    data: Option<DataCheck>,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let repo = context.open()?;
        let cancel = signal::cancel(&context.terminal)?;
        let options = VerifyOptions { data: self.data.unwrap_or(DataCheck::None), ..VerifyOptions::default() };
        let progress = VerifyProgress::default();
        let work = || verify(&repo, options, &progress, &cancel);
        let report = context.terminal.during("verifying", Unit::Count, &|| sample(&progress), work)?;
        context.print(object(&report), &text(&report))?;
        match report.problems.len() {
            0 => Ok(()),
            n => {
                Err(Error::corrupt(format!("verification found {n} problem(s) in {}", repo.backend().location()))
                    .into())
            }
        }
    }
}

/// Parses what follows `--data`.
fn parse_share(text: &str) -> std::result::Result<DataCheck, String> {
    if text == "all" {
        return Ok(DataCheck::All);
    }
    match text.strip_suffix('%').and_then(|digits| digits.parse().ok()) {
        Some(share @ 1..=100) => Ok(DataCheck::Percent(share)),
        _ => Err("neither 'all' nor a share from 1% to 100%".to_owned()),
    }
}

/// Data packs once it is known how many there are; until then the chunks that were looked up.
fn sample(progress: &VerifyProgress) -> Sample {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let note = |of: &str| format!("{of}, {} read", size(load(&progress.bytes)));
    match load(&progress.data_packs_due) {
        0 => Sample { done: load(&progress.chunks), total: None, note: note("chunks looked up") },
        due => Sample { done: load(&progress.data_packs), total: Some(due), note: note("data packs") },
    }
}

fn object(report: &Report) -> Value {
    json!({
        "records": report.records,
        "points": report.points,
        "nodes": report.nodes,
        "chunks": report.chunks,
        "packs": report.packs,
        "data_packs": report.data_packs,
        "bytes": report.bytes,
        "problems": report.problems.iter().map(problem_object).collect::<Vec<_>>(),
    })
}

fn problem_object(problem: &Problem) -> Value {
    json!({
        "object": problem.object,
        "what": problem.what,
        "may_pass": problem.kind == Kind::Unavailable,
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

fn text(report: &Report) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        text += &format!("{}: {}\n", problem.object, problem.what);
        for Harm { snapshot, workload, time, disk, ranges } in &problem.hurts {
            let ranges: Vec<String> = ranges.iter().map(|r| format!("{} to {}", r.start, r.end)).collect();
            let id = output::short(snapshot);
            text += &format!("  hurts {workload}@{time}:{disk} ({id}): bytes {}\n", ranges.join(", "));
        }
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
        for bad in ["", "none", "0%", "101%", "5", "5.5%", "%", "-1%"] {
            assert!(parse_share(bad).is_err(), "{bad}");
        }
    }
}
