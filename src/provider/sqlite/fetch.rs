//! Fetches the next events of a consumer.

use std::collections::VecDeque;

use rusqlite::{Connection, Statement, params};
use tokio::sync::oneshot;

use super::cells::ConsumerKey;
use super::consumers::Known;
use super::error::{Failure, Sql};
use super::queue::{GiveBack, Work};
use super::store::{Store, signed, unsigned};
use super::{checksum, history};
use crate::error::{EventError, Result};
use crate::provider::group::{Fetched, Lease, Time};
use crate::provider::receiver::Ask;
use crate::provider::{SubscriptionEnd, UndecodableRecord};
use crate::subject::subject_matches;

/// Number of events to scan before a rare filter is looked up by its subjects.
const SCAN: u32 = 512;
/// Bytes of JSON from which an answer is full; its last event may exceed them.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// One item of an answer.
#[derive(Debug)]
pub(super) enum Item {
    Event {
        lease: Lease,
        /// Record as stored. The member decodes it, which keeps work off the writer thread.
        record: Vec<u8>,
        /// True if the event is already acked, for a member that takes events at most once.
        acked: bool,
    },
    /// A damaged record, for a member that keeps undecodable records.
    Damaged {
        lease: Lease,
        record: UndecodableRecord,
    },
    Error(EventError),
}

impl Item {
    /// Returns the lease of an item that was not delivered.
    pub(super) fn unused_lease(&self) -> Option<Lease> {
        match self {
            Self::Event { lease, acked: false, .. } | Self::Damaged { lease, .. } => Some(*lease),
            Self::Event { .. } | Self::Error(_) => None,
        }
    }
}

/// Answer to a request of a member.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) items: Vec<Item>,
    /// Time at which to ask again if nothing happens before.
    pub(super) due: Option<Time>,
    /// Reason why no more events will follow.
    pub(super) end: Option<SubscriptionEnd>,
}

impl Answer {
    /// Returns the leases of events that were not delivered.
    pub(super) fn unused_leases(self) -> Vec<Lease> {
        self.items.into_iter().filter_map(|item| item.unused_lease()).collect()
    }
}

/// Request of a member for events.
pub(super) struct Request {
    pub(super) consumer: ConsumerKey,
    pub(super) ask: Ask,
    pub(super) done: Result<Answer>,
    pub(super) reply: oneshot::Sender<Result<Answer>>,
}

impl Work for Request {
    fn run(&mut self, store: &mut Store) -> Sql<()> {
        self.done = store.fetch(self)?;
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: std::result::Result<(), &Failure>) -> Option<GiveBack> {
        let answer = match outcome {
            Ok(()) => self.done,
            Err(failure) => Err(failure.to_error("next")),
        };
        // The member was dropped while it waited, so its events are released to other members.
        let unwanted = self.reply.send(answer).err()?.ok()?;
        let leases = unwanted.unused_leases();
        (!leases.is_empty()).then_some(GiveBack { consumer: self.consumer, leases, forget: false })
    }
}

const DAMAGED: &str = "it does not match its checksum";

/// Remaining room in an answer.
struct Room {
    events: usize,
    bytes: usize,
}

