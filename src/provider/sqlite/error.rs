//! From failures of SQLite to errors of the contract.

use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::{ErrorCode, ffi};

use crate::error::{BackendError, ErrorKind, EventError};

/// What SQLite answers.
pub(super) type Sql<T> = rusqlite::Result<T>;

/// A failure that every caller of one transaction gets.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    cause: Arc<rusqlite::Error>,
    /// Whether the transaction may have been committed all the same.
    outcome_unknown: bool,
    /// Whether nothing was tried, because of what had failed before.
    refused: bool,
}

impl Failure {
    /// Before the commit: nothing is stored.
    pub(super) fn rolled_back(cause: rusqlite::Error) -> Self {
        Self { cause: Arc::new(cause), outcome_unknown: false, refused: false }
    }

    /// Not begun, because of an earlier failure.
    pub(super) fn refused(cause: Arc<rusqlite::Error>) -> Self {
        Self { cause, outcome_unknown: false, refused: true }
    }

    /// The commit itself failed.
    pub(super) fn in_commit(cause: rusqlite::Error) -> Self {
        // A full disk or a lock is found before the commit record is written; a failing device may be found after.
        let outcome_unknown = cause.sqlite_error_code() == Some(ErrorCode::SystemIoFailure);
        Self { cause: Arc::new(cause), outcome_unknown, refused: false }
    }

    /// The failure, if it leaves it open what is on the disk of all that was written before: the system forgets what it
    /// could not write, so that the next success says nothing about it.
    pub(super) fn lost_writes(&self) -> Option<Arc<rusqlite::Error>> {
        let code = self.cause.sqlite_error().map(|error| error.extended_code);
        let is_lost = matches!(code, Some(ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC));
        is_lost.then(|| Arc::clone(&self.cause))
    }

    pub(super) fn to_error(&self, operation: &'static str) -> EventError {
        if self.refused {
            let source = LostWrites(Arc::clone(&self.cause));
            return BackendError::new(super::NAME, operation, ErrorKind::Storage, source).into();
        }
        let error = backend_error(operation, &self.cause, Box::new(Arc::clone(&self.cause)));
        if self.outcome_unknown { error.may_be_stored().into() } else { error.into() }
    }
}

/// Why nothing more is written.
#[derive(Debug, thiserror::Error)]
#[error(
    "the disk could not keep what was written before: nothing is written until the provider is opened again"
)]
struct LostWrites(#[source] Arc<rusqlite::Error>);

/// Whether a row or page is damaged, which concerns only those who need it.
pub(super) fn is_damage(cause: &rusqlite::Error) -> bool {
    cause.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt)
        || matches!(cause, rusqlite::Error::FromSqlConversionFailure(..))
}

/// A failure of one operation that only its caller sees.
pub(super) fn failed(operation: &'static str, cause: rusqlite::Error) -> EventError {
    Failure::rolled_back(cause).to_error(operation)
}

/// A failure that concerns the file itself.
#[derive(Debug, thiserror::Error)]
#[error("file '{}'", path.display())]
pub(super) struct FileFailure<E: std::error::Error + 'static> {
    path: PathBuf,
    source: E,
}

/// A failure to open, make or copy the file at `path`.
pub(super) fn file_failed(
    operation: &'static str,
    path: impl Into<PathBuf>,
    cause: rusqlite::Error,
) -> EventError {
    let cause = Arc::new(cause);
    let source = FileFailure { path: path.into(), source: Arc::clone(&cause) };
    backend_error(operation, &cause, Box::new(source)).into()
}

/// The same for what the file system answers.
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
        // Another process writes, and did not end within the busy timeout.
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (ErrorKind::Timeout, true),
        Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => {
            (ErrorKind::Storage, true)
        }
        _ => (ErrorKind::Storage, false),
    };
    let error = BackendError::new(super::NAME, operation, kind, source);
    if retryable { error.retryable() } else { error }
}
