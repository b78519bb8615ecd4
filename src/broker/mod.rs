//! The broker: triggers that route events to sinks.
//!
//! A fire-and-forget trigger receives the events that are routed; a durable one reads the stream itself. See
//! [`DeliverySettings`] and the guide [`docs::routing`](crate::docs::routing). Needs the feature `routing`.

mod bus;
mod dead_letter;
mod durable;
mod filter;
mod hops;
mod index;
mod lane;
mod trigger;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tracing::Instrument;

pub use durable::{BrokerHandle, EndedTrigger};
pub use filter::{EventFilter, TriggerFilter};
pub use hops::{HOP_LIMIT_REASON, HOPS_KEY};
pub use lane::TriggerStats;
pub use trigger::{DeliverySettings, Trigger, TriggerSpec};

use self::hops::{Hops, LEFT_OUT, passed};
use self::index::Index;
use self::lane::{Lane, Snapshot, Started};
use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;
use crate::sink::{EventSink, PayloadForm};
use crate::types::Event;

/// Default timeout of a route.
const DEFAULT_ROUTE_TIMEOUT: Duration = Duration::from_secs(5);
/// Default number of deliveries of all triggers together that may wait for their turn.
const DEFAULT_QUEUE: usize = 65_536;

/// Result of routing one event. `matched` is the sum of `delivered` and `failed`. Durable triggers do not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteResult {
    /// Number of triggers that matched.
    pub matched: usize,
    /// Number of sinks that accepted the event.
    pub delivered: usize,
    /// Number of sinks that failed, panicked, had a full queue, or did not accept the event in time. A late sink may
    /// still accept it.
    pub failed: usize,
}

/// Routes events to the sinks of all triggers that match.
///
/// Triggers can be added, replaced and removed at any time, without waiting for a delivery. An event that is being
/// routed keeps the triggers it matched. The cost of a route depends on the triggers that match, not on all.
///
/// The broker owns the deliveries that still run when a route returns. [`shutdown`](Broker::shutdown) waits for them;
/// dropping the broker ends them.
///
/// ```
/// use std::sync::Arc;
/// use a3s_event::{Broker, CollectorSink, Event, Trigger, TriggerFilter};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let broker = Broker::new();
/// let sink = Arc::new(CollectorSink::new("orders"));
/// broker.add_trigger(Trigger::new("new-orders", TriggerFilter::by_type("order.created"), sink.clone())).await;
///
/// let event = Event::typed("events.orders.new", "orders", "order.created", 1, "", "shop", serde_json::json!({}));
/// let result = broker.route(&event).await;
/// assert_eq!((result.matched, result.delivered, result.failed), (1, 1, 0));
/// assert_eq!(sink.count().await, 1);
/// # }
/// ```
pub struct Broker {
    index: RwLock<Index>,
    /// Number of changes of durable triggers.
    changes: watch::Sender<u64>,
    running: Mutex<JoinSet<()>>,
    route_timeout: Duration,
    hop_limit: u32,
    dead_letter: Option<Arc<dyn EventSink>>,
    /// One permit for each delivery that may wait for its turn.
    waiting_room: Arc<Semaphore>,
}

impl Broker {
    /// Creates a broker without triggers.
    pub fn new() -> Self {
        Self {
            index: RwLock::default(),
            changes: watch::Sender::new(0),
            running: Mutex::default(),
            route_timeout: DEFAULT_ROUTE_TIMEOUT,
            hop_limit: hops::DEFAULT_HOP_LIMIT,
            dead_letter: None,
            waiting_room: Arc::new(Semaphore::new(DEFAULT_QUEUE)),
        }
    }

    /// Sets how long a route, and with it a publisher, waits for sinks. Default 5 s. Deliveries that have not ended by
    /// then continue in the background.
    #[must_use]
    pub fn with_route_timeout(mut self, timeout: Duration) -> Self {
        self.route_timeout = timeout;
        self
    }

    /// Sets how many brokers an event may pass before it is given up with the reason [`HOP_LIMIT_REASON`]. Default 16.
    /// The count is in its metadata, under [`HOPS_KEY`].
    #[must_use]
    pub fn with_hop_limit(mut self, brokers: u32) -> Self {
        self.hop_limit = brokers;
        self
    }

    /// Sets how many deliveries of all fire-and-forget triggers together may wait for their turn. Default 65,536.
    /// Applies to triggers that are added from now on. Further deliveries are dropped, as when the
    /// [queue of the trigger](DeliverySettings::queue) is full. A trigger whose sink keeps up uses none of it.
    #[must_use]
    pub fn with_queue(mut self, deliveries: usize) -> Self {
        self.waiting_room = Arc::new(Semaphore::new(deliveries.min(Semaphore::MAX_PERMITS)));
        self
    }

    /// Sets the dead-letter sink for triggers without their own. Applies to triggers that are added from now on.
    #[must_use]
    pub fn with_dead_letter_sink(mut self, sink: Arc<dyn EventSink>) -> Self {
        self.dead_letter = Some(sink);
        self
    }

