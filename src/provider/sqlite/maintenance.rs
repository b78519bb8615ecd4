//! Reads beside the writer thread, and maintenance of the file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use tokio::time::Instant;

use super::error::{Sql, file_failed, io_failed};
use super::integrity;
use super::queue::{Access, Size, ended};
use super::schema::{create_new_private, pragma, side_file};
use super::store::{Store, unsigned};
use super::{Shared, SqliteProvider};
use crate::deadline::After;
use crate::error::{EventError, Result};
use crate::private_file;
use crate::provider::DEFAULT_TIMEOUT;

/// Timeout of an operation on the whole file.
const MAINTENANCE_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Sizes of the database file and its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileInfo {
    /// Size of the file itself in bytes.
    pub file_bytes: u64,
    /// Size of its write-ahead log in bytes.
    pub wal_bytes: u64,
    /// Space in the file that is free for new events, in bytes.
    pub free_bytes: u64,
}

impl Shared {
    /// Runs `work` in one snapshot of the file, outside the runtime and beside the writer thread.
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

    /// Runs `work` on a separate connection, outside the runtime.
    async fn on_connection<T: Send + 'static>(
        &self,
        operation: &'static str,
        timeout: Duration,
        work: impl FnOnce(&Connection) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        self.check_open()?;
        let deadline = Instant::now().after(timeout);
        let late = |_| {
            let path = self.config.path.display();
            EventError::Timeout(format!("{operation} on provider '{}', file '{path}'", super::NAME))
        };
        let turn = Arc::clone(&self.readers.turns).acquire_owned();
        let turn = tokio::time::timeout_at(deadline, turn).await.map_err(late)?.map_err(|_closed| ended())?;
        let (readers, path) = (Arc::clone(&self.readers), self.config.path.clone());
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let mut lent = readers.lend(operation, &path)?;
            lent.run(work).map_err(|error| file_failed(operation, &path, error))
        });
        let found = match tokio::time::timeout_at(deadline, reading).await.map_err(late)? {
            Ok(found) => found,
            Err(_panicked) => Err(EventError::Provider(format!("{operation}: the reading thread failed"))),
        };
        match found {
            Err(_interrupted) if self.queue.is_stopping() => Err(ended()),
            Err(error) => {
                // The error may mean that the file was moved. The writer checks this, because only it can open another
                // file.
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
    // The transaction is rolled back: there is nothing to commit, and a commit fails after a damaged page was read.
    work(&*connection.unchecked_transaction()?)
}

impl SqliteProvider {
    /// Reads the whole file and returns what is wrong with it: at most 100 findings, none if the file is sound.
    ///
    /// Checks the structure of the file, every event and consumer against its checksum, and the counters against the
    /// events. Takes as long as reading the file; publishing continues.
    ///
    /// # Errors
    ///
    /// A [`Backend`](EventError::Backend) error if the file cannot be read at all.
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

    /// Writes a copy of the current stream to a new file, which only its owner can read. Publishing continues.
    ///
    /// # Errors
    ///
    /// - [`EventError::Unsupported`] for a database in memory.
    /// - A [`Backend`](EventError::Backend) error of the kind [`Storage`](crate::ErrorKind::Storage) if the file exists
    ///   or cannot be written. An incomplete copy is deleted.
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

    /// Copies the write-ahead log into the file, and empties the log unless another connection reads from it.
    ///
    /// The provider does this by itself while events are published, and when the last provider of a file is closed.
    /// Call it to choose the time yourself, such as before you copy the folder.
    ///
    /// # Errors
    ///
    /// A [`Backend`](EventError::Backend) error if the file cannot be written.
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

    /// Returns the sizes of the file; all zero for a database in memory. [`info`](crate::EventProvider::info) returns
    /// the number and the size of the events.
    ///
    /// # Errors
    ///
    /// A [`Backend`](EventError::Backend) error if the file cannot be read.
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
        // SQLite names the log after the target of a symbolic link.
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

/// Reason why the copy failed.
enum NotCopied {
    Sql(rusqlite::Error),
    Io(std::io::Error),
}

/// A path as a parameter of a statement, in the bytes of the operating system, which need not be UTF-8.
struct PathText(Vec<u8>);

impl ToSql for PathText {
    fn to_sql(&self) -> Sql<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(&self.0)))
    }
}

fn copy(connection: &Connection, target: &Path) -> std::result::Result<(), NotCopied> {
    // Created here, so that only its owner can read it at any time. SQLite accepts an empty file as a new one.
    let file = create_new_private(target).map_err(NotCopied::Io)?;
    let copied = vacuum_into(connection, target, &file);
    if copied.is_err() {
        // The first error is returned. If the file remains, the next backup reports that it exists.
        let _ = std::fs::remove_file(target);
    }
    copied
}

fn vacuum_into(connection: &Connection, target: &Path, file: &File) -> std::result::Result<(), NotCopied> {
    // SQLite would parse a relative name that begins with "file:" as a URI.
    let absolute = std::path::absolute(target).map_err(NotCopied::Io)?;
    let path = PathText(absolute.into_os_string().into_encoded_bytes());
    // `VACUUM INTO` writes to another file only, but a query-only connection refuses it.
    connection.pragma_update(None, "query_only", false).map_err(NotCopied::Sql)?;
    let copied = connection.execute("VACUUM INTO ?1", [path]);
    connection.pragma_update(None, "query_only", true).map_err(NotCopied::Sql)?;
    copied.map_err(NotCopied::Sql)?;
    file.sync_all().map_err(NotCopied::Io)?;
    // An empty file means that the path leads to another file by now.
    if file.metadata().map_err(NotCopied::Io)?.len() == 0 {
        return Err(NotCopied::Io(std::io::Error::other("SQLite wrote to another file")));
    }
    private_file::sync_parent(target).map_err(NotCopied::Io)
}
