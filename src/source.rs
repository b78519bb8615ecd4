//! Sources: where events come from without somebody publishing them.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::error::{EventError, Result};
use crate::types::Event;

/// Produces events until it is stopped.
#[async_trait]
pub trait EventSource: Send + Sync {
    /// Produces events into `sender` until the source is stopped or the receiver is gone; both end with `Ok`. The
    /// future runs as long as the source does: give it a task.
    ///
    /// A full channel makes the source wait.
    ///
    /// # Errors
    ///
    /// [`EventError::Source`] when the source cannot go on.
    async fn start(&self, sender: mpsc::Sender<Event>) -> Result<()>;

    /// Ends the source for good, also one that was not started yet. Does not wait for `start` to return.
    ///
    /// # Errors
    ///
    /// [`EventError::Source`] when the source cannot be told.
    async fn stop(&self) -> Result<()>;

    /// Name of the source, for logs and errors.
    fn name(&self) -> &str;
}

/// Produces an event at a fixed interval.
///
/// The first event comes after one interval. When the receiver is slow, the ticks that passed meanwhile count as one; they
/// are not made up for in a burst. Each event is made when there is a place for it.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use a3s_event::{CronSource, Event, EventSource};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> a3s_event::Result<()> {
/// let heartbeat = Arc::new(CronSource::new("heartbeat", Duration::from_millis(5), || {
///     Event::new("events.system.heartbeat", "system", "alive", "heartbeat", serde_json::json!({}))
/// }));
/// let (sender, mut events) = tokio::sync::mpsc::channel(16);
/// let running = tokio::spawn({
///     let heartbeat = Arc::clone(&heartbeat);
///     async move { heartbeat.start(sender).await }
/// });
/// assert_eq!(events.recv().await.unwrap().summary, "alive");
///
/// heartbeat.stop().await?;
/// running.await.unwrap()?;
/// # Ok(())
/// # }
/// ```
pub struct CronSource {
    name: String,
    interval: Duration,
    factory: Box<dyn Fn() -> Event + Send + Sync>,
    stopped: watch::Sender<bool>,
}

impl CronSource {
    /// A source that sends what `factory` makes once per `interval`, which must not be zero.
    pub fn new<F>(name: impl Into<String>, interval: Duration, factory: F) -> Self
    where
        F: Fn() -> Event + Send + Sync + 'static,
    {
        Self { name: name.into(), interval, factory: Box::new(factory), stopped: watch::Sender::new(false) }
    }

    /// Sends events until the receiver is gone.
    async fn produce(&self, sender: mpsc::Sender<Event>) {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        // The first tick comes at once.
        ticks.tick().await;
        loop {
            tokio::select! {
                () = sender.closed() => return,
                _ = ticks.tick() => {}
            }
            // A place first, then the event: one that had to wait would arrive with an old time.
            match sender.reserve().await {
                Ok(place) => place.send((self.factory)()),
                Err(_closed) => return,
            }
        }
    }
}

#[async_trait]
impl EventSource for CronSource {
    /// # Errors
    ///
    /// [`EventError::Source`] when the interval is zero.
    async fn start(&self, sender: mpsc::Sender<Event>) -> Result<()> {
        if self.interval.is_zero() {
            let reason = format!("'{}' has an interval of zero", self.name);
            return Err(EventError::Source(reason));
        }
        let mut stopped = self.stopped.subscribe();
        tokio::select! {
            biased;
            // Fails only without a sender, and `self` holds it.
            _ = stopped.wait_for(|stopped| *stopped) => {}
            () = self.produce(sender) => {}
        }
        Ok(())
    }

    async fn stop(&self) -> Result<()> {
        self.stopped.send_replace(true);
        Ok(())
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for CronSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CronSource")
            .field("name", &self.name)
            .field("interval", &self.interval)
            .field("stopped", &*self.stopped.borrow())
            .finish_non_exhaustive()
    }
}

/// A source that turns HTTP requests into events.
#[async_trait]
pub trait WebhookSource: EventSource {
    /// The path that it takes requests on, for instance `/hooks/orders`.
    fn path(&self) -> &str;

    /// The content types that it takes; `application/json` unless stated.
    fn content_types(&self) -> Vec<String> {
        vec!["application/json".to_owned()]
    }
}

/// A source that makes an event when a measured value passes a threshold.
#[async_trait]
pub trait MetricsSource: EventSource {
    /// What is measured.
    fn metric_name(&self) -> &str;

