//! `coffer completions`: what a shell needs to complete the command line.

use crate::Cli;
use crate::exit::Result;
use crate::output;
use clap::CommandFactory;
use clap_complete::Shell;

/// Print the completions for a shell
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    shell: Shell,
}

impl Arguments {
    pub(crate) fn run(&self) -> Result<()> {
        // Into memory first: the generator panics when its output goes away.
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "coffer", &mut text);
        output::write(&text)
    }
}
