//! `coffer key`: who can open the repository, and how far.

use crate::context::Context;
use crate::credential::NewCredential;
use crate::environment;
use crate::exit::{Result, describe};
use crate::output::{self, size};
use crate::signal;
use crate::terminal::{Sample, Unit};
use clap::Subcommand;
use coffer_repo::id::SlotId;
use coffer_repo::key_slot::{SlotKind, SlotSummary};
use coffer_repo::repository::Repository;
use coffer_repo::rotation::{self, EpochStatus, KeyStatus, Rotation};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Threads that read the headers of packs.
const THREADS: usize = 8;

/// List, add, remove and rotate what opens the repository
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
    /// Seal what is backed up from now on to a new data key, which this passphrase or key file opens, too; other full keys have
    /// to be added anew. 'coffer gc --rotate' then seals anew what is there
    Rotate,
    /// Show what is sealed to which data key, and which keys are behind
    Status,
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
            Command::Rotate => rotated(context, &repo, &rotation::rotate(&repo, environment::now()?)?),
            Command::Status => {
                let cancel = signal::cancel(&context.terminal)?;
                let headers = AtomicU64::new(0);
                let sample = || Sample {
                    done: headers.load(Ordering::Relaxed),
                    total: None,
                    note: "headers of packs".to_owned(),
                };
                let work = || rotation::status(&repo, THREADS, &headers, &cancel);
                told(context, &repo, &context.terminal.during("reading", Unit::Count, &sample, work)?)
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
                    reach(repo, &slot),
                    slot.created.to_string(),
                    slot.label.clone(),
                ]);
                objects.push(object(repo, &slot));
            }
            Err(e) => context.terminal.warn(describe(&e)),
        }
    }
    let text = output::table(&["id", "kind", "opens", "reads", "made", "label"], usize::MAX, rows);
    context.print(json!({ "keys": objects }), &text)
}

fn object(repo: &Repository, slot: &SlotSummary) -> Value {
    json!({
        "id": slot.slot.to_string(),
        "kind": kind(slot),
        "opens": opens(slot.full),
        "epoch": repo.epoch_of(slot),
        "is_behind": repo.is_behind(slot),
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

/// Up to which data-key epoch a slot reads.
fn reach(repo: &Repository, slot: &SlotSummary) -> String {
    match repo.epoch_of(slot) {
        _ if !slot.full => "nothing".to_owned(),
        Some(epoch) if repo.is_behind(slot) => format!("up to epoch {epoch}: behind"),
        Some(_) => "all epochs".to_owned(),
        None => "unfinished".to_owned(),
    }
}

/// Says what a rotation did, and whose keys are behind now.
fn rotated(context: &Context, repo: &Repository, rotation: &Rotation) -> Result<()> {
    let Rotation { epoch, finished, slot, removed } = rotation;
    let behind: Vec<SlotSummary> =
        repo.key_slots()?.into_iter().filter_map(|(_, slot)| slot.ok().filter(|slot| repo.is_behind(slot))).collect();
    let mut text = match finished {
        true => format!("finished the interrupted rotation to data-key epoch {epoch}; no other was begun\n"),
        false => format!("data-key epoch {epoch} began: new backups are sealed to its key\n"),
    };
    text += &format!("this passphrase or key file is key {slot} now\n");
    text += &behind_text(repo, &behind);
    text += "'coffer gc --rotate' seals what was backed up before anew; 'coffer key status' shows what is left\n";
    let object = json!({
        "epoch": epoch,
        "finished": finished,
        "id": slot.to_string(),
        "removed": removed.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "behind": behind.iter().map(|slot| object(repo, slot)).collect::<Vec<_>>(),
    });
    context.print(object, &text)
}

fn behind_text(repo: &Repository, behind: &[SlotSummary]) -> String {
    let mut text = String::new();
    for slot in behind {
        text += &format!("key {} ('{}') reads {}\n", slot.slot, slot.label, reach(repo, slot));
    }
    if !behind.is_empty() {
        text += "add these anew with a key that reads all epochs ('coffer key add'), then remove them ('coffer key remove')\n";
    }
    text
}

/// Says what is sealed to which key.
fn told(context: &Context, repo: &Repository, status: &KeyStatus) -> Result<()> {
    for (uid, error) in &status.damaged {
        context.terminal.warn(format_args!("pack {uid} is in no sum: {}", describe(error)));
    }
    let KeyStatus { epochs, newest, left, behind, unfinished, .. } = status;
    let rows = epochs.iter().map(|EpochStatus { epoch, began, sealed }| {
        let began = began.map(|time| time.to_string()).unwrap_or_default();
        vec![epoch.to_string(), began, sealed.packs.to_string(), size(sealed.bytes)]
    });
    let mut text = output::table(&["epoch", "began", "packs", "size"], 2, rows);
    text += &behind_text(repo, behind);
    if let Some(unfinished) = unfinished {
        text += &format!("{unfinished}; 'coffer key rotate' finishes it\n");
    }
    text += &match left.packs {
        0 => format!("everything is sealed to the key of epoch {newest}\n"),
        packs => format!(
            "left: {packs} packs, {}, sealed to older keys; 'coffer gc --rotate' seals them anew\n",
            size(left.bytes)
        ),
    };
    let object = json!({
        "epoch": newest,
        "epochs": epochs.iter().map(|EpochStatus { epoch, began, sealed }| json!({
            "epoch": epoch,
            "time": began.map(|time| time.to_string()),
            "time_seconds": began.map(|time| time.seconds()),
            "packs": sealed.packs,
            "bytes": sealed.bytes,
        })).collect::<Vec<_>>(),
        "left": { "packs": left.packs, "bytes": left.bytes },
        "behind": behind.iter().map(|slot| object(repo, slot)).collect::<Vec<_>>(),
        "unfinished": unfinished,
    });
    context.print(object, &text)
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
