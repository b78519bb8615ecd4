//! Consumers in the file: the shared state machine, loaded on demand and written when it has changed.

use std::collections::{BTreeSet, HashMap, VecDeque};

use rusqlite::{OptionalExtension, params};

use super::cells::{ConsumerKey, Settings};
use super::consumer_row::{COLUMNS, check_row, identity, options_to_json, row_checksum, save, snapshot_of};
use super::error::{Sql, file_failed, is_damage};
use super::positions::Positions;
use super::queue::GiveBack;
use super::store::{Store, signed, unsigned};
use super::{history, pending};
use crate::error::{EventError, Result};
use crate::provider::group::{ConsumerConfig, GroupState, Lease, Start};
use crate::provider::{AckKind, ConsumerPosition};
use crate::types::DeliverPolicy;

/// A cached consumer.
pub(super) struct Known {
    pub(super) name: String,
    pub(super) machine: GroupState,
    /// Matches after the cursor, as far as they were looked up.
    pub(super) upcoming: VecDeque<u64>,
    /// Sequence up to which all matches are in `upcoming`.
    pub(super) scanned: u64,
    /// Start time in Unix milliseconds; `None` once the consumer has started.
    pub(super) starts_at: Option<u64>,
    /// Version of the row.
    pub(super) version: i64,
    /// True if another process may have changed the row.
    is_stale: bool,
    /// First sequence of the stored backlog.
    pub(super) backlog_front: Option<u64>,
    /// Cursor as last stored; `None` until the consumer has started.
    pub(super) position: Option<u64>,
    /// Checksum of the parts of the row that seldom change.
    identity: i64,
}

impl Known {
    fn new(id: i64, name: String, machine: GroupState, version: i64) -> Self {
        let identity = identity(id, &name, &machine.config().filter, &options_to_json(machine.config()));
        Self {
            name,
            backlog_front: machine.backlog_front(),
            machine,
            upcoming: VecDeque::new(),
            scanned: 0,
            starts_at: None,
            version,
            is_stale: false,
            position: None,
            identity,
        }
    }

    /// Returns the checksum of its row.
    pub(super) fn checksum(&self) -> i64 {
        let Self { machine, identity, version, .. } = self;
        let numbers = [machine.cursor(), machine.missed(), machine.exhausted()].map(signed);
        row_checksum(*identity, numbers, *version, machine.generation().into(), self.starts_at.map(signed))
    }
}

/// Cached consumers: durable ones by row id, ephemeral ones, which have no row, by negative numbers.
#[derive(Default)]
pub(super) struct Consumers {
    known: HashMap<i64, Known>,
    /// Consumers to write before the commit.
    changed: BTreeSet<i64>,
    /// Ephemeral consumers that this transaction changed, with their start times before. They cannot be read back from
    /// the file.
    before: HashMap<i64, Option<u64>>,
    /// Ephemeral consumers that this transaction opened.
    opened: Vec<i64>,
    /// Ephemeral consumers that this transaction removed.
    forgotten: Vec<(i64, Known)>,
    /// Consumers that may be full. No other consumer is full.
    full: BTreeSet<i64>,
    /// Positions of consumers, to count events that retention drops before they are delivered.
    pub(super) positions: Positions,
    ephemerals_ever: i64,
    /// Number of times that settings were read or changed.
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
        self.committed();
    }

    pub(super) fn committed(&mut self) {
        for (id, _) in self.before.drain() {
            if let Some(known) = self.known.get_mut(&id) {
                known.machine.keep_changes();
            }
        }
        self.opened.clear();
        self.forgotten.clear();
    }

    pub(super) fn rolled_back(&mut self) {
        self.known.retain(|id, _| *id < 0);
        self.known.extend(self.forgotten.drain(..));
        for id in self.opened.drain(..) {
            self.known.remove(&id);
        }
        for (id, starts_at) in self.before.drain() {
            if let Some(known) = self.known.get_mut(&id) {
                known.machine.take_back_changes();
                known.starts_at = starts_at;
                (known.upcoming, known.scanned) = (VecDeque::new(), 0);
            }
        }
        self.positions.forget();
        self.changed.clear();
    }

    /// Marks the cached consumers for comparison with the file, because another process wrote.
    pub(super) fn mark_stale(&mut self) {
        self.known.iter_mut().filter(|(id, _)| **id > 0).for_each(|(_, known)| known.is_stale = true);
        self.positions.forget();
    }

    /// Returns a consumer that [`Store::consumer`] found in this transaction.
    pub(super) fn known_mut(&mut self, id: i64) -> Option<&mut Known> {
        self.known.get_mut(&id)
    }

    /// Returns the current settings of a cached consumer.
    fn settings(&mut self, id: i64) -> Option<Settings> {
        let machine = &self.known.get(&id)?.machine;
        let (config, generation) = (machine.config().clone(), machine.generation());
        self.settings_read += 1;
        Some(Settings { read: self.settings_read, config, generation })
    }

    fn insert(&mut self, id: i64, known: Known) {
        self.known.insert(id, known);
    }

    /// Returns the row version of a cached consumer.
    pub(super) fn version(&self, id: i64) -> Option<i64> {
        self.known.get(&id).map(|known| known.version)
    }

    /// Returns the cursor of a cached consumer.
    pub(super) fn cursor(&self, id: i64) -> Option<u64> {
        self.known.get(&id).map(|known| known.machine.cursor())
    }

    /// Returns the ephemeral consumers.
    pub(super) fn ephemerals(&self) -> impl Iterator<Item = (i64, &Known)> {
        self.known.iter().filter(|(id, _)| **id < 0).map(|(id, known)| (*id, known))
    }

    /// Returns the consumers that have reached `max_ack_pending`.
    pub(super) fn full(&self) -> impl Iterator<Item = (i64, &Known)> {
        let known = self.full.iter().filter_map(|id| Some((*id, self.known.get(id)?)));
        known.filter(|(_, known)| known.machine.is_full())
    }

    /// Records whether a consumer is full. Called whenever that may have changed.
    pub(super) fn note_full(&mut self, id: i64) {
        match self.known.get(&id) {
            Some(known) if known.machine.is_full() => self.full.insert(id),
            _ => self.full.remove(&id),
        };
    }
}

