//! `coffer snapshots`: lists points.

use crate::context::Context;
use crate::exit::Result;
use crate::output;
use coffer_repo::point;
use coffer_repo::snapshot::Snapshot;
use coffer_repo::verified::Level;
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
        let protected = context.protected(&repo)?;
        let proven = repo.proven()?;
        let time = |snapshot: &Snapshot, level| proven.point(snapshot.id(), level).map(|time| time.to_string());
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
                if protected.of(snapshot.id()).is_empty() { "-" } else { "yes" }.to_owned(),
                match (time(snapshot, Level::Data), time(snapshot, Level::Structure)) {
                    (Some(data), _) => format!("{data} data"),
                    (None, Some(structure)) => format!("{structure} structure"),
                    (None, None) => "-".to_owned(),
                },
                output::size(snapshot.logical_bytes()),
                output::size(snapshot.stats.new_stored),
            ]
        });
        let text = match listed.is_empty() {
            true => "no points yet\n".to_owned(),
            false => output::table(
                &["id", "time", "workload", "disks", "tags", "protected", "verified", "size", "added"],
                7,
                rows,
            ),
        };
        let objects: Vec<Value> = listed
            .iter()
            .map(|snapshot| {
                let mut object = output::point(snapshot, &protected);
                object["verified"] =
                    json!({ "structure": time(snapshot, Level::Structure), "data": time(snapshot, Level::Data) });
                object
            })
            .collect();
        context.print(json!({ "snapshots": objects }), &text)
    }
}
