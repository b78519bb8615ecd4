//! Lag of consumers, read from a snapshot so that no writer waits for it.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::cells::ConsumerKey;
use super::consumer_row::{COLUMNS, check_row, snapshot_of};
use super::error::Sql;
use super::store::{Store, signed, unsigned};
use super::{history, pending};
use crate::provider::ConsumerInfo;
use crate::subject::SubjectIndex;

/// Maximum number of subject lookups. With more, it is cheaper to scan every event.
const MAX_LOOKUPS: usize = 2_000;

/// Position of a consumer.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    filter: String,
    cursor: u64,
    starts_at: Option<u64>,
    /// Number of retained events to deliver before the cursor advances.
    backlog: u64,
}

impl Store {
    /// Returns the ephemeral consumers of this process, without their lag.
    pub(super) fn ephemerals(&mut self) -> Sql<Vec<(ConsumerInfo, Standing)>> {
        let first = self.first()?;
        let found = self.consumers.ephemerals().map(|(_, known)| {
            let machine = &known.machine;
            let mut info = ConsumerInfo::new(known.name.as_str(), &machine.config().filter, false);
            info.pending = machine.pending() as u64;
            info.redelivered = machine.redelivered() as u64;
            (info, standing(known, first))
        });
        Ok(found.collect())
    }

    pub(super) fn ephemeral(&mut self, key: ConsumerKey) -> Sql<Option<Standing>> {
        let first = self.first()?;
        let id = self.id_of(key);
        Ok(self
            .consumers
            .ephemerals()
            .find(|(known, _)| Some(*known) == id)
            .map(|(_, known)| standing(known, first)))
    }
}

fn standing(known: &super::consumers::Known, first: u64) -> Standing {
    let machine = &known.machine;
    Standing {
        filter: machine.config().filter.clone(),
        cursor: machine.cursor(),
        starts_at: known.starts_at,
        backlog: machine.backlog_since(first) as u64,
    }
}

/// Returns all durable consumers and the given ephemeral ones, sorted by name.
pub(super) fn infos(
    connection: &Connection,
    everything: &str,
    ephemerals: Vec<(ConsumerInfo, Standing)>,
) -> Sql<Vec<ConsumerInfo>> {
    let mut found = ephemerals;
    let first = history::bounds(connection)?.map_or(0, |(first, _)| first);
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS}, id FROM consumers"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let id = row.get(10)?;
        let standing = durable(connection, id, row, first)?;
        let name: String = row.get(1)?;
        let mut info = ConsumerInfo::new(&name, &standing.filter, true);
        for pending in pending::load(connection, id)? {
            info.pending += 1;
            info.redelivered += u64::from(pending.attempt > 1);
        }
        found.push((info, standing));
    }
    let standings: Vec<_> = found.iter().map(|(_, standing)| standing).collect();
    let lags = lags(connection, everything, &standings)?;
    let mut infos: Vec<_> = found.into_iter().map(|(info, _)| info).collect();
    infos.iter_mut().zip(lags).for_each(|(info, lag)| info.lag = lag);
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(infos)
}

/// Returns the lag of one consumer.
pub(super) fn of(connection: &Connection, everything: &str, standing: Standing) -> Sql<u64> {
    Ok(lags(connection, everything, &[&standing])?.first().copied().unwrap_or_default())
}

/// Returns the lag of a durable consumer; 0 if it does not exist.
pub(super) fn of_durable(connection: &Connection, everything: &str, id: i64) -> Sql<u64> {
    let first = history::bounds(connection)?.map_or(0, |(first, _)| first);
    let standing = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM consumers WHERE id = ?1"))?
        .query_row([id], |row| durable(connection, id, row, first))
        .optional()?;
    standing.map_or(Ok(0), |standing| of(connection, everything, standing))
}

fn durable(connection: &Connection, id: i64, row: &Row<'_>, first: u64) -> Sql<Standing> {
    check_row(id, row)?;
    let snapshot = snapshot_of(row)?;
    let backlog = connection
        .prepare_cached("SELECT count(*) FROM backlog WHERE consumer = ?1 AND sequence >= ?2")?
        .query_row(params![id, signed(first)], |row| row.get(0).map(unsigned))?;
    let starts_at = row.get::<_, Option<i64>>(9)?.map(unsigned);
    Ok(Standing { filter: snapshot.config.filter, cursor: snapshot.cursor, starts_at, backlog })
}

/// Consumers with undelivered matches, by filter. Each has the sequence up to which it received them, and its index.
type Behind<'a> = HashMap<&'a str, Vec<(u64, usize)>>;

