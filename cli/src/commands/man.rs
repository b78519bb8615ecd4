//! `man`: writes manual pages.

use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use serde::Serialize;

use crate::args::Cli;
use crate::bus::App;
use crate::failure::{Failure, Outcome};

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event man > a3s-event.1
  a3s-event man pages

man -l pages/a3s-event-history.1 shows a page.";

/// Variables without an option.
const VARIABLES: [(&str, &str); 4] = [
    ("XDG_CONFIG_HOME", "The config folder, ~/.config by default."),
    ("XDG_DATA_HOME", "The data folder, ~/.local/share by default."),
    ("NO_COLOR", "If not empty, output has no styles."),
    ("TERM", "If dumb, output has no styles."),
];
const FILES: [(&str, &str); 2] = [
    (
        "~/.config/a3s-event/config.toml",
        "The config file: the default bus, the bus of the dead letters, and the names of buses. The command bus edits it.",
    ),
    (
        "~/.local/share/a3s-event/events.db",
        "The default bus, a SQLite file. The first pub or sub creates it.",
    ),
];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to write the pages of all commands to [default: print the page of the tool]
    #[arg(value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Written {
    folder: String,
    pages: usize,
}

pub(crate) fn run(app: &mut App, args: Args) -> Outcome {
    match args.dir {
        Some(folder) => {
            let pages = write(&folder)
                .map_err(|error| Failure::Input(format!("folder {}: {error}", folder.display())))?;
            app.out.one(&Written { folder: folder.display().to_string(), pages })
        }
        None => app.out.raw(&render(&Man::new(Cli::command()))?),
    }
}

/// Writes a page per command and returns their number.
fn write(folder: &Path) -> std::io::Result<usize> {
    if !folder.exists() {
        std::fs::create_dir(folder)?;
    }
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    write_pages(command, folder)
}

fn write_pages(command: clap::Command, folder: &Path) -> std::io::Result<usize> {
    let mut pages = 1;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned() {
        pages += write_pages(sub, folder)?;
    }
    let man = Man::new(command);
    std::fs::write(folder.join(man.get_filename()), render(&man)?)?;
    Ok(pages)
}

/// Renders a page with the variables and files that every command uses.
fn render(man: &Man) -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render(&mut page)?;
    let mut more = Roff::new();
    more.control("SH", ["ENVIRONMENT"]);
    let command = Cli::command();
    for argument in command.get_arguments() {
        if let (Some(variable), Some(option)) = (argument.get_env(), argument.get_long()) {
            let meaning = format!("The value of --{option}, unless the option is given.");
            entry(&mut more, &variable.to_string_lossy(), &meaning);
        }
    }
    for (variable, meaning) in VARIABLES {
        entry(&mut more, variable, meaning);
    }
    more.control("SH", ["FILES"]);
    for (file, meaning) in FILES {
        entry(&mut more, file, meaning);
    }
    more.to_writer(&mut page)?;
    Ok(page)
}

fn entry(page: &mut Roff, name: &str, meaning: &str) {
    page.control("TP", []).text([bold(name)]).text([roman(meaning)]);
}
