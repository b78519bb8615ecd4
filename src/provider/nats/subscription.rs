//! Subscriptions: members of a consumer that receive, settle and notice what retention took from them.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer;
use async_nats::{Message, RequestErrorKind, Subject};
use async_trait::async_trait;
use tokio::time::Instant;

use super::client::Shared;
use super::link::NoAnswer;
use super::pull::{Fetched, Pulled, Puller, give_back, now};
use super::unreadable::Unreadable;
use super::wire::decode;
use crate::error::{EventError, Result, shorten};
use crate::provider::consumer::ConsumerConfig;
use crate::provider::{AckHandler, Delivery, PendingEvent, Subscription, UndecodableRecord};
use crate::types::{Event, ReceivedEvent};

/// An event that waited here for longer than this has its lease restarted before it is handed out.
const FRESH: Duration = Duration::from_millis(50);
/// Longest wait for the confirmation of a settlement.
const CONFIRMATION: Duration = Duration::from_secs(3);
/// Pause between two looks at a consumer whose server is not ready.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A member of a consumer on NATS.
pub struct NatsSubscription {
    consumer: Arc<ConsumerHandle>,
    durable: bool,
    puller: Puller,
    /// Received, and not handed out yet because a call was cancelled on the way.
    held: Option<Held>,
    /// Whether records that are not events are handed out.
    keeps_undecodable: bool,
    /// Whether it reads the whole stream, so that what was dropped can be counted.
    counts_losses: bool,
    seen: Option<Seen>,
    closed: bool,
}

/// The consumer as its deliveries need it.
struct ConsumerHandle {
    shared: Arc<Shared>,
    name: String,
    stream: Arc<str>,
    config: ConsumerConfig,
}

/// A received record.
struct Held {
    decoded: std::result::Result<Arc<Event>, UndecodableRecord>,
    /// Not known of a record whose headers cannot be read: it is terminated, also by a member that keeps records.
    subject: Subject,
    position: Position,
    settling: Settling,
    /// Its lease has begun at this time or later.
    since: Instant,
}

/// Where a delivery is settled.
#[derive(Clone)]
struct Settling {
    reply: Subject,
    /// Number among all deliveries of the consumer, to all members.
    delivery: u64,
    /// The connection that it came on.
    connection: u64,
}

/// What a call hands out.
#[derive(Clone, Copy)]
enum CallFor {
    One,
    /// Several at once, which are fetched for it.
    Batch,
}

/// Where a delivery stands in its stream and in its consumer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    pub(super) sequence: u64,
    /// Number among all deliveries of the consumer, to all members.
    delivery: u64,
    num_delivered: u64,
    /// When the record was stored, in Unix milliseconds.
    pub(super) stored_at: u64,
}

/// The last new event that this member knows of, and the last delivery. What lies between it and the next one and was
/// delivered to nobody was dropped.
///
/// It means something for consumers of the whole stream: of the others, nobody knows whether what was dropped matched.
#[derive(Debug, Clone, Copy)]
struct Seen {
    sequence: u64,
    delivery: u64,
}

impl Seen {
    /// How many events before this one were delivered to nobody.
    fn missing_before(self, position: Position) -> u64 {
        if position.num_delivered > 1 || position.delivery == 0 || position.sequence <= self.sequence {
            return 0;
        }
        let skipped = position.sequence - self.sequence - 1;
        skipped.saturating_sub(position.delivery.saturating_sub(self.delivery + 1))
    }

    /// The same after a delivery; a redelivery is no new event.
    fn then(self, position: Position) -> Self {
        let sequence = if position.num_delivered > 1 { self.sequence } else { position.sequence };
        Self { sequence: sequence.max(self.sequence), delivery: position.delivery.max(self.delivery) }
    }
}

impl NatsSubscription {
    pub(super) fn new(
        shared: &Arc<Shared>,
        info: &consumer::Info,
        config: ConsumerConfig,
        durable: bool,
    ) -> Self {
        let counts_losses = config.filter == format!("{}.>", shared.prefix());
        // A consumer that delivered nothing yet begins wherever its policy says.
        let seen = (info.delivered.consumer_sequence > 0).then_some(Seen {
            sequence: info.delivered.stream_sequence,
            delivery: info.delivered.consumer_sequence,
        });
        let consumer = ConsumerHandle {
            shared: Arc::clone(shared),
            name: info.name.clone(),
            stream: shared.stream_name().into(),
            config,
        };
        Self {
            puller: Puller::new(Arc::clone(shared), info.name.clone()),
            consumer: Arc::new(consumer),
            durable,
            held: None,
            keeps_undecodable: false,
            counts_losses,
            seen,
            closed: false,
        }
    }

