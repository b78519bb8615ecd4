//! `info`: the counts of the stream.

use a3s_event::HistoryQuery;

use super::subscribe::eprint_warning;
use crate::bus::{App, redacted};
use crate::failure::{Failure, Outcome};
use crate::output::InfoRow;
use crate::stored::{Stored, Unreadable, newest};

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event info
  a3s-event --url nats://127.0.0.1:4222 info --output json";

pub(crate) async fn run(app: &mut App) -> Outcome {
    let (url, _) = app.url()?;
    let provider = app.connect_to_look().await?;
    let info = provider.info().await?;
    let (records, _) = newest(&*provider, HistoryQuery::new(1)).await?;
    let newest_sequence = records.first().map(Stored::sequence);
    let row = InfoRow::new(info, redacted(&url), provider.subject_prefix(), newest_sequence);
    app.out.one(&row)?;
    if let Some(told) = Unreadable::of(&records).told() {
        eprint_warning(&Failure::Found(format!("of the newest records, {told}; history --all shows all")));
    }
    Ok(())
}