impl Store {
    /// Opens a durable consumer. With `change`, applies the settings to an existing one.
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
        self.consumers.note_full(id);
        self.mark_changed(id);
        self.wakeups.consumers.push(id);
        self.tell_settings(id);
        Ok(Ok(id))
    }

    fn create_durable(&mut self, name: &str, config: ConsumerConfig) -> Sql<i64> {
        let (start, starts_at) = self.start(&config)?;
        let mut machine = GroupState::new(config, start);
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
        let mut known = Known::new(id, name.to_owned(), machine, 1);
        known.starts_at = starts_at;
        self.consumers.insert(id, known);
        // The checksum covers the id, so the row is written again.
        self.mark_changed(id);
        Ok(id)
    }

    /// Opens an ephemeral consumer, which exists in memory only.
    pub(super) fn open_ephemeral(&mut self, config: ConsumerConfig) -> Sql<Result<Opened>> {
        let (start, starts_at) = self.start(&config)?;
        self.consumers.ephemerals_ever += 1;
        let number = self.consumers.ephemerals_ever;
        let name = format!("ephemeral-{number}");
        let mut known = Known::new(-number, name, GroupState::new(config, start), 0);
        known.starts_at = starts_at;
        self.consumers.insert(-number, known);
        self.consumers.opened.push(-number);
        self.note_position(-number)?;
        Ok(self.opened(-number))
    }

    /// Deletes a durable consumer.
    pub(super) fn unsubscribe(&mut self, name: &str) -> Sql<()> {
        let Some(id) = self.durable_id(name)? else {
            return Ok(());
        };
        // A damaged consumer is deleted as well.
        let _ = self.sound_consumer("unsubscribe", id)?;
        self.connection.prepare_cached("DELETE FROM consumers WHERE id = ?1")?.execute([id])?;
        self.forget_position(id)?;
        self.connection.prepare_cached("DELETE FROM backlog WHERE consumer = ?1")?.execute([id])?;
        self.connection.prepare_cached("DELETE FROM pending WHERE consumer = ?1")?.execute([id])?;
        self.consumers.known.remove(&id);
        self.consumers.changed.remove(&id);
        self.wakeups.consumers.push(id);
        Ok(())
    }

    /// Moves a durable consumer and discards its pending events.
    pub(super) fn reset_durable(&mut self, name: &str, position: ConsumerPosition) -> Sql<Result<()>> {
        let cursor = self.cursor_at(position)?;
        let found = self.durable_id(name)?;
        let known = match found.map(|id| self.sound_consumer("reset_consumer", id)).transpose()? {
            Some(Ok(Some(known))) => known,
            Some(Err(damaged)) => return Ok(Err(damaged)),
            Some(Ok(None)) | None => return Ok(Err(EventError::NotFound(format!("consumer '{name}'")))),
        };
        known.machine.reset(Start::after(cursor));
        known.starts_at = None;
        // The cached matches follow the old position.
        (known.upcoming, known.scanned) = (VecDeque::new(), 0);
        if let Some(id) = found {
            self.mark_changed(id);
            self.wakeups.consumers.push(id);
            self.tell_settings(id);
        }
        Ok(Ok(()))
    }

    /// Returns the cursor before a position. It lies within the retained events or at their end.
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
    pub(super) fn settle(&mut self, key: ConsumerKey, lease: Lease, kind: &AckKind) -> Sql<Result<()>> {
        let now = self.now();
        let Some(id) = self.id_of(key) else {
            return Ok(Err(gone("its stream was replaced")));
        };
        let machine = match self.sound_consumer("settle", id)? {
            Ok(Some(Known { machine, .. })) => machine,
            // An event that was delivered before the consumer was deleted can still be acked. It is never redelivered.
            Ok(None) => {
                return Ok(match kind {
                    AckKind::Ack | AckKind::Term(_) => Ok(()),
                    _ => Err(gone("its events are not redelivered")),
                });
            }
            Err(damaged) => return Ok(Err(damaged)),
        };
        let was_full = machine.is_full();
        if let Err(stale) = machine.settle(lease, kind, || now) {
            return Ok(Err(stale.into()));
        }
        self.consumers.note_full(id);
        self.mark_changed(id);
        if id > 0 && matches!(kind, AckKind::Ack | AckKind::Term(_)) {
            self.note_acks(1);
        }
        if was_full || matches!(kind, AckKind::Nak(_) | AckKind::Release) {
            self.wakeups.consumers.push(id);
        }
        Ok(Ok(()))
    }

    /// Releases the leases that a member left, and removes its ephemeral consumer if requested.
    pub(super) fn take_back(&mut self, what: &GiveBack) -> Sql<()> {
        for lease in &what.leases {
            // A lease that was lost meanwhile needs no release.
            let _ = self.settle(what.consumer, *lease, &AckKind::Release)?;
        }
        if let Some(id) = self.id_of(what.consumer).filter(|id| what.forget && *id < 0) {
            self.forget_position(id)?;
            let forgotten = self.consumers.known.remove(&id);
            self.consumers.forgotten.extend(forgotten.map(|known| (id, known)));
        }
        Ok(())
    }

    /// Like [`consumer`](Store::consumer), but returns damage to the consumer's rows as an error of this call alone.
    /// Afterwards the consumer is cached, and this transaction reads no more of it.
    pub(super) fn sound_consumer(
        &mut self,
        operation: &'static str,
        id: i64,
    ) -> Sql<Result<Option<&mut Known>>> {
        match self.consumer(id) {
            Ok(_) => Ok(Ok(self.consumers.known.get_mut(&id))),
            Err(damage) if is_damage(&damage) => Ok(Err(file_failed(operation, self.path(), damage))),
            Err(failure) => Err(failure),
        }
    }

    /// Returns the current state of a consumer; `None` if it does not exist.
    pub(super) fn consumer(&mut self, id: i64) -> Sql<Option<&mut Known>> {
        if id > 0 && self.consumers.known.get(&id).is_none_or(|known| known.is_stale) {
            self.refresh(id)?;
        }
        if id < 0
            && !self.consumers.before.contains_key(&id)
            && let Some(known) = self.consumers.known.get_mut(&id)
        {
            known.machine.remember_changes();
            self.consumers.before.insert(id, known.starts_at);
        }
        Ok(self.consumers.known.get_mut(&id))
    }

    /// Loads a durable consumer, unless the cached one is current.
    fn refresh(&mut self, id: i64) -> Sql<()> {
        let row = self
            .connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM consumers WHERE id = ?1"))?
            .query_row([id], |row| {
                check_row(id, row)?;
                Ok((row.get::<_, i64>(0)?, row.get(1)?, snapshot_of(row)?, row.get::<_, Option<i64>>(9)?))
            })
            .optional()?;
        let Some((version, name, mut snapshot, starts_at)) = row else {
            self.consumers.known.remove(&id);
            return Ok(());
        };
        if let Some(known) = self.consumers.known.get_mut(&id)
            && known.version == version
        {
            known.is_stale = false;
            return Ok(());
        }
        snapshot.backlog = self.stored_backlog(id)?;
        snapshot.pending = pending::load(&self.connection, id)?;
        let mut known = Known::new(id, name, GroupState::restore(snapshot), version);
        known.starts_at = starts_at.map(unsigned);
        known.position = Some(known.machine.cursor()).filter(|_| known.starts_at.is_none());
        if let Some(outdated) = self.consumers.known.remove(&id)
            && outdated.machine.generation() == known.machine.generation()
        {
            // Cached matches stay valid unless the consumer was moved, because events are only appended.
            known.upcoming = outdated.upcoming;
            known.scanned = outdated.scanned;
        }
        self.consumers.insert(id, known);
        self.consumers.note_full(id);
        self.tell_settings(id);
        Ok(())
    }

    /// Passes the settings to the consumer's members.
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

    /// Writes the changed consumers.
    pub(super) fn save_consumers(&mut self) -> Sql<()> {
        for id in std::mem::take(&mut self.consumers.changed) {
            if let Some(known) = self.consumers.known.get_mut(&id) {
                save(&self.connection, id, known)?;
                self.note_position(id)?;
            }
        }
        Ok(())
    }

    /// Records the stored position of a consumer.
    fn note_position(&mut self, id: i64) -> Sql<()> {
        let Some(known) = self.consumers.known.get_mut(&id) else { return Ok(()) };
        let now = Some(known.machine.cursor()).filter(|_| known.starts_at.is_none());
        let before = std::mem::replace(&mut known.position, now);
        let (filter, starts_at) = (known.machine.config().filter.clone(), known.starts_at);
        self.moved(id, &filter, starts_at, before, now)
    }

    fn forget_position(&mut self, id: i64) -> Sql<()> {
        let Some(known) = self.consumers.known.get_mut(&id) else { return Ok(()) };
        let before = known.position.take();
        let filter = known.machine.config().filter.clone();
        self.moved(id, &filter, None, before, None)
    }

    /// Returns the position at which a new consumer starts. Also returns its start time if no event is stored at or
    /// after it yet.
    fn start(&mut self, config: &ConsumerConfig) -> Sql<(Start, Option<u64>)> {
        let newest = self.counters()?.last;
        // Events dropped earlier do not count as missed.
        let dropped = self.first()?.saturating_sub(1);
        let start = match &config.deliver_policy {
            DeliverPolicy::All => Start::after(dropped),
            DeliverPolicy::New => Start::after(newest),
            DeliverPolicy::ByStartSequence { sequence } => {
                Start::after(sequence.saturating_sub(1).max(dropped))
            }
            DeliverPolicy::ByStartTime { timestamp } => {
                let Some(first) = history::first_stored_since(&self.connection, *timestamp)? else {
                    return Ok((Start::after(newest), Some(*timestamp)));
                };
                Start::after(first.saturating_sub(1))
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
        };
        Ok((start, None))
    }

    /// Starts a consumer whose start time has come. Otherwise moves it to the end of the stream, because it does not
    /// miss the events stored so far.
    pub(super) fn begin_if_due(&mut self, id: i64) -> Sql<()> {
        let Some(starts_at) = self.consumers.known.get(&id).and_then(|known| known.starts_at) else {
            return Ok(());
        };
        let first = history::first_stored_since(&self.connection, starts_at)?;
        let last = self.counters()?.last;
        let Some(known) = self.consumer(id)? else { return Ok(()) };
        known.machine.skip_to(first.map_or(last, |first| first.saturating_sub(1)), 0);
        (known.upcoming, known.scanned) = (VecDeque::new(), 0);
        if first.is_some() {
            known.starts_at = None;
            self.mark_changed(id);
            if id < 0 {
                self.note_position(id)?;
            }
        }
        Ok(())
    }
}

