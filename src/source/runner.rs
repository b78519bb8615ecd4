//! Runs a source: publishes what it produces, starts it again when it fails, and stops it without losing what it holds.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::EventSource;
use crate::backoff::Backoff;
use crate::bus::EventBus;
use crate::deadline::After;
use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;
use crate::types::{Event, PublishOptions};

/// Shortest wait before a new start or a new publish, whatever is configured.
const SHORTEST_DELAY: Duration = Duration::from_millis(1);
/// A source that ran this long has recovered: the next failure is its first again.
const RECOVERED_AFTER: Duration = Duration::from_secs(60);
/// Events between the source and the bus.
const DEFAULT_BUFFER: usize = 64;

/// Runs an [`EventSource`] on a bus.
///
/// What the source produces is published in order, each event until it is stored: a failure that a retry can help is tried
/// again, with growing delays, and holds the source back. With a provider that deduplicates, the event's id is its `msg_id`,
/// so that a retry stores it once. An event that can never be stored is logged, counted and left out. When the bus is closed,
/// what is left is handed back by [`shutdown`](SourceHandle::shutdown). A source that fails or panics is started again, with growing
/// delays, too.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use a3s_event::source::SourceRunner;
/// use a3s_event::{CronSource, Event, EventBus, MemoryProvider};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> a3s_event::Result<()> {
/// let bus = Arc::new(EventBus::new(MemoryProvider::default()));
/// let heartbeat = CronSource::new("heartbeat", Duration::from_millis(1), || {
///     Event::new("events.system.heartbeat", "system", "alive", "heartbeat", serde_json::json!({}))
/// });
/// let running = SourceRunner::new(Arc::new(heartbeat)).start(Arc::clone(&bus));
/// # while bus.info().await?.messages == 0 { tokio::time::sleep(Duration::from_millis(1)).await; }
///
/// let not_published = running.shutdown(Duration::from_secs(5)).await?;
/// assert!(not_published.is_empty());
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct SourceRunner {
    source: Arc<dyn EventSource>,
    backoff: Backoff,
    buffer: usize,
}

impl SourceRunner {
    /// Runs this source.
    pub fn new(source: Arc<dyn EventSource>) -> Self {
        Self {
            source,
            backoff: Backoff::exponential(Duration::from_millis(100), Duration::from_secs(30)),
            buffer: DEFAULT_BUFFER,
        }
    }

    /// The wait after each failure in a row, of the source or of a publish, at least 1 ms. Default exponential from 100 ms
    /// to 30 s with jitter.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// How many events the source may be ahead of the bus, at least 1. Default 64.
    pub fn buffer(mut self, events: usize) -> Self {
        self.buffer = events.max(1);
        self
    }

    /// Starts the source. Dropping what is returned ends it at once; [`shutdown`](SourceHandle::shutdown) ends it in good order.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start(self, bus: Arc<EventBus>) -> SourceHandle {
        let (sender, events) = mpsc::channel(self.buffer);
        let source = Arc::clone(&self.source);
        let shared = Arc::new(Shared::default());
        let backoff = self.backoff.clone();
        let producing = tokio::spawn(produce(Arc::clone(&source), sender, backoff, Arc::clone(&shared)));
        let (give_up, given_up) = watch::channel(false);
        let publishing = tokio::spawn(publish(bus, events, self.backoff, Arc::clone(&shared), given_up));
        SourceHandle { source, shared, producing, publishing: Some(publishing), give_up }
    }
}

impl fmt::Debug for SourceRunner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceRunner").field("source", &self.source.name()).finish_non_exhaustive()
    }
}

/// What a source is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceState {
    /// It produces.
    #[default]
    Running,
    /// It failed, and is started again after a delay.
    Waiting,
    /// It ended by itself or was stopped.
    Ended,
}

/// How a source is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceStatus {
    /// What it is doing.
    pub state: SourceState,
    /// How often it was started again.
    pub restarts: u64,
    /// Events published.
    pub published: u64,
    /// Publishes that were tried again.
    pub retries: u64,
    /// Events that can never be stored, and were left out.
    pub refused: u64,
    /// The last failure of the source or of a publish.
    pub last_error: Option<String>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<(SourceState, Option<String>)>,
    restarts: AtomicU64,
    published: AtomicU64,
    retries: AtomicU64,
    refused: AtomicU64,
}

impl Shared {
    fn set(&self, state: SourceState) {
        self.state.lock().ignore_poison().0 = state;
    }

