//! Reading beside the writer thread, and what keeps a file in good order.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use tokio::time::Instant;

use super::error::{Sql, failed, file_failed, io_failed};
use super::integrity;
use super::queue::{Access, Size, ended};
use super::schema::{create_new_private, pragma, side_file};
use super::store::{Store, unsigned};
use super::{Shared, SqliteProvider};
use crate::deadline::After;
use crate::error::{EventError, Result};
use crate::private_file;
use crate::provider::DEFAULT_TIMEOUT;

/// How long the work on a whole file may take.
const MAINTENANCE_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// How much the file takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileInfo {
    /// Bytes of the file itself.
    pub file_bytes: u64,
    /// Bytes of its write-ahead log.
    pub wal_bytes: u64,
    /// Bytes inside the file that are free for new events.
    pub free_bytes: u64,
}

impl Shared {
    /// Runs `work` in one snapshot of the file, off the runtime and beside the writer thread.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Connection) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        self.read_within(operation, DEFAULT_TIMEOUT, work).await
    }

    async fn read_within<T: Send + 'static>(
        &self,
        operation: &'static str,
        timeout: Duration,
        work: impl FnOnce(&Connection) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        self.check_open()?;
        if self.readers.path().is_none() {
            let work = move |store: &mut Store| work(&store.connection).map(Ok);
            return self.call(operation, Access::Read, work).await;
        }
        self.on_connection(operation, timeout, |connection| in_snapshot(connection, work)).await
    }

    /// Runs `work` on a connection of its own, off the runtime.
    async fn on_connection<T: Send + 'static>(
        &self,
        operation: &'static str,
        timeout: Duration,
        work: impl FnOnce(&Connection) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        self.check_open()?;
        let deadline = Instant::now().after(timeout);
        let late = |_| EventError::Timeout(format!("{operation} on provider '{}'", super::NAME));
        let turn = Arc::clone(&self.readers.turns).acquire_owned();
        let turn = tokio::time::timeout_at(deadline, turn).await.map_err(late)?.map_err(|_closed| ended())?;
        let (readers, path) = (Arc::clone(&self.readers), self.config.path.clone());
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let mut lent = readers.lend(operation, &path)?;
            lent.run(work).map_err(|error| failed(operation, error))
        });
        let found = match tokio::time::timeout_at(deadline, reading).await.map_err(late)? {
            Ok(found) => found,
            Err(_panicked) => Err(EventError::Provider(format!("{operation}: the reading thread failed"))),
        };
        match found {
            Err(_interrupted) if self.queue.is_stopping() => Err(ended()),
            Err(error) => {
                // It may be the first sign that the file is not where it was; only the writer can open another one.
                let look = |store: &mut Store| {
                    store.look_at_place();
                    Ok(Ok(()))
                };
                drop(self.queue.call(operation, Access::Own, Size::ONE, Duration::ZERO, look).await);
                Err(error)
            }
            found => found,
        }
    }
}

fn in_snapshot<T>(connection: &Connection, work: impl FnOnce(&Connection) -> Sql<T>) -> Sql<T> {
    // It is rolled back in the end: there is nothing to commit, and a commit fails where a damaged page was met.
    work(&*connection.unchecked_transaction()?)
}

