//! Connections for reading, beside the writer thread. The writer closes last, so that no log remains.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rusqlite::{Connection, InterruptHandle};
use tokio::sync::Semaphore;

use super::config::SqliteConfig;
use super::error::{Failure, Outage, Sql, file_failed};
use super::place::Identity;
use super::queue::ended;
use super::schema::open_reader;
use crate::deadline::After;
use crate::error::Result;
use crate::poison::IgnorePoison;

/// Maximum number of concurrent reads; further reads wait.
const MAX_READS: usize = 4;

/// Pool of connections for reading, opened on demand.
#[derive(Debug)]
pub(super) struct Readers {
    /// Path of the file; `None` for a database in memory, which no second connection can read.
    path: Option<PathBuf>,
    busy_timeout: Duration,
    pub(super) turns: Arc<Semaphore>,
    pool: Mutex<Pool>,
    returned: Condvar,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Connection>,
    /// Interrupt handles of the lent connections, by number.
    in_use: HashMap<u64, InterruptHandle>,
    lent_ever: u64,
    /// Number of times that the file was reopened. Connections of an earlier generation are not kept.
    generation: u64,
    /// File that the writer opened last.
    file: Option<Identity>,
    closed: bool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("idle", &self.idle.len())
            .field("in_use", &self.in_use.len())
            .finish_non_exhaustive()
    }
}

impl Readers {
    pub(super) fn new(config: &SqliteConfig) -> Self {
        Self {
            path: config.file_path().map(Path::to_owned),
            busy_timeout: config.busy_timeout,
            turns: Arc::new(Semaphore::new(MAX_READS)),
            pool: Mutex::default(),
            returned: Condvar::new(),
        }
    }

    /// Returns the path of the file; `None` for a database in memory.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Lends a connection to the calling thread.
    pub(super) fn lend(self: &Arc<Self>, operation: &'static str, path: &Path) -> Result<Lent> {
        // If the file at the path was moved or replaced, the open connections use another file.
        let named = Identity::of(path).ok();
        let idle = {
            let mut pool = self.lock();
            if pool.closed {
                return Err(ended());
            }
            if pool.file.is_some() && pool.file != named {
                return Err(Failure::refused(Outage::Replaced).of_file(path).to_error(operation));
            }
            pool.idle.pop()
        };
        let connection = match idle {
            Some(connection) => connection,
            None => {
                open_reader(path, self.busy_timeout).map_err(|error| file_failed(operation, path, error))?
            }
        };
        let mut pool = self.lock();
        if pool.closed {
            return Err(ended());
        }
        pool.lent_ever += 1;
        let (number, generation) = (pool.lent_ever, pool.generation);
        pool.in_use.insert(number, connection.get_interrupt_handle());
        Ok(Lent { readers: Arc::clone(self), connection: Some(connection), number, generation, keep: false })
    }

    /// Closes the idle connections, because the writer opens `file` from now on. Lent connections are closed when they
    /// return.
    pub(super) fn renew(&self, file: Option<Identity>) {
        let idle = {
            let mut pool = self.lock();
            pool.generation += 1;
            pool.file = file.or(pool.file);
            std::mem::take(&mut pool.idle)
        };
        drop(idle);
    }

    /// Stops lending, and interrupts running reads.
    pub(super) fn close(&self) {
        self.turns.close();
        let idle = {
            let mut pool = self.lock();
            pool.closed = true;
            pool.in_use.values().for_each(InterruptHandle::interrupt);
            std::mem::take(&mut pool.idle)
        };
        drop(idle);
    }

    /// Waits up to `timeout` until every connection is closed. Called by the writer thread, which closes last.
    pub(super) fn wait_until_closed(&self, timeout: Duration) {
        let deadline = Instant::now().after(timeout);
        let mut pool = self.lock();
        while !pool.in_use.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(readers = pool.in_use.len(), "sqlite connections are still reading at close");
                return;
            }
            // Repeated, because an interrupt does not affect a statement that has not begun.
            pool.in_use.values().for_each(InterruptHandle::interrupt);
            let step = left.min(Duration::from_millis(10));
            pool = self.returned.wait_timeout(pool, step).ignore_poison().0;
        }
    }

    fn give_back(&self, number: u64, generation: u64, connection: Option<Connection>) {
        let mut pool = self.lock();
        let is_kept = !pool.closed && pool.generation == generation;
        let refused = match connection {
            Some(connection) if is_kept => {
                pool.idle.push(connection);
                None
            }
            refused => refused,
        };
        drop(pool);
        // The connection counts as in use until it is closed.
        drop(refused);
        self.lock().in_use.remove(&number);
        self.returned.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        // Nothing panics while it is held.
        self.pool.lock().ignore_poison()
    }
}

/// A connection that returns to the pool when it is dropped.
pub(super) struct Lent {
    readers: Arc<Readers>,
    connection: Option<Connection>,
    number: u64,
    generation: u64,
    keep: bool,
}

impl Lent {
    pub(super) fn run<T>(&mut self, work: impl FnOnce(&Connection) -> Sql<T>) -> Sql<T> {
        let Some(connection) = &self.connection else { return Err(rusqlite::Error::InvalidQuery) };
        let found = work(connection);
        // A connection that failed may be the cause of the error.
        self.keep = found.is_ok();
        found
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut connection = self.connection.take();
        if !self.keep {
            drop(connection.take());
        }
        self.readers.give_back(self.number, self.generation, connection);
    }
}

#[cfg(test)]
mod tests {
    use crate::provider::EventProvider;
    use crate::provider::sqlite::{SqliteConfig, SqliteProvider};
    use crate::types::Event;

    #[tokio::test(flavor = "multi_thread")]
    async fn close_interrupts_who_reads_and_the_writer_closes_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.db");
        let provider = SqliteProvider::connect(SqliteConfig::file(&path)).await.unwrap();
        provider.publish(&Event::new("events.a", "", "", "", serde_json::json!(1))).await.unwrap();
        let (begins, has_begun) = tokio::sync::oneshot::channel();
        let shared = std::sync::Arc::clone(&provider.shared);
        let reading = tokio::spawn(async move {
            let long = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000000)
                        SELECT count(*) FROM n JOIN events";
            let read = move |connection: &rusqlite::Connection| {
                begins.send(()).unwrap();
                connection.query_row(long, [], |row| row.get::<_, i64>(0))
            };
            shared.read("history", read).await
        });
        has_begun.await.unwrap();
        provider.close().await.unwrap();
        let left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["e.db"]);
        assert!(reading.await.unwrap().unwrap_err().is_closed());
    }
}
