//! `coffer forget`: points that shall no longer count.

use crate::context::{Context, choose};
use crate::environment;
use crate::exit::{Result, wrong_use};
use crate::output;
use coffer_repo::point::PointName;
use coffer_repo::snapshot::Snapshot;
use serde_json::{Value, json};

/// Forget points: they are listed no more, and their space becomes free for collection
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Which ones
    #[arg(required = true, value_parser = PointName::parse)]
    points: Vec<PointName>,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        if self.points.iter().any(|point| point.disk.is_some() || point.path.is_some()) {
            return Err(wrong_use("only whole points can be forgotten, without :DISK"));
        }
        let repo = context.open()?;
        let all = context.points(&repo)?;
        // All are looked up before any is forgotten: "latest" means one thing in one command.
        let mut points: Vec<&Snapshot> = Vec::new();
        for point in &self.points {
            let found = choose(point, &all)?;
            if !points.iter().any(|other| other.id() == found.id()) {
                points.push(found);
            }
        }
        for snapshot in &points {
            repo.forget(snapshot.name, environment::now()?)?;
        }
        let text: String = points
            .iter()
            .map(|s| format!("forgot {}@{} ({})\n", s.workload, s.time(), output::short(s.id())))
            .collect();
        let objects: Vec<Value> = points.iter().map(|snapshot| output::snapshot(snapshot)).collect();
        context.print(json!({ "forgotten": objects }), &text)
    }
}
