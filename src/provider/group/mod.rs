//! The consumer state machine: cursor, leases, delivery counts and redelivery.
//!
//! It serves providers without a server that does this work. It is pure: the time is an argument, and it has no I/O, no
//! clock and no lock. It knows events only by their sequence. A provider keeps one [`GroupState`] per consumer, asks it
//! which event to deliver next, and passes every settlement to it. Its answers implement the delivery contract.
//!
//! ```
//! use a3s_event::SubscribeOptions;
//! use a3s_event::provider::group::{ConsumerConfig, Fetched, GroupState, Start, Time};
//!
//! # fn main() -> a3s_event::Result<()> {
//! let config = ConsumerConfig::new("events.>", &SubscribeOptions::default())?;
//! let mut consumer = GroupState::new(config, Start::after(0));
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
mod life;
#[cfg(test)]
mod model;
mod pending;
mod snapshot;
mod undo;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

pub use config::{ConsumerConfig, DEFAULT_ACK_WAIT, DEFAULT_MAX_ACK_PENDING};
pub use snapshot::{ConsumerSnapshot, PendingState};

use self::pending::{Pending, PendingEvents};
use self::undo::Undo;
use crate::error::EventError;
use crate::provider::AckKind;

/// A point in time, in nanoseconds since an origin that the provider chooses and keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The origin.
    pub const ZERO: Self = Self(0);

    /// Returns the time `since_origin` after the origin. Saturates after 584 years.
    pub fn from_origin(since_origin: Duration) -> Self {
        Self(u64::try_from(since_origin.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Returns the duration since the origin.
    pub const fn since_origin(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// Returns the time `wait` later.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(Self::from_origin(wait).0))
    }

    /// Returns the duration since `earlier`, or zero if `earlier` is later.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Start position of a new consumer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start {
    cursor: u64,
    backlog: VecDeque<u64>,
}

impl Start {
    /// Starts with the first match after this sequence.
    pub fn after(cursor: u64) -> Self {
        Self { cursor, backlog: VecDeque::new() }
    }

    /// Starts with these sequences, in ascending order, and continues with the first match after `cursor`.
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
    /// Number of this delivery of the event to this consumer, starting at 1.
    pub attempt: u32,
    /// Number of times the consumer had been [reset](GroupState::reset).
    pub generation: u32,
}

impl Lease {
    /// Creates the lease of this delivery of the event, for a consumer that was never reset.
    pub const fn new(sequence: u64, attempt: u32) -> Self {
        Self { sequence, attempt, generation: 0 }
    }
}

/// Answer of a consumer to a member that asks for an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// Deliver this event.
    Deliver(Lease),
    /// Report to the member that retention dropped this many events before they were processed.
    Missed(u64),
    /// No event to deliver. Ask again at [`GroupState::next_due`], or earlier if an event is published or settled.
    Idle,
}

/// A settlement that came too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StaleLease {
    /// The event was redelivered, and the new delivery is in force.
    #[error("delivery {attempt} of sequence {sequence} lost its lease: the event was redelivered")]
    Redelivered {
        /// Sequence of the event.
        sequence: u64,
        /// Number of the delivery that lost its lease.
        attempt: u32,
    },
    /// The consumer was moved to another position after the delivery.
    #[error(
        "delivery {attempt} of sequence {sequence} lost its lease: the consumer was moved to another position"
    )]
    Reset {
        /// Sequence of the event.
        sequence: u64,
        /// Number of the delivery that lost its lease.
        attempt: u32,
    },
    /// The event is settled, or this delivery already nacked or released it.
    #[error("delivery {attempt} of sequence {sequence} is already settled")]
    Settled {
        /// Sequence of the event.
        sequence: u64,
        /// Number of the delivery.
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
pub struct GroupState {
    config: ConsumerConfig,
    /// Sequence up to which every match was delivered once or skipped.
    cursor: u64,
    /// Matches before the cursor that are delivered first.
    backlog: VecDeque<u64>,
    pending: PendingEvents,
    /// Due times of pending events. An entry is outdated and skipped if its event has another due time.
    timers: BinaryHeap<Reverse<(Time, u64)>>,
    /// Pending events that were found to be due. They are delivered in the order of their sequences.
    due: BTreeSet<u64>,
    /// Latest observed time. An earlier one means that the clock was set back.
    now: Time,
    /// Number of moves to another position.
    generation: u32,
    redelivered: usize,
    missed: u64,
    exhausted: u64,
    /// Sequences of pending events that changed, if a provider tracks them.
    changed: Option<Vec<u64>>,
    /// State for undoing the changes, if a provider remembers them.
    undo: Option<Box<Undo>>,
}

impl GroupState {
    /// Creates a consumer that has delivered nothing.
    pub fn new(config: ConsumerConfig, start: Start) -> Self {
        Self {
            config,
            cursor: start.cursor,
            backlog: start.backlog,
            pending: PendingEvents::default(),
            timers: BinaryHeap::new(),
            due: BTreeSet::new(),
            now: Time::ZERO,
            generation: 0,
            redelivered: 0,
            missed: 0,
            exhausted: 0,
            changed: None,
            undo: None,
        }
    }

    /// Returns the settings in force.
    pub fn config(&self) -> &ConsumerConfig {
        &self.config
    }

    /// Applies changed settings. Deliveries in flight keep their lease.
    ///
    /// # Errors
    ///
    /// [`EventError::Conflict`] as for [`ConsumerConfig::change_to`]; nothing is changed then.
    pub fn reconfigure(&mut self, consumer: &str, wanted: ConsumerConfig) -> Result<(), EventError> {
        if let Some(undo) = &mut self.undo {
            undo.keep_config(&self.config);
        }
        self.config.change_to(consumer, wanted)
    }

    /// Moves the consumer to `start`, as if it were new. Pending events are forgotten, and their leases become stale.
    pub fn reset(&mut self, start: Start) {
        let forgotten: Vec<u64> = self.pending.iter().map(|(sequence, _)| sequence).collect();
        forgotten.into_iter().for_each(|sequence| self.forget(sequence));
        let backlog = std::mem::replace(&mut self.backlog, start.backlog);
        if let Some(undo) = &mut self.undo {
            undo.keep_backlog(backlog);
        }
        self.cursor = start.cursor;
        self.missed = 0;
        self.generation = self.generation.wrapping_add(1);
    }

    /// Skips everything up to `cursor`, which retention dropped. `missed` is the number of skipped matches that were
    /// never delivered.
    pub fn skip_to(&mut self, cursor: u64, missed: u64) {
        self.cursor = self.cursor.max(cursor);
        self.missed += missed;
    }

    /// Decides what to deliver at `now`.
    ///
    /// `first_retained` is the lowest sequence that the stream still holds. `next_match` returns the first retained
    /// match after a sequence. Events due for redelivery precede new ones, in the order of their sequences.
    pub fn fetch(
        &mut self,
        now: Time,
        first_retained: u64,
        next_match: impl FnOnce(u64) -> Option<u64>,
    ) -> Fetched {
        self.observe(now);
        let due = self.next_redelivery(first_retained);
        while self.backlog.front().is_some_and(|sequence| *sequence < first_retained) {
            self.pop_backlog();
            self.missed += 1;
        }
        if self.missed > 0 {
            return Fetched::Missed(std::mem::take(&mut self.missed));
        }
        if let Some((sequence, attempt)) = due {
            return self.hand_out(sequence, attempt.saturating_add(1));
        }
        if self.pending.len() >= self.config.max_ack_pending {
            return Fetched::Idle;
        }
        if let Some(sequence) = self.pop_backlog() {
            return self.hand_out(sequence, 1);
        }
        match next_match(self.cursor) {
            Some(sequence) => {
                self.cursor = sequence;
                self.hand_out(sequence, 1)
            }
            None => Fetched::Idle,
        }
    }

    /// Settles a delivery. `now` is called only if the time matters.
    ///
    /// # Errors
    ///
    /// [`StaleLease`] if the event is settled or redelivered, or the consumer was reset.
    pub fn settle(
        &mut self,
        lease: Lease,
        kind: &AckKind,
        now: impl FnOnce() -> Time,
    ) -> Result<(), StaleLease> {
        match kind {
            AckKind::Ack | AckKind::Term(_) => self.ack(lease),
            AckKind::Nak(delay) => self.nak(lease, *delay, now()),
            AckKind::Extend => self.extend(lease, now()),
            AckKind::Release => self.release(lease, now()),
        }
    }

    /// Acknowledges an event.
    ///
    /// # Errors
    ///
    /// [`StaleLease`] if the event is settled or redelivered, or the consumer was reset.
    pub fn ack(&mut self, lease: Lease) -> Result<(), StaleLease> {
        self.leased(lease)?;
        self.forget(lease.sequence);
        Ok(())
    }

    /// Requests redelivery after `delay`, or after the backoff for this attempt. After the last allowed attempt, the
    /// event is given up instead.
    ///
    /// # Errors
    ///
    /// [`StaleLease`] if the event is settled or redelivered, or the consumer was reset.
    pub fn nak(&mut self, lease: Lease, delay: Option<Duration>, now: Time) -> Result<(), StaleLease> {
        self.leased(lease)?;
        self.observe(now);
        if self.is_last(lease.attempt) {
            self.forget(lease.sequence);
            self.exhausted += 1;
            return Ok(());
        }
        let delay = delay.unwrap_or_else(|| self.config.backoff_after(lease.attempt));
        self.schedule(lease.sequence, delay, false, lease.attempt);
        Ok(())
    }

    /// Restarts a lease from `now`.
    ///
    /// # Errors
    ///
    /// [`StaleLease`] if the event is settled or redelivered, or the consumer was reset.
    pub fn extend(&mut self, lease: Lease, now: Time) -> Result<(), StaleLease> {
        self.leased(lease)?;
        self.observe(now);
        self.schedule(lease.sequence, self.config.ack_wait, true, lease.attempt);
        Ok(())
    }

    /// Releases an event as if this delivery had not happened.
    ///
    /// # Errors
    ///
    /// [`StaleLease`] if the event is settled or redelivered, or the consumer was reset.
    pub fn release(&mut self, lease: Lease, now: Time) -> Result<(), StaleLease> {
        self.leased(lease)?;
        self.observe(now);
        if lease.attempt == 2 {
            self.redelivered -= 1;
        }
        self.schedule(lease.sequence, Duration::ZERO, false, lease.attempt.saturating_sub(1));
        Ok(())
    }

    /// Returns the due time of the next pending event, if any is pending.
    pub fn next_due(&mut self) -> Option<Time> {
        self.drop_outdated();
        let later = self.timers.peek().map(|Reverse((due, _))| *due);
        let overdue = self.due.iter().filter_map(|sequence| Some(self.pending.get(*sequence)?.due)).min();
        overdue.into_iter().chain(later).min()
    }

    /// Records that retention dropped matches after the cursor. The next [`fetch`](GroupState::fetch) reports them.
    pub fn note_missed(&mut self, missed: u64) {
        self.missed += missed;
    }

    /// Returns the sequence up to which every match was delivered once or skipped.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Returns the number of retained backlog events, which are delivered before the cursor advances.
    pub fn backlog_since(&self, first_retained: u64) -> usize {
        self.backlog.iter().filter(|sequence| **sequence >= first_retained).count()
    }

    /// Returns the number of events that were delivered and are not settled.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Returns `true` if `max_ack_pending` holds first deliveries back.
    pub fn is_full(&self) -> bool {
        self.pending.len() >= self.config.max_ack_pending
    }

    /// Returns the number of pending events that were delivered more than once.
    pub fn redelivered(&self) -> usize {
        self.redelivered
    }

    /// Returns the number of events given up after `max_deliver` attempts.
    pub fn exhausted(&self) -> u64 {
        self.exhausted
    }

    /// Returns the pending event to redeliver at `now`. Gives up events that are exhausted or no longer retained.
    fn next_redelivery(&mut self, first_retained: u64) -> Option<(u64, u32)> {
        self.collect_due();
        loop {
            let sequence = *self.due.first()?;
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

    /// Records the time. If the clock was set back, no wait becomes longer than originally requested.
    fn observe(&mut self, now: Time) {
        if std::mem::replace(&mut self.now, now) > now {
            self.bound_waits();
        }
    }

    fn bound_waits(&mut self) {
        let now = self.now;
        let unbounded = |since| since > now || since == Time::ZERO;
        let unbounded: Vec<_> = self.pending.iter().filter(|(_, pending)| unbounded(pending.since)).collect();
        for (sequence, pending) in unbounded {
            // An event stored without the start of its wait waits at most as long as if it started now.
            let since = if pending.since == Time::ZERO { now } else { pending.since };
            let due = now.after(pending.due.saturating_since(since));
            self.reschedule(sequence, Pending { since: now, due, ..pending });
        }
        self.rebuild_timers();
    }

    fn hand_out(&mut self, sequence: u64, attempt: u32) -> Fetched {
        if attempt == 2 {
            self.redelivered += 1;
        }
        self.schedule(sequence, self.config.ack_wait, true, attempt);
        Fetched::Deliver(Lease { sequence, attempt, generation: self.generation })
    }

    /// Schedules the redelivery of the event after `wait`.
    fn schedule(&mut self, sequence: u64, wait: Duration, leased: bool, attempt: u32) {
        let pending = Pending { attempt, leased, due: self.now.after(wait), since: self.now };
        self.reschedule(sequence, pending);
    }

    fn reschedule(&mut self, sequence: u64, pending: Pending) {
        self.note_change(sequence);
        self.due.remove(&sequence);
        self.pending.insert(sequence, pending);
        self.timers.push(Reverse((pending.due, sequence)));
        self.drop_outdated();
        if self.timers.len() > 2 * self.pending.len() + 64 {
            self.rebuild_timers();
        }
    }

    fn rebuild_timers(&mut self) {
        self.due.clear();
        self.timers =
            self.pending.iter().map(|(sequence, pending)| Reverse((pending.due, sequence))).collect();
    }

    /// Collects the events that have become due.
    fn collect_due(&mut self) {
        while let Some(Reverse((due, sequence))) = self.timers.peek().copied() {
            if self.pending.get(sequence).is_some_and(|pending| pending.due == due) {
                if due > self.now {
                    return;
                }
                self.due.insert(sequence);
            }
            self.timers.pop();
        }
    }

    fn drop_outdated(&mut self) {
        while let Some(Reverse((due, sequence))) = self.timers.peek() {
            if self.pending.get(*sequence).is_some_and(|pending| pending.due == *due) {
                return;
            }
            self.timers.pop();
        }
    }

    fn pop_backlog(&mut self) -> Option<u64> {
        let sequence = self.backlog.pop_front()?;
        if let Some(undo) = &mut self.undo {
            undo.keep_popped(sequence);
        }
        Some(sequence)
    }

    fn forget(&mut self, sequence: u64) {
        self.note_change(sequence);
        self.due.remove(&sequence);
        if self.pending.remove(sequence).is_some_and(|pending| pending.attempt > 1) {
            self.redelivered -= 1;
        }
    }

    fn leased(&self, lease: Lease) -> Result<(), StaleLease> {
        let Lease { sequence, attempt, generation } = lease;
        if generation != self.generation {
            return Err(StaleLease::Reset { sequence, attempt });
        }
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
