//! A member of a consumer: sends requests to the writer thread and waits for the answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::acks::SentAck;
use super::cells::Cell;
use super::fetch::{self, Answer, Request};
use super::lag;
use super::queue::{Access, GiveBack, Size, answered};
use super::store::Store;
use super::{NAME, Shared};
use crate::deadline::After;
use crate::error::{EventError, Result};
use crate::provider::group::{ConsumerConfig, Lease, Time};
use crate::provider::receiver::{Ask, Fetch, Item};
use crate::provider::support::SentAcks;
use crate::provider::support::without_values;
use crate::provider::{
    AckFuture, AckHandler, AckKind, DEFAULT_TIMEOUT, Settlement, SubscriptionEnd, UndecodableRecord,
};

/// A member of a consumer of the SQLite provider.
///
/// Keeps every request until its answer is used, so that dropping a future loses no event.
#[derive(Debug)]
pub struct SqliteFetch {
    shared: Arc<Shared>,
    cell: Arc<Cell>,
    handler: Arc<Handler>,
    /// Receiver of the answer to a request for events.
    asked: Option<oneshot::Receiver<Result<Answer>>>,
    /// Items of the last answer, as stored.
    arrived: VecDeque<fetch::Item>,
    /// An undecodable record whose subject is being looked up.
    undecodable: Option<(Lease, UndecodableRecord)>,
}

impl SqliteFetch {
    pub(super) fn new(shared: Arc<Shared>, cell: Arc<Cell>) -> Self {
        let acks = SentAcks::new(NAME, shared.config.max_unconfirmed_acks, Arc::clone(&shared.ack_failures));
        let acks = Arc::new(acks);
        let handler = Arc::new(Handler { shared: Arc::clone(&shared), cell: Arc::clone(&cell), acks });
        Self { shared, cell, handler, asked: None, arrived: VecDeque::new(), undecodable: None }
    }

    /// Sends a request, unless a dropped call has sent one.
    async fn ask(&mut self, ask: Ask) -> Result<()> {
        if self.asked.is_some() {
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        let access = if self.cell.is_durable() { Access::Write } else { Access::Read };
        let request = Request { consumer: self.cell.key, ask, done: Ok(Answer::default()), reply };
        self.shared.queue.submit("next", access, Size::ONE, DEFAULT_TIMEOUT, Box::new(request)).await?;
        self.asked = Some(answer);
        Ok(())
    }

    async fn answer(&mut self, ask: Ask) -> Result<Answer> {
        self.ask(ask).await?;
        let Some(answer) = &mut self.asked else { return Ok(Answer::default()) };
        let answer = answered("next", &self.shared.config.path, DEFAULT_TIMEOUT, answer).await;
        if ask.ack && answer.is_ok() {
            self.handler.acks.note_sent();
        }
        // After a timeout the answer may still arrive; the next call waits for it.
        if !matches!(answer, Err(EventError::Timeout(_))) {
            self.asked = None;
        }
        answer
    }

    /// Decodes the items that have arrived.
    async fn decode(&mut self, taken: &mut VecDeque<Item>) -> Result<()> {
        loop {
            if let Some((Lease { sequence, .. }, _)) = &self.undecodable {
                let sequence = *sequence;
                let look = move |store: &mut Store| store.subject_of(sequence).map(Ok);
                let subject = self.shared.call("next", Access::Read, look).await?;
                let found = self.undecodable.take();
                taken.extend(found.map(|(lease, record)| {
                    Item::undecodable(lease, &subject, record, Arc::clone(&self.handler) as _)
                }));
            }
            let Some(next) = self.arrived.pop_front() else { return Ok(()) };
            match next {
                fetch::Item::Event { lease, record, acked } => match serde_json::from_slice(&record) {
                    Ok(event) if acked => taken.push_back(Item::acked(lease, Arc::new(event))),
                    Ok(event) => {
                        taken.push_back(Item::event(lease, Arc::new(event), Arc::clone(&self.handler) as _));
                    }
                    Err(error) => {
                        let record = UndecodableRecord::new(record, without_values(&error));
                        if acked {
                            taken.push_back(Item::Error(record.into_error(lease.sequence)));
                        } else {
                            self.undecodable = Some((lease, record));
                        }
                    }
                },
                fetch::Item::Damaged { lease, record } => self.undecodable = Some((lease, record)),
                fetch::Item::Error(error) => taken.push_back(Item::Error(error)),
            }
        }
    }

    async fn wait(&self, due: Option<Time>) {
        let due = due.map(|due| {
            let now = Duration::from_millis(self.shared.config.now_ms());
            Instant::now().after(due.since_origin().saturating_sub(now))
        });
        self.cell.members.wait(due).await;
    }
}

impl Fetch for SqliteFetch {
    async fn fetch(&mut self, ask: Ask, taken: &mut VecDeque<Item>) -> Result<Option<SubscriptionEnd>> {
        loop {
            self.decode(taken).await?;
            if !taken.is_empty() {
                return Ok(None);
            }
            if let Some(end) = self.cell.end() {
                return Ok(Some(end));
            }
            let answer = match self.answer(ask).await {
                Err(error) if error.is_closed() => return Ok(Some(SubscriptionEnd::Closed)),
                answer => answer?,
            };
            if let Some(end) = answer.end {
                self.cell.end_as(end);
            } else if answer.items.is_empty() {
                self.wait(answer.due).await;
            }
            self.arrived.extend(answer.items);
        }
    }

