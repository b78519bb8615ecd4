//! Counts events that retention drops before consumers receive them. It counts by filter and position, so that many
//! consumers do not make a drop more expensive.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rusqlite::params;

use super::error::Sql;
use super::store::{Store, signed, unsigned};
use crate::subject::SubjectIndex;

/// Consumers of one filter that does not match everything.
#[derive(Default)]
struct Group {
    filter: String,
    /// Number of durable consumers at each cursor.
    cursors: BTreeMap<u64, usize>,
    /// Content of the table `overtaken`: the number of matches that were dropped after a cursor, up to the next higher
    /// one.
    missed: BTreeMap<u64, u64>,
    ephemerals: BTreeSet<i64>,
}

impl Group {
    /// Returns the highest cursor before this sequence.
    fn highest_before(&self, sequence: u64) -> Option<u64> {
        self.cursors.range(..sequence).next_back().map(|(cursor, _)| *cursor)
    }
}

/// Positions of consumers, as far as they are needed to count missed events.
#[derive(Default)]
pub(super) struct Positions {
    /// `None` until read.
    known: Option<Known>,
}

#[derive(Default)]
struct Known {
    groups: Vec<Group>,
    filters: SubjectIndex<usize>,
    /// Start times of durable consumers that have not started.
    not_started: HashMap<i64, u64>,
}

impl Known {
    fn group(&mut self, filter: &str) -> Option<&mut Group> {
        let index = match self.filters.get(filter) {
            Some(index) => *index,
            None => {
                let index = self.groups.len();
                // An invalid filter, which only damage can cause, matches nothing.
                self.filters.insert(filter, index).ok()?;
                self.groups.push(Group { filter: filter.to_owned(), ..Group::default() });
                index
            }
        };
        self.groups.get_mut(index)
    }
}

impl Positions {
    /// Discards the positions, because another process wrote or a transaction failed.
    pub(super) fn forget(&mut self) {
        self.known = None;
    }
}

/// An event that was dropped.
pub(super) struct Dropped {
    pub(super) sequence: u64,
    pub(super) subject: String,
    pub(super) stored_at: u64,
}