fn gone(why: &str) -> EventError {
    EventError::Closed(format!("the consumer no longer exists: {why}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::provider::group::ConsumerConfig;
    use crate::provider::sqlite::schema::open_writer;
    use crate::provider::sqlite::{SqliteConfig, queue::Access};
    use crate::types::{DeliverPolicy, SubscribeOptions};

    use super::*;

    /// An ephemeral consumer cannot be read back from the file.
    #[test]
    fn a_failed_transaction_leaves_an_ephemeral_consumer_as_it_was() {
        let config = SqliteConfig::in_memory();
        let mut store = Store::new(open_writer(&config, true).unwrap(), None, Arc::new(config));
        let options = SubscribeOptions { deliver_policy: DeliverPolicy::New, ..Default::default() };
        let open = |store: &mut Store| {
            let config = ConsumerConfig::new("events.>", &options).unwrap();
            store.open_ephemeral(config).map(|opened| opened.unwrap().key.id)
        };
        let mut kept = 0;
        assert!(store.transaction(Access::Read, |store| open(store).map(|id| kept = id)).is_ok());
        let known = store.consumers.known.get_mut(&kept).unwrap();
        known.machine.reset(Start::backlog([1, 2, 3], 9));
        let before = known.machine.snapshot();

        let mut fails = 0;
        let failed = store.transaction(Access::Read, |store| {
            fails = open(store)?;
            let now = store.now();
            let known = store.consumer(kept)?.unwrap();
            for _ in 0..5 {
                known.machine.fetch(now, 1, |cursor| Some(cursor + 1));
            }
            let key = store.key(kept);
            store.take_back(&GiveBack { consumer: key, leases: Vec::new(), forget: true })?;
            Err(rusqlite::Error::InvalidQuery)
        });
        assert!(failed.is_err());
        assert_eq!(store.consumers.known.get(&kept).unwrap().machine.snapshot(), before);
        assert!(!store.consumers.known.contains_key(&fails), "nobody has it");
    }
}