/// Returns the number of retained matches that each consumer has not received.
fn lags(connection: &Connection, everything: &str, standings: &[&Standing]) -> Sql<Vec<u64>> {
    let mut lags: Vec<u64> = standings.iter().map(|standing| standing.backlog).collect();
    let Some((first, last)) = history::bounds(connection)? else { return Ok(lags) };
    let mut behind = Behind::new();
    for (place, (standing, lag)) in standings.iter().zip(&mut lags).enumerate() {
        let mut from = standing.cursor.max(first.saturating_sub(1));
        if let Some(starts_at) = standing.starts_at {
            let first = history::first_stored_since(connection, starts_at)?;
            from = from.max(first.map_or(last, |first| first.saturating_sub(1)));
        }
        if from >= last {
            continue;
        }
        if standing.filter == ">" || standing.filter == everything {
            *lag += last - from;
        } else {
            behind.entry(&standing.filter).or_default().push((from, place));
        }
    }
    let counts = match few_subjects(connection, &behind)? {
        Some(subjects) => by_subject(connection, &behind, &subjects)?,
        None => by_event(connection, behind, first, last)?,
    };
    for (place, count) in counts {
        if let Some(lag) = lags.get_mut(place) {
            *lag += count;
        }
    }
    Ok(lags)
}

/// Returns the subjects of each filter; `None` if there are too many to look up for each consumer.
fn few_subjects<'a>(connection: &Connection, behind: &Behind<'a>) -> Sql<Option<HashMap<&'a str, Vec<i64>>>> {
    let mut budget = MAX_LOOKUPS;
    let mut found = HashMap::new();
    for (filter, members) in behind {
        let subjects = history::subjects_matching(connection, filter)?;
        match budget.checked_sub(subjects.len().saturating_mul(members.len())) {
            Some(left) => budget = left,
            None => return Ok(None),
        }
        found.insert(*filter, subjects);
    }
    Ok(Some(found))
}

fn by_subject(
    connection: &Connection,
    behind: &Behind<'_>,
    subjects: &HashMap<&str, Vec<i64>>,
) -> Sql<Vec<(usize, u64)>> {
    let mut statement =
        connection.prepare_cached("SELECT count(*) FROM events WHERE subject = ?1 AND sequence > ?2")?;
    let mut counts = Vec::new();
    for (filter, members) in behind {
        for subject in subjects.get(filter).into_iter().flatten() {
            for (from, place) in members {
                let count = statement.query_row(params![subject, signed(*from)], |row| row.get(0))?;
                counts.push((*place, unsigned(count)));
            }
        }
    }
    Ok(counts)
}

/// Reads every event once, for all consumers together.
fn by_event(connection: &Connection, behind: Behind<'_>, first: u64, last: u64) -> Sql<Vec<(usize, u64)>> {
    let mut filters = SubjectIndex::new();
    let mut groups = Vec::new();
    let mut lowest = last;
    for (filter, mut members) in behind {
        members.sort_unstable();
        lowest = lowest.min(members.first().map_or(last, |(from, _)| *from));
        // An invalid filter, which only damage can cause, matches nothing.
        if filters.insert(filter, groups.len()).is_ok() {
            // Number of events by the number of members that have not received them.
            groups.push((vec![0_u64; members.len() + 1], members));
        }
    }
    let mut groups_of: HashMap<i64, Vec<usize>> = HashMap::new();
    let mut statement = connection.prepare_cached("SELECT id, name FROM subjects")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let mut matching = Vec::new();
        filters.for_each_match(row.get_ref(1)?.as_str()?, |group| matching.push(*group));
        if !matching.is_empty() {
            groups_of.insert(row.get(0)?, matching);
        }
    }
    // The index has only the required columns, but all of it must be read.
    let are_few = (last - lowest) < (last - first) / 8;
    let mut statement = connection.prepare_cached(if are_few {
        "SELECT subject, sequence FROM events WHERE sequence > ?1"
    } else {
        "SELECT subject, sequence FROM events INDEXED BY events_by_subject WHERE sequence > ?1"
    })?;
    let mut rows = statement.query([signed(lowest)])?;
    while let Some(row) = rows.next()? {
        let Some(matching) = groups_of.get(&row.get(0)?) else { continue };
        let sequence = unsigned(row.get(1)?);
        for group in matching {
            if let Some((events, members)) = groups.get_mut(*group)
                && let Some(count) = events.get_mut(members.partition_point(|(from, _)| *from < sequence))
            {
                *count += 1;
            }
        }
    }
    let mut counts = Vec::new();
    for (events, members) in groups {
        let mut sum: u64 = events.iter().sum();
        for (events, (_, place)) in events.iter().zip(members) {
            sum -= events;
            counts.push((place, sum));
        }
    }
    Ok(counts)
}
