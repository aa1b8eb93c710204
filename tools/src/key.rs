//! `coffer key`: who can open the repository, and how far.

use crate::context::Context;
use crate::credential::NewCredential;
use crate::environment;
use crate::exit::{Result, describe};
use crate::output;
use clap::Subcommand;
use coffer_repo::id::SlotId;
use coffer_repo::key_slot::{SlotKind, SlotSummary};
use coffer_repo::repository::Repository;
use serde_json::{Value, json};
use std::path::Path;

/// List, add and remove what opens the repository
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the keys
    List,
    /// Add a passphrase or a key file that opens everything
    Add(NewKey),
    /// Remove a key: what it opened stays open to whoever copied the repository before
    Remove {
        /// Its id, see 'coffer key list'
        id: SlotId,
    },
    /// Add a key for a machine that only makes backups: it reads no content and removes nothing
    ExportWriter(NewKey),
}

#[derive(Debug, clap::Args)]
struct NewKey {
    /// Whose it is, in words. Without it USER@HOST
    #[arg(long)]
    label: Option<String>,

    #[command(flatten)]
    credential: NewCredential,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let repo = context.open()?;
        match &self.command {
            Command::List => list(context, &repo),
            Command::Add(key) => {
                repo.check_full("add keys")?;
                let (credential, file) = key.credential.prepare(repo.entropy())?;
                let id = repo.add_key(&credential, &environment::slot_options(key.label.clone())?)?;
                added(context, id, true, file.keep().as_deref())
            }
            Command::Remove { id } => {
                repo.remove_key(*id)?;
                context.print(json!({ "removed": id.to_string() }), &format!("removed key {id}\n"))
            }
            Command::ExportWriter(key) => {
                repo.check_full("export keys")?;
                let (credential, file) = key.credential.prepare(repo.entropy())?;
                let id = repo.export_writer(&credential, &environment::slot_options(key.label.clone())?)?;
                added(context, id, false, file.keep().as_deref())
            }
        }
    }
}

fn list(context: &Context, repo: &Repository) -> Result<()> {
    let mut rows = Vec::new();
    let mut objects = Vec::new();
    for (id, summary) in repo.key_slots()? {
        match summary {
            Ok(slot) => {
                rows.push(vec![
                    id.to_string(),
                    kind(&slot).to_owned(),
                    opens(slot.full).to_owned(),
                    slot.created.to_string(),
                    slot.label.clone(),
                ]);
                objects.push(object(&slot));
            }
            Err(e) => context.terminal.warn(describe(&e)),
        }
    }
    let text = output::table(&["id", "kind", "opens", "made", "label"], usize::MAX, rows);
    context.print(json!({ "keys": objects }), &text)
}

fn object(slot: &SlotSummary) -> Value {
    json!({
        "id": slot.slot.to_string(),
        "kind": kind(slot),
        "opens": opens(slot.full),
        "label": slot.label,
        "time": slot.created.to_string(),
        "time_seconds": slot.created.seconds(),
    })
}

fn kind(slot: &SlotSummary) -> &str {
    match &slot.kind {
        SlotKind::Passphrase(_) => "passphrase",
        SlotKind::KeyFile => "key file",
        SlotKind::Unknown(kind) => kind,
    }
}

fn opens(full: bool) -> &'static str {
    if full { "everything" } else { "writing" }
}

fn added(context: &Context, id: SlotId, full: bool, file: Option<&Path>) -> Result<()> {
    let file = file.map(|file| file.display().to_string());
    let what = if full { "opens everything" } else { "can only add backups" };
    let text = match &file {
        Some(file) => format!("added key {id}, which {what}, in {file}\n"),
        None => format!("added key {id}, which {what}\n"),
    };
    context.print(json!({ "id": id.to_string(), "opens": opens(full), "key_file": file }), &text)
}
