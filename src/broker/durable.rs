//! Durable triggers: each has a consumer that settles the events accepted by the sink.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::Broker;
use super::dead_letter::{KeptBy, Letters};
use super::hops::{HOP_LIMIT_REASON, Hops, LEFT_OUT, passed};
use super::lane::Lane;
use crate::backoff::Backoff;
use crate::bus::EventBus;
use crate::bus::consumer::{ConsumerHandle, HandlerError, HandlerResult, RetryPolicy};
use crate::error::{ErrorKind, EventError, Result};
use crate::provider::Delivery;
use crate::sink::{PayloadForm, SinkFailure};
use crate::task::poll_once;

/// Delays between two consumers of a trigger.
const REOPEN: Backoff = Backoff::exponential(Duration::from_secs(1), Duration::from_secs(30));

impl Broker {
    /// Runs the durable triggers over this bus until the handle ends them. Each reads the stream with its own durable
    /// consumer, named after the trigger. The consumer keeps its position across restarts, and all processes that run a
    /// trigger of this name share it. Triggers that are added, replaced and removed meanwhile start and stop.
    ///
    /// An event is settled when the sink has accepted it or its dead letter is stored; after a crash in between, it is
    /// redelivered. A dead letter goes to the trigger's dead-letter sink, or else the broker's, or else the dead-letter
    /// handler of the bus.
    ///
    /// Returns when the current triggers can receive what is published.
    ///
    /// # Errors
    ///
    /// The error of the first trigger whose consumer cannot be opened, as [`ConsumerBuilder::handle`]; nothing runs
    /// then. For later triggers, opening is retried with an error in the log.
    ///
    /// [`ConsumerBuilder::handle`]: crate::consumer::ConsumerBuilder::handle
    pub async fn run(self: &Arc<Self>, bus: Arc<EventBus>) -> Result<BrokerHandle> {
        let (stop, stopping) = watch::channel(false);
        let (synced, seen) = watch::channel(0);
        let mut manager = Manager {
            broker: Arc::clone(self),
            bus: Arc::clone(&bus),
            stopping,
            synced,
            serving: BTreeMap::new(),
            ending: Vec::new(),
            tasks: JoinSet::new(),
        };
        let mut changes = self.changes.subscribe();
        let version = *changes.borrow_and_update();
        for opened in manager.reconcile() {
            opened.await.unwrap_or_else(|_| Err(ended()))?;
        }
        manager.synced.send_replace(version);
        let manager = tokio::spawn(manager.manage(changes));
        Ok(BrokerHandle { broker: Arc::clone(self), bus, stop, synced: seen, manager })
    }
}

/// Handle of the running durable triggers. Dropping it ends them at once, and their events are redelivered when the
/// leases expire.
#[must_use = "durable triggers end when the handle is dropped"]
pub struct BrokerHandle {
    broker: Arc<Broker>,
    bus: Arc<EventBus>,
    stop: watch::Sender<bool>,
    synced: watch::Receiver<u64>,
    manager: JoinHandle<()>,
}

impl BrokerHandle {
    /// Waits until every change of durable triggers so far is in force. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`EventError::Closed`] if the triggers have ended.
    pub async fn synced(&self) -> Result<()> {
        if self.manager.is_finished() {
            return Err(ended());
        }
        let version = *self.broker.changes.borrow();
        let mut synced = self.synced.clone();
        synced.wait_for(|synced| *synced >= version).await.map(drop).map_err(|_| ended())
    }

    /// Returns the durable triggers that have ended permanently although they are still registered, with the reason.
    /// Their consumers were deleted, or lost without a known position. A trigger that is added again under its name
    /// begins as its start policy says.
    pub fn ended(&self) -> Vec<EndedTrigger> {
        let index = self.broker.read();
        let ended = index.all().filter_map(|lane| {
            let reason = lane.end()?;
            let subject_pattern = lane.subject_pattern().map(str::to_owned);
            Some(EndedTrigger { name: lane.name().to_owned(), subject_pattern, reason })
        });
        ended.collect()
    }

