//! Consumers in the file: the shared state machine, loaded when it is needed and written where it changed.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use rusqlite::{OptionalExtension, Row, params};

use super::cells::{ConsumerKey, Settings};
use super::error::{Sql, failed, is_damage};
use super::queue::{Access, GiveBack};
use super::store::{Store, signed, unsigned};
use super::{checksum, history, pending};
use crate::error::{EventError, Result};
use crate::provider::consumer::{Consumer, ConsumerConfig, ConsumerSnapshot, Lease, StaleLease, Start, Time};
use crate::provider::{ConsumerInfo, ConsumerPosition};
use crate::types::{DeliverPolicy, SubscribeOptions};

/// A consumer that is known by heart.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) name: String,
    pub(super) machine: Consumer,
    /// The matches behind the cursor, as far as they were looked for.
    pub(super) upcoming: VecDeque<u64>,
    /// Up to here all matches are in `upcoming`.
    pub(super) scanned: u64,
    /// Version of the row.
    version: i64,
    /// Whether another process may have changed the row.
    doubted: bool,
    /// First of the stored backlog.
    backlog_front: Option<u64>,
    /// Checksum of what seldom changes in the row.
    identity: i64,
}

impl Known {
    fn new(id: i64, name: String, machine: Consumer, version: i64) -> Self {
        let identity = identity(id, &name, &machine.config().filter, &options_to_json(machine.config()));
        Self {
            name,
            backlog_front: machine.backlog_front(),
            machine,
            upcoming: VecDeque::new(),
            scanned: 0,
            version,
            doubted: false,
            identity,
        }
    }

    /// The checksum of its row.
    fn checksum(&self) -> i64 {
        let Self { machine, identity, version, .. } = self;
        let numbers = [machine.cursor(), machine.missed(), machine.exhausted()].map(signed);
        row_checksum(*identity, numbers, *version, machine.generation().into())
    }
}

/// How a delivery is settled.
#[derive(Debug, Clone, Copy)]
pub(super) enum Settlement {
    Ack,
    Nak(Option<Duration>),
    Extend,
    Release,
}

impl Settlement {
    /// What it takes to settle for this consumer. Only an ack must not be forgotten: what is lost of the others makes
    /// the event come again.
    pub(super) fn access(self, consumer: ConsumerKey) -> Access {
        match self {
            _ if consumer.id < 0 => Access::Read,
            Self::Ack => Access::Sync,
            Self::Nak(_) | Self::Extend | Self::Release => Access::Write,
        }
    }
}

/// The consumers that are known by heart: durable ones by their row, ephemeral ones, which have none, by numbers below
/// zero.
#[derive(Default)]
pub(super) struct Consumers {
    known: HashMap<i64, Known>,
    /// To be written before the commit.
    changed: BTreeSet<i64>,
    /// Ephemeral consumers as they were before this transaction: they cannot be read back from the file.
    before: HashMap<i64, Known>,
    ephemerals_ever: i64,
    /// Counts how often settings were read or changed.
    settings_read: u64,
}

/// A consumer that was opened.
pub(super) struct Opened {
    pub(super) key: ConsumerKey,
    pub(super) settings: Settings,
}

impl Consumers {
    pub(super) fn begin(&mut self) {
        self.changed.clear();
        self.before.clear();
    }

    pub(super) fn committed(&mut self) {
        self.before.clear();
    }

    pub(super) fn rolled_back(&mut self) {
        self.known.retain(|id, _| *id < 0);
        self.known.extend(self.before.drain());
        self.changed.clear();
    }

    /// Another process wrote: what is known has to be compared with the file.
    pub(super) fn doubt(&mut self) {
        self.known.iter_mut().filter(|(id, _)| **id > 0).for_each(|(_, known)| known.doubted = true);
    }

    /// A consumer that [`Store::consumer`] found in this transaction.
    pub(super) fn known_mut(&mut self, id: i64) -> Option<&mut Known> {
        self.known.get_mut(&id)
    }

