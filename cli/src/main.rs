//! `a3s-event`: publish, subscribe, read, move and measure events on any bus, from the command line.

mod args;
mod bus;
mod commands;
mod config;
mod failure;
mod forward;
mod log;
mod moment;
mod output;
mod plot;
mod records;
mod stored;
mod template;
mod text;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::failure::{Failure, Outcome};

fn main() -> ExitCode {
    let ended = Cli::try_parse().map_err(told_by_clap).and_then(run);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ended::Shown(code)) => ExitCode::from(code),
        Err(Ended::Failed(failure)) => {
            let message = failure.message();
            if !message.is_empty() {
                // Nobody is left to be told that stderr is closed.
                let _ = writeln!(std::io::stderr(), "error: {message}");
            }
            ExitCode::from(failure.code())
        }
    }
}

/// How the program ends before its time.
enum Ended {
    /// The parser has said what there is to say.
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
    // A thread that reads stdin cannot be ended.
    runtime.shutdown_background();
    done.map_err(Ended::Failed)
}