    /// The next event, which stays in `held` until it is taken, so that no await loses it. `false` means closed.
    async fn hold_next(&mut self, call: CallFor) -> Result<bool> {
        // What is fetched ahead counts as delivered, which may be the only delivery that is allowed.
        let may_fetch_ahead = matches!(call, CallFor::One) && self.consumer.config.max_deliver.is_none();
        loop {
            if self.closed {
                return Ok(false);
            }
            if self.held.is_none() {
                match self.puller.next(may_fetch_ahead).await? {
                    Pulled::Message(fetched) => self.held = Some(Held::new(&fetched)?),
                    Pulled::Unreadable(unreadable) => self.held = Some(Held::unreadable(unreadable)),
                    Pulled::Closed => self.closed = true,
                    Pulled::Gone => {
                        self.closed = true;
                        if !self.durable {
                            let name = &self.consumer.name;
                            return Err(EventError::Closed(format!(
                                "ephemeral consumer '{name}' was deleted on the server"
                            )));
                        }
                    }
                }
                continue;
            }
            self.tell_missed().await?;
            if self.renew_lease().await? && self.end_undecodable().await? {
                return Ok(true);
            }
        }
    }

    /// Reports once what retention dropped before the held event.
    async fn tell_missed(&mut self) -> Result<()> {
        let Some(held) = &self.held else { return Ok(()) };
        let position = held.position;
        let mut missed = self.missing_before(position);
        if let (1.., Some(seen)) = (missed, self.seen) {
            // What was deleted by hand in the middle of the stream was not dropped by retention.
            let first = self.consumer.shared.stream().await?.state.first_sequence;
            missed = missed.min(first.saturating_sub(seen.sequence + 1));
        }
        self.see(position);
        if missed == 0 {
            return Ok(());
        }
        Err(EventError::Lagged { consumer: self.consumer.name.clone(), missed })
    }

    /// Restarts the lease of an event that has waited here. `false` when it has run out: the event comes again.
    async fn renew_lease(&mut self) -> Result<bool> {
        let Some(held) = &mut self.held else { return Ok(false) };
        let waited = held.since.elapsed();
        if waited >= self.consumer.config.ack_wait {
            self.held = None;
            return Ok(false);
        }
        if waited > FRESH {
            let from = Instant::now();
            self.consumer.settle(&held.settling, "extend", b"+WPI").await?;
            held.since = from;
        }
        Ok(true)
    }

    /// Terminates a held record that is not an event and not to be kept, and returns it as an error; `true` when there is
    /// something to hand out.
    async fn end_undecodable(&mut self) -> Result<bool> {
        if self.keeps_undecodable {
            return Ok(self.held.is_some());
        }
        self.end_held().await?;
        Ok(self.held.is_some())
    }

    /// Terminates the held record and returns it as an error, when it is not an event.
    async fn end_held(&mut self) -> Result<()> {
        let Some(Held { decoded: Err(undecodable), position, settling, .. }) = &self.held else {
            return Ok(());
        };
        self.consumer.term(settling, &undecodable.reason).await?;
        let error = EventError::Undecodable {
            sequence: position.sequence,
            raw: undecodable.raw.clone(),
            reason: undecodable.reason.clone(),
        };
        self.held = None;
        Err(error)
    }

    /// Holds the next fetched event if it can be handed out as it is. What needs more than that waits for the next call.
    fn hold_fetched(&mut self) -> bool {
        let Some(fetched) = self.puller.pop_fetched() else {
            return false;
        };
        match Held::new(&fetched) {
            Ok(held) if held.decoded.is_ok() && self.missing_before(held.position) == 0 => {
                self.see(held.position);
                self.held = Some(held);
                true
            }
            _ => {
                self.puller.unpop(fetched);
                false
            }
        }
    }