impl Store {
    fn known_positions(&mut self) -> Sql<Known> {
        if let Some(known) = self.consumers.positions.known.take() {
            return Ok(known);
        }
        let mut known = Known::default();
        let mut statement =
            self.connection.prepare_cached("SELECT id, filter, cursor, starts_at FROM consumers")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(starts_at) = row.get::<_, Option<i64>>(3)? {
                known.not_started.insert(row.get(0)?, unsigned(starts_at));
                continue;
            }
            let filter = row.get_ref(1)?.as_str()?;
            if !self.is_everything(filter)
                && let Some(group) = known.group(filter)
            {
                *group.cursors.entry(unsigned(row.get(2)?)).or_default() += 1;
            }
        }
        let mut statement = self.connection.prepare_cached("SELECT filter, cursor, missed FROM overtaken")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(group) = known.group(row.get_ref(0)?.as_str()?) {
                group.missed.insert(unsigned(row.get(1)?), unsigned(row.get(2)?));
            }
        }
        for (id, ephemeral) in self.consumers.ephemerals() {
            let filter = &ephemeral.machine.config().filter;
            if ephemeral.starts_at.is_none()
                && !self.is_everything(filter)
                && let Some(group) = known.group(filter)
            {
                group.ephemerals.insert(id);
            }
        }
        Ok(known)
    }

    /// Records that a consumer has moved, or is new or gone. Updates the stored counts.
    pub(super) fn moved(
        &mut self,
        id: i64,
        filter: &str,
        starts_at: Option<u64>,
        before: Option<u64>,
        now: Option<u64>,
    ) -> Sql<()> {
        if before == now && starts_at.is_none() {
            return Ok(());
        }
        let is_everything = self.is_everything(filter);
        let Some(mut known) = self.consumers.positions.known.take() else {
            // The positions are not loaded. Only the count stored at the old position may have to move to the next
            // lower one.
            return match before.filter(|_| !is_everything && id > 0) {
                Some(before) => self.leave(filter, before),
                None => Ok(()),
            };
        };
        match starts_at.filter(|_| id > 0) {
            Some(starts_at) => drop(known.not_started.insert(id, starts_at)),
            None => drop(known.not_started.remove(&id)),
        }
        let mut changes = Vec::new();
        if !is_everything && let Some(group) = known.group(filter) {
            if id < 0 {
                if now.is_some() {
                    group.ephemerals.insert(id)
                } else {
                    group.ephemerals.remove(&id)
                };
            } else {
                if let Some(now) = now {
                    *group.cursors.entry(now).or_default() += 1;
                }
                if let Some(before) = before
                    && let Some(count) = group.cursors.get_mut(&before)
                {
                    *count -= 1;
                    if *count == 0 {
                        group.cursors.remove(&before);
                        changes = group.hand_down(before);
                    }
                }
            }
        }
        self.consumers.positions.known = Some(known);
        changes.into_iter().try_for_each(|(cursor, missed)| self.store_missed(filter, cursor, missed))
    }

    /// Does the work of [`moved`](Store::moved) when a consumer leaves a position and the positions are not loaded.
    fn leave(&mut self, filter: &str, before: u64) -> Sql<()> {
        let is_noted: bool = self
            .connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM overtaken WHERE filter = ?1 AND cursor = ?2)")?
            .query_row(params![filter, signed(before)], |row| row.get(0))?;
        if !is_noted {
            return Ok(());
        }
        // The rows have the current positions.
        let mut known = self.known_positions()?;
        let changes = match known.group(filter) {
            Some(group) if !group.cursors.contains_key(&before) => group.hand_down(before),
            _ => Vec::new(),
        };
        self.consumers.positions.known = Some(known);
        changes.into_iter().try_for_each(|(cursor, missed)| self.store_missed(filter, cursor, missed))
    }

    /// Stores the number of matches that were dropped after a cursor. Deletes the row if the number is 0.
    fn store_missed(&self, filter: &str, cursor: u64, missed: u64) -> Sql<()> {
        let cursor = signed(cursor);
        if missed == 0 {
            return self
                .connection
                .prepare_cached("DELETE FROM overtaken WHERE filter = ?1 AND cursor = ?2")?
                .execute(params![filter, cursor])
                .map(drop);
        }
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO overtaken (filter, cursor, missed) VALUES (?1, ?2, ?3)")?
            .execute(params![filter, cursor, signed(missed)])
            .map(drop)
    }

    /// Moves a consumer past the events that retention dropped, and counts those that it missed.
    pub(super) fn overtake(&mut self, id: i64) -> Sql<()> {
        self.begin_if_due(id)?;
        let dropped = self.first()?.saturating_sub(1);
        let Some(known) = self.consumers.known_mut(id).filter(|known| known.machine.cursor() < dropped)
        else {
            return Ok(());
        };
        let (cursor, filter) = (known.machine.cursor(), known.machine.config().filter.clone());
        // Drops are counted from the stored position, which may be behind the cursor.
        let position = known.position.unwrap_or(cursor);
        let missed = if self.is_everything(&filter) {
            dropped - cursor
        } else if id < 0 {
            // An ephemeral consumer's count was updated when the event was dropped.
            0
        } else {
            let mut positions = self.known_positions()?;
            let missed = positions
                .group(&filter)
                .map_or(0, |group| group.missed.range(position..).map(|(_, n)| n).sum());
            self.consumers.positions.known = Some(positions);
            missed
        };
        if let Some(known) = self.consumer(id)? {
            known.machine.skip_to(dropped, missed);
        }
        Ok(())
    }

    /// Counts the dropped events that consumers have not received. The events must be in ascending order.
    pub(super) fn count_missed(&mut self, dropped: &[Dropped]) -> Sql<()> {
        let Some(newest) = dropped.last() else { return Ok(()) };
        let mut known = self.known_positions()?;
        let started: Vec<i64> = known
            .not_started
            .iter()
            .filter_map(|(id, starts_at)| (*starts_at <= newest.stored_at).then_some(*id))
            .collect();
        if !started.is_empty() {
            self.consumers.positions.known = Some(known);
            self.start_before(&started, dropped)?;
            known = self.known_positions()?;
        }
        let mut touched = BTreeSet::new();
        let mut ephemerals: BTreeMap<i64, u64> = BTreeMap::new();
        let Known { groups, filters, .. } = &mut known;
        for event in dropped {
            filters.for_each_match(&event.subject, |index| {
                let Some(group) = groups.get_mut(*index) else { return };
                if let Some(cursor) = group.highest_before(event.sequence) {
                    *group.missed.entry(cursor).or_default() += 1;
                    touched.insert((*index, cursor));
                }
                for id in &group.ephemerals {
                    if self.consumers.cursor(*id) < Some(event.sequence) {
                        *ephemerals.entry(*id).or_default() += 1;
                    }
                }
            });
        }
        for (index, cursor) in touched {
            if let Some(group) = known.groups.get(index)
                && let Some(missed) = group.missed.get(&cursor)
            {
                self.store_missed(&group.filter, cursor, *missed)?;
            }
        }
        self.consumers.positions.known = Some(known);
        for (id, missed) in ephemerals {
            if let Some(known) = self.consumer(id)? {
                known.machine.note_missed(missed);
            }
        }
        let behind = self.consumers.full().filter(|(_, known)| known.machine.cursor() < newest.sequence);
        self.wakeups.consumers.extend(behind.map(|(id, _)| id));
        Ok(())
    }

    /// Starts consumers whose start time has come although they never asked for events.
    fn start_before(&mut self, ids: &[i64], dropped: &[Dropped]) -> Sql<()> {
        for id in ids {
            let Ok(Some(known)) = self.sound_consumer("retention", *id)? else { continue };
            let Some(starts_at) = known.starts_at.take() else { continue };
            let first = dropped.iter().find(|event| event.stored_at >= starts_at);
            if let Some(first) = first {
                known.machine.skip_to(first.sequence.saturating_sub(1), 0);
            }
            self.mark_changed(*id);
        }
        self.save_consumers()
    }
}

impl Group {
    /// Moves the count of a cursor without consumers to the next lower cursor. Returns the counts to store.
    fn hand_down(&mut self, cursor: u64) -> Vec<(u64, u64)> {
        let Some(missed) = self.missed.remove(&cursor) else { return Vec::new() };
        let mut changes = vec![(cursor, 0)];
        if let Some(lower) = self.highest_before(cursor) {
            let sum = self.missed.entry(lower).or_default();
            *sum += missed;
            changes.push((lower, *sum));
        }
        changes
    }
}
