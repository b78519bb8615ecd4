//! The program: `work`, `run` and `check`.

mod backend;
mod disk;
mod member;
mod round;
mod schedule;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use a3s_event::provider::{Isolation, ProviderRegistry, ProviderUrl};
use a3s_event::{Capabilities, Durability, EventError, EventProvider, Result};
use clap::{Args, Parser, Subcommand};
use tokio::sync::{mpsc, watch};

use self::backend::ServerKind;
use super::{Finale, Journal, Lines, Load, Nemesis, Phase, Worker, check, summary};

/// Pause between two tries to connect.
const CONNECT_AGAIN: Duration = Duration::from_millis(100);
/// What a supervised worker reads and says.
const REST: &str = "rest";
const RESTED: &str = "rested";

/// Tells whether a bus lost, doubled, reordered or held back a single event under overlapping faults
#[derive(Debug, Parser)]
#[command(name = "a3s-event-ledger", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Publish and consume in one process, and keep a journal
    Work(Work),
    /// Start workers, strike them and the server with faults, and check the journals
    Run(Run),
    /// Check the journals in a folder
    Check {
        /// Folder with the journals of a round
        folder: PathBuf,
    },
}

#[derive(Debug, Clone, Args)]
struct Work {
    /// URL of the bus
    url: String,
    /// Folder of the journal
    #[arg(long, default_value = ".")]
    journals: PathBuf,
    /// Name of the member
    #[arg(long, default_value = "a")]
    member: String,
    /// Number of this process of the member
    #[arg(long, default_value_t = 1)]
    life: u32,
    /// Fresh stream beside that of the URL; without it, that of the URL
    #[arg(long)]
    stream: Option<String>,
    /// Folder of the files of the fresh stream
    #[arg(long, default_value = ".")]
    files: PathBuf,
    /// Obey a driver: rest at the line `rest` of the input, and stop at its end
    #[arg(long, hide = true)]
    supervised: bool,
    #[command(flatten)]
    load: LoadArgs,
}

#[derive(Debug, Clone, Args)]
struct LoadArgs {
    /// Tasks of a worker that publish
    #[arg(long, default_value_t = 2)]
    publishers: u32,
    /// Publish only
    #[arg(long)]
    no_consumers: bool,
    /// Average pause of a publisher in milliseconds
    #[arg(long, default_value_t = 10)]
    pause_millis: u64,
    /// Number of keys
    #[arg(long, default_value_t = 8)]
    keys: u32,
    /// Ack wait in seconds
    #[arg(long, default_value_t = 3)]
    lease_seconds: u64,
    /// Attempts of an event
    #[arg(long, default_value_t = 6)]
    attempts: u64,
    /// Seed of everything that is drawn; by default another one each time
    #[arg(long)]
    seed: Option<u64>,
}

impl LoadArgs {
    fn load(&self, seed: u64) -> Load {
        Load {
            publishers: self.publishers,
            pause: Duration::from_millis(self.pause_millis),
            consumers: !self.no_consumers,
            keys: self.keys,
            lease: Duration::from_secs(self.lease_seconds),
            attempts: self.attempts,
            seed,
        }
    }
}

#[derive(Debug, Clone, Args)]
struct Run {
    /// URL of the bus; each round has a fresh stream beside that of the URL
    #[arg(required_unless_present = "server")]
    url: Option<String>,
    /// Server to start and to strike
    #[arg(long, conflicts_with = "url")]
    server: Option<ServerKind>,
    /// Number of rounds
    #[arg(long, default_value_t = 1)]
    rounds: u64,
    /// Time of each round in which faults happen
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Number of worker processes
    #[arg(long, default_value_t = 3)]
    workers: usize,
    /// Faults to draw from, separated by commas; by default all that apply
    #[arg(long, value_delimiter = ',')]
    nemeses: Vec<Nemesis>,
    /// Maximum seconds until everything is delivered after the last fault
    #[arg(long, default_value_t = 60)]
    recovery_seconds: u64,
    /// Folder of the journals; by default a temporary one
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Keep the journals of rounds without a verdict, too
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    load: LoadArgs,
}

