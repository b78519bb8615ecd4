//! State of the writer thread: its connection, and its cache of the file.
//!
//! The cache is valid only while no other process writes, which the start of each transaction checks. A failed
//! transaction discards the cache.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, params};

use super::cells::{ConsumerKey, Wakeups};
use super::condition::Condition;
use super::config::{SqliteConfig, Synchronous};
use super::consumers::Consumers;
use super::error::{Failure, Sql};
use super::place::Place;
use super::queue::Access;
use crate::provider::group::Time;
use crate::provider::settings::Choice as _;

/// Maximum number of cached subject ids. Programs with more subjects look some of them up in the file.
const MAX_KNOWN_SUBJECTS: usize = 10_000;

/// Counters of the stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counters {
    /// Newest sequence ever assigned; 0 before the first.
    pub(super) last: u64,
    pub(super) last_stored_at: u64,
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

pub(super) struct Store {
    pub(super) connection: Connection,
    pub(super) config: Arc<SqliteConfig>,
    pub(super) consumers: Consumers,
    pub(super) wakeups: Wakeups,
    /// Number of streams that replaced the first one at this path.
    stream: u64,
    /// Newest sequence that waiting members were woken for; `None` before anything was read.
    pub(super) told: Option<u64>,
    /// Number of acks that a power loss could undo.
    unsynced_acks: usize,
    /// Number of events that this transaction stored.
    pub(super) appended: u64,
    /// True if this transaction has looked for `msg_id`s with a future time.
    pub(super) ids_are_bounded: bool,
    counters: Option<Counters>,
    counters_changed: bool,
    /// Lowest retained sequence, or the next one if nothing is retained.
    first: Option<u64>,
    /// Storage time of the oldest event.
    oldest_stored_at: Option<u64>,
    subject_ids: HashMap<Arc<str>, i64>,
    /// True if retention stopped at the bound of one transaction.
    surplus: bool,
    /// Last value of `PRAGMA data_version`, which changes when another connection commits.
    data_version: i64,
    synchronous: Option<Synchronous>,
    /// Moving average of the duration of commits that wait for the disk.
    commit_time: Duration,
    pub(super) condition: Condition,
}

impl Store {
    pub(super) fn new(connection: Connection, place: Option<Place>, config: Arc<SqliteConfig>) -> Self {
        Self {
            connection,
            config,
            consumers: Consumers::default(),
            wakeups: Wakeups::default(),
            stream: 0,
            told: None,
            unsynced_acks: 0,
            appended: 0,
            ids_are_bounded: false,
            counters: None,
            counters_changed: false,
            first: None,
            oldest_stored_at: None,
            subject_ids: HashMap::new(),
            surplus: false,
            data_version: 0,
            synchronous: None,
            commit_time: Duration::ZERO,
            condition: Condition::new(place),
        }
    }

