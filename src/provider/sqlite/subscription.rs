//! Subscriptions: members of a consumer that ask the writer thread, wait and settle.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Shared;
use super::cells::{Cell, ConsumerKey};
use super::fetch::{Answer, Fetch, Item};
use super::lag;
use super::queue::{Access, GiveBack, Size, answered};
use crate::deadline::After;
use crate::error::{EventError, Result};
use crate::provider::consumer::{ConsumerConfig, Lease, Time};
use crate::provider::support::{stand_in, without_values};
use crate::provider::{
    AckFuture, AckHandler, AckKind, AlreadyAcked, DEFAULT_TIMEOUT, Delivery, PendingEvent, Settlement,
    Subscription, SubscriptionEnd, UndecodableRecord,
};
use crate::types::{Event, ReceivedEvent};

/// A lease that has waited here for longer than this is restarted before the event is handed out.
const FRESH: Duration = Duration::from_millis(100);

/// A subscription of the SQLite provider.
///
/// What the writer thread is asked for is kept here until the answer is used, so that dropping a future loses nothing.
#[derive(Debug)]
pub struct SqliteSubscription {
    shared: Arc<Shared>,
    cell: Arc<Cell>,
    stream: Arc<str>,
    /// Settles what it hands out.
    handler: Arc<Handler>,
    /// The answer to a request for events.
    asked: Option<oneshot::Receiver<Result<Answer>>>,
    /// The answer to the settlement of the first of `ready`.
    settling: Option<(Step, oneshot::Receiver<Result<()>>)>,
    /// Leased for this member, not handed out.
    ready: VecDeque<Ready>,
    /// When `ready` was leased, or restarted.
    leased_at: Instant,
    /// Whether records that are not events are handed out.
    keeps_undecodable: bool,
    closed: bool,
    /// Why it ended, once it has.
    end: Option<SubscriptionEnd>,
}

/// What came for this member.
#[derive(Debug)]
enum Ready {
    Event {
        lease: Lease,
        event: Arc<Event>,
        settled: bool,
    },
    /// A record that is not an event: it is kept as it is, or has to be settled before its reader is told.
    Undecodable(Lease, UndecodableRecord),
    Error(EventError),
}

impl From<Item> for Ready {
    fn from(item: Item) -> Self {
        let (lease, record, settled) = match item {
            Item::Event { lease, record, settled } => (lease, record, settled),
            Item::Damaged { lease, record } => return Self::Undecodable(lease, record),
            Item::Error(error) => return Self::Error(error),
        };
        match serde_json::from_slice(&record) {
            Ok(event) => Self::Event { lease, event: Arc::new(event), settled },
            Err(error) => {
                let record = UndecodableRecord::new(record, without_values(&error));
                if settled {
                    Self::Error(undecodable(lease, record))
                } else {
                    Self::Undecodable(lease, record)
                }
            }
        }
    }
}

impl Ready {
    /// The lease of what was not handed out.
    fn unused_lease(self) -> Option<Lease> {
        match self {
            Self::Event { lease, settled: false, .. } | Self::Undecodable(lease, _) => Some(lease),
            Self::Event { .. } | Self::Error(_) => None,
        }
    }
}

fn undecodable(lease: Lease, record: UndecodableRecord) -> EventError {
    EventError::Undecodable { sequence: lease.sequence, raw: record.raw, reason: record.reason }
}

/// What is done with an event before it is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Ack,
    Extend,
}

/// An event as it is handed out.
#[derive(Debug)]
struct Taken {
    lease: Lease,
    event: Arc<Event>,
    settled: bool,
    undecodable: Option<UndecodableRecord>,
}

impl SqliteSubscription {
    pub(super) fn new(shared: Arc<Shared>, cell: Arc<Cell>) -> Self {
        let stream = shared.config.stream_name.as_str().into();
        let handler = Arc::new(Handler { shared: Arc::clone(&shared), consumer: cell.key });
        Self {
            shared,
            cell,
            stream,
            handler,
            asked: None,
            settling: None,
            ready: VecDeque::new(),
            leased_at: Instant::now(),
            keeps_undecodable: false,
            closed: false,
            end: None,
        }
    }

