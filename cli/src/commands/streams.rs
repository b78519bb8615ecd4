//! `streams`: lists, purges and deletes the streams of the server. An embedded bus is one stream.

use a3s_event::provider::StreamSummary;
use a3s_event::{EventError, EventProvider, HistoryQuery};
use clap_complete::ArgValueCandidates;
use serde::Serialize;

use crate::bus::App;
use crate::complete;
use crate::confirm::Confirmation;
use crate::failure::{Failure, Outcome};
use crate::filter::Filter;
use crate::limits::{Limits, own_stream};
use crate::output::Row;
use crate::stored::PAGE;
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event streams
  a3s-event --url nats://127.0.0.1:4222 streams --output json";

const EXAMPLE_PURGE: &str = "Example:
  a3s-event --url nats://127.0.0.1:4222 streams purge 'events.test.>' --yes";
const EXAMPLE_RM: &str = "Example:
  a3s-event --url test streams rm TEST --yes";

/// Maximum number of matching events that are counted before a purge.
const COUNTED: u64 = 10 * PAGE as u64;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Delete stored events of the stream, all or those of a filter
    #[command(after_help = EXAMPLE_PURGE)]
    Purge {
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        confirmation: Confirmation,
    },
    /// Delete the stream of the URL with its events and consumers
    #[command(after_help = EXAMPLE_RM)]
    Rm {
        /// Name of the stream, which must be the one of the URL
        #[arg(add = ArgValueCandidates::new(complete::streams))]
        name: Option<String>,
        #[command(flatten)]
        confirmation: Confirmation,
    },
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StreamRow {
    stream: String,
    subjects: Vec<String>,
    messages: u64,
    bytes: u64,
    consumers: usize,
    /// If true, the stream is the one of the URL.
    is_this: bool,
    /// Absent if the provider does not know them.
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
}

impl Row for StreamRow {
    const COLUMNS: &'static [&'static str] =
        &["", "stream", "subjects", "messages", "bytes", "consumers", "keeps", "when full", "fill"];

    fn cells(&self) -> Vec<String> {
        let limits = self.limits.as_ref();
        vec![
            if self.is_this { "*" } else { "" }.to_owned(),
            text::line(&self.stream),
            text::line(&self.subjects.join(" ")),
            text::number(self.messages),
            text::bytes(self.bytes),
            self.consumers.to_string(),
            limits.map_or_else(|| "unknown".to_owned(), Limits::kept_by),
            limits.and_then(Limits::at_limit).unwrap_or_default().to_owned(),
            limits.and_then(Limits::fill).unwrap_or_default(),
        ]
    }
}

#[derive(Debug, Serialize)]
struct Purged {
    stream: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<String>,
    purged: u64,
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    match args.command {
        None => list(app).await,
        Some(Command::Purge { filter, confirmation }) => purge(app, filter.get(), &confirmation).await,
        Some(Command::Rm { name, confirmation }) => remove(app, name.as_deref(), &confirmation).await,
    }
}

async fn list(app: &mut App) -> Outcome {
    let provider = app.connect_to_look().await?;
    let rows = match provider.streams().await {
        Ok(streams) => streams.into_iter().map(StreamRow::from).collect(),
        Err(EventError::Unsupported { .. }) => vec![StreamRow::from(only(&*provider).await?)],
        Err(error) => return Err(error.into()),
    };
    app.out.rows(&rows)
}

async fn purge(app: &mut App, filter: Option<&str>, confirmation: &Confirmation) -> Outcome {
    let provider = app.connect_to_look().await?;
    let stream = own(&*provider).await?;
    let events = match filter {
        Some(filter) => format!("{} of '{filter}'", matching(&*provider, filter).await?),
        None => format!("all {}, {},", text::count(stream.events, "event"), text::bytes(stream.bytes)),
    };
    confirmation.ask(&format!("this deletes {events} from stream '{}'", stream.name))?;
    let purged = provider.purge(filter).await.map_err(unsupported)?;
    app.out.one(&Purged { stream: stream.name, filter: filter.map(str::to_owned), purged })
}

async fn remove(app: &mut App, name: Option<&str>, confirmation: &Confirmation) -> Outcome {
    let provider = app.connect_to_look().await?;
    let stream = own(&*provider).await?;
    if let Some(name) = name.filter(|name| *name != stream.name) {
        return Err(Failure::Usage(format!(
            "the stream of the URL is '{}', not '{name}': name the stream in the URL, such as nats://HOST/{name}",
            stream.name
        )));
    }
    confirmation.ask(&format!(
        "this deletes stream '{}' with {}, {}, and {}",
        stream.name,
        text::count(stream.events, "event"),
        text::bytes(stream.bytes),
        text::count(stream.consumers as u64, "consumer")
    ))?;
    provider.delete_stream().await.map_err(unsupported)?;
    let deleted = format!("deleted stream '{}'", stream.name);
    app.out.one(&StreamRow::from(stream))?;
    app.out.say(&deleted)
}

/// Formats the number of matching events, without reading a large stream to its end.
async fn matching(provider: &dyn EventProvider, filter: &str) -> Outcome<String> {
    let (mut query, mut found) = (HistoryQuery::new(PAGE).filter(filter), 0);
    loop {
        let page = provider.query_page(&query).await?;
        found += (page.events.len() + page.unreadable.len()) as u64;
        match page.next {
            Some(_) if found >= COUNTED => return Ok(format!("more than {}", text::count(COUNTED, "event"))),
            Some(before) => query = query.before_sequence(before),
            None => return Ok(text::count(found, "event")),
        }
    }
}

/// Adds the alternative to the error of a provider that cannot delete.
fn unsupported(error: EventError) -> Failure {
    let is_unsupported = matches!(error, EventError::Unsupported { .. });
    match Failure::from(error) {
        Failure::Input(text) if is_unsupported => Failure::Input(format!(
            "{text}; without a filter, `streams purge` deletes all events. Delete the file of an embedded bus while no program uses it"
        )),
        other => other,
    }
}

async fn own(provider: &dyn EventProvider) -> Outcome<StreamSummary> {
    match own_stream(provider).await? {
        Some(stream) => Ok(stream),
        None => only(provider).await,
    }
}

impl From<StreamSummary> for StreamRow {
    fn from(summary: StreamSummary) -> Self {
        Self {
            limits: Limits::of(&summary),
            stream: summary.name,
            subjects: summary.subjects,
            messages: summary.events,
            bytes: summary.bytes,
            consumers: summary.consumers,
            is_this: summary.is_own,
        }
    }
}

/// Returns the stream of a provider that lists none.
async fn only(provider: &dyn EventProvider) -> Outcome<StreamSummary> {
    let info = provider.info().await?;
    let mut stream = StreamSummary::new(info.provider, vec![format!("{}.>", provider.subject_prefix())]);
    (stream.events, stream.bytes, stream.consumers) = (info.messages, info.bytes, info.consumers);
    stream.is_own = true;
    Ok(stream)
}
