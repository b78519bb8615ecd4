//! `info`: the counts of the stream.

use a3s_event::HistoryQuery;

use crate::bus::{App, redacted};
use crate::failure::Outcome;
use crate::output::InfoRow;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event info
  a3s-event --url nats://127.0.0.1:4222 info --output json";

pub(crate) async fn run(app: &mut App) -> Outcome {
    let (url, _) = app.url()?;
    let provider = app.connect_to_look().await?;
    let info = provider.info().await?;
    let newest = provider.query(&HistoryQuery::new(1)).await?.first().map(|stored| stored.sequence);
    let row = InfoRow::new(info, redacted(&url), provider.subject_prefix(), newest);
    app.out.one(&row)
}
