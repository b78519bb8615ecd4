//! `a3s-event`: publish, subscribe, read, move and measure events on any bus, from the command line.

mod args;
mod bus;
mod commands;
mod complete;
mod config;
mod confirm;
mod consumer_name;
mod event_file;
mod failure;
mod filter;
mod forward;
mod keys;
mod layout;
mod limits;
mod log;
mod moment;
mod output;
mod plot;
mod progress;
mod records;
mod replace;
mod stored;
mod template;
mod text;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{ColorChoice, CommandFactory as _, FromArgMatches as _};

use crate::args::{Cli, Command};
use crate::failure::{Failure, Outcome};

fn main() -> ExitCode {
    complete::for_shell();
    let words = in_current_words(std::env::args_os().collect());
    let ended = parse(words).map_err(told_by_clap).and_then(run);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ended::Shown(code)) => ExitCode::from(code),
        Err(Ended::Failed(failure)) => {
            let message = failure.message();
            if !message.is_empty() {
                layout::eprint(&format!("error: {message}"));
            }
            ExitCode::from(failure.code())
        }
    }
}

/// Parses the command line. Help and errors have styles where other output has them.
fn parse(words: Vec<OsString>) -> Result<Cli, clap::Error> {
    // By itself, clap styles the output of a dumb terminal where CI is set.
    let color = if layout::is_dumb() { ColorChoice::Never } else { ColorChoice::Auto };
    let mut command = Cli::command().color(color);
    let mut matches = command.try_get_matches_from_mut(words)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// Reads `pub --many FILE`, the earlier name, as `import FILE`.
fn in_current_words(mut words: Vec<OsString>) -> Vec<OsString> {
    let publish = words.iter().position(|word| word == "pub" || word == "publish");
    let many = words.iter().position(|word| word.to_string_lossy().starts_with("--many"));
    let (Some(publish), Some(many)) = (publish, many) else { return words };
    let option = words.remove(many);
    let file = match option.to_string_lossy().split_once('=') {
        Some((_, file)) => file.into(),
        None if many < words.len() => words.remove(many),
        None => return words,
    };
    words.splice(publish..=publish, ["import".into(), file]);
    words
}

/// The reasons why the program ends early.
enum Ended {
    /// The parser has printed its message.
    Shown(u8),
    Failed(Failure),
}

fn told_by_clap(error: clap::Error) -> Ended {
    let _ = error.print();
    Ended::Shown(u8::try_from(error.exit_code()).unwrap_or(2))
}

fn run(cli: Cli) -> Result<(), Ended> {
    let would_be_drawn_over = matches!(cli.command, Command::Watch(_)) && std::io::stderr().is_terminal();
    if !would_be_drawn_over {
        log::to_stderr(cli.global.log.clone(), cli.global.verbose);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Ended::Failed(Failure::Other(format!("tokio runtime: {error}"))))?;
    let done: Outcome = runtime.block_on(commands::run(cli));
    // A thread that reads stdin cannot be stopped.
    runtime.shutdown_background();
    done.map_err(Ended::Failed)
}
