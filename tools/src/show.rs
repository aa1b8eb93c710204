//! `coffer show`: everything about one point.

use crate::context::{Context, choose_disk};
use crate::exit::Result;
use crate::output::{self, size};
use coffer_repo::point::PointName;
use coffer_repo::protection::Protection;
use coffer_repo::snapshot::{Copied, Disk, Origin};

/// Show one point
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Which one
    #[arg(value_parser = PointName::parse)]
    point: PointName,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let repo = context.open()?;
        let mut snapshot = context.find(&repo, &self.point)?;
        let protected = context.protected(&repo)?;
        if self.point.disk.is_some() {
            snapshot.disks = vec![choose_disk(&self.point, &snapshot)?.clone()];
        }
        let stats = snapshot.stats;
        let identity = &snapshot.identity;
        let parents: Vec<String> = snapshot.parents.iter().map(ToString::to_string).collect();
        let facts = [
            ("id", snapshot.id().to_string()),
            ("workload", snapshot.workload.clone()),
            ("time", snapshot.time().to_string()),
            ("tags", snapshot.tags.join(", ")),
            ("protected", protected.of(snapshot.id()).iter().map(protection).collect::<Vec<_>>().join("; ")),
            ("made by", format!("{}@{} with {}", identity.user, identity.host, identity.program)),
            ("parents", parents.join(", ")),
            ("copy of", snapshot.copied.map_or_else(String::new, origin)),
            ("read", size(stats.read)),
            (
                "added",
                format!("{} in {} chunks, stored in {}", size(stats.new_raw), stats.new_chunks, size(stats.new_stored)),
            ),
        ];
        let rows = facts.into_iter().filter(|(_, fact)| !fact.is_empty());
        let facts: String = rows.map(|(name, fact)| format!("{name:9} {fact}\n")).collect();
        let disks = output::table(&["disk", "size", "block", "unreadable"], 1, snapshot.disks.iter().map(row));
        context.print(output::point(&snapshot, &protected), &format!("{facts}\n{disks}"))
    }
}

fn protection(note: &Protection) -> String {
    let reason = note.reason.as_deref().unwrap_or("yes");
    note.time.map_or_else(|| reason.to_owned(), |time| format!("{reason} (since {time})"))
}

fn origin(copied: Copied) -> String {
    let Origin { repo, snapshot } = copied.origin;
    format!("{snapshot} of repository {repo} (copied {})", copied.begun)
}

fn row(disk: &Disk) -> Vec<String> {
    vec![disk.name.clone(), size(disk.size), disk.block_size.to_string(), size(disk.unreadable)]
}
