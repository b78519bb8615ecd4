//! Source of events when a measured value passes a threshold.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::{EventSource, MetricsSource, Stop};
use crate::deadline::period;
use crate::error::{EventError, Result};
use crate::types::Event;

/// Default interval between readings.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);

/// Type of the events that a threshold source creates.
const EVENT_TYPE: &str = "a3s.metrics.threshold";

/// The direction in which a value must pass the threshold to raise an alert.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Direction {
    /// Up: a value at or above the threshold raises the alert. The default.
    #[default]
    Above,
    /// Down: a value at or below the threshold raises the alert.
    Below,
}

/// An alert that is raised or cleared.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ThresholdAlert {
    /// Name of the measured metric.
    pub metric: String,
    /// Value that was read, or its growth per second for a [rate](ThresholdSource::per_second).
    pub value: f64,
    /// Threshold that the value is compared with.
    pub threshold: f64,
    /// If true, the alert is raised; if false, it is cleared.
    pub raised: bool,
}

type Read = Box<dyn Fn() -> f64 + Send + Sync>;
type Make = Box<dyn Fn(&ThresholdAlert) -> Event + Send + Sync>;

/// Reads a value at an interval, and creates an event when the value passes the threshold in the chosen [`Direction`].
/// It creates another event when the alert is cleared.
///
/// A margin keeps a value that swings around the threshold from creating a stream of events. The alert is cleared only
/// when the value is beyond [`clear_at`](ThresholdSource::clear_at). You can also require several
/// [readings](ThresholdSource::readings) in a row. A reading that is not a finite number is ignored.
///
/// The value can be anything. Counters of a bus only grow, so you usually compare their
/// [rate](ThresholdSource::per_second).
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use a3s_event::source::ThresholdSource;
/// use a3s_event::{EventBus, MemoryProvider};
///
/// let bus = Arc::new(EventBus::new(MemoryProvider::default()));
/// let watched = Arc::clone(&bus);
/// let failing = ThresholdSource::new("failing", "publish_errors", 5.0, move || {
///     watched.metrics().snapshot().publish_errors as f64
/// })
/// .per_second()
/// .clear_at(1.0)
/// .readings(3)
/// .interval(Duration::from_secs(5));
/// # let _ = failing;
/// ```
pub struct ThresholdSource {
    name: String,
    metric: String,
    threshold: f64,
    clear_at: f64,
    direction: Direction,
    readings: u32,
    per_second: bool,
    interval: Duration,
    read: Read,
    make: Make,
    stop: Stop,
}

impl ThresholdSource {
    /// Creates a source that reads the metric of this name with `read`. Its events have the type
    /// `a3s.metrics.threshold` and the subject `events.metrics.threshold`. Their payload has `metric`, `value`,
    /// `threshold` and `raised`. Use [`events`](ThresholdSource::events) to create other events.
    pub fn new<F>(name: impl Into<String>, metric: impl Into<String>, threshold: f64, read: F) -> Self
    where
        F: Fn() -> f64 + Send + Sync + 'static,
    {
        let name = name.into();
        let source = name.clone();
        Self {
            name,
            metric: metric.into(),
            threshold,
            clear_at: threshold,
            direction: Direction::default(),
            readings: 1,
            per_second: false,
            interval: DEFAULT_INTERVAL,
            read: Box::new(read),
            make: Box::new(move |alert| threshold_event(alert, &source)),
            stop: Stop::new(),
        }
    }