/// Delivers events until there is no room, none is due, or the next matches must be looked up. Returns true in the last
/// case.
fn hand_out(
    connection: &Connection,
    known: &mut Known,
    now: Time,
    first: u64,
    ask: Ask,
    room: &mut Room,
    answer: &mut Answer,
) -> Sql<bool> {
    let Known { name, machine, upcoming, .. } = known;
    let mut read = connection
        .prepare_cached("SELECT subject, stored_at, checksum, record FROM events WHERE sequence = ?1")?;
    while room.events > 0 && room.bytes > 0 {
        let lease = match machine.fetch(now, first, |_cursor| upcoming.pop_front()) {
            Fetched::Deliver(lease) => lease,
            Fetched::Missed(missed) => {
                answer.items.push(Item::Error(EventError::Lagged { consumer: name.clone(), missed }));
                return Ok(false);
            }
            Fetched::Idle => {
                answer.due = machine.next_due();
                return Ok(false);
            }
        };
        let record = read_record(&mut read, lease.sequence)?;
        let keeps = ask.keep_undecodable && !ask.ack;
        let is_over = match &record {
            Ok(_) => ask.ack,
            Err(Unreadable::Damaged(_)) => !keeps,
            Err(Unreadable::Gone) => true,
        };
        if is_over {
            // The lease is new and cannot be stale.
            let _ = machine.ack(lease);
        }
        match record {
            Ok(record) => {
                room.events -= 1;
                room.bytes = room.bytes.saturating_sub(record.len());
                answer.items.push(Item::Event { lease, record, acked: ask.ack });
            }
            Err(Unreadable::Damaged(raw)) if keeps => {
                room.events -= 1;
                room.bytes = room.bytes.saturating_sub(raw.len());
                let record = UndecodableRecord::new(raw, DAMAGED);
                answer.items.push(Item::Damaged { lease, record });
            }
            Err(Unreadable::Damaged(raw)) => {
                let (sequence, reason) = (lease.sequence, DAMAGED.to_owned());
                answer.items.push(Item::Error(EventError::Undecodable { sequence, raw, reason }));
                return Ok(false);
            }
            Err(Unreadable::Gone) => {
                answer.items.push(Item::Error(EventError::Lagged { consumer: name.clone(), missed: 1 }));
                return Ok(false);
            }
        }
        if upcoming.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

enum Unreadable {
    Gone,
    Damaged(Vec<u8>),
}

fn read_record(read: &mut Statement<'_>, sequence: u64) -> Sql<std::result::Result<Vec<u8>, Unreadable>> {
    let sequence = signed(sequence);
    let mut rows = read.query([sequence])?;
    let Some(row) = rows.next()? else {
        return Ok(Err(Unreadable::Gone));
    };
    let record = row.get_ref(3)?.as_blob()?;
    let found = checksum::of_event(sequence, row.get(0)?, row.get(1)?, record);
    let record = record.to_vec();
    Ok(if found == row.get::<_, i64>(2)? { Ok(record) } else { Err(Unreadable::Damaged(record)) })
}

impl Store {
    fn fetch(&mut self, asked: &Request) -> Sql<Result<Answer>> {
        let mut answer = Answer::default();
        let Some(id) = self.id_of(asked.consumer) else {
            answer.end = Some(SubscriptionEnd::StreamReplaced);
            return Ok(Ok(answer));
        };
        let (now, first) = (self.now(), self.first()?);
        if let Err(damaged) = self.sound_consumer("next", id)? {
            return Ok(Err(damaged));
        }
        self.overtake(id)?;
        let mut room = Room { events: asked.ask.max, bytes: MAX_BYTES };
        loop {
            self.look_ahead(id)?;
            let Some(known) = self.consumers.known_mut(id) else {
                answer.end = Some(SubscriptionEnd::Deleted);
                break;
            };
            let exhausted = known.machine.exhausted();
            let before = answer.items.len();
            let goes_on = hand_out(&self.connection, known, now, first, asked.ask, &mut room, &mut answer)?;
            if answer.items.len() > before || known.machine.exhausted() != exhausted {
                self.mark_changed(id);
            }
            if !goes_on {
                break;
            }
        }
        self.consumers.note_full(id);
        if id > 0 && asked.ask.ack {
            self.note_acks(answer.items.len());
        }
        Ok(Ok(answer))
    }

    /// Returns the subject that a record was stored under.
    pub(super) fn subject_of(&self, sequence: u64) -> Sql<String> {
        let sql = "SELECT name FROM events JOIN subjects ON id = subject WHERE sequence = ?1";
        self.connection.query_row(sql, [signed(sequence)], |row| row.get(0))
    }

    /// Finds the next matches after the cursor, unless some are cached.
    fn look_ahead(&mut self, id: i64) -> Sql<()> {
        let (first, last) = (self.first()?, self.counters()?.last);
        let Some(Known { machine, upcoming, scanned, .. }) = self.consumer(id)? else {
            return Ok(());
        };
        // Since the match was found, another process delivered it or retention dropped it.
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

    /// Scans a number of events after `from`. Returns the sequence up to which all matches are found.
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
        // For a rare filter, the index by subject finds the next match.
        let next = history::next_match(&self.connection, filter, reached)?;
        Ok(next.map_or(last, |next| next - 1))
    }
}
