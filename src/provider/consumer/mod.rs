//! The one consumer state machine: cursor, leases, delivery counts, redelivery.
//!
//! It serves the providers that have no server to do this work. It is pure: time comes in as an argument, there is no
//! I/O, no clock and no lock, and it knows events by their sequence only. A provider keeps one [`Consumer`] per consumer
//! and asks it what to hand out next; what it answers and how it settles is the delivery contract.
//!
//! ```
//! use a3s_event::SubscribeOptions;
//! use a3s_event::provider::consumer::{Consumer, ConsumerConfig, Fetched, Start, Time};
//!
//! # fn main() -> a3s_event::Result<()> {
//! let config = ConsumerConfig::new("events.>", &SubscribeOptions::default())?;
//! let mut consumer = Consumer::new(config, Start::after(0));
//!
//! // The stream holds the matching sequences 1 and 2.
//! let next_match = |cursor: u64| [1, 2].into_iter().find(|sequence| *sequence > cursor);
//! let Fetched::Deliver(lease) = consumer.fetch(Time::ZERO, 1, next_match) else { panic!("nothing to deliver") };
//! assert_eq!((lease.sequence, lease.attempt), (1, 1));
//! consumer.ack(lease)?;
//! # Ok(())
//! # }
//! ```

mod config;
#[cfg(test)]
mod model;
mod pending;
mod snapshot;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

pub use config::{ConsumerConfig, DEFAULT_ACK_WAIT, DEFAULT_MAX_ACK_PENDING};
pub use snapshot::{ConsumerSnapshot, PendingState};

use self::pending::{Pending, PendingEvents};
use crate::error::EventError;

/// A point in time: nanoseconds since an origin that the provider chooses and keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The origin.
    pub const ZERO: Self = Self(0);

    /// The point `since_origin` behind the origin; the last one that can be told after 584 years.
    pub fn from_origin(since_origin: Duration) -> Self {
        Self(u64::try_from(since_origin.as_nanos()).unwrap_or(u64::MAX))
    }

    /// How far behind the origin this is.
    pub const fn since_origin(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// The point `wait` later.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(Self::from_origin(wait).0))
    }
}

/// Where a new consumer starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start {
    cursor: u64,
    backlog: VecDeque<u64>,
}

impl Start {
    /// With the first match after this sequence.
    pub fn after(cursor: u64) -> Self {
        Self { cursor, backlog: VecDeque::new() }
    }

    /// With these sequences, in ascending order, and then with the first match after `cursor`.
    pub fn backlog(sequences: impl IntoIterator<Item = u64>, cursor: u64) -> Self {
        Self { cursor, backlog: sequences.into_iter().collect() }
    }
}

/// The right to settle one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Lease {
    /// Sequence of the event.
    pub sequence: u64,
    /// Which delivery of the event to this consumer it is, starting at 1.
    pub attempt: u32,
}

impl Lease {
    /// The right to settle this delivery of the event.
    pub const fn new(sequence: u64, attempt: u32) -> Self {
        Self { sequence, attempt }
    }
}

/// What a consumer has for a member that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// Hand out this event.
    Deliver(Lease),
    /// Tell the member that retention dropped this many events before they were processed.
    Missed(u64),
    /// Nothing now; [`Consumer::next_due`] says when to ask again if nothing is published or settled before.
    Idle,
}

/// A settlement that came too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StaleLease {
    /// The event was delivered again and that delivery is in force.
    #[error("delivery {attempt} of sequence {sequence} lost its lease: the event was delivered again")]
    Redelivered {
        /// Sequence of the event.
        sequence: u64,
        /// The delivery that lost its lease.
        attempt: u32,
    },
    /// The event is settled, or was given back by this very delivery.
    #[error("delivery {attempt} of sequence {sequence} is already settled")]
    Settled {
        /// Sequence of the event.
        sequence: u64,
        /// The delivery.
        attempt: u32,
    },
}

impl From<StaleLease> for EventError {
    fn from(stale: StaleLease) -> Self {
        Self::Ack(stale.to_string())
    }
}

