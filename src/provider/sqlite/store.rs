//! What the writer thread works on: the connection, and what of the file it knows by heart.
//!
//! Everything known by heart is in force only while nobody else writes, which the start of each transaction checks, and
//! is forgotten when a transaction fails.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, params};

use super::cells::Wakeups;
use super::config::{SqliteConfig, Synchronous};
use super::consumers::Consumers;
use super::error::{Failure, Sql};
use super::queue::Access;
use crate::provider::consumer::Time;
use crate::types::unix_millis;

/// Subject ids known by heart. Programs with more subjects look some of them up.
const MAX_KNOWN_SUBJECTS: usize = 10_000;

/// The counters of the stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counters {
    /// Newest sequence ever given; 0 before the first.
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
    counters: Option<Counters>,
    counters_changed: bool,
    /// Lowest retained sequence, or the next one when nothing is retained.
    first: Option<u64>,
    /// When the oldest event was stored.
    oldest_stored_at: Option<u64>,
    subject_ids: HashMap<Arc<str>, i64>,
    /// Whether retention stopped at the bound of one transaction.
    surplus: bool,
    /// What `PRAGMA data_version` said last: it changes when another connection commits.
    data_version: i64,
    synchronous: Option<Synchronous>,
    /// How long commits take that wait for the disk: a moving mean.
    commit_time: Duration,
    /// Set when the disk lost what was written: then nothing more is written.
    lost_writes: Option<Arc<rusqlite::Error>>,
    /// The newest time seen, to notice when the clock is set back.
    now_ms: u64,
}

impl Store {
    pub(super) fn new(connection: Connection, config: Arc<SqliteConfig>) -> Self {
        Self {
            connection,
            config,
            consumers: Consumers::default(),
            wakeups: Wakeups::default(),
            counters: None,
            counters_changed: false,
            first: None,
            oldest_stored_at: None,
            subject_ids: HashMap::new(),
            surplus: false,
            data_version: 0,
            synchronous: None,
            commit_time: Duration::ZERO,
            lost_writes: None,
            now_ms: 0,
        }
    }

    /// Runs `work` in one transaction. After a failure nothing of it is left.
    pub(super) fn transaction(
        &mut self,
        access: Access,
        work: impl FnOnce(&mut Self) -> Sql<()>,
    ) -> Result<(), Failure> {
        if let Some(cause) = self.lost_writes.as_ref().filter(|_| access != Access::Read) {
            return Err(Failure::refused(Arc::clone(cause)));
        }
        self.consumers.begin();
        let done = self.begin(access).and_then(|()| {
            work(self)?;
            self.before_commit(access)
        });
        let outcome = match done {
            Ok(()) => self.commit(access),
            Err(cause) => Err(Failure::rolled_back(cause)),
        };
        match &outcome {
            Ok(()) => self.consumers.committed(),
            Err(failure) => {
                self.lost_writes = self.lost_writes.take().or_else(|| failure.lost_writes());
                self.roll_back();
            }
        }
        outcome
    }

    fn commit(&mut self, access: Access) -> Result<(), Failure> {
        let begin = Instant::now();
        self.execute("COMMIT").map_err(Failure::in_commit)?;
        if access == Access::Sync {
            self.commit_time = self.commit_time.saturating_mul(3).saturating_add(begin.elapsed()) / 4;
        }
        Ok(())
    }

    /// How long a commit takes that waits for the disk.
    pub(super) fn commit_time(&self) -> Duration {
        self.commit_time
    }

    fn begin(&mut self, access: Access) -> Sql<()> {
        self.set_synchronous(access)?;
        self.execute(if access == Access::Read { "BEGIN" } else { "BEGIN IMMEDIATE" })?;
        self.look_for_changes()?;
        self.notice_clock();
        Ok(())
    }

    /// What only has to survive a crash of the process is not worth waiting for the disk.
    fn set_synchronous(&mut self, access: Access) -> Sql<()> {
        let wanted = if access == Access::Sync { self.config.synchronous } else { Synchronous::Normal };
        if access != Access::Read && self.synchronous != Some(wanted) {
            self.connection.pragma_update(None, "synchronous", wanted.as_str())?;
            self.synchronous = Some(wanted);
        }
        Ok(())
    }

    fn before_commit(&mut self, access: Access) -> Sql<()> {
        if access == Access::Read {
            return Ok(());
        }
        // What retention compares with the rows must be in them.
        self.save_consumers()?;
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
            tracing::warn!(%error, "a sqlite transaction could not be rolled back");
        }
        self.forget();
        self.consumers.rolled_back();
        self.wakeups = Wakeups::default();
    }

    /// Forgets what is known by heart if another connection wrote.
    pub(super) fn look_for_changes(&mut self) -> Sql<()> {
        let data_version =
            self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        if data_version != self.data_version {
            self.data_version = data_version;
            self.forget();
            self.consumers.doubt();
            self.wakeups.everyone = true;
        }
        Ok(())
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

    /// Lowest retained sequence, or the next one when nothing is retained.
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

    /// When the oldest retained event was stored.
    pub(super) fn oldest_stored_at(&mut self) -> Sql<Option<u64>> {
        self.first()?;
        Ok(self.oldest_stored_at)
    }

    /// Retention dropped the oldest events.
    pub(super) fn forget_first(&mut self) {
        self.first = None;
    }

    /// An event was stored; it may be the oldest one.
    pub(super) fn note_appended(&mut self, stored_at: u64) {
        self.oldest_stored_at.get_or_insert(stored_at);
    }

    pub(super) fn has_surplus(&self) -> bool {
        self.surplus
    }

    pub(super) fn set_surplus(&mut self, surplus: bool) {
        self.surplus = surplus;
    }

    /// Whether the filter selects every event that can be stored here.
    pub(super) fn is_everything(&self, filter: &str) -> bool {
        filter.strip_suffix('>').is_some_and(|literal| {
            literal.is_empty() || literal.strip_suffix('.') == Some(self.config.subject_prefix.as_str())
        })
    }

    /// The id of a subject, which is made when it is new.
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

    /// Forgets subjects that have no event any more.
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

    /// The time of leases.
    pub(super) fn now(&self) -> Time {
        lease_time()
    }

    fn notice_clock(&mut self) {
        let now_ms = unix_millis();
        if now_ms < self.now_ms {
            self.consumers.clamp_leases(self.now());
        }
        self.now_ms = now_ms;
    }

    pub(super) fn take_wakeups(&mut self) -> Wakeups {
        std::mem::take(&mut self.wakeups)
    }

    fn execute(&self, sql: &str) -> Sql<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }
}

/// The time of leases: Unix time, because it has to mean the same in every process.
pub(super) fn lease_time() -> Time {
    Time::from_origin(Duration::from_millis(unix_millis()))
}

/// As SQLite stores numbers; ours never come near the limit.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What [`signed`] stored. A number below zero was not stored by us and means nothing.
pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
