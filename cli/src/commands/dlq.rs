//! `dlq`: lists, shows, replays and discards dead letters.

use a3s_event::dlq::{
    DeadLetterFilter, DeadLetterStatus, FailureClass, Replay, ReplayError, ReplayReport, ReplayedEvent,
    StoredDeadLetter,
};
use a3s_event::{Event, ProviderDlqHandler};
use clap::{Subcommand, ValueEnum};
use clap_complete::ArgValueCandidates;
use serde::Serialize;

use super::show::print_whole;
use super::subscribe::eprint_note;
use crate::bus::{App, redacted};
use crate::complete;
use crate::failure::{Failure, Outcome, chain};
use crate::moment;
use crate::output::{Format, Row};
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event dlq list --filter 'events.orders.>'
  a3s-event dlq --dlq-url sqlite:///var/lib/letters.db list
  a3s-event dlq show 17
  a3s-event dlq replay --filter 'events.orders.>' --per-second 50 --dry-run
  a3s-event dlq discard 17";

const EXAMPLE_LIST: &str = "Example:\n  a3s-event dlq list --class exhausted --since 1d";
const EXAMPLE_SHOW: &str = "Example:\n  a3s-event dlq show 17";
const EXAMPLE_REPLAY: &str =
    "Example:\n  a3s-event dlq replay 17\n  a3s-event dlq replay --all --per-second 50";
const EXAMPLE_DISCARD: &str =
    "Example:\n  a3s-event dlq discard 17 18\n  a3s-event dlq discard --class fatal --until 7d --dry-run";

/// Maximum length of a reason in a table.
const REASON: usize = 60;
/// Maximum length of a consumer name in a table.
const CONSUMER: usize = 24;
/// Maximum length of a list of letters in a table.
const LETTERS: usize = 40;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List dead letters, newest first
    #[command(after_help = EXAMPLE_LIST)]
    List {
        #[command(flatten)]
        which: Which,
        /// Maximum number of letters
        #[arg(long, short = 'n', default_value_t = 50)]
        limit: usize,
    },
    /// Show one dead letter in full
    #[command(after_help = EXAMPLE_SHOW)]
    Show {
        /// Number of the letter, as `dlq list` shows it
        id: u64,
    },
    /// Publish the events of dead letters again, each once, with their subject and id
    #[command(after_help = EXAMPLE_REPLAY)]
    Replay {
        #[command(flatten)]
        chosen: Chosen,
        /// Only print what would be done
        #[arg(long)]
        dry_run: bool,
        /// Maximum number of events per second
        #[arg(long, value_name = "EVENTS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        per_second: Option<u32>,
        /// Maximum number of replays of an event, through all of its letters
        #[arg(long, value_name = "TIMES", default_value_t = 3)]
        max_replays: u64,
        /// Maximum number of letters to replay, oldest first
        #[arg(long, short = 'n')]
        limit: Option<usize>,
    },
    /// Mark dead letters as discarded; they stay stored and are no longer open
    #[command(after_help = EXAMPLE_DISCARD)]
    Discard {
        #[command(flatten)]
        chosen: Chosen,
        /// Only print what would be done
        #[arg(long)]
        dry_run: bool,
    },
}

/// Letters by number or by filter.
#[derive(Debug, clap::Args)]
struct Chosen {
    /// Numbers of the letters, in any status
    #[arg(conflicts_with_all = ["all", "Which"])]
    ids: Vec<u64>,
    /// All open letters
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    which: Which,
}

