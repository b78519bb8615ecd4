//! State of a consumer that a provider stores, so that the consumer continues after a restart or in another process.

use std::ops::RangeInclusive;

use super::pending::Pending;
use super::{ConsumerConfig, GroupState, Start, Time};

/// The complete state of a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerSnapshot {
    /// The settings in force.
    pub config: ConsumerConfig,
    /// Sequence up to which every match was delivered once or skipped.
    pub cursor: u64,
    /// Matches before the cursor that are delivered first, in ascending order.
    pub backlog: Vec<u64>,
    /// Events that were delivered and are not settled, in ascending order.
    pub pending: Vec<PendingState>,
    /// Number of events that retention dropped and that are not yet reported to a member.
    pub missed: u64,
    /// Number of events given up after `max_deliver` attempts.
    pub exhausted: u64,
    /// Number of times the consumer was [reset](GroupState::reset).
    pub generation: u32,
}

impl ConsumerSnapshot {
    /// Creates the snapshot of a consumer with no pending events and no backlog.
    pub fn new(config: ConsumerConfig, cursor: u64) -> Self {
        Self {
            config,
            cursor,
            backlog: Vec::new(),
            pending: Vec::new(),
            missed: 0,
            exhausted: 0,
            generation: 0,
        }
    }
}

/// An event that was delivered and is not settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PendingState {
    /// Sequence of the event.
    pub sequence: u64,
    /// Number of deliveries so far.
    pub attempt: u32,
    /// If true, the latest delivery can still be settled; false after a nak or a release.
    pub leased: bool,
    /// Time of the redelivery.
    pub due: Time,
    /// Time at which `due` was set, or the origin if unknown. It limits the remaining wait if the clock is set back.
    pub since: Time,
}

impl PendingState {
    /// Creates an event that was delivered `attempt` times and is redelivered at `due`.
    pub const fn new(sequence: u64, attempt: u32, leased: bool, due: Time) -> Self {
        Self { sequence, attempt, leased, due, since: Time::ZERO }
    }

    /// Sets the time at which `due` was set.
    #[must_use]
    pub const fn since(mut self, since: Time) -> Self {
        self.since = since;
        self
    }
}

impl GroupState {
    /// Restores the consumer that was stored as `snapshot`. Its changes are [tracked](GroupState::track_changes).
    pub fn restore(snapshot: ConsumerSnapshot) -> Self {
        let mut consumer = Self::new(snapshot.config, Start::backlog(snapshot.backlog, snapshot.cursor));
        let ack_wait = consumer.config.ack_wait;
        for PendingState { sequence, attempt, leased, due, since } in snapshot.pending {
            let since = match since {
                // A lease lasts as long as the ack wait.
                Time::ZERO if leased => Time::from_origin(due.since_origin().saturating_sub(ack_wait)),
                since => since,
            };
            consumer.reschedule(sequence, Pending { attempt, leased, due, since });
            consumer.redelivered += usize::from(attempt > 1);
        }
        // The time of the snapshot is unknown, so the first observed time limits all waits.
        consumer.now = Time::from_origin(std::time::Duration::MAX);
        consumer.generation = snapshot.generation;
        consumer.missed = snapshot.missed;
        consumer.exhausted = snapshot.exhausted;
        consumer.track_changes();
        consumer
    }

    /// Returns everything that must be stored.
    pub fn snapshot(&self) -> ConsumerSnapshot {
        ConsumerSnapshot {
            config: self.config.clone(),
            cursor: self.cursor,
            backlog: self.backlog.iter().copied().collect(),
            pending: self.pending.iter().map(|(sequence, pending)| stored(sequence, pending)).collect(),
            missed: self.missed,
            exhausted: self.exhausted,
            generation: self.generation,
        }
    }

    /// Starts to record which pending events change, for [`take_changes`](GroupState::take_changes). Call
    /// `take_changes` regularly, because the record grows until then.
    pub fn track_changes(&mut self) {
        self.changed = Some(Vec::new());
    }

    /// Returns the events that became pending, changed, or stopped being pending since the last call, in ascending
    /// order. Returns nothing unless changes are tracked.
    pub fn take_changes(&mut self) -> Vec<u64> {
        let mut changed = self.changed.as_mut().map(std::mem::take).unwrap_or_default();
        changed.sort_unstable();
        changed.dedup();
        changed
    }

