//! What was published and what handlers did, and what must hold about it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use a3s_event::dlq::{DeadLetterFilter, StoredDeadLetter};
use a3s_event::testing::{Outcome, TestBus, TestConsumer};
use a3s_event::{Event, HistoryQuery};
use tokio::time::Instant;

/// The longest time in which one consumer takes the place of another: the slowest handler, and its lease.
const HANDOVER: Duration = Duration::from_secs(120);

/// What happens to an event in its handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Handled,
    /// Fails so often, and is then handled.
    Fails(u64),
    /// Fails at every attempt.
    Poison,
    /// Fails until the end of the life.
    Stubborn,
    /// Fails once, for good.
    Fatal,
    /// Takes so many seconds.
    Slow(u64),
    /// Panics at its first attempt.
    Panics,
}

impl Fate {
    /// Returns `true` if it can only become a dead letter.
    pub(super) fn is_hopeless(self) -> bool {
        matches!(self, Self::Poison | Self::Fatal)
    }
}

/// An event that a publisher has tried to publish.
#[derive(Debug, Clone)]
pub(super) struct Published {
    pub(super) key: String,
    pub(super) fate: Fate,
    /// True once a publish was acknowledged.
    pub(super) is_acknowledged: bool,
}

/// What one consumer did.
#[derive(Debug, Default)]
pub(super) struct Consumed {
    /// True if it must handle the events of a key in order.
    pub(super) is_ordered: bool,
    /// The key of its events; `None` for all.
    pub(super) only: Option<String>,
    /// Events up to this sequence may come out of order: a crash has left their leases behind.
    pub(super) excused: u64,
    /// Event of a key that is being handled.
    running: BTreeMap<String, u64>,
    /// Attempts of an event that have begun in this process.
    tries: BTreeMap<u64, u64>,
    handled: BTreeSet<u64>,
    /// Sequences whose ack was confirmed.
    settled: BTreeSet<u64>,
    /// Dead letters of each event, by sequence.
    pub(super) letters: BTreeMap<u64, u64>,
    pub(super) is_deleted: bool,
    /// True once a fault may have kept it from settling.
    pub(super) is_disturbed: bool,
    /// Time at which another one last took its place. If it could not settle or release its events, they come later.
    replaced: Option<Instant>,
    /// The consumer, and its crashes so far.
    pub(super) consumer: Option<TestConsumer>,
    crashes: u64,
}

impl Consumed {
    pub(super) fn new(is_ordered: bool, only: Option<String>) -> Self {
        Self { is_ordered, only, ..Self::default() }
    }

    /// Returns `true` as long as another one may be taking its place.
    pub(super) fn is_being_replaced(&self) -> bool {
        self.replaced.is_some_and(|replaced| replaced.elapsed() < HANDOVER)
    }
}

/// The record of one life. Handlers and the publisher write it.
#[derive(Clone, Default)]
pub(super) struct Record(Arc<Mutex<State>>);

#[derive(Default)]
pub(super) struct State {
    pub(super) published: BTreeMap<u64, Published>,
    pub(super) consumers: BTreeMap<String, Consumed>,
    /// Number of each event by its sequence.
    pub(super) stored: BTreeMap<u64, u64>,
    /// Lowest sequence that retention keeps.
    pub(super) first: u64,
    /// True once stubborn events can be handled.
    pub(super) is_relieved: bool,
    /// The first violation.
    violation: Option<String>,
}

/// An event as a handler sees it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) number: u64,
    pub(super) sequence: u64,
    pub(super) key: String,
}

impl Seen {
    pub(super) fn of(event: &Event, sequence: u64) -> Self {
        let number = event.payload.as_u64().unwrap();
        let key = event.subject.rsplit('.').next().unwrap().to_owned();
        Self { number, sequence, key }
    }
}

impl Record {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Returns the first violation as an error.
    pub(super) fn check(&self) -> Outcome {
        self.lock().violation.clone().map_or(Ok(()), |violation| Err(violation.into()))
    }