    /// Waits until there is something to hand out. With `settle` it is acked before.
    async fn take(&mut self, settle: bool) -> Result<Option<Taken>> {
        loop {
            if self.closed {
                return Ok(None);
            }
            if let Some(item) = self.take_ready(settle).await? {
                self.cell.pass_on();
                return Ok(Some(item));
            }
            match self.fetch(1, settle).await? {
                None => {
                    self.cell.pass_on();
                    return Ok(None);
                }
                Some(due) if self.ready.is_empty() => self.wait(due).await,
                Some(_) => {}
            }
        }
    }

    /// The first event that is here already.
    async fn take_ready(&mut self, settle: bool) -> Result<Option<Taken>> {
        loop {
            if let Some(Ready::Event { lease, settled: false, .. } | Ready::Undecodable(lease, _)) =
                self.ready.front()
                && self.settling.is_none()
                && self.cell.is_stale(*lease)
            {
                self.ready.pop_front();
                continue;
            }
            let (lease, step) = match self.ready.front() {
                None => return Ok(None),
                Some(Ready::Error(_)) => (None, None),
                Some(Ready::Undecodable(lease, _)) if settle || !self.keeps_undecodable => {
                    (Some(*lease), Some(Step::Ack))
                }
                Some(Ready::Event { settled: true, .. }) => (None, None),
                Some(Ready::Event { lease, .. }) if settle => (Some(*lease), Some(Step::Ack)),
                Some(Ready::Event { lease, .. } | Ready::Undecodable(lease, _))
                    if self.leased_at.elapsed() > FRESH =>
                {
                    (Some(*lease), Some(Step::Extend))
                }
                Some(Ready::Event { lease, .. } | Ready::Undecodable(lease, _)) => (Some(*lease), None),
            };
            if let Some(lease) = lease
                && (self.settling.is_some() || step.is_some())
            {
                self.settle_front(lease, step.unwrap_or(Step::Extend)).await?;
                continue;
            }
            match self.ready.pop_front() {
                Some(Ready::Event { lease, event, settled }) => {
                    return Ok(Some(Taken { lease, event, settled, undecodable: None }));
                }
                Some(Ready::Error(error)) => return Err(error),
                Some(kept @ Ready::Undecodable(..)) => {
                    self.ready.push_front(kept);
                    return self.take_undecodable().await;
                }
                None => {}
            }
        }
    }

    /// The record at the front, which is kept there until its subject is known.
    async fn take_undecodable(&mut self) -> Result<Option<Taken>> {
        let Some(Ready::Undecodable(Lease { sequence, .. }, _)) = self.ready.front() else { return Ok(None) };
        let sequence = *sequence;
        let look = move |store: &mut super::store::Store| store.subject_of(sequence).map(Ok);
        let subject = self.shared.call("next", Access::Read, look).await?;
        Ok(match self.ready.pop_front() {
            Some(Ready::Undecodable(lease, record)) => {
                let event = Arc::new(stand_in(&record, &subject, sequence));
                Some(Taken { lease, event, settled: false, undecodable: Some(record) })
            }
            _ => None,
        })
    }

