//! `completions`: a script for the shell.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Cli;
use crate::bus::App;
use crate::failure::Outcome;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event completions bash > ~/.local/share/bash-completion/completions/a3s-event";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(app: &mut App, args: Args) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "a3s-event", &mut script);
    app.out.raw(&script)
}
