//! The commands, one file each.

pub(crate) mod bench;
pub(crate) mod buses;
pub(crate) mod completions;
pub(crate) mod conformance;
pub(crate) mod consumers;
pub(crate) mod copy;
pub(crate) mod diff;
pub(crate) mod dlq;
pub(crate) mod doctor;
pub(crate) mod dump;
mod durable;
pub(crate) mod history;
pub(crate) mod import;
pub(crate) mod info;
pub(crate) mod man;
pub(crate) mod publish;
pub(crate) mod restore;
pub(crate) mod schema;
pub(crate) mod show;
pub(crate) mod streams;
pub(crate) mod subscribe;
pub(crate) mod tail;
pub(crate) mod watch;

use self::subscribe::eprint_warning;
use crate::args::{Cli, Command};
use crate::bus::App;
use crate::failure::{Failure, Outcome};

pub(crate) async fn run(cli: Cli) -> Outcome {
    if let Command::Doctor = cli.command {
        // `doctor` explains a config that other commands refuse.
        return doctor::run(cli.global).await;
    }
    if let Command::Bus(command) = cli.command {
        // `bus` creates the config file that other commands read.
        return buses::run(&cli.global, command);
    }
    let mut app = App::new(cli.global)?;
    let ended = run_in(&mut app, cli.command).await;
    if let Some(failures) = app.keys.failures() {
        eprint_warning(&Failure::Input(failures));
    }
    ended.map_err(|failure| match failure {
        Failure::Unreachable(text) => {
            Failure::Unreachable(format!("{text}; `a3s-event doctor` finds the cause"))
        }
        other => other,
    })?;
    app.close().await
}

async fn run_in(app: &mut App, command: Command) -> Outcome {
    match command {
        Command::Publish(args) => publish::run(app, args).await,
        Command::Import(args) => import::run(app, args).await,
        Command::Subscribe(args) => subscribe::run(app, args).await,
        Command::History(args) => history::run(app, args).await,
        Command::Tail(args) => tail::run(app, args).await,
        Command::Show(args) => show::run(app, args).await,
        Command::Info => info::run(app).await,
        Command::Streams(args) => streams::run(app, args).await,
        Command::Consumers(args) => consumers::run(app, args).await,
        Command::Watch(args) => watch::run(app, args).await,
        Command::Dlq(args) => dlq::run(app, args).await,
        Command::Dump(args) => dump::run(app, args).await,
        Command::Restore(args) => restore::run(app, args).await,
        Command::Copy(args) => copy::run(app, args).await,
        Command::Diff(args) => diff::run(app, args).await,
        Command::Bench(args) => bench::run(app, args).await,
        Command::Conformance(args) => conformance::run(app, args).await,
        Command::Schema(command) => schema::run(app, command).await,
        Command::Completions(args) => completions::run(app, args),
        Command::Man(args) => man::run(app, args),
        Command::Doctor | Command::Bus(_) => Ok(()),
    }
}
