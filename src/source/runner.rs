//! Runs a source: publishes its events, restarts it when it fails, and stops it without losing events.

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

/// Minimum delay before a restart or a retry of a publish.
const SHORTEST_DELAY: Duration = Duration::from_millis(1);
/// Running time after which a source has recovered. The next failure then counts as the first.
const RECOVERED_AFTER: Duration = Duration::from_secs(60);
/// Default number of events between the source and the bus.
const DEFAULT_BUFFER: usize = 64;

/// Runs an [`EventSource`] on a bus.
///
/// The runner publishes the events of the source in order, one after the other:
///
/// - It retries a failed publish with growing delays if a retry can help. Meanwhile the source has to wait.
/// - If the provider deduplicates, the event's id is its `msg_id`, so that a retry stores the event once.
/// - It logs, counts and skips an event that can never be stored.
/// - If the bus is closed, [`shutdown`](SourceHandle::shutdown) returns the remaining events.
///
/// It restarts a source that fails or panics, also with growing delays.
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
    /// Creates a runner for this source.
    pub fn new(source: Arc<dyn EventSource>) -> Self {
        Self {
            source,
            backoff: Backoff::exponential(Duration::from_millis(100), Duration::from_secs(30)),
            buffer: DEFAULT_BUFFER,
        }
    }

    /// Sets the delay after each consecutive failure of the source or of a publish, at least 1 ms. Default exponential
    /// from 100 ms to 30 s with jitter.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets how many events the source may be ahead of the bus, at least 1. Default 64.
    pub fn buffer(mut self, events: usize) -> Self {
        self.buffer = events.max(1);
        self
    }

    /// Starts the source. [`shutdown`](SourceHandle::shutdown) of the returned handle ends the source in order.
    /// Dropping the handle ends it at once.
    ///
    /// # Panics
    ///
    /// If called outside a tokio runtime.
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

/// The state of a source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceState {
    /// The source is running.
    #[default]
    Running,
    /// The source failed and will be restarted after a delay.
    Waiting,
    /// The source ended by itself or was stopped.
    Ended,
}

/// The status of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceStatus {
    /// State of the source.
    pub state: SourceState,
    /// Number of restarts.
    pub restarts: u64,
    /// Number of published events.
    pub published: u64,
    /// Number of retried publishes.
    pub retries: u64,
    /// Number of events that can never be stored and were skipped.
    pub refused: u64,
    /// Last failure of the source or of a publish.
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

/// Handle of a running source. Dropping it ends the source at once and discards unpublished events.
#[must_use = "dropping it ends the source"]
pub struct SourceHandle {
    source: Arc<dyn EventSource>,
    shared: Arc<Shared>,
    producing: JoinHandle<()>,
    publishing: Option<JoinHandle<Vec<Event>>>,
    give_up: watch::Sender<bool>,
}

impl SourceHandle {
    /// Returns the status of the source.
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

    /// Stops the source and publishes the events that it has produced. Returns the events that could not be published
    /// within the timeout, in order. The first of them may have been stored.
    ///
    /// # Errors
    ///
    /// [`EventError::Source`] if the source cannot be stopped in order. It is ended in any case.
    pub async fn shutdown(mut self, timeout: Duration) -> Result<Vec<Event>> {
        let deadline = Instant::now().after(timeout);
        let told = match tokio::time::timeout_at(deadline, self.source.stop()).await {
            Ok(told) => told,
            Err(_elapsed) => {
                Err(EventError::Source(format!("'{}' did not return from stop in time", self.source.name())))
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

/// Runs the source, with restarts, until it ends by itself.
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
        // A separate task, so that a panic ends only that task. Aborting this task also aborts that one.
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
        tracing::warn!(source = source.name(), error, ?delay, "the source failed and will be restarted");
        shared.failed(error);
        shared.set(SourceState::Waiting);
        tokio::time::sleep(delay).await;
        shared.restarts.fetch_add(1, Ordering::Relaxed);
    }
    shared.set(SourceState::Ended);
}

/// Publishes until the source has ended and no event is left. Returns the remaining events if `given_up` is set or the
/// bus is closed.
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

/// Publishes one event. Returns true if the event was stored or refused, and false if the bus is closed.
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
            tracing::error!(id, %error, "an event of a source was not stored: the bus is closed");
            return false;
        }
        if !error.is_retryable() {
            tracing::error!(id, %error, "an event of a source cannot be stored and is skipped");
            shared.refused.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        failures += 1;
        let delay = backoff.delay(failures).max(SHORTEST_DELAY);
        tracing::warn!(id, %error, ?delay, "publishing an event of a source failed; retrying");
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

    /// Memory provider that can be set to fail.
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

    /// Produces a number per start, and then does what its list says: fails, panics, ends or goes on.
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