/// The state of one consumer.
#[derive(Debug, Clone)]
pub struct Consumer {
    config: ConsumerConfig,
    /// Every match up to here was handed out once or skipped.
    cursor: u64,
    /// Matches before the cursor that are to be handed out first.
    backlog: VecDeque<u64>,
    pending: PendingEvents,
    /// When pending events are due. An entry whose time is not its event's is out of date and is skipped.
    due: BinaryHeap<Reverse<(Time, u64)>>,
    redelivered: usize,
    missed: u64,
    exhausted: u64,
    /// Which pending events changed, where someone stores them.
    changed: Option<Vec<u64>>,
}

impl Consumer {
    /// A consumer that has handed out nothing.
    pub fn new(config: ConsumerConfig, start: Start) -> Self {
        Self {
            config,
            cursor: start.cursor,
            backlog: start.backlog,
            pending: PendingEvents::default(),
            due: BinaryHeap::new(),
            redelivered: 0,
            missed: 0,
            exhausted: 0,
            changed: None,
        }
    }

    /// The settings in force.
    pub fn config(&self) -> &ConsumerConfig {
        &self.config
    }

    /// Takes over changed settings; deliveries in flight keep the lease they have.
    ///
    /// # Errors
    ///
    /// [`EventError::Conflict`] as [`ConsumerConfig::change_to`]; nothing is changed then.
    pub fn reconfigure(&mut self, consumer: &str, wanted: ConsumerConfig) -> Result<(), EventError> {
        self.config.change_to(consumer, wanted)
    }

    /// Decides what to hand out at `now`.
    ///
    /// `first_retained` is the lowest sequence that the stream still holds, and `next_match` answers the first retained
    /// match after a sequence. Events that are due again go before new ones.
    pub fn fetch(
        &mut self,
        now: Time,
        first_retained: u64,
        next_match: impl FnOnce(u64) -> Option<u64>,
    ) -> Fetched {
        let due = self.next_redelivery(now, first_retained);
        while self.backlog.front().is_some_and(|sequence| *sequence < first_retained) {
            self.backlog.pop_front();
            self.missed += 1;
        }
        if self.missed > 0 {
            return Fetched::Missed(std::mem::take(&mut self.missed));
        }
        if let Some((sequence, attempt)) = due {
            return self.hand_out(now, sequence, attempt.saturating_add(1));
        }
        if self.pending.len() >= self.config.max_ack_pending {
            return Fetched::Idle;
        }
        if let Some(sequence) = self.backlog.pop_front() {
            return self.hand_out(now, sequence, 1);
        }
        match next_match(self.cursor) {
            Some(sequence) => {
                self.cursor = sequence;
                self.hand_out(now, sequence, 1)
            }
            None => Fetched::Idle,
        }
    }

    /// Settles an event.
    ///
    /// # Errors
    ///
    /// [`StaleLease`] when the event is settled or was delivered again.
    pub fn ack(&mut self, lease: Lease) -> Result<(), StaleLease> {
        self.leased(lease)?;
        self.forget(lease.sequence);
        Ok(())
    }

    /// Asks for redelivery after `delay`, or after the backoff for this attempt. After the last allowed attempt the event
    /// is exhausted instead.
    ///
    /// # Errors
    ///
    /// [`StaleLease`] when the event is settled or was delivered again.
    pub fn nak(&mut self, lease: Lease, delay: Option<Duration>, now: Time) -> Result<(), StaleLease> {
        self.leased(lease)?;
        if self.is_last(lease.attempt) {
            self.forget(lease.sequence);
            self.exhausted += 1;
            return Ok(());
        }
        let delay = delay.unwrap_or_else(|| self.config.backoff_after(lease.attempt));
        self.reschedule(lease.sequence, now.after(delay), false, lease.attempt);
        Ok(())
    }

    /// Restarts a lease from `now`.
    ///
    /// # Errors
    ///
    /// [`StaleLease`] when the event is settled or was delivered again.
    pub fn extend(&mut self, lease: Lease, now: Time) -> Result<(), StaleLease> {
        self.leased(lease)?;
        self.reschedule(lease.sequence, now.after(self.config.ack_wait), true, lease.attempt);
        Ok(())
    }