    /// Settles the front of `ready`, or goes on with the settlement that was begun.
    async fn settle_front(&mut self, lease: Lease, step: Step) -> Result<()> {
        if self.settling.is_none() {
            let kind = if step == Step::Ack { AckKind::Ack } else { AckKind::Extend };
            let answer = self.shared.send_settlement(self.cell.key, lease, kind).await?;
            self.settling = Some((step, answer));
        }
        let Some((step, answer)) = &mut self.settling else {
            return Ok(());
        };
        let step = *step;
        let outcome = answered("next", DEFAULT_TIMEOUT, answer).await;
        self.settling = None;
        match outcome {
            Ok(()) if step == Step::Ack => {
                match self.ready.pop_front() {
                    Some(Ready::Event { lease, event, .. }) => {
                        self.ready.push_front(Ready::Event { lease, event, settled: true });
                    }
                    Some(Ready::Undecodable(lease, record)) => {
                        self.ready.push_front(Ready::Error(undecodable(lease, record)));
                    }
                    other => self.ready.extend(other),
                }
                Ok(())
            }
            Ok(()) => {
                self.leased_at = Instant::now();
                Ok(())
            }
            // The lease was lost while the event lay here: it goes, or went, to another delivery.
            Err(EventError::Ack(_) | EventError::Closed(_)) => {
                self.ready.pop_front();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Asks for events and puts them into `ready`. Returns when to ask again if there are none; `None` at the end.
    async fn fetch(&mut self, max: usize, settle: bool) -> Result<Option<Option<Time>>> {
        if let Some(end) = self.cell.end() {
            return Ok(self.ended(end));
        }
        if self.asked.is_none() {
            match self.ask(max, settle).await {
                Err(error) if error.is_closed() => return Ok(self.ended(SubscriptionEnd::Closed)),
                Err(error) => return Err(error),
                Ok(answer) => self.asked = Some(answer),
            }
        }
        let Some(answer) = &mut self.asked else {
            return Ok(None);
        };
        let answer = match answered("next", DEFAULT_TIMEOUT, answer).await {
            Err(error) if error.is_closed() => {
                self.asked = None;
                return Ok(self.ended(SubscriptionEnd::Closed));
            }
            // The answer may still come; the next call waits for it.
            Err(error @ EventError::Timeout(_)) => return Err(error),
            answer => {
                self.asked = None;
                answer?
            }
        };
        self.leased_at = Instant::now();
        self.ready.extend(answer.items.into_iter().map(Ready::from));
        match answer.end {
            None => Ok(Some(answer.due)),
            Some(end) => {
                self.cell.end_as(end);
                Ok(self.ended(end))
            }
        }
    }

    /// Notes why the subscription ended, unless that is known, and returns what [`fetch`](Self::fetch) does at the end.
    fn ended<T>(&mut self, end: SubscriptionEnd) -> Option<T> {
        self.end.get_or_insert(end);
        None
    }

    async fn ask(&self, max: usize, settle: bool) -> Result<oneshot::Receiver<Result<Answer>>> {
        let (reply, answer) = oneshot::channel();
        let access = match self.cell.is_durable() {
            false => Access::Read,
            true if settle => Access::Sync,
            true => Access::Write,
        };
        let fetch = Fetch {
            consumer: self.cell.key,
            max,
            settle,
            keep_undecodable: self.keeps_undecodable,
            done: Ok(Answer::default()),
            reply,
        };
        self.shared.queue.submit("next", access, Size::ONE, DEFAULT_TIMEOUT, Box::new(fetch)).await?;
        Ok(answer)
    }

    async fn wait(&self, due: Option<Time>) {
        let mut baton = Baton { cell: &self.cell, armed: true };
        let wakeup = self.cell.wakeup.notified();
        match due {
            None => wakeup.await,
            Some(due) => {
                let now = Duration::from_millis(self.shared.config.now_ms());
                let patience = due.since_origin().saturating_sub(now);
                // Woken or due: the next request tells which.
                let _ = tokio::time::timeout(patience, wakeup).await;
            }
        }
        baton.armed = false;
    }

    fn delivery(&self, taken: Taken) -> Delivery {
        let Taken { lease, event, settled, undecodable } = taken;
        let handler: Arc<dyn AckHandler> =
            if settled { Arc::new(AlreadyAcked) } else { Arc::clone(&self.handler) as _ };
        match undecodable {
            None => Delivery::new(event, lease, Arc::clone(&self.stream), handler),
            Some(record) => {
                Delivery::undecodable(&event.subject, record, lease, Arc::clone(&self.stream), handler)
            }
        }
    }

    /// Leaves the consumer: what was not handed out is given back, and an ephemeral consumer ends.
    fn leave(&mut self) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        self.end.get_or_insert(SubscriptionEnd::Closed);
        let mut leases: Vec<_> = self.ready.drain(..).filter_map(Ready::unused_lease).collect();
        if let Some(mut asked) = self.asked.take() {
            // From here on the writer thread takes back what it cannot deliver.
            asked.close();
            if let Ok(Ok(answer)) = asked.try_recv() {
                leases.extend(answer.unused_leases());
            }
        }
        self.shared.cells.leave(&self.cell);
        let forget = !self.cell.is_durable();
        if forget || !leases.is_empty() {
            self.shared.queue.give_back(GiveBack { consumer: self.cell.key, leases, forget });
        }
    }
}

/// A member that gives up waiting lets another one wait in its place, who then knows when the next event is due.
struct Baton<'a> {
    cell: &'a Cell,
    armed: bool,
}

impl Drop for Baton<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.cell.pass_on();
        }
    }
}