    /// Returns the sequence of an event that is stored.
    pub(super) async fn sequence_of(&self, t: &TestBus, number: u64) -> u64 {
        let is_it = |stored: &u64| *stored == number;
        let noted =
            self.lock().stored.iter().find(|(_, stored)| is_it(stored)).map(|(sequence, _)| *sequence);
        if let Some(noted) = noted {
            return noted;
        }
        // The publisher may not know yet that its last event is stored.
        let newest = t.provider().query(&HistoryQuery::new(usize::MAX)).await.unwrap();
        newest.iter().find(|stored| stored.event.payload.as_u64() == Some(number)).unwrap().sequence
    }

    /// Begins an attempt, and returns its number in this process.
    pub(super) async fn begin(&self, t: &TestBus, consumer: &str, seen: &Seen) -> u64 {
        // The publisher may not know yet that its last event is stored.
        let newest = t.provider().query(&HistoryQuery::new(1)).await.unwrap();
        let newest = newest.first().map_or(0, |newest| newest.sequence);
        {
            let mut state = self.lock();
            state.note_crashes(consumer, newest);
            if let Some(consumed) = state
                .consumers
                .get_mut(consumer)
                .filter(|consumed| consumed.is_disturbed && consumed.is_being_replaced())
            {
                consumed.excused = newest;
            }
        }
        if self.lock().wrong_start(consumer, seen).is_some() {
            // What is before it may have become a dead letter just now.
            self.read_letters(t).await;
        }
        let mut state = self.lock();
        if let Some(wrong) = state.wrong_start(consumer, seen) {
            state.violate(format!("{consumer}: {wrong}"));
        }
        let consumed = state.consumers.entry(consumer.to_owned()).or_default();
        consumed.running.insert(seen.key.clone(), seen.sequence);
        let tries = consumed.tries.entry(seen.sequence).or_default();
        *tries += 1;
        *tries
    }

    /// Reads the dead letters.
    pub(super) async fn read_letters(&self, t: &TestBus) {
        let letters = t.dead_letters().unwrap();
        let letters = letters.find(&DeadLetterFilter::default().status(None), usize::MAX).await.unwrap();
        self.lock().set_letters(&letters);
    }

    /// Ends an attempt.
    pub(super) fn end(&self, consumer: &str, seen: &Seen) {
        let mut state = self.lock();
        let consumed = state.consumers.entry(consumer.to_owned()).or_default();
        if consumed.running.get(&seen.key) == Some(&seen.sequence) {
            consumed.running.remove(&seen.key);
        }
    }

    /// Notes that a handler has succeeded.
    pub(super) fn handled(&self, consumer: &str, seen: &Seen) {
        self.lock().consumers.entry(consumer.to_owned()).or_default().handled.insert(seen.sequence);
    }

    /// Notes that the ack of an event was confirmed.
    pub(super) fn settled(&self, consumer: &str, sequence: u64) {
        self.lock().consumers.entry(consumer.to_owned()).or_default().settled.insert(sequence);
    }

    /// Notes a restart: a new process counts its attempts anew. If events could not be released, they come later.
    pub(super) fn restarted(&self, consumer: &str, is_cut_short: bool) {
        let mut state = self.lock();
        let last = state.stored.keys().next_back().copied().unwrap_or(0);
        let consumed = state.consumers.entry(consumer.to_owned()).or_default();
        if is_cut_short {
            consumed.excused = last;
        }
        consumed.running.clear();
        consumed.tries.clear();
    }

    /// Notes that another consumer takes the place of this one, and its position.
    pub(super) fn replaced(&self, consumer: &str) {
        self.lock().consumers.entry(consumer.to_owned()).or_default().replaced = Some(Instant::now());
    }

    /// Notes that settlements of these consumers may fail or come late.
    pub(super) fn disturb(&self, is_disturbed: impl Fn(&str) -> bool) {
        let mut state = self.lock();
        state.consumers.iter_mut().filter(|(name, _)| is_disturbed(name)).for_each(|(_, consumed)| {
            consumed.is_disturbed = true;
        });
    }
}