    fn failed(&self, error: String) {
        self.state.lock().ignore_poison().1 = Some(error);
    }
}

/// A source that runs. Dropping it ends the source at once, with what it holds.
#[must_use = "dropping it ends the source"]
pub struct SourceHandle {
    source: Arc<dyn EventSource>,
    shared: Arc<Shared>,
    producing: JoinHandle<()>,
    publishing: Option<JoinHandle<Vec<Event>>>,
    give_up: watch::Sender<bool>,
}

impl SourceHandle {
    /// How it is doing.
    pub fn status(&self) -> SourceStatus {
        let (state, last_error) = self.shared.state.lock().ignore_poison().clone();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SourceStatus {
            state,
            restarts: read(&self.shared.restarts),
            published: read(&self.shared.published),
            retries: read(&self.shared.retries),
            refused: read(&self.shared.refused),
            last_error,
        }
    }

    /// Stops the source and publishes what it has produced. What could not be published within the timeout is handed back, in
    /// order; the first of it may have been stored.
    ///
    /// # Errors
    ///
    /// [`EventError::Source`] when the source cannot be told to stop; it is ended all the same.
    pub async fn shutdown(mut self, timeout: Duration) -> Result<Vec<Event>> {
        let deadline = Instant::now().after(timeout);
        let told = match tokio::time::timeout_at(deadline, self.source.stop()).await {
            Ok(told) => told,
            Err(_elapsed) => {
                Err(EventError::Source(format!("'{}' was not told in time", self.source.name())))
            }
        };
        if tokio::time::timeout_at(deadline, &mut self.producing).await.is_err() {
            self.producing.abort();
            tracing::warn!(source = self.source.name(), "the source did not stop in time");
        }
        let Some(mut publishing) = self.publishing.take() else { return told.map(|()| Vec::new()) };
        let left = match tokio::time::timeout_at(deadline, &mut publishing).await {
            Ok(left) => left,
            Err(_elapsed) => {
                self.give_up.send_replace(true);
                publishing.await
            }
        };
        let left = left.map_err(|error| EventError::Source(format!("'{}': {error}", self.source.name())))?;
        told.map(|()| left)
    }
}

impl Drop for SourceHandle {
    fn drop(&mut self) {
        self.producing.abort();
        if let Some(publishing) = &self.publishing {
            publishing.abort();
        }
    }
}

impl fmt::Debug for SourceHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceHandle")
            .field("source", &self.source.name())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// Runs the source until it ends by itself, whatever that takes.
async fn produce(
    source: Arc<dyn EventSource>,
    sender: mpsc::Sender<Event>,
    backoff: Backoff,
    shared: Arc<Shared>,
) {
    let mut failures = 0;
    loop {
        shared.set(SourceState::Running);
        let begin = Instant::now();
        // A task of its own, so that a panic ends only it; aborting this task aborts that one.
        let mut running = tokio::task::JoinSet::new();
        let (started, own_sender) = (Arc::clone(&source), sender.clone());
        running.spawn(async move { started.start(own_sender).await });
        let error = match running.join_next().await {
            Some(Ok(Err(error))) => error.to_string(),
            Some(Err(panic)) if panic.is_panic() => "the source panicked".to_owned(),
            None | Some(Ok(Ok(())) | Err(_)) => break,
        };
        failures = if begin.elapsed() >= RECOVERED_AFTER { 1 } else { failures + 1 };
        let delay = backoff.delay(failures).max(SHORTEST_DELAY);
        tracing::warn!(source = source.name(), error, ?delay, "the source failed and is started again");
        shared.failed(error);
        shared.set(SourceState::Waiting);
        tokio::time::sleep(delay).await;
        shared.restarts.fetch_add(1, Ordering::Relaxed);
    }
    shared.set(SourceState::Ended);
}

/// Publishes until the source has ended and nothing is left, or until it is told to give up or the bus is closed: then what
/// is left is returned.
async fn publish(
    bus: Arc<EventBus>,
    mut events: mpsc::Receiver<Event>,
    backoff: Backoff,
    shared: Arc<Shared>,
    mut given_up: watch::Receiver<bool>,
) -> Vec<Event> {
    let mut left = Vec::new();
    loop {
        let next = tokio::select! {
            biased;
            _ = given_up.wait_for(|given_up| *given_up) => break,
            next = events.recv() => next,
        };
        let Some(event) = next else { return left };
        let is_done = tokio::select! {
            biased;
            _ = given_up.wait_for(|given_up| *given_up) => false,
            is_done = publish_one(&bus, &event, &backoff, &shared) => is_done,
        };
        if !is_done {
            left.push(event);
            break;
        }
    }
    events.close();
    while let Some(event) = events.recv().await {
        left.push(event);
    }
    left
}