    /// The settings of a consumer that is known, as of now.
    fn settings(&mut self, id: i64) -> Option<Settings> {
        let machine = &self.known.get(&id)?.machine;
        let (config, generation) = (machine.config().clone(), machine.generation());
        self.settings_read += 1;
        Some(Settings { read: self.settings_read, config, generation })
    }

    fn insert(&mut self, id: i64, known: Known) -> &mut Known {
        self.known.entry(id).insert_entry(known).into_mut()
    }
}

impl Store {
    /// Opens a durable consumer. With `change` the settings of an existing one are adapted.
    pub(super) fn open_durable(
        &mut self,
        name: &str,
        config: ConsumerConfig,
        change: bool,
    ) -> Sql<Result<Opened>> {
        Ok(match self.open_row(name, config, change)? {
            Ok(id) => self.opened(id),
            Err(refused) => Err(refused),
        })
    }

    fn opened(&mut self, id: i64) -> Result<Opened> {
        let key = self.key(id);
        let settings = self.consumers.settings(id).ok_or_else(|| gone("it cannot be opened"))?;
        Ok(Opened { key, settings })
    }

    fn open_row(&mut self, name: &str, config: ConsumerConfig, change: bool) -> Sql<Result<i64>> {
        let Some(id) = self.durable_id(name)? else {
            return self.create_durable(name, config).map(Ok);
        };
        let known = match self.sound_consumer("subscribe_durable", id)? {
            Ok(Some(known)) => known,
            Ok(None) => return Ok(Err(gone("it cannot be opened"))),
            Err(damaged) => return Ok(Err(damaged)),
        };
        if !change {
            return Ok(known.machine.config().check_filter(name, &config.filter).map(|()| id));
        }
        if let Err(conflict) = known.machine.reconfigure(name, config) {
            return Ok(Err(conflict));
        }
        let options = options_to_json(known.machine.config());
        known.identity = identity(id, name, &known.machine.config().filter, &options);
        self.connection
            .prepare_cached("UPDATE consumers SET options = ?2 WHERE id = ?1")?
            .execute(params![id, options])?;
        self.mark_changed(id);
        self.wakeups.consumers.push(id);
        self.tell_settings(id);
        Ok(Ok(id))
    }

    fn create_durable(&mut self, name: &str, config: ConsumerConfig) -> Sql<i64> {
        let start = self.start(&config)?;
        let mut machine = Consumer::new(config, start);
        machine.track_changes();
        self.connection
            .prepare_cached(
                "INSERT INTO consumers (name, filter, options, cursor, missed, exhausted, version, checksum)
                 VALUES (?1, ?2, ?3, ?4, 0, 0, 1, 0)",
            )?
            .execute(params![
                name,
                machine.config().filter,
                options_to_json(machine.config()),
                signed(machine.cursor())
            ])?;
        let id = self.connection.last_insert_rowid();
        let mut insert = self.connection.prepare_cached("INSERT INTO backlog VALUES (?1, ?2)")?;
        for sequence in machine.snapshot().backlog {
            insert.execute(params![id, signed(sequence)])?;
        }
        drop(insert);
        self.consumers.insert(id, Known::new(id, name.to_owned(), machine, 1));
        // The checksum covers the id.
        self.mark_changed(id);
        Ok(id)
    }

    /// Opens an ephemeral consumer, which lives in memory only.
    pub(super) fn open_ephemeral(&mut self, config: ConsumerConfig) -> Sql<Result<Opened>> {
        let start = self.start(&config)?;
        self.consumers.ephemerals_ever += 1;
        let number = self.consumers.ephemerals_ever;
        let name = format!("ephemeral-{number}");
        self.consumers.insert(-number, Known::new(-number, name, Consumer::new(config, start), 0));
        Ok(self.opened(-number))
    }