    fn stream(&self) -> Arc<str> {
        self.shared.config.stream_name.as_str().into()
    }

    fn pass_on(&self) {
        self.cell.members.pass_on();
    }

    fn is_stale(&self, lease: Lease, _since: Instant) -> bool {
        self.cell.is_stale(lease)
    }

    fn leave(&mut self, mut unused: Vec<Lease>) {
        unused.extend(self.undecodable.take().map(|(lease, _)| lease));
        unused.extend(self.arrived.drain(..).filter_map(|item| item.unused_lease()));
        if let Some(mut asked) = self.asked.take() {
            // From here on, the writer thread releases what it cannot deliver.
            asked.close();
            if let Ok(Ok(answer)) = asked.try_recv() {
                unused.extend(answer.unused_leases());
            }
        }
        self.shared.cells.leave(&self.cell);
        let forget = !self.cell.is_durable();
        if forget || !unused.is_empty() {
            self.shared.queue.give_back(GiveBack { consumer: self.cell.key, leases: unused, forget });
        }
    }

    async fn close(&mut self, unused: Vec<Lease>) -> Result<()> {
        let flushed = self.flush().await;
        self.leave(unused);
        flushed
    }

    async fn flush(&self) -> Result<()> {
        let access = if self.cell.is_durable() { Access::Sync } else { Access::Read };
        // A synced transaction also syncs all earlier ones.
        let sync = async {
            match self.shared.call("flush", access, |_store| Ok(Ok(()))).await {
                // The writer stored and synced the queued work before it ended.
                Err(error) if error.is_closed() => Ok(()),
                synced => synced,
            }
        };
        self.handler.acks.flush(DEFAULT_TIMEOUT, sync).await
    }

    async fn lag(&self) -> Result<u64> {
        let key = self.cell.key;
        if self.cell.end().is_some() {
            return Ok(0);
        }
        let ephemeral = if self.cell.is_durable() {
            None
        } else {
            let look = move |store: &mut Store| store.ephemeral(key).map(Ok);
            let Some(standing) = self.shared.call("lag", Access::Read, look).await? else { return Ok(0) };
            Some(standing)
        };
        let everything = self.shared.everything();
        let read = move |connection: &rusqlite::Connection| match ephemeral {
            Some(standing) => lag::of(connection, &everything, standing),
            None => lag::of_durable(connection, &everything, key.id),
        };
        self.shared.read("lag", read).await
    }

    fn settings(&self) -> Option<ConsumerConfig> {
        Some(self.cell.settings())
    }
}

/// Settles the deliveries of one member.
#[derive(Debug)]
struct Handler {
    shared: Arc<Shared>,
    cell: Arc<Cell>,
    acks: Arc<SentAcks>,
}

impl Handler {
    /// Sends an ack or term without waiting until it is stored.
    fn send(&self, lease: Lease, kind: AckKind) -> AckFuture<'_> {
        let (queue, timeout) = (&self.shared.queue, DEFAULT_TIMEOUT);
        let access = if self.cell.is_durable() { Access::Write } else { Access::Read };
        let (consumer, acks) = (self.cell.key, Arc::clone(&self.acks));
        let sent = move |place| {
            acks.note_sent();
            Box::new(SentAck { consumer, lease, kind, acks, settled: None, place })
        };
        let Some(place) = self.acks.place_now() else {
            return AckFuture::new(async move {
                let sent = sent(self.acks.place(timeout).await?);
                queue.submit("settle", access, Size::ONE, timeout, sent).await
            });
        };
        match queue.submit_now(access, sent(place)) {
            Ok(submitted) => AckFuture::ready(submitted),
            Err(sent) => AckFuture::new(queue.submit("settle", access, Size::ONE, timeout, sent)),
        }
    }
}

impl AckHandler for Handler {
    fn settle(&self, Settlement { lease, kind, is_confirmed }: Settlement) -> AckFuture<'_> {
        let consumer = self.cell.key;
        if let AckKind::Term(reason) = &kind {
            tracing::debug!(consumer = consumer.id, sequence = lease.sequence, reason, "event terminated");
        }
        let is_lost = self.cell.end().is_some() || self.cell.is_stale(lease);
        if !is_confirmed && !is_lost && matches!(kind, AckKind::Ack | AckKind::Term(_)) {
            return self.send(lease, kind);
        }
        // Acks and terms must not be lost. If another settlement is lost, the event is redelivered.
        let access = match kind {
            _ if !self.cell.is_durable() => Access::Read,
            AckKind::Ack | AckKind::Term(_) => Access::Sync,
            AckKind::Nak(_) | AckKind::Extend | AckKind::Release => Access::Write,
        };
        let work = move |store: &mut Store| store.settle(consumer, lease, &kind);
        AckFuture::new(self.shared.call("settle", access, work))
    }
}

#[cfg(test)]
mod tests {
    use crate::provider::EventProvider;
    use crate::provider::sqlite::{SqliteConfig, SqliteProvider, checksum};
    use crate::types::Event;

    use super::*;

    /// Stores a sound row whose record is not an event, as another program could, and an event after it.
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
