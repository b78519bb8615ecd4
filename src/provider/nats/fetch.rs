//! A member of a consumer: checks and counts pulled deliveries, and hands them to the receiver.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer;
use tokio::time::Instant;

use super::client::Shared;
use super::inbox::{Fetched, give_back, now};
use super::life::Life;
use super::parked::Unreadable;
use super::position::Position;
use super::pull::{Pulled, Puller};
use super::settle::{ConsumerHandle, Handler, Settling};
use super::unreadable::PARKED_FOR;
use super::wire::decode;
use crate::error::{EventError, Result};
use crate::provider::group::{ConsumerConfig, Lease};
use crate::provider::receiver::{Ask, Fetch, Item};
use crate::provider::{AckHandler, AckKind, Settlement, SubscriptionEnd, UndecodableRecord};

/// A member of a consumer on NATS.
pub struct NatsFetch {
    consumer: Arc<ConsumerHandle>,
    is_durable: bool,
    puller: Puller,
    /// A received delivery while the provider asks the server about it.
    held: Option<Pending>,
    /// Handlers that settle the items returned by the last call, with their sequences.
    given: Vec<(u64, Arc<Handler>)>,
    /// If true, the consumer reads the whole stream, so that dropped events can be counted.
    counts_losses: bool,
}

enum Pending {
    Fetched(Fetched),
    /// A delivery that ends the connection that receives it. Its nak with a long delay is still to be sent.
    Unreadable(Unreadable),
}

impl NatsFetch {
    pub(super) fn new(
        shared: &Arc<Shared>,
        info: &consumer::Info,
        life: Arc<Life>,
        is_durable: bool,
    ) -> Self {
        let counts_losses = life.config().filter == format!("{}.>", shared.prefix());
        let last = info.delivered.consumer_sequence;
        let puller = Puller::new(Arc::clone(shared), Arc::clone(&life), last, !is_durable);
        let stream = shared.stream_name().into();
        let consumer = Arc::new(ConsumerHandle { shared: Arc::clone(shared), life, stream });
        Self { consumer, is_durable, puller, held: None, given: Vec::new(), counts_losses }
    }

    /// Checks the held delivery and gives it to the receiver, unless it is already acked or precedes the start time.
    async fn hand_over(&mut self, taken: &mut VecDeque<Item>) -> Result<()> {
        let consumer = Arc::clone(&self.consumer);
        let life = &consumer.life;
        match &self.held {
            None => {}
            Some(Pending::Unreadable(unreadable)) => {
                let long = PARKED_FOR.max(life.config().ack_wait.saturating_mul(2));
                let settling = Settling::parked(unreadable.reply.clone());
                consumer.apply(&settling, 1, &AckKind::Nak(Some(long))).await?;
            }
            // A redelivery, because the ack was not stored yet or was lost.
            Some(Pending::Fetched(fetched)) if life.is_acked(fetched.position, fetched.received) => {
                let settling = fetched.settling();
                consumer.send(&settling, fetched.position.sequence, &AckKind::Ack, 1).await?;
                life.see(fetched.position, 0);
                self.held = None;
            }
            Some(Pending::Fetched(fetched)) if life.is_before_start(fetched.position) => {
                consumer.apply(&fetched.settling(), 1, &AckKind::Ack).await?;
                life.see(fetched.position, 0);
                self.held = None;
            }
            Some(Pending::Fetched(fetched)) => {
                let first = match self.missing_before(fetched.position) {
                    0 => 0,
                    _ => consumer.shared.stream().await?.state.first_sequence,
                };
                let missed = life.see(fetched.position, first);
                if missed > 0 {
                    taken.push_back(Item::Error(EventError::Lagged { consumer: life.name.clone(), missed }));
                }
            }
        }
        match self.held.take() {
            None => {}
            Some(Pending::Fetched(fetched)) => self.give(fetched, taken),
            Some(Pending::Unreadable(unreadable)) => self.give_unreadable(unreadable, taken),
        }
        Ok(())
    }

    /// Returns true if the held delivery can be settled and its lease has not ended.
    fn is_in_force(&self) -> bool {
        let life = &self.consumer.life;
        life.end().is_none()
            && match &self.held {
                Some(Pending::Fetched(fetched)) => {
                    life.is_in_force(fetched.received) && fetched.since.elapsed() < life.config().ack_wait
                }
                Some(Pending::Unreadable(_)) | None => true,
            }
    }