    /// Removes the position of the durable trigger that had this name and subject pattern, after it was removed. A
    /// later trigger of the same name begins anew.
    ///
    /// # Errors
    ///
    /// [`EventError::Conflict`] while a trigger of this name exists.
    pub async fn forget(&self, name: &str, subject_pattern: Option<&str>) -> Result<()> {
        if self.broker.read().contains(name) {
            return Err(EventError::Conflict {
                resource: format!("trigger '{}'", crate::text::shorten(name)),
                field: "state".to_owned(),
                existing: "in use".to_owned(),
                requested: "forgotten".to_owned(),
            });
        }
        let subject = subject_of(&self.bus, subject_pattern);
        self.bus.forget_consumers(&consumer_name(name), &[subject]).await;
        Ok(())
    }

    /// Ends the durable triggers gracefully: running deliveries end and are settled, as in
    /// [`ConsumerHandle::shutdown`]. Cancel-safe: it continues without its future.
    pub async fn shutdown(&mut self) {
        self.stop.send_replace(true);
        // A task that has ended must not be awaited again, as a second shutdown would.
        if !self.manager.is_finished()
            && let Err(error) = (&mut self.manager).await
        {
            tracing::error!(%error, "the task of the durable triggers failed");
        }
    }
}

impl Drop for BrokerHandle {
    fn drop(&mut self) {
        self.manager.abort();
    }
}

impl fmt::Debug for BrokerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerHandle").field("broker", &self.broker).finish_non_exhaustive()
    }
}

/// A durable trigger that has ended permanently.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndedTrigger {
    /// Name of the trigger.
    pub name: String,
    /// Subject pattern of the trigger.
    pub subject_pattern: Option<String>,
    /// Error that ended it.
    pub reason: String,
}

fn ended() -> EventError {
    EventError::Closed("the durable triggers have ended".to_owned())
}

/// Reports the first opening of a trigger's consumer, or its error; or that the consumer has stopped fetching.
type Changed = oneshot::Receiver<Result<()>>;

/// Ends the task of a trigger.
struct Stop {
    stop: watch::Sender<bool>,
    stopped: Changed,
    ended: Ended,
}

/// Ends when a task is over, with an error because nothing is sent.
type Ended = oneshot::Receiver<()>;

/// Runs a task for each durable trigger.
struct Manager {
    broker: Arc<Broker>,
    bus: Arc<EventBus>,
    stopping: watch::Receiver<bool>,
    synced: watch::Sender<u64>,
    /// By the id of the trigger, which has the order of creation.
    serving: BTreeMap<u128, (Arc<Lane>, Stop)>,
    /// Tasks of removed triggers that still settle their deliveries.
    ending: Vec<(Arc<Lane>, Ended)>,
    tasks: JoinSet<()>,
}

impl Manager {
    async fn manage(mut self, mut changes: watch::Receiver<u64>) {
        let mut stopping = self.stopping.clone();
        loop {
            tokio::select! {
                biased;
                () = wait_for_stop(&mut stopping) => break,
                changed = changes.changed() => if changed.is_err() { break },
            }
            let version = *changes.borrow_and_update();
            for change in self.reconcile() {
                tokio::select! {
                    biased;
                    () = wait_for_stop(&mut stopping) => break,
                    outcome = change => if let Ok(Err(error)) = outcome {
                        tracing::error!(%error, "opening the consumer of a durable trigger failed; retrying");
                    },
                }
            }
            self.synced.send_replace(version);
            while self.tasks.try_join_next().is_some() {}
        }
        self.serving.values().for_each(|(_, serving)| _ = serving.stop.send_replace(true));
        while self.tasks.join_next().await.is_some() {}
    }

