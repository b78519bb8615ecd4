//! `info`: shows the counts and limits of the stream.

use a3s_event::HistoryQuery;
use serde::Serialize;

use super::subscribe::eprint_warning;
use crate::bus::{App, redacted};
use crate::failure::{Failure, Outcome};
use crate::limits::{Limits, own_stream};
use crate::output::{Format, InfoRow};
use crate::stored::{Stored, Unreadable, newest};

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event info
  a3s-event --url nats://127.0.0.1:4222 info --output json";

/// The counts with the limits in words.
#[derive(Debug, Serialize)]
struct InfoForPeople {
    #[serde(flatten)]
    row: InfoRow,
    limits: String,
}

pub(crate) async fn run(app: &mut App) -> Outcome {
    let (url, _) = app.url()?;
    let provider = app.connect_to_look().await?;
    let info = provider.info().await?;
    let (records, _) = newest(&*provider, HistoryQuery::new(1)).await?;
    let newest_sequence = records.first().map(Stored::sequence);
    let limits = own_stream(&*provider).await?.as_ref().and_then(Limits::of);
    let row = InfoRow::new(info, redacted(&url), provider.subject_prefix(), newest_sequence, limits);
    match row.limits.as_ref().map(Limits::sentence) {
        Some(limits) if app.out.format == Format::Table => {
            app.out.one(&InfoForPeople { limits, row: InfoRow { limits: None, ..row } })?;
        }
        _ => app.out.one(&row)?,
    }
    if let Some(told) = Unreadable::of(&records).told() {
        eprint_warning(&Failure::Found(format!("of the newest records, {told}; history --all shows all")));
    }
    Ok(())
}
