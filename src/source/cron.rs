//! Source of events at an interval or on a schedule.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

#[cfg(feature = "cron")]
use super::scheduled::{MissedTickBehavior, Scheduled, Tick};
use super::{EventSource, Stop};
use crate::deadline::period;
use crate::error::{EventError, Result};
use crate::types::Event;

/// Minimum interval.
const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// Produces an event at a fixed interval, or with the feature `cron` on a schedule.
///
/// At a fixed interval, the first event comes after one interval. If the receiver is slow, the ticks that passed
/// meanwhile count as one, so that there is no burst. The source creates an event when the channel has room for it.
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
    when: When,
    stop: Stop,
}

enum When {
    Every {
        interval: Duration,
        factory: Box<dyn Fn() -> Event + Send + Sync>,
    },
    #[cfg(feature = "cron")]
    On(Box<Scheduled>),
}

impl CronSource {
    /// Creates a source that sends the result of `factory` once per `interval`, which must be at least 1 ms.
    pub fn new<F>(name: impl Into<String>, interval: Duration, factory: F) -> Self
    where
        F: Fn() -> Event + Send + Sync + 'static,
    {
        Self::with(name, When::Every { interval, factory: Box::new(factory) })
    }

    /// Creates a source that sends the result of `factory` at each time of a schedule.
    ///
    /// It fires at most once per time, even if the clock is set back.
    /// [`missed_tick_behavior`](CronSource::missed_tick_behavior) sets what happens with missed times.
    ///
    /// ```
    /// use a3s_event::source::Schedule;
    /// use a3s_event::{CronSource, Event};
    ///
    /// # fn main() -> a3s_event::Result<()> {
    /// let opening = CronSource::scheduled("opening", Schedule::new("0 30 9 * * Mon-Fri", "America/New_York")?, |tick| {
    ///     let mut event = Event::new("events.market.open", "market", "", "opening", serde_json::json!({}));
    ///     // The same id on every instance: used as `msg_id`, it lets them store one event.
    ///     event.id = format!("opening-{}", tick.scheduled_ms);
    ///     event
    /// });
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "cron")]
    #[cfg_attr(docsrs, doc(cfg(feature = "cron")))]
    pub fn scheduled<F>(name: impl Into<String>, schedule: super::Schedule, factory: F) -> Self
    where
        F: Fn(Tick) -> Event + Send + Sync + 'static,
    {
        Self::with(name, When::On(Box::new(Scheduled::new(schedule, Box::new(factory)))))
    }

    /// Sets what happens with missed times. It has no effect at a fixed interval, where they count as one.
    #[cfg(feature = "cron")]
    #[cfg_attr(docsrs, doc(cfg(feature = "cron")))]
    #[must_use]
    pub fn missed_tick_behavior(mut self, policy: MissedTickBehavior) -> Self {
        if let When::On(scheduled) = &mut self.when {
            scheduled.missed = policy;
        }
        self
    }

    /// Sets the time of the last event before a restart, in Unix milliseconds. Later times that have passed count as
    /// missed. It has no effect at a fixed interval.
    #[cfg(feature = "cron")]
    #[cfg_attr(docsrs, doc(cfg(feature = "cron")))]
    #[must_use]
    pub fn resume_after(mut self, unix_ms: u64) -> Self {
        if let When::On(scheduled) = &mut self.when {
            scheduled.resume_after = Some(unix_ms);
        }
        self
    }

    #[cfg(all(test, feature = "cron"))]
    pub(super) fn on(scheduled: Scheduled) -> Self {
        Self::with("scheduled", When::On(Box::new(scheduled)))
    }

    fn with(name: impl Into<String>, when: When) -> Self {
        Self { name: name.into(), when, stop: Stop::new() }
    }

    async fn produce(&self, sender: mpsc::Sender<Event>) -> Result<()> {
        match &self.when {
            When::Every { interval, factory } => every(*interval, &**factory, sender).await,
            #[cfg(feature = "cron")]
            When::On(scheduled) => return scheduled.produce(&self.name, sender).await,
        }
        Ok(())
    }
}

/// Sends events until the receiver is dropped.
async fn every(interval: Duration, factory: &(dyn Fn() -> Event + Send + Sync), sender: mpsc::Sender<Event>) {
    let mut ticks = tokio::time::interval(period(interval));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    // The first tick comes at once.
    ticks.tick().await;
    loop {
        tokio::select! {
            biased;
            () = sender.closed() => return,
            _ = ticks.tick() => {}
        }
        // Reserves a place before it creates the event. An event that waited for a place would have an old time.
        match sender.reserve().await {
            Ok(place) => place.send(factory()),
            Err(_closed) => return,
        }
    }
}

#[async_trait]
impl EventSource for CronSource {
    /// # Errors
    ///
    /// [`EventError::Source`] if the interval is shorter than 1 ms, or if a schedule has no time left.
    async fn start(&self, sender: mpsc::Sender<Event>) -> Result<()> {
        if let When::Every { interval, .. } = &self.when
            && *interval < MIN_INTERVAL
        {
            let reason = format!("'{}' has an interval of {interval:?}: must be at least 1 ms", self.name);
            return Err(EventError::Source(reason));
        }
        self.stop.or(self.produce(sender)).await.unwrap_or(Ok(()))
    }

    async fn stop(&self) -> Result<()> {
        self.stop.now();
        Ok(())
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for CronSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("CronSource");
        shown.field("name", &self.name);
        match &self.when {
            When::Every { interval, .. } => shown.field("interval", interval),
            #[cfg(feature = "cron")]
            When::On(scheduled) => shown.field("schedule", &scheduled.schedule),
        };
        shown.field("stopped", &self.stop.is_set()).finish_non_exhaustive()
    }
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
        // One in the channel, one that waited for a place, and one for the eight missed ticks.
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
        for short in [Duration::ZERO, Duration::from_nanos(1)] {
            let error = counting_source(short).start(sender.clone()).await.unwrap_err();
            assert!(matches!(&error, EventError::Source(text) if text.contains("'ticker'")), "{error}");
        }

        let source = counting_source(Duration::MAX);
        let (running, _events) = start(&source, 1);
        tokio::time::sleep(INTERVAL).await;
        source.stop().await.unwrap();
        running.await.unwrap().unwrap();
    }
}
