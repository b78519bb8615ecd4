//! Storage of consumers, with checksums that detect damaged rows.

use rusqlite::{Row, params};

use super::consumers::Known;
use super::error::Sql;
use super::store::{signed, unsigned};
use super::{checksum, pending};
use crate::provider::group::{ConsumerConfig, ConsumerSnapshot};
use crate::types::SubscribeOptions;

/// Columns that [`check_row`] and [`snapshot_of`] read, in this order.
pub(super) const COLUMNS: &str =
    "version, name, filter, options, cursor, missed, exhausted, checksum, generation, starts_at";

pub(super) fn save(connection: &rusqlite::Connection, id: i64, known: &mut Known) -> Sql<()> {
    known.version += 1;
    let checksum = known.checksum();
    let starts_at = known.starts_at.map(signed);
    let Known { machine, version, backlog_front, .. } = known;
    connection
        .prepare_cached(
            "UPDATE consumers SET cursor = ?2, missed = ?3, exhausted = ?4, version = ?5, checksum = ?6,
                 generation = ?7, starts_at = ?8
             WHERE id = ?1",
        )?
        .execute(params![
            id,
            signed(machine.cursor()),
            signed(machine.missed()),
            signed(machine.exhausted()),
            *version,
            checksum,
            machine.generation(),
            starts_at
        ])?;
    let changed = machine.take_changes();
    pending::save(connection, id, machine, &changed)?;
    if machine.backlog_front() != *backlog_front {
        *backlog_front = machine.backlog_front();
        connection
            .prepare_cached("DELETE FROM backlog WHERE consumer = ?1 AND sequence < ?2")?
            .execute(params![id, backlog_front.map_or(i64::MAX, signed)])?;
    }
    Ok(())
}

/// Returns the checksum of a row's settings, which is part of the row's checksum.
pub(super) fn identity(id: i64, name: &str, filter: &str, options: &str) -> i64 {
    // Neither a name nor a filter contains a line break.
    checksum::of(format!("{name}\n{filter}\n{options}").as_bytes(), &[id])
}

/// Returns the checksum of a row. It covers the settings and all numbers of the row.
pub(super) fn row_checksum(
    identity: i64,
    [cursor, missed, exhausted]: [i64; 3],
    version: i64,
    generation: i64,
    starts_at: Option<i64>,
) -> i64 {
    let numbers = [identity, cursor, missed, exhausted, version, generation];
    // Rows of version 1 have neither a generation nor a start time.
    let covered = if generation == 0 { numbers.get(..5).unwrap_or(&numbers) } else { &numbers };
    let numbers: Vec<i64> = covered.iter().copied().chain(starts_at).collect();
    checksum::of(&[], &numbers)
}

/// Compares a row of `consumers` with its checksum.
pub(super) fn check_row(id: i64, row: &Row<'_>) -> Sql<()> {
    let text = |column| row.get_ref(column)?.as_str().map_err(rusqlite::Error::from);
    let identity = identity(id, text(1)?, text(2)?, text(3)?);
    let numbers = [row.get(4)?, row.get(5)?, row.get(6)?];
    let found = row_checksum(identity, numbers, row.get(0)?, row.get(8)?, row.get(9)?);
    if found == row.get::<_, i64>(7)? { Ok(()) } else { Err(checksum::mismatch(&format!("consumer {id}"))) }
}

pub(super) fn options_to_json(config: &ConsumerConfig) -> String {
    serde_json::to_string(&config.to_options()).unwrap_or_default()
}

/// Returns the snapshot in a row of `consumers`, without its backlog and pending events.
pub(super) fn snapshot_of(row: &Row<'_>) -> Sql<ConsumerSnapshot> {
    const OPTIONS: usize = 3;
    let unreadable = |error: Box<dyn std::error::Error + Send + Sync>| {
        rusqlite::Error::FromSqlConversionFailure(OPTIONS, rusqlite::types::Type::Text, error)
    };
    let options: String = row.get(OPTIONS)?;
    let options: SubscribeOptions =
        serde_json::from_str(&options).map_err(|error| unreadable(error.into()))?;
    let filter: String = row.get(2)?;
    let config = ConsumerConfig::new(&filter, &options).map_err(|error| unreadable(error.into()))?;
    let mut snapshot = ConsumerSnapshot::new(config, unsigned(row.get(4)?));
    snapshot.missed = unsigned(row.get(5)?);
    snapshot.exhausted = unsigned(row.get(6)?);
    snapshot.generation = row.get(8)?;
    Ok(snapshot)
}