/// Whether the event is done with, which it is not on a bus that is closed.
async fn publish_one(bus: &EventBus, event: &Event, backoff: &Backoff, shared: &Shared) -> bool {
    let dedup = bus.provider().capabilities().dedup.is_yes();
    let options = PublishOptions { msg_id: dedup.then(|| event.id.clone()), ..PublishOptions::default() };
    let mut failures = 0;
    loop {
        let error = match bus.publish_event_with_options(event, &options).await {
            Ok(_) => {
                shared.published.fetch_add(1, Ordering::Relaxed);
                return true;
            }
            Err(error) => error,
        };
        let id = crate::text::shorten(&event.id);
        shared.failed(error.to_string());
        if error.is_closed() {
            tracing::error!(id, %error, "an event of a source is not stored: the bus is closed");
            return false;
        }
        if !error.is_retryable() {
            tracing::error!(id, %error, "an event of a source cannot be stored and is left out");
            shared.refused.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        failures += 1;
        let delay = backoff.delay(failures).max(SHORTEST_DELAY);
        tracing::warn!(id, %error, ?delay, "an event of a source is published again");
        shared.retries.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(delay).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use async_trait::async_trait;
    use serde_json::json;

    use super::*;
    use crate::provider::{EventProvider, ProviderInfo, Subscription};
    use crate::{CronSource, MemoryProvider};

    fn event(number: u64) -> Event {
        Event::new("events.a.b", "a", "", "", json!(number))
    }

    /// Memory that can be out of order.
    struct Flaky {
        inner: MemoryProvider,
        fails: Arc<AtomicBool>,
    }

    #[async_trait]
    impl EventProvider for Flaky {
        async fn publish(&self, event: &Event) -> Result<u64> {
            if self.fails.load(Ordering::SeqCst) {
                return Err(EventError::Connection("no server".into()));
            }
            self.inner.publish(event).await
        }
        async fn subscribe_durable(&self, name: &str, filter: &str) -> Result<Box<dyn Subscription>> {
            self.inner.subscribe_durable(name, filter).await
        }
        async fn subscribe(&self, filter: &str) -> Result<Box<dyn Subscription>> {
            self.inner.subscribe(filter).await
        }
        async fn history(&self, filter: Option<&str>, limit: usize) -> Result<Vec<Event>> {
            self.inner.history(filter, limit).await
        }
        async fn unsubscribe(&self, name: &str) -> Result<()> {
            self.inner.unsubscribe(name).await
        }
        async fn info(&self) -> Result<ProviderInfo> {
            self.inner.info().await
        }
        fn name(&self) -> &str {
            "flaky"
        }
    }

    fn flaky() -> (Arc<EventBus>, Arc<AtomicBool>) {
        let fails = Arc::new(AtomicBool::new(false));
        let provider = Flaky { inner: MemoryProvider::default(), fails: Arc::clone(&fails) };
        (Arc::new(EventBus::new(provider)), fails)
    }

    async fn stored(bus: &EventBus) -> Vec<u64> {
        let events = bus.list_events(None, 1_000).await.unwrap();
        events.iter().rev().map(|event| event.payload.as_u64().unwrap()).collect()
    }

    /// Produces a number per start, and then does as it is told: fails, panics, ends or goes on.
    struct Moody {
        starts: AtomicU64,
        moods: Vec<&'static str>,
        stopped: watch::Sender<bool>,
    }

    impl Moody {
        fn new(moods: &[&'static str]) -> Arc<Self> {
            let stopped = watch::Sender::new(false);
            Arc::new(Self { starts: AtomicU64::new(0), moods: moods.to_vec(), stopped })
        }
    }

    #[async_trait]
    impl EventSource for Moody {
        async fn start(&self, sender: mpsc::Sender<Event>) -> Result<()> {
            let start = self.starts.fetch_add(1, Ordering::SeqCst);
            sender.send(event(start)).await.unwrap();
            match self.moods[usize::try_from(start).unwrap()] {
                "fails" => Err(EventError::Source("a bad day".into())),
                "panics" => panic!("a very bad day"),
                "ends" => Ok(()),
                _ => {
                    let _ = self.stopped.subscribe().wait_for(|stopped| *stopped).await;
                    Ok(())
                }
            }
        }
        async fn stop(&self) -> Result<()> {
            self.stopped.send_replace(true);
            Ok(())
        }
        fn name(&self) -> &str {
            "moody"
        }
    }

    async fn until(condition: impl Fn() -> bool) {
        let waiting = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(600), waiting).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_fails_or_panics_is_started_again_with_growing_delays() {
        let (bus, _) = flaky();
        let source = Moody::new(&["fails", "panics", "fails", "goes on"]);
        let begin = Instant::now();
        let running = SourceRunner::new(source)
            .backoff(Backoff::exponential(Duration::from_secs(1), Duration::from_secs(10)))
            .start(Arc::clone(&bus));
        until(|| running.status().published == 4).await;
        let waited = begin.elapsed();
        assert!(
            waited >= Duration::from_millis(3_500) && waited <= Duration::from_millis(7_100),
            "{waited:?}"
        );
        let status = running.status();
        assert_eq!((status.state, status.restarts), (SourceState::Running, 3));
        assert!(status.last_error.is_some_and(|error| error.contains("a bad day")));
        assert!(running.shutdown(Duration::from_secs(1)).await.unwrap().is_empty());
        assert_eq!(stored(&bus).await, [0, 1, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_ends_by_itself_is_left_alone() {
        let (bus, _) = flaky();
        let running = SourceRunner::new(Moody::new(&["ends"])).start(Arc::clone(&bus));
        until(|| running.status().state == SourceState::Ended).await;
        assert_eq!(running.status().restarts, 0);
        assert!(running.shutdown(Duration::from_secs(1)).await.unwrap().is_empty());
        assert_eq!(stored(&bus).await, [0]);
    }

    fn ticker() -> Arc<CronSource> {
        let count = AtomicU64::new(0);
        Arc::new(CronSource::new("ticker", Duration::from_secs(1), move || {
            event(count.fetch_add(1, Ordering::SeqCst))
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_publish_is_tried_again_in_order() {
        let (bus, fails) = flaky();
        fails.store(true, Ordering::SeqCst);
        let running = SourceRunner::new(ticker()).start(Arc::clone(&bus));
        tokio::time::sleep(Duration::from_secs(10)).await;
        fails.store(false, Ordering::SeqCst);
        until(|| running.status().published >= 10).await;
        assert!(running.status().retries >= 3);
        assert!(running.shutdown(Duration::from_secs(1)).await.unwrap().is_empty());
        let stored = stored(&bus).await;
        assert_eq!(stored, (0..stored.len() as u64).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_published_in_time_is_handed_back() {
        let (bus, fails) = flaky();
        fails.store(true, Ordering::SeqCst);
        let running = SourceRunner::new(ticker()).start(Arc::clone(&bus));
        tokio::time::sleep(Duration::from_millis(5_500)).await;
        let begin = Instant::now();
        let left = running.shutdown(Duration::from_secs(3)).await.unwrap();
        assert_eq!(begin.elapsed(), Duration::from_secs(3));
        let left: Vec<_> = left.iter().map(|event| event.payload.as_u64().unwrap()).collect();
        assert_eq!(left, [0, 1, 2, 3, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_closed_bus_does_not_take_is_handed_back() {
        let bus = Arc::new(EventBus::new(MemoryProvider::default()));
        let running = SourceRunner::new(ticker()).start(Arc::clone(&bus));
        until(|| running.status().published == 2).await;
        bus.close().await.unwrap();
        until(|| running.status().state == SourceState::Ended).await;
        let left = running.shutdown(Duration::from_secs(1)).await.unwrap();
        assert_eq!(left.iter().map(|event| event.payload.as_u64().unwrap()).collect::<Vec<_>>(), [2]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_can_never_be_stored_holds_nobody_up() {
        let (bus, _) = flaky();
        let count = AtomicU64::new(0);
        let source = CronSource::new("ticker", Duration::from_secs(1), move || {
            let mut event = event(count.fetch_add(1, Ordering::SeqCst));
            if event.payload == 1 {
                event.subject = "events.no token".to_owned();
            }
            event
        });
        let running = SourceRunner::new(Arc::new(source)).start(Arc::clone(&bus));
        until(|| running.status().published == 3).await;
        assert_eq!(running.status().refused, 1);
        drop(running);
        assert_eq!(stored(&bus).await, [0, 2, 3]);
    }
}
