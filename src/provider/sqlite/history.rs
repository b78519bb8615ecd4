//! Reading what is stored: always from one snapshot, at a cost that follows the answer.

use std::collections::BinaryHeap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::checksum;
use super::error::Sql;
use super::store::{signed, unsigned};
use crate::error::without_values;
use crate::provider::{HistoryPage, HistoryQuery, StoredEvent, UnreadableRecord};
use crate::subject::subject_matches;

/// Records of one page that cannot be read; the next page goes on behind them.
const MAX_UNREADABLE: usize = 1_000;

/// What a page holds so far.
#[derive(Default)]
struct Found {
    events: Vec<StoredEvent>,
    unreadable: Vec<UnreadableRecord>,
    /// The record that was looked at last.
    oldest: Option<u64>,
}

impl Found {
    fn add(&mut self, row: &Row<'_>) -> Sql<()> {
        self.oldest = Some(unsigned(row.get(0)?));
        match decode(row)? {
            Ok(event) => self.events.push(event),
            Err(unreadable) => self.unreadable.push(unreadable),
        }
        Ok(())
    }

    fn is_full(&self, limit: usize) -> bool {
        self.events.len() >= limit || self.unreadable.len() >= MAX_UNREADABLE
    }
}

/// The newest matches of a query, newest first. `everything` is the filter that selects all that can be stored.
pub(super) fn page(connection: &Connection, query: &HistoryQuery, everything: &str) -> Sql<HistoryPage> {
    let Some((first, last)) = bounds(connection)? else {
        return Ok(HistoryPage::default());
    };
    let from_time = |time| first_stored_since(connection, time).map(|found| found.unwrap_or(last + 1));
    let mut since = query.since_sequence.unwrap_or(0).max(first);
    if let Some(time) = query.since_time {
        since = since.max(from_time(time)?);
    }
    let mut before = query.before_sequence.unwrap_or(u64::MAX).min(last + 1);
    if let Some(time) = query.before_time {
        before = before.min(from_time(time)?);
    }
    if since >= before {
        return Ok(HistoryPage::default());
    }
    if query.limit == 0 {
        return Ok(HistoryPage::new(Vec::new(), Vec::new(), Some(before), since));
    }
    let found = match query.filter.as_deref().filter(|filter| *filter != ">" && *filter != everything) {
        None => newest(connection, since, before, query.limit)?,
        Some(filter) => {
            let matches = newest_matches(connection, filter, since, before, query.limit)?;
            stored(connection, &matches, query.limit)?
        }
    };
    let searched_from = if found.is_full(query.limit) { found.oldest } else { Some(since) };
    Ok(HistoryPage::new(found.events, found.unreadable, searched_from, since))
}

/// First and last retained sequence.
pub(super) fn bounds(connection: &Connection) -> Sql<Option<(u64, u64)>> {
    let end = |order: &str| {
        connection
            .prepare_cached(&format!("SELECT sequence FROM events ORDER BY sequence {order} LIMIT 1"))?
            .query_row([], |row| row.get(0).map(unsigned))
            .optional()
    };
    Ok(end("ASC")?.zip(end("DESC")?))
}

fn newest(connection: &Connection, since: u64, before: u64, limit: usize) -> Sql<Found> {
    let mut statement = connection.prepare_cached(
        "SELECT sequence, subject, stored_at, checksum, record FROM events WHERE sequence >= ?1 AND sequence < ?2
         ORDER BY sequence DESC",
    )?;
    let mut rows = statement.query(params![signed(since), signed(before)])?;
    let mut found = Found::default();
    while !found.is_full(limit)
        && let Some(row) = rows.next()?
    {
        found.add(row)?;
    }
    Ok(found)
}

/// The records with these sequences.
fn stored(connection: &Connection, sequences: &[u64], limit: usize) -> Sql<Found> {
    let mut statement = connection.prepare_cached(
        "SELECT sequence, subject, stored_at, checksum, record FROM events WHERE sequence = ?1",
    )?;
    let mut found = Found::default();
    for sequence in sequences {
        if found.is_full(limit) {
            break;
        }
        let mut rows = statement.query([signed(*sequence)])?;
        if let Some(row) = rows.next()? {
            found.add(row)?;
        }
    }
    Ok(found)
}

/// The inner error is a record that is damaged or not an event.
fn decode(row: &Row<'_>) -> Sql<Result<StoredEvent, UnreadableRecord>> {
    let (sequence, subject, stored_at) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let record = row.get_ref(4)?.as_blob()?;
    let reason = if row.get::<_, i64>(3)? != checksum::of_event(sequence, subject, stored_at, record) {
        "it does not match its checksum".to_owned()
    } else {
        match serde_json::from_slice(record) {
            Ok(event) => {
                return Ok(Ok(StoredEvent::new(Arc::new(event), unsigned(sequence), unsigned(stored_at))));
            }
            Err(error) => without_values(&error),
        }
    };
    let mut unreadable = UnreadableRecord::new(unsigned(sequence), reason);
    unreadable.stored_at = Some(unsigned(stored_at));
    Ok(Err(unreadable))
}