    /// Adds a fire-and-forget trigger with the default settings, for events that are routed from now on. Other triggers
    /// of the same name stay. A trigger with an invalid subject pattern matches nothing and logs a warning;
    /// [`put_trigger`](Broker::put_trigger) rejects it.
    pub async fn add_trigger(&self, trigger: Trigger) {
        if let Err(error) = trigger.filter.check() {
            tracing::warn!(trigger = trigger.name, %error, "invalid subject pattern: the trigger matches no event");
        }
        let lane = self.lane(trigger.into());
        self.write().insert(lane);
    }

    /// Adds a trigger in place of all others of its name, and returns true if there were any. Deliveries of the old
    /// triggers continue. A durable trigger keeps its position if its name and its subject pattern stay the same.
    ///
    /// # Errors
    ///
    /// - [`EventError::InvalidName`] for a name that is empty or longer than 128 bytes
    /// - [`EventError::InvalidSubject`] for an invalid subject pattern
    /// - [`EventError::Config`] for an invalid filter or setting
    ///
    /// On an error, nothing has changed.
    pub async fn put_trigger(&self, trigger: impl Into<TriggerSpec>) -> Result<bool> {
        let spec = trigger.into();
        spec.check()?;
        let lane = self.lane(spec);
        let is_durable = lane.settings().durable;
        let replaced = {
            let mut index = self.write();
            let replaced = index.remove(lane.name());
            index.insert(lane);
            replaced
        };
        self.note_change(is_durable || replaced.iter().any(|lane| lane.settings().durable));
        Ok(!replaced.is_empty())
    }

    /// Removes all triggers of this name; returns false if there was none. The consumer of a durable trigger keeps its
    /// position until [`BrokerHandle::forget`].
    pub async fn remove_trigger(&self, name: &str) -> bool {
        let removed = self.write().remove(name);
        self.note_change(removed.iter().any(|lane| lane.settings().durable));
        !removed.is_empty()
    }

    /// Returns the number of triggers.
    pub async fn trigger_count(&self) -> usize {
        self.read().len()
    }

    /// Returns the counters of the triggers of this name, or `None` if there is none.
    pub fn trigger_stats(&self, name: &str) -> Option<TriggerStats> {
        let index = self.read();
        let lanes = index.named(name);
        let sum = |sum: TriggerStats, lane: &Arc<Lane>| sum.plus(lane.stats());
        (!lanes.is_empty()).then(|| lanes.iter().fold(TriggerStats::default(), sum))
    }

    /// Returns the counters of all current triggers.
    pub fn stats(&self) -> TriggerStats {
        self.read().all().fold(TriggerStats::default(), |sum, lane| sum.plus(lane.stats()))
    }

    /// Delivers the event to the sinks of all matching fire-and-forget triggers. Waits until each sink has accepted it
    /// or failed for the last time, but no longer than the [route timeout](Broker::with_route_timeout). A failure is
    /// logged and affects no other sink.
    ///
    /// A delivery that has not ended by then counts as failed here and continues in the background. Meanwhile, later
    /// routes do not wait for this trigger: a sink that hangs delays a publisher only once. The timeout also works
    /// against a sink that blocks its thread, unless it was quick before.
    ///
    /// Cancel-safe: deliveries that have begun continue without its future.
    pub async fn route(&self, event: &Event) -> RouteResult {
        self.route_all(&[(event, event)]).await
    }

    /// Routes many events in clear and as stored, with one timeout for all of them. Each sink gets the form that it
    /// [asks for](EventSink::payload).
    async fn route_all(&self, events: &[(&Event, &Event)]) -> RouteResult {
        let mut round = Round::default();
        for (clear, stored) in events {
            self.begin(clear, stored, &mut round).await;
        }
        round.end(self.route_timeout).await
    }

    async fn begin(&self, clear: &Event, stored: &Event, round: &mut Round) {
        let lanes = self.matching(clear);
        round.matched += lanes.len();
        let hops = Hops::of(clear, self.hop_limit);
        if hops == Hops::Beyond {
            let Event { id, subject, .. } = clear;
            lanes.iter().for_each(|lane| lane.log(id, subject, HOP_LIMIT_REASON, 0, LEFT_OUT));
            return;
        }
        let mut placed = Vec::with_capacity(lanes.len());
        placed.extend(lanes.into_iter().filter_map(|lane| Some((lane.place(clear)?, lane))));
        if hops == Hops::AtLimit {
            let stored = Arc::new(stored.clone());
            for (place, lane) in placed {
                let snapshot = lane.snapshot(&stored);
                self.spawn(lane.give_up_at_once(place, snapshot, HOP_LIMIT_REASON));
            }
            return;
        }
        let mut outgoing = Outgoing { clear, stored, shared: None };
        let mut placed = placed.into_iter();
        while let Some((place, lane)) = placed.next() {
            let (event, snapshot) = outgoing.for_lane(&lane, placed.len() == 0);
            match lane.start(place, event, snapshot).await {
                Started::Over(delivered) => round.delivered += usize::from(delivered),
                Started::Running(work) if lane.is_late() => self.spawn(async move { _ = work.await }),
                Started::Running(work) => {
                    let ticket = round.ticket(lane);
                    self.spawn(async move {
                        let delivered = work.await;
                        ticket.end(delivered);
                    });
                }
            }
        }
    }