    /// Forgets a durable consumer.
    pub(super) fn unsubscribe(&mut self, name: &str) -> Sql<()> {
        let found: Option<i64> = self
            .connection
            .prepare_cached("DELETE FROM consumers WHERE name = ?1 RETURNING id")?
            .query_row([name], |row| row.get(0))
            .optional()?;
        let Some(id) = found else {
            return Ok(());
        };
        self.connection.prepare_cached("DELETE FROM backlog WHERE consumer = ?1")?.execute([id])?;
        self.connection.prepare_cached("DELETE FROM pending WHERE consumer = ?1")?.execute([id])?;
        self.consumers.known.remove(&id);
        self.consumers.changed.remove(&id);
        self.wakeups.consumers.push(id);
        Ok(())
    }

    /// Moves a durable consumer. What it had handed out is forgotten.
    pub(super) fn reset_durable(&mut self, name: &str, position: ConsumerPosition) -> Sql<Result<()>> {
        let cursor = self.cursor_at(position)?;
        let found = self.durable_id(name)?;
        let known = match found.map(|id| self.sound_consumer("reset_consumer", id)).transpose()? {
            Some(Ok(Some(known))) => known,
            Some(Err(damaged)) => return Ok(Err(damaged)),
            Some(Ok(None)) | None => return Ok(Err(EventError::NotFound(format!("consumer '{name}'")))),
        };
        known.machine.reset(Start::after(cursor));
        // What is known of the log lies behind the old position.
        (known.upcoming, known.scanned) = (VecDeque::new(), 0);
        if let Some(id) = found {
            self.mark_changed(id);
            self.wakeups.consumers.push(id);
            self.tell_settings(id);
        }
        Ok(Ok(()))
    }

    /// The cursor before a position, which lies among what is retained or at its end.
    fn cursor_at(&mut self, position: ConsumerPosition) -> Sql<u64> {
        let (first_retained, last) = (self.first()?, self.counters()?.last);
        let first = match position {
            ConsumerPosition::First => 0,
            ConsumerPosition::Last => u64::MAX,
            ConsumerPosition::Sequence(sequence) => sequence,
            ConsumerPosition::Time(unix_ms) => {
                history::first_stored_since(&self.connection, unix_ms)?.unwrap_or(u64::MAX)
            }
        };
        Ok(first.saturating_sub(1).clamp(first_retained - 1, last))
    }

    fn durable_id(&self, name: &str) -> Sql<Option<i64>> {
        self.connection
            .prepare_cached("SELECT id FROM consumers WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
            .optional()
    }

    /// Settles one delivery.
    pub(super) fn settle(&mut self, key: ConsumerKey, lease: Lease, how: Settlement) -> Sql<Result<()>> {
        let now = self.now();
        let Some(id) = self.id_of(key) else {
            return Ok(Err(gone("its stream was replaced")));
        };
        let machine = match self.sound_consumer("settle", id)? {
            Ok(Some(Known { machine, .. })) => machine,
            // What was delivered before it was forgotten can be acked; nothing will come again.
            Ok(None) => {
                return Ok(match how {
                    Settlement::Ack => Ok(()),
                    _ => Err(gone("it delivers nothing again")),
                });
            }
            Err(damaged) => return Ok(Err(damaged)),
        };
        let was_full = machine.is_full();
        if let Err(stale) = apply(machine, lease, how, now) {
            return Ok(Err(stale.into()));
        }
        self.mark_changed(id);
        if was_full || matches!(how, Settlement::Nak(_) | Settlement::Release) {
            self.wakeups.consumers.push(id);
        }
        Ok(Ok(()))
    }

    /// Takes back what a member left.
    pub(super) fn take_back(&mut self, what: &GiveBack) -> Sql<()> {
        for lease in &what.leases {
            // A lease that is lost in the meantime needs no release.
            let _ = self.settle(what.consumer, *lease, Settlement::Release)?;
        }
        if let Some(id) = self.id_of(what.consumer).filter(|id| what.forget && *id < 0) {
            self.consumers.known.remove(&id);
        }
        Ok(())
    }

    /// Durable and ephemeral consumers of this process, by name.
    pub(super) fn consumer_infos(&mut self) -> Sql<Result<Vec<ConsumerInfo>>> {
        let mut ids: Vec<i64> = self
            .connection
            .prepare_cached("SELECT id FROM consumers")?
            .query_map([], |row| row.get(0))?
            .collect::<Sql<_>>()?;
        ids.extend(self.consumers.known.keys().filter(|id| **id < 0));
        let mut infos = Vec::new();
        for id in ids {
            let lag = match self.lag(id)? {
                Ok(lag) => lag,
                Err(damaged) => return Ok(Err(damaged)),
            };
            let Some(Known { name, machine, .. }) = self.consumer(id)? else { continue };
            let mut info = ConsumerInfo::new(name.as_str(), &machine.config().filter, id > 0);
            info.lag = lag;
            info.pending = machine.pending() as u64;
            info.redelivered = machine.redelivered() as u64;
            infos.push(info);
        }
        infos.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Ok(infos))
    }

