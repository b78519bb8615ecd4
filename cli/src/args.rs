//! The command line.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueHint};
use clap_complete::ArgValueCandidates;
use tracing_subscriber::filter::Targets;

use crate::commands::{
    bench, buses, completions, conformance, consumers, copy, diff, dlq, doctor, dump, history, import, info,
    man, publish, restore, schema, show, streams, subscribe, tail, watch,
};
use crate::complete;
use crate::keys::KeyFile;
use crate::output::Format;

/// Publish, subscribe, read, move and measure events on any bus.
///
/// With no URL the bus is a SQLite file in your data folder, so that everything works without a server.
#[derive(Debug, Parser)]
#[command(name = "a3s-event", version, after_help = EXAMPLE)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLE: &str = "Example:
  a3s-event pub events.greetings.first '{\"text\": \"hello\"}'
  a3s-event history

Exit codes:
  0  done
  1  failed, or a difference or an unreadable record was found
  2  usage error
  3  invalid input
  4  the bus cannot be reached
  5  outcome unknown: the named events may be stored";

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The bus: a URL such as nats://127.0.0.1:4222 or sqlite:///var/lib/events.db, or a name of the config file
    #[arg(long, global = true, env = "A3S_EVENT_URL", hide_env_values = true, add = ArgValueCandidates::new(complete::buses))]
    pub(crate) url: Option<String>,
    /// The bus that keeps the dead letters [default: the bus itself]
    #[arg(long, global = true, value_name = "URL", env = "A3S_EVENT_DLQ_URL", hide_env_values = true, add = ArgValueCandidates::new(complete::buses))]
    pub(crate) dlq_url: Option<String>,
    /// The config file [default: a3s-event/config.toml in your config folder]
    #[arg(long, global = true, value_name = "FILE", env = "A3S_EVENT_CONFIG", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// Key of encrypted payloads: a file, or ID=FILE; can be repeated. Events are decrypted with the key of their id (a
    /// key without an id fits any) and published with the first key
    #[arg(long, global = true, value_name = "FILE", env = "A3S_EVENT_KEY_FILE", value_hint = ValueHint::FilePath)]
    pub(crate) key_file: Vec<KeyFile>,
    /// Output format
    #[arg(long, short, global = true, value_enum, default_value_t)]
    pub(crate) output: Format,
    /// Increase log verbosity (-v info, -vv debug, -vvv also client libraries)
    #[arg(long, short, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Log targets and levels, such as a3s_event=debug,async_nats=info
    #[arg(long, global = true, value_name = "FILTER", env = "A3S_EVENT_LOG")]
    pub(crate) log: Option<Targets>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Publish one event
    #[command(name = "pub", visible_alias = "publish", after_help = publish::EXAMPLE)]
    Publish(publish::Args),
    /// Publish each record of a file
    #[command(after_help = import::EXAMPLE)]
    Import(import::Args),
    /// Receive events through a consumer
    #[command(name = "sub", visible_alias = "subscribe", after_help = subscribe::EXAMPLE)]
    Subscribe(subscribe::Args),
    /// List stored events, newest first
    #[command(after_help = history::EXAMPLE)]
    History(history::Args),
    /// Show the last events and follow new ones
    #[command(after_help = tail::EXAMPLE)]
    Tail(tail::Args),
    /// Show one event
    #[command(after_help = show::EXAMPLE)]
    Show(show::Args),
    /// Show the counts and limits of the stream
    #[command(after_help = info::EXAMPLE)]
    Info,
    /// List the streams of the server with their limits; purge or delete one
    #[command(alias = "stream", after_help = streams::EXAMPLE)]
    Streams(streams::Args),
    /// List the consumers with their lag; reset or delete one
    #[command(after_help = consumers::EXAMPLE)]
    Consumers(consumers::Args),
    /// Watch rate, lag and the last events in the terminal
    #[command(after_help = watch::EXAMPLE)]
    Watch(watch::Args),
    /// Work through dead letters
    #[command(after_help = dlq::EXAMPLE)]
    Dlq(dlq::Args),
    /// Write all events to stdout, for restore
    #[command(after_help = dump::EXAMPLE)]
    Dump(dump::Args),
    /// Publish the events of a dump, in their order and with their ids and times
    #[command(after_help = restore::EXAMPLE)]
    Restore(restore::Args),
    /// Copy events to another bus, with their ids, times and order
    #[command(after_help = copy::EXAMPLE)]
    Copy(copy::Args),
    /// Compare the events of two buses
    #[command(after_help = diff::EXAMPLE)]
    Diff(diff::Args),
    /// Measure rate and latency
    #[command(after_help = bench::EXAMPLE)]
    Bench(bench::Args),
    /// Check the delivery contract on the bus
    #[command(after_help = conformance::EXAMPLE)]
    Conformance(conformance::Args),
    /// Give buses names in the config file, and choose one
    #[command(subcommand, after_help = buses::EXAMPLE)]
    Bus(buses::Command),
    /// Diagnose a connection or a config
    #[command(after_help = doctor::EXAMPLE)]
    Doctor,
    /// Check event schemas
    #[command(subcommand, after_help = schema::EXAMPLE)]
    Schema(schema::Command),
    /// Print a completion script for a shell
    #[command(after_help = completions::EXAMPLE)]
    Completions(completions::Args),
    /// Print the man page, or write the pages of all commands
    #[command(after_help = man::EXAMPLE)]
    Man(man::Args),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    /// Splits a command line into words, up to a pipe or a redirection.
    fn words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut is_quoted = false;
        for c in line.trim().chars() {
            match c {
                '\'' => is_quoted = !is_quoted,
                '|' | '>' if !is_quoted => break,
                ' ' if !is_quoted => words.push(String::new()),
                c => words.last_mut().unwrap().push(c),
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }

    fn check(command: &clap::Command, checked: &mut usize) {
        let help =
            command.get_after_help().unwrap_or_else(|| panic!("{} has no example", command.get_name()));
        for line in help
            .to_string()
            .lines()
            .filter_map(|line| line.find("a3s-event ").map(|at| line[at..].to_owned()))
        {
            Cli::try_parse_from(words(&line)).unwrap_or_else(|error| panic!("{line}: {error}"));
            *checked += 1;
        }
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            check(sub, checked);
        }
    }

    #[test]
    fn every_command_has_an_example_that_is_right() {
        Cli::command().debug_assert();
        let mut checked = 0;
        check(&Cli::command(), &mut checked);
        assert!(checked > 25, "{checked}");
    }
}
