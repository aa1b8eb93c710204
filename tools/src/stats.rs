//! `coffer stats`: what points and workloads take.

use crate::context::Context;
use crate::environment;
use crate::exit::Result;
use crate::output::{self, size};
use crate::probe;
use crate::signal;
use coffer_repo::Error;
use coffer_repo::stats::{PointStats, Size, Stats, StatsOptions, WorkloadStats, stats};
use coffer_repo::store_class::StoreClass;
use serde_json::{Value, json};

/// Show how much space points and workloads take, and how much only they take
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let repo = context.open()?;
        let points = context.points(&repo)?;
        let cancel = signal::cancel(&context.terminal)?;
        let scratch = context.cache_folder(&repo)?;
        std::fs::create_dir_all(&scratch).map_err(|e| Error::io(format!("making {}", scratch.display()), e))?;
        let options = StatsOptions { scratch, threads: environment::threads() };
        let found = stats(&repo, &points, &options, &cancel)?;
        context.print(object(&found, repo.store_class()), &text(&found, repo.store_class()))
    }
}

fn object(found: &Stats, class: Option<StoreClass>) -> Value {
    json!({
        "store_class": probe::class_object(class),
        "points": found.points.iter().map(point_object).collect::<Vec<_>>(),
        "workloads": found.workloads.iter().map(workload_object).collect::<Vec<_>>(),
        "total": size_object(&found.total),
        "logical": found.logical,
    })
}

fn point_object(point: &PointStats) -> Value {
    json!({
        "id": point.snapshot.to_string(),
        "workload": point.workload,
        "time": point.time.to_string(),
        "time_seconds": point.time.seconds(),
        "logical": point.logical,
        "unique": size_object(&point.unique),
    })
}

fn workload_object(workload: &WorkloadStats) -> Value {
    json!({
        "workload": workload.workload,
        "points": workload.points,
        "logical": workload.logical,
        "unique": size_object(&workload.unique),
    })
}

fn size_object(of: &Size) -> Value {
    json!({ "chunks": of.chunks, "bytes": of.raw, "stored_bytes": of.stored })
}

fn text(found: &Stats, class: Option<StoreClass>) -> String {
    let points = found.points.iter().map(|point| {
        vec![
            output::short(point.snapshot),
            format!("{}@{}", point.workload, point.time),
            size(point.logical),
            size(point.unique.raw),
            size(point.unique.stored),
        ]
    });
    let workloads = found.workloads.iter().map(|workload| {
        vec![
            workload.workload.clone(),
            workload.points.to_string(),
            size(workload.logical),
            size(workload.unique.raw),
            size(workload.unique.stored),
        ]
    });
    let Size { chunks, raw, stored } = found.total;
    let store = match class {
        None => "not probed; 'coffer probe' does".to_owned(),
        Some(class) => format!("{class}; {}", class.meaning()),
    };
    format!(
        "{}\n{}\n{} points in {} workloads, {} in all: made of {} in {chunks} distinct chunks, stored in {}\nstore: {store}\n",
        output::table(&["id", "point", "size", "only its own", "stored"], 2, points),
        output::table(&["workload", "points", "size", "only its own", "stored"], 1, workloads),
        found.points.len(),
        found.workloads.len(),
        size(found.logical),
        size(raw),
        size(stored),
    )
}
