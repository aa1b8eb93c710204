//! The coffer command: parse, call a room, print. One file for each command.
//!
//! ```text
//!   main        the command line, and which command it means
//!     settings      which repository, what opens it: line, environment, configuration file
//!     context       opens it; finds points; keeps the index in step       store     folders and object stores
//!     <command>     arguments, the room's call, the result: init backup restore mount verify ...
//!   output      standard output: tables or JSON          terminal    standard error: progress and warnings
//!   exit        errors -> one line and an exit code      signal      the first asks, the second ends
//!   environment, credential                              what comes from the machine and its user
//! ```
//! Not here: anything that a room could know. What holds: only this crate reads variables, clock and terminal.

mod backup;
mod budgets;
mod cache;
mod completions;
mod context;
mod copy;
mod credential;
mod diff;
mod environment;
mod exit;
mod export;
mod forget;
mod fork;
mod gc;
mod heal;
mod init;
mod iscsi;
mod key;
mod locks;
mod manpages;
mod mount;
mod output;
mod probe;
mod protect;
mod restore;
mod serve;
mod settings;
mod show;
mod signal;
mod since;
mod snapshots;
mod stats;
mod store;
mod terminal;
mod thaw;
mod tier;
mod verify;

use clap::{Parser, Subcommand};
use context::Context;
use exit::Result;
use settings::Globals;
use std::process::ExitCode;

/// Deduplicated, encrypted backups of virtual machines that can be used the moment they are made
#[derive(Debug, Parser)]
#[command(name = "coffer", version, arg_required_else_help = true, after_long_help = grammar())]
struct Cli {
    #[command(flatten)]
    globals: Globals,

    #[command(subcommand)]
    command: Command,
}

const GRAMMAR: &str = "\
POINT   WORKLOAD@latest, WORKLOAD@-N (the Nth before the latest), WORKLOAD@TIME, or an id or its beginning.
        TIME is written 2026-11-21T02-00-00Z. POINT:DISK is a disk of it; with one disk the name may be left out.
SOURCE  A raw, qcow2, VMDK, VHDX or VDI file, a block device, an nbd:// or nbd+unix:// URI, or - for standard input.

Files   A configuration file $XDG_CONFIG_HOME/coffer/config.toml may set repository, options, password-file, key-file,
        lock-for and tier-secrets.

Exit codes
  0  done
  1  failed; the one line on standard error says why
  2  wrong use
  3  done with warnings: something was skipped or unreadable, and is named";

/// What help ends with.
fn grammar() -> String {
    let options = coffer_repo::backend::address::options_help();
    format!("{GRAMMAR}\n\nObject stores, by -o NAME=VALUE:\n{}", options.trim_end())
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Arguments),
    Backup(backup::Arguments),
    Snapshots(snapshots::Arguments),
    Stats(stats::Arguments),
    Show(show::Arguments),
    Diff(diff::Arguments),
    Restore(restore::Arguments),
    Thaw(thaw::Arguments),
    Mount(mount::Arguments),
    Serve(serve::Arguments),
    Export(export::Arguments),
    Iscsi(iscsi::Arguments),
    Fork(fork::Arguments),
    Verify(verify::Arguments),
    Forget(forget::Arguments),
    Protect(protect::Protect),
    Unprotect(protect::Unprotect),
    Gc(gc::Arguments),
    Heal(heal::Arguments),
    Copy(copy::Arguments),
    Key(key::Arguments),
    Probe(probe::Arguments),
    Cache(cache::Arguments),
    Locks(locks::Arguments),
    Tier(tier::Arguments),
    Completions(completions::Arguments),
    Manpages(manpages::Arguments),
}

fn main() -> ExitCode {
    let Cli { globals, command } = Cli::parse();
    let context = match Context::new(&globals) {
        Ok(context) => context,
        Err(failure) => return exit::conclude(Err(failure), false),
    };
    let result = command.run(&context);
    exit::conclude(result, context.terminal.has_warned())
}

impl Command {
    fn run(&self, context: &Context) -> Result<()> {
        match self {
            Command::Init(arguments) => arguments.run(context),
            Command::Backup(arguments) => arguments.run(context),
            Command::Snapshots(arguments) => arguments.run(context),
            Command::Stats(arguments) => arguments.run(context),
            Command::Show(arguments) => arguments.run(context),
            Command::Diff(arguments) => arguments.run(context),
            Command::Restore(arguments) => arguments.run(context),
            Command::Thaw(arguments) => arguments.run(context),
            Command::Mount(arguments) => arguments.run(context),
            Command::Serve(arguments) => arguments.run(context),
            Command::Export(arguments) => arguments.run(context),
            Command::Iscsi(arguments) => arguments.run(context),
            Command::Fork(arguments) => arguments.run(context),
            Command::Verify(arguments) => arguments.run(context),
            Command::Forget(arguments) => arguments.run(context),
            Command::Protect(arguments) => arguments.run(context),
            Command::Unprotect(arguments) => arguments.run(context),
            Command::Gc(arguments) => arguments.run(context),
            Command::Heal(arguments) => arguments.run(context),
            Command::Copy(arguments) => arguments.run(context),
            Command::Key(arguments) => arguments.run(context),
            Command::Probe(arguments) => arguments.run(context),
            Command::Cache(arguments) => arguments.run(context),
            Command::Locks(arguments) => arguments.run(context),
            Command::Tier(arguments) => arguments.run(context),
            Command::Completions(arguments) => arguments.run(),
            Command::Manpages(arguments) => arguments.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }
}