    /// Starts and stops changed triggers. Each receiver reports when its change is in force.
    fn reconcile(&mut self) -> Vec<Changed> {
        let wanted: BTreeMap<u128, Arc<Lane>> = self
            .broker
            .read()
            .all()
            .filter(|lane| lane.settings().durable)
            .map(|lane| (lane.id(), Arc::clone(lane)))
            .collect();
        let gone: Vec<u128> = self.serving.keys().filter(|id| !wanted.contains_key(id)).copied().collect();
        let mut changes = Vec::new();
        for (lane, Stop { stop, stopped, ended }) in
            gone.into_iter().filter_map(|id| self.serving.remove(&id))
        {
            stop.send_replace(true);
            changes.push(stopped);
            self.ending.push((lane, ended));
        }
        self.ending.retain_mut(|(_, ended)| ended.try_recv() == Err(TryRecvError::Empty));
        for (id, lane) in wanted {
            if self.serving.contains_key(&id) {
                continue;
            }
            let (stop, stopping) = watch::channel(false);
            let (open_sender, opened) = oneshot::channel();
            let (stop_sender, stopped) = oneshot::channel();
            let (over, ended) = oneshot::channel();
            let predecessors = self.predecessors(&lane);
            let server = Server {
                lane: Arc::clone(&lane),
                bus: Arc::clone(&self.bus),
                hop_limit: self.broker.hop_limit,
                stopping,
            };
            self.tasks.spawn(async move {
                server.serve(predecessors, open_sender, stop_sender).await;
                drop(over);
            });
            self.serving.insert(id, (lane, Stop { stop, stopped, ended }));
            changes.push(opened);
        }
        changes
    }

    /// Returns the tasks that must end before this trigger begins. Otherwise an ordered trigger would deliver events of the
    /// consumer that it takes over while earlier ones are still being delivered.
    fn predecessors(&mut self, lane: &Lane) -> Vec<Ended> {
        let is_before = |other: &Lane| {
            other.name() == lane.name()
                && other.subject_pattern() == lane.subject_pattern()
                && (other.settings().ordered || lane.settings().ordered)
        };
        self.ending.extract_if(.., |(other, _)| is_before(other)).map(|(_, ended)| ended).collect()
    }
}

/// A durable trigger that runs.
struct Server {
    lane: Arc<Lane>,
    bus: Arc<EventBus>,
    hop_limit: u32,
    stopping: watch::Receiver<bool>,
}

impl Server {
    /// Keeps a consumer open until the stop signal. Begins when the predecessors have ended.
    async fn serve(
        mut self,
        predecessors: Vec<Ended>,
        first: oneshot::Sender<Result<()>>,
        stopped: oneshot::Sender<Result<()>>,
    ) {
        let mut first = Some(first);
        if !predecessors.is_empty() {
            // It misses nothing meanwhile: the consumer of its predecessors keeps its position.
            report(&mut first, Ok(()));
            let mut ended = pin!(async {
                for predecessor in predecessors {
                    let _ = predecessor.await;
                }
            });
            let is_stopped = tokio::select! {
                biased;
                () = &mut ended => false,
                () = wait_for_stop(&mut self.stopping) => true,
            };
            if is_stopped {
                let _ = stopped.send(Ok(()));
                // Its own successor waits for them, too.
                return ended.await;
            }
        }
        for attempt in 1.. {
            match self.open().await {
                Ok(consumer) => {
                    report(&mut first, Ok(()));
                    tokio::select! {
                        biased;
                        () = wait_for_stop(&mut self.stopping) => {
                            let mut ending = pin!(consumer.shutdown());
                            // It has stopped fetching; the running handlers are not waited for.
                            let at_once = poll_once(&mut ending).await;
                            let _ = stopped.send(Ok(()));
                            let ended = match at_once {
                                Some(ended) => ended,
                                None => ending.await,
                            };
                            if let Err(error) = ended {
                                tracing::warn!(trigger = self.lane.name(), %error, "trigger did not shut down cleanly");
                            }
                            return;
                        }
                        outcome = consumer.stopped() => match outcome {
                            // A recreated consumer would deliver the stream again.
                            Err(error) if error.kind() == ErrorKind::NotFound => {
                                tracing::error!(trigger = self.lane.name(), %error, "durable trigger ended: its consumer no longer exists");
                                self.lane.note_end(error.to_string());
                                return;
                            }
                            Err(error) => tracing::error!(
                                trigger = self.lane.name(),
                                %error,
                                "durable trigger ended; reopening it"
                            ),
                            Ok(()) => {}
                        },
                    }
                }
                Err(error) => {
                    tracing::debug!(trigger = self.lane.name(), %error, "opening the consumer failed");
                    report(&mut first, Err(error));
                }
            }
            tokio::select! {
                biased;
                () = wait_for_stop(&mut self.stopping) => return,
                () = tokio::time::sleep(REOPEN.delay(attempt)) => {}
            }
        }
    }

