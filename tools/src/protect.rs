//! `coffer protect` and `coffer unprotect`: points that stay, whatever the rules or names of a forget say.

use crate::context::{Context, choose_all, whole_points};
use crate::environment;
use crate::exit::Result;
use crate::output::{self, short};
use coffer_repo::snapshot::Snapshot;
use serde_json::{Value, json};

/// Protect points: 'coffer forget' keeps them until they are unprotected
#[derive(Debug, clap::Args)]
pub(crate) struct Protect {
    /// Which ones
    #[arg(required = true, value_name = "POINT")]
    points: Vec<String>,

    /// Why, for those who come after
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// End the protection of points: 'coffer forget' may forget them again
#[derive(Debug, clap::Args)]
pub(crate) struct Unprotect {
    /// Which ones
    #[arg(required = true, value_name = "POINT")]
    points: Vec<String>,
}

impl Protect {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let names = whole_points(&self.points)?;
        let repo = context.open()?;
        let all = context.points(&repo)?;
        let points = choose_all(&names, &all)?;
        for point in &points {
            repo.protect(point, self.reason.as_deref(), environment::now()?)
                .map_err(|e| e.within(format_args!("protecting {}@{}", point.workload, point.time())))?;
        }
        let protected = context.protected(&repo)?;
        let objects: Vec<Value> = points.iter().map(|point| output::point(point, &protected)).collect();
        context.print(json!({ "protected": objects }), &lines("protected", &points))
    }
}

impl Unprotect {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let names = whole_points(&self.points)?;
        let repo = context.open()?;
        let all = context.points(&repo)?;
        let points = choose_all(&names, &all)?;
        let protected = context.protected(&repo)?;
        let mut ended: Vec<&Snapshot> = Vec::new();
        for point in points {
            match repo.unprotect(point, &protected, environment::now()?)? {
                true => ended.push(point),
                false => context.terminal.notice(format_args!("{}@{} was not protected", point.workload, point.time())),
            }
        }
        let objects: Vec<Value> = ended.iter().map(|point| output::snapshot(point)).collect();
        context.print(json!({ "unprotected": objects }), &lines("no longer protected:", &ended))
    }
}

fn lines(what: &str, points: &[&Snapshot]) -> String {
    points.iter().map(|p| format!("{what} {}@{} ({})\n", p.workload, p.time(), short(p.id()))).collect()
}
