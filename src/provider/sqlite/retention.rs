//! Drops the oldest events in small steps.

use std::collections::HashSet;

use rusqlite::{OptionalExtension, params, params_from_iter};

use super::error::Sql;
use super::positions::Dropped;
use super::queue::Access;
use super::store::{Counters, Store, signed, unsigned};
use super::{checksum, history};
use crate::provider::support::CLOCK_TOLERANCE_MS;

/// Number of events that one transaction drops in addition to those it makes room for. It is small, so that no caller
/// waits long.
const STEP: u64 = 64;
/// Number of rows with a future time that one transaction corrects, small for the same reason.
const ROWS: u64 = 256;

/// An event to drop.
struct Oldest {
    sequence: u64,
    subject_id: i64,
    subject: String,
    stored_at: u64,
    size: u64,
}

impl Store {
    /// Returns true if events expire by age, even while nothing else happens.
    pub(super) fn expires_by_age(&self) -> bool {
        !self.config.max_age.is_zero()
    }

    /// Returns true if there are events to drop, or future storage times that keep events from expiring.
    pub(super) fn is_retention_due(&mut self) -> Sql<bool> {
        let counters = self.counters()?;
        let oldest = self.oldest_stored_at()?;
        let now_ms = self.config.now_ms();
        let is_surplus = oldest.is_some_and(|stored_at| self.is_surplus(counters, stored_at, now_ms));
        Ok(is_surplus || (self.expires_by_age() && is_ahead(counters, now_ms)))
    }

    /// Runs retention in a transaction of its own, while no caller publishes.
    pub(super) fn retain_in_transaction(&mut self) -> Sql<()> {
        if let Err(failure) = self.transaction(Access::Write, |_| Ok(())) {
            tracing::debug!(?failure, "dropping expired events failed");
            self.set_surplus(false);
        }
        Ok(())
    }

    /// Drops the events that exceed the limits, up to the bound of one transaction.
    pub(super) fn retain(&mut self) -> Sql<()> {
        if !self.is_retention_due()? {
            self.set_surplus(false);
            return Ok(());
        }
        // More than were stored, so that the surplus shrinks.
        let most = STEP + 2 * self.appended;
        let dropped = self.surplus_events(most)?;
        let is_ahead = is_ahead(self.counters()?, self.config.now_ms());
        self.set_surplus(dropped.len() as u64 == most || is_ahead);
        self.drop_oldest(dropped)
    }

    /// Drops some of the oldest events, up to this sequence, regardless of the limits. Returns their number.
    pub(super) fn purge_some(&mut self, through: u64) -> Sql<u64> {
        let oldest = self.oldest_events(STEP, |event, _| event.sequence <= through)?;
        let purged = oldest.len() as u64;
        self.drop_oldest(oldest)?;
        Ok(purged)
    }

    /// Drops the oldest events, which must be in ascending order.
    fn drop_oldest(&mut self, dropped: Vec<Oldest>) -> Sql<()> {
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
        let dropped: Vec<_> = dropped.into_iter().map(Dropped::from).collect();
        self.count_missed(&dropped)
    }

    fn surplus_events(&mut self, most: u64) -> Sql<Vec<Oldest>> {
        let mut counters = self.counters()?;
        let now_ms = self.config.now_ms();
        self.oldest_events(most, |event, store| {
            let is_surplus = store.is_surplus(counters, event.stored_at, now_ms);
            remove(&mut counters, event);
            is_surplus
        })
    }

