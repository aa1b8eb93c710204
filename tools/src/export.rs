//! `coffer export`: exports of a gateway that runs on this machine, by its control socket.
//!
//! Not here: the gateway ([`crate::serve`]). What holds: the repository is not opened here, and needs no passphrase.

use crate::context::Context;
use crate::exit::{Result, wrong_use};
use crate::output::{self, size};
use crate::serve::{ExportSpec, control_path, parse_limits};
use clap::Subcommand;
use coffer_gateway::control::{Addition, Answer, ExportReport, Question, ask};
use coffer_gateway::{LATENCY_BOUNDS, Permit};
use coffer_repo::Error;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Add, list and remove exports of the gateway that 'coffer serve --config' runs
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The gateway's control socket. Without it the one in the state folder
    #[arg(long, global = true, value_name = "PATH")]
    control: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Add(Add),
    List(List),
    Remove(Remove),
}

/// Offer a disk of a point, read-only, or a fork, now and after restarts; WORKLOAD@latest stays the point that it is now
#[derive(Debug, clap::Args)]
struct Add {
    /// What. Without NAME= an export is called as it is written here
    #[arg(value_name = "[NAME=]POINT[:DISK]|[NAME=]fork:NAME")]
    export: String,

    /// Who may use it: networks, cert:NAME, uid:N; without it everybody
    #[arg(long, value_name = "NETWORK|cert:NAME|uid:N,..", value_delimiter = ',')]
    allow: Vec<String>,

    /// How much of it all its clients together get a second, as in 2000/100M; either number may be left out
    #[arg(long, value_name = "REQUESTS/BYTES")]
    limit: Option<String>,
}

/// List exports and what they are doing
#[derive(Debug, clap::Args)]
struct List {}

/// Offer an export no more; clients that have it keep it
#[derive(Debug, clap::Args)]
struct Remove {
    /// Which one
    name: String,

    /// Also end the connections of its clients
    #[arg(long)]
    disconnect: bool,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let question = match &self.command {
            Command::Add(add) => Question::Add(add.addition()?),
            Command::List(List {}) => Question::List,
            Command::Remove(Remove { name, disconnect }) => {
                Question::Remove { name: name.clone(), disconnect: *disconnect }
            }
        };
        let path = match &self.control {
            Some(path) => path.clone(),
            None => control_path(&context.settings)?,
        };
        match ask(&path, &question)? {
            Answer::Done(text) => context.print(json!({ "done": text }), &format!("{text}\n")),
            Answer::Exports(exports) => {
                let objects: Vec<Value> = exports.iter().map(object).collect();
                context.print(json!({ "exports": objects }), &table(&exports))
            }
            Answer::Failed(error) => Err(error.into()),
            Answer::Objects(_) => Err(Error::internal("the gateway answered another question").into()),
        }
    }
}

impl Add {
    /// The addition, seen to be one as far as that can be told here.
    fn addition(&self) -> Result<Addition> {
        self.export.parse::<ExportSpec>().map_err(|e| wrong_use(e.to_string()))?;
        for permit in &self.allow {
            permit.parse::<Permit>().map_err(|e| wrong_use(format!("--allow {permit}: {e}")))?;
        }
        if let Some(limit) = &self.limit {
            parse_limits(limit).map_err(|why| wrong_use(format!("--limit {limit}: {why}")))?;
        }
        Ok(Addition { export: self.export.clone(), allow: self.allow.clone(), limit: self.limit.clone() })
    }
}

/// A report with its classes of latency named.
fn object(report: &ExportReport) -> Value {
    let bounds = LATENCY_BOUNDS.iter().map(|bound| json!(bound.as_secs_f64())).chain([Value::Null]);
    let classes = report.activity.latencies.iter().zip(bounds);
    let mut object = report.to_object();
    object["latencies"] = classes.map(|(count, bound)| json!({ "below_seconds": bound, "requests": count })).collect();
    object
}

fn table(exports: &[ExportReport]) -> String {
    let header = ["export", "of", "from", "state", "clients", "reads", "", "writes", "", "failed", "slowest"];
    output::table(&header, 4, exports.iter().map(row))
}

fn row(report: &ExportReport) -> Vec<String> {
    let totals = &report.activity;
    let state = match (report.is_leaving, report.is_read_only) {
        (true, _) => "leaving",
        (false, true) => "read-only",
        (false, false) => "writable",
    };
    vec![
        report.name.clone(),
        report.description.clone(),
        report.origin.clone(),
        state.to_owned(),
        report.clients.to_string(),
        totals.reads.to_string(),
        size(totals.bytes_read),
        totals.writes.to_string(),
        size(totals.bytes_written),
        totals.failures.to_string(),
        slowest(report),
    ]
}

/// The class of latency of the slowest answer.
fn slowest(report: &ExportReport) -> String {
    match report.activity.latencies.iter().rposition(|count| *count > 0) {
        None => String::new(),
        Some(class) => {
            LATENCY_BOUNDS.get(class).map_or_else(|| "10s or more".to_owned(), |bound| format!("below {bound:?}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_answer_names_its_class() {
        let mut report = ExportReport::default();
        assert_eq!(slowest(&report), "");
        report.activity.latencies = [9, 0, 1, 0, 0, 0, 0];
        assert_eq!(slowest(&report), "below 10ms");
        report.activity.latencies[6] = 1;
        assert_eq!(slowest(&report), "10s or more");
        let object = object(&report);
        assert_eq!(object["latencies"][2], json!({ "below_seconds": 0.01, "requests": 1 }));
        assert_eq!(object["latencies"][6]["below_seconds"], Value::Null);
    }
}
