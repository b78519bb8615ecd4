//! `diff`: compares the events of two buses and their order.
//!
//! At a difference, it searches both sides ahead for the place where they agree again. One extra event is one
//! difference.

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use a3s_event::Event;
use clap_complete::ArgValueCandidates;
use serde::Serialize;

use crate::bus::{App, warn_of_credentials};
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::forward::Forward;
use crate::output::Row;
use crate::stored::{Stored, Unreadable};
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event diff sqlite:///var/lib/events.db nats://127.0.0.1:4222";

/// Maximum number of events that are searched ahead.
const AHEAD: usize = 1_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One bus: a URL, or a name of the config file
    #[arg(add = ArgValueCandidates::new(complete::buses))]
    from: String,
    /// The other bus
    #[arg(add = ArgValueCandidates::new(complete::buses))]
    to: String,
    /// Only these subjects
    #[arg(long)]
    filter: Option<String>,
    /// End after this many differences
    #[arg(long, short = 'n', default_value = "10")]
    limit: NonZeroUsize,
}

/// Two events at the same place that differ, or one that is missing on the other side.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Difference {
    /// Place in the order of both, beginning at 1.
    place: u64,
    /// The fields that differ, or `missing` or `unreadable`.
    what: Vec<&'static str>,
    from: Option<Side>,
    to: Option<Side>,
}

#[derive(Debug, Serialize)]
struct Side {
    sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// The reason why there is no event to compare.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
}

impl Row for Difference {
    const COLUMNS: &'static [&'static str] = &["place", "what", "from", "id", "to", "id"];

    fn cells(&self) -> Vec<String> {
        let side = |side: &Option<Side>| match side {
            Some(Side { sequence, id: Some(id), .. }) => [sequence.to_string(), text::line(id)],
            Some(Side { sequence, unreadable, .. }) => {
                let reason = unreadable.as_deref().unwrap_or_default();
                [sequence.to_string(), text::line(&format!("cannot be read: {reason}"))]
            }
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

impl From<Stored> for Side {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Event(stored) => {
                Self { sequence: stored.sequence, id: Some(stored.event.id.clone()), unreadable: None }
            }
            Stored::Unreadable(record) => {
                Self { sequence: record.sequence, id: None, unreadable: Some(record.reason) }
            }
        }
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
    let (mut differences, mut unreadable) = (Vec::new(), Unreadable::default());
    let (mut place, mut is_at_end) = (0, false);
    while differences.len() < args.limit.get() {
        tokio::try_join!(left.read(1), right.read(1))?;
        let same = match (left.ahead.front(), right.ahead.front()) {
            (None, None) => {
                is_at_end = true;
                break;
            }
            (Some(a), Some(b)) => are_same(a, b),
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
            [&from, &to].into_iter().flatten().for_each(|stored| unreadable.meet(stored));
            differences.push(Difference {
                place,
                what: match (&from, &to) {
                    (Some(Stored::Event(from)), Some(Stored::Event(to))) => {
                        differing(&from.event, &to.event).collect()
                    }
                    (Some(Stored::Event(_)), None) | (None, Some(Stored::Event(_))) => vec!["missing"],
                    _ => vec!["unreadable"],
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
    let mut found = text::count(differences.len() as u64, "difference");
    if let Some(told) = unreadable.told() {
        found = format!("{found}; {told}");
    }
    Err(Failure::Found(if is_at_end {
        format!("the buses differ: {found}")
    } else {
        format!("the buses differ: at least {found}; --limit shows more")
    }))
}

/// Returns `true` if two events agree in every field.
pub(super) fn is_same(a: &Event, b: &Event) -> bool {
    differing(a, b).next().is_none()
}

/// Returns the fields in which two events differ, by their JSON names.
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

/// Reads the events of a bus, some of them ahead.
struct Reader {
    forward: Forward,
    ahead: VecDeque<Stored>,
}

impl Reader {
    fn new(forward: Forward) -> Self {
        Self { forward, ahead: VecDeque::new() }
    }

    /// Reads ahead until this number of events is buffered, or all are.
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

/// Returns `true` if both are events that agree. An unreadable record agrees with none.
fn are_same(a: &Stored, b: &Stored) -> bool {
    matches!((a, b), (Stored::Event(a), Stored::Event(b)) if is_same(&a.event, &b.event))
}

/// Compares two sides with different first records. Returns `true` for each side whose record has no counterpart.
fn which_differ(left: &VecDeque<Stored>, right: &VecDeque<Stored>) -> (bool, bool) {
    let (a, b) = match (left.front(), right.front()) {
        (Some(Stored::Event(a)), Some(Stored::Event(b))) if a.event.id == b.event.id => return (true, true),
        (Some(a), Some(b)) => (a, b),
        _ => return (!left.is_empty(), !right.is_empty()),
    };
    let is_unreadable = |stored: &Stored| matches!(stored, Stored::Unreadable(_));
    if is_unreadable(a) || is_unreadable(b) {
        let agree_behind = match (left.get(1), right.get(1)) {
            (Some(a), Some(b)) => are_same(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        return if agree_behind { (true, true) } else { (is_unreadable(a), is_unreadable(b)) };
    }
    let place_of = |stored: &Stored, side: &VecDeque<Stored>| {
        side.iter().take(AHEAD).position(|other| are_same(stored, other))
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