    /// How many events that this consumer should have got lie between the last delivery and this one.
    fn missing_before(&self, position: Position) -> u64 {
        self.seen.filter(|_| self.counts_losses).map_or(0, |seen| seen.missing_before(position))
    }

    fn see(&mut self, position: Position) {
        let first = Seen { sequence: position.sequence, delivery: position.delivery };
        self.seen = Some(self.seen.map_or(first, |seen| seen.then(position)));
    }

    fn take_delivery(&mut self) -> Option<Delivery> {
        let Held { decoded, subject, position, settling, .. } = self.held.take()?;
        let Position { sequence, num_delivered, .. } = position;
        let handler = Handler { consumer: Arc::clone(&self.consumer), settling, num_delivered };
        let stream = Arc::clone(&self.consumer.stream);
        Some(match decoded {
            Ok(event) => Delivery::new(event, sequence, num_delivered, stream, handler),
            Err(record) => Delivery::undecodable(&subject, record, sequence, num_delivered, stream, handler),
        })
    }

    /// The held event, which is settled; a record that is not one has become an error before.
    fn take_settled(&mut self) -> Option<(Arc<Event>, Position)> {
        let held = self.held.take()?;
        Some((held.decoded.ok()?, held.position))
    }

    /// Gives back what was fetched and not handed out. JetStream counts it as an attempt.
    async fn give_back(&mut self) -> Result<()> {
        if let Some(held) = &self.held {
            self.consumer.settle(&held.settling, "nak", b"-NAK").await?;
            self.held = None;
        }
        while let Some(fetched) = self.puller.take_left_over().await {
            self.consumer.settle(&Held::new(&fetched)?.settling, "nak", b"-NAK").await?;
        }
        Ok(())
    }
}

impl Held {
    fn new(fetched: &Fetched) -> Result<Self> {
        let Fetched { message, since, connection } = fetched;
        let (position, reply) = Position::of(message)
            .ok_or_else(|| EventError::Consumer("a message without a JetStream reply subject".to_owned()))?;
        let settling = Settling { reply, delivery: position.delivery, connection: *connection };
        let decoded = decode(message)
            .map(Arc::new)
            .map_err(|reason| UndecodableRecord::new(message.payload.to_vec(), reason));
        let subject = message.subject.clone();
        Ok(Self { decoded, subject, position, settling, since: *since })
    }

    fn unreadable(Unreadable { sequence, subject, raw, reply }: Unreadable) -> Self {
        // Which delivery it was is not known.
        let position = Position { sequence, delivery: 0, num_delivered: 1, stored_at: 0 };
        Self {
            decoded: Err(UndecodableRecord::new(raw, "its headers hold a carriage return")),
            subject: subject.into(),
            position,
            settling: Settling { reply: reply.into(), delivery: 0, connection: 0 },
            since: Instant::now(),
        }
    }
}

impl Position {
    /// Reads the subject that a delivery is acknowledged on:
    /// `$JS.ACK.stream.consumer.attempt.sequence.delivery.time.pending`, in newer servers with domain and account before
    /// the stream and maybe more behind.
    pub(super) fn of(message: &Message) -> Option<(Self, Subject)> {
        let reply = message.reply.clone()?;
        Some((Self::parse(&reply)?, reply))
    }

    fn parse(reply: &str) -> Option<Self> {
        let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let numbers = match tokens.len() {
            7 => tokens.get(2..6)?,
            9.. => tokens.get(4..8)?,
            _ => return None,
        };
        let [num_delivered, sequence, delivery, stored_at] = numbers else { return None };
        Some(Self {
            sequence: sequence.parse().ok()?,
            delivery: delivery.parse().ok()?,
            num_delivered: num_delivered.parse().ok()?,
            stored_at: stored_at.parse::<u64>().ok()? / 1_000_000,
        })
    }
}

