//! The database file: its permissions, its schema, and the migration from older versions.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::config::SqliteConfig;
use super::error::{Sql, file_failed, io_failed};
use crate::error::{EventError, Result};
use crate::private_file;

/// Application id that marks the files of this provider: "A3SE".
const APPLICATION_ID: i32 = 0x4133_5345;
/// First SQLite version without the WAL-reset bug, which can corrupt a file that several connections write.
const FIRST_SAFE_SQLITE: i32 = 3_051_003;
/// Schema version that this program creates.
const NEWEST: usize = 2;
/// Statements that each migrate the file from the previous version to the next. Entries are only appended, never
/// changed.
const MIGRATIONS: [&str; NEWEST] = [include_str!("schema_1.sql"), include_str!("schema_2.sql")];
/// Maximum number of prepared statements cached per connection; more than the provider has.
const STATEMENTS: usize = 64;

/// Opens the file for writing and migrates it if needed. Creates it if it does not exist and `create` is true.
pub(super) fn open_writer(config: &SqliteConfig, create: bool) -> Result<Connection> {
    check_sqlite_version(rusqlite::version_number())?;
    let (prefix, busy_timeout) = (config.subject_prefix.as_str(), config.busy_timeout);
    let Some(path) = config.file_path() else {
        let mut connection = Connection::open_in_memory().map_err(|e| file_failed("open", ":memory:", e))?;
        configure(&connection, busy_timeout).map_err(|e| file_failed("open", ":memory:", e))?;
        migrate(&mut connection, 0, prefix).map_err(|e| file_failed("open", ":memory:", e))?;
        return Ok(connection);
    };
    if !create && !path.exists() {
        let path = path.display();
        return Err(EventError::Config(format!(
            "sqlite file '{path}': does not exist, and create_if_missing is false"
        )));
    }
    create_private(path)?;
    let fail = |error| file_failed("open", path, error);
    // The flags never create the file: if it was deleted meanwhile, SQLite would create it readable by everyone.
    let mut connection = Connection::open_with_flags(path, flags()).map_err(fail)?;
    if connection.is_readonly("main").map_err(fail)? {
        // SQLite opens a read-only file without an error, but consumers must store their positions in it.
        let read_only = io::Error::new(io::ErrorKind::PermissionDenied, "it is read-only");
        return Err(io_failed("open", path, read_only));
    }
    configure(&connection, busy_timeout).map_err(fail)?;
    let version = check_ours(&connection, path)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).map_err(fail)?;
    migrate(&mut connection, version, prefix).map_err(fail)?;
    check_prefix(&connection, path, prefix)?;
    // Automatic checkpoints do not report a failing disk, so the writer thread runs them and checks the outcome.
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(())).map_err(fail)?;
    set_cache_size(&connection, config.cache_size).map_err(fail)?;
    Ok(connection)
}

/// Sets the maximum bytes of the file that a connection caches in memory.
fn set_cache_size(connection: &Connection, bytes: u64) -> Sql<()> {
    // SQLite reads a negative size as KiB.
    let kib = i64::try_from((bytes / 1024).max(1)).unwrap_or(i64::MAX);
    connection.pragma_update(None, "cache_size", -kib)
}

/// Opens another connection, for reading, to a file that [`open_writer`] has prepared.
pub(super) fn open_reader(path: &Path, busy_timeout: Duration) -> Sql<Connection> {
    let connection = Connection::open_with_flags(path, flags())?;
    configure(&connection, busy_timeout)?;
    // Only the writer, which closes last, copies the log into the file.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

fn flags() -> OpenFlags {
    // Only one thread uses a connection at a time, so that SQLite needs no lock of its own. The flags never create the
    // file: that is done before, readable by its owner only.
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

fn configure(connection: &Connection, busy_timeout: Duration) -> Sql<()> {
    connection.busy_timeout(busy_timeout)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // A file from elsewhere must not run its own code.
    connection.pragma_update(None, "trusted_schema", false)
}

fn check_sqlite_version(linked: i32) -> Result<()> {
    if linked >= FIRST_SAFE_SQLITE {
        return Ok(());
    }
    Err(EventError::Config(format!(
        "the SQLite of this program has version {linked}: at least {FIRST_SAFE_SQLITE} is required; older ones can corrupt \
         a file that several connections write"
    )))
}

/// Creates the file, readable by the owner only. SQLite gives its side files the same mode. The folder must exist: a typo
/// in the path must not create another one.
fn create_private(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(EventError::Config(format!("sqlite file '{}': is a directory", path.display())));
    }
    if path.exists() {
        return Ok(());
    }
    let fail = |error| io_failed("open", path, error);
    let target = link_target(path).map_err(fail)?;
    if let Some(folder) = target.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists())
    {
        return Err(EventError::Config(format!(
            "sqlite file '{}': the folder '{}' does not exist; create it, or correct the path",
            path.display(),
            folder.display()
        )));
    }
    match create_new_private(&target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(fail(error)),
        Err(_) => Ok(()),
        Ok(file) => file.sync_all().and_then(|()| private_file::sync_parent(&target)).map_err(fail),
    }
}