    /// Returns the pending events among these sequences, in ascending order.
    pub fn pending_in(&self, sequences: RangeInclusive<u64>) -> impl Iterator<Item = PendingState> {
        self.pending.range(sequences).map(|(sequence, pending)| stored(sequence, pending))
    }

    /// Returns the number of times the consumer was [reset](GroupState::reset).
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Returns the number of events that retention dropped and that are not yet reported to a member.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// Returns the next event of the backlog.
    pub fn backlog_front(&self) -> Option<u64> {
        self.backlog.front().copied()
    }

    /// Records that the pending state of an event is about to change.
    pub(super) fn note_change(&mut self, sequence: u64) {
        if let Some(changed) = &mut self.changed {
            changed.push(sequence);
        }
        if let Some(undo) = &mut self.undo {
            undo.keep_pending(sequence, self.pending.get(sequence));
        }
    }
}

fn stored(sequence: u64, pending: Pending) -> PendingState {
    let Pending { attempt, leased, due, since } = pending;
    PendingState { sequence, attempt, leased, due, since }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::provider::group::{Fetched, Lease};
    use crate::types::SubscribeOptions;

    fn consumer() -> GroupState {
        GroupState::new(
            ConsumerConfig::new("events.>", &SubscribeOptions::default()).unwrap(),
            Start::after(0),
        )
    }

    fn hours(count: u32) -> Time {
        Time::from_origin(count * Duration::from_secs(3_600))
    }

    fn deliver(consumer: &mut GroupState, now: Time) -> Lease {
        match consumer.fetch(now, 1, |cursor| Some(cursor + 1)) {
            Fetched::Deliver(lease) => lease,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_clock_that_is_set_back_prolongs_no_wait() {
        let ahead = hours(100);
        let now = hours(2);
        for is_restored in [false, true] {
            let mut consumer = consumer();
            let [refused, released, _leased] = [(); 3].map(|()| deliver(&mut consumer, ahead));
            consumer.nak(refused, Some(Duration::from_secs(3_600)), ahead).unwrap();
            consumer.release(released, ahead).unwrap();
            if is_restored {
                consumer = GroupState::restore(consumer.snapshot());
            }
            assert_eq!(deliver(&mut consumer, now), Lease::new(2, 1), "what was given back comes at once");
            let ack_wait = consumer.config().ack_wait;
            let dues: Vec<_> = consumer.snapshot().pending.iter().map(|pending| pending.due).collect();
            assert_eq!(dues, [hours(3), now.after(ack_wait), now.after(ack_wait)]);
            assert_eq!(consumer.next_due(), Some(now.after(ack_wait)));
        }
    }

    #[test]
    fn what_was_stored_without_its_beginning_waits_no_longer_than_it_can_have_been_asked() {
        let mut snapshot = ConsumerSnapshot::new(consumer().config().clone(), 9);
        let now = hours(1);
        snapshot.pending =
            vec![PendingState::new(1, 1, true, hours(50)), PendingState::new(2, 1, false, hours(2))];
        let mut consumer = GroupState::restore(snapshot);
        assert_eq!(consumer.fetch(now, 1, |_| None), Fetched::Idle);
        assert_eq!(consumer.next_due(), Some(now.after(consumer.config().ack_wait)), "the lease");
        assert_eq!(consumer.fetch(Time::ZERO, 1, |_| None), Fetched::Idle);
        let dues: Vec<_> = consumer.snapshot().pending.iter().map(|pending| pending.due).collect();
        assert_eq!(dues, [Time::ZERO.after(consumer.config().ack_wait), hours(1)], "the refused one");
    }

    #[test]
    fn what_waits_for_ever_overflows_nothing() {
        let mut consumer = consumer();
        let now = hours(1);
        let lease = deliver(&mut consumer, now);
        consumer.nak(lease, Some(Duration::MAX), now).unwrap();
        assert_eq!(consumer.fetch(hours(1_000_000), 1, |_| None), Fetched::Idle);
        assert_eq!(consumer.fetch(now, 1, |_| None), Fetched::Idle);
        assert!(consumer.next_due() > Some(hours(1_000_000)));
    }
}