    /// Gives an event back as if it had not been handed out this time.
    ///
    /// # Errors
    ///
    /// [`StaleLease`] when the event is settled or was delivered again.
    pub fn release(&mut self, lease: Lease, now: Time) -> Result<(), StaleLease> {
        self.leased(lease)?;
        if lease.attempt == 2 {
            self.redelivered -= 1;
        }
        self.reschedule(lease.sequence, now, false, lease.attempt.saturating_sub(1));
        Ok(())
    }

    /// When the next pending event is due, if any is pending.
    pub fn next_due(&mut self) -> Option<Time> {
        self.drop_outdated();
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// Records that retention dropped matches after the cursor; the next [`fetch`](Consumer::fetch) says so.
    pub fn note_missed(&mut self, missed: u64) {
        self.missed += missed;
    }

    /// Every match up to this sequence was handed out once or skipped.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Retained events still to be handed out before the cursor goes on.
    pub fn backlog_since(&self, first_retained: u64) -> usize {
        self.backlog.iter().filter(|sequence| **sequence >= first_retained).count()
    }

    /// Events handed out and not settled.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether `max_ack_pending` holds first deliveries back.
    pub fn is_full(&self) -> bool {
        self.pending.len() >= self.config.max_ack_pending
    }

    /// Pending events that were handed out more than once.
    pub fn redelivered(&self) -> usize {
        self.redelivered
    }

    /// Events that were given up after `max_deliver` attempts.
    pub fn exhausted(&self) -> u64 {
        self.exhausted
    }

    /// The pending event to deliver again at `now`; gives up those that are exhausted or no longer retained.
    fn next_redelivery(&mut self, now: Time, first_retained: u64) -> Option<(u64, u32)> {
        loop {
            self.drop_outdated();
            let Reverse((due, sequence)) = *self.due.peek()?;
            if due > now {
                return None;
            }
            let attempt = self.pending.get(sequence)?.attempt;
            if sequence < first_retained {
                self.missed += 1;
            } else if self.is_last(attempt) {
                self.exhausted += 1;
            } else {
                return Some((sequence, attempt));
            }
            self.forget(sequence);
        }
    }

    fn hand_out(&mut self, now: Time, sequence: u64, attempt: u32) -> Fetched {
        if attempt == 2 {
            self.redelivered += 1;
        }
        self.reschedule(sequence, now.after(self.config.ack_wait), true, attempt);
        Fetched::Deliver(Lease { sequence, attempt })
    }

    fn reschedule(&mut self, sequence: u64, due: Time, leased: bool, attempt: u32) {
        self.pending.insert(sequence, Pending { attempt, leased, due });
        self.due.push(Reverse((due, sequence)));
        self.note_change(sequence);
        self.drop_outdated();
        self.compact_timers();
    }

    fn drop_outdated(&mut self) {
        while let Some(Reverse((due, sequence))) = self.due.peek() {
            if self.pending.get(*sequence).is_some_and(|pending| pending.due == *due) {
                return;
            }
            self.due.pop();
        }
    }

    fn forget(&mut self, sequence: u64) {
        self.note_change(sequence);
        if self.pending.remove(sequence).is_some_and(|pending| pending.attempt > 1) {
            self.redelivered -= 1;
        }
    }

    fn leased(&self, lease: Lease) -> Result<(), StaleLease> {
        let Lease { sequence, attempt } = lease;
        match self.pending.get(sequence) {
            Some(pending) if pending.leased && pending.attempt == attempt => Ok(()),
            Some(pending) if pending.attempt > attempt => Err(StaleLease::Redelivered { sequence, attempt }),
            _ => Err(StaleLease::Settled { sequence, attempt }),
        }
    }

    fn is_last(&self, attempt: u32) -> bool {
        self.config.max_deliver.is_some_and(|max| u64::from(attempt) >= max)
    }
}
