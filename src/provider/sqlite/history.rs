//! Reads stored events, always from one snapshot and at a cost that follows the size of the answer.

use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::checksum;
use super::error::Sql;
use super::store::{signed, unsigned};
use crate::provider::support::without_values;
use crate::provider::{HistoryPage, HistoryQuery, StoredEvent, UnreadableRecord};
use crate::subject::subject_matches;

/// Maximum number of unreadable records in one page. The next page continues after them.
const MAX_UNREADABLE: usize = 1_000;

/// Content of a page so far.
#[derive(Default)]
struct Found {
    events: Vec<StoredEvent>,
    unreadable: Vec<UnreadableRecord>,
    /// Sequence of the record that was read last.
    oldest: Option<u64>,
}

impl Found {
    /// Adds a row of sequence, subject, storage time, checksum and record.
    fn add(&mut self, connection: &Connection, row: &Row<'_>) -> Sql<()> {
        self.oldest = Some(unsigned(row.get(0)?));
        match decode(connection, row)? {
            Ok(event) => self.events.push(event),
            Err(unreadable) => self.unreadable.push(unreadable),
        }
        Ok(())
    }

    fn is_full(&self, limit: usize) -> bool {
        self.events.len() >= limit || self.unreadable.len() >= MAX_UNREADABLE
    }
}

/// Returns the newest matches of a query, newest first. `everything` is the filter that matches every event of the
/// stream.
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
    let filter = query.filter.as_deref().filter(|filter| *filter != ">" && *filter != everything);
    let found = newest(connection, filter, since, before, query.limit)?;
    let searched_from = if found.is_full(query.limit) { found.oldest } else { Some(since) };
    Ok(HistoryPage::new(found.events, found.unreadable, searched_from, since))
}

/// Returns the first and last retained sequence.
pub(super) fn bounds(connection: &Connection) -> Sql<Option<(u64, u64)>> {
    let end = |order: &str| {
        connection
            .prepare_cached(&format!("SELECT sequence FROM events ORDER BY sequence {order} LIMIT 1"))?
            .query_row([], |row| row.get(0).map(unsigned))
            .optional()
    };
    Ok(end("ASC")?.zip(end("DESC")?))
}

/// Returns the newest matches. Reads backwards first, which suits a frequent filter. If that finds too few, it reads by
/// subject, which suits a rare filter.
fn newest(
    connection: &Connection,
    filter: Option<&str>,
    since: u64,
    before: u64,
    limit: usize,
) -> Sql<Found> {
    let mut found = Found::default();
    let Some(filter) = filter else {
        read_backwards(connection, since, before, limit, &mut found, |_subject| Ok(true))?;
        return Ok(found);
    };
    let budget = limit.saturating_mul(8).saturating_add(256) as u64;
    let scan_from = since.max(before.saturating_sub(budget));
    // The results are cached, because few subjects have many events.
    let mut known = HashMap::new();
    read_backwards(connection, scan_from, before, limit, &mut found, |subject| {
        if let Some(matches) = known.get(&subject) {
            return Ok(*matches);
        }
        // A subject without a name cannot be compared with the filter, so it matches.
        let matches = name_of(connection, subject)?.is_none_or(|name| subject_matches(&name, filter));
        known.insert(subject, matches);
        Ok(matches)
    })?;
    if !found.is_full(limit) && since < scan_from {
        read_by_subject(connection, filter, since, scan_from, limit, &mut found)?;
    }
    Ok(found)
}

fn read_backwards(
    connection: &Connection,
    since: u64,
    before: u64,
    limit: usize,
    found: &mut Found,
    mut is_match: impl FnMut(i64) -> Sql<bool>,
) -> Sql<()> {
    let mut statement = connection.prepare_cached(
        "SELECT sequence, subject, stored_at, checksum, record FROM events WHERE sequence >= ?1 AND sequence < ?2
         ORDER BY sequence DESC",
    )?;
    let mut rows = statement.query(params![signed(since), signed(before)])?;
    while !found.is_full(limit)
        && let Some(row) = rows.next()?
    {
        if is_match(row.get(1)?)? {
            found.add(connection, row)?;
        }
    }
    Ok(())
}

fn read_by_subject(
    connection: &Connection,
    filter: &str,
    since: u64,
    before: u64,
    limit: usize,
    found: &mut Found,
) -> Sql<()> {
    let mut heads = BinaryHeap::new();
    let mut subjects = subjects_matching(connection, filter)?;
    subjects.extend(subjects_without_name(connection)?);
    for subject in subjects {
        heads.extend(newest_before(connection, subject, before)?.map(|newest| (newest, subject)));
    }
    let mut statement = connection.prepare_cached(
        "SELECT sequence, subject, stored_at, checksum, record FROM events WHERE sequence = ?1",
    )?;
    while !found.is_full(limit)
        && let Some((newest, subject)) = heads.pop()
        && newest >= since
    {
        let mut rows = statement.query([signed(newest)])?;
        if let Some(row) = rows.next()? {
            found.add(connection, row)?;
        }
        heads.extend(newest_before(connection, subject, newest)?.map(|newest| (newest, subject)));
    }
    Ok(())
}

