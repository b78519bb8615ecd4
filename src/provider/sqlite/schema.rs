//! The file: who may read it, what is in it, and how older versions are brought up to date.

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

/// Marks a file as ours: "A3SE".
const APPLICATION_ID: i32 = 0x4133_5345;
/// The first SQLite without the WAL-reset bug, which can corrupt a file that several connections write.
const FIRST_SAFE_SQLITE: i32 = 3_051_003;
/// The version that this program makes.
const NEWEST: usize = 2;
/// Statements that each take the file from the version before to the next one. Never changed, only added to.
const MIGRATIONS: [&str; NEWEST] = [include_str!("schema_1.sql"), include_str!("schema_2.sql")];
/// Prepared statements kept per connection; more than the provider has.
const STATEMENTS: usize = 64;

/// Opens the file for writing, bringing it up to date where needed. It is made where it does not exist, if `create_if_missing` allows.
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
    // It exists: what is gone again by now must not be made for everyone to read.
    let mut connection = Connection::open_with_flags(path, flags()).map_err(fail)?;
    if connection.is_readonly("main").map_err(fail)? {
        // SQLite opens it all the same; what cannot be written is no place for the positions of consumers.
        let read_only = io::Error::new(io::ErrorKind::PermissionDenied, "it is read-only");
        return Err(io_failed("open", path, read_only));
    }
    configure(&connection, busy_timeout).map_err(fail)?;
    let version = check_ours(&connection, path)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).map_err(fail)?;
    migrate(&mut connection, version, prefix).map_err(fail)?;
    check_prefix(&connection, path, prefix)?;
    // Its own would say nothing when the disk fails: the writer thread runs them and looks at the outcome.
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(())).map_err(fail)?;
    set_cache_size(&connection, config.cache_size).map_err(fail)?;
    Ok(connection)
}

/// How much of the file a connection keeps in memory at most.
fn set_cache_size(connection: &Connection, bytes: u64) -> Sql<()> {
    // Below zero SQLite counts in KiB.
    let kib = i64::try_from((bytes / 1024).max(1)).unwrap_or(i64::MAX);
    connection.pragma_update(None, "cache_size", -kib)
}

/// Opens another connection to a file that [`open_writer`] has prepared, for reading.
pub(super) fn open_reader(path: &Path, busy_timeout: Duration) -> Sql<Connection> {
    let connection = Connection::open_with_flags(path, flags())?;
    configure(&connection, busy_timeout)?;
    // What is in the log is the business of the writer, which closes last.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

fn flags() -> OpenFlags {
    // One thread uses a connection at a time, so that SQLite needs no lock of its own.
    // None of them makes the file: that is done before, for its owner only.
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

fn configure(connection: &Connection, busy_timeout: Duration) -> Sql<()> {
    connection.busy_timeout(busy_timeout)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // A file from elsewhere must not run code of its own.
    connection.pragma_update(None, "trusted_schema", false)
}

fn check_sqlite_version(linked: i32) -> Result<()> {
    if linked >= FIRST_SAFE_SQLITE {
        return Ok(());
    }
    Err(EventError::Config(format!(
        "the SQLite of this program has version {linked}: at least {FIRST_SAFE_SQLITE} is needed, older ones can corrupt \
         a file that several connections write"
    )))
}

/// Makes the file, and its folder, so that only its owner can read it. SQLite gives its side files the same mode.
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
        private_file::create_folder(folder).map_err(|error| io_failed("open", folder, error))?;
    }
    match create_new_private(&target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(fail(error)),
        Err(_) => Ok(()),
        Ok(file) => file.sync_all().and_then(|()| private_file::sync_parent(&target)).map_err(fail),
    }
}

/// Where a link that leads nowhere would lead: `create_new` does not follow it, and SQLite does.
fn link_target(path: &Path) -> io::Result<PathBuf> {
    /// As many as Linux follows.
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

/// The name of a file that SQLite keeps beside another one.
pub(super) fn side_file(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes an empty file that only its owner can read.
pub(super) fn create_new_private(path: &Path) -> io::Result<File> {
    private_file::create_options().create_new(true).open(path)
}

/// Refuses a file that is not ours, or newer than this program, before anything is written to it. Returns its version.
fn check_ours(connection: &Connection, path: &Path) -> Result<usize> {
    let fail = |error| file_failed("open", path, error);
    let refuse = |why: &str| Err(EventError::Config(format!("sqlite file '{}': {why}", path.display())));
    // One snapshot: another process may be making the file at this moment.
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
            "has version {version}, this program knows versions up to {}: it was left untouched",
            NEWEST
        )),
    }
}

/// Applies what is newer than `version`, all or nothing. Another process may do the same at this moment.
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

/// A stream keeps the prefix that it was made with, or filters would stop to mean everything.
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

/// The value of a pragma.
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