/// Filters of letters.
#[derive(Debug, Default, PartialEq, Eq, clap::Args)]
#[group(multiple = true)]
struct Which {
    /// Filter of the original subject
    #[arg(long, alias = "subject")]
    filter: Option<String>,
    /// Class of the failure that dead-lettered the events
    #[arg(long, value_enum)]
    class: Option<Class>,
    /// Name of the consumer that dead-lettered them, as the program calls it or as the bus stores it
    #[arg(long, add = ArgValueCandidates::new(complete::consumers))]
    consumer: Option<String>,
    /// Id of the event
    #[arg(long)]
    event_id: Option<String>,
    /// Only letters of this time or later
    #[arg(long, value_name = "TIME", value_parser = moment::parse)]
    since: Option<u64>,
    /// Only letters before this time
    #[arg(long, alias = "before", value_name = "TIME", value_parser = moment::parse)]
    until: Option<u64>,
    /// Status of the letters [default: open]
    #[arg(long, value_enum)]
    status: Option<Status>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Class {
    Exhausted,
    Fatal,
    Mismatch,
    Undecodable,
    Undecryptable,
    #[value(alias = "schema_invalid")]
    SchemaInvalid,
    Unclassified,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Status {
    Open,
    Replayed,
    Discarded,
    All,
}

impl Chosen {
    /// Requires an explicit choice: all letters are chosen only with `--all`.
    fn check(&self) -> Outcome {
        if self.ids.is_empty() && !self.all && self.which == Which::default() {
            return Err(Failure::Usage(
                "no letters are chosen: give their numbers, as `dlq list` shows them, filters (--filter, --class, \
                 --consumer, --event-id, --since, --until, --status), or --all"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

impl Which {
    fn filter(self) -> DeadLetterFilter {
        let mut filter = DeadLetterFilter::default();
        filter.subject = self.filter;
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
        filter.before = self.until;
        filter.status(match self.status.unwrap_or(Status::Open) {
            Status::Open => Some(DeadLetterStatus::Open),
            Status::Replayed => Some(DeadLetterStatus::Replayed),
            Status::Discarded => Some(DeadLetterStatus::Discarded),
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
    /// Number of replays of the event so far, which `--max-replays` limits.
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
    fn new(stored: &'a StoredDeadLetter) -> Self {
        let letter = &stored.letter;
        Self {
            id: stored.id,
            status: stored.status.to_string(),
            class: letter.class.to_string(),
            replays: stored.event_replays(),
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
    const COLUMNS: &'static [&'static str] = &["id", "given up", "subject", "consumer", "status", "reason"];
    const CUT: Option<usize> = Some(5);

    fn cells(&self) -> Vec<String> {
        let status = match self.replays {
            0 => self.status.clone(),
            replays => format!("{}, {}", self.status, text::count(replays, "replay")),
        };
        vec![
            self.id.to_string(),
            moment::show_minute(self.dead_lettered_at),
            text::line(&self.event.subject),
            text::shorten(&text::line(self.subscriber.or(self.consumer).unwrap_or_default()), CONSUMER),
            status,
            text::shorten(&text::line(&format!("{}: {}", self.class, self.reason)), REASON),
        ]
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Replayed {
    dry_run: bool,
    #[serde(flatten)]
    report: ReplayReport,
}

/// The result of a replay for an event, for people.
#[derive(Debug, Serialize)]
struct EventRow {
    event: String,
    subject: String,
    letters: Vec<u64>,
    what: String,
}

impl EventRow {
    fn replayed(event: &ReplayedEvent, dry_run: bool) -> Self {
        let marked = text::count(event.letters.len() as u64, "letter");
        let what = match (event.published, dry_run) {
            (true, false) => format!("published once, {marked} marked"),
            (true, true) => format!("would be published once, {marked} marked"),
            (false, false) => format!("{marked} marked: it was replayed before"),
            (false, true) => format!("{marked} would be marked: it was replayed before"),
        };
        let (id, subject, mut letters) = (event.id.clone(), event.subject.clone(), event.letters.clone());
        letters.sort_unstable();
        Self { event: id, subject, letters, what }
    }

    fn refused(stored: &StoredDeadLetter, why: &str, dry_run: bool) -> Self {
        let event = &stored.letter.event.event;
        let (id, subject) = (event.id.clone(), event.subject.clone());
        let would_be = if dry_run { "would be " } else { "" };
        Self { event: id, subject, letters: vec![stored.id], what: format!("{would_be}refused: {why}") }
    }

    /// Merges a row with the same result for the same event. Returns `false` for any other row.
    fn takes(&mut self, other: &Self) -> bool {
        let is_same = (&self.event, &self.subject, &self.what) == (&other.event, &other.subject, &other.what);
        self.letters.extend(other.letters.iter().filter(|_| is_same));
        is_same
    }
}

impl Row for EventRow {
    const COLUMNS: &'static [&'static str] = &["event", "subject", "letters", "result"];

    fn cells(&self) -> Vec<String> {
        let letters: Vec<_> = self.letters.iter().map(u64::to_string).collect();
        vec![
            text::line(&self.event),
            text::line(&self.subject),
            text::shorten(&letters.join(" "), LETTERS),
            text::line(&self.what),
        ]
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Discarded {
    dry_run: bool,
    discarded: Vec<u64>,
    already_discarded: Vec<u64>,
}

/// The planned action for a letter, for people.
#[derive(Debug, Serialize)]
struct Planned {
    id: u64,
    subject: String,
    reason: String,
    plan: String,
}

impl Planned {
    fn new(stored: &StoredDeadLetter, plan: String) -> Self {
        let row = LetterRow::new(stored);
        Self { id: row.id, subject: row.event.subject.clone(), reason: row.reason.to_owned(), plan }
    }
}

impl Row for Planned {
    const COLUMNS: &'static [&'static str] = &["id", "subject", "reason", "would be"];
    const CUT: Option<usize> = Some(2);

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            text::line(&self.subject),
            text::shorten(&text::line(&self.reason), REASON),
            text::line(&self.plan),
        ]
    }
}

pub(crate) async fn run(app: &mut App, Args { command }: Args) -> Outcome {
    let queue = app.dlq_url().map(str::to_owned);
    match command {
        Command::List { which, limit } => list(app, queue, which, limit).await,
        Command::Show { id } => {
            let letter = open(app, queue).await?.show(id).await?;
            print_whole(app, &LetterRow::new(&letter))
        }
        Command::Replay { chosen, dry_run, per_second, max_replays, limit } => {
            chosen.check()?;
            let letters = open(app, queue).await?;
            let bus = if dry_run { app.connect_to_look().await? } else { app.connect().await? };
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
            match app.out.format {
                Format::Table => show_replayed(app, &letters, &report, dry_run).await,
                _ => app.out.one(&Replayed { dry_run, report }),
            }
        }
        Command::Discard { chosen, dry_run } => {
            chosen.check()?;
            let letters = open(app, queue).await?;
            discard(app, &letters, chosen, dry_run).await
        }
    }
}

async fn list(app: &mut App, queue: Option<String>, which: Which, limit: usize) -> Outcome {
    let is_all = which == Which::default();
    let is_elsewhere = queue.is_some();
    let url = match &queue {
        Some(bus) => app.config.named(bus)?,
        None => app.url()?.0,
    };
    let letters = open(app, queue).await?.find(&which.filter(), limit).await?;
    let rows: Vec<_> = letters.iter().map(LetterRow::new).collect();
    app.out.rows(&rows)?;
    if rows.is_empty() && limit > 0 && app.out.format == Format::Table {
        let which = if is_all { "open" } else { "such" };
        let elsewhere = if is_elsewhere { "" } else { "; --dlq-url names another queue" };
        eprint_note(&format!("no {which} dead letters on {}{elsewhere}", redacted(&url)));
    }
    Ok(())
}

/// Prints the result of a replay for each event, or the plan of a dry run.
async fn show_replayed(
    app: &mut App,
    letters: &ProviderDlqHandler,
    report: &ReplayReport,
    dry_run: bool,
) -> Outcome {
    let mut rows: Vec<_> = report.events.iter().map(|event| EventRow::replayed(event, dry_run)).collect();
    for (id, why) in &report.refused {
        let row = EventRow::refused(&letters.show(*id).await?, why, dry_run);
        if !rows.last_mut().is_some_and(|last| last.takes(&row)) {
            rows.push(row);
        }
    }
    if !rows.is_empty() {
        app.out.rows(&rows)?;
    }
    let published = report.events.iter().filter(|event| event.published).count() as u64;
    let (events, marked) = (text::count(published, "event"), report.replayed.len() as u64);
    let marked = text::count(marked, "letter");
    let refused = text::count(report.refused.len() as u64, "letter");
    let would_be = if dry_run { "would be " } else { "" };
    app.out.say(&format!(
        "{events} {would_be}published, {marked} {would_be}marked as replayed, {refused} {would_be}refused"
    ))
}

async fn discard(app: &mut App, letters: &ProviderDlqHandler, chosen: Chosen, dry_run: bool) -> Outcome {
    let mut meant = Vec::new();
    match chosen.ids.as_slice() {
        [] => meant = letters.find(&chosen.which.filter(), usize::MAX).await?,
        ids => {
            // Checks all letters before it discards any: a wrong number changes nothing.
            for id in ids {
                meant.push(letters.show(*id).await?);
            }
        }
    }
    let is_done = |letter: &StoredDeadLetter| letter.status == DeadLetterStatus::Discarded;
    if dry_run && app.out.format == Format::Table {
        let plan = |letter| if is_done(letter) { "nothing: it is already discarded" } else { "discarded" };
        let rows: Vec<_> = meant.iter().map(|letter| Planned::new(letter, plan(letter).to_owned())).collect();
        return app.out.rows(&rows);
    }
    let (already, open): (Vec<_>, Vec<_>) = meant.iter().partition(|letter| is_done(letter));
    for letter in open.iter().filter(|_| !dry_run) {
        letters.discard(letter.id).await?;
    }
    let ids = |letters: Vec<&StoredDeadLetter>| letters.iter().map(|letter| letter.id).collect();
    app.out.one(&Discarded { dry_run, discarded: ids(open), already_discarded: ids(already) })
}

/// Converts the error that ended a replay, and adds the next step.
fn unreplayed(error: ReplayError) -> Failure {
    let reason = chain(&error);
    if let Some(letter) = error.letter.filter(|_| error.source.may_be_stored()) {
        let ids = vec![letter.letter.event.event.id.clone()];
        return Failure::Unknown { ids, reason, retry: "The same replay stores them once" };
    }
    match Failure::from(error.source) {
        Failure::Unreachable(_) => Failure::Unreachable(reason),
        other => other,
    }
}

/// Opens the queue of this name or URL, else the bus itself. No command creates it: the program that dead-letters does.
async fn open(app: &mut App, queue: Option<String>) -> Outcome<ProviderDlqHandler> {
    let provider = match queue {
        Some(bus) => app.connect_to_look_at(&bus).await?,
        None => app.connect_to_look().await?,
    };
    Ok(ProviderDlqHandler::new(provider)?)
}