/// Runs the program with the providers of a registry, and returns its exit code: 0 without a verdict, 1 with one, and
/// 2 if it could not do its work.
///
/// ```no_run
/// use a3s_event::ProviderRegistry;
///
/// #[tokio::main]
/// async fn main() -> std::process::ExitCode {
///     // Register your scheme here.
///     a3s_event_testkit::ledger::program(ProviderRegistry::builtin()).await
/// }
/// ```
#[allow(clippy::print_stderr, reason = "the errors of a program")]
pub async fn program(registry: ProviderRegistry) -> ExitCode {
    let done = match Cli::parse().command {
        Command::Work(args) => work(&registry, args).await.map(|()| true),
        Command::Run(args) => supervise(registry, args).await,
        Command::Check { folder } => check_folder(&folder).map_err(Into::into),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("a3s-event-ledger: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs the rounds. A signal ends them, and with them workers, servers and mounts.
async fn supervise(registry: ProviderRegistry, args: Run) -> std::result::Result<bool, Failure> {
    let interrupted = stop_signal()?;
    tokio::select! {
        done = round::run(registry, args) => done,
        () = interrupted => Err("interrupted".into()),
    }
}

/// Any failure to do the work, as opposed to a verdict.
type Failure = Box<dyn std::error::Error + Send + Sync>;

#[allow(clippy::print_stdout, reason = "the result of a program")]
fn check_folder(folder: &Path) -> io::Result<bool> {
    let (journals, finale) = (Lines::read_all(folder)?, Finale::load(folder)?);
    let verdicts = check(&journals, &finale);
    for verdict in &verdicts {
        println!("{verdict}");
    }
    println!("{}: {}", super::Figures::of(&journals, &finale), summary(&verdicts));
    Ok(verdicts.is_empty())
}

/// Connection to the stream of a round.
#[derive(Debug, Clone)]
struct Place {
    registry: ProviderRegistry,
    url: String,
    /// Fresh stream, and the folder of its files.
    fresh: Option<(String, PathBuf)>,
}

impl Place {
    /// Opens the stream, and that of its dead letters.
    async fn connect(&self) -> Result<(Arc<dyn EventProvider>, Arc<dyn EventProvider>)> {
        let url = ProviderUrl::parse(&self.url)?;
        let Some((name, folder)) = &self.fresh else {
            let provider = self.registry.connect_to(url).await?;
            return Ok((Arc::clone(&provider), provider));
        };
        let open = async |name: &str| {
            let isolated = self.registry.isolated(&url, &Isolation::new(name, folder))?;
            let fresh =
                isolated.ok_or_else(|| EventError::Config("the scheme cannot isolate a stream".into()))?;
            self.registry.connect_to(fresh).await
        };
        Ok((open(name).await?, open(&format!("{name}_LETTERS")).await?))
    }

    /// Opens them as soon as the backend allows.
    async fn connect_when_possible(&self) -> Result<(Arc<dyn EventProvider>, Arc<dyn EventProvider>)> {
        loop {
            match self.connect().await {
                Err(error) if error.is_retryable() => tokio::time::sleep(CONNECT_AGAIN).await,
                done => return done,
            }
        }
    }
}

/// Names what the ledger needs and the provider declares absent.
fn missing(capabilities: &Capabilities) -> Option<&'static str> {
    if capabilities.durability == Durability::None {
        return Some("a stream that several processes share");
    }
    let needs = [
        (capabilities.durable, "durable"),
        (capabilities.shared_consumers, "shared_consumers"),
        (capabilities.dedup, "dedup"),
        (capabilities.history_query, "history_query"),
        (capabilities.consumer_info, "consumer_info"),
    ];
    needs.into_iter().find(|(support, _)| support.is_no()).map(|(_, name)| name)
}

async fn work(registry: &ProviderRegistry, args: Work) -> std::result::Result<(), Failure> {
    // Obeyed from the first moment, so that an early signal is no crash, and no worker outlives its driver.
    let (phase, mut phases) = watch::channel(Phase::Work);
    let (resting, rested) = watch::channel(false);
    let commands = tokio::spawn(obey(phase, rested, args.supervised, stop_signal()?));
    let journal = Arc::new(Journal::open(&args.journals, &format!("{}-{}", args.member, args.life))?);
    let fresh = args.stream.map(|name| (name, args.files));
    let place = Place { registry: registry.clone(), url: args.url, fresh };
    let (provider, letters) = tokio::select! {
        connected = place.connect_when_possible() => connected?,
        _ = phases.wait_for(|phase| *phase >= Phase::Stop) => return Ok(()),
    };
    let load = args.load.load(args.load.seed.unwrap_or(1));
    let worker = Worker::new(args.member, args.life, provider, letters, journal).load(load);
    let done = worker.run(phases, resting).await;
    commands.abort();
    Ok(done?)
}

/// Returns a future that ends at SIGTERM or SIGINT, also if it came before the first poll.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Reads the input on a thread that the end of the process does not wait for, unlike a task of the runtime.
fn input() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lines().map_while(io::Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Turns signals, and the lines of a driver, into phases.
#[allow(clippy::print_stdout, reason = "the answer to the driver")]
async fn obey(
    phase: watch::Sender<Phase>,
    mut rested: watch::Receiver<bool>,
    supervised: bool,
    stopped: impl Future<Output = ()>,
) {
    let commands = async {
        if !supervised {
            return std::future::pending().await;
        }
        let mut lines = input();
        while let Some(line) = lines.recv().await {
            if line == REST {
                phase.send_replace(Phase::Rest);
                if rested.wait_for(|rested| *rested).await.is_ok() {
                    println!("{RESTED}");
                }
            }
        }
        // The driver is gone.
    };
    tokio::select! {
        () = stopped => {}
        () = commands => {}
    }
    phase.send_replace(Phase::Stop);
    // The receiver would take a sender that is gone for a reason to stop at once.
    phase.closed().await;
}
