//! `dlq`: dead letters.

use a3s_event::dlq::{FailureClass, LetterFilter, LetterStatus, Replay, ReplayError, StoredLetter};
use a3s_event::{Event, ProviderDlq};
use clap::{Subcommand, ValueEnum};
use serde::Serialize;

use crate::bus::App;
use crate::failure::{Failure, Outcome, chain};
use crate::moment;
use crate::output::{Format, Row};
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event dlq list --subject 'events.orders.>'
  a3s-event dlq show 17
  a3s-event dlq replay --subject 'events.orders.>' --per-second 50 --dry-run
  a3s-event dlq discard 17";

const EXAMPLE_LIST: &str = "Example:\n  a3s-event dlq list --class exhausted --since 1d";
const EXAMPLE_SHOW: &str = "Example:\n  a3s-event dlq show 17";
const EXAMPLE_REPLAY: &str =
    "Example:\n  a3s-event dlq replay 17\n  a3s-event dlq replay --all --per-second 50";
const EXAMPLE_DISCARD: &str =
    "Example:\n  a3s-event dlq discard 17 18\n  a3s-event dlq discard --class fatal --before 7d --dry-run";

/// Longest reason in a table.
const REASON: usize = 60;
/// Longest name of a consumer in a table.
const CONSUMER: usize = 24;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List dead letters, newest first
    #[command(after_help = EXAMPLE_LIST)]
    List {
        #[command(flatten)]
        which: Which,
        /// Most letters
        #[arg(long, default_value_t = 50)]
        limit: usize,
        #[command(flatten)]
        queue: Queue,
    },
    /// Show one dead letter in full
    #[command(after_help = EXAMPLE_SHOW)]
    Show {
        /// Its number, as `dlq list` shows it
        id: u64,
        #[command(flatten)]
        queue: Queue,
    },
    /// Publish dead letters again, under their subject and with their id
    #[command(after_help = EXAMPLE_REPLAY)]
    Replay {
        #[command(flatten)]
        chosen: Chosen,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
        /// Most events per second
        #[arg(long, value_name = "EVENTS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        per_second: Option<u32>,
        /// Refuse events that were replayed this often before
        #[arg(long, value_name = "TIMES", default_value_t = 3)]
        max_replays: u64,
        /// Replay at most this many, the oldest ones
        #[arg(long)]
        limit: Option<usize>,
        #[command(flatten)]
        queue: Queue,
    },
    /// Decide that nothing is to be done about dead letters; they are kept and no longer open
    #[command(after_help = EXAMPLE_DISCARD)]
    Discard {
        #[command(flatten)]
        chosen: Chosen,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        queue: Queue,
    },
}

/// Where the letters are.
#[derive(Debug, clap::Args)]
pub(crate) struct Queue {
    /// The bus that keeps the dead letters [default: the bus itself]
    #[arg(long, value_name = "URL", env = "A3S_EVENT_DLQ_URL", hide_env_values = true)]
    dlq_url: Option<String>,
}

/// Letters by number, or those that are meant.
#[derive(Debug, clap::Args)]
pub(crate) struct Chosen {
    /// Numbers of the letters
    #[arg(conflicts_with_all = ["all", "Which"], required_unless_present_any = ["all", "Which"])]
    ids: Vec<u64>,
    /// All open letters
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    which: Which,
}