    /// Matching retained events that were not delivered yet; none for a consumer that is gone.
    pub(super) fn lag(&mut self, id: i64) -> Sql<Result<u64>> {
        let (first, last) = (self.first()?, self.counters()?.last);
        let machine = match self.sound_consumer("lag", id)? {
            Ok(Some(Known { machine, .. })) => machine,
            Ok(None) => return Ok(Ok(0)),
            Err(damaged) => return Ok(Err(damaged)),
        };
        let from = machine.cursor().max(first.saturating_sub(1));
        let backlog = machine.backlog_since(first) as u64;
        let filter = machine.config().filter.clone();
        if self.is_everything(&filter) {
            return Ok(Ok(backlog + last.saturating_sub(from)));
        }
        Ok(Ok(backlog + history::count_after(&self.connection, &filter, from)?))
    }

    /// The same as [`consumer`](Store::consumer), where damage to its rows is an error of this call alone. Afterwards
    /// the consumer is known, and no more is read of it in this transaction.
    pub(super) fn sound_consumer(
        &mut self,
        operation: &'static str,
        id: i64,
    ) -> Sql<Result<Option<&mut Known>>> {
        match self.consumer(id) {
            Ok(_) => Ok(Ok(self.consumers.known.get_mut(&id))),
            Err(damage) if is_damage(&damage) => Ok(Err(failed(operation, damage))),
            Err(failure) => Err(failure),
        }
    }

    /// The consumer, as it is in force; `None` when it is gone.
    pub(super) fn consumer(&mut self, id: i64) -> Sql<Option<&mut Known>> {
        if id > 0 && self.consumers.known.get(&id).is_none_or(|known| known.doubted) {
            self.refresh(id)?;
        }
        if id < 0
            && !self.consumers.before.contains_key(&id)
            && let Some(known) = self.consumers.known.get(&id)
        {
            self.consumers.before.insert(id, known.clone());
        }
        Ok(self.consumers.known.get_mut(&id))
    }

    /// Loads a durable consumer, unless what is known of it is still in force.
    fn refresh(&mut self, id: i64) -> Sql<()> {
        let row = self
            .connection
            .prepare_cached(
                "SELECT version, name, filter, options, cursor, missed, exhausted, checksum, generation
                 FROM consumers WHERE id = ?1",
            )?
            .query_row([id], |row| {
                check_row(id, row)?;
                Ok((row.get::<_, i64>(0)?, row.get(1)?, snapshot_of(row)?))
            })
            .optional()?;
        let Some((version, name, mut snapshot)) = row else {
            self.consumers.known.remove(&id);
            return Ok(());
        };
        if let Some(known) = self.consumers.known.get_mut(&id)
            && known.version == version
        {
            known.doubted = false;
            return Ok(());
        }
        snapshot.backlog = self.stored_backlog(id)?;
        snapshot.pending = pending::load(&self.connection, id)?;
        let mut known = Known::new(id, name, Consumer::restore(snapshot), version);
        if let Some(outdated) = self.consumers.known.remove(&id)
            && outdated.machine.generation() == known.machine.generation()
        {
            // What was found of the log stays true, unless the consumer was moved: the log only grows.
            known.upcoming = outdated.upcoming;
            known.scanned = outdated.scanned;
        }
        self.consumers.insert(id, known);
        self.tell_settings(id);
        Ok(())
    }

