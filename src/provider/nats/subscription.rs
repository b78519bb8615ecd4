//! Subscriptions: members of a consumer that receive, settle and notice what retention took from them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Subject;
use async_nats::jetstream::consumer;
use async_trait::async_trait;
use tokio::time::Instant;

use super::client::Shared;
use super::life::Life;
use super::parked::Unreadable;
use super::position::Position;
use super::pull::{Fetched, Pulled, Puller, RETRY, give_back, now};
use super::settle::{ConsumerHandle, Handler, Settling};
use super::unreadable::PARKED_FOR;
use super::wire::decode;
use crate::deadline::After;
use crate::error::{EventError, Result};
use crate::provider::consumer::{ConsumerConfig, Lease};
use crate::provider::{AckKind, Delivery, PendingEvent, Subscription, SubscriptionEnd, UndecodableRecord};
use crate::types::{Event, ReceivedEvent};

/// An event that waited here for longer than this has its lease restarted before it is handed out.
const FRESH: Duration = Duration::from_millis(50);

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
    failures: Failures,
    /// Why it is closed.
    end: Option<SubscriptionEnd>,
}

/// Calls that failed one after the other: each is followed by a pause, so that whoever calls again at once does not spin.
#[derive(Default)]
struct Failures {
    count: u64,
    until: Option<Instant>,
}

impl Failures {
    /// Waits for the end of the pause. It stays when the wait is cancelled.
    async fn pause(&mut self) {
        if let Some(until) = self.until {
            tokio::time::sleep_until(until).await;
            self.until = None;
        }
    }

    fn note(&mut self) {
        self.count = self.count.saturating_add(1);
        self.until = Some(Instant::now().after(RETRY.delay(self.count)));
    }

    fn forget(&mut self) {
        *self = Self::default();
    }
}

/// A received record.
struct Held {
    decoded: std::result::Result<Arc<Event>, UndecodableRecord>,
    subject: Subject,
    position: Position,
    settling: Settling,
    /// Its lease has begun at this time or later.
    since: Instant,
    parking: Parking,
}

/// Who leases a held record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parking {
    /// The server.
    No,
    /// This process, as soon as the server was told to keep the record to itself.
    ToDo,
    Done,
}

/// What a call hands out.
#[derive(Clone, Copy)]
enum CallFor {
    One,
    /// Several at once, which are fetched for it.
    Batch,
}

impl NatsSubscription {
    pub(super) fn new(shared: &Arc<Shared>, info: &consumer::Info, life: Arc<Life>, durable: bool) -> Self {
        let counts_losses = life.config().filter == format!("{}.>", shared.prefix());
        let last = info.delivered.consumer_sequence;
        let puller = Puller::new(Arc::clone(shared), Arc::clone(&life), last, !durable);
        let stream = shared.stream_name().into();
        let consumer = ConsumerHandle { shared: Arc::clone(shared), life, stream };
        Self {
            puller,
            consumer: Arc::new(consumer),
            durable,
            held: None,
            keeps_undecodable: false,
            counts_losses,
            failures: Failures::default(),
            end: None,
        }
    }

    /// The next event, which stays in `held` until it is taken, so that no await loses it. `false` means closed.
    async fn hold_next(&mut self, call: CallFor) -> Result<bool> {
        self.failures.pause().await;
        let held = self.hold(call).await;
        match &held {
            Ok(_) | Err(EventError::Lagged { .. } | EventError::Undecodable { .. }) => self.failures.forget(),
            Err(_) => self.failures.note(),
        }
        held
    }

    async fn hold(&mut self, call: CallFor) -> Result<bool> {
        // What is fetched ahead counts as delivered, which may be the only delivery that is allowed.
        let may_fetch_ahead =
            matches!(call, CallFor::One) && self.consumer.life.config().max_deliver.is_none();
        loop {
            if self.end.is_some() {
                return Ok(false);
            }
            let life = &self.consumer.life;
            if life.end().is_some()
                || self.held.as_ref().is_some_and(|held| !life.is_in_force(held.settling.received))
            {
                // Of a consumer that is gone, or from before a reset: nobody could settle it.
                self.held = None;
            }
            if self.held.is_none() {
                match self.puller.next(may_fetch_ahead).await? {
                    Pulled::Message(fetched) => self.held = Some(Held::new(fetched)),
                    Pulled::Unreadable(unreadable) => self.held = Some(Held::unreadable(unreadable)),
                    Pulled::Closed => self.end = Some(SubscriptionEnd::Closed),
                    Pulled::Gone(end) => {
                        self.end = Some(end);
                        if !self.durable {
                            let name = &self.consumer.life.name;
                            return Err(EventError::Closed(format!(
                                "ephemeral consumer '{name}' was deleted on the server"
                            )));
                        }
                    }
                }
                continue;
            }
            self.tell_missed().await?;
            if self.renew_lease().await? && self.pass_early().await? && self.end_undecodable().await? {
                return Ok(true);
            }
        }
    }

