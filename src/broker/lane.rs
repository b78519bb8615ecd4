//! Path of a fire-and-forget trigger's events to its sink.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::dead_letter::letter_now;
use super::filter::{EventFilter, indexable_type};
use super::index::Key;
use super::trigger::{DeliverySettings, Trigger, TriggerSpec};
use crate::random;
use crate::sink::{DeliveryKey, EventSink, SinkFailure};
use crate::task::{caught, in_time, poll_once};
use crate::types::Event;

/// Time limit of a quick sink. The publisher calls a quick sink itself, which is cheaper than a task.
const QUICK: Duration = Duration::from_micros(200);

/// A trigger of a broker, with its deliveries.
pub(super) struct Lane {
    trigger: Trigger,
    filter: Option<EventFilter>,
    settings: DeliverySettings,
    /// The trigger's dead-letter sink, or else the broker's.
    dead_letter: Option<Arc<dyn EventSink>>,
    /// One permit for each delivery that runs or waits.
    places: Arc<Semaphore>,
    /// One permit for each delivery that runs. Fair, so that it keeps the order.
    turns: Arc<Semaphore>,
    /// One permit for each delivery of the broker that waits for its turn.
    waiting_room: Arc<Semaphore>,
    /// Id of this trigger in this process; a delivery's key combines it with a number.
    id: u128,
    begun: AtomicU64,
    /// True if the last delivery succeeded quickly and without another thread.
    is_quick: AtomicBool,
    /// True if a publisher has waited for it in vain, and nothing was delivered since.
    is_late: AtomicBool,
    /// Reason why a durable trigger has ended permanently.
    end: OnceLock<String>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    delivered: AtomicU64,
    failed: AtomicU64,
    retried: AtomicU64,
    dropped: AtomicU64,
    dead_lettered: AtomicU64,
}

/// Counters of a trigger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TriggerStats {
    /// Events that the sink has accepted.
    pub delivered: u64,
    /// Events that were given up after all attempts, including those that were dead-lettered. For a durable trigger,
    /// also records that never reached the sink, for instance undecodable ones. A durable trigger without a destination
    /// for dead letters logs these events and does not count them.
    pub failed: u64,
    /// Attempts after the first.
    pub retried: u64,
    /// Events that were dropped because the queue of the trigger or the broker was full. They are not counted as
    /// failed.
    pub dropped: u64,
    /// Events whose dead letter was accepted by a sink or, for a durable trigger, by the dead-letter handler of the
    /// bus.
    pub dead_lettered: u64,
    /// Fire-and-forget deliveries that run or wait now.
    pub pending: usize,
}

impl TriggerStats {
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            delivered: self.delivered + other.delivered,
            failed: self.failed + other.failed,
            retried: self.retried + other.retried,
            dropped: self.dropped + other.dropped,
            dead_lettered: self.dead_lettered + other.dead_lettered,
            pending: self.pending + other.pending,
        }
    }
}

impl Lane {
    pub(super) fn new(
        spec: TriggerSpec,
        dead_letter: Option<Arc<dyn EventSink>>,
        waiting_room: Arc<Semaphore>,
    ) -> Self {
        let TriggerSpec { trigger, filter, settings } = spec;
        let turns = settings.concurrency_or_default();
        Self {
            dead_letter: settings.dead_letter.clone().or(dead_letter),
            places: Arc::new(Semaphore::new(turns + settings.queue)),
            turns: Arc::new(Semaphore::new(turns)),
            waiting_room,
            id: random::id().as_u128(),
            begun: AtomicU64::new(0),
            is_quick: AtomicBool::new(false),
            is_late: AtomicBool::new(false),
            end: OnceLock::new(),
            counters: Counters::default(),
            trigger,
            filter,
            settings,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.trigger.name
    }

    /// Returns the id of this trigger in this process.
    pub(super) fn id(&self) -> u128 {
        self.id
    }

    pub(super) fn sink(&self) -> &Arc<dyn EventSink> {
        &self.trigger.sink
    }

    pub(super) fn dead_letter(&self) -> Option<&Arc<dyn EventSink>> {
        self.dead_letter.as_ref()
    }

    pub(super) fn settings(&self) -> &DeliverySettings {
        &self.settings
    }

    pub(super) fn subject_pattern(&self) -> Option<&str> {
        self.trigger.filter.subject_pattern.as_deref()
    }

    pub(super) fn key(&self) -> Key<'_> {
        let required = |attribute| self.filter.as_ref().and_then(|filter| filter.required(attribute));
        let event_type = self.trigger.filter.event_type.as_deref();
        Key::new(
            event_type.or_else(|| required("type").and_then(indexable_type)),
            self.trigger.filter.source.as_deref().or_else(|| required("source")),
            self.subject_pattern(),
        )
    }

