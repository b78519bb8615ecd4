//! Subscriptions: members of a consumer that fetch, wait and settle.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::stream::{Group, GroupId, Lifecycle, Stream};
use super::{Clock, Shared};
use crate::deadline::After;
use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;
use crate::provider::consumer::{Consumer, ConsumerConfig, Fetched, Lease, Start, Time};
use crate::provider::{
    AckFuture, AckHandler, AckKind, ConsumerInfo, ConsumerPosition, Delivery, PendingEvent, Settlement,
    Subscription, SubscriptionEnd,
};
use crate::types::{Event, ReceivedEvent};

/// One consumer, shared by its members. Its lock is taken before the stream's, never after.
#[derive(Debug)]
pub(super) struct ConsumerCell {
    name: String,
    /// Name of the stream it reads.
    stream: Arc<str>,
    durable: bool,
    group: GroupId,
    /// Open subscriptions.
    members: AtomicUsize,
    /// Set, under the stream's exclusive lock, when the consumer is forgotten.
    pub(super) gone: AtomicBool,
    wakeup: Notify,
    /// A member found nothing to do since the last publish woke one. Changed under the stream's lock.
    idle: AtomicBool,
    /// Matches before a start in the future, to be skipped by the next fetch. Changed under the stream's lock.
    skipped: AtomicU64,
    clock: Clock,
    state: Mutex<Position>,
}

#[derive(Debug)]
struct Position {
    machine: Consumer,
    /// Ordinal in the group of the next match to hand out.
    next_ordinal: u64,
}

/// An event that was handed out, and the lease under which.
type Leased = (Lease, Arc<Event>);

/// What a member gets when it asks.
enum Step<T> {
    Deliver(T),
    Missed(u64),
    Wait { until: Option<Time> },
    End(SubscriptionEnd),
}