/// Which letters are meant.
#[derive(Debug, clap::Args)]
#[group(multiple = true)]
pub(crate) struct Which {
    /// Filter of the original subject
    #[arg(long)]
    subject: Option<String>,
    /// Why they were given up
    #[arg(long, value_enum)]
    class: Option<Class>,
    /// Name of the consumer that gave them up, as the program calls it or as `consumers` lists it
    #[arg(long)]
    consumer: Option<String>,
    /// Id of the event
    #[arg(long)]
    event_id: Option<String>,
    /// Only what was given up at this time or later
    #[arg(long, value_name = "TIME", value_parser = moment::parse)]
    since: Option<u64>,
    /// Only what was given up before this time
    #[arg(long, value_name = "TIME", value_parser = moment::parse)]
    before: Option<u64>,
    /// What was done about them [default: open]
    #[arg(long, value_enum)]
    status: Option<Status>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Class {
    Exhausted,
    Fatal,
    Mismatch,
    Undecodable,
    Undecryptable,
    SchemaInvalid,
    Unclassified,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Status {
    Open,
    Replayed,
    Discarded,
    All,
}

impl Which {
    fn filter(self) -> LetterFilter {
        let mut filter = LetterFilter::default();
        filter.subject = self.subject;
        filter.class = self.class.map(|class| match class {
            Class::Exhausted => FailureClass::Exhausted,
            Class::Fatal => FailureClass::Fatal,
            Class::Mismatch => FailureClass::Mismatch,
            Class::Undecodable => FailureClass::Undecodable,
            Class::Undecryptable => FailureClass::Undecryptable,
            Class::SchemaInvalid => FailureClass::SchemaInvalid,
            Class::Unclassified => FailureClass::Unclassified,
        });
        filter.consumer = self.consumer;
        filter.event_id = self.event_id;
        filter.since = self.since;
        filter.before = self.before;
        filter.status(match self.status.unwrap_or(Status::Open) {
            Status::Open => Some(LetterStatus::Open),
            Status::Replayed => Some(LetterStatus::Replayed),
            Status::Discarded => Some(LetterStatus::Discarded),
            Status::All => None,
        })
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LetterRow<'a> {
    id: u64,
    status: String,
    class: String,
    replays: u64,
    consumer: Option<&'a str>,
    subscriber: Option<&'a str>,
    attempts: Option<u64>,
    dead_lettered_at: u64,
    reason: &'a str,
    sequence: u64,
    omitted: bool,
    event: &'a Event,
}

impl<'a> LetterRow<'a> {
    fn new(stored: &'a StoredLetter) -> Self {
        let letter = &stored.letter;
        Self {
            id: stored.id,
            status: stored.status.to_string(),
            class: letter.class.to_string(),
            replays: stored.replays,
            consumer: letter.consumer.as_deref(),
            subscriber: letter.subscriber.as_deref(),
            attempts: letter.attempts,
            dead_lettered_at: letter.dead_lettered_at,
            reason: &letter.reason,
            sequence: letter.event.sequence,
            omitted: stored.omitted,
            event: &letter.event.event,
        }
    }
}

impl Row for LetterRow<'_> {
    const COLUMNS: &'static [&'static str] =
        &["id", "given up", "subject", "class", "status", "replays", "consumer", "reason"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            moment::show(self.dead_lettered_at),
            text::line(&self.event.subject),
            self.class.clone(),
            self.status.clone(),
            self.replays.to_string(),
            text::shorten(&text::line(self.subscriber.or(self.consumer).unwrap_or_default()), CONSUMER),
            text::shorten(&text::line(self.reason), REASON),
        ]
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Replayed {
    dry_run: bool,
    replayed: Vec<u64>,
    refused: Vec<(u64, String)>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Discarded {
    dry_run: bool,
    discarded: Vec<u64>,
}

pub(crate) async fn run(app: &mut App, command: Command) -> Outcome {
    match command {
        Command::List { which, limit, queue } => {
            let letters = open(app, &queue).await?.find(&which.filter(), limit).await?;
            let rows: Vec<_> = letters.iter().map(LetterRow::new).collect();
            app.out.rows(&rows)
        }
        Command::Show { id, queue } => {
            let letter = open(app, &queue).await?.show(id).await?;
            if app.out.format == Format::Table {
                app.out.format = Format::Json;
            }
            app.out.one(&LetterRow::new(&letter))
        }
        Command::Replay { chosen, dry_run, per_second, max_replays, limit, queue } => {
            let letters = open(app, &queue).await?;
            let bus = app.connect().await?;
            let replay = match chosen.ids.as_slice() {
                [] => Replay::matching(chosen.which.filter()),
                _ => Replay::numbers(chosen.ids),
            };
            let mut replay = replay.max_replays(max_replays).limit(limit.unwrap_or(usize::MAX));
            replay = per_second.into_iter().fold(replay, Replay::per_second);
            if dry_run {
                replay = replay.dry_run();
            }
            let report = letters.replay(&*bus, &replay).await.map_err(unreplayed)?;
            app.out.one(&Replayed { dry_run, replayed: report.replayed, refused: report.refused })
        }
        Command::Discard { chosen, dry_run, queue } => {
            let letters = open(app, &queue).await?;
            let discarded = match chosen.ids.as_slice() {
                [] => letters
                    .find(&chosen.which.filter(), usize::MAX)
                    .await?
                    .iter()
                    .map(|letter| letter.id)
                    .collect(),
                _ => chosen.ids,
            };
            for id in discarded.iter().filter(|_| !dry_run) {
                letters.discard(*id).await?;
            }
            app.out.one(&Discarded { dry_run, discarded })
        }
    }
}

/// Why a replay has ended, and what to do now.
fn unreplayed(error: ReplayError) -> Failure {
    let reason = chain(&error);
    if let Some(letter) = error.letter.filter(|_| error.source.may_be_stored()) {
        let ids = vec![letter.letter.event.event.id.clone()];
        return Failure::Unknown { ids, reason, retry: "The same replay again stores them once" };
    }
    match Failure::from(error.source) {
        Failure::Unreachable(_) => Failure::Unreachable(reason),
        other => other,
    }
}

async fn open(app: &mut App, queue: &Queue) -> Outcome<ProviderDlq> {
    let provider = match (&queue.dlq_url, app.config.dlq_url.clone()) {
        (Some(bus), _) => app.connect_to(bus, Some("A3S_EVENT_DLQ_URL")).await?,
        (None, Some(bus)) => app.connect_to_configured(&bus).await?,
        (None, None) => app.connect().await?,
    };
    Ok(ProviderDlq::new(provider)?)
}
