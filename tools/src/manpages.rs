//! `coffer manpages`: the manual, one page for each command.

use crate::Cli;
use crate::exit::Result;
use clap::CommandFactory;
use coffer_repo::Error;
use std::path::PathBuf;

/// Write the manual pages into a folder
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The folder; it is made if need be
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

impl Arguments {
    pub(crate) fn run(&self) -> Result<()> {
        let failed = |e| Error::io(format!("writing manual pages into {}", self.folder.display()), e);
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        clap_mangen::generate_to(Cli::command(), &self.folder).map_err(failed)?;
        Ok(())
    }
}
