//! Publishing. The caller checks and encodes events. The writer thread stores them together with other waiting work.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use super::Shared;
use super::checksum;
use super::config::SqliteConfig;
use super::error::Sql;
use super::queue::{Access, Size, answered, ended};
use super::store::{Store, signed, unsigned};
use crate::error::{BackendError, EventError, Result};
use crate::provider::driver::Checked;
use crate::provider::support::answered_without_storing;
use crate::provider::{DEFAULT_TIMEOUT, PublishReceipt};

/// An event in its stored form, encoded by the caller.
struct Prepared {
    subject: String,
    record: Vec<u8>,
    msg_id: Option<String>,
    expected_sequence: Option<u64>,
}

impl Prepared {
    fn new(checked: Checked<'_>) -> Result<Self> {
        let (event, options) = (checked.event(), checked.options());
        let mut record = Vec::with_capacity(checked.size());
        serde_json::to_writer(&mut record, event)?;
        Ok(Self {
            subject: event.subject.clone(),
            record,
            msg_id: options.msg_id.clone(),
            expected_sequence: options.expected_sequence,
        })
    }
}

fn timeout(event: Checked<'_>) -> Duration {
    event.options().timeout_secs.map_or(DEFAULT_TIMEOUT, Duration::from_secs)
}

/// Part of a batch that goes to the writer thread in one call.
#[derive(Default)]
struct Part {
    entries: Vec<Result<Prepared>>,
    bytes: usize,
    timeout: Duration,
}

impl Shared {
    pub(super) async fn publish(&self, event: Checked<'_>) -> Result<PublishReceipt> {
        let prepared = Prepared::new(event)?;
        let bytes = prepared.record.len();
        let mut stored = self.send(vec![prepared], bytes, timeout(event)).await?;
        stored.pop().unwrap_or_else(|| Err(ended()))
    }

    pub(super) async fn publish_batch(&self, batch: &[Checked<'_>]) -> Vec<Result<PublishReceipt>> {
        let mut results = Vec::with_capacity(batch.len());
        let mut part = Part::default();
        for event in batch {
            if part.is_full(&self.config) {
                results.extend(self.store(std::mem::take(&mut part)).await);
            }
            part.add(Prepared::new(*event), timeout(*event));
        }
        results.extend(self.store(part).await);
        results
    }

    /// Stores the entries that could be encoded, and returns the answers of all entries in order.
    async fn store(&self, part: Part) -> Vec<Result<PublishReceipt>> {
        let Part { entries, bytes, timeout } = part;
        let mut results = Vec::with_capacity(entries.len());
        let mut prepared = Vec::new();
        for entry in entries {
            // A placeholder until the receipt is known.
            results.push(entry.map(|entry| {
                prepared.push(entry);
                PublishReceipt::stored(0)
            }));
        }
        if prepared.is_empty() {
            return results;
        }
        let places = results.iter_mut().filter(|result| result.is_ok());
        match self.send(prepared, bytes, timeout).await {
            Ok(stored) => places.zip(stored).for_each(|(place, stored)| *place = stored),
            Err(error) => {
                let error = Arc::new(error);
                places.for_each(|place| *place = Err(for_one_entry(&error)));
            }
        }
        results
    }

    async fn send(
        &self,
        prepared: Vec<Prepared>,
        bytes: usize,
        timeout: Duration,
    ) -> Result<Vec<Result<PublishReceipt>>> {
        let size = Size { events: prepared.len(), bytes };
        let work = move |store: &mut Store| {
            let now_ms = store.config.now_ms();
            let entries =
                prepared.into_iter().map(|entry| store.publish(entry, now_ms)).collect::<Sql<_>>()?;
            Ok(Ok(entries))
        };
        let mut answer = self.queue.call("publish", Access::Sync, size, timeout, work).await?;
        answered("publish", &self.config.path, timeout, &mut answer).await
    }
}

impl Part {
    fn add(&mut self, prepared: Result<Prepared>, timeout: Duration) {
        self.bytes += prepared.as_ref().map_or(0, |prepared| prepared.record.len());
        self.timeout = self.timeout.max(timeout);
        self.entries.push(prepared);
    }