    /// Returns the oldest events for as long as they are to be dropped.
    fn oldest_events(
        &self,
        most: u64,
        mut is_dropped: impl FnMut(&Oldest, &Self) -> bool,
    ) -> Sql<Vec<Oldest>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT sequence, subject, name, stored_at, size FROM events JOIN subjects ON id = subject
             ORDER BY sequence LIMIT ?1",
        )?;
        let mut rows = statement.query([signed(most)])?;
        let mut oldest = Vec::new();
        while let Some(row) = rows.next()? {
            let event = Oldest {
                sequence: unsigned(row.get(0)?),
                subject_id: row.get(1)?,
                subject: row.get(2)?,
                stored_at: unsigned(row.get(3)?),
                size: unsigned(row.get(4)?),
            };
            if !is_dropped(&event, self) {
                break;
            }
            oldest.push(event);
        }
        Ok(oldest)
    }

    /// Returns true if the oldest event, stored at this time, must be dropped.
    fn is_surplus(&self, counters: Counters, stored_at: u64, now_ms: u64) -> bool {
        let config = &self.config;
        let max_age_ms = u64::try_from(config.max_age.as_millis()).unwrap_or(u64::MAX);
        (config.max_events != 0 && counters.messages > config.max_events)
            || (config.max_bytes != 0 && counters.bytes > config.max_bytes && counters.messages > 1)
            || (max_age_ms != 0 && stored_at.saturating_add(max_age_ms) <= now_ms)
    }

    /// Sets future storage times to the current time, after the clock was set back. A future time would keep events
    /// from expiring, and all later events would get it too. Works in steps from the oldest event on, so that storage
    /// times never decrease.
    pub(super) fn bound_storage_times(&mut self) -> Sql<()> {
        let now_ms = self.config.now_ms();
        let counters = self.counters()?;
        if !is_ahead(counters, now_ms) {
            return Ok(());
        }
        let most = ROWS + 2 * self.appended;
        let mut rows = Vec::new();
        if let Some(first) = history::first_stored_since(&self.connection, now_ms.saturating_add(1))? {
            let mut statement = self.connection.prepare_cached(
                "SELECT sequence, subject, stored_at, checksum, record FROM events WHERE sequence >= ?1
                 ORDER BY sequence LIMIT ?2",
            )?;
            let mut found = statement.query(params![signed(first), signed(most)])?;
            while let Some(row) = found.next()? {
                let (sequence, subject): (i64, i64) = (row.get(0)?, row.get(1)?);
                let record = row.get_ref(4)?.as_blob()?;
                let is_sound =
                    row.get::<_, i64>(3)? == checksum::of_event(sequence, subject, row.get(2)?, record);
                let bounded = checksum::of_event(sequence, subject, signed(now_ms), record);
                // The time of a damaged row means nothing, and the damage must stay detectable.
                rows.push((sequence, is_sound.then_some(bounded)));
            }
        }
        let mut update = self
            .connection
            .prepare_cached("UPDATE events SET stored_at = ?2, checksum = ?3 WHERE sequence = ?1")?;
        for (sequence, checksum) in &rows {
            if let Some(checksum) = checksum {
                update.execute(params![sequence, signed(now_ms), checksum])?;
            }
        }
        drop(update);
        if (rows.len() as u64) < most || rows.iter().all(|(_, bounded)| bounded.is_none()) {
            self.set_counters(Counters { last_stored_at: now_ms, ..counters });
        }
        // The rows may include the oldest event.
        self.forget_first();
        self.set_surplus(true);
        Ok(())
    }

    /// Does the same for `msg_id`s: from now on, none is kept for longer than the window.
    pub(super) fn bound_message_ids(&mut self, now_ms: u64) -> Sql<()> {
        if std::mem::replace(&mut self.ids_are_bounded, true) {
            return Ok(());
        }
        let newest: Option<i64> = self
            .connection
            .prepare_cached("SELECT stored_at FROM message_ids ORDER BY stored_at DESC LIMIT 1")?
            .query_row([], |row| row.get(0))
            .optional()?;
        if newest.is_none_or(|newest| unsigned(newest) <= now_ms) {
            return Ok(());
        }
        self.connection
            .prepare_cached(
                "UPDATE message_ids SET stored_at = ?1 WHERE msg_id IN
                     (SELECT msg_id FROM message_ids WHERE stored_at > ?1 ORDER BY stored_at LIMIT ?2)",
            )?
            .execute(params![signed(now_ms), signed(ROWS)])
            .map(drop)
    }

    /// Deletes `msg_id`s that are older than the window, a few at a time.
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

impl From<Oldest> for Dropped {
    fn from(oldest: Oldest) -> Self {
        Self { sequence: oldest.sequence, subject: oldest.subject, stored_at: oldest.stored_at }
    }
}

/// Returns true if the newest storage time is from a clock that was ahead.
fn is_ahead(counters: Counters, now_ms: u64) -> bool {
    counters.last_stored_at > now_ms.saturating_add(CLOCK_TOLERANCE_MS)
}

fn remove(counters: &mut Counters, event: &Oldest) {
    counters.messages = counters.messages.saturating_sub(1);
    counters.bytes = counters.bytes.saturating_sub(event.size);
}