impl State {
    /// Notes a violation. The first one is reported.
    pub(super) fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// Notices crashes. What is stored so far, up to the event `newest`, may then come again, and out of order.
    pub(super) fn note_crashes(&mut self, consumer: &str, newest: u64) {
        let last = self.stored.keys().next_back().copied().unwrap_or(0).max(newest);
        let Some(consumed) = self.consumers.get_mut(consumer) else { return };
        let crashes = consumed.consumer.as_ref().map_or(0, TestConsumer::crashes);
        if crashes != consumed.crashes {
            consumed.crashes = crashes;
            consumed.excused = last;
            consumed.is_disturbed = true;
            consumed.running.clear();
            consumed.tries.clear();
        }
    }

    fn set_letters(&mut self, letters: &[StoredDeadLetter]) {
        self.consumers.values_mut().for_each(|consumed| consumed.letters.clear());
        for stored in letters {
            let subscriber = stored.letter.subscriber.as_deref().unwrap_or_default();
            let Some(consumed) = self.consumers.get_mut(subscriber) else { continue };
            *consumed.letters.entry(stored.letter.event.sequence).or_default() += 1;
        }
    }

    /// Returns what is wrong about the start of an attempt.
    fn wrong_start(&self, consumer: &str, seen: &Seen) -> Option<String> {
        let Seen { number, sequence, key } = seen;
        let consumed = self.consumers.get(consumer)?;
        if consumed.settled.contains(sequence) {
            return Some(format!("event {number} ({sequence}) was acknowledged and came again"));
        }
        if consumed.letters.contains_key(sequence) && !consumed.is_disturbed {
            return Some(format!("event {number} ({sequence}) was dead-lettered and came again"));
        }
        if !consumed.is_ordered {
            return None;
        }
        if let Some(other) = consumed.running.get(key).filter(|other| *other != sequence) {
            return Some(format!(
                "event {number} ({sequence}) of {key} began while {other} was being handled"
            ));
        }
        let begin = consumed.excused.max(self.first.saturating_sub(1)) + 1;
        let before =
            if begin < *sequence { self.stored.range(begin..*sequence) } else { self.stored.range(0..0) };
        before
            .filter(|(earlier, number)| {
                let is_of_key = self.published.get(number).is_some_and(|published| published.key == *key);
                is_of_key && !consumed.handled.contains(earlier) && !consumed.letters.contains_key(earlier)
            })
            .map(|(earlier, _)| {
                format!("event {number} ({sequence}) of {key} began before {earlier} was done")
            })
            .next()
    }

    /// Returns the sequences of this consumer's events that are retained and neither handled nor dead-lettered, without
    /// those of a key that a stubborn event holds up.
    pub(super) fn open(&self, consumer: &str) -> Vec<u64> {
        let Some(consumed) = self.consumers.get(consumer) else { return Vec::new() };
        let is_held_up = |key: &str| {
            let mut published = self.published.values();
            !self.is_relieved
                && published.any(|published| published.fate == Fate::Stubborn && published.key == key)
        };
        let is_its = |number: &u64| {
            let Some(Published { key, .. }) = self.published.get(number) else { return false };
            consumed.only.as_ref().is_none_or(|only| only == key) && !is_held_up(key)
        };
        let open = self.stored.range(self.first..).filter(|(sequence, number)| {
            is_its(number) && !consumed.handled.contains(sequence) && !consumed.letters.contains_key(sequence)
        });
        open.map(|(sequence, _)| *sequence).collect()
    }

    /// Returns what is wrong about the letters of a consumer.
    pub(super) fn wrong_letters(&self, consumer: &str) -> Option<String> {
        let consumed = self.consumers.get(consumer)?;
        for (sequence, letters) in &consumed.letters {
            if *letters != 1 {
                return Some(format!("event {sequence} has {letters} dead letters"));
            }
            let fate = self.stored.get(sequence).and_then(|number| self.published.get(number))?.fate;
            if !fate.is_hopeless() && !consumed.is_disturbed && consumed.handled.contains(sequence) {
                return Some(format!("event {sequence} was handled and dead-lettered"));
            }
        }
        None
    }
}