    /// Reports once what retention dropped before the held event.
    async fn tell_missed(&mut self) -> Result<()> {
        let Some(held) = &self.held else { return Ok(()) };
        let (position, life) = (held.position, &self.consumer.life);
        // What was dropped before the start would not have been delivered.
        if self.is_early(position) || self.missing_before(position) == 0 {
            life.see(position, 0);
            return Ok(());
        }
        let first = self.consumer.shared.stream().await?.state.first_sequence;
        match life.see(position, first) {
            0 => Ok(()),
            missed => Err(EventError::Lagged { consumer: life.name.clone(), missed }),
        }
    }

    /// Restarts the lease of an event that has waited here. `false` when it has run out: the event comes again.
    async fn renew_lease(&mut self) -> Result<bool> {
        let Some(held) = &mut self.held else { return Ok(false) };
        let waited = held.since.elapsed();
        if waited >= self.consumer.life.config().ack_wait {
            self.held = None;
            return Ok(false);
        }
        if held.parking == Parking::ToDo {
            let long = PARKED_FOR.max(self.consumer.life.config().ack_wait.saturating_mul(2));
            self.consumer.apply(&held.settling, 1, &AckKind::Nak(Some(long))).await?;
            held.parking = Parking::Done;
        }
        if waited > FRESH {
            let from = Instant::now();
            if held.parking == Parking::No {
                self.consumer.apply(&held.settling, 1, &AckKind::Extend).await?;
            } else {
                self.consumer.life.parked.delay(held.position.sequence, self.consumer.life.config().ack_wait);
            }
            held.since = from;
        }
        Ok(true)
    }

    /// Settles a held record that was stored before the consumer starts. `false` when it was.
    async fn pass_early(&mut self) -> Result<bool> {
        let Some(held) = self.held.as_ref().filter(|held| self.is_early(held.position)) else {
            return Ok(true);
        };
        self.consumer.apply(&held.settling, 1, &AckKind::Ack).await?;
        self.held = None;
        Ok(false)
    }

    fn is_early(&self, position: Position) -> bool {
        self.consumer.life.is_before_start(position)
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
        self.consumer.apply(settling, 1, &AckKind::Term(undecodable.reason.clone())).await?;
        self.consumer.life.parked.settled(position.sequence);
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
        let life = &self.consumer.life;
        let is_plain = !self.puller.doubts() && life.end().is_none() && life.is_in_force(fetched.received);
        let waits = self.is_early(fetched.position) || self.missing_before(fetched.position) > 0;
        if !is_plain || waits {
            self.puller.unpop(fetched);
            return false;
        }
        let held = Held::new(fetched);
        self.consumer.life.see(held.position, 0);
        // A record that is no event is still to be ended, by the next call.
        let is_event = held.decoded.is_ok();
        self.held = Some(held);
        is_event
    }

    /// How many events that this consumer should have got lie between the last delivery and this one.
    fn missing_before(&self, position: Position) -> u64 {
        if self.counts_losses { self.consumer.life.missing_before(position) } else { 0 }
    }

    fn take_delivery(&mut self) -> Option<Delivery> {
        let Held { decoded, subject, position, settling, parking, .. } = self.held.take()?;
        let Position { sequence, num_delivered, .. } = position;
        let lease = Lease::new(sequence, u32::try_from(num_delivered).unwrap_or(u32::MAX));
        let parked = (parking != Parking::No).then_some(sequence);
        let handler = Arc::new(Handler { consumer: Arc::clone(&self.consumer), settling, parked });
        let stream = Arc::clone(&self.consumer.stream);
        Some(match decoded {
            Ok(event) => Delivery::new(event, lease, stream, handler),
            Err(record) => Delivery::undecodable(&subject, record, lease, stream, handler),
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
            if held.parking == Parking::No {
                self.consumer.apply(&held.settling, 1, &AckKind::Release).await?;
            } else {
                self.consumer.life.parked.delay(held.position.sequence, Duration::ZERO);
            }
            self.held = None;
        }
        while let Some(fetched) = self.puller.take_left_over().await {
            self.consumer.apply(&fetched.settling(), 1, &AckKind::Release).await?;
        }
        Ok(())
    }
}

impl Held {
    fn new(fetched: Fetched) -> Self {
        let settling = fetched.settling();
        let Fetched { message, position, since, .. } = fetched;
        let decoded = decode(&message.subject, message.headers.as_ref(), &message.payload)
            .map(Arc::new)
            .map_err(|reason| UndecodableRecord::new(message.payload.to_vec(), reason));
        Self { decoded, subject: message.subject, position, settling, since, parking: Parking::No }
    }