    async fn open(&self) -> Result<ConsumerHandle> {
        let settings = self.lane.settings();
        let mut policy = RetryPolicy::default().backoff(settings.backoff.clone()).timeout(settings.timeout);
        if let Some(retries) = settings.retries {
            policy = policy.attempts(u64::from(retries) + 1);
        }
        let mut consumer = self
            .bus
            .consumer(consumer_name(self.lane.name()))
            .subject(subject_of(&self.bus, self.lane.subject_pattern()))
            .options(settings.subscribe_options())
            .concurrency(settings.concurrency_or_default())
            .policy(policy);
        if settings.ordered {
            consumer = consumer.ordered_by_subject();
        }
        if self.lane.sink().payload() == PayloadForm::AsStored {
            consumer = consumer.sealed();
        }
        let of_sink = self.lane.dead_letter().map(|sink| KeptBy::Sink(Arc::clone(sink)));
        if let Some(kept_by) = of_sink.or_else(|| self.bus.dlq_handler_arc().map(KeptBy::Bus)) {
            consumer = consumer.letters_to(Arc::new(Letters { lane: Arc::clone(&self.lane), kept_by }));
        }
        let (lane, hop_limit) = (Arc::clone(&self.lane), self.hop_limit);
        let handler = move |delivery: Delivery| {
            let lane = Arc::clone(&lane);
            async move { deliver(&lane, &delivery, hop_limit).await }
        };
        consumer.handle(handler).await
    }
}

/// Waits for the stop signal, or until its sender is gone.
async fn wait_for_stop(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn report(first: &mut Option<oneshot::Sender<Result<()>>>, outcome: Result<()>) {
    if let Some(first) = first.take() {
        // There is no receiver while the broker is being stopped.
        let _ = first.send(outcome);
    }
}

async fn deliver(lane: &Lane, delivery: &Delivery, hop_limit: u32) -> HandlerResult {
    let event = delivery.event();
    if !lane.wants(event) {
        return Ok(());
    }
    match Hops::of(event, hop_limit) {
        Hops::Within => {}
        Hops::AtLimit => return Err(HandlerError::fatal(HOP_LIMIT_REASON)),
        Hops::Beyond => {
            lane.log(&event.id, &event.subject, HOP_LIMIT_REASON, delivery.num_delivered(), LEFT_OUT);
            return Ok(());
        }
    }
    if delivery.num_delivered() > 1 {
        lane.count_retried();
    }
    let key = lane.key_of_stored(event, delivery.stream(), delivery.sequence());
    match lane.sink().deliver_keyed(Arc::new(passed(event)), key).await {
        Ok(()) => {
            lane.count_delivered();
            Ok(())
        }
        Err(error) => {
            let failure = SinkFailure::of(&error);
            Err(match (failure.is_retryable(), failure.after()) {
                (false, _) => HandlerError::fatal(error),
                (true, Some(delay)) => HandlerError::retry_after(error, delay),
                (true, None) => HandlerError::retry(error),
            })
        }
    }
}

/// Returns the name of a trigger's consumer, as a subscriber of the bus.
fn consumer_name(trigger: &str) -> String {
    format!("trigger-{trigger}")
}

fn subject_of(bus: &EventBus, pattern: Option<&str>) -> String {
    pattern.map_or_else(|| format!("{}.>", bus.provider().subject_prefix()), str::to_owned)
}