fn name_of(connection: &Connection, subject: i64) -> Sql<Option<String>> {
    connection
        .prepare_cached("SELECT name FROM subjects WHERE id = ?1")?
        .query_row([subject], |row| row.get(0))
        .optional()
}

/// Decodes a row. The inner error is a record that is damaged or not an event.
fn decode(connection: &Connection, row: &Row<'_>) -> Sql<Result<StoredEvent, UnreadableRecord>> {
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
    // If the row is damaged, both stored values may be wrong.
    unreadable.stored_at = Some(unsigned(stored_at));
    unreadable.subject = name_of(connection, subject)?;
    Ok(Err(unreadable))
}

/// Returns the subject ids of damaged rows, which have no name in `subjects`. Ids are assigned consecutively, so that
/// there are few gaps to search.
fn subjects_without_name(connection: &Connection) -> Sql<Vec<i64>> {
    let mut known = connection.prepare_cached("SELECT id FROM subjects ORDER BY id")?;
    let mut between = connection.prepare_cached(
        "SELECT subject FROM events WHERE subject > ?1 AND subject < ?2 ORDER BY subject LIMIT 1",
    )?;
    let mut found = Vec::new();
    let mut look = |mut after: i64, end: i64| {
        while after.saturating_add(1) < end
            && let Some(subject) = between.query_row([after, end], |row| row.get(0)).optional()?
        {
            found.push(subject);
            after = subject;
        }
        Ok::<_, rusqlite::Error>(())
    };
    let mut rows = known.query([])?;
    let mut last = i64::MIN;
    while let Some(row) = rows.next()? {
        let id = row.get(0)?;
        look(last, id)?;
        last = id;
    }
    look(last, i64::MAX)?;
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

/// Returns the ids of the subjects that a filter matches.
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

/// Returns the first match after a sequence.
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

/// Returns the newest event of each matching subject.
pub(super) fn newest_per_subject(connection: &Connection, filter: &str) -> Sql<Vec<u64>> {
    let subjects = subjects_matching(connection, filter)?;
    subjects.into_iter().filter_map(|id| newest_before(connection, id, u64::MAX).transpose()).collect()
}

/// Returns the first event that was stored at this time or later. Uses a binary search, because storage times never
/// decrease. Ignores the times of damaged rows.
pub(super) fn first_stored_since(connection: &Connection, unix_ms: u64) -> Sql<Option<u64>> {
    let Some((mut low, last)) = bounds(connection)? else {
        return Ok(None);
    };
    let mut high = last + 1;
    while low < high {
        let middle = low + (high - low) / 2;
        match first_sound(connection, middle, high)? {
            Some((sequence, stored_at)) if stored_at < unix_ms => low = sequence + 1,
            Some(_) | None => high = middle,
        }
    }
    Ok((low <= last).then_some(low))
}

/// Returns sequence and storage time of the first row in this range that matches its checksum.
fn first_sound(connection: &Connection, from: u64, before: u64) -> Sql<Option<(u64, u64)>> {
    let mut statement = connection.prepare_cached(
        "SELECT sequence, subject, stored_at, checksum, record FROM events WHERE sequence >= ?1 AND sequence < ?2
         ORDER BY sequence",
    )?;
    let mut rows = statement.query(params![signed(from), signed(before)])?;
    while let Some(row) = rows.next()? {
        let (sequence, stored_at) = (row.get(0)?, row.get(2)?);
        let record = row.get_ref(4)?.as_blob()?;
        if row.get::<_, i64>(3)? == checksum::of_event(sequence, row.get(1)?, stored_at, record) {
            return Ok(Some((unsigned(sequence), unsigned(stored_at))));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use crate::provider::sqlite::{SqliteConfig, SqliteProvider};
    use crate::provider::{EventProvider, HistoryPage, HistoryQuery};
    use crate::types::Event;

    const EVERYTHING: &str = "events.>";

    /// Creates a stream of twelve events, every second one under `events.a`.
    async fn stream() -> (tempfile::TempDir, SqliteProvider, Connection) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.db");
        let provider = SqliteProvider::connect(SqliteConfig::file(&path)).await.unwrap();
        for number in 1..=12 {
            let subject = if number % 2 == 0 { "events.a" } else { "events.b.x" };
            provider.publish(&Event::new(subject, "", "", "", serde_json::json!(number))).await.unwrap();
        }
        (folder, provider, Connection::open(path).unwrap())
    }

    fn sequences(page: &HistoryPage) -> (Vec<u64>, Vec<u64>) {
        let events = page.events.iter().map(|stored| stored.sequence).collect();
        (events, page.unreadable.iter().map(|record| record.sequence).collect())
    }

    #[tokio::test]
    async fn a_filtered_page_looks_further_for_each_record_that_it_cannot_read() {
        let (_folder, provider, connection) = stream().await;
        connection
            .execute("UPDATE events SET checksum = checksum + 1 WHERE sequence IN (8, 10, 11)", [])
            .unwrap();
        let page = provider.query_page(&HistoryQuery::new(3).filter("events.a")).await.unwrap();
        assert_eq!(sequences(&page), (vec![12, 6, 4], vec![10, 8]));
        assert_eq!((page.searched_from, page.next), (Some(4), Some(4)));
        assert_eq!(page.unreadable[0].subject.as_deref(), Some("events.a"));
        assert!(page.unreadable[0].stored_at.is_some());
        assert!(page.unreadable[0].reason.contains("checksum"));
        let rest = HistoryQuery::new(3).filter("events.a").before_sequence(4);
        let page = provider.query_page(&rest).await.unwrap();
        assert_eq!((sequences(&page), page.searched_from, page.next), ((vec![2], vec![]), Some(1), None));
        let page = provider.query_page(&HistoryQuery::new(3)).await.unwrap();
        assert_eq!(sequences(&page), (vec![12, 9, 7], vec![11, 10, 8]));
        assert_eq!(page.next, Some(7));
    }

    #[tokio::test]
    async fn a_row_whose_subject_has_no_name_is_named_whatever_the_filter() {
        let (_folder, provider, connection) = stream().await;
        connection.execute("UPDATE events SET subject = 77 WHERE sequence = 3", []).unwrap();
        for filter in ["events.a", "events.b.>", "events.none", EVERYTHING] {
            let page = provider.query_page(&HistoryQuery::new(100).filter(filter)).await.unwrap();
            assert_eq!(sequences(&page).1, [3], "{filter}");
            assert_eq!((page.unreadable[0].subject.as_deref(), page.next), (None, None), "{filter}");
        }
        // This also applies when a rare filter is read by subject, far before the newest events.
        let common = Event::new("events.common", "", "", "", serde_json::json!(0));
        let batch: Vec<_> = (0..300).map(|_| crate::provider::PublishRequest::from(&common)).collect();
        assert!(provider.publish_batch(&batch).await.iter().all(Result::is_ok));
        let page = provider.query_page(&HistoryQuery::new(1).filter("events.none")).await.unwrap();
        assert_eq!((sequences(&page), page.next), ((vec![], vec![3]), None));
        let found = super::subjects_without_name(&connection).unwrap();
        assert_eq!(found, [77]);
        connection.execute("UPDATE events SET subject = -5 WHERE sequence = 4", []).unwrap();
        connection.execute("UPDATE events SET subject = 78 WHERE sequence IN (5, 6)", []).unwrap();
        assert_eq!(super::subjects_without_name(&connection).unwrap(), [-5, 77, 78]);
    }

    #[tokio::test]
    async fn a_sound_row_that_is_no_event_is_named_with_its_reason() {
        let (_folder, provider, connection) = stream().await;
        let row = "SELECT subject, stored_at FROM events WHERE sequence = 5";
        let (subject, stored_at) =
            connection.query_row(row, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        let checksum = super::checksum::of_event(5, subject, stored_at, b"[]");
        let replaced = "UPDATE events SET record = CAST('[]' AS BLOB), checksum = ?1 WHERE sequence = 5";
        connection.execute(replaced, [checksum]).unwrap();
        let page =
            provider.query_page(&HistoryQuery::new(100).since_sequence(4).before_sequence(7)).await.unwrap();
        assert_eq!((sequences(&page), page.searched_from), ((vec![6, 4], vec![5]), Some(4)));
        assert_eq!(page.unreadable[0].subject.as_deref(), Some("events.b.x"));
        assert!(!page.unreadable[0].reason.contains("checksum"), "{}", page.unreadable[0].reason);
    }

    #[tokio::test]
    async fn a_damaged_time_moves_no_bound() {
        let (_folder, provider, connection) = stream().await;
        // Storage times at intervals of ten milliseconds, with checksums that match.
        let mut rows = connection.prepare("SELECT sequence, subject, record FROM events").unwrap();
        let rows: Vec<(i64, i64, Vec<u8>)> = rows
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        for (sequence, subject, record) in rows {
            let checksum = super::checksum::of_event(sequence, subject, sequence * 10, &record);
            let moved = "UPDATE events SET stored_at = ?2, checksum = ?3 WHERE sequence = ?1";
            connection.execute(moved, [sequence, sequence * 10, checksum]).unwrap();
        }
        for wrong in [0, 1_000_000] {
            for damaged in 1..=12 {
                connection.execute_batch("SAVEPOINT damage").unwrap();
                let damage = "UPDATE events SET stored_at = ?2 WHERE sequence = ?1";
                connection.execute(damage, [damaged, wrong]).unwrap();
                let since = super::first_stored_since(&connection, 60).unwrap();
                // The damaged row itself may be on either side of the bound.
                let expected =
                    [6].into_iter().chain((damaged == 6).then_some(7)).chain((damaged == 5).then_some(5));
                assert!(
                    expected.clone().any(|sequence| since == Some(sequence)),
                    "{damaged} {wrong}: {since:?}"
                );
                connection.execute_batch("ROLLBACK TO damage; RELEASE damage").unwrap();
            }
        }
        drop(provider);
    }
}