    /// Ends the broker's deliveries: waits for those that run or wait, and interrupts them after `timeout`. Later
    /// routes begin new ones.
    ///
    /// # Errors
    ///
    /// [`EventError::Timeout`] with the number of deliveries that were interrupted.
    pub async fn shutdown(&self, timeout: Duration) -> Result<()> {
        let mut running = std::mem::take(&mut *self.running());
        let all = async { while running.join_next().await.is_some() {} };
        if tokio::time::timeout(timeout, all).await.is_ok() {
            return Ok(());
        }
        let left = running.len();
        running.shutdown().await;
        Err(EventError::Timeout(format!("{left} deliveries did not end within {timeout:?}")))
    }

    fn lane(&self, spec: TriggerSpec) -> Arc<Lane> {
        Arc::new(Lane::new(spec, self.dead_letter.clone(), Arc::clone(&self.waiting_room)))
    }

    fn note_change(&self, is_of_durable: bool) {
        if is_of_durable {
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    fn matching(&self, event: &Event) -> Vec<Arc<Lane>> {
        let mut lanes = Vec::new();
        self.read().for_each_match(event, |lane| {
            if !lane.settings().durable {
                lanes.push(Arc::clone(lane));
            }
        });
        lanes
    }

    /// Runs a task that ends with the broker.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut running = self.running();
        while running.try_join_next().is_some() {}
        running.spawn(task.in_current_span());
    }

    fn running(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.running.lock().ignore_poison()
    }

    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().ignore_poison()
    }

    /// Locks the index for a change. No method panics half-way through one, so that poison can be ignored.
    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().ignore_poison()
    }
}

impl Default for Broker {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker")
            .field("triggers", &self.read().len())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// An event on its way to sinks. Copied once for each requested form.
struct Outgoing<'a> {
    clear: &'a Event,
    stored: &'a Event,
    /// In clear, and as stored.
    shared: Option<(Arc<Event>, Arc<Event>)>,
}

impl Outgoing<'_> {
    /// Returns the event in the form that the sink asks for, and the part to keep. The last lane gets it unshared.
    fn for_lane(&mut self, lane: &Lane, is_last: bool) -> (Arc<Event>, Snapshot) {
        let shared = self.shared.take().unwrap_or_else(|| {
            let stored = Arc::new(passed(self.stored));
            let is_one = std::ptr::eq(self.clear, self.stored);
            let clear = if is_one { Arc::clone(&stored) } else { Arc::new(passed(self.clear)) };
            (clear, stored)
        });
        if !is_last {
            self.shared = Some(shared.clone());
        }
        let (clear, stored) = shared;
        let snapshot = lane.snapshot(&stored);
        let event = match lane.sink().payload() {
            PayloadForm::Clear => clear,
            PayloadForm::AsStored => stored,
        };
        (event, snapshot)
    }
}

/// Deliveries that a route waits for.
#[derive(Default)]
struct Round {
    matched: usize,
    delivered: usize,
    waited_for: Vec<Arc<Lane>>,
    tally: Option<Arc<Tally>>,
}

#[derive(Default)]
struct Tally {
    open: AtomicUsize,
    delivered: AtomicUsize,
    all_over: Notify,
}

/// Right to end one delivery of a round. A dropped ticket counts as failed.
struct Ticket(Arc<Tally>);

impl Ticket {
    fn end(self, delivered: bool) {
        self.0.delivered.fetch_add(usize::from(delivered), Ordering::Relaxed);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.all_over.notify_one();
        }
    }
}

impl Round {
    fn ticket(&mut self, lane: Arc<Lane>) -> Ticket {
        self.waited_for.push(lane);
        let tally = self.tally.get_or_insert_default();
        tally.open.fetch_add(1, Ordering::Relaxed);
        Ticket(Arc::clone(tally))
    }

    async fn end(mut self, timeout: Duration) -> RouteResult {
        if let Some(tally) = self.tally.take() {
            let all_over = async {
                while tally.open.load(Ordering::Acquire) > 0 {
                    tally.all_over.notified().await;
                }
            };
            if tokio::time::timeout(timeout, all_over).await.is_err() {
                self.waited_for.iter().for_each(|lane| lane.note_late());
            }
            self.delivered += tally.delivered.load(Ordering::Relaxed);
        }
        let Self { matched, delivered, .. } = self;
        RouteResult { matched, delivered, failed: matched - delivered }
    }
}

#[cfg(test)]
mod tests;
