//! Stored events, and records that cannot be read as events. Every listing shows both.

use std::cmp::Reverse;
use std::fmt::Write as _;

use a3s_event::{EventProvider, HistoryPage, HistoryQuery, StoredEvent, UnreadableRecord};
use serde::Serialize;

use crate::failure::{Failure, Outcome};
use crate::moment;
use crate::output::{EventRow, Row};
use crate::text;

/// Maximum number of records per answer.
pub(crate) const PAGE: usize = 1_000;
/// Number of sequences that a message names.
const NAMED: usize = 5;

/// A record of a stream.
#[derive(Debug)]
pub(crate) enum Stored {
    Event(StoredEvent),
    Unreadable(UnreadableRecord),
}

impl Stored {
    pub(crate) fn sequence(&self) -> u64 {
        match self {
            Self::Event(stored) => stored.sequence,
            Self::Unreadable(record) => record.sequence,
        }
    }

    /// Returns the row of a listing that selects by the time of storing.
    pub(crate) fn row_by_storage(&self) -> ByStorage<'_> {
        ByStorage(self.row())
    }

    pub(crate) fn row(&self) -> StoredRow<'_> {
        match self {
            Self::Event(stored) => StoredRow::Event(EventRow {
                sequence: stored.sequence,
                stored_at: Some(stored.stored_at),
                num_delivered: None,
                event: &stored.event,
            }),
            Self::Unreadable(record) => StoredRow::Unreadable(UnreadableRow {
                sequence: record.sequence,
                stored_at: record.stored_at,
                num_delivered: None,
                subject: record.subject.as_deref(),
                unreadable: &record.reason,
            }),
        }
    }
}

/// Sorts the records of a page, newest first.
pub(crate) fn newest_first(page: HistoryPage) -> Vec<Stored> {
    let unreadable = page.unreadable.into_iter().map(Stored::Unreadable);
    let mut records: Vec<_> = page.events.into_iter().map(Stored::Event).chain(unreadable).collect();
    records.sort_by_key(|stored| Reverse(stored.sequence()));
    records
}

/// Reads the newest records, newest first, and returns the sequence at which the next page begins.
///
/// It reads up to the limit of the query in events, with the unreadable records among them. It also ends after [`PAGE`]
/// unreadable records.
pub(crate) async fn newest(
    provider: &dyn EventProvider,
    mut query: HistoryQuery,
) -> Outcome<(Vec<Stored>, Option<u64>)> {
    let (mut records, mut missing, mut patience) = (Vec::new(), query.limit, PAGE);
    loop {
        query.limit = missing;
        let page = provider.query_page(&query).await?;
        missing = missing.saturating_sub(page.events.len());
        patience = patience.saturating_sub(page.unreadable.len());
        let next = page.next;
        records.append(&mut newest_first(page));
        match next {
            Some(before) if missing > 0 && patience > 0 => query = query.before_sequence(before),
            next => return Ok((records, next)),
        }
    }
}

/// Returns the sequence of the newest record of a filter, readable or not.
pub(crate) async fn newest_sequence(
    provider: &dyn EventProvider,
    filter: Option<&str>,
) -> Outcome<Option<u64>> {
    let mut query = HistoryQuery::new(1);
    query.filter = filter.map(str::to_owned);
    Ok(newest(provider, query).await?.0.first().map(Stored::sequence))
}

/// The printed form of a record.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum StoredRow<'a> {
    Event(EventRow<'a>),
    Unreadable(UnreadableRow<'a>),
}

impl Row for StoredRow<'_> {
    const COLUMNS: &'static [&'static str] = EventRow::COLUMNS;
    const CUT: Option<usize> = EventRow::CUT;

    fn cells(&self) -> Vec<String> {
        match self {
            Self::Event(row) => row.cells(),
            Self::Unreadable(row) => row.cells(),
        }
    }
}

/// A record whose table shows the time of storing instead of the time in the event. Both do not fit into 80 columns.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct ByStorage<'a>(StoredRow<'a>);

impl Row for ByStorage<'_> {
    const COLUMNS: &'static [&'static str] = &["sequence", "stored", "subject", "content"];
    const CUT: Option<usize> = Some(3);

    fn cells(&self) -> Vec<String> {
        let mut cells = self.0.cells();
        let stored_at = match &self.0 {
            StoredRow::Event(row) => row.stored_at,
            StoredRow::Unreadable(row) => row.stored_at,
        };
        if let Some(time) = cells.get_mut(1) {
            *time = stored_at.map_or_else(String::new, moment::show);
        }
        cells
    }
}

/// An unreadable record: it has `unreadable` where others have `event`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UnreadableRow<'a> {
    pub(crate) sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stored_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) num_delivered: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<&'a str>,
    /// The reason.
    pub(crate) unreadable: &'a str,
}

impl Row for UnreadableRow<'_> {
    const COLUMNS: &'static [&'static str] = EventRow::COLUMNS;

    fn cells(&self) -> Vec<String> {
        vec![
            self.sequence.to_string(),
            self.stored_at.map_or_else(String::new, moment::show),
            text::line(self.subject.unwrap_or_default()),
            text::line(&format!("cannot be read: {}", self.unreadable)),
        ]
    }
}

/// The unreadable records that a command met.
#[derive(Debug, Default)]
pub(crate) struct Unreadable {
    pub(crate) count: u64,
    /// The first of their sequences.
    sequences: Vec<u64>,
}

impl Unreadable {
    pub(crate) fn of(records: &[Stored]) -> Self {
        let mut met = Self::default();
        for stored in records {
            met.meet(stored);
        }
        met
    }

    /// Counts a record if it is unreadable.
    pub(crate) fn meet(&mut self, stored: &Stored) {
        if let Stored::Unreadable(record) = stored {
            self.add(record.sequence);
        }
    }

    pub(crate) fn add(&mut self, sequence: u64) {
        self.count += 1;
        if self.sequences.len() < NAMED {
            self.sequences.push(sequence);
        }
    }

    /// Returns a sentence about them; `None` if there were none.
    pub(crate) fn told(&self) -> Option<String> {
        let sequences: Vec<_> = self.sequences.iter().map(u64::to_string).collect();
        let word = if self.count == 1 { "sequence" } else { "sequences" };
        let mut told = format!("cannot be read as events: {word} {}", sequences.join(", "));
        match self.count - self.sequences.len() as u64 {
            _ if self.count == 0 => return None,
            0 => {}
            more => {
                let _ = write!(told, " and {more} more");
            }
        }
        Some(format!("{} {told}", text::count(self.count, "stored record")))
    }

    /// Fails if there were unreadable records.
    pub(crate) fn ended(&self) -> Outcome {
        self.told().map_or(Ok(()), |told| Err(Failure::Found(told)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_were_met_are_counted_and_the_first_are_named() {
        let met = |count: u64| {
            let mut met = Unreadable::default();
            (1..=count).for_each(|sequence| met.add(sequence));
            met.told()
        };
        assert_eq!(met(0), None);
        assert_eq!(met(1).unwrap(), "1 stored record cannot be read as events: sequence 1");
        assert_eq!(
            met(7).unwrap(),
            "7 stored records cannot be read as events: sequences 1, 2, 3, 4, 5 and 2 more"
        );
    }
}
