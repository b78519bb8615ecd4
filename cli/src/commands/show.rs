//! `show`: one event.

use a3s_event::{EventProvider, HistoryQuery, StoredEvent};

use crate::bus::App;
use crate::failure::{Failure, Outcome};
use crate::output::{EventRow, Format};

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event show 17
  a3s-event show evt-0197f6f2-7c61-7a42-9d5e-0c8c0f9d1b11";

/// How many are read at a time.
const PAGE: usize = 1_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Its sequence, or its id, which is searched for from the newest event on
    event: String,
    /// The number is an id, not a sequence
    #[arg(long)]
    id: bool,
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    let provider = app.connect_to_look().await?;
    let found = match args.event.parse() {
        Ok(sequence) if !args.id => at(&*provider, sequence).await?,
        _ => newest_where(&*provider, None, |stored| stored.event.id == args.event).await?,
    };
    let stored = found.ok_or_else(|| {
        Failure::Other(format!("there is no event '{}'; history lists what is there", args.event))
    })?;
    let row = EventRow {
        sequence: stored.sequence,
        stored_at: Some(stored.stored_at),
        num_delivered: None,
        event: &stored.event,
    };
    if app.out.format == Format::Table {
        // A person wants to see the payload in full.
        app.out.format = Format::Json;
    }
    app.out.one(&row)
}

pub(super) async fn at(provider: &dyn EventProvider, sequence: u64) -> Outcome<Option<StoredEvent>> {
    let query = HistoryQuery::new(1).since_sequence(sequence).before_sequence(sequence.saturating_add(1));
    Ok(provider.query(&query).await?.pop())
}

/// The newest event of a filter that is meant.
pub(super) async fn newest_where(
    provider: &dyn EventProvider,
    filter: Option<&str>,
    mut is_meant: impl FnMut(&StoredEvent) -> bool,
) -> Outcome<Option<StoredEvent>> {
    let mut query = HistoryQuery::new(PAGE);
    query.filter = filter.map(str::to_owned);
    loop {
        let mut page = provider.query(&query).await?;
        let oldest = page.last().map(|stored| stored.sequence);
        if let Some(place) = page.iter().position(&mut is_meant) {
            return Ok(Some(page.swap_remove(place)));
        }
        match oldest {
            Some(oldest) if page.len() == PAGE => query = query.before_sequence(oldest),
            _ => return Ok(None),
        }
    }
}
