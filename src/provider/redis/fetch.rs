//! A member of a consumer: asks for events and hands them to the receiver.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::Shared;
use super::consumer::{Consumer, Identity};
use super::consumers;
use super::error::PROVIDER;
use super::link::{Answer, Carried, ServerFacts};
use super::script::fetch::{self, Delivery, Events, Fetched, Request};
use super::settle::Handler;
use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;
use crate::provider::group::{ConsumerConfig, Lease};
use crate::provider::receiver::{Ask, Fetch, Item};
use crate::provider::support::SentAcks;
use crate::provider::support::without_values;
use crate::provider::{AckHandler, AckKind, Settlement, SubscriptionEnd, UndecodableRecord};
use crate::types::Event;

/// Maximum number of events in an answer.
const MAX_EVENTS: usize = 500;
/// Bytes of JSON from which an answer is full.
const MAX_BYTES: usize = 1024 * 1024;

/// A member of a consumer on Redis.
pub struct RedisFetch {
    shared: Arc<Shared>,
    consumer: Arc<Consumer>,
    acks: Arc<SentAcks>,
    /// The call for events in progress. It is kept here, so that the call after a dropped one continues it.
    asked: Option<Asked>,
    /// Handlers of the items of the last answers, for their release.
    given: Vec<(Lease, Arc<Handler>)>,
    has_left: bool,
}

/// A call for events. The mutex is never locked; it makes the future shareable between threads.
struct Asked {
    answer: Mutex<Pin<Box<dyn Future<Output = Carried<Answer>> + Send>>>,
    identity: Arc<Identity>,
    /// Number of announcements before it was sent.
    announced: u64,
    at: Instant,
    max: usize,
}

impl RedisFetch {
    pub(super) fn new(shared: Arc<Shared>, consumer: Arc<Consumer>) -> Self {
        let max = shared.stream.config.max_unconfirmed_acks;
        let acks = Arc::new(SentAcks::new(PROVIDER, max, Arc::clone(&shared.ack_failures)));
        Self { shared, consumer, acks, asked: None, given: Vec::new(), has_left: false }
    }

    /// Begins a call for up to `max` events.
    fn ask(&mut self, max: usize) {
        let (shared, consumer) = (Arc::clone(&self.shared), Arc::clone(&self.consumer));
        let (announced, identity) = (consumer.announced(), consumer.identity());
        let max = max.min(MAX_EVENTS);
        let asking = {
            let identity = Arc::clone(&identity);
            async move {
                let request = Request {
                    name: &consumer.name,
                    generation: &identity.generation,
                    max,
                    max_bytes: MAX_BYTES,
                    is_ephemeral: !consumer.is_durable,
                };
                let stream = &shared.stream;
                let call = fetch::fetch(&stream.keys, &identity.epoch, request);
                stream.link.ask(&call, stream.timeout()).await
            }
        };
        let answer = Mutex::new(Box::pin(asking) as Pin<Box<_>>);
        self.asked = Some(Asked { answer, identity, announced, at: Instant::now(), max });
    }

    /// Waits for the answer to the call, and takes what it brought.
    async fn answer(&mut self, taken: &mut VecDeque<Item>) -> Result<()> {
        let Some(asked) = &mut self.asked else { return Ok(()) };
        let answered = asked.answer.get_mut().ignore_poison().await;
        // Nothing is awaited before its events are taken.
        let Some(Asked { identity, announced, at, max, .. }) = self.asked.take() else { return Ok(()) };
        let Answer { value, server } = answered.map_err(|failure| failure.to_error("receive"))?;
        match fetch::read(value)? {
            Fetched::Events(events) => {
                let is_all = events.deliveries.len() < max && !events.has_more;
                match is_all {
                    true => self.consumer.note_idle(announced, at, events.due),
                    false => self.consumer.note_more(),
                }
                let revision = events.revision;
                self.take(events, &identity, &server, taken);
                if revision != self.consumer.revision() {
                    // Settings only delay what was taken, so a failure does not matter here.
                    let _ = self.shared.read_settings(&self.consumer).await;
                }
            }
            Fetched::Missed(missed) => {
                self.consumer.note_more();
                let consumer = self.consumer.name.as_ref().to_owned();
                taken.push_back(Item::Error(EventError::Lagged { consumer, missed }));
            }
            Fetched::Gone if *self.consumer.identity() == *identity => {
                if !self.consumer.is_durable {
                    taken.push_back(Item::Error(EventError::Closed(format!(
                        "ephemeral consumer '{}' was deleted on the server",
                        self.consumer.name
                    ))));
                }
                self.consumer.end_with(SubscriptionEnd::Deleted);
            }
            Fetched::Gone => {}
            Fetched::StreamReplaced => return self.shared.make_again(&self.consumer, &identity).await,
        }
        Ok(())
    }

    fn take(
        &mut self,
        events: Events,
        identity: &Arc<Identity>,
        server: &Arc<ServerFacts>,
        taken: &mut VecDeque<Item>,
    ) {
        let ids =
            events.deliveries.iter().map(|delivery| (delivery.lease.sequence, delivery.id.as_str().into()));
        let handler = Arc::new(Handler::new(
            self.shared.settler.queue(),
            Arc::clone(&self.acks),
            self.shared.stream.timeout(),
            &self.consumer,
            Arc::clone(identity),
            Arc::clone(server),
            ids.collect(),
        ));
        for delivery in events.deliveries {
            self.given.push((delivery.lease, Arc::clone(&handler)));
            taken.push_back(item(delivery, Arc::clone(&handler) as _));
        }
    }

