//! What a provider stores of a consumer, so that it goes on after a restart or in another process.

use std::cmp::Reverse;
use std::ops::RangeInclusive;

use super::pending::Pending;
use super::{Consumer, ConsumerConfig, Start, Time};

/// Everything that a consumer is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerSnapshot {
    /// The settings in force.
    pub config: ConsumerConfig,
    /// Every match up to here was handed out once or skipped.
    pub cursor: u64,
    /// Matches before the cursor that are to be handed out first, in ascending order.
    pub backlog: Vec<u64>,
    /// Events handed out and not settled, in ascending order.
    pub pending: Vec<PendingState>,
    /// Events that retention dropped and no member was told about.
    pub missed: u64,
    /// Events that were given up after `max_deliver` attempts.
    pub exhausted: u64,
}

impl ConsumerSnapshot {
    /// A consumer with nothing handed out and nothing before its cursor.
    pub fn new(config: ConsumerConfig, cursor: u64) -> Self {
        Self { config, cursor, backlog: Vec::new(), pending: Vec::new(), missed: 0, exhausted: 0 }
    }
}

/// An event that was handed out and is not settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PendingState {
    /// Sequence of the event.
    pub sequence: u64,
    /// Deliveries so far.
    pub attempt: u32,
    /// Whether the latest delivery may still be settled; false once it was refused or given back.
    pub leased: bool,
    /// When the event is to be delivered again.
    pub due: Time,
}

impl PendingState {
    /// An event that was delivered `attempt` times and comes again when it is due.
    pub const fn new(sequence: u64, attempt: u32, leased: bool, due: Time) -> Self {
        Self { sequence, attempt, leased, due }
    }
}

impl Consumer {
    /// The consumer that was stored as `snapshot`. Its changes are [tracked](Consumer::track_changes).
    pub fn restore(snapshot: ConsumerSnapshot) -> Self {
        let mut consumer = Self::new(snapshot.config, Start::backlog(snapshot.backlog, snapshot.cursor));
        for PendingState { sequence, attempt, leased, due } in snapshot.pending {
            consumer.reschedule(sequence, due, leased, attempt);
            consumer.redelivered += usize::from(attempt > 1);
        }
        consumer.missed = snapshot.missed;
        consumer.exhausted = snapshot.exhausted;
        consumer.track_changes();
        consumer
    }

    /// Everything that has to be stored.
    pub fn snapshot(&self) -> ConsumerSnapshot {
        ConsumerSnapshot {
            config: self.config.clone(),
            cursor: self.cursor,
            backlog: self.backlog.iter().copied().collect(),
            pending: self.pending.iter().map(|(sequence, pending)| stored(sequence, pending)).collect(),
            missed: self.missed,
            exhausted: self.exhausted,
        }
    }

    /// Notes from now on which pending events change, for [`take_changes`](Consumer::take_changes). Whoever tracks must
    /// take, or the notes grow.
    pub fn track_changes(&mut self) {
        self.changed = Some(Vec::new());
    }

    /// The events that became pending, changed, or are not pending any more since this was last asked, in ascending
    /// order. Nothing unless changes are tracked.
    pub fn take_changes(&mut self) -> Vec<u64> {
        let mut changed = self.changed.as_mut().map(std::mem::take).unwrap_or_default();
        changed.sort_unstable();
        changed.dedup();
        changed
    }

    /// The pending events among these sequences, in ascending order.
    pub fn pending_in(&self, sequences: RangeInclusive<u64>) -> impl Iterator<Item = PendingState> {
        self.pending.range(sequences).map(|(sequence, pending)| stored(sequence, pending))
    }

    /// Cuts leases that last longer than the ack wait from `now`: the clock was set back since they began.
    pub fn clamp_leases(&mut self, now: Time) {
        let latest = now.after(self.config.ack_wait);
        let beyond: Vec<_> =
            self.pending.iter().filter(|(_, pending)| pending.leased && pending.due > latest).collect();
        for (sequence, pending) in beyond {
            self.reschedule(sequence, latest, true, pending.attempt);
        }
    }

    /// Events that retention dropped and no member was told about.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// The next event of the backlog.
    pub fn backlog_front(&self) -> Option<u64> {
        self.backlog.front().copied()
    }

    /// Notes that the pending state of an event changes.
    pub(super) fn note_change(&mut self, sequence: u64) {
        if let Some(changed) = &mut self.changed {
            changed.push(sequence);
        }
    }

    /// Rebuilds the timers when too many are out of date.
    pub(super) fn compact_timers(&mut self) {
        if self.due.len() > 2 * self.pending.len() + 64 {
            self.due =
                self.pending.iter().map(|(sequence, pending)| Reverse((pending.due, sequence))).collect();
        }
    }
}

fn stored(sequence: u64, pending: Pending) -> PendingState {
    let Pending { attempt, leased, due } = pending;
    PendingState { sequence, attempt, leased, due }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::provider::consumer::Fetched;
    use crate::types::SubscribeOptions;

    #[test]
    fn a_clock_that_is_set_back_extends_no_lease() {
        let config = ConsumerConfig::new("events.>", &SubscribeOptions::default()).unwrap();
        let ack_wait = config.ack_wait;
        let mut consumer = Consumer::new(config, Start::after(0));
        let hour = Duration::from_secs(3_600);
        let later = Time::from_origin(2 * hour);
        let Fetched::Deliver(naked) = consumer.fetch(later, 1, |cursor| Some(cursor + 1)) else { panic!() };
        let Fetched::Deliver(_) = consumer.fetch(later, 1, |cursor| Some(cursor + 1)) else { panic!() };
        consumer.nak(naked, Some(hour), later).unwrap();

        let earlier = Time::from_origin(hour);
        consumer.clamp_leases(earlier);
        let dues: Vec<_> = consumer.snapshot().pending.iter().map(|pending| pending.due).collect();
        assert_eq!(dues, [later.after(hour), earlier.after(ack_wait)]);
        assert_eq!(consumer.next_due(), Some(earlier.after(ack_wait)));
    }
}
