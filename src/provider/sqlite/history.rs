//! Reading what is stored: always from one snapshot, at a cost that follows the answer.

use std::collections::BinaryHeap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::checksum;
use super::error::Sql;
use super::store::{signed, unsigned};
use crate::error::without_values;
use crate::provider::{HistoryQuery, StoredEvent};
use crate::subject::subject_matches;

/// The newest matches of a query, newest first. `everything` is the filter that selects all that can be stored.
pub(super) fn query(
    connection: &Connection,
    query: &HistoryQuery,
    everything: &str,
) -> Sql<Vec<StoredEvent>> {
    let Some((first, last)) = bounds(connection)? else {
        return Ok(Vec::new());
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
    if since >= before || query.limit == 0 {
        return Ok(Vec::new());
    }
    match query.filter.as_deref().filter(|filter| *filter != ">" && *filter != everything) {
        None => newest(connection, since, before, query.limit),
        Some(filter) => newest_matches(connection, filter, since, before, query.limit)?
            .into_iter()
            .filter_map(|sequence| stored(connection, sequence).transpose())
            .collect(),
    }
}

/// First and last retained sequence.
fn bounds(connection: &Connection) -> Sql<Option<(u64, u64)>> {
    let end = |order: &str| {
        connection
            .prepare_cached(&format!("SELECT sequence FROM events ORDER BY sequence {order} LIMIT 1"))?
            .query_row([], |row| row.get(0).map(unsigned))
            .optional()
    };
    Ok(end("ASC")?.zip(end("DESC")?))
}

fn newest(connection: &Connection, since: u64, before: u64, limit: usize) -> Sql<Vec<StoredEvent>> {
    let mut statement = connection.prepare_cached(
        "SELECT sequence, subject, stored_at, checksum, record FROM events WHERE sequence >= ?1 AND sequence < ?2
         ORDER BY sequence DESC",
    )?;
    let mut rows = statement.query(params![signed(since), signed(before)])?;
    let mut found = Vec::new();
    while found.len() < limit
        && let Some(row) = rows.next()?
    {
        found.extend(decode(row)?);
    }
    Ok(found)
}

fn stored(connection: &Connection, sequence: u64) -> Sql<Option<StoredEvent>> {
    let found = connection
        .prepare_cached(
            "SELECT sequence, subject, stored_at, checksum, record FROM events WHERE sequence = ?1",
        )?
        .query_row([signed(sequence)], decode)
        .optional()?;
    Ok(found.flatten())
}

/// `None` for a record that is damaged or not an event: consumers are told about it, history leaves it out.
fn decode(row: &Row<'_>) -> Sql<Option<StoredEvent>> {
    let (sequence, subject, stored_at) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let record = row.get_ref(4)?.as_blob()?;
    if row.get::<_, i64>(3)? != checksum::of_event(sequence, subject, stored_at, record) {
        tracing::warn!(sequence, "history leaves out a record that does not match its checksum");
        return Ok(None);
    }
    match serde_json::from_slice(record) {
        Ok(event) => Ok(Some(StoredEvent::new(Arc::new(event), unsigned(sequence), unsigned(stored_at)))),
        Err(error) => {
            let error = without_values(&error);
            tracing::warn!(sequence, error, "history leaves out a record that is not an event");
            Ok(None)
        }
    }
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
fn subjects_matching(connection: &Connection, filter: &str) -> Sql<Vec<i64>> {
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

/// How many matches lie behind a sequence.
pub(super) fn count_after(connection: &Connection, filter: &str, after: u64) -> Sql<u64> {
    let mut statement =
        connection.prepare_cached("SELECT count(*) FROM events WHERE subject = ?1 AND sequence > ?2")?;
    let mut count = 0;
    for subject in subjects_matching(connection, filter)? {
        count += unsigned(statement.query_row(params![subject, signed(after)], |row| row.get(0))?);
    }
    Ok(count)
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