    fn unreadable(unreadable: Unreadable) -> Self {
        let Unreadable { sequence, subject, raw, reason, reply, attempts } = unreadable;
        // Which delivery it was is not known, nor when it was stored.
        let position = Position { sequence, delivery: 0, num_delivered: attempts, stored_at: u64::MAX };
        let since = Instant::now();
        Self {
            decoded: Err(UndecodableRecord::new(raw, reason)),
            subject: subject.into(),
            position,
            settling: Settling { reply, delivery: 0, connection: 0, received: since },
            since,
            parking: Parking::ToDo,
        }
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
                let settled = self.consumer.apply(&held.settling, 1, &AckKind::Ack).await;
                if settled.is_err() {
                    // Not handed over: the lease decides, and it comes again.
                    self.held = None;
                    self.failures.note();
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
        let name = &self.consumer.life.name;
        let info = self.consumer.shared.consumer(name).await?;
        let info = info.ok_or_else(|| EventError::Closed(format!("consumer '{name}' is gone")))?;
        Ok(info.num_pending)
    }

    fn settings(&self) -> Option<ConsumerConfig> {
        Some(ConsumerConfig::clone(&self.consumer.life.config()))
    }

    fn end(&self) -> Option<SubscriptionEnd> {
        self.end
    }

    async fn close(&mut self) -> Result<()> {
        if self.end.is_some() {
            return Ok(());
        }
        if let Some(end) = self.consumer.life.end() {
            self.end = Some(end);
            return Ok(());
        }
        self.give_back().await?;
        self.end = Some(SubscriptionEnd::Closed);
        if self.durable {
            Ok(())
        } else {
            self.consumer.shared.delete_consumer(&self.consumer.life.name).await
        }
    }
}

impl Drop for NatsSubscription {
    fn drop(&mut self) {
        if self.end.is_some() {
            return;
        }
        // Sent without waiting for an answer.
        let Self { consumer, held, puller, durable, .. } = self;
        if *durable {
            match held.take() {
                Some(held) if held.parking != Parking::No => {
                    consumer.life.parked.delay(held.position.sequence, Duration::ZERO);
                }
                Some(held) if consumer.life.end().is_none() => {
                    give_back(&consumer.shared, Some(held.settling.reply));
                }
                _ => {}
            }
            puller.abandon();
            return;
        }
        // If it cannot be sent, the server finds out that the consumer is idle.
        let subject =
            format!("$JS.API.CONSUMER.DELETE.{}.{}", consumer.shared.stream_name(), consumer.life.name);
        let client = consumer.shared.link.client();
        let _ = now(client.publish_with_reply(subject, client.new_inbox(), Vec::new().into()));
    }
}

impl fmt::Debug for NatsSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsSubscription")
            .field("consumer", &self.consumer.life.name)
            .field("stream", &self.consumer.stream)
            .field("durable", &self.durable)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_failure_is_followed_by_a_pause_that_grows_up_to_a_limit() {
        let (mut failures, started) = (Failures::default(), Instant::now());
        failures.pause().await;
        assert_eq!(started.elapsed(), Duration::ZERO);
        for _ in 0..100 {
            failures.note();
            // Whoever gives up waiting waits on with the next call.
            let cancelled = tokio::time::timeout(Duration::from_millis(1), failures.pause()).await;
            assert!(cancelled.is_err());
            failures.pause().await;
        }
        let waited = started.elapsed();
        assert!(waited > Duration::from_secs(20) && waited < Duration::from_secs(30), "{waited:?}");
        failures.note();
        failures.forget();
        failures.pause().await;
        assert_eq!(started.elapsed(), waited);
    }
}
