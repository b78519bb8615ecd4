//! Conversion of SQLite failures into errors of the contract.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{ErrorCode, ffi};

use crate::error::{BackendError, ErrorKind, EventError};

/// Result of a call to SQLite.
pub(super) type Sql<T> = rusqlite::Result<T>;

/// A failure that every caller of one transaction gets.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    cause: Cause,
    /// The file, once it is known.
    file: Option<Arc<Path>>,
    /// True if the transaction may still have been committed.
    outcome_unknown: bool,
}

#[derive(Debug, Clone)]
enum Cause {
    Sqlite(Arc<rusqlite::Error>),
    Outage(Outage),
}

/// Reason why nothing is written until the file is reopened.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Outage {
    #[error("the disk lost earlier writes; writes are refused until the log is on the disk again")]
    LostWrites(#[source] Arc<rusqlite::Error>),
    #[error("writing failed repeatedly; writes are refused until the file is reopened")]
    Failing(#[source] Arc<rusqlite::Error>),
    #[error("the file was deleted, moved or replaced; writes are refused until a file exists at its path")]
    Replaced,
    #[error("the log of the file was deleted or moved; writes are refused until the file is reopened")]
    LostLog,
}

impl Outage {
    pub(super) fn is_replaced(&self) -> bool {
        matches!(self, Self::Replaced)
    }
}

impl Failure {
    /// Returns a failure before the commit: nothing is stored.
    pub(super) fn rolled_back(cause: rusqlite::Error) -> Self {
        Self { cause: Cause::Sqlite(Arc::new(cause)), file: None, outcome_unknown: false }
    }

    /// Returns the failure of a transaction that was not begun because of an outage.
    pub(super) fn refused(outage: Outage) -> Self {
        Self { cause: Cause::Outage(outage), file: None, outcome_unknown: false }
    }

    /// Returns the failure of a commit to a file that may be unreachable.
    pub(super) fn committed_nowhere(outage: Outage) -> Self {
        Self { cause: Cause::Outage(outage), file: None, outcome_unknown: true }
    }

    /// Returns a failure of the commit itself.
    pub(super) fn in_commit(cause: rusqlite::Error) -> Self {
        // SQLite detects a full disk or a lock before it writes the commit record. It may detect a failing device
        // afterwards.
        let outcome_unknown = cause.sqlite_error_code() == Some(ErrorCode::SystemIoFailure);
        Self { cause: Cause::Sqlite(Arc::new(cause)), file: None, outcome_unknown }
    }

    /// Names the file that the failure concerns.
    pub(super) fn of_file(self, path: &Path) -> Self {
        Self { file: Some(path.into()), ..self }
    }

    /// Returns the error of SQLite, if it is the cause.
    pub(super) fn sqlite(&self) -> Option<&Arc<rusqlite::Error>> {
        match &self.cause {
            Cause::Sqlite(cause) => Some(cause),
            Cause::Outage(_) => None,
        }
    }

    /// Returns the outage that was detected after the commit, if any.
    pub(super) fn outage_that_begins(&self) -> Option<&Outage> {
        match &self.cause {
            Cause::Outage(outage) if self.outcome_unknown => Some(outage),
            Cause::Outage(_) | Cause::Sqlite(_) => None,
        }
    }

    pub(super) fn to_error(&self, operation: &'static str) -> EventError {
        let error = match &self.cause {
            Cause::Sqlite(cause) => backend_error(operation, cause, self.with_file(Arc::clone(cause))),
            Cause::Outage(outage) => {
                let source = self.with_file(outage.clone());
                let error = BackendError::new(super::NAME, operation, ErrorKind::Storage, source);
                // The stored events are gone with the file. An operator must see this error, so it is not retryable.
                if outage.is_replaced() { error } else { error.retryable() }
            }
        };
        if self.outcome_unknown { error.may_be_stored().into() } else { error.into() }
    }

    /// Puts the file in front of the cause.
    fn with_file<E>(&self, source: E) -> Box<dyn std::error::Error + Send + Sync>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        match &self.file {
            Some(path) => Box::new(FileFailure { path: path.to_path_buf(), source }),
            None => Box::new(source),
        }
    }
}

/// Returns true if earlier writes may be missing on the disk. The operating system may discard what it could not write,
/// and the next success does not report it.
pub(super) fn is_lost_write(cause: &rusqlite::Error) -> bool {
    let code = cause.sqlite_error().map(|error| error.extended_code);
    matches!(code, Some(ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC))
}

/// Returns true if the cause may be in the open files, so that reopening them can help.
pub(super) fn is_failing(cause: &rusqlite::Error) -> bool {
    matches!(cause.sqlite_error_code(), Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen))
}

/// Returns true if a row or page is damaged, which affects only calls that need it.
pub(super) fn is_damage(cause: &rusqlite::Error) -> bool {
    cause.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt)
        || matches!(cause, rusqlite::Error::FromSqlConversionFailure(..))
}

/// A failure that concerns the file itself.
#[derive(Debug, thiserror::Error)]
#[error("file '{}'", path.display())]
pub(super) struct FileFailure<E: std::error::Error + 'static> {
    path: PathBuf,
    source: E,
}

/// Returns the error for a failure of the file at `path`, which only one caller gets.
pub(super) fn file_failed(
    operation: &'static str,
    path: impl Into<PathBuf>,
    cause: rusqlite::Error,
) -> EventError {
    let cause = Arc::new(cause);
    let source = FileFailure { path: path.into(), source: Arc::clone(&cause) };
    backend_error(operation, &cause, Box::new(source)).into()
}

/// Does the same for an error of the file system.
pub(super) fn io_failed(
    operation: &'static str,
    path: impl Into<PathBuf>,
    cause: std::io::Error,
) -> EventError {
    let source = FileFailure { path: path.into(), source: cause };
    BackendError::new(super::NAME, operation, ErrorKind::Storage, source).into()
}

fn backend_error(
    operation: &'static str,
    cause: &rusqlite::Error,
    source: Box<dyn std::error::Error + Send + Sync>,
) -> BackendError {
    let (kind, retryable) = match cause.sqlite_error_code() {
        // Another process wrote for longer than the busy timeout.
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (ErrorKind::Timeout, true),
        Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => {
            (ErrorKind::Storage, true)
        }
        _ => (ErrorKind::Storage, false),
    };
    let error = BackendError::new(super::NAME, operation, kind, source);
    if retryable { error.retryable() } else { error }
}
