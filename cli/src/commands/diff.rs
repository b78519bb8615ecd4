//! `diff`: whether two buses hold the same events in the same order.
//!
//! Where they differ, both sides are searched ahead for a place from which on they agree again, so that one event too many
//! is one difference.

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use a3s_event::{Event, StoredEvent};
use serde::Serialize;

use crate::bus::{App, warn_of_credentials};
use crate::failure::{Failure, Outcome};
use crate::forward::Forward;
use crate::output::Row;
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event diff sqlite:///var/lib/events.db nats://127.0.0.1:4222";

/// How far ahead a place is searched for.
const AHEAD: usize = 1_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One bus: a URL, or a name of the config file
    from: String,
    /// The other one
    to: String,
    /// Only these subjects
    #[arg(long)]
    filter: Option<String>,
    /// End after this many differences
    #[arg(long, default_value = "10")]
    limit: NonZeroUsize,
}

/// Two events at the same place that differ, or one that the other side does not have there.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Difference {
    /// Place in the order of both, beginning at 1.
    place: u64,
    /// The fields in which they differ, or that one of them is missing.
    what: Vec<&'static str>,
    from: Option<Side>,
    to: Option<Side>,
}

#[derive(Debug, Serialize)]
struct Side {
    sequence: u64,
    id: String,
}

impl Row for Difference {
    const COLUMNS: &'static [&'static str] = &["place", "what", "from", "id", "to", "id"];

    fn cells(&self) -> Vec<String> {
        let side = |side: &Option<Side>| match side {
            Some(side) => [side.sequence.to_string(), text::line(&side.id)],
            None => ["-".to_owned(), "nothing".to_owned()],
        };
        let [[from, from_id], [to, to_id]] = [side(&self.from), side(&self.to)];
        vec![self.place.to_string(), self.what.join(", "), from, from_id, to, to_id]
    }
}

#[derive(Debug, Serialize)]
struct Same {
    events: u64,
    differences: usize,
}

impl From<StoredEvent> for Side {
    fn from(stored: StoredEvent) -> Self {
        Self { sequence: stored.sequence, id: stored.event.id.clone() }
    }
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    for url in [&args.from, &args.to] {
        warn_of_credentials(url, None);
    }
    let from = app.connect_to_look_at(&args.from).await?;
    let to = app.connect_to_look_at(&args.to).await?;
    let filter = args.filter.as_deref();
    let mut left = Reader::new(Forward::new(&from, filter, 1).await?);
    let mut right = Reader::new(Forward::new(&to, filter, 1).await?);
    let mut differences = Vec::new();
    let (mut place, mut is_at_end) = (0, false);
    while differences.len() < args.limit.get() {
        tokio::try_join!(left.read(1), right.read(1))?;
        let same = match (left.ahead.front(), right.ahead.front()) {
            (None, None) => {
                is_at_end = true;
                break;
            }
            (Some(a), Some(b)) => is_same(&a.event, &b.event),
            _ => false,
        };
        place += 1;
        let (of_left, of_right) = if same {
            (true, true)
        } else {
            tokio::try_join!(left.read(AHEAD), right.read(AHEAD))?;
            which_differ(&left.ahead, &right.ahead)
        };
        let from = if of_left { left.ahead.pop_front() } else { None };
        let to = if of_right { right.ahead.pop_front() } else { None };
        if !same {
            differences.push(Difference {
                place,
                what: match (&from, &to) {
                    (Some(from), Some(to)) => differing(&from.event, &to.event).collect(),
                    _ => vec!["missing"],
                },
                from: from.map(Side::from),
                to: to.map(Side::from),
            });
        }
    }
    if differences.is_empty() {
        return app.out.one(&Same { events: place, differences: 0 });
    }
    app.out.rows(&differences)?;
    let found = text::count(differences.len() as u64, "difference");
    Err(Failure::Found(if is_at_end {
        format!("the buses differ: {found}")
    } else {
        format!("the buses differ: at least {found}; --limit shows more")
    }))
}

/// Whether two events agree in every field.
pub(super) fn is_same(a: &Event, b: &Event) -> bool {
    differing(a, b).next().is_none()
}

/// The fields in which two events differ, as they are called in JSON.
fn differing(a: &Event, b: &Event) -> impl Iterator<Item = &'static str> {
    let Event { id, subject, category, event_type, version, payload, summary, source, timestamp, metadata } =
        a;
    [
        ("id", *id != b.id),
        ("subject", *subject != b.subject),
        ("category", *category != b.category),
        ("eventType", *event_type != b.event_type),
        ("version", *version != b.version),
        ("payload", *payload != b.payload),
        ("summary", *summary != b.summary),
        ("source", *source != b.source),
        ("timestamp", *timestamp != b.timestamp),
        ("metadata", *metadata != b.metadata),
    ]
    .into_iter()
    .filter_map(|(field, differs)| differs.then_some(field))
}

/// The events of a bus, some of them read ahead.
struct Reader {
    forward: Forward,
    ahead: VecDeque<StoredEvent>,
}

impl Reader {
    fn new(forward: Forward) -> Self {
        Self { forward, ahead: VecDeque::new() }
    }

    /// Reads until so many events are there, or all.
    async fn read(&mut self, events: usize) -> Outcome {
        while self.ahead.len() < events {
            let page = self.forward.page().await?;
            if page.is_empty() {
                break;
            }
            self.ahead.extend(page);
        }
        Ok(())
    }
}

/// Of two sides that differ at once, whose event has no counterpart; both when that is so for both.
fn which_differ(left: &VecDeque<StoredEvent>, right: &VecDeque<StoredEvent>) -> (bool, bool) {
    let (Some(a), Some(b)) = (left.front(), right.front()) else {
        return (!left.is_empty(), !right.is_empty());
    };
    if a.event.id == b.event.id {
        return (true, true);
    }
    let place_of = |event: &StoredEvent, side: &VecDeque<StoredEvent>| {
        side.iter().take(AHEAD).position(|other| is_same(&event.event, &other.event))
    };
    match (place_of(a, right), place_of(b, left)) {
        (Some(skipped_right), Some(skipped_left)) => {
            (skipped_left < skipped_right, skipped_right <= skipped_left)
        }
        (Some(_), None) => (false, true),
        (None, Some(_)) => (true, false),
        (None, None) => (true, true),
    }
}