    pub(super) fn wants(&self, event: &Event) -> bool {
        self.trigger.filter.matches(event) && self.filter.as_ref().is_none_or(|filter| filter.matches(event))
    }

    pub(super) fn stats(&self) -> TriggerStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let places = self.settings.concurrency_or_default() + self.settings.queue;
        TriggerStats {
            delivered: read(&self.counters.delivered),
            failed: read(&self.counters.failed),
            retried: read(&self.counters.retried),
            dropped: read(&self.counters.dropped),
            dead_lettered: read(&self.counters.dead_lettered),
            pending: places - self.places.available_permits(),
        }
    }

    pub(super) fn note_end(&self, reason: String) {
        // Only the first reason counts.
        let _ = self.end.set(reason);
    }

    pub(super) fn end(&self) -> Option<String> {
        self.end.get().cloned()
    }

    pub(super) fn count_delivered(&self) {
        self.counters.delivered.fetch_add(1, Ordering::Relaxed);
        self.is_late.store(false, Ordering::Relaxed);
    }

    pub(super) fn count_failed(&self) {
        self.counters.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_retried(&self) {
        self.counters.retried.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_dead_lettered(&self) {
        self.counters.dead_lettered.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn is_late(&self) -> bool {
        self.is_late.load(Ordering::Relaxed)
    }

    /// Notes that a publisher has waited long enough for what still runs.
    pub(super) fn note_late(&self) {
        if self.stats().pending > 0 {
            self.is_late.store(true, Ordering::Relaxed);
        }
    }

    /// Begins a delivery. A task completes it if the sink does not finish at once.
    pub(super) async fn start(
        self: &Arc<Self>,
        place: Place,
        event: Arc<Event>,
        snapshot: Snapshot,
    ) -> Started {
        let delivery = Delivery { lane: Arc::clone(self), key: self.next_key(), event, snapshot };
        let mut turn: Turn = match Arc::clone(&self.turns).try_acquire_owned() {
            Ok(turn) if self.is_quick.load(Ordering::Relaxed) => {
                let mut work: Work = Box::pin(delivery.run(place, turn));
                return match self.timed(&mut work).await {
                    Some(delivered) => Started::Over(delivered),
                    None => Started::Running(work),
                };
            }
            Ok(turn) => Box::pin(std::future::ready(Some(turn))),
            Err(_none_free) => {
                let Ok(seat) = Arc::clone(&self.waiting_room).try_acquire_owned() else {
                    let (id, subject) = delivery.snapshot.name();
                    self.count_dropped(id, subject, "the broker's queue is full");
                    return Started::Over(false);
                };
                let turns = Arc::clone(&self.turns);
                Box::pin(async move {
                    let _seat = seat;
                    turns.acquire_owned().await.ok()
                })
            }
        };
        // It joins the queue now, so that deliveries stay in order.
        let ready = poll_once(&mut turn).await;
        Started::Running(Box::pin(async move {
            let turn = match ready {
                Some(turn) => turn,
                None => turn.await,
            };
            let Some(turn) = turn else { return false };
            let lane = Arc::clone(&delivery.lane);
            let mut work: Work = Box::pin(delivery.run(place, turn));
            match lane.timed(&mut work).await {
                Some(delivered) => delivered,
                None => work.await,
            }
        }))
    }

    /// Reserves a place for a delivery of this event. Without one, the event is dropped before it costs a copy.
    pub(super) fn place(&self, event: &Event) -> Option<Place> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok();
        if place.is_none() {
            self.count_dropped(&event.id, &event.subject, "the trigger's queue is full");
        }
        place
    }

    fn count_dropped(&self, id: &str, subject: &str, reason: &str) {
        self.counters.dropped.fetch_add(1, Ordering::Relaxed);
        self.log(id, subject, reason, 0, "event dropped");
    }

    /// Returns the part of an event to keep in case it is given up: all of it only if there is a dead-letter sink. Dead
    /// letters of encrypted events stay encrypted.
    pub(super) fn snapshot(&self, stored: &Arc<Event>) -> Snapshot {
        match self.dead_letter {
            Some(_) => Snapshot::Whole(Arc::clone(stored)),
            None => Snapshot::Named { id: stored.id.clone(), subject: stored.subject.clone() },
        }
    }

    fn next_key(&self) -> DeliveryKey {
        DeliveryKey::within(self.id, self.begun.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns the key of a durable trigger's delivery, which is the same for every retry. The sequence alone would not
    /// identify an event after a stream is recreated.
    pub(super) fn key_of_stored(&self, event: &Event, stream: &str, sequence: u64) -> DeliveryKey {
        let pattern = self.subject_pattern().unwrap_or_default();
        let at = event.timestamp.to_string();
        DeliveryKey::new(&[self.name(), pattern, stream, &event.source, &event.id, &at], sequence)
    }

    /// Polls once, and records if that completed the delivery quickly.
    async fn timed(&self, work: &mut Work) -> Option<bool> {
        let begin = Instant::now();
        let outcome = poll_once(work).await;
        let is_quick = outcome == Some(true) && begin.elapsed() < QUICK;
        self.is_quick.store(is_quick, Ordering::Relaxed);
        outcome
    }

    /// Makes one attempt. A panic and a timeout are failures.
    async fn call(
        &self,
        sink: &dyn EventSink,
        event: Arc<Event>,
        key: DeliveryKey,
    ) -> Result<(), SinkFailure> {
        // The call is inside the future, so that a panic in it is caught too.
        let call = caught(async { sink.deliver_keyed(event, key).await });
        match in_time(self.settings.timeout, call).await {
            Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(SinkFailure::of(&error)),
            Some(Err(panic)) => Err(SinkFailure::retry(format!("panicked: {panic}"))),
            None => Err(SinkFailure::retry(format!(
                "no answer within the timeout of {:?}",
                self.settings.timeout
            ))),
        }
    }

    /// Gives up an event without delivering it.
    pub(super) async fn give_up_at_once(self: Arc<Self>, _place: Place, event: Snapshot, reason: &str) {
        let key = self.next_key();
        self.give_up(&event, reason, 0, key).await;
    }

    async fn give_up(&self, event: &Snapshot, reason: &str, attempts: u64, key: DeliveryKey) {
        self.count_failed();
        let (id, subject) = event.name();
        let (Some(sink), Snapshot::Whole(stored)) = (&self.dead_letter, event) else {
            self.log(
                id,
                subject,
                reason,
                attempts,
                "delivery to the sink failed; there is no dead-letter sink",
            );
            return;
        };
        let letter = letter_now(self, stored, reason, attempts);
        match self.call(&**sink, Arc::new(letter), key.letter()).await {
            Ok(()) => {
                self.count_dead_lettered();
                self.log(id, subject, reason, attempts, "delivery to the sink failed; event dead-lettered");
            }
            Err(failure) => {
                let reason = format!("{reason}; dead-letter sink '{}' failed: {failure}", sink.name());
                self.log(
                    id,
                    subject,
                    &reason,
                    attempts,
                    "event lost: the sink and the dead-letter sink failed",
                );
            }
        }
    }

    pub(super) fn log(&self, id: &str, subject: &str, reason: &str, attempts: u64, what: &str) {
        tracing::warn!(
            trigger = self.name(),
            sink = self.sink().name(),
            id,
            subject,
            reason,
            attempts,
            "{what}"
        );
    }
}

/// Permit of a delivery that runs or waits.
pub(super) type Place = OwnedSemaphorePermit;
type Work = Pin<Box<dyn Future<Output = bool> + Send>>;
type Turn = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

/// A delivery that has begun.
pub(super) enum Started {
    /// It is over: true if the sink has accepted the event.
    Over(bool),
    /// The rest of it, with the same result.
    Running(Work),
}

/// Part of an event, as stored, that is kept while its delivery runs.
pub(super) enum Snapshot {
    Whole(Arc<Event>),
    /// Enough for the log.
    Named {
        id: String,
        subject: String,
    },
}

impl Snapshot {
    fn name(&self) -> (&str, &str) {
        match self {
            Self::Whole(event) => (&event.id, &event.subject),
            Self::Named { id, subject } => (id, subject),
        }
    }
}

struct Delivery {
    lane: Arc<Lane>,
    key: DeliveryKey,
    event: Arc<Event>,
    snapshot: Snapshot,
}

impl Delivery {
    /// Retries until the sink has accepted the event or it is given up. Holds its place and its turn meanwhile.
    async fn run(self, _place: Place, _turn: OwnedSemaphorePermit) -> bool {
        let Self { lane, key, event, snapshot } = self;
        let attempts = u64::from(lane.settings.retries.unwrap_or(0)) + 1;
        // The last attempt hands the event over, so that a sink that wants it for itself need not copy it.
        let mut event = Some(event);
        for attempt in 1.. {
            let handed_over = if attempt < attempts { event.clone() } else { event.take() };
            let Some(handed_over) = handed_over else { break };
            let failure = match lane.call(&**lane.sink(), handed_over, key).await {
                Ok(()) => {
                    lane.count_delivered();
                    return true;
                }
                Err(failure) => failure,
            };
            if attempt >= attempts || !failure.is_retryable() {
                lane.give_up(&snapshot, &failure.to_string(), attempt, key).await;
                break;
            }
            lane.count_retried();
            let delay = failure.after().unwrap_or_else(|| lane.settings.backoff.delay(attempt));
            tokio::time::sleep(delay).await;
        }
        false
    }
}
