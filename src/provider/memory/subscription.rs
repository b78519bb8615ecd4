//! Subscriptions: members of a consumer that fetch, wait and settle.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::stream::{GroupId, Lifecycle};
use super::{Clock, Shared};
use crate::error::{EventError, Result};
use crate::provider::consumer::{Consumer, Fetched, Lease, StaleLease, Time};
use crate::provider::{ConsumerInfo, Delivery, LeaseHolder, PendingEvent, Subscription};
use crate::types::{Event, ReceivedEvent};

/// One consumer, shared by its members. Its lock is taken before the stream's, never after.
#[derive(Debug)]
pub(super) struct ConsumerCell {
    name: String,
    /// Name of the stream it reads.
    stream: String,
    durable: bool,
    group: GroupId,
    /// Open subscriptions.
    members: AtomicUsize,
    /// Set, under the stream's exclusive lock, when the consumer is forgotten.
    pub(super) gone: AtomicBool,
    wakeup: Notify,
    clock: Clock,
    state: Mutex<Position>,
}

#[derive(Debug)]
struct Position {
    machine: Consumer,
    /// Ordinal in the group of the next match to hand out.
    next_ordinal: u64,
}

/// What a member gets when it asks.
enum Step {
    Deliver { lease: Lease, event: Arc<Event> },
    Missed(u64),
    Wait { until: Option<Time> },
    Closed,
}

impl ConsumerCell {
    pub(super) fn new(
        name: String,
        durable: bool,
        stream: String,
        clock: Clock,
        group: GroupId,
        machine: Consumer,
        next_ordinal: u64,
    ) -> Self {
        Self {
            name,
            stream,
            durable,
            group,
            members: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
            wakeup: Notify::new(),
            clock,
            state: Mutex::new(Position { machine, next_ordinal }),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_durable(&self) -> bool {
        self.durable
    }

    pub(super) fn group(&self) -> GroupId {
        self.group
    }

    /// Lets one waiting member look again, or the next one that is about to wait.
    pub(super) fn wake_one(&self) {
        self.wakeup.notify_one();
    }

    /// Runs `change` on the state machine.
    pub(super) fn with_machine<T>(&self, change: impl FnOnce(&mut Consumer) -> T) -> T {
        change(&mut self.lock().machine)
    }

    pub(super) fn info(&self, shared: &Shared) -> ConsumerInfo {
        let state = self.lock();
        let mut info = ConsumerInfo::new(&self.name, &state.machine.config().filter, self.durable);
        info.pending = state.machine.pending() as u64;
        info.redelivered = state.machine.redelivered() as u64;
        info.lag = self.lag(&state, shared);
        info
    }

    fn lag(&self, state: &Position, shared: &Shared) -> u64 {
        let stream = shared.read();
        match stream.group(self.group).filter(|_| !self.gone.load(Ordering::Relaxed)) {
            Some(group) => {
                let backlog = state.machine.backlog_since(stream.log.first());
                (backlog + group.count_after(state.machine.cursor())) as u64
            }
            None => 0,
        }
    }

    /// What to hand out now. With `settle`, the delivery is acknowledged in the same breath.
    fn fetch(&self, shared: &Shared, settle: bool) -> Step {
        let now = self.clock.now();
        let mut state = self.lock();
        let Position { machine, next_ordinal } = &mut *state;
        let stream = shared.read();
        let group = match stream.group(self.group) {
            Some(group) if !self.gone.load(Ordering::Relaxed) && stream.lifecycle != Lifecycle::Closed => {
                group
            }
            _ => return Step::Closed,
        };
        let overtaken = group.first_ordinal().saturating_sub(*next_ordinal);
        if overtaken > 0 {
            *next_ordinal = group.first_ordinal();
            // A start in the future is not overtaken by the retention of what lies before it.
            let dropped_behind_cursor = stream.log.first().saturating_sub(machine.cursor() + 1);
            machine.note_missed(overtaken.min(dropped_behind_cursor));
        }
        let fetched = machine.fetch(now, stream.log.first(), |cursor| {
            loop {
                let sequence = group.at(*next_ordinal)?;
                *next_ordinal += 1;
                if sequence > cursor {
                    return Some(sequence);
                }
            }
        });
        match fetched {
            Fetched::Deliver(lease) => {
                let Some(event) = stream.log.event(lease.sequence).map(Arc::clone) else {
                    return Step::Missed(1);
                };
                if settle {
                    // It was leased under this very lock and cannot be stale.
                    let _ = machine.ack(lease);
                }
                Step::Deliver { lease, event }
            }
            Fetched::Missed(missed) => Step::Missed(missed),
            Fetched::Idle if stream.lifecycle == Lifecycle::Abandoned && machine.pending() == 0 => {
                Step::Closed
            }
            Fetched::Idle => Step::Wait { until: machine.next_due() },
        }
    }

    /// Refuses what only makes sense when the event can come again.
    fn check_delivers(&self) -> Result<()> {
        if self.gone.load(Ordering::Relaxed) {
            let name = &self.name;
            return Err(EventError::Closed(format!("consumer '{name}' is gone and delivers nothing again")));
        }
        Ok(())
    }

    /// Settles a delivery and wakes a member when that makes work for it.
    fn settle(
        &self,
        change: impl FnOnce(&mut Consumer) -> std::result::Result<(), StaleLease>,
    ) -> Result<()> {
        let wakes = {
            let mut state = self.lock();
            let was_full = state.machine.is_full();
            change(&mut state.machine)?;
            // A member that waits for the end of an abandoned stream waits for the last settlement.
            was_full || state.machine.pending() == 0
        };
        if wakes {
            self.wake_one();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Position> {
        // The machine's methods leave no half-done state behind, so that a panic elsewhere does not matter here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A subscription of the memory provider.
#[derive(Debug)]
pub struct MemorySubscription {
    shared: Arc<Shared>,
    cell: Arc<ConsumerCell>,
    closed: bool,
}

impl MemorySubscription {
    pub(super) fn new(shared: Arc<Shared>, cell: Arc<ConsumerCell>) -> Self {
        cell.members.fetch_add(1, Ordering::Relaxed);
        Self { shared, cell, closed: false }
    }

    /// Waits until there is something to hand out. Cancel-safe: nothing is awaited after a fetch that delivered.
    async fn next_lease(&mut self, settle: bool) -> Result<Option<(Lease, Arc<Event>)>> {
        if self.closed {
            return Ok(None);
        }
        loop {
            match self.cell.fetch(&self.shared, settle) {
                Step::Deliver { lease, event } => {
                    // Another member may have to take over the wait for what is due next.
                    self.pass_on();
                    return Ok(Some((lease, event)));
                }
                Step::Missed(missed) => {
                    self.pass_on();
                    return Err(EventError::Lagged { consumer: self.cell.name.clone(), missed });
                }
                Step::Closed => {
                    self.pass_on();
                    return Ok(None);
                }
                // Boxed, so that the common case does not carry a timer around.
                Step::Wait { until } => Box::pin(self.wait(until)).await,
            }
        }
    }

    async fn wait(&self, until: Option<Time>) {
        let mut baton = Baton { subscription: self, armed: true };
        let wakeup = self.cell.wakeup.notified();
        match until {
            None => wakeup.await,
            Some(until) => {
                // Woken or due: the next fetch tells which.
                let _ = tokio::time::timeout_at(self.shared.clock.instant(until), wakeup).await;
            }
        }
        baton.armed = false;
    }

    /// Wakes another member, if there is one.
    fn pass_on(&self) {
        if self.cell.members.load(Ordering::Relaxed) > 1 {
            self.cell.wake_one();
        }
    }

    /// Leaves the consumer; the last member of an ephemeral one takes it away.
    fn leave(&mut self) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        self.cell.members.fetch_sub(1, Ordering::Relaxed);
        if self.cell.durable {
            self.cell.wake_one();
        } else {
            self.shared.write().remove_consumer(&self.cell);
        }
    }
}

/// A member that gives up waiting lets another one wait in its place, who then knows when the next event is due.
struct Baton<'a> {
    subscription: &'a MemorySubscription,
    armed: bool,
}

impl Drop for Baton<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.subscription.pass_on();
        }
    }
}

#[async_trait]
impl Subscription for MemorySubscription {
    async fn next(&mut self) -> Result<Option<ReceivedEvent>> {
        let Some((lease, event)) = self.next_lease(true).await? else {
            return Ok(None);
        };
        Ok(Some(ReceivedEvent {
            event: Arc::unwrap_or_clone(event),
            sequence: lease.sequence,
            num_delivered: lease.attempt.into(),
            stream: self.cell.stream.clone(),
        }))
    }

    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>> {
        Ok(self.next_delivery().await?.map(Delivery::into_pending))
    }

