//! A member of a consumer: asks for events and hands them to the receiver.
//!
//! If the caller takes events one by one and fast, one request brings several of them; [`Shelf`] keeps those that the
//! caller has not asked for yet. Before each is handed out, the member makes sure that nothing else has become due.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use tokio::time::Instant;

use super::Shared;
use super::ahead::{Held, MOST_AHEAD, Shelf};
use super::consumer::{Consumer, Identity};
use super::consumers;
use super::error::PROVIDER;
use super::link::{Answer, Carried, ServerFacts};
use super::script::fetch::{self, Delivery, Events, Fetched, Request};
use super::settle::Handler;
use crate::deadline::After;
use crate::error::{ErrorKind, EventError, Result};
use crate::poison::IgnorePoison;
use crate::provider::group::{ConsumerConfig, Lease};
use crate::provider::pace::Pace;
use crate::provider::receiver::{Ask, Fetch, Item};
use crate::provider::support::{OwnedTask, SentAcks, without_values};
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
    /// The call for events in progress.
    asked: Option<Asked>,
    shelf: Arc<Shelf>,
    /// Empties the shelf if the caller takes too long.
    watch: Option<OwnedTask<()>>,
    pace: Pace,
    known: Known,
    /// Deliveries from before a change of the consumer, which the next call releases.
    outdated: Vec<(Lease, Arc<Handler>)>,
    /// Handlers of the items of the last answers, for their release.
    given: Vec<(Lease, Arc<Handler>)>,
    has_left: bool,
}

/// The last answer about events that are due again, which come before those that are held.
#[derive(Default)]
struct Known {
    /// Number of announcements before the answer.
    due: u64,
    /// Time at which the next one is due.
    until: Option<Instant>,
    /// Present if more may be due than the answer brought: its last sequence.
    through: Option<u64>,
}

/// A call for events. The mutex is never locked; it makes the future shareable between threads.
pub(super) struct Asked {
    answer: Mutex<Pin<Box<dyn Future<Output = Carried<Answer>> + Send>>>,
    identity: Arc<Identity>,
    /// Numbers of announcements and changes before it was sent.
    announced: u64,
    due: u64,
    changes: u64,
    at: Instant,
    max: usize,
    /// True if its caller stopped waiting, and the answer may have arrived long ago.
    is_left_over: bool,
}

impl Asked {
    pub(super) fn into_stray(self) -> Stray {
        (self.answer.into_inner().ignore_poison(), self.identity)
    }
}

impl RedisFetch {
    pub(super) fn new(shared: Arc<Shared>, consumer: Arc<Consumer>) -> Self {
        let max = shared.stream.config.max_unconfirmed_acks;
        let acks = Arc::new(SentAcks::new(PROVIDER, max, Arc::clone(&shared.ack_failures)));
        let shelf = Arc::new(Shelf::new(Arc::clone(&shared), Arc::clone(&consumer), Arc::clone(&acks)));
        Self {
            shared,
            consumer,
            acks,
            asked: None,
            shelf,
            watch: None,
            pace: Pace::new(),
            known: Known::default(),
            outdated: Vec::new(),
            given: Vec::new(),
            has_left: false,
        }
    }