impl ConsumerHandle {
    /// Sends a settlement and waits until the server confirms it.
    async fn settle(&self, settling: &Settling, verb: &str, body: &[u8]) -> Result<()> {
        let deadline = CONFIRMATION.min(self.shared.settings.config.request_timeout());
        let late = || EventError::Ack(format!("{verb}: no confirmation within {} s", deadline.as_secs()));
        let asking = async {
            match self.shared.link.request(&settling.reply, body, deadline).await {
                Ok(_confirmation) => Ok(()),
                Err(NoAnswer::Failed(error)) if error.kind() == RequestErrorKind::NoResponders => {
                    self.nobody_settles(verb).await
                }
                Err(NoAnswer::Late) => Err(late()),
                Err(none) => Err(EventError::Ack(format!("{verb}: {}", none.into_error("settle", deadline)))),
            }
        };
        let mut asking = pin!(tokio::time::timeout(deadline, asking));
        if let Ok(settled) = tokio::time::timeout(FRESH, &mut asking).await {
            return settled.unwrap_or_else(|_| Err(late()));
        }
        tokio::select! {
            biased;
            settled = &mut asking => settled.unwrap_or_else(|_| Err(late())),
            () = self.forgets(settling) => {
                Err(EventError::Ack(format!("{verb}: the server has crashed and forgotten that it delivered the event")))
            }
        }
    }

    /// Waits until a new connection shows that the server does not know a delivery. It would never confirm that it is
    /// settled, and delivers the event again.
    async fn forgets(&self, settling: &Settling) {
        let mut connection = settling.connection;
        loop {
            connection = self.shared.link.connection_after(connection).await;
            match self.shared.consumer(&self.name).await {
                Ok(Some(info)) if info.delivered.consumer_sequence < settling.delivery => return,
                Ok(_) => {}
                Err(_) => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    connection = settling.connection;
                }
            }
        }
    }

    /// Nobody listens for settlements: the consumer is gone, or its server is starting.
    async fn nobody_settles(&self, verb: &str) -> Result<()> {
        let name = &self.name;
        if self.shared.consumer(name).await?.is_some() {
            return Err(EventError::Ack(format!("{verb}: consumer '{name}' is not ready")));
        }
        match verb {
            // Nothing comes again, which is what was asked for.
            "ack" | "term" => Ok(()),
            _ => Err(EventError::Closed(format!("consumer '{name}' is gone and delivers nothing again"))),
        }
    }

    async fn term(&self, settling: &Settling, reason: &str) -> Result<()> {
        tracing::debug!(consumer = self.name, reason = shorten(reason), "event terminated");
        // Older servers know the bare word only.
        let body = if self.shared.link.client().is_server_compatible(2, 10, 4) {
            format!("+TERM {}", shorten(reason))
        } else {
            "+TERM".to_owned()
        };
        self.settle(settling, "term", body.as_bytes()).await
    }

    async fn nak(&self, settling: &Settling, delay: Duration) -> Result<()> {
        if delay.is_zero() {
            return self.settle(settling, "nak", b"-NAK").await;
        }
        let body = format!(r#"-NAK {{"delay":{}}}"#, delay.as_nanos());
        self.settle(settling, "nak", body.as_bytes()).await
    }
}

/// Settles one delivery.
struct Handler {
    consumer: Arc<ConsumerHandle>,
    settling: Settling,
    num_delivered: u64,
}

#[async_trait]
impl AckHandler for Handler {
    async fn ack(&self) -> Result<()> {
        self.consumer.settle(&self.settling, "ack", b"+ACK").await
    }

    async fn nak(&self, delay: Option<Duration>) -> Result<()> {
        let attempt = u32::try_from(self.num_delivered).unwrap_or(u32::MAX);
        let delay = delay.unwrap_or_else(|| self.consumer.config.backoff_after(attempt));
        self.consumer.nak(&self.settling, delay).await
    }

    async fn term(&self, reason: &str) -> Result<()> {
        self.consumer.term(&self.settling, reason).await
    }

    async fn extend(&self) -> Result<()> {
        self.consumer.settle(&self.settling, "extend", b"+WPI").await
    }
}

#[async_trait]
impl Subscription for NatsSubscription {
    async fn next(&mut self) -> Result<Option<ReceivedEvent>> {
        loop {
            if !self.hold_next(CallFor::One).await? {
                return Ok(None);
            }
            self.end_held().await?;
            if let Some(held) = &self.held {
                let settled = self.consumer.settle(&held.settling, "ack", b"+ACK").await;
                if settled.is_err() {
                    // Not handed over: the lease decides, and it comes again.
                    self.held = None;
                }
                settled?;
            }
            if let Some((event, position)) = self.take_settled() {
                return Ok(Some(ReceivedEvent {
                    event: Arc::unwrap_or_clone(event),
                    sequence: position.sequence,
                    num_delivered: position.num_delivered,
                    stream: self.consumer.stream.to_string(),
                }));
            }
        }
    }

    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>> {
        Ok(self.next_delivery().await?.map(Delivery::into_pending))
    }

