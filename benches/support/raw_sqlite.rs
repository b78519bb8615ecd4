//! The baseline of the SQLite provider.

use a3s_event::Event;
use rusqlite::{Connection, params};
use tempfile::TempDir;

/// Plain rusqlite with the tables that the provider uses for an event.
pub(crate) struct Raw {
    pub(crate) connection: Connection,
    folder: TempDir,
}

impl Raw {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let connection = Connection::open(folder.path().join("raw.db")).unwrap();
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).unwrap();
        connection.pragma_update(None, "synchronous", "FULL").unwrap();
        connection
            .execute_batch(
                "CREATE TABLE events (sequence INTEGER PRIMARY KEY, subject INTEGER NOT NULL, stored_at INTEGER NOT NULL,
                     size INTEGER NOT NULL, checksum INTEGER NOT NULL, record BLOB NOT NULL) STRICT;
                 CREATE INDEX events_by_subject ON events (subject);",
            )
            .unwrap();
        Self { connection, folder }
    }

    /// Opens another connection to the same file.
    #[allow(dead_code, reason = "not every benchmark reads beside the writer")]
    pub(crate) fn reader(&self) -> Connection {
        Connection::open(self.folder.path().join("raw.db")).unwrap()
    }

    pub(crate) fn publish(&self, transactions: usize, rows: usize, event: &Event) {
        for _ in 0..transactions {
            let transaction = self.connection.unchecked_transaction().unwrap();
            for _ in 0..rows {
                let record = serde_json::to_vec(event).unwrap();
                transaction
                    .prepare_cached(
                        "INSERT INTO events (subject, stored_at, size, checksum, record) VALUES (1, 1, ?1, 1, ?2)",
                    )
                    .unwrap()
                    .execute(params![i64::try_from(record.len()).unwrap(), record])
                    .unwrap();
            }
            transaction.commit().unwrap();
        }
    }
}