    /// Sets the direction that raises the alert. Default [`Direction::Above`].
    #[must_use]
    pub fn direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self
    }

    /// Sets the value beyond which the alert is cleared: below it for [`Direction::Above`], above it for
    /// [`Direction::Below`]. Default is the threshold.
    #[must_use]
    pub fn clear_at(mut self, value: f64) -> Self {
        self.clear_at = value;
        self
    }

    /// Sets how many readings in a row are needed for an event, at least 1. Default 1.
    #[must_use]
    pub fn readings(mut self, count: u32) -> Self {
        self.readings = count;
        self
    }

    /// Compares the growth of the value per second instead of the value itself. A counter that was reset counts as not
    /// grown.
    #[must_use]
    pub fn per_second(mut self) -> Self {
        self.per_second = true;
        self
    }

    /// Sets the interval between readings, at least 1 ms. Default 10 s.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets the function that creates the events.
    #[must_use]
    pub fn events<F>(mut self, make: F) -> Self
    where
        F: Fn(&ThresholdAlert) -> Event + Send + Sync + 'static,
    {
        self.make = Box::new(make);
        self
    }

    fn check(&self) -> Result<()> {
        let margin_fits = match self.direction {
            Direction::Above => self.clear_at <= self.threshold,
            Direction::Below => self.clear_at >= self.threshold,
        };
        let rule = if !self.threshold.is_finite() || !self.clear_at.is_finite() {
            "threshold and clear_at must be numbers"
        } else if !margin_fits {
            "clear_at must not lie beyond the threshold"
        } else if self.readings == 0 {
            "readings must be at least 1"
        } else if self.interval < Duration::from_millis(1) {
            "the interval must be at least 1 ms"
        } else {
            return Ok(());
        };
        Err(EventError::Source(format!("'{}': {rule}", self.name)))
    }

    async fn watch(&self, sender: mpsc::Sender<Event>) {
        let mut state = State::new(self);
        let mut ticks = tokio::time::interval(period(self.interval));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                biased;
                () = sender.closed() => return,
                now = ticks.tick() => {
                    let Some(alert) = state.take((self.read)(), now) else { continue };
                    // The next reading waits until this event has a place, so that none is lost.
                    if sender.send((self.make)(&alert)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// State after the readings so far.
struct State<'a> {
    source: &'a ThresholdSource,
    raised: bool,
    /// Number of consecutive readings that contradict `raised`.
    against: u32,
    before: Option<(f64, Instant)>,
}

impl<'a> State<'a> {
    fn new(source: &'a ThresholdSource) -> Self {
        Self { source, raised: false, against: 0, before: None }
    }

    fn take(&mut self, read: f64, now: Instant) -> Option<ThresholdAlert> {
        if !read.is_finite() {
            return None;
        }
        let value = if self.source.per_second { self.rate(read, now)? } else { read };
        let (threshold, clear_at) = (self.source.threshold, self.source.clear_at);
        let turns = match (self.source.direction, self.raised) {
            (Direction::Above, false) => value >= threshold,
            (Direction::Above, true) => value < clear_at,
            (Direction::Below, false) => value <= threshold,
            (Direction::Below, true) => value > clear_at,
        };
        self.against = if turns { self.against.saturating_add(1) } else { 0 };
        if self.against < self.source.readings {
            return None;
        }
        self.raised = !self.raised;
        self.against = 0;
        Some(ThresholdAlert { metric: self.source.metric.clone(), value, threshold, raised: self.raised })
    }

    fn rate(&mut self, read: f64, now: Instant) -> Option<f64> {
        let (before, then) = self.before.replace((read, now))?;
        let seconds = now.saturating_duration_since(then).as_secs_f64();
        (seconds > 0.0).then(|| (read - before).max(0.0) / seconds)
    }
}

fn threshold_event(alert: &ThresholdAlert, source: &str) -> Event {
    let ThresholdAlert { metric, value, threshold, raised } = alert;
    let verb = if *raised { "passed" } else { "left" };
    let summary = format!("{metric} {verb} {threshold}: {value}");
    let payload = json!({ "metric": metric, "value": value, "threshold": threshold, "raised": raised });
    Event::typed("events.metrics.threshold", "metrics", EVENT_TYPE, 1, summary, source, payload)
}

#[async_trait]
impl EventSource for ThresholdSource {
    /// # Errors
    ///
    /// [`EventError::Source`] for invalid settings.
    async fn start(&self, sender: mpsc::Sender<Event>) -> Result<()> {
        self.check()?;
        self.stop.or(self.watch(sender)).await;
        Ok(())
    }

    async fn stop(&self) -> Result<()> {
        self.stop.now();
        Ok(())
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl MetricsSource for ThresholdSource {
    fn metric_name(&self) -> &str {
        &self.metric
    }

    fn threshold(&self) -> f64 {
        self.threshold
    }
}

impl fmt::Debug for ThresholdSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThresholdSource")
            .field("name", &self.name)
            .field("metric", &self.metric)
            .field("threshold", &self.threshold)
            .field("clear_at", &self.clear_at)
            .field("direction", &self.direction)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{EventBus, MemoryProvider};

    fn source() -> ThresholdSource {
        ThresholdSource::new("watch", "load", 10.0, || 0.0)
    }

    /// Returns the events of these readings: the index of a reading, and true if it raised the alert.
    fn crossings(source: &ThresholdSource, readings: &[f64]) -> Vec<(usize, bool)> {
        let mut state = State::new(source);
        let begin = Instant::now();
        let read = readings.iter().zip(0_u32..).map(|(value, index)| {
            let now = begin + Duration::from_secs(2) * index;
            (index as usize, state.take(*value, now))
        });
        read.filter_map(|(index, alert)| Some((index, alert?.raised))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_around_the_threshold_makes_no_stream_of_events() {
        let readings = [9.0, 10.0, 9.0, 11.0, 8.0, 7.9, 9.9, 10.0];
        assert_eq!(crossings(&source().clear_at(8.0), &readings), [(1, true), (5, false), (7, true)]);
        assert_eq!(
            crossings(&source(), &readings),
            [(1, true), (2, false), (3, true), (4, false), (7, true)],
            "without a margin it does"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_other_side_can_matter() {
        let source = source().direction(Direction::Below).clear_at(12.0);
        assert_eq!(crossings(&source, &[15.0, 10.0, 12.0, 12.1, 9.0]), [(1, true), (3, false), (4, true)]);
    }

    #[tokio::test(start_paused = true)]
    async fn several_readings_in_a_row_are_needed() {
        let readings = [11.0, 11.0, 9.0, 11.0, 11.0, f64::NAN, 11.0, f64::INFINITY, 1.0, 1.0, 1.0];
        assert_eq!(crossings(&source().readings(3), &readings), [(6, true), (10, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_the_growth_per_second() {
        // 2 s apart, so the growth per second is 12, 3, 0 after the reset, and 10.
        let readings = [100.0, 124.0, 130.0, 0.0, 20.0];
        assert_eq!(crossings(&source().per_second(), &readings), [(1, true), (2, false), (4, true)]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_counters_of_a_bus_can_be_watched() {
        let bus = Arc::new(EventBus::new(MemoryProvider::default()));
        let watched = Arc::clone(&bus);
        let read = move || watched.metrics().snapshot().publish_errors as f64;
        let source = Arc::new(ThresholdSource::new("errors", "publish_errors", 2.0, read));
        let (sender, mut events) = mpsc::channel(1);
        let running = tokio::spawn({
            let source = Arc::clone(&source);
            async move { source.start(sender).await }
        });
        for _ in 0..2 {
            bus.publish("no token", "x", "", "", json!(1)).await.unwrap_err();
        }
        let event = events.recv().await.unwrap();
        assert_eq!(
            event.payload,
            json!({"metric": "publish_errors", "value": 2.0, "threshold": 2.0, "raised": true})
        );
        assert_eq!((event.event_type.as_str(), event.source.as_str()), (EVENT_TYPE, "errors"));
        assert_eq!((source.metric_name(), source.threshold()), ("publish_errors", 2.0));
        source.stop().await.unwrap();
        running.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn settings_that_make_no_sense_are_refused() {
        for wrong in [
            source().clear_at(11.0),
            source().direction(Direction::Below).clear_at(9.0),
            source().clear_at(f64::NAN),
            source().readings(0),
            source().interval(Duration::ZERO),
        ] {
            let (sender, _events) = mpsc::channel(1);
            let error = wrong.start(sender).await.unwrap_err();
            assert!(matches!(&error, EventError::Source(text) if text.contains("'watch'")), "{error}");
        }
    }
}