    fn give(&mut self, fetched: Fetched, taken: &mut VecDeque<Item>) {
        let settling = fetched.settling();
        let Fetched { message, position, since, .. } = fetched;
        let handler = self.handler(position.sequence, settling, false);
        let item = match decode(&message.subject, message.headers.as_ref(), &message.payload) {
            Ok(event) => Item::event(lease(position), Arc::new(event), handler),
            Err(reason) => {
                let record = UndecodableRecord::new(message.payload.to_vec(), reason);
                Item::undecodable(lease(position), &message.subject, record, handler)
            }
        };
        taken.push_back(item.leased_since(since));
    }

    fn give_unreadable(&mut self, unreadable: Unreadable, taken: &mut VecDeque<Item>) {
        let Unreadable { sequence, subject, raw, reason, reply, attempts } = unreadable;
        let handler = self.handler(sequence, Settling::parked(reply), true);
        let lease = Lease::new(sequence, u32::try_from(attempts).unwrap_or(u32::MAX));
        taken.push_back(Item::undecodable(lease, &subject, UndecodableRecord::new(raw, reason), handler));
    }

    fn handler(&mut self, sequence: u64, settling: Settling, is_parked: bool) -> Arc<dyn AckHandler> {
        let consumer = Arc::clone(&self.consumer);
        let handler = Arc::new(Handler { consumer, settling, parked: is_parked.then_some(sequence) });
        self.given.push((sequence, Arc::clone(&handler)));
        handler
    }

    /// Gives the receiver more fetched events as long as they need no further check. The others wait for the next call.
    fn give_plain(&mut self, max: usize, at: Instant, taken: &mut VecDeque<Item>) {
        while taken.len() < max
            && let Some(fetched) = self.puller.pop_fetched()
        {
            let life = &self.consumer.life;
            if at.saturating_duration_since(fetched.since) >= life.config().ack_wait {
                // Its lease has ended, and another member may have it.
                continue;
            }
            let is_plain = !self.puller.doubts()
                && life.end().is_none()
                && life.is_in_force(fetched.received)
                && !life.is_before_start(fetched.position)
                && !life.is_acked(fetched.position, fetched.received)
                && self.missing_before(fetched.position) == 0;
            if !is_plain {
                return self.puller.unpop(fetched);
            }
            life.see(fetched.position, 0);
            self.give(fetched, taken);
        }
    }

    /// Returns the number of events missed between the last delivery and this one, if the consumer can count them.
    fn missing_before(&self, position: Position) -> u64 {
        if self.counts_losses { self.consumer.life.missing_before(position) } else { 0 }
    }

    /// Takes the handler that settles this lease.
    fn take_given(&mut self, lease: Lease) -> Option<Arc<Handler>> {
        let place = self.given.iter().position(|(sequence, _)| *sequence == lease.sequence)?;
        Some(self.given.swap_remove(place).1)
    }

    async fn fetch_in_call(
        &mut self,
        ask: Ask,
        taken: &mut VecDeque<Item>,
    ) -> Result<Option<SubscriptionEnd>> {
        self.given.clear();
        while taken.is_empty() {
            if !self.is_in_force() {
                self.held = None;
            }
            if self.held.is_none() {
                match self.puller.next(ask.max).await? {
                    Pulled::Message(fetched) => {
                        self.held = Some(Pending::Fetched(fetched));
                        // Its lease may have ended.
                        continue;
                    }
                    Pulled::Unreadable(unreadable) => self.held = Some(Pending::Unreadable(unreadable)),
                    Pulled::Closed => return Ok(Some(SubscriptionEnd::Closed)),
                    Pulled::Gone(end) => {
                        if !self.is_durable {
                            let name = &self.consumer.life.name;
                            taken.push_back(Item::Error(EventError::Closed(format!(
                                "ephemeral consumer '{name}' was deleted on the server"
                            ))));
                        }
                        return Ok(Some(end));
                    }
                }
            }
            self.hand_over(taken).await?;
        }
        if ask.max > 1 {
            // Cancelling loses nothing: the receiver has the first event, and the others wait in the puller. The next
            // call reports an error again.
            let _ = self.puller.fetch(ask.max - 1).await;
            self.give_plain(ask.max, Instant::now(), taken);
        } else {
            self.puller.handed_out(Instant::now());
        }
        Ok(None)
    }
}

/// A call. When it ends or is dropped, the events fetched ahead are put on the shelf.
struct Call<'a>(&'a mut NatsFetch);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.puller.shelve(Instant::now());
    }
}

fn lease(position: Position) -> Lease {
    Lease::new(position.sequence, u32::try_from(position.num_delivered).unwrap_or(u32::MAX))
}