    /// Has the members of a consumer told its settings.
    fn tell_settings(&mut self, id: i64) {
        self.wakeups.settings.extend(self.consumers.settings(id).map(|settings| (id, settings)));
    }

    fn stored_backlog(&self, id: i64) -> Sql<Vec<u64>> {
        self.connection
            .prepare_cached("SELECT sequence FROM backlog WHERE consumer = ?1 ORDER BY sequence")?
            .query_map([id], |row| row.get(0).map(unsigned))?
            .collect()
    }

    pub(super) fn mark_changed(&mut self, id: i64) {
        if id > 0 {
            self.consumers.changed.insert(id);
        }
    }

    /// Writes what changed.
    pub(super) fn save_consumers(&mut self) -> Sql<()> {
        for id in std::mem::take(&mut self.consumers.changed) {
            if let Some(known) = self.consumers.known.get_mut(&id) {
                save(&self.connection, id, known)?;
            }
        }
        Ok(())
    }

    /// The consumers whose cursor is before this sequence: id, filter, cursor.
    pub(super) fn consumers_behind(&self, sequence: u64) -> Sql<Vec<(i64, String, u64)>> {
        let mut behind: Vec<(i64, String, u64)> = self
            .connection
            .prepare_cached("SELECT id, filter, cursor FROM consumers WHERE cursor < ?1")?
            .query_map([signed(sequence)], |row| Ok((row.get(0)?, row.get(1)?, unsigned(row.get(2)?))))?
            .collect::<Sql<_>>()?;
        let ephemerals = self.consumers.known.iter().filter(|(id, _)| **id < 0);
        behind.extend(
            ephemerals
                .filter(|(_, known)| known.machine.cursor() < sequence)
                .map(|(id, known)| (*id, known.machine.config().filter.clone(), known.machine.cursor())),
        );
        Ok(behind)
    }

    /// Counts events that retention dropped before this consumer got them.
    pub(super) fn note_missed(&mut self, id: i64, missed: u64) -> Sql<()> {
        match self.sound_consumer("retention", id)? {
            Ok(Some(known)) => {
                known.machine.note_missed(missed);
                self.mark_changed(id);
                self.wakeups.consumers.push(id);
            }
            Ok(None) => {}
            // Whoever uses it is told; it must not keep others from publishing.
            Err(error) => tracing::warn!(id, missed, %error, "a damaged consumer was overtaken by retention"),
        }
        Ok(())
    }

    fn start(&mut self, config: &ConsumerConfig) -> Sql<Start> {
        let newest = self.counters()?.last;
        Ok(match &config.deliver_policy {
            DeliverPolicy::All => Start::after(self.first()?.saturating_sub(1)),
            DeliverPolicy::New => Start::after(newest),
            DeliverPolicy::ByStartSequence { sequence } => Start::after(sequence.saturating_sub(1)),
            DeliverPolicy::ByStartTime { timestamp } => {
                let first = history::first_stored_since(&self.connection, *timestamp)?;
                Start::after(first.map_or(newest, |first| first.saturating_sub(1)))
            }
            DeliverPolicy::Last => {
                let newest_match = history::newest_per_subject(&self.connection, &config.filter)?;
                Start::backlog(newest_match.into_iter().max(), newest)
            }
            DeliverPolicy::LastPerSubject => {
                let mut sequences = history::newest_per_subject(&self.connection, &config.filter)?;
                sequences.sort_unstable();
                Start::backlog(sequences, newest)
            }
        })
    }
}

fn gone(why: &str) -> EventError {
    EventError::Closed(format!("the consumer is gone: {why}"))
}

