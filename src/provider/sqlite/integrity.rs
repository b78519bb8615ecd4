//! Finds damage in a file.

use rusqlite::Connection;

use super::checksum;
use super::consumer_row::{COLUMNS, check_row};
use super::error::{Sql, is_damage};
use super::pending;

/// Maximum number of findings, as in SQLite's own check.
const MAX_FINDINGS: usize = 100;

/// Checks the whole file. An unreadable part is a finding, so that the other parts are still checked.
pub(super) fn check(connection: &Connection) -> Sql<Vec<String>> {
    let mut findings = Vec::new();
    for part in [structure, events, counters, consumers] {
        match part(connection, &mut findings) {
            Err(damage) if is_damage(&damage) => findings.push(damage.to_string()),
            checked => checked?,
        }
    }
    findings.truncate(MAX_FINDINGS);
    Ok(findings)
}

fn structure(connection: &Connection, findings: &mut Vec<String>) -> Sql<()> {
    let mut statement = connection.prepare("PRAGMA integrity_check")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        findings.extend(Some(row.get(0)?).filter(|line: &String| line != "ok"));
    }
    Ok(())
}

fn events(connection: &Connection, findings: &mut Vec<String>) -> Sql<()> {
    let mut statement = connection.prepare(
        "SELECT sequence, subject, stored_at, checksum, record, size, name
         FROM events LEFT JOIN subjects ON id = subject ORDER BY sequence",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let sequence: i64 = row.get(0)?;
        let record = row.get_ref(4)?.as_blob()?;
        let wrong = if row.get::<_, i64>(3)? != checksum::of_event(sequence, row.get(1)?, row.get(2)?, record)
        {
            Some("does not match its checksum")
        } else if usize::try_from(row.get::<_, i64>(5)?) != Ok(record.len()) {
            Some("does not have its recorded size")
        } else {
            wrong_subject(record, row.get(6)?)
        };
        findings.extend(wrong.map(|wrong| format!("event {sequence} {wrong}")));
        if findings.len() >= MAX_FINDINGS {
            break;
        }
    }
    Ok(())
}

/// Compares the subject in the record, which readers use, with the name in `subjects`, which filters use.
fn wrong_subject(record: &[u8], name: Option<String>) -> Option<&'static str> {
    #[derive(serde::Deserialize)]
    struct Subject {
        subject: String,
    }
    match serde_json::from_slice::<Subject>(record) {
        Err(_) => Some("is not an event"),
        Ok(stored) => (Some(stored.subject) != name).then_some("is stored under another subject"),
    }
}

fn counters(connection: &Connection, findings: &mut Vec<String>) -> Sql<()> {
    let agree: bool = connection.query_row(
        "SELECT messages = (SELECT count(*) FROM events) AND bytes = (SELECT ifnull(sum(size), 0) FROM events)
             AND last_sequence >= (SELECT ifnull(max(sequence), 0) FROM events)
         FROM stream",
        [],
        |row| row.get(0),
    )?;
    if !agree {
        findings.push("the counters of the stream do not match its events".to_owned());
    }
    Ok(())
}

fn consumers(connection: &Connection, findings: &mut Vec<String>) -> Sql<()> {
    let mut statement = connection.prepare(&format!("SELECT {COLUMNS}, id FROM consumers"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let id = row.get(10)?;
        for checked in [check_row(id, row), pending::load(connection, id).map(drop)] {
            match checked {
                Err(damage) if is_damage(&damage) => findings.push(damage.to_string()),
                checked => checked?,
            }
        }
    }
    Ok(())
}