/// Resolves symbolic links, including dangling ones. SQLite follows those and `create_new` does not.
fn link_target(path: &Path) -> io::Result<PathBuf> {
    /// Maximum number of links to follow, as on Linux.
    const MAX_LINKS: usize = 40;
    let mut target = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&target) {
            Ok(link) => target = target.parent().unwrap_or(Path::new("")).join(link),
            Err(_not_a_link) => return Ok(target),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

/// Returns the name of a file that SQLite keeps beside another one.
pub(super) fn side_file(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Creates an empty file that only its owner can read.
pub(super) fn create_new_private(path: &Path) -> io::Result<File> {
    private_file::create_options().create_new(true).open(path)
}

/// Returns the version of the file. Refuses a file of another program or of a newer version before anything is written
/// to it.
fn check_ours(connection: &Connection, path: &Path) -> Result<usize> {
    let fail = |error| file_failed("open", path, error);
    let refuse = |why: &str| Err(EventError::Config(format!("sqlite file '{}': {why}", path.display())));
    // One snapshot, because another process may be creating the file.
    let connection = connection.unchecked_transaction().map_err(fail)?;
    let application_id: i32 = pragma(&connection, "application_id").map_err(fail)?;
    let version: i32 = pragma(&connection, "user_version").map_err(fail)?;
    if application_id == 0 && version == 0 {
        let tables: u32 =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(fail)?;
        return if tables == 0 { Ok(0) } else { refuse("is a database of another program") };
    }
    if application_id != APPLICATION_ID {
        return refuse("is a database of another program");
    }
    match usize::try_from(version) {
        Ok(version) if version <= NEWEST => Ok(version),
        _ => refuse(&format!(
            "has version {version}, but this program supports versions up to {}; it was not changed",
            NEWEST
        )),
    }
}

/// Applies the migrations after `version` in one transaction. Another process may do the same concurrently.
fn migrate(connection: &mut Connection, version: usize, prefix: &str) -> Sql<()> {
    if version == NEWEST {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let version: i32 = pragma(&transaction, "user_version")?;
    for migration in MIGRATIONS.iter().skip(usize::try_from(version).unwrap_or(usize::MAX)) {
        transaction.execute_batch(migration)?;
    }
    if version == 0 {
        transaction.execute("INSERT INTO stream (id, prefix) VALUES (1, ?1)", [prefix])?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", NEWEST as i64)?;
    transaction.commit()
}

/// Checks the prefix of the file. A stream keeps its prefix, because a filter for everything would otherwise miss
/// events.
fn check_prefix(connection: &Connection, path: &Path, prefix: &str) -> Result<()> {
    let existing: Option<String> = connection
        .query_row("SELECT prefix FROM stream", [], |row| row.get(0))
        .optional()
        .map_err(|error| file_failed("open", path, error))?;
    match existing {
        Some(existing) if existing == prefix => Ok(()),
        existing => Err(EventError::Conflict {
            resource: format!("sqlite file '{}'", path.display()),
            field: "subject_prefix".to_owned(),
            existing: existing.unwrap_or_default(),
            requested: prefix.to_owned(),
        }),
    }
}

/// Returns the value of a pragma.
pub(super) fn pragma<T: rusqlite::types::FromSql>(connection: &Connection, name: &str) -> Sql<T> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linked_sqlite_is_safe_and_an_older_one_is_refused() {
        check_sqlite_version(rusqlite::version_number()).unwrap();
        let error = check_sqlite_version(3_051_002).unwrap_err();
        assert!(error.to_string().contains("3051002"), "{error}");
    }
}
