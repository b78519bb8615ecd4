//! A consumer: its position in the stream, its leases, and their settlement.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::stream::{GroupId, Lifecycle};
use super::{Clock, Shared};
use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;
use crate::provider::group::{Fetched, GroupState, Lease, Start, Time};
use crate::provider::members::Members;
use crate::provider::receiver::{Ask, Item};
use crate::provider::{
    AckFuture, AckHandler, AckKind, ConsumerInfo, ConsumerPosition, Settlement, SubscriptionEnd,
};

/// One consumer, shared by its members. Its lock is taken before the stream's, never after.
#[derive(Debug)]
pub(super) struct ConsumerCell {
    name: String,
    /// Name of the stream that it reads.
    stream: Arc<str>,
    durable: bool,
    group: GroupId,
    /// Open subscriptions.
    pub(super) members: Members,
    /// Set when the consumer is deleted, under the stream's exclusive lock.
    pub(super) gone: AtomicBool,
    /// True if a member found nothing to do since the last publish woke one. Changed under the stream's lock.
    idle: AtomicBool,
    /// Number of matches before a start in the future; the next fetch skips them. Changed under the stream's lock.
    skipped: AtomicU64,
    clock: Clock,
    state: Mutex<Position>,
}

#[derive(Debug)]
struct Position {
    machine: GroupState,
    /// Ordinal in the group of the next match to deliver.
    next_ordinal: u64,
}

/// Result of a member's search for events.
pub(super) enum Look {
    Leased,
    Nothing { due: Option<Time> },
    End(SubscriptionEnd),
}