    async fn next_delivery(&mut self) -> Result<Option<Delivery>> {
        let Some((lease, event)) = self.next_lease(false).await? else {
            return Ok(None);
        };
        Ok(Some(Delivery::with_lease(event, lease, Arc::clone(&self.cell) as Arc<dyn LeaseHolder>)))
    }

    async fn lag(&self) -> Result<u64> {
        let state = self.cell.lock();
        Ok(self.cell.lag(&state, &self.shared))
    }

    async fn close(&mut self) -> Result<()> {
        self.leave();
        Ok(())
    }
}

impl Drop for MemorySubscription {
    fn drop(&mut self) {
        self.leave();
    }
}

impl LeaseHolder for ConsumerCell {
    fn stream(&self) -> &str {
        &self.stream
    }

    fn ack(&self, lease: Lease) -> Result<()> {
        self.settle(|machine| machine.ack(lease))
    }

    fn nak(&self, lease: Lease, delay: Option<Duration>) -> Result<()> {
        if self.gone.load(Ordering::Relaxed) {
            let name = &self.name;
            return Err(EventError::Closed(format!("consumer '{name}' is gone and delivers nothing again")));
        }
        let now = self.clock.now();
        self.settle(|machine| machine.nak(lease, delay, now))?;
        self.wake_one();
        Ok(())
    }

    fn term(&self, lease: Lease, reason: &str) -> Result<()> {
        tracing::debug!(consumer = self.name, sequence = lease.sequence, reason, "event terminated");
        LeaseHolder::ack(self, lease)
    }

    fn extend(&self, lease: Lease) -> Result<()> {
        self.check_delivers()?;
        let now = self.clock.now();
        self.settle(|machine| machine.extend(lease, now))
    }

    fn release(&self, lease: Lease) -> Result<()> {
        self.check_delivers()?;
        let now = self.clock.now();
        self.settle(|machine| machine.release(lease, now))?;
        self.wake_one();
        Ok(())
    }
}
