//! `completions`: prints a script for the shell. It calls the program at each tab.

use clap::ValueEnum;
use clap_complete::env::Shells;

use crate::bus::App;
use crate::complete;
use crate::failure::{Failure, Outcome};

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event completions bash >> ~/.bashrc

zsh: add the script to ~/.zshrc after compinit. fish: write it to
~/.config/fish/completions/a3s-event.fish. The script calls the program at each tab.";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
}

pub(crate) fn run(app: &mut App, args: Args) -> Outcome {
    const PROGRAM: &str = "a3s-event";
    let name = match args.shell {
        Shell::Bash => "bash",
        Shell::Elvish => "elvish",
        Shell::Fish => "fish",
        Shell::Powershell => "powershell",
        Shell::Zsh => "zsh",
    };
    let unknown = || Failure::Other(format!("no completions for {name}"));
    let shells = Shells::builtins();
    let shell = shells.completer(name).ok_or_else(unknown)?;
    let mut script = Vec::new();
    shell.write_registration(complete::VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script)?;
    app.out.raw(&script)
}