    /// The value that matters, in the unit of the metric.
    fn threshold(&self) -> f64;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    const INTERVAL: Duration = Duration::from_secs(60);

    /// Numbers its events from 0.
    fn counting_source(interval: Duration) -> Arc<CronSource> {
        let count = AtomicU64::new(0);
        Arc::new(CronSource::new("ticker", interval, move || {
            let n = count.fetch_add(1, Ordering::Relaxed);
            Event::new("events.system.tick", "system", "", "ticker", json!(n))
        }))
    }

    fn start(source: &Arc<CronSource>, capacity: usize) -> (JoinHandle<Result<()>>, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(capacity);
        let source = Arc::clone(source);
        (tokio::spawn(async move { source.start(sender).await }), receiver)
    }

    #[tokio::test(start_paused = true)]
    async fn events_come_once_per_interval_beginning_after_the_first() {
        let source = counting_source(INTERVAL);
        let begin = Instant::now();
        let (_running, mut events) = start(&source, 1);
        for n in 0..3 {
            assert_eq!(events.recv().await.unwrap().payload, n);
            assert_eq!(begin.elapsed().as_secs(), 60 * (n + 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_ends_at_once_with_ok() {
        let source = counting_source(INTERVAL);
        let (running, mut events) = start(&source, 1);
        events.recv().await.unwrap();
        let begin = Instant::now();
        source.stop().await.unwrap();
        running.await.unwrap().unwrap();
        assert!(events.recv().await.is_none());
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_ends_a_source_that_waits_for_a_full_channel() {
        let source = counting_source(INTERVAL);
        let (running, _events) = start(&source, 1);
        tokio::time::sleep(INTERVAL * 5).await;
        source.stop().await.unwrap();
        running.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_was_stopped_before_does_not_start() {
        let source = counting_source(INTERVAL);
        source.stop().await.unwrap();
        let (running, mut events) = start(&source, 1);
        running.await.unwrap().unwrap();
        assert!(events.recv().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_is_gone_ends_it_at_once_with_ok() {
        let source = counting_source(INTERVAL);
        let begin = Instant::now();
        let (running, events) = start(&source, 1);
        drop(events);
        running.await.unwrap().unwrap();
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn ticks_that_passed_meanwhile_count_as_one() {
        let source = counting_source(INTERVAL);
        let (_running, mut events) = start(&source, 1);
        tokio::time::sleep(INTERVAL * 10 + INTERVAL / 2).await;
        let begin = Instant::now();
        // One in the channel, one that waited for a place, one for the eight ticks that nobody saw.
        for n in 0..3 {
            assert_eq!(events.recv().await.unwrap().payload, n);
        }
        assert_eq!(begin.elapsed(), Duration::ZERO);
        assert_eq!(events.recv().await.unwrap().payload, 3);
        assert_eq!(begin.elapsed(), INTERVAL / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_is_made_when_there_is_a_place_for_it() {
        let begin = Instant::now();
        let source = Arc::new(CronSource::new("ticker", INTERVAL, move || {
            Event::new("events.system.tick", "system", "", "ticker", json!(begin.elapsed().as_secs()))
        }));
        let (_running, mut events) = start(&source, 1);
        tokio::time::sleep(INTERVAL * 3).await;
        assert_eq!(events.recv().await.unwrap().payload, 60);
        assert_eq!(events.recv().await.unwrap().payload, 180);
    }

    #[tokio::test(start_paused = true)]
    async fn extreme_intervals_do_not_panic() {
        let (sender, _events) = mpsc::channel(1);
        let error = counting_source(Duration::ZERO).start(sender).await.unwrap_err();
        assert!(matches!(&error, EventError::Source(text) if text.contains("'ticker'")), "{error}");

        let source = counting_source(Duration::MAX);
        let (running, _events) = start(&source, 1);
        tokio::time::sleep(INTERVAL).await;
        source.stop().await.unwrap();
        running.await.unwrap().unwrap();
    }

    #[test]
    fn a_webhook_takes_json_unless_stated() {
        struct Hook;
        #[async_trait]
        impl EventSource for Hook {
            async fn start(&self, _sender: mpsc::Sender<Event>) -> Result<()> {
                Ok(())
            }
            async fn stop(&self) -> Result<()> {
                Ok(())
            }
            fn name(&self) -> &str {
                "hook"
            }
        }
        impl WebhookSource for Hook {
            fn path(&self) -> &str {
                "/hooks"
            }
        }
        assert_eq!(Hook.content_types(), ["application/json"]);
    }
}
