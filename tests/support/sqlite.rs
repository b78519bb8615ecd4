//! What only another connection can do with the file of the SQLite provider.

use std::path::Path;

/// Stores a record that is no event, and returns its sequence.
pub(crate) fn store_raw(file: &Path, subject: &str, raw: &[u8]) -> rusqlite::Result<u64> {
    let connection = rusqlite::Connection::open(file)?;
    let transaction = connection.unchecked_transaction()?;
    transaction.execute("INSERT OR IGNORE INTO subjects (name) VALUES (?1)", [subject])?;
    transaction
        .execute("UPDATE stream SET last_sequence = last_sequence + 1, messages = messages + 1", [])?;
    transaction.execute(
        "INSERT INTO events SELECT last_sequence, subjects.id, last_stored_at, 1, 0, ?2 FROM stream, subjects WHERE name = ?1",
        rusqlite::params![subject, raw],
    )?;
    let sequence: i64 = transaction.last_insert_rowid();
    transaction.commit()?;
    Ok(sequence.unsigned_abs())
}
