//! Detects that the file cannot be written, and ends the outage.
//!
//! An outage begins when written data may be lost, or is written to an unreachable file. From then on, writes are
//! refused until three steps have succeeded:
//!
//! - The file is opened again.
//! - Its log is verified and written to the disk once more.
//! - All of the log is copied into the file.
//!
//! The provider repeats the attempts with growing pauses.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, params};

use super::error::{Failure, Outage, Sql, file_failed, is_failing, is_lost_write};
use super::log::{self, LogState, NotRenewed};
use super::place::{Displaced, Place};
use super::queue::Access;
use super::readers::Readers;
use super::schema::open_writer;
use super::store::{Store, signed};
use crate::deadline::After;
use crate::provider::support::Backoff;

/// Pauses between attempts to end an outage.
const RECOVER: Backoff =
    Backoff::exponential(Duration::from_millis(100), Duration::from_secs(10)).jitter(0.0);
/// Number of consecutive failed transactions after which the file is reopened.
const MAX_FAILURES: u32 = 3;
/// Number of uncopied frames in the log that triggers a checkpoint; the default of SQLite.
const CHECKPOINT_FRAMES: u64 = 1_000;
/// Length of a long log in frames. Every transaction then tries to copy the rest, until no reader prevents it.
const LONG_LOG: u64 = 4 * CHECKPOINT_FRAMES;

/// State of the file as a target of writes.
#[derive(Debug)]
pub(super) struct Condition {
    /// Files that SQLite works on; `None` for a database in memory.
    place: Option<Place>,
    outage: Option<Outage>,
    /// True if the connection is a placeholder without a file.
    is_closed: bool,
    /// True if the file was reopened in this outage.
    is_reopened: bool,
    next_attempt: Instant,
    /// Number of attempts that were made or are due.
    attempts: u64,
    /// Number of consecutive transactions that failed in a way that reopening the file can fix.
    failures: u32,
    /// Size in bytes of the largest write that found no room. Once a write of this size succeeds, the disk has room
    /// again.
    refused_bytes: usize,
    /// Newest committed sequence.
    newest: u64,
    /// Length and modification time of the new file at the path, as of the last attempt.
    seen: Option<(u64, Option<SystemTime>)>,
    /// True if the last checkpoint failed.
    checkpoint_failed: bool,
}