#[async_trait]
impl Subscription for SqliteSubscription {
    async fn next(&mut self) -> Result<Option<ReceivedEvent>> {
        let Some(Taken { lease, event, undecodable, .. }) = self.take(true).await? else {
            return Ok(None);
        };
        if let Some(UndecodableRecord { raw, reason }) = undecodable {
            return Err(EventError::Undecodable { sequence: lease.sequence, raw, reason });
        }
        Ok(Some(ReceivedEvent {
            event: Arc::unwrap_or_clone(event),
            sequence: lease.sequence,
            num_delivered: lease.attempt.into(),
            stream: self.stream.as_ref().to_owned(),
        }))
    }

    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>> {
        Ok(self.next_delivery().await?.map(Delivery::into_pending))
    }

    async fn next_delivery(&mut self) -> Result<Option<Delivery>> {
        let taken = self.take(false).await?;
        Ok(taken.map(|taken| self.delivery(taken)))
    }

    async fn next_batch(&mut self, max: usize, wait: Duration) -> Option<Vec<Result<Delivery>>> {
        let mut batch = Vec::new();
        if max == 0 {
            return Some(batch);
        }
        let deadline = Instant::now().after(wait);
        loop {
            if self.closed {
                return None;
            }
            // What is here already goes out at once: nothing is awaited once the first was taken.
            match self.take_ready(false).await {
                Ok(Some(taken)) => batch.push(Ok(self.delivery(taken))),
                Ok(None) => {}
                Err(error) => return Some(vec![Err(error)]),
            }
            while !batch.is_empty()
                && batch.len() < max
                && let Some(Ready::Event { .. }) = self.ready.front()
                && let Some(Ready::Event { lease, event, settled }) = self.ready.pop_front()
            {
                batch.push(Ok(self.delivery(Taken { lease, event, settled, undecodable: None })));
            }
            if !batch.is_empty() {
                self.cell.pass_on();
                return Some(batch);
            }
            let due = match tokio::time::timeout_at(deadline, self.fetch(max, false)).await {
                Err(_elapsed) => return Some(batch),
                Ok(Err(error)) => return Some(vec![Err(error)]),
                Ok(Ok(None)) => {
                    self.cell.pass_on();
                    return None;
                }
                Ok(Ok(Some(due))) => due,
            };
            if self.ready.is_empty() && tokio::time::timeout_at(deadline, self.wait(due)).await.is_err() {
                return Some(batch);
            }
        }
    }

    fn keep_undecodable(&mut self) -> bool {
        self.keeps_undecodable = true;
        true
    }

    async fn lag(&self) -> Result<u64> {
        let key = self.cell.key;
        if self.cell.end().is_some() {
            return Ok(0);
        }
        let ephemeral = if self.cell.is_durable() {
            None
        } else {
            let look = move |store: &mut super::store::Store| store.ephemeral(key).map(Ok);
            let Some(standing) = self.shared.call("lag", Access::Read, look).await? else { return Ok(0) };
            Some(standing)
        };
        let everything = format!("{}.>", self.shared.config.subject_prefix);
        let read = move |connection: &rusqlite::Connection| match ephemeral {
            Some(standing) => lag::of(connection, &everything, standing),
            None => lag::of_durable(connection, &everything, key.id),
        };
        self.shared.read("lag", read).await
    }

    fn settings(&self) -> Option<ConsumerConfig> {
        Some(self.cell.settings())
    }

    fn end(&self) -> Option<SubscriptionEnd> {
        self.end
    }

    async fn close(&mut self) -> Result<()> {
        self.leave();
        Ok(())
    }
}

