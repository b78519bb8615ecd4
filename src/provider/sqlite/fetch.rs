//! What a consumer hands out next.

use std::collections::VecDeque;
use std::sync::Arc;

use rusqlite::{OptionalExtension, params};
use tokio::sync::oneshot;

use super::consumers::Known;
use super::error::{Failure, Sql};
use super::history;
use super::queue::{GiveBack, Work};
use super::store::{Store, signed, unsigned};
use crate::error::{EventError, Result};
use crate::provider::UndecodableRecord;
use crate::provider::consumer::{Fetched, Lease, Time};
use crate::subject::subject_matches;
use crate::types::Event;

/// How many events to look at before a rare filter is looked up by its subjects.
const SCAN: u32 = 512;
/// Most bytes of JSON in one answer, unless its first event is larger.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// What a member gets.
#[derive(Debug)]
pub(super) enum Item {
    Event {
        lease: Lease,
        event: Arc<Event>,
        /// Acked already, for a member that takes events at most once.
        settled: bool,
        /// The record, for a member that keeps those that are not events; the event only stands for it.
        undecodable: Option<UndecodableRecord>,
    },
    Error(EventError),
}

/// What a member gets when it asks.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) items: Vec<Item>,
    /// When to ask again if nothing happens before.
    pub(super) due: Option<Time>,
    /// Whether the consumer is gone.
    pub(super) gone: bool,
}

impl Answer {
    /// The leases of events that nobody was given.
    pub(super) fn unused_leases(self) -> Vec<Lease> {
        unused_leases(self.items)
    }
}

pub(super) fn unused_leases(items: impl IntoIterator<Item = Item>) -> Vec<Lease> {
    let unused = |item| match item {
        Item::Event { lease, settled: false, .. } => Some(lease),
        _ => None,
    };
    items.into_iter().filter_map(unused).collect()
}

/// A member asks for up to `max` events.
pub(super) struct Fetch {
    pub(super) consumer: i64,
    pub(super) max: usize,
    /// Whether to ack what is handed out.
    pub(super) settle: bool,
    /// Whether records that are not events are leased instead of settled.
    pub(super) keep_undecodable: bool,
    pub(super) done: Answer,
    pub(super) reply: oneshot::Sender<Result<Answer>>,
}

impl Work for Fetch {
    fn run(&mut self, store: &mut Store) -> Sql<()> {
        self.done = store.fetch(self)?;
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: std::result::Result<(), &Failure>) -> Option<GiveBack> {
        let answer = match outcome {
            Ok(()) => Ok(self.done),
            Err(failure) => Err(failure.to_error("next")),
        };
        // The member was dropped while it waited: others get what it would have got.
        let unwanted = self.reply.send(answer).err()?.ok()?;
        let leases = unwanted.unused_leases();
        (!leases.is_empty()).then_some(GiveBack { consumer: self.consumer, leases, forget: false })
    }
}

impl Store {
    fn fetch(&mut self, asked: &Fetch) -> Sql<Answer> {
        let (id, max) = (asked.consumer, asked.max);
        let mut answer = Answer::default();
        let mut bytes = 0;
        let (now, first) = (self.now(), self.first()?);
        while answer.items.len() < max && bytes < MAX_BYTES {
            self.look_ahead(id)?;
            let Some(Known { name, machine, upcoming, .. }) = self.consumer(id)? else {
                answer.gone = true;
                break;
            };
            let next_match = |_cursor| upcoming.pop_front();
            let exhausted = machine.exhausted();
            match machine.fetch(now, first, next_match) {
                Fetched::Deliver(lease) => {
                    let name = name.clone();
                    let item = self.item(asked, &name, lease, &mut bytes)?;
                    let is_last = matches!(item, Item::Error(_));
                    answer.items.push(item);
                    self.mark_changed(id);
                    if is_last {
                        break;
                    }
                }
                Fetched::Missed(missed) => {
                    answer.items.push(Item::Error(EventError::Lagged { consumer: name.clone(), missed }));
                    self.mark_changed(id);
                    break;
                }
                Fetched::Idle => {
                    answer.due = machine.next_due();
                    if machine.exhausted() != exhausted {
                        self.mark_changed(id);
                    }
                    break;
                }
            }
        }
        Ok(answer)
    }