    /// Returns true if more entries would keep other callers waiting.
    fn is_full(&self, config: &SqliteConfig) -> bool {
        self.entries.len() >= config.commit_max_events || self.bytes >= config.commit_max_bytes
    }
}

/// Returns the failure of a whole transaction as the error of one entry.
fn for_one_entry(error: &Arc<EventError>) -> EventError {
    match &**error {
        EventError::Closed(text) => EventError::Closed(text.clone()),
        EventError::Timeout(text) => EventError::Timeout(text.clone()),
        other => {
            let mut failure = BackendError::new(super::NAME, "publish", other.kind(), Arc::clone(error));
            failure.retryable = other.is_retryable();
            failure.may_be_stored = other.may_be_stored();
            failure.into()
        }
    }
}

impl Store {
    /// Stores one event. The inner error concerns this event alone.
    fn publish(&mut self, entry: Prepared, now_ms: u64) -> Sql<Result<PublishReceipt>> {
        let first = match &entry.msg_id {
            Some(msg_id) => self.find_duplicate(msg_id, now_ms)?,
            None => None,
        };
        let last = self.counters()?.last;
        match answered_without_storing(&self.config.stream_name, last, entry.expected_sequence, first) {
            Ok(None) => {}
            Ok(Some(duplicate)) => return Ok(Ok(duplicate)),
            Err(conflict) => return Ok(Err(conflict)),
        }
        let sequence = self.append(&entry, now_ms)?;
        if let Some(msg_id) = &entry.msg_id {
            self.remember(msg_id, sequence, now_ms)?;
        }
        Ok(Ok(PublishReceipt::stored(sequence)))
    }

    fn append(&mut self, entry: &Prepared, now_ms: u64) -> Sql<u64> {
        let mut counters = self.counters()?;
        let subject = self.subject_id(&entry.subject)?;
        counters.last += 1;
        counters.messages += 1;
        counters.bytes += entry.record.len() as u64;
        // Storage times never decrease, even if the clock goes back a little. Otherwise time ranges would have holes.
        counters.last_stored_at = counters.last_stored_at.max(now_ms);
        let (sequence, stored_at) = (signed(counters.last), counters.last_stored_at);
        // Cached before the insert, because in an empty stream this event is the first one.
        self.first()?;
        self.connection
            .prepare_cached(
                "INSERT INTO events (sequence, subject, stored_at, size, checksum, record)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                sequence,
                subject,
                signed(stored_at),
                signed(entry.record.len() as u64),
                checksum::of_event(sequence, subject, signed(stored_at), &entry.record),
                entry.record
            ])?;
        self.set_counters(counters);
        self.note_appended(stored_at);
        self.wakeups.add_subject(&entry.subject);
        Ok(counters.last)
    }

    fn find_duplicate(&mut self, msg_id: &str, now_ms: u64) -> Sql<Option<u64>> {
        self.bound_message_ids(now_ms)?;
        let oldest = now_ms.saturating_sub(self.dedup_window_ms());
        self.connection
            .prepare_cached("SELECT sequence FROM message_ids WHERE msg_id = ?1 AND stored_at > ?2")?
            .query_row(params![msg_id, signed(oldest)], |row| row.get(0).map(unsigned))
            .optional()
    }

    fn remember(&mut self, msg_id: &str, sequence: u64, now_ms: u64) -> Sql<()> {
        let window = self.dedup_window_ms();
        if window == 0 {
            return Ok(());
        }
        self.forget_message_ids(now_ms.saturating_sub(window))?;
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO message_ids (msg_id, sequence, stored_at) VALUES (?1, ?2, ?3)",
            )?
            .execute(params![msg_id, signed(sequence), signed(now_ms)])
            .map(drop)
    }

    fn dedup_window_ms(&self) -> u64 {
        u64::try_from(self.config.dedup_window.as_millis()).unwrap_or(u64::MAX)
    }
}
