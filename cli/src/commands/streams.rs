//! `streams`: what the server keeps. An embedded bus is one stream.

use std::time::Duration;

use a3s_event::{EventProvider, NatsProvider};
use futures_util::TryStreamExt as _;
use serde::Serialize;

use crate::bus::App;
use crate::failure::{Failure, Outcome};
use crate::output::Row;
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event streams
  a3s-event --url nats://127.0.0.1:4222 streams --output json";

/// Longest wait for the list of a server.
const ANSWER: Duration = Duration::from_secs(10);

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
    let rows = match provider.as_any().and_then(|any| any.downcast_ref::<NatsProvider>()) {
        Some(nats) => of_server(nats).await?,
        None => vec![of_provider(&*provider).await?],
    };
    app.out.rows(&rows)
}

async fn of_server(nats: &NatsProvider) -> Outcome<Vec<StreamRow>> {
    let this = &nats.client().config().stream_name;
    let listed = nats.client().jetstream_context().streams().map_ok(|info| StreamRow {
        is_this: info.config.name == *this,
        stream: info.config.name,
        subjects: info.config.subjects.iter().map(ToString::to_string).collect(),
        messages: info.state.messages,
        bytes: info.state.bytes,
        consumers: info.state.consumer_count,
    });
    let mut rows: Vec<_> = match tokio::time::timeout(ANSWER, listed.try_collect()).await {
        Ok(listed) => listed.map_err(|error| Failure::Other(format!("list of streams: {error}")))?,
        Err(_) => return Err(Failure::Unreachable(format!("no list of streams within {ANSWER:?}"))),
    };
    rows.sort_by(|a: &StreamRow, b| a.stream.cmp(&b.stream));
    Ok(rows)
}

async fn of_provider(provider: &dyn EventProvider) -> Outcome<StreamRow> {
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
