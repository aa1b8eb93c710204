//! `coffer cache`: what this machine's disk keeps of repositories that are far away.
//!
//! Not here: the index, which is kept beside it and is no cache of objects. What holds: no repository is opened, so that it works
//! without a key, and where the repository is gone.

use crate::context::{Context, DISK_CACHE};
use crate::exit::Result;
use crate::output::{self, size};
use clap::Subcommand;
use coffer_repo::Error;
use coffer_repo::backend::cached::{Usage, clear, usage};
use coffer_repo::id::RepoId;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Show or clear what this machine's disk keeps of repositories that are far away
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show how much is kept of each repository, by its id
    Show,
    /// Remove what is kept; safe while it is used
    Clear {
        /// Of this repository alone
        #[arg(value_name = "ID")]
        only: Option<RepoId>,
    },
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let caches = caches(context.settings.caches()?)?;
        match &self.command {
            Command::Show => {
                let taken = caches.iter().map(|(id, folder)| Ok((*id, usage(folder)?))).collect::<Result<Vec<_>>>()?;
                let row =
                    |(id, taken): &(RepoId, Usage)| vec![id.to_string(), taken.objects.to_string(), size(taken.bytes)];
                let text = output::table(&["repository", "objects", "taken"], 1, taken.iter().map(row));
                context.print(json!({ "caches": taken.iter().map(object).collect::<Vec<_>>() }), &text)
            }
            Command::Clear { only } => {
                let mut cleared = Vec::new();
                for (id, folder) in caches {
                    if only.is_none_or(|only| only == id) {
                        let taken = usage(&folder)?;
                        clear(&folder)?;
                        cleared.push((id, taken));
                    }
                }
                let text: String = cleared
                    .iter()
                    .map(|(id, taken)| format!("removed {} that were kept of repository {id}\n", size(taken.bytes)))
                    .collect();
                context.print(json!({ "cleared": cleared.iter().map(object).collect::<Vec<_>>() }), &text)
            }
        }
    }
}

fn object((id, taken): &(RepoId, Usage)) -> Value {
    json!({ "repository": id.to_string(), "objects": taken.objects, "bytes": taken.bytes })
}

/// The repositories of which something may be kept, and where.
fn caches(folder: &Path) -> Result<Vec<(RepoId, PathBuf)>> {
    let failed = |e| Error::io(format!("listing {}", folder.display()), e);
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let cache = entry.path().join(DISK_CACHE);
        // Whatever else lies in the folder is not ours to look at.
        if let Some(Ok(id)) = entry.file_name().to_str().map(str::parse)
            && cache.is_dir()
        {
            found.push((id, cache));
        }
    }
    found.sort_by_key(|(id, _): &(RepoId, PathBuf)| id.0);
    Ok(found)
}
