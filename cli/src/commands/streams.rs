//! `streams`: what the server keeps. An embedded bus is one stream.

use a3s_event::provider::StreamSummary;
use a3s_event::{EventError, EventProvider};
use serde::Serialize;

use crate::bus::App;
use crate::failure::Outcome;
use crate::output::Row;
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event streams
  a3s-event --url nats://127.0.0.1:4222 streams --output json";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StreamRow {
    stream: String,
    subjects: Vec<String>,
    messages: u64,
    bytes: u64,
    consumers: usize,
    /// Whether it is the one of the URL.
    is_this: bool,
}

impl Row for StreamRow {
    const COLUMNS: &'static [&'static str] = &["", "stream", "subjects", "messages", "bytes", "consumers"];

    fn cells(&self) -> Vec<String> {
        vec![
            if self.is_this { "*" } else { "" }.to_owned(),
            text::line(&self.stream),
            text::line(&self.subjects.join(" ")),
            self.messages.to_string(),
            self.bytes.to_string(),
            self.consumers.to_string(),
        ]
    }
}

pub(crate) async fn run(app: &mut App) -> Outcome {
    let provider = app.connect().await?;
    let rows = match provider.streams().await {
        Ok(streams) => streams.into_iter().map(StreamRow::from).collect(),
        Err(EventError::Unsupported { .. }) => vec![only(&*provider).await?],
        Err(error) => return Err(error.into()),
    };
    app.out.rows(&rows)
}

impl From<StreamSummary> for StreamRow {
    fn from(summary: StreamSummary) -> Self {
        Self {
            stream: summary.name,
            subjects: summary.subjects,
            messages: summary.events,
            bytes: summary.bytes,
            consumers: summary.consumers,
            is_this: summary.is_own,
        }
    }
}

/// The stream of a provider that lists none.
async fn only(provider: &dyn EventProvider) -> Outcome<StreamRow> {
    let info = provider.info().await?;
    Ok(StreamRow {
        stream: info.provider,
        subjects: vec![format!("{}.>", provider.subject_prefix())],
        messages: info.messages,
        bytes: info.bytes,
        consumers: info.consumers,
        is_this: true,
    })
}