impl ConsumerCell {
    pub(super) fn new(
        name: String,
        durable: bool,
        stream: Arc<str>,
        clock: Clock,
        group: GroupId,
        machine: GroupState,
        next_ordinal: u64,
    ) -> Self {
        Self {
            name,
            stream,
            durable,
            group,
            members: Members::default(),
            gone: AtomicBool::new(false),
            idle: AtomicBool::new(false),
            skipped: AtomicU64::new(0),
            clock,
            state: Mutex::new(Position { machine, next_ordinal }),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn stream(&self) -> Arc<str> {
        Arc::clone(&self.stream)
    }

    pub(super) fn is_durable(&self) -> bool {
        self.durable
    }

    pub(super) fn group(&self) -> GroupId {
        self.group
    }

    /// Wakes a member after a publish, if one is idle. A member that is awake finds the event itself and then wakes the
    /// next one.
    pub(super) fn wake_if_idle(&self) {
        if self.idle.load(Ordering::Relaxed) && self.idle.swap(false, Ordering::Relaxed) {
            self.members.wake_one();
        }
    }

    /// Skips a newly stored match that lies before this consumer's start.
    pub(super) fn skip_one(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs `change` on the state machine.
    pub(super) fn with_machine<T>(&self, change: impl FnOnce(&mut GroupState) -> T) -> T {
        change(&mut self.lock().machine)
    }

    pub(super) fn info(&self, shared: &Shared) -> ConsumerInfo {
        let state = self.lock();
        let mut info = ConsumerInfo::new(&self.name, &state.machine.config().filter, self.durable);
        info.pending = state.machine.pending() as u64;
        info.redelivered = state.machine.redelivered() as u64;
        info.lag = self.lag_at(&state, shared);
        info.members = Some(self.members.count());
        info
    }

    /// Returns the number of matching retained events that were not yet delivered.
    pub(super) fn lag(&self, shared: &Shared) -> u64 {
        self.lag_at(&self.lock(), shared)
    }

    /// Moves the consumer. Its members continue from the new position.
    pub(super) fn reset(&self, shared: &Shared, to: ConsumerPosition) -> Result<()> {
        // Drop expired events first: they are no valid position.
        drop(shared.read());
        let mut position = self.lock();
        let mut stream = shared.write();
        if self.gone.load(Ordering::Relaxed) {
            return Err(EventError::NotFound(format!("consumer '{}'", self.name)));
        }
        let cursor = stream.cursor_at(to);
        position.next_ordinal = stream.start_anew(self, cursor);
        self.skipped.store(0, Ordering::Relaxed);
        position.machine.reset(Start::after(cursor));
        drop((stream, position));
        self.members.wake_one();
        Ok(())
    }

    fn lag_at(&self, state: &Position, shared: &Shared) -> u64 {
        let stream = shared.read();
        match stream.group(self.group).filter(|_| !self.gone.load(Ordering::Relaxed)) {
            Some(group) => {
                let backlog = state.machine.backlog_since(stream.log.first()) as u64;
                let next = state.next_ordinal + self.skipped.load(Ordering::Relaxed);
                backlog + group.count_from(next)
            }
            None => 0,
        }
    }

    /// Takes the events that can be delivered now, at one time and under one lock of the stream.
    pub(super) fn take(
        self: &Arc<Self>,
        shared: &Shared,
        ask: Ask,
        handler: &Arc<dyn AckHandler>,
        taken: &mut VecDeque<Item>,
    ) -> Look {
        let mut position = self.lock();
        let stream = shared.read();
        let group = match stream.group(self.group) {
            _ if stream.lifecycle == Lifecycle::Closed => return Look::End(SubscriptionEnd::Closed),
            Some(group) if !self.gone.load(Ordering::Relaxed) => group,
            _ => return Look::End(SubscriptionEnd::Deleted),
        };
        let Position { machine, next_ordinal } = &mut *position;
        if self.skipped.load(Ordering::Relaxed) != 0 {
            *next_ordinal += self.skipped.swap(0, Ordering::Relaxed);
        }
        let dropped = group.first_ordinal().saturating_sub(*next_ordinal);
        if dropped > 0 {
            *next_ordinal = group.first_ordinal();
            machine.note_missed(dropped);
        }
        let now = self.clock.now();
        for _ in 0..ask.max {
            let fetched = machine.fetch(now, stream.log.first(), |_cursor| {
                let sequence = group.at(*next_ordinal)?;
                *next_ordinal += 1;
                Some(sequence)
            });
            let missed = match fetched {
                Fetched::Deliver(lease) => match stream.log.event(lease.sequence) {
                    Some(event) if ask.ack => {
                        // It was leased under this very lock, so it cannot be stale.
                        let _ = machine.ack(lease);
                        taken.push_back(Item::acked(lease, Arc::clone(event)));
                        continue;
                    }
                    Some(event) => {
                        taken.push_back(Item::event(lease, Arc::clone(event), Arc::clone(handler)));
                        continue;
                    }
                    None => 1,
                },
                Fetched::Missed(missed) => missed,
                Fetched::Idle => break,
            };
            taken.push_back(Item::Error(EventError::Lagged { consumer: self.name.clone(), missed }));
            break;
        }
        if !taken.is_empty() {
            return Look::Leased;
        }
        if stream.lifecycle == Lifecycle::Abandoned && machine.pending() == 0 {
            return Look::End(SubscriptionEnd::Closed);
        }
        // Set under the stream's lock, so that the next publish sees it.
        self.idle.store(true, Ordering::Relaxed);
        Look::Nothing { due: machine.next_due() }
    }

    /// Settles a delivery and wakes a member if that creates work for it.
    fn settle_now(&self, lease: Lease, kind: AckKind) -> Result<()> {
        let delivers_again = matches!(kind, AckKind::Nak(_) | AckKind::Extend | AckKind::Release);
        if delivers_again && self.gone.load(Ordering::Relaxed) {
            let name = &self.name;
            return Err(EventError::Closed(format!(
                "consumer '{name}' no longer exists and redelivers nothing"
            )));
        }
        let wakes = {
            let mut state = self.lock();
            let was_full = state.machine.is_full();
            // The time is read under the lock, so that the machine sees times in order.
            state.machine.settle(lease, &kind, || self.clock.now())?;
            let gives_back = matches!(kind, AckKind::Nak(_) | AckKind::Release);
            // Members of an abandoned stream wait for the last settlement, which ends it.
            gives_back || was_full || state.machine.pending() == 0
        };
        if wakes {
            self.members.wake_one();
        }
        if let AckKind::Term(reason) = &kind {
            tracing::debug!(consumer = self.name, sequence = lease.sequence, reason, "event terminated");
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Position> {
        // The machine's methods leave no inconsistent state, so a panic elsewhere does not matter here.
        self.state.lock().ignore_poison()
    }
}

impl AckHandler for ConsumerCell {
    fn settle(&self, asked: Settlement) -> AckFuture<'_> {
        AckFuture::ready(self.settle_now(asked.lease, asked.kind))
    }
}
