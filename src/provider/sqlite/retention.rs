//! Dropping the oldest events, in small steps.

use std::collections::HashSet;

use rusqlite::{params, params_from_iter};

use super::error::Sql;
use super::queue::Access;
use super::store::{Counters, Store, signed, unsigned};
use crate::subject::subject_matches;
use crate::types::unix_millis;

/// Most events that one transaction drops, so that nobody waits long for it.
const STEP: u32 = 2_000;

/// An event that is to be dropped.
struct Oldest {
    sequence: u64,
    subject_id: i64,
    subject: String,
    stored_at: u64,
    size: u64,
}

impl Store {
    /// Whether events are too old after some time without anyone doing anything.
    pub(super) fn expires_by_age(&self) -> bool {
        !self.config.max_age.is_zero()
    }

    /// Whether there is something to drop.
    pub(super) fn is_retention_due(&mut self) -> Sql<bool> {
        let counters = self.counters()?;
        let oldest = self.oldest_stored_at()?;
        Ok(oldest.is_some_and(|stored_at| self.is_surplus(counters, stored_at, unix_millis())))
    }

    /// A transaction of its own, for the time when nobody publishes.
    pub(super) fn retain_in_transaction(&mut self) -> Sql<()> {
        if let Err(failure) = self.transaction(Access::Write, |_| Ok(())) {
            tracing::debug!(?failure, "events that are too old could not be dropped");
            self.set_surplus(false);
        }
        Ok(())
    }

    /// Drops what the limits do not allow, up to the bound of one transaction.
    pub(super) fn retain(&mut self) -> Sql<()> {
        if !self.is_retention_due()? {
            self.set_surplus(false);
            return Ok(());
        }
        let dropped = self.surplus_events()?;
        self.set_surplus(dropped.len() == STEP as usize);
        let (Some(oldest), Some(newest)) = (dropped.first(), dropped.last()) else {
            return Ok(());
        };
        self.connection
            .prepare_cached("DELETE FROM events WHERE sequence BETWEEN ?1 AND ?2")?
            .execute(params![signed(oldest.sequence), signed(newest.sequence)])?;
        self.drop_unused_subjects(&dropped.iter().map(|event| event.subject_id).collect::<HashSet<_>>())?;
        let mut counters = self.counters()?;
        for event in &dropped {
            remove(&mut counters, event);
        }
        self.set_counters(counters);
        self.forget_first();
        self.tell_overtaken(&dropped)
    }

    fn surplus_events(&mut self) -> Sql<Vec<Oldest>> {
        let mut counters = self.counters()?;
        let now_ms = unix_millis();
        let mut statement = self.connection.prepare_cached(
            "SELECT sequence, subject, name, stored_at, size FROM events JOIN subjects ON id = subject
             ORDER BY sequence LIMIT ?1",
        )?;
        let mut rows = statement.query([STEP])?;
        let mut surplus = Vec::new();
        while let Some(row) = rows.next()? {
            let event = Oldest {
                sequence: unsigned(row.get(0)?),
                subject_id: row.get(1)?,
                subject: row.get(2)?,
                stored_at: unsigned(row.get(3)?),
                size: unsigned(row.get(4)?),
            };
            if !self.is_surplus(counters, event.stored_at, now_ms) {
                break;
            }
            remove(&mut counters, &event);
            surplus.push(event);
        }
        Ok(surplus)
    }

    /// Whether the oldest event, stored at this time, has to go.
    fn is_surplus(&self, counters: Counters, stored_at: u64, now_ms: u64) -> bool {
        let config = &self.config;
        let max_age_ms = u64::try_from(config.max_age.as_millis()).unwrap_or(u64::MAX);
        (config.max_events != 0 && counters.messages > config.max_events)
            || (config.max_bytes != 0 && counters.bytes > config.max_bytes && counters.messages > 1)
            || (max_age_ms != 0 && stored_at.saturating_add(max_age_ms) <= now_ms)
    }

    /// Counts for every consumer what it did not see of the dropped events.
    fn tell_overtaken(&mut self, dropped: &[Oldest]) -> Sql<()> {
        let Some(newest) = dropped.last() else {
            return Ok(());
        };
        for (id, filter, cursor) in self.consumers_behind(newest.sequence)? {
            let unseen = dropped
                .iter()
                .filter(|event| event.sequence > cursor && subject_matches(&event.subject, &filter))
                .count() as u64;
            if unseen > 0 {
                self.note_missed(id, unseen)?;
            }
        }
        Ok(())
    }

    /// Forgets `msg_id`s that are older than the window, a few at a time.
    pub(super) fn forget_message_ids(&self, before_ms: u64) -> Sql<()> {
        const STEP: u32 = 256;
        let expired: Vec<String> = self
            .connection
            .prepare_cached(
                "SELECT msg_id FROM message_ids WHERE stored_at <= ?1 ORDER BY stored_at LIMIT ?2",
            )?
            .query_map(params![signed(before_ms), STEP], |row| row.get(0))?
            .collect::<Sql<_>>()?;
        let mut delete = self.connection.prepare_cached("DELETE FROM message_ids WHERE msg_id = ?1")?;
        expired.iter().try_for_each(|msg_id| delete.execute(params_from_iter([msg_id])).map(drop))
    }
}

fn remove(counters: &mut Counters, event: &Oldest) {
    counters.messages = counters.messages.saturating_sub(1);
    counters.bytes = counters.bytes.saturating_sub(event.size);
}