    /// The leased event, or what is wrong with its record, which is then settled unless it is to be kept.
    fn item(&mut self, asked: &Fetch, name: &str, lease: Lease, bytes: &mut usize) -> Sql<Item> {
        let (id, settle) = (asked.consumer, asked.settle);
        let record: Option<Vec<u8>> = self
            .connection
            .prepare_cached("SELECT record FROM events WHERE sequence = ?1")?
            .query_row([signed(lease.sequence)], |row| row.get(0))
            .optional()?;
        let item = match record {
            None => Item::Error(EventError::Lagged { consumer: name.to_owned(), missed: 1 }),
            Some(raw) => match serde_json::from_slice(&raw) {
                Ok(event) => {
                    *bytes += raw.len();
                    Item::Event { lease, event: Arc::new(event), settled: settle, undecodable: None }
                }
                Err(error) if asked.keep_undecodable && !settle => {
                    let subject = self.subject_of(lease.sequence)?;
                    let record = UndecodableRecord::new(raw, error.to_string());
                    let event = Arc::new(record.stand_in(&subject, lease.sequence));
                    Item::Event { lease, event, settled: false, undecodable: Some(record) }
                }
                Err(error) => {
                    let (sequence, reason) = (lease.sequence, error.to_string());
                    Item::Error(EventError::Undecodable { sequence, raw, reason })
                }
            },
        };
        if (settle || matches!(item, Item::Error(_)))
            && let Some(known) = self.consumer(id)?
        {
            // It was leased a moment ago and cannot be stale.
            let _ = known.machine.ack(lease);
        }
        Ok(item)
    }

    fn subject_of(&self, sequence: u64) -> Sql<String> {
        let sql = "SELECT name FROM events JOIN subjects ON id = subject WHERE sequence = ?1";
        self.connection.query_row(sql, [signed(sequence)], |row| row.get(0))
    }

    /// Finds the next matches behind the cursor, unless some are known.
    fn look_ahead(&mut self, id: i64) -> Sql<()> {
        let (first, last) = (self.first()?, self.counters()?.last);
        let Some(Known { machine, upcoming, scanned, .. }) = self.consumer(id)? else {
            return Ok(());
        };
        // Handed out by another process, or dropped by retention, since it was found.
        let gone = machine.cursor().max(first.saturating_sub(1));
        while upcoming.front().is_some_and(|sequence| *sequence <= gone) {
            upcoming.pop_front();
        }
        let mut from = gone.max(*scanned);
        if !upcoming.is_empty() || from >= last {
            return Ok(());
        }
        let filter = machine.config().filter.clone();
        let mut found = VecDeque::new();
        while found.is_empty() && from < last {
            from = self.scan(&filter, from, last, &mut found)?;
        }
        if let Some(known) = self.consumer(id)? {
            known.upcoming = found;
            known.scanned = from;
        }
        Ok(())
    }

    /// Looks at a number of events behind `from`, and returns up to where all matches are found.
    fn scan(&self, filter: &str, from: u64, last: u64, found: &mut VecDeque<u64>) -> Sql<u64> {
        if self.is_everything(filter) {
            // All retained sequences are consecutive.
            found.extend((from + 1..=last).take(SCAN as usize));
            return Ok(found.back().copied().unwrap_or(last));
        }
        let mut statement = self.connection.prepare_cached(
            "SELECT sequence, name FROM events JOIN subjects ON id = subject WHERE sequence > ?1
             ORDER BY sequence LIMIT ?2",
        )?;
        let mut rows = statement.query(params![signed(from), SCAN])?;
        let mut scanned = 0;
        let mut reached = last;
        while let Some(row) = rows.next()? {
            let sequence = unsigned(row.get(0)?);
            if subject_matches(row.get_ref(1)?.as_str()?, filter) {
                found.push_back(sequence);
            }
            scanned += 1;
            if scanned == SCAN {
                reached = sequence;
            }
        }
        if scanned < SCAN || !found.is_empty() {
            return Ok(reached);
        }
        // A rare filter: its subjects know where it goes on.
        let next = history::next_match(&self.connection, filter, reached)?;
        Ok(next.map_or(last, |next| next - 1))
    }
}