    /// Returns the path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.config.path
    }

    /// Runs `work` in one transaction. If it fails, nothing of it remains.
    pub(super) fn transaction(
        &mut self,
        access: Access,
        work: impl FnOnce(&mut Self) -> Sql<()>,
    ) -> Result<(), Failure> {
        self.refuse(access)?;
        self.consumers.begin();
        let done = self.begin(access).and_then(|()| {
            work(self)?;
            self.before_commit(access)
        });
        let outcome = match done {
            Ok(()) => self.commit(access).and_then(|()| self.check_place(access)),
            Err(cause) => Err(Failure::rolled_back(cause)),
        };
        match &outcome {
            Ok(()) => {
                self.consumers.committed();
                if access != Access::Read {
                    self.note_told();
                }
            }
            Err(_) => self.roll_back(),
        }
        self.note(access, &outcome);
        outcome
    }

    fn commit(&mut self, access: Access) -> Result<(), Failure> {
        let begin = Instant::now();
        self.execute("COMMIT").map_err(Failure::in_commit)?;
        if access == Access::Sync {
            self.unsynced_acks = 0;
            self.commit_time = self.commit_time.saturating_mul(3).saturating_add(begin.elapsed()) / 4;
        }
        Ok(())
    }

    pub(super) fn note_acks(&mut self, count: usize) {
        self.unsynced_acks += count;
    }

    /// Returns true if there are so many unsynced acks that the next write must sync them.
    pub(super) fn has_to_sync_acks(&self) -> bool {
        self.unsynced_acks >= self.config.max_unconfirmed_acks
    }

    /// Syncs the acks that are not on the disk yet, before the writer ends.
    pub(super) fn sync_acks(&mut self) {
        if self.unsynced_acks > 0
            && let Err(failure) = self.transaction(Access::Sync, |_store| Ok(()))
        {
            tracing::warn!(?failure, "syncing acks failed; a power loss may cause redeliveries");
        }
    }

    /// Returns the average duration of a commit that waits for the disk.
    pub(super) fn commit_time(&self) -> Duration {
        self.commit_time
    }

    fn begin(&mut self, access: Access) -> Sql<()> {
        self.set_synchronous(access)?;
        self.execute(if access == Access::Read { "BEGIN" } else { "BEGIN IMMEDIATE" })?;
        self.look_for_changes()?;
        (self.appended, self.ids_are_bounded) = (0, false);
        Ok(())
    }

    /// Sets the sync mode. A change that only has to survive a process crash does not wait for the disk.
    fn set_synchronous(&mut self, access: Access) -> Sql<()> {
        let wanted = if access == Access::Sync { self.config.synchronous } else { Synchronous::Normal };
        if access != Access::Read && self.synchronous != Some(wanted) {
            self.connection.pragma_update(None, "synchronous", wanted.name())?;
            self.synchronous = Some(wanted);
        }
        Ok(())
    }

    fn before_commit(&mut self, access: Access) -> Sql<()> {
        if access == Access::Read {
            return Ok(());
        }
        if access == Access::Sync && self.unsynced_acks > 0 {
            // A sync also covers all earlier writes. It needs a changed row, because SQLite does not write a page that
            // stays the same.
            self.counters()?;
            self.execute("UPDATE stream SET messages = messages + 1")?;
            self.counters_changed = true;
        }
        // Retention reads the rows of consumers, so they are written first.
        self.save_consumers()?;
        self.bound_storage_times()?;
        self.retain()?;
        self.save_consumers()?;
        if std::mem::take(&mut self.counters_changed) {
            let Counters { last, last_stored_at, messages, bytes } = self.counters()?;
            self.connection
                .prepare_cached(
                    "UPDATE stream SET last_sequence = ?1, last_stored_at = ?2, messages = ?3, bytes = ?4",
                )?
                .execute(params![signed(last), signed(last_stored_at), signed(messages), signed(bytes)])?;
        }
        Ok(())
    }

    fn roll_back(&mut self) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.execute("ROLLBACK")
        {
            tracing::warn!(%error, "rolling back a sqlite transaction failed");
        }
        self.forget();
        self.consumers.rolled_back();
        self.wakeups = Wakeups::default();
    }

    /// Discards the cache if another connection wrote.
    pub(super) fn look_for_changes(&mut self) -> Sql<()> {
        let data_version =
            self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        if data_version != self.data_version {
            self.data_version = data_version;
            self.forget();
            self.consumers.mark_stale();
            self.wakeups.foreign = true;
        }
        Ok(())
    }

    /// Discards all state after another stream has replaced the one that was read. Its consumers are different ones,
    /// even those with the same id.
    pub(super) fn stream_replaced(&mut self) {
        self.stream += 1;
        self.consumers = Consumers::default();
        self.forget();
        self.told = None;
        self.wakeups.stream_replaced = true;
    }

    /// Returns the key of a consumer, for use outside the writer thread.
    pub(super) fn key(&self, id: i64) -> ConsumerKey {
        ConsumerKey { stream: self.stream, id }
    }

    /// Returns the id of a consumer; `None` if its stream was replaced.
    pub(super) fn id_of(&self, key: ConsumerKey) -> Option<i64> {
        (key.stream == self.stream).then_some(key.id)
    }

    /// Replaces the connection and returns the old one. The new connection may see another state of the file.
    pub(super) fn install(&mut self, connection: Connection) -> Connection {
        self.forget();
        self.consumers.rolled_back();
        (self.data_version, self.synchronous) = (0, None);
        std::mem::replace(&mut self.connection, connection)
    }

    fn forget(&mut self) {
        self.counters = None;
        self.counters_changed = false;
        self.first = None;
        self.oldest_stored_at = None;
        self.subject_ids.clear();
    }

    pub(super) fn counters(&mut self) -> Sql<Counters> {
        if let Some(counters) = self.counters {
            return Ok(counters);
        }
        let counters = self
            .connection
            .prepare_cached("SELECT last_sequence, last_stored_at, messages, bytes FROM stream")?
            .query_row([], |row| {
                Ok(Counters {
                    last: unsigned(row.get(0)?),
                    last_stored_at: unsigned(row.get(1)?),
                    messages: unsigned(row.get(2)?),
                    bytes: unsigned(row.get(3)?),
                })
            })?;
        Ok(*self.counters.insert(counters))
    }

    pub(super) fn set_counters(&mut self, counters: Counters) {
        self.counters = Some(counters);
        self.counters_changed = true;
    }

    /// Returns the newest sequence, if it is cached.
    pub(super) fn known_last(&self) -> Option<u64> {
        self.counters.map(|counters| counters.last)
    }

    /// Returns the lowest retained sequence, or the next one if nothing is retained.
    pub(super) fn first(&mut self) -> Sql<u64> {
        if let Some(first) = self.first {
            return Ok(first);
        }
        let oldest: Option<(i64, i64)> = self
            .connection
            .prepare_cached("SELECT sequence, stored_at FROM events ORDER BY sequence LIMIT 1")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        self.oldest_stored_at = oldest.map(|(_, stored_at)| unsigned(stored_at));
        let first = match oldest {
            Some((sequence, _)) => unsigned(sequence),
            None => self.counters()?.last + 1,
        };
        Ok(*self.first.insert(first))
    }

    /// Returns the storage time of the oldest retained event.
    pub(super) fn oldest_stored_at(&mut self) -> Sql<Option<u64>> {
        self.first()?;
        Ok(self.oldest_stored_at)
    }

    /// Discards the cached first sequence, because the oldest events have changed.
    pub(super) fn forget_first(&mut self) {
        self.first = None;
    }

    /// Records that an event was stored, which may be the oldest one.
    pub(super) fn note_appended(&mut self, stored_at: u64) {
        self.appended += 1;
        self.oldest_stored_at.get_or_insert(stored_at);
    }

    pub(super) fn has_surplus(&self) -> bool {
        self.surplus
    }

    pub(super) fn set_surplus(&mut self, surplus: bool) {
        self.surplus = surplus;
    }

    /// Returns true if the filter matches every event that can be stored here.
    pub(super) fn is_everything(&self, filter: &str) -> bool {
        filter.strip_suffix('>').is_some_and(|literal| {
            literal.is_empty() || literal.strip_suffix('.') == Some(self.config.subject_prefix.as_str())
        })
    }

    /// Returns the id of a subject, which is created if it is new.
    pub(super) fn subject_id(&mut self, name: &str) -> Sql<i64> {
        if let Some(id) = self.subject_ids.get(name) {
            return Ok(*id);
        }
        let found = self
            .connection
            .prepare_cached("SELECT id FROM subjects WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
            .optional()?;
        let id = match found {
            Some(id) => id,
            None => {
                self.connection.prepare_cached("INSERT INTO subjects (name) VALUES (?1)")?.execute([name])?;
                self.connection.last_insert_rowid()
            }
        };
        if self.subject_ids.len() >= MAX_KNOWN_SUBJECTS {
            self.subject_ids.clear();
        }
        self.subject_ids.insert(name.into(), id);
        Ok(id)
    }

    /// Deletes subjects that have no events any more.
    pub(super) fn drop_unused_subjects(&mut self, ids: &HashSet<i64>) -> Sql<()> {
        let mut used =
            self.connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM events WHERE subject = ?1)")?;
        let mut delete = self.connection.prepare_cached("DELETE FROM subjects WHERE id = ?1")?;
        for id in ids {
            if !used.query_row([id], |row| row.get(0))? {
                delete.execute([id])?;
                self.subject_ids.retain(|_, known| known != id);
            }
        }
        Ok(())
    }

    /// Returns the current time for leases. It is Unix time, because it must mean the same in every process.
    pub(super) fn now(&self) -> Time {
        Time::from_origin(Duration::from_millis(self.config.now_ms()))
    }

    pub(super) fn take_wakeups(&mut self) -> Wakeups {
        std::mem::take(&mut self.wakeups)
    }

    pub(super) fn execute(&self, sql: &str) -> Sql<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }
}

/// Converts a number to the form that SQLite stores. The numbers used here never come near the limit.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Reverses [`signed`]. A negative number was not stored by this provider and becomes 0.
pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