impl Fetch for NatsFetch {
    async fn fetch(&mut self, ask: Ask, taken: &mut VecDeque<Item>) -> Result<Option<SubscriptionEnd>> {
        self.puller.unshelve();
        let call = Call(self);
        call.0.fetch_in_call(ask, taken).await
    }

    fn take_now(&mut self, ask: Ask, taken: &mut VecDeque<Item>) -> bool {
        self.puller.unshelve();
        let called = Instant::now();
        self.puller.look(called);
        if self.held.is_none() && self.puller.has_plain() {
            self.given.clear();
            self.give_plain(ask.max, called, taken);
        }
        // `taken` is empty at the start of a call.
        let is_any = !taken.is_empty();
        if is_any && ask.max == 1 {
            self.puller.handed_out(called);
        }
        self.puller.shelve(called);
        is_any
    }

    fn stream(&self) -> Arc<str> {
        Arc::clone(&self.consumer.stream)
    }

    fn is_stale(&self, lease: Lease, since: Instant) -> bool {
        let life = &self.consumer.life;
        let received = self
            .given
            .iter()
            .find(|(sequence, _)| *sequence == lease.sequence)
            .map_or(since, |(_, handler)| handler.settling.received);
        life.end().is_some() || !life.is_in_force(received) || since.elapsed() >= life.config().ack_wait
    }

    fn leave(&mut self, unused: Vec<Lease>) {
        self.puller.unshelve();
        let consumer = Arc::clone(&self.consumer);
        if consumer.life.end().is_some() {
            return self.puller.abandon();
        }
        if !self.is_durable {
            // If this cannot be sent, the server deletes the idle consumer later.
            let subject =
                format!("$JS.API.CONSUMER.DELETE.{}.{}", consumer.shared.stream_name(), consumer.life.name);
            let client = consumer.shared.link.client();
            let _ = now(client.publish_with_reply(subject, client.new_inbox(), Vec::new().into()));
            return;
        }
        for lease in unused {
            match self.take_given(lease).as_deref() {
                Some(Handler { parked: Some(sequence), .. }) => {
                    consumer.life.parked.delay(*sequence, Duration::ZERO);
                }
                Some(handler) => give_back(&consumer.shared, Some(handler.settling.reply.clone())),
                None => {}
            }
        }
        match self.held.take() {
            Some(Pending::Fetched(fetched)) => give_back(&consumer.shared, Some(fetched.reply)),
            Some(Pending::Unreadable(unreadable)) => {
                consumer.life.parked.delay(unreadable.sequence, Duration::ZERO);
            }
            None => {}
        }
        self.puller.abandon();
    }

    async fn close(&mut self, unused: Vec<Lease>) -> Result<()> {
        self.puller.unshelve();
        let consumer = Arc::clone(&self.consumer);
        if consumer.life.end().is_some() {
            return Ok(());
        }
        if !self.is_durable {
            return consumer.shared.delete_consumer(&consumer.life.name).await;
        }
        // JetStream counts a released event as an attempt.
        for lease in unused {
            if let Some((_, handler)) = self.given.iter().find(|(sequence, _)| *sequence == lease.sequence) {
                handler.settle(Settlement::new(lease, AckKind::Release)).await?;
                self.take_given(lease);
            }
        }
        match &self.held {
            Some(Pending::Fetched(fetched)) => {
                consumer.apply(&fetched.settling(), 1, &AckKind::Release).await?;
            }
            Some(Pending::Unreadable(unreadable)) => {
                consumer.life.parked.delay(unreadable.sequence, Duration::ZERO);
            }
            None => {}
        }
        self.held = None;
        while let Some(fetched) = self.puller.take_left_over().await {
            consumer.apply(&fetched.settling(), 1, &AckKind::Release).await?;
        }
        self.flush().await
    }

    async fn flush(&self) -> Result<()> {
        self.consumer.shared.flush_acks(&self.consumer.life).await
    }

    async fn lag(&self) -> Result<u64> {
        let name = &self.consumer.life.name;
        let info = self.consumer.shared.consumer(name).await?;
        let info = info.ok_or_else(|| EventError::Closed(format!("consumer '{name}' no longer exists")))?;
        Ok(info.num_pending + self.puller.untaken(info.delivered.consumer_sequence))
    }

    fn settings(&self) -> Option<ConsumerConfig> {
        Some(ConsumerConfig::clone(&self.consumer.life.config()))
    }
}

impl fmt::Debug for NatsFetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsFetch")
            .field("consumer", &self.consumer.life.name)
            .field("is_durable", &self.is_durable)
            .finish_non_exhaustive()
    }
}