impl ConsumerCell {
    pub(super) fn new(
        name: String,
        durable: bool,
        stream: Arc<str>,
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
            idle: AtomicBool::new(false),
            skipped: AtomicU64::new(0),
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

    /// The same after a publish. Who is awake finds the event by itself, and wakes the next member when it has one.
    pub(super) fn wake_if_idle(&self) {
        if self.idle.load(Ordering::Relaxed) && self.idle.swap(false, Ordering::Relaxed) {
            self.wake_one();
        }
    }

    /// A match was stored that lies before this consumer's start.
    pub(super) fn skip_one(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
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

    /// Moves the consumer; its members go on from there.
    pub(super) fn reset(&self, shared: &Shared, to: ConsumerPosition) -> Result<()> {
        // Without what is too old, which is no position any more.
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
        self.wake_one();
        Ok(())
    }

    fn lag(&self, state: &Position, shared: &Shared) -> u64 {
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

    /// What to hand out now. With `settle`, the delivery is acknowledged in the same breath.
    fn fetch(&self, shared: &Shared, settle: bool) -> Step<Leased> {
        self.with_position(shared, |position, stream, group| {
            let step = self.step(position, stream, group, self.clock.now());
            if let (Step::Deliver((lease, _)), true) = (&step, settle) {
                // It was leased under this very lock and cannot be stale.
                let _ = position.machine.ack(*lease);
            }
            step
        })
    }

    /// Up to `max` events at once: one look at the clock and the stream for all of them.
    fn fetch_batch(&self, shared: &Shared, max: usize) -> Step<Vec<Leased>> {
        self.with_position(shared, |position, stream, group| {
            let now = self.clock.now();
            let mut batch = Vec::new();
            while batch.len() < max {
                match self.step(position, stream, group, now) {
                    Step::Deliver(leased) => batch.push(leased),
                    Step::Missed(missed) if !batch.is_empty() => {
                        // Told by the next call, behind what was delivered before.
                        position.machine.note_missed(missed);
                        break;
                    }
                    Step::Missed(missed) => return Step::Missed(missed),
                    Step::Wait { .. } | Step::End(_) if !batch.is_empty() => break,
                    Step::Wait { until } => return Step::Wait { until },
                    Step::End(end) => return Step::End(end),
                }
            }
            Step::Deliver(batch)
        })
    }

    /// Looks at the stream from this consumer's position.
    fn with_position<T>(
        &self,
        shared: &Shared,
        look: impl FnOnce(&mut Position, &Stream, &Group) -> Step<T>,
    ) -> Step<T> {
        let mut position = self.lock();
        let stream = shared.read();
        let group = match stream.group(self.group) {
            _ if stream.lifecycle == Lifecycle::Closed => return Step::End(SubscriptionEnd::Closed),
            Some(group) if !self.gone.load(Ordering::Relaxed) => group,
            _ => return Step::End(SubscriptionEnd::Deleted),
        };
        if self.skipped.load(Ordering::Relaxed) != 0 {
            position.next_ordinal += self.skipped.swap(0, Ordering::Relaxed);
        }
        let overtaken = group.first_ordinal().saturating_sub(position.next_ordinal);
        if overtaken > 0 {
            position.next_ordinal = group.first_ordinal();
            position.machine.note_missed(overtaken);
        }
        look(&mut position, &stream, group)
    }

    fn step(&self, position: &mut Position, stream: &Stream, group: &Group, now: Time) -> Step<Leased> {
        let Position { machine, next_ordinal } = position;
        let fetched = machine.fetch(now, stream.log.first(), |_cursor| {
            let sequence = group.at(*next_ordinal)?;
            *next_ordinal += 1;
            Some(sequence)
        });
        match fetched {
            Fetched::Deliver(lease) => match stream.log.event(lease.sequence) {
                Some(event) => Step::Deliver((lease, Arc::clone(event))),
                None => Step::Missed(1),
            },
            Fetched::Missed(missed) => Step::Missed(missed),
            Fetched::Idle if stream.lifecycle == Lifecycle::Abandoned && machine.pending() == 0 => {
                Step::End(SubscriptionEnd::Closed)
            }
            Fetched::Idle => {
                // Under the stream's lock: a publish that comes behind this look sees it.
                self.idle.store(true, Ordering::Relaxed);
                Step::Wait { until: machine.next_due() }
            }
        }
    }

    /// Settles a delivery and wakes a member when that makes work for it.
    fn settle_now(&self, lease: Lease, kind: AckKind) -> Result<()> {
        let delivers_again = matches!(kind, AckKind::Nak(_) | AckKind::Extend | AckKind::Release);
        if delivers_again && self.gone.load(Ordering::Relaxed) {
            let name = &self.name;
            return Err(EventError::Closed(format!("consumer '{name}' is gone and delivers nothing again")));
        }
        let wakes = {
            let mut state = self.lock();
            let was_full = state.machine.is_full();
            // The time is taken under the lock, so that the machine sees none that is before an earlier one.
            state.machine.settle(lease, &kind, || self.clock.now())?;
            let gives_back = matches!(kind, AckKind::Nak(_) | AckKind::Release);
            // A member that waits for the end of an abandoned stream waits for the last settlement.
            gives_back || was_full || state.machine.pending() == 0
        };
        if wakes {
            self.wake_one();
        }
        if let AckKind::Term(reason) = &kind {
            tracing::debug!(consumer = self.name, sequence = lease.sequence, reason, "event terminated");
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Position> {
        // The machine's methods leave no half-done state behind, so that a panic elsewhere does not matter here.
        self.state.lock().ignore_poison()
    }
}

/// A subscription of the memory provider.
#[derive(Debug)]
pub struct MemorySubscription {
    shared: Arc<Shared>,
    cell: Arc<ConsumerCell>,
    closed: bool,
    /// Why it ended, once it has.
    end: Option<SubscriptionEnd>,
}

impl MemorySubscription {
    pub(super) fn new(shared: Arc<Shared>, cell: Arc<ConsumerCell>) -> Self {
        {
            let mut stream = shared.write();
            if cell.members.fetch_add(1, Ordering::Relaxed) == 0 {
                stream.set_attended(&cell, true);
            }
        }
        Self { shared, cell, closed: false, end: None }
    }

    /// Waits until `fetch` finds something. Cancel-safe: nothing is awaited after a fetch that delivered.
    async fn next_step<T>(&mut self, fetch: impl Fn(&ConsumerCell, &Shared) -> Step<T>) -> Result<Option<T>> {
        if self.closed {
            return Ok(None);
        }
        loop {
            let step = fetch(&self.cell, &self.shared);
            if let Step::Wait { until } = step {
                // Boxed, so that the common case does not carry a timer around.
                Box::pin(self.wait(until)).await;
                continue;
            }
            // Another member may have to take over the wait for what is due next.
            self.pass_on();
            return match step {
                Step::Deliver(delivered) => Ok(Some(delivered)),
                Step::Missed(missed) => Err(EventError::Lagged { consumer: self.cell.name.clone(), missed }),
                Step::End(end) => {
                    self.end.get_or_insert(end);
                    Ok(None)
                }
                Step::Wait { .. } => Ok(None),
            };
        }
    }

    fn delivery(&self, (lease, event): Leased) -> Delivery {
        let handler = Arc::clone(&self.cell) as Arc<dyn AckHandler>;
        Delivery::new(event, lease, Arc::clone(&self.cell.stream), handler)
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
        self.end.get_or_insert(SubscriptionEnd::Closed);
        let mut stream = self.shared.write();
        if self.cell.members.fetch_sub(1, Ordering::Relaxed) == 1 {
            stream.set_attended(&self.cell, false);
        }
        if self.cell.durable {
            drop(stream);
            self.cell.wake_one();
        } else {
            stream.remove_consumer(&self.cell);
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
        let next = self.next_step(|cell, shared| cell.fetch(shared, true)).await?;
        let Some((lease, event)) = next else { return Ok(None) };
        Ok(Some(ReceivedEvent {
            event: Arc::unwrap_or_clone(event),
            sequence: lease.sequence,
            num_delivered: lease.attempt.into(),
            stream: self.cell.stream.as_ref().to_owned(),
        }))
    }

    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>> {
        Ok(self.next_delivery().await?.map(Delivery::into_pending))
    }

    async fn next_delivery(&mut self) -> Result<Option<Delivery>> {
        let next = self.next_step(|cell, shared| cell.fetch(shared, false)).await?;
        Ok(next.map(|leased| self.delivery(leased)))
    }

    async fn next_batch(&mut self, max: usize, wait: Duration) -> Option<Vec<Result<Delivery>>> {
        let batch = self.next_step(|cell, shared| cell.fetch_batch(shared, max));
        match tokio::time::timeout_at(tokio::time::Instant::now().after(wait), batch).await {
            Err(_elapsed) => Some(Vec::new()),
            Ok(Ok(batch)) => Some(batch?.into_iter().map(|leased| Ok(self.delivery(leased))).collect()),
            Ok(Err(error)) => Some(vec![Err(error)]),
        }
    }

    async fn lag(&self) -> Result<u64> {
        let state = self.cell.lock();
        Ok(self.cell.lag(&state, &self.shared))
    }

    fn settings(&self) -> Option<ConsumerConfig> {
        Some(self.cell.with_machine(|machine| machine.config().clone()))
    }

    fn end(&self) -> Option<SubscriptionEnd> {
        self.end
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

impl AckHandler for ConsumerCell {
    fn settle(&self, asked: Settlement) -> AckFuture<'_> {
        AckFuture::ready(self.settle_now(asked.lease, asked.kind))
    }
}