/// A frequent filter is served by reading backwards; when that finds too little, a rare one by its subjects.
fn newest_matches(
    connection: &Connection,
    filter: &str,
    since: u64,
    before: u64,
    limit: usize,
) -> Sql<Vec<u64>> {
    let budget = limit.saturating_mul(8).saturating_add(256) as u64;
    let scan_from = since.max(before.saturating_sub(budget));
    let mut found = scan_backwards(connection, filter, scan_from, before, limit)?;
    if found.len() >= limit || scan_from == since {
        return Ok(found);
    }
    let mut heads = BinaryHeap::new();
    for subject in subjects_matching(connection, filter)? {
        heads.extend(newest_before(connection, subject, scan_from)?.map(|newest| (newest, subject)));
    }
    while found.len() < limit
        && let Some((newest, subject)) = heads.pop()
        && newest >= since
    {
        found.push(newest);
        heads.extend(newest_before(connection, subject, newest)?.map(|newest| (newest, subject)));
    }
    Ok(found)
}

fn scan_backwards(
    connection: &Connection,
    filter: &str,
    from: u64,
    before: u64,
    limit: usize,
) -> Sql<Vec<u64>> {
    let mut statement = connection.prepare_cached(
        "SELECT sequence, name FROM events JOIN subjects ON id = subject
         WHERE sequence >= ?1 AND sequence < ?2 ORDER BY sequence DESC",
    )?;
    let mut rows = statement.query(params![signed(from), signed(before)])?;
    let mut found = Vec::new();
    while found.len() < limit
        && let Some(row) = rows.next()?
    {
        if subject_matches(row.get_ref(1)?.as_str()?, filter) {
            found.push(unsigned(row.get(0)?));
        }
    }
    Ok(found)
}

fn newest_before(connection: &Connection, subject: i64, before: u64) -> Sql<Option<u64>> {
    connection
        .prepare_cached(
            "SELECT sequence FROM events WHERE subject = ?1 AND sequence < ?2 ORDER BY sequence DESC LIMIT 1",
        )?
        .query_row(params![subject, signed(before)], |row| row.get(0).map(unsigned))
        .optional()
}

/// The ids of the subjects that a filter matches.
pub(super) fn subjects_matching(connection: &Connection, filter: &str) -> Sql<Vec<i64>> {
    let literal = filter.split(['*', '>']).next().unwrap_or_default();
    let mut statement =
        connection.prepare_cached("SELECT id, name FROM subjects WHERE name >= ?1 ORDER BY name")?;
    let mut rows = statement.query([literal])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let name = row.get_ref(1)?.as_str()?;
        if !name.starts_with(literal) {
            break;
        }
        if subject_matches(name, filter) {
            found.push(row.get(0)?);
        }
    }
    Ok(found)
}

/// The first match behind a sequence.
pub(super) fn next_match(connection: &Connection, filter: &str, after: u64) -> Sql<Option<u64>> {
    let mut statement = connection.prepare_cached(
        "SELECT sequence FROM events WHERE subject = ?1 AND sequence > ?2 ORDER BY sequence LIMIT 1",
    )?;
    let mut first: Option<u64> = None;
    for subject in subjects_matching(connection, filter)? {
        let next = statement
            .query_row(params![subject, signed(after)], |row| row.get(0).map(unsigned))
            .optional()?;
        first = first.into_iter().chain(next).min();
    }
    Ok(first)
}

/// The newest event of each matching subject.
pub(super) fn newest_per_subject(connection: &Connection, filter: &str) -> Sql<Vec<u64>> {
    let subjects = subjects_matching(connection, filter)?;
    subjects.into_iter().filter_map(|id| newest_before(connection, id, u64::MAX).transpose()).collect()
}

/// The first event that was stored at this time or later. Storage times never fall, so that halving finds it.
pub(super) fn first_stored_since(connection: &Connection, unix_ms: u64) -> Sql<Option<u64>> {
    let Some((mut low, last)) = bounds(connection)? else {
        return Ok(None);
    };
    let mut statement = connection
        .prepare_cached("SELECT stored_at FROM events WHERE sequence >= ?1 ORDER BY sequence LIMIT 1")?;
    let mut high = last + 1;
    while low < high {
        let middle = low + (high - low) / 2;
        let stored_at: i64 = statement.query_row([signed(middle)], |row| row.get(0))?;
        if unsigned(stored_at) < unix_ms {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok((low <= last).then_some(low))
}