impl SqliteProvider {
    /// Reads the whole file and returns what is wrong with it, at most 100 findings; nothing when it is sound.
    ///
    /// Checks the structure of the file, every event and consumer against its checksum, and the counters against the
    /// events. Takes the time to read the file; publishing goes on.
    ///
    /// # Errors
    ///
    /// A [`Backend`](EventError::Backend) error when the file cannot be read at all.
    ///
    /// ```
    /// # use a3s_event::provider::sqlite::{SqliteConfig, SqliteProvider};
    /// # #[tokio::main]
    /// # async fn main() -> a3s_event::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("events.db");
    /// let provider = SqliteProvider::connect(SqliteConfig::file(path)).await?;
    /// for finding in provider.integrity_check().await? {
    ///     eprintln!("{finding}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn integrity_check(&self) -> Result<Vec<String>> {
        self.shared.read_within("integrity_check", MAINTENANCE_TIMEOUT, integrity::check).await
    }

    /// Writes a copy of the stream as it is now to a new file, which only its owner can read. Publishing goes on.
    ///
    /// # Errors
    ///
    /// A [`Backend`](EventError::Backend) error of the kind [`Storage`](crate::ErrorKind::Storage) when the file exists
    /// or cannot be written; nothing is left of it then.
    ///
    /// ```
    /// # use a3s_event::EventProvider;
    /// # use a3s_event::provider::sqlite::{SqliteConfig, SqliteProvider};
    /// # #[tokio::main]
    /// # async fn main() -> a3s_event::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("events.db");
    /// let provider = SqliteProvider::connect(SqliteConfig::file(path)).await?;
    /// let copy = folder.path().join("events-monday.db");
    /// provider.backup(&copy).await?;
    ///
    /// // A copy is a file like any other.
    /// let restored = SqliteProvider::connect(SqliteConfig::file(copy)).await?;
    /// assert_eq!(restored.info().await?.messages, provider.info().await?.messages);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn backup(&self, path: impl Into<PathBuf>) -> Result<()> {
        let path: PathBuf = path.into();
        self.shared.check_open()?;
        if self.shared.readers.path().is_none() {
            return Err(crate::provider::support::unsupported("backup of a database in memory", super::NAME));
        }
        let target = path.clone();
        let copy = move |connection: &Connection| Ok(copy(connection, &path));
        self.shared.on_connection("backup", MAINTENANCE_TIMEOUT, copy).await?.map_err(|failure| match failure
        {
            NotCopied::Sql(error) => file_failed("backup", target, error),
            NotCopied::Io(error) => io_failed("backup", target, error),
        })
    }

    /// Moves what is in the write-ahead log into the file, and empties the log unless someone reads from it.
    ///
    /// It happens by itself while events are published, and when the last provider of a file is closed; this is for a
    /// moment of one's own, as before a copy of the folder.
    ///
    /// # Errors
    ///
    /// A [`Backend`](EventError::Backend) error when the file cannot be written.
    ///
    /// ```
    /// # use a3s_event::{Event, EventProvider};
    /// # use a3s_event::provider::sqlite::{SqliteConfig, SqliteProvider};
    /// # #[tokio::main]
    /// # async fn main() -> a3s_event::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let provider = SqliteProvider::connect(SqliteConfig::file(folder.path().join("events.db"))).await?;
    /// provider.publish(&Event::new("events.a", "a", "", "doc", serde_json::json!(1))).await?;
    /// assert!(provider.file_info().await?.wal_bytes > 0);
    /// provider.checkpoint().await?;
    /// assert_eq!(provider.file_info().await?.wal_bytes, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn checkpoint(&self) -> Result<()> {
        if self.shared.readers.path().is_none() {
            return Ok(());
        }
        let checkpoint =
            |connection: &Connection| connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        self.shared.on_connection("checkpoint", MAINTENANCE_TIMEOUT, checkpoint).await
    }

    /// How much the file takes; all zero for a database in memory. How many events are in it, and their size, says
    /// [`info`](crate::EventProvider::info).
    ///
    /// # Errors
    ///
    /// A [`Backend`](EventError::Backend) error when the file cannot be read.
    ///
    /// ```
    /// # use a3s_event::provider::sqlite::{SqliteConfig, SqliteProvider};
    /// # #[tokio::main]
    /// # async fn main() -> a3s_event::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let provider = SqliteProvider::connect(SqliteConfig::file(folder.path().join("events.db"))).await?;
    /// let sizes = provider.file_info().await?;
    /// println!("{} bytes, {} in the log, {} free", sizes.file_bytes, sizes.wal_bytes, sizes.free_bytes);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn file_info(&self) -> Result<FileInfo> {
        // SQLite names the log after the file that a link leads to.
        let path = self.shared.readers.path().and_then(|path| path.canonicalize().ok());
        let read = move |connection: &Connection| {
            let size_of = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
            let pages: u64 = unsigned(pragma(connection, "freelist_count")?);
            let page_size: u64 = unsigned(pragma(connection, "page_size")?);
            Ok(FileInfo {
                file_bytes: path.as_deref().map_or(0, size_of),
                wal_bytes: path.as_deref().map_or(0, |path| size_of(&side_file(path, "-wal"))),
                free_bytes: if path.is_some() { pages * page_size } else { 0 },
            })
        };
        self.shared.read("file_info", read).await
    }
}

/// Why there is no copy.
enum NotCopied {
    Sql(rusqlite::Error),
    Io(std::io::Error),
}

/// A path as SQLite takes it in a statement: in the bytes of the system, which need not be UTF-8.
struct PathText(Vec<u8>);

impl ToSql for PathText {
    fn to_sql(&self) -> Sql<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(&self.0)))
    }
}

fn copy(connection: &Connection, target: &Path) -> std::result::Result<(), NotCopied> {
    // Made by us, so that nobody else can read it at any moment; SQLite takes an empty file as a new one.
    let file = create_new_private(target).map_err(NotCopied::Io)?;
    let copied = vacuum_into(connection, target, &file);
    if copied.is_err() {
        // The failure is what matters; a leftover says so when the next backup meets it.
        let _ = std::fs::remove_file(target);
    }
    copied
}

fn vacuum_into(connection: &Connection, target: &Path, file: &File) -> std::result::Result<(), NotCopied> {
    // Absolute: SQLite takes a name that begins with "file:" for a URI.
    let absolute = std::path::absolute(target).map_err(NotCopied::Io)?;
    let path = PathText(absolute.into_os_string().into_encoded_bytes());
    // The one statement that a connection for reading may not run writes to another file.
    connection.pragma_update(None, "query_only", false).map_err(NotCopied::Sql)?;
    let copied = connection.execute("VACUUM INTO ?1", [path]);
    connection.pragma_update(None, "query_only", true).map_err(NotCopied::Sql)?;
    copied.map_err(NotCopied::Sql)?;
    file.sync_all().map_err(NotCopied::Io)?;
    // What was written has to be what the path names.
    if file.metadata().map_err(NotCopied::Io)?.len() == 0 {
        return Err(NotCopied::Io(std::io::Error::other("SQLite wrote to another file")));
    }
    private_file::sync_parent(target).map_err(NotCopied::Io)
}