    /// Takes the handler that settles this lease.
    fn take_given(&mut self, lease: Lease) -> Option<Arc<Handler>> {
        let place = self.given.iter().position(|(given, _)| *given == lease)?;
        Some(self.given.swap_remove(place).1)
    }

    /// Leaves the consumer. The call in progress may still take events, which are then released.
    fn leave_consumer(&mut self) {
        if std::mem::replace(&mut self.has_left, true) {
            return;
        }
        if let Some(asked) = self.asked.take() {
            let asked = (asked.answer.into_inner().ignore_poison(), asked.identity);
            self.shared.strays.collect(&self.shared, &self.consumer, &self.acks, asked);
        }
        if self.consumer.members.leave() {
            self.shared.consumers.remove(&self.consumer);
        } else {
            self.consumer.announce();
        }
        if !self.consumer.is_durable && self.consumer.end().is_none() {
            self.shared.settler.queue().close_consumer(&self.consumer.name, &self.consumer.identity());
        }
    }
}

/// Returns the item of a delivery.
fn item(delivery: Delivery, handler: Arc<dyn AckHandler>) -> Item {
    let Delivery { lease, subject, json, .. } = delivery;
    let decoded = match subject.is_empty() {
        true => Err("its fields are not those of an event".to_owned()),
        false => serde_json::from_slice::<Event>(&json).map_err(|error| without_values(&error)),
    };
    match decoded {
        Ok(event) => Item::event(lease, Arc::new(event), handler),
        Err(reason) => Item::undecodable(lease, &subject, UndecodableRecord::new(json, reason), handler),
    }
}

impl Fetch for RedisFetch {
    async fn fetch(&mut self, ask: Ask, taken: &mut VecDeque<Item>) -> Result<Option<SubscriptionEnd>> {
        self.given.clear();
        loop {
            if let Some(end) = self.consumer.end().filter(|_| taken.is_empty()) {
                self.consumer.members.wake_one();
                return Ok(Some(end));
            }
            if !taken.is_empty() {
                return Ok(None);
            }
            if self.asked.is_none() {
                if let Some(until) = self.consumer.idle_until(Instant::now()) {
                    self.consumer.members.wait(Some(until)).await;
                    continue;
                }
                self.ask(ask.max);
            }
            self.answer(taken).await?;
        }
    }

    fn stream(&self) -> Arc<str> {
        Arc::clone(&self.shared.stream.name)
    }

    fn pass_on(&self) {
        self.consumer.members.pass_on();
    }

    fn leave(&mut self, unused: Vec<Lease>) {
        for lease in unused {
            if let Some(handler) = self.take_given(lease) {
                handler.release(lease);
            }
        }
        self.leave_consumer();
    }

    async fn close(&mut self, unused: Vec<Lease>) -> Result<()> {
        for lease in unused {
            let handler =
                self.given.iter().find(|(given, _)| *given == lease).map(|(_, handler)| Arc::clone(handler));
            if let Some(handler) = handler {
                handler.settle(Settlement::new(lease, AckKind::Release)).await?;
                self.take_given(lease);
            }
        }
        if let Some(asked) = self.asked.take() {
            // What a dropped call asked for goes back, too.
            let asked = (asked.answer.into_inner().ignore_poison(), asked.identity);
            self.shared.release_answer(&self.consumer, &self.acks, asked).await;
        }
        self.flush().await?;
        self.leave_consumer();
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        self.acks.flush(self.shared.stream.timeout(), async { Ok(()) }).await
    }

    async fn lag(&self) -> Result<u64> {
        let stream = &*self.shared.stream;
        consumers::lag(stream, &stream.keys, stream.prefix(), &self.consumer.name).await
    }

    fn settings(&self) -> Option<ConsumerConfig> {
        Some(ConsumerConfig::clone(&self.consumer.config()))
    }
}

impl fmt::Debug for RedisFetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisFetch")
            .field("consumer", &self.consumer.name)
            .field("is_durable", &self.consumer.is_durable)
            .finish_non_exhaustive()
    }
}

/// The answer to a call whose member has gone.
pub(super) type Stray = (Pin<Box<dyn Future<Output = Carried<Answer>> + Send>>, Arc<Identity>);

impl Shared {
    /// Waits for the answer to a call, and releases what it brought.
    pub(super) async fn release_answer(
        &self,
        consumer: &Arc<Consumer>,
        acks: &Arc<SentAcks>,
        (answer, identity): Stray,
    ) {
        let Ok(Answer { value, server }) = answer.await else { return };
        let Ok(Fetched::Events(events)) = fetch::read(value) else { return };
        let leases: Vec<_> = events.deliveries.iter().map(|delivery| delivery.lease).collect();
        let ids = events.deliveries.into_iter().map(|delivery| (delivery.lease.sequence, delivery.id.into()));
        let timeout = self.stream.timeout();
        let handler = Handler::new(
            self.settler.queue(),
            Arc::clone(acks),
            timeout,
            consumer,
            identity,
            server,
            ids.collect(),
        );
        for lease in leases {
            let releasing = handler.settle(Settlement::new(lease, AckKind::Release));
            if let Err(error) = releasing.await {
                tracing::debug!(consumer = &*consumer.name, sequence = lease.sequence, %error, "releasing an event failed");
            }
        }
    }
}