    async fn next_delivery(&mut self) -> Result<Option<Delivery>> {
        loop {
            if !self.hold_next(CallFor::One).await? {
                return Ok(None);
            }
            if let Some(delivery) = self.take_delivery() {
                return Ok(Some(delivery));
            }
        }
    }

    async fn next_batch(&mut self, max: usize, wait: Duration) -> Option<Vec<Result<Delivery>>> {
        if max == 0 {
            return Some(Vec::new());
        }
        match tokio::time::timeout(wait, self.hold_next(CallFor::Batch)).await {
            Err(_elapsed) => return Some(Vec::new()),
            Ok(Err(error)) => return Some(vec![Err(error)]),
            Ok(Ok(false)) => return None,
            Ok(Ok(true)) => {}
        }
        // The first is still held and what is fetched waits in the puller, so that cancelling this loses nothing. An error
        // shows again at the next call.
        let _ = self.puller.fetch(max - 1).await;
        let mut batch: Vec<_> = self.take_delivery().map(Ok).into_iter().collect();
        while batch.len() < max && self.hold_fetched() {
            batch.extend(self.take_delivery().map(Ok));
        }
        Some(batch)
    }

    fn keep_undecodable(&mut self) -> bool {
        self.keeps_undecodable = true;
        true
    }

    async fn lag(&self) -> Result<u64> {
        let name = &self.consumer.name;
        let info = self.consumer.shared.consumer(name).await?;
        let info = info.ok_or_else(|| EventError::Closed(format!("consumer '{name}' is gone")))?;
        Ok(info.num_pending)
    }

    async fn close(&mut self) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        self.give_back().await?;
        self.closed = true;
        if self.durable { Ok(()) } else { self.consumer.shared.delete_consumer(&self.consumer.name).await }
    }
}

impl Drop for NatsSubscription {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        // Sent without waiting for an answer, and without a task.
        let Self { consumer, held, puller, durable, .. } = self;
        if *durable {
            give_back(&consumer.shared, held.take().map(|held| held.settling.reply));
            puller.give_back_received();
            return;
        }
        // If it cannot be sent, the server finds out that the consumer is idle.
        let subject = format!("$JS.API.CONSUMER.DELETE.{}.{}", consumer.shared.stream_name(), consumer.name);
        let client = consumer.shared.link.client();
        let _ = now(client.publish_with_reply(subject, client.new_inbox(), Vec::new().into()));
    }
}

impl fmt::Debug for NatsSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsSubscription")
            .field("consumer", &self.consumer.name)
            .field("stream", &self.consumer.stream)
            .field("durable", &self.durable)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(reply: &str) -> Option<(u64, u64, u64)> {
        let message = Message {
            subject: "events.a".into(),
            reply: Some(reply.into()),
            payload: Vec::new().into(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        };
        let (position, _) = Position::of(&message)?;
        assert_eq!(position.stored_at, 1_790_230_470_084);
        Some((position.num_delivered, position.sequence, position.delivery))
    }

    #[test]
    fn positions_are_read_from_the_reply_subjects_of_old_and_new_servers() {
        assert_eq!(position("$JS.ACK.EVENTS.name.3.100.7.1790230470084404000.42"), Some((3, 100, 7)));
        assert_eq!(
            position("$JS.ACK._.szMpdrwD.EVENTS.name.3.100.7.1790230470084404000.42"),
            Some((3, 100, 7))
        );
        assert_eq!(
            position("$JS.ACK.hub.sz.EVENTS.name.3.100.7.1790230470084404000.42.rand"),
            Some((3, 100, 7))
        );
        assert_eq!(position("$JS.ACK.EVENTS.name.3.100.7"), None);
        assert_eq!(position("$JS.ACK.EVENTS.name.x.100.7.1790230470084404000.42"), None);
        assert_eq!(position("_INBOX.abc"), None);
    }
}