impl Drop for SqliteSubscription {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Shared {
    /// Sends a settlement to the writer thread.
    async fn send_settlement(
        &self,
        consumer: ConsumerKey,
        lease: Lease,
        kind: AckKind,
    ) -> Result<oneshot::Receiver<Result<()>>> {
        // Only the end of an event must not be forgotten: what is lost of the others makes it come again.
        let access = match kind {
            _ if consumer.id < 0 => Access::Read,
            AckKind::Ack | AckKind::Term(_) => Access::Sync,
            AckKind::Nak(_) | AckKind::Extend | AckKind::Release => Access::Write,
        };
        let work = move |store: &mut super::store::Store| store.settle(consumer, lease, &kind);
        self.queue.call("settle", access, Size::ONE, DEFAULT_TIMEOUT, work).await
    }
}

/// Settles the deliveries of one subscription.
#[derive(Debug)]
struct Handler {
    shared: Arc<Shared>,
    consumer: ConsumerKey,
}

impl AckHandler for Handler {
    fn settle(&self, Settlement { lease, kind }: Settlement) -> AckFuture<'_> {
        if let AckKind::Term(reason) = &kind {
            let sequence = lease.sequence;
            tracing::debug!(consumer = self.consumer.id, sequence, reason, "event terminated");
        }
        AckFuture::new(async move {
            let mut answer = self.shared.send_settlement(self.consumer, lease, kind).await?;
            answered("settle", DEFAULT_TIMEOUT, &mut answer).await
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::provider::EventProvider;
    use crate::provider::sqlite::{SqliteConfig, SqliteProvider, checksum};
    use crate::types::Event;

    use super::*;

    /// A sound row whose record is not an event, as another program could leave it, and an event behind it.
    async fn with_a_foreign_record(path: &std::path::Path) -> SqliteProvider {
        let provider = SqliteProvider::connect(SqliteConfig::file(path)).await.unwrap();
        let event = Event::new("events.test", "test", "", "test", serde_json::json!(1));
        for _ in 0..2 {
            provider.publish(&event).await.unwrap();
        }
        let connection = rusqlite::Connection::open(path).unwrap();
        let row = "SELECT subject, stored_at FROM events WHERE sequence = 1";
        let (subject, stored_at) =
            connection.query_row(row, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        let checksum = checksum::of_event(1, subject, stored_at, b"[]");
        let replaced = "UPDATE events SET record = CAST('[]' AS BLOB), checksum = ?1 WHERE sequence = 1";
        connection.execute(replaced, [checksum]).unwrap();
        provider
    }

    fn assert_undecodable(error: EventError) {
        assert!(
            matches!(&error, EventError::Undecodable { sequence: 1, raw, .. } if raw == b"[]"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_record_that_is_no_event_is_settled_before_its_reader_is_told() {
        let folder = tempfile::tempdir().unwrap();
        for (name, batch) in [("one", false), ("batch", true)] {
            let path = folder.path().join(name);
            let provider = with_a_foreign_record(&path).await;
            let mut subscription = provider.subscribe_durable("worker", "events.>").await.unwrap();
            if batch {
                let mut first = subscription.next_batch(9, Duration::from_secs(5)).await.unwrap();
                assert_undecodable(first.pop().unwrap().unwrap_err());
                assert!(first.is_empty());
            } else {
                assert_undecodable(subscription.next_delivery().await.unwrap_err());
            }
            provider.close().await.unwrap();
            let provider = SqliteProvider::connect(SqliteConfig::file(&path)).await.unwrap();
            assert_eq!(provider.consumers().await.unwrap()[0].pending, u64::from(batch));
            let mut subscription = provider.subscribe_durable("worker", "events.>").await.unwrap();
            if !batch {
                assert_eq!(subscription.next().await.unwrap().unwrap().sequence, 2);
            }
            let provider = with_a_foreign_record(&folder.path().join(format!("{name}-auto"))).await;
            let mut subscription = provider.subscribe_durable("worker", "events.>").await.unwrap();
            assert_undecodable(subscription.next().await.unwrap_err());
            assert_eq!(subscription.next().await.unwrap().unwrap().sequence, 2);
        }
    }
}