fn apply(
    machine: &mut Consumer,
    lease: Lease,
    how: Settlement,
    now: Time,
) -> std::result::Result<(), StaleLease> {
    match how {
        Settlement::Ack => machine.ack(lease),
        Settlement::Nak(delay) => machine.nak(lease, delay, now),
        Settlement::Extend => machine.extend(lease, now),
        Settlement::Release => machine.release(lease, now),
    }
}

fn save(connection: &rusqlite::Connection, id: i64, known: &mut Known) -> Sql<()> {
    known.version += 1;
    let checksum = known.checksum();
    let Known { machine, version, backlog_front, .. } = known;
    connection
        .prepare_cached(
            "UPDATE consumers SET cursor = ?2, missed = ?3, exhausted = ?4, version = ?5, checksum = ?6,
                 generation = ?7
             WHERE id = ?1",
        )?
        .execute(params![
            id,
            signed(machine.cursor()),
            signed(machine.missed()),
            signed(machine.exhausted()),
            *version,
            checksum,
            machine.generation()
        ])?;
    let changed = machine.take_changes();
    pending::save(connection, id, machine, &changed)?;
    if machine.backlog_front() != *backlog_front {
        *backlog_front = machine.backlog_front();
        connection
            .prepare_cached("DELETE FROM backlog WHERE consumer = ?1 AND sequence < ?2")?
            .execute(params![id, backlog_front.map_or(i64::MAX, signed)])?;
    }
    Ok(())
}

/// The part of a row's checksum that its settings make.
fn identity(id: i64, name: &str, filter: &str, options: &str) -> i64 {
    // A name has no line break, and neither has a filter.
    checksum::of(format!("{name}\n{filter}\n{options}").as_bytes(), &[id])
}

fn row_checksum(identity: i64, [cursor, missed, exhausted]: [i64; 3], version: i64, generation: i64) -> i64 {
    let numbers = [identity, cursor, missed, exhausted, version, generation];
    // Rows of version 1 have no generation.
    let covered =
        if generation == 0 { numbers.split_last().map_or(&numbers[..], |(_, rest)| rest) } else { &numbers };
    checksum::of(&[], covered)
}

/// Compares a row of `consumers` with its checksum.
pub(super) fn check_row(id: i64, row: &Row<'_>) -> Sql<()> {
    let text = |column| row.get_ref(column)?.as_str().map_err(rusqlite::Error::from);
    let identity = identity(id, text(1)?, text(2)?, text(3)?);
    let found =
        row_checksum(identity, [row.get(4)?, row.get(5)?, row.get(6)?], row.get(0)?, row.get("generation")?);
    if found == row.get::<_, i64>(7)? { Ok(()) } else { Err(checksum::mismatch(&format!("consumer {id}"))) }
}

fn options_to_json(config: &ConsumerConfig) -> String {
    serde_json::to_string(&config.to_options()).unwrap_or_default()
}

/// The snapshot in a row of `consumers`, without its backlog and pending events.
fn snapshot_of(row: &Row<'_>) -> Sql<ConsumerSnapshot> {
    const OPTIONS: usize = 3;
    let unreadable = |error: Box<dyn std::error::Error + Send + Sync>| {
        rusqlite::Error::FromSqlConversionFailure(OPTIONS, rusqlite::types::Type::Text, error)
    };
    let options: String = row.get(OPTIONS)?;
    let options: SubscribeOptions =
        serde_json::from_str(&options).map_err(|error| unreadable(error.into()))?;
    let filter: String = row.get(2)?;
    let config = ConsumerConfig::new(&filter, &options).map_err(|error| unreadable(error.into()))?;
    let mut snapshot = ConsumerSnapshot::new(config, unsigned(row.get(4)?));
    snapshot.missed = unsigned(row.get(5)?);
    snapshot.exhausted = unsigned(row.get(6)?);
    snapshot.generation = row.get("generation")?;
    Ok(snapshot)
}
