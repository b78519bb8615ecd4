//! `consumers reset`: moves consumers, and shows their old and new positions and lags.

use std::sync::Arc;

use a3s_event::provider::ConsumerPosition;
use a3s_event::{ConsumerInfo, EventError, EventProvider, HistoryQuery};
use serde::Serialize;

use super::{ConsumerRow, Which};
use crate::bus::App;
use crate::confirm::Confirmation;
use crate::consumer_name::{described, find};
use crate::failure::{Failure, Outcome};
use crate::output::Row;
use crate::stored::{PAGE, newest_first};
use crate::text::{self, count};

/// The next event of a consumer.
#[derive(Debug, Clone, Copy, Default)]
struct Position {
    /// Sequence of the next event; `None` if the consumer has received all.
    next: Option<u64>,
    /// Number of events from there on.
    lag: u64,
}

impl Position {
    /// Describes the position, such as `sequence 5 (3 events)`.
    fn described(self) -> String {
        match self.next {
            Some(next) => format!("sequence {next} ({} to receive)", count(self.lag, "event")),
            None => "the end".to_owned(),
        }
    }
}

/// The reset of a consumer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ResetRow {
    #[serde(flatten)]
    consumer: ConsumerRow,
    previous_lag: u64,
    /// Sequence of the next event before the reset. Events that were delivered and not settled come before it.
    previous_sequence: Option<u64>,
    /// Sequence of the next event after the reset.
    next_sequence: Option<u64>,
}

impl Row for ResetRow {
    const COLUMNS: &'static [&'static str] =
        &["consumer", "filter", "old sequence", "old lag", "new sequence", "new lag"];

    fn cells(&self) -> Vec<String> {
        let sequence = |next: Option<u64>| next.map_or_else(|| "end".to_owned(), |next| next.to_string());
        vec![
            text::line(self.consumer.shown_name()),
            text::line(&self.consumer.filter),
            sequence(self.previous_sequence),
            self.previous_lag.to_string(),
            sequence(self.next_sequence),
            self.consumer.lag.to_string(),
        ]
    }
}

/// The planned reset of consumers.
pub(super) struct Reset {
    provider: Arc<dyn EventProvider>,
    to: ConsumerPosition,
    /// Each consumer with its old and its new position.
    moves: Vec<(ConsumerInfo, Position, Position)>,
}

impl Reset {
    pub(super) async fn plan(app: &mut App, which: &Which, to: ConsumerPosition) -> Outcome<Self> {
        let provider = app.connect_to_look().await?;
        let mut moves = Vec::new();
        for consumer in find(&provider, &which.name, which.filter.as_deref()).await? {
            let old = position_of(&*provider, &consumer).await?;
            let new = position_at(&*provider, &consumer.filter, to).await?;
            moves.push((consumer, old, new));
        }
        Ok(Self { provider, to, moves })
    }

    /// Shows the plan.
    pub(super) fn show(&self, app: &mut App) -> Outcome {
        let rows: Vec<_> = self.moves.iter().map(|(consumer, old, new)| row(consumer, *old, *new)).collect();
        app.out.rows(&rows)
    }

    /// Moves the consumers after a confirmation.
    pub(super) async fn run(&self, app: &mut App, confirmation: &Confirmation) -> Outcome {
        let of_each = |(consumer, old, new): &(ConsumerInfo, Position, Position)| {
            let forgotten = match consumer.pending {
                0 => String::new(),
                pending => {
                    format!(", and forgets {} that are delivered and not settled", count(pending, "event"))
                }
            };
            format!("{} from {} to {}{forgotten}", described(consumer), old.described(), new.described())
        };
        let moves: Vec<_> = self.moves.iter().map(of_each).collect();
        let consumers = if moves.len() == 1 { "consumer" } else { "consumers" };
        confirmation.ask_about(&format!("this moves {consumers} {}", moves.join("; ")))?;
        for (consumer, ..) in &self.moves {
            let moved = self.provider.reset_consumer(&consumer.name, self.to).await;
            moved.map_err(|error| unmoved(error, consumer))?;
        }
        let now = self.provider.consumers().await?;
        let row_now = |(consumer, old, new): &(ConsumerInfo, Position, Position)| {
            let now = now.iter().find(|now| now.name == consumer.name)?;
            Some(row(now, *old, Position { lag: now.lag, ..*new }))
        };
        app.out.rows(&self.moves.iter().filter_map(row_now).collect::<Vec<_>>())
    }
}

/// Explains the refusal of a server to move a consumer before its start.
fn unmoved(error: EventError, consumer: &ConsumerInfo) -> Failure {
    match error {
        EventError::Unsupported { option, .. } if option.contains("of a consumer that starts") => {
            Failure::Input(format!(
                "the server moves no consumer before its start, and consumer {} starts later: delete it with `consumers rm`, and \
                 create it again from an earlier start, such as with `sub --durable NAME --from all`",
                described(consumer)
            ))
        }
        error => error.into(),
    }
}

fn row(consumer: &ConsumerInfo, old: Position, new: Position) -> ResetRow {
    ResetRow {
        consumer: ConsumerRow { lag: new.lag, ..ConsumerRow::from(consumer) },
        previous_lag: old.lag,
        previous_sequence: old.next,
        next_sequence: new.next,
    }
}

/// Returns the present position of a consumer: its lag is the number of events from its next one on.
async fn position_of(provider: &dyn EventProvider, consumer: &ConsumerInfo) -> Outcome<Position> {
    let query = HistoryQuery::new(PAGE).filter(&consumer.filter);
    let reached = reach(provider, query, consumer.lag).await?;
    Ok(Position { lag: consumer.lag, ..reached })
}

/// Returns the position that a consumer of a filter gets by a reset.
async fn position_at(provider: &dyn EventProvider, filter: &str, to: ConsumerPosition) -> Outcome<Position> {
    let query = HistoryQuery::new(PAGE).filter(filter);
    let query = match to {
        ConsumerPosition::Sequence(sequence) => query.since_sequence(sequence),
        ConsumerPosition::Time(unix_ms) => query.since_time(unix_ms),
        ConsumerPosition::Last => return Ok(Position::default()),
        _ => query,
    };
    reach(provider, query, u64::MAX).await
}

/// Goes back over the records of a query, at most over this number of them.
async fn reach(provider: &dyn EventProvider, mut query: HistoryQuery, most: u64) -> Outcome<Position> {
    let mut reached = Position::default();
    while reached.lag < most {
        let page = provider.query_page(&query).await?;
        let next = page.next;
        let missing = usize::try_from(most - reached.lag).unwrap_or(usize::MAX);
        for stored in newest_first(page).iter().take(missing) {
            reached = Position { next: Some(stored.sequence()), lag: reached.lag + 1 };
        }
        match next {
            Some(before) => query = query.before_sequence(before),
            None => break,
        }
    }
    Ok(reached)
}
