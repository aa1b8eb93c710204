//! `coffer snapshots`: lists points.

use crate::context::Context;
use crate::exit::Result;
use crate::output;
use coffer_repo::point;
use coffer_repo::snapshot::Snapshot;
use serde_json::{Value, json};

/// List the points that can be restored, oldest first
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only those of this workload
    workload: Option<String>,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let repo = context.open()?;
        let points = context.points(&repo)?;
        let listed: Vec<&Snapshot> = match &self.workload {
            Some(workload) => point::of_workload(&points, workload)?,
            None => points.iter().collect(),
        };
        let rows = listed.iter().map(|snapshot| {
            vec![
                output::short(snapshot.id()),
                snapshot.time().to_string(),
                snapshot.workload.clone(),
                snapshot.disks.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(","),
                snapshot.tags.join(","),
                output::size(snapshot.logical_bytes()),
                output::size(snapshot.stats.new_stored),
            ]
        });
        let text = match listed.is_empty() {
            true => "no points yet\n".to_owned(),
            false => output::table(&["id", "time", "workload", "disks", "tags", "size", "added"], 5, rows),
        };
        let objects: Vec<Value> = listed.iter().map(|snapshot| output::snapshot(snapshot)).collect();
        context.print(json!({ "snapshots": objects }), &text)
    }
}
