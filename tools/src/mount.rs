//! `coffer mount`: all points as files.

use crate::budgets::Budgets;
use crate::context::Context;
use crate::environment;
use crate::exit::{Result, describe};
use crate::signal;
use coffer_mount::{Detached, MountOptions, Report, RepositoryCatalog, Session};
use coffer_repo::backend::cached::Intake;
use std::path::PathBuf;
use std::sync::Arc;

/// Mount all points as files, WORKLOAD/TIME/DISK.raw, until a signal or an unmount ends it
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where; the folder must exist
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// Let other users in; needs user_allow_other in /etc/fuse.conf
    #[arg(long)]
    allow_other: bool,

    #[command(flatten)]
    budgets: Budgets,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let repo = context.open_cached(Intake::Keep)?;
        let terminal = Arc::clone(&context.terminal);
        let report: Report = Arc::new(move |error| terminal.notice(describe(error)));
        let reader = context.reader(&repo, self.budgets.reader_options())?;
        let started = environment::now()?;
        // A clock that is set to nonsense meanwhile is no reason to end a mount.
        let clock = Arc::new(move || environment::now().unwrap_or(started));
        let catalog = RepositoryCatalog::new(repo, reader, environment::identity(), clock, Arc::clone(&report));
        let options = MountOptions { allow_other: self.allow_other, ..MountOptions::default() };
        let stopped = signal::stopped(&context.terminal)?;
        let session = Arc::new(Session::mount(&self.folder, Arc::new(catalog), options, report)?);
        context.terminal.notice(format_args!("mounted at {}; SIGINT or SIGTERM ends it", self.folder.display()));
        let (ending, terminal) = (Arc::clone(&session), Arc::clone(&context.terminal));
        let stop = move || {
            // An error says that the thread that listens is gone: then only an unmount ends it.
            if stopped.recv().is_err() {
                return;
            }
            match ending.stop() {
                Ok(Detached::Clean) => {}
                Ok(Detached::InUse) => terminal.notice("files are open; this ends when the last of them is closed"),
                Err(e) => terminal.notice(describe(&e)),
            }
        };
        std::thread::spawn(stop);
        Ok(session.wait()?)
    }
}