/// Reason why an outage continues.
#[derive(Debug, thiserror::Error)]
enum StillOut {
    #[error("{0}")]
    Sql(#[from] rusqlite::Error),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Log(#[from] NotRenewed),
    #[error("{0}")]
    NotOpened(#[from] crate::EventError),
    #[error("the log could not be copied into the file completely")]
    NotCopied,
    #[error("the file does not exist or is still being written")]
    NotThere,
    #[error("the log of the removed file still exists and could not be copied into it")]
    OldLog,
    #[error("the file is no longer at its path")]
    Displaced,
}

impl Condition {
    pub(super) fn new(place: Option<Place>) -> Self {
        Self {
            place,
            outage: None,
            is_closed: false,
            is_reopened: false,
            next_attempt: Instant::now(),
            attempts: 0,
            failures: 0,
            refused_bytes: 0,
            newest: 0,
            seen: None,
            checkpoint_failed: false,
        }
    }

    /// Postpones the next attempt, longer each time.
    fn pause(&mut self) {
        self.attempts += 1;
        self.next_attempt = Instant::now().after(RECOVER.delay(self.attempts));
    }

    /// Returns the time of the next attempt to end the outage, if there is one.
    pub(super) fn next_attempt(&self) -> Option<Instant> {
        self.outage.as_ref().map(|_| self.next_attempt)
    }

    /// Records the outcome of writing this many bytes.
    pub(super) fn note_bytes(&mut self, bytes: usize, outcome: &Result<(), Failure>) {
        match outcome {
            Ok(()) if bytes >= self.refused_bytes => self.refused_bytes = 0,
            Err(failure) if is_full(failure) => self.refused_bytes = self.refused_bytes.max(bytes),
            Ok(()) | Err(_) => {}
        }
    }
}

fn is_full(failure: &Failure) -> bool {
    failure.sqlite().and_then(|cause| cause.sqlite_error_code()) == Some(ErrorCode::DiskFull)
}

impl Store {
    /// Refuses access that is not possible during an outage.
    pub(super) fn refuse(&self, access: Access) -> Result<(), Failure> {
        let Condition { outage, is_closed, .. } = &self.condition;
        match outage {
            Some(outage) if access != Access::Read || *is_closed || outage.is_replaced() => {
                Err(Failure::refused(outage.clone()))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Fails if the last commit went to files that are no longer at their paths.
    pub(super) fn check_place(&self, access: Access) -> Result<(), Failure> {
        match self.displaced() {
            Some(outage) if access != Access::Read => Err(Failure::committed_nowhere(outage)),
            Some(_) | None => Ok(()),
        }
    }

    fn displaced(&self) -> Option<Outage> {
        self.condition.place.as_ref()?.displaced().map(|displaced| match displaced {
            Displaced::File => Outage::Replaced,
            Displaced::SideFile => Outage::LostLog,
        })
    }

    /// Begins an outage if a file is no longer at its path. Called while nothing is written.
    pub(super) fn look_at_place(&mut self) {
        if self.condition.outage.is_none()
            && let Some(outage) = self.displaced()
        {
            self.begin_outage(outage);
        }
    }

    /// Records the outcome of a transaction, and begins an outage if needed.
    pub(super) fn note(&mut self, access: Access, outcome: &Result<(), Failure>) {
        match outcome {
            Ok(()) if access != Access::Read => {
                self.condition.failures = 0;
                self.condition.newest = self.known_last().unwrap_or(self.condition.newest);
            }
            Ok(()) => {}
            Err(failure) => {
                if let Some(outage) = failure.outage_that_begins() {
                    self.begin_outage(outage.clone());
                }
                if let Some(cause) = failure.sqlite() {
                    self.note_failure(access, cause);
                }
            }
        }
        if !self.connection.is_autocommit()
            && let Some(cause) = outcome.as_ref().err().and_then(Failure::sqlite)
        {
            // The rollback failed, so the connection is unusable.
            self.begin_outage(Outage::Failing(Arc::clone(cause)));
        }
    }

    fn note_failure(&mut self, access: Access, cause: &Arc<rusqlite::Error>) {
        if is_lost_write(cause) {
            self.begin_outage(Outage::LostWrites(Arc::clone(cause)));
        } else if is_failing(cause) && access != Access::Read {
            self.condition.failures += 1;
            if self.condition.failures >= MAX_FAILURES {
                self.begin_outage(Outage::Failing(Arc::clone(cause)));
            }
        }
    }

    fn begin_outage(&mut self, outage: Outage) {
        let condition = &mut self.condition;
        // A database in memory cannot be reopened.
        if condition.place.is_none()
            || condition.outage.as_ref().is_some_and(|known| known.is_replaced() || !outage.is_replaced())
        {
            return;
        }
        tracing::error!(path = %self.config.path.display(), reason = %outage, "the sqlite file cannot be written");
        (condition.is_reopened, condition.seen) = (false, None);
        condition.attempts = 0;
        condition.pause();
        let is_replaced = outage.is_replaced();
        condition.outage = Some(outage);
        if is_replaced {
            // The files are closed at once, so that a file that was moved away is complete.
            self.condition.next_attempt = Instant::now();
            self.stream_replaced();
            self.condition.newest = 0;
        }
    }

    /// Proves that an event can be stored. Writes one as large as the largest write that found no room, and rolls it
    /// back.
    pub(super) fn probe(&mut self) -> Result<(), Failure> {
        self.look_at_place();
        self.refuse(Access::Write)?;
        let bytes = self.condition.refused_bytes;
        let tried = self.execute("BEGIN IMMEDIATE").and_then(|()| self.write_to_log(bytes));
        if !self.connection.is_autocommit() {
            let rolled_back = self.execute("ROLLBACK");
            tried.and(rolled_back)
        } else {
            tried
        }
        .map_err(Failure::rolled_back)?;
        self.condition.refused_bytes = 0;
        Ok(())
    }

    fn write_to_log(&self, bytes: usize) -> Sql<()> {
        let bytes = signed(bytes as u64);
        self.connection
            .prepare_cached(
                "INSERT INTO events (sequence, subject, stored_at, size, checksum, record)
                 SELECT last_sequence + 1, 0, 0, ?1, 0, zeroblob(?1) FROM stream",
            )?
            .execute(params![bytes])?;
        self.connection.prepare_cached("UPDATE stream SET last_sequence = last_sequence + 1")?.execute([])?;
        // Without this, the write would stay in memory until the rollback.
        self.connection.cache_flush()
    }

    /// Copies the log into the file if the log is long enough.
    pub(super) fn checkpoint_if_due(&mut self) {
        if self.condition.place.is_none() || self.condition.outage.is_some() {
            return;
        }
        let checked = LogState::after(&self.connection, "NOOP").and_then(|LogState { frames, copied }| {
            let left = frames.saturating_sub(copied);
            let is_due = left >= CHECKPOINT_FRAMES || (frames >= LONG_LOG && left > 0);
            if is_due { LogState::after(&self.connection, "PASSIVE").map(drop) } else { Ok(()) }
        });
        match checked {
            Ok(()) => self.condition.checkpoint_failed = false,
            Err(error) => {
                let error = Arc::new(error);
                if is_lost_write(&error) {
                    self.begin_outage(Outage::LostWrites(error));
                } else if !std::mem::replace(&mut self.condition.checkpoint_failed, true) {
                    tracing::warn!(%error, "the log of the sqlite file grows, because it cannot be copied into the file");
                }
            }
        }
    }

    /// Tries to end the outage if an attempt is due.
    pub(super) fn recover_if_due(&mut self, readers: &Readers) {
        let Some(outage) = self.condition.outage.clone() else { return };
        if self.condition.next_attempt > Instant::now() {
            return;
        }
        match self.recover(&outage, readers) {
            Ok(()) => {
                tracing::info!(path = %self.config.path.display(), "the sqlite file is writable again");
                self.condition.outage = None;
                self.condition.failures = 0;
                self.wakeups.everyone = true;
            }
            Err(error) => {
                tracing::warn!(path = %self.config.path.display(), %error, "the sqlite file still cannot be written");
                self.condition.pause();
            }
        }
    }

    fn recover(&mut self, outage: &Outage, readers: &Readers) -> Result<(), StillOut> {
        if !self.condition.is_reopened {
            self.close_file(outage, readers)?;
            self.open_again(outage.is_replaced(), readers)?;
        }
        let Some(place) = &self.condition.place else { return Ok(()) };
        if let Err(error) = log::renew(&self.connection, place.log()) {
            if matches!(error, NotRenewed::Damaged { .. }) {
                // The next attempt reopens the file. Without another connection, SQLite then rebuilds the index from
                // the log.
                self.condition.is_reopened = false;
            }
            return Err(error.into());
        }
        LogState::after(&self.connection, "TRUNCATE")?;
        match place.displaced() {
            None => Ok(()),
            Some(_) => {
                self.condition.is_reopened = false;
                Err(StillOut::Displaced)
            }
        }
    }

    /// Closes the files. Their view of the log is not trusted, and not copied unless no other copy exists.
    fn close_file(&mut self, outage: &Outage, readers: &Readers) -> Result<(), StillOut> {
        readers.renew(None);
        if self.condition.is_closed {
            return Ok(());
        }
        let mut is_copied = false;
        match outage {
            // Only the open files still have the newest data.
            Outage::LostLog => {
                let state = LogState::after(&self.connection, "FULL")?;
                if state.copied < state.frames {
                    return Err(StillOut::NotCopied);
                }
            }
            // Completes a file that was moved away. A deleted file does not need it.
            Outage::Replaced => {
                let state = LogState::after(&self.connection, "PASSIVE");
                is_copied = state.is_ok_and(|state| state.copied == state.frames);
            }
            Outage::LostWrites(_) | Outage::Failing(_) => {}
        }
        self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        // A `Connection` is always open, so an unused one in memory takes its place.
        let stand_in = Connection::open_in_memory()?;
        drop(self.install(stand_in));
        self.condition.is_closed = true;
        if let Some(place) = self.condition.place.as_ref().filter(|_| is_copied) {
            // A program that opens another file at this path would apply the log to it.
            place.remove_side_files();
        }
        Ok(())
    }

    fn open_again(&mut self, is_replaced: bool, readers: &Readers) -> Result<(), StillOut> {
        if is_replaced && !self.is_settled() {
            return Err(StillOut::NotThere);
        }
        if is_replaced && self.condition.place.as_ref().is_some_and(Place::has_left_overs) {
            return Err(StillOut::OldLog);
        }
        let path = &self.config.path;
        let connection = open_writer(&self.config, false)?;
        let place = Place::of(path)?;
        let is_another = self.condition.place.as_ref().is_none_or(|known| known.file() != place.file());
        readers.renew(Some(place.file()));
        drop(self.install(connection));
        self.condition.place = Some(place);
        (self.condition.is_closed, self.condition.is_reopened) = (false, true);
        let last = self.counters().map_err(|error| file_failed("open", &self.config.path, error))?.last;
        if !is_replaced && (is_another || last < self.condition.newest) {
            self.stream_replaced();
        }
        self.condition.newest = last;
        Ok(())
    }

    /// Returns true if a file exists and has not changed since the last attempt, so that no copy into it is in
    /// progress.
    fn is_settled(&mut self) -> bool {
        let found = std::fs::metadata(&self.config.path).ok();
        let found = found.filter(|found| found.len() > 0).map(|found| (found.len(), found.modified().ok()));
        let seen = std::mem::replace(&mut self.condition.seen, found);
        found.is_some() && found == seen
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::super::config::SqliteConfig;
    use super::super::schema::side_file;
    use super::*;

    struct Opened {
        _folder: tempfile::TempDir,
        store: Store,
        readers: Arc<Readers>,
    }

    fn opened() -> Opened {
        let folder = tempfile::tempdir().unwrap();
        let config = Arc::new(SqliteConfig::file(folder.path().join("e.db")));
        let connection = open_writer(&config, true).unwrap();
        let readers = Arc::new(Readers::new(&config));
        let place = Place::of(&config.path).unwrap();
        readers.renew(Some(place.file()));
        Opened { _folder: folder, store: Store::new(connection, Some(place), config), readers }
    }

    fn write(store: &mut Store, subject: &str) -> Result<(), Failure> {
        store.transaction(Access::Write, |store| {
            let mut counters = store.counters()?;
            counters.last += 1;
            store.set_counters(counters);
            store.subject_id(subject).map(drop)
        })
    }

    fn failed_sync() -> Failure {
        Failure::rolled_back(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR_FSYNC), None))
    }

    fn recover(store: &mut Store, readers: &Readers) {
        store.condition.next_attempt = Instant::now();
        store.recover_if_due(readers);
    }

    #[test]
    fn after_a_failed_sync_nothing_is_written_until_the_log_was_put_on_the_disk_again() {
        let Opened { mut store, readers, _folder } = opened();
        write(&mut store, "events.a").unwrap();
        store.note(Access::Sync, &Err(failed_sync()));
        let refused = write(&mut store, "events.b").unwrap_err().to_error("publish");
        assert!(refused.is_retryable() && !refused.may_be_stored(), "{refused}");
        assert!(store.probe().is_err());
        store.transaction(Access::Read, |store| store.counters().map(drop)).unwrap();
        // The attempt is not due yet.
        store.recover_if_due(&readers);
        assert!(write(&mut store, "events.b").is_err());
        recover(&mut store, &readers);
        write(&mut store, "events.b").unwrap();
        store.probe().unwrap();
        assert_eq!(store.counters().unwrap().last, 2);
        assert!(!store.take_wakeups().stream_replaced);
    }

    #[test]
    fn what_the_disk_forgot_of_the_log_is_not_taken_for_stored() {
        let Opened { mut store, readers, _folder } = opened();
        write(&mut store, "events.a").unwrap();
        let log = side_file(&store.config.path, "-wal");
        let kept = std::fs::metadata(&log).unwrap().len();
        write(&mut store, "events.b").unwrap();
        let mut bytes = std::fs::read(&log).unwrap();
        bytes[usize::try_from(kept).unwrap() + 40] ^= 1;
        std::fs::write(&log, &bytes).unwrap();
        store.note(Access::Sync, &Err(failed_sync()));
        recover(&mut store, &readers);
        // No other connection was open, so reopening recovered only the sound part of the log.
        assert_eq!(store.counters().unwrap().last, 1);
        assert!(store.take_wakeups().stream_replaced, "sequences come again");
        write(&mut store, "events.c").unwrap();
    }

    #[test]
    fn a_log_that_others_know_more_of_is_not_written_over() {
        let Opened { mut store, readers, _folder } = opened();
        let other = open_writer(&store.config, false).unwrap();
        write(&mut store, "events.a").unwrap();
        write(&mut store, "events.b").unwrap();
        let log = side_file(&store.config.path, "-wal");
        let mut bytes = std::fs::read(&log).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&log, &bytes).unwrap();
        store.note(Access::Sync, &Err(failed_sync()));
        recover(&mut store, &readers);
        assert!(write(&mut store, "events.c").is_err(), "part of the log is missing");
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&log, &bytes).unwrap();
        drop(other);
        recover(&mut store, &readers);
        write(&mut store, "events.c").unwrap();
        assert_eq!(store.counters().unwrap().last, 3);
    }

    #[test]
    fn a_connection_that_fails_again_and_again_is_replaced() {
        let Opened { mut store, readers, _folder } = opened();
        let failing = || {
            let error = ffi::Error::new(ffi::SQLITE_IOERR_SHMMAP);
            Err(Failure::rolled_back(rusqlite::Error::SqliteFailure(error, None)))
        };
        for _ in 1..MAX_FAILURES {
            store.note(Access::Write, &failing());
            write(&mut store, "events.a").unwrap();
        }
        for _ in 0..MAX_FAILURES {
            store.note(Access::Write, &failing());
        }
        assert!(write(&mut store, "events.b").is_err());
        recover(&mut store, &readers);
        write(&mut store, "events.b").unwrap();
    }

    #[test]
    fn the_log_is_copied_into_the_file_when_it_is_long() {
        let Opened { mut store, _folder, .. } = opened();
        let mut longest = 0;
        for number in 0..2 * CHECKPOINT_FRAMES {
            write(&mut store, &format!("events.{number}")).unwrap();
            store.checkpoint_if_due();
            longest = longest.max(LogState::after(&store.connection, "NOOP").unwrap().frames);
        }
        assert!((CHECKPOINT_FRAMES..CHECKPOINT_FRAMES + 50).contains(&longest), "{longest}");
    }

    #[test]
    fn pauses_between_attempts_grow_and_have_an_end() {
        let Opened { mut store, readers, _folder } = opened();
        store.note(Access::Sync, &Err(failed_sync()));
        std::fs::rename(&store.config.path, side_file(&store.config.path, "-away")).unwrap();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            recover(&mut store, &readers);
            pauses.push(RECOVER.delay(store.condition.attempts));
        }
        assert!(pauses.is_sorted() && pauses[0] == Duration::from_millis(200), "{pauses:?}");
        assert_eq!(pauses.last(), Some(&Duration::from_secs(10)));
        std::fs::rename(side_file(&store.config.path, "-away"), &store.config.path).unwrap();
        recover(&mut store, &readers);
        write(&mut store, "events.a").unwrap();
    }
}
