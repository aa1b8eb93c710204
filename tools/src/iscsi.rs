//! `coffer iscsi`: what a gateway that runs on this machine offers by iSCSI, and who has it, by its control socket.
//!
//! Not here: the gateway ([`crate::serve`]). What holds: the repository is not opened here, and needs no passphrase.

use crate::context::Context;
use crate::exit::Result;
use crate::output::{self, size};
use crate::serve::control_path;
use clap::Subcommand;
use coffer_gateway::control::{Answer, Question, ask};
use coffer_repo::Error;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Show iSCSI targets and sessions of the gateway that 'coffer serve --config' runs
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The gateway's control socket. Without it the one in the state folder
    #[arg(long, global = true, value_name = "PATH")]
    control: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Targets and their disks: what was done with them, and who has reserved them
    Targets,
    /// Who is logged in, from where, and what they did
    Sessions,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let path = match &self.control {
            Some(path) => path.clone(),
            None => control_path(&context.settings)?,
        };
        let (question, key) = match self.command {
            Command::Targets => (Question::Targets, "targets"),
            Command::Sessions => (Question::Sessions, "sessions"),
        };
        let Answer::Objects(objects) = ask(&path, &question)? else {
            return Err(Error::internal("the gateway answered another question").into());
        };
        let table = match self.command {
            Command::Targets => targets(&objects),
            Command::Sessions => sessions(&objects),
        };
        context.print(json!({ key: objects }), &table)
    }
}

fn targets(objects: &[Value]) -> String {
    let header = ["target", "sessions", "lun", "of", "state", "reserved", "size", "reads", "", "writes", ""];
    let rows = objects.iter().flat_map(|target| {
        let (name, sessions) = (text(target, "name"), number(target, "sessions").to_string());
        let row = move |lun: &Value| {
            let state = if lun["is_read_only"] == true { "read-only" } else { "writable" };
            let first = [name.clone(), sessions.clone(), number(lun, "number").to_string(), text(lun, "description")];
            let more = [state.to_owned(), text(lun, "reservation"), size(number(lun, "size"))];
            first.into_iter().chain(more).chain(traffic(lun)).collect::<Vec<_>>()
        };
        target["luns"].as_array().into_iter().flatten().map(row).collect::<Vec<_>>()
    });
    output::table(&header, 6, rows)
}

fn sessions(objects: &[Value]) -> String {
    let header = ["target", "initiator", "from", "connections", "reads", "", "writes", ""];
    let row = |session: &Value| {
        let connections = session["connections"].as_array();
        let from = connections.into_iter().flatten().filter_map(|connection| connection["from"].as_str());
        let first = [text(session, "target"), text(session, "initiator"), from.collect::<Vec<_>>().join(", ")];
        let count = connections.map_or(0, Vec::len).to_string();
        first.into_iter().chain([count]).chain(traffic(session)).collect::<Vec<_>>()
    };
    output::table(&header, 3, objects.iter().map(row))
}

fn traffic(object: &Value) -> [String; 4] {
    [
        number(object, "reads").to_string(),
        size(number(object, "bytes_read")),
        number(object, "writes").to_string(),
        size(number(object, "bytes_written")),
    ]
}

fn text(object: &Value, key: &str) -> String {
    object[key].as_str().unwrap_or_default().to_owned()
}

fn number(object: &Value, key: &str) -> u64 {
    object[key].as_u64().unwrap_or_default()
}
