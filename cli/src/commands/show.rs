//! `show`: shows one event.

use a3s_event::{EventProvider, HistoryQuery, StoredEvent};
use serde::Serialize;

use crate::bus::App;
use crate::failure::{Failure, Outcome};
use crate::moment;
use crate::output::Format;
use crate::stored::{PAGE, Stored, Unreadable, newest_first};

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event show 17
  a3s-event show evt-0197f6f2-7c61-7a42-9d5e-0c8c0f9d1b11";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Sequence or id of the event. An id is searched for from the newest event on
    event: String,
    /// Read a number as an id, not as a sequence
    #[arg(long)]
    id: bool,
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    let provider = app.connect_to_look().await?;
    let (found, passed) = match args.event.parse() {
        Ok(sequence) if !args.id => (at(&*provider, sequence).await?, Unreadable::default()),
        _ => {
            let search = newest_where(&*provider, None, |stored| stored.event.id == args.event).await?;
            (search.found.map(Stored::Event), search.passed)
        }
    };
    let mut stored = found.ok_or_else(|| {
        let passed = passed.told().map_or_else(String::new, |told| format!("; {told}"));
        Failure::Other(format!("there is no event '{}'; history lists the stored events{passed}", args.event))
    })?;
    app.keys.decrypt_all(std::slice::from_mut(&mut stored));
    print_whole(app, &stored.row())?;
    Unreadable::of(&[stored]).ended()
}

/// Prints a record with its whole payload. People get JSON with readable times; times in the payload stay as they are.
pub(super) fn print_whole(app: &mut App, record: &impl Serialize) -> Outcome {
    if app.out.format != Format::Table {
        return app.out.one(record);
    }
    let mut json = serde_json::to_value(record).map_err(|error| Failure::Other(error.to_string()))?;
    for time in ["/storedAt", "/deadLetteredAt", "/event/timestamp"] {
        if let Some(time) = json.pointer_mut(time)
            && let Some(unix_ms) = time.as_u64()
        {
            *time = moment::show(unix_ms).into();
        }
    }
    app.out.format = Format::Json;
    app.out.one(&json)
}

async fn at(provider: &dyn EventProvider, sequence: u64) -> Outcome<Option<Stored>> {
    let query = HistoryQuery::new(1).since_sequence(sequence).before_sequence(sequence.saturating_add(1));
    Ok(newest_first(provider.query_page(&query).await?).pop())
}

/// The result of a search.
pub(super) struct Search {
    pub(super) found: Option<StoredEvent>,
    /// The unreadable records before the found one.
    pub(super) passed: Unreadable,
}

/// Searches for the newest event of a filter that meets a condition.
pub(super) async fn newest_where(
    provider: &dyn EventProvider,
    filter: Option<&str>,
    mut is_meant: impl FnMut(&StoredEvent) -> bool,
) -> Outcome<Search> {
    let mut query = HistoryQuery::new(PAGE);
    query.filter = filter.map(str::to_owned);
    let mut passed = Unreadable::default();
    loop {
        let page = provider.query_page(&query).await?;
        let next = page.next;
        for stored in newest_first(page) {
            passed.meet(&stored);
            if let Stored::Event(stored) = stored
                && is_meant(&stored)
            {
                return Ok(Search { found: Some(stored), passed });
            }
        }
        match next {
            Some(before) => query = query.before_sequence(before),
            None => return Ok(Search { found: None, passed }),
        }
    }
}