    /// Begins a call for events, for a caller that takes up to `max` of them.
    fn ask(&mut self, max: usize) {
        let (shared, consumer) = (Arc::clone(&self.shared), Arc::clone(&self.consumer));
        let (announced, due, changes) = (consumer.announced(), consumer.due(), consumer.changes());
        let identity = consumer.identity();
        let max = match max {
            1 => self.pace.ahead(consumer.config().max_ack_pending).min(1 + MOST_AHEAD),
            max => max.min(MAX_EVENTS),
        };
        let max = max.saturating_sub(self.shelf.len()).max(1);
        let outdated = std::mem::take(&mut self.outdated);
        let asking = {
            let identity = Arc::clone(&identity);
            async move {
                // If this fails, their leases end.
                let _ = give_back(outdated).await;
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
        let at = Instant::now();
        self.asked = Some(Asked { answer, identity, announced, due, changes, at, max, is_left_over: false });
    }

    /// Waits for the answer to the call. Its events are then on the shelf.
    async fn answer(&mut self, taken: &mut VecDeque<Item>) -> Result<()> {
        let Some(asked) = &mut self.asked else { return Ok(()) };
        let answered = asked.answer.get_mut().ignore_poison().await;
        // Nothing is awaited before its events are on the shelf.
        let Some(asked) = self.asked.take() else { return Ok(()) };
        let Answer { value, server } = answered.map_err(|failure| failure.to_error("receive"))?;
        match fetch::read(value)? {
            Fetched::Events(events) => {
                let is_all = events.deliveries.len() < asked.max && !events.has_more;
                match is_all {
                    true => self.consumer.note_idle(asked.announced, asked.at, events.due),
                    false => self.consumer.note_more(),
                }
                let revision = events.revision;
                self.hold(events, &asked, server);
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
            Fetched::Gone if *self.consumer.identity() == *asked.identity => {
                if !self.consumer.is_durable {
                    taken.push_back(Item::Error(EventError::Closed(format!(
                        "ephemeral consumer '{}' was deleted on the server",
                        self.consumer.name
                    ))));
                }
                self.consumer.end_with(SubscriptionEnd::Deleted);
            }
            Fetched::Gone => {}
            Fetched::StreamReplaced => return self.shared.make_again(&self.consumer, &asked.identity).await,
        }
        Ok(())
    }

    /// Puts the events of an answer on the shelf.
    fn hold(&mut self, events: Events, asked: &Asked, server: Arc<ServerFacts>) {
        let Events { deliveries, again, due, has_more, .. } = events;
        let may_be_more = has_more || deliveries.len() >= asked.max;
        let last = deliveries.last().filter(|_| may_be_more && again == deliveries.len());
        self.known = Known {
            due: asked.due,
            until: due.map(|due| asked.at.after(due)),
            through: last.map(|last| last.lease.sequence),
        };
        if deliveries.is_empty() {
            return;
        }
        let since = if asked.is_left_over { asked.at } else { Instant::now() };
        let handler = self.shared.handler(&self.consumer, &self.acks, &asked.identity, server, &deliveries);
        let hold = |(place, delivery): (usize, Delivery)| {
            self.pace.note_size(delivery.json.len());
            Held {
                delivery,
                handler: Arc::clone(&handler),
                since,
                is_again: place < again,
                changes: asked.changes,
            }
        };
        self.shelf.add(deliveries.into_iter().enumerate().map(hold).collect());
    }

    /// Hands up to `max` events of the shelf to the receiver, unless others may have to come first. Returns `true` if it
    /// had any.
    fn give(&mut self, max: usize, taken: &mut VecDeque<Item>) -> bool {
        let (now, changes) = (Instant::now(), self.consumer.changes());
        let Known { due, until, through } = self.known;
        if due != self.consumer.due() || until.is_some_and(|until| until <= now) {
            return false;
        }
        let may_be_given = |held: &Held| {
            through.is_none_or(|through| held.is_again && held.delivery.lease.sequence <= through)
        };
        let mut ack_wait = None;
        while taken.len() < max
            && let Some(held) = self.shelf.pop_if(may_be_given)
        {
            if held.changes != changes {
                self.outdated.push(held.settling());
                continue;
            }
            let waited = now.saturating_duration_since(held.since);
            let ack_wait = *ack_wait.get_or_insert_with(|| self.consumer.config().ack_wait);
            if waited >= ack_wait {
                // Its lease has ended, and another member may have it.
                continue;
            }
            let Held { delivery, handler, since, .. } = held;
            self.given.push((delivery.lease, Arc::clone(&handler)));
            let item = item(delivery, handler);
            taken.push_back(if waited.is_zero() { item } else { item.leased_since(since) });
        }
        let has_any = !taken.is_empty();
        if has_any && max == 1 {
            self.pace.note(now);
        }
        has_any
    }

    async fn fetch_in_call(
        &mut self,
        ask: Ask,
        taken: &mut VecDeque<Item>,
    ) -> Result<Option<SubscriptionEnd>> {
        loop {
            if let Some(end) = self.consumer.end().filter(|_| taken.is_empty()) {
                self.shelf.clear();
                self.consumer.members.wake_one();
                return Ok(Some(end));
            }
            // An error comes before the events behind it.
            if !taken.is_empty() || self.give(ask.max, taken) {
                return Ok(None);
            }
            if self.asked.is_none() {
                if self.shelf.is_releasing()
                    && let Some(watch) = &self.watch
                {
                    watch.ended().await;
                }
                let is_idle = self.shelf.len() == 0 && self.outdated.is_empty();
                if let Some(until) = self.consumer.idle_until(Instant::now()).filter(|_| is_idle) {
                    self.consumer.members.wait(Some(until)).await;
                    continue;
                }
                self.ask(ask.max);
            }
            self.answer(taken).await?;
        }
    }

    /// Returns the handlers of deliveries that the receiver has.
    fn handlers_of(&self, leases: &[Lease]) -> Vec<(Lease, Arc<Handler>)> {
        let is_wanted = |given: &&(Lease, Arc<Handler>)| leases.contains(&given.0);
        self.given.iter().filter(is_wanted).cloned().collect()
    }

    /// Leaves the consumer. The call in progress may still take events, which are then released.
    fn leave_consumer(&mut self) {
        if std::mem::replace(&mut self.has_left, true) {
            return;
        }
        if let Some(watch) = self.watch.take().filter(|_| self.shelf.is_releasing()) {
            self.shared.strays.keep(watch);
        }
        self.shelf.clear();
        for (lease, handler) in self.outdated.drain(..) {
            handler.release(lease);
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

/// A call of the receiver. When it ends or is dropped, the shelf keeps what it has asked for.
struct Call<'a>(&'a mut RedisFetch);

impl<'a> Call<'a> {
    fn begin(fetch: &'a mut RedisFetch) -> Self {
        fetch.given.clear();
        fetch.asked = fetch.shelf.take_asked();
        Self(fetch)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let asked = self.0.asked.take().map(|asked| Asked { is_left_over: true, ..asked });
        if let Some(watch) = self.0.shelf.end_call(asked) {
            self.0.watch = Some(watch);
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
        let call = Call::begin(self);
        call.0.fetch_in_call(ask, taken).await
    }

    fn take_now(&mut self, ask: Ask, taken: &mut VecDeque<Item>) -> bool {
        if self.shelf.len() == 0 || self.consumer.end().is_some() {
            return false;
        }
        let call = Call::begin(self);
        call.0.give(ask.max, taken)
    }

    fn stream(&self) -> Arc<str> {
        Arc::clone(&self.shared.stream.name)
    }

    fn pass_on(&self) {
        self.consumer.members.pass_on();
    }

    fn is_stale(&self, _lease: Lease, since: Instant) -> bool {
        since.elapsed() >= self.consumer.config().ack_wait
    }

    fn leave(&mut self, unused: Vec<Lease>) {
        for (lease, handler) in self.handlers_of(&unused) {
            handler.release(lease);
        }
        self.leave_consumer();
    }

    async fn close(&mut self, unused: Vec<Lease>) -> Result<()> {
        let mut deliveries = self.handlers_of(&unused);
        deliveries.extend(self.shelf.settlings());
        deliveries.extend(self.outdated.iter().cloned());
        give_back(deliveries).await?;
        self.given.clear();
        self.outdated.clear();
        self.shelf.forget();
        if let Some(watch) = &self.watch
            && self.shelf.is_releasing()
        {
            watch.ended().await;
        }
        if let Some(asked) = self.shelf.take_asked() {
            // What a dropped call asked for goes back, too.
            self.shared.release_answer(&self.consumer, &self.acks, asked.into_stray()).await;
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
        let lag = consumers::lag(stream, &stream.keys, stream.prefix(), &self.consumer.name).await?;
        Ok(lag + self.consumer.ahead.count() as u64)
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

/// Releases deliveries, and waits until the server has confirmed it. Those that are not in force need no release.
pub(super) async fn give_back(deliveries: Vec<(Lease, Arc<Handler>)>) -> Result<()> {
    let releases =
        deliveries.iter().map(|(lease, handler)| handler.settle(Settlement::new(*lease, AckKind::Release)));
    let is_over = |error: &EventError| {
        !error.is_retryable() && matches!(error.kind(), ErrorKind::Ack | ErrorKind::Closed)
    };
    match join_all(releases).await.into_iter().filter_map(Result::err).find(|error| !is_over(error)) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// The answer to a call whose member has gone.
pub(super) type Stray = (Pin<Box<dyn Future<Output = Carried<Answer>> + Send>>, Arc<Identity>);

impl Shared {
    /// Returns what settles the deliveries of an answer.
    fn handler(
        &self,
        consumer: &Arc<Consumer>,
        acks: &Arc<SentAcks>,
        identity: &Arc<Identity>,
        server: Arc<ServerFacts>,
        deliveries: &[Delivery],
    ) -> Arc<Handler> {
        let ids = deliveries.iter().map(|delivery| (delivery.lease.sequence, delivery.id.as_str().into()));
        Arc::new(Handler::new(
            self.settler.queue(),
            Arc::clone(acks),
            self.stream.timeout(),
            Arc::clone(consumer),
            Arc::clone(identity),
            server,
            ids.collect(),
        ))
    }

    /// Waits for the answer to a call, and releases what it brought.
    pub(super) async fn release_answer(
        &self,
        consumer: &Arc<Consumer>,
        acks: &Arc<SentAcks>,
        (answer, identity): Stray,
    ) {
        let Ok(Answer { value, server }) = answer.await else { return };
        let Ok(Fetched::Events(Events { deliveries, .. })) = fetch::read(value) else { return };
        let handler = self.handler(consumer, acks, &identity, server, &deliveries);
        let deliveries = deliveries.iter().map(|delivery| (delivery.lease, Arc::clone(&handler)));
        if let Err(error) = give_back(deliveries.collect()).await {
            tracing::debug!(consumer = &*consumer.name, %error, "releasing events failed");
        }
    }
}
