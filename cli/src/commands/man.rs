//! `man`: writes manual pages.

use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use serde::Serialize;

use crate::args::Cli;
use crate::bus::App;
use crate::failure::{Failure, Outcome};

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event man > a3s-event.1
  a3s-event man pages

man -l pages/a3s-event-history.1 shows a page.";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to write the pages of all commands to [default: print the page of the tool]
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
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            app.out.raw(&page)
        }
    }
}

/// Writes a page per command and returns their number.
fn write(folder: &Path) -> std::io::Result<usize> {
    if !folder.exists() {
        std::fs::create_dir(folder)?;
    }
    clap_mangen::generate_to(Cli::command(), folder)?;
    Ok(pages(&Cli::command()))
}

fn pages(command: &clap::Command) -> usize {
    1 + command.get_subcommands().filter(|sub| !sub.is_hide_set()).map(pages).sum::<usize>()
}
