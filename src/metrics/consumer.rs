//! What becomes of the events of one subscription.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::histogram::LatencySnapshot;
use super::instrument::{Counter, Gauge, Labels, Timer};
use crate::error::EventError;
use crate::provider::{AckKind, SettlementObserver};
use crate::trace::semconv;

/// Counters of one subscriber and filter on one bus: plain atomics, no lock.
///
/// The bus counts what its subscriptions deliver and how it is settled, for hand-written loops and the handler runtime
/// alike. What other processes do on the same durable consumer is counted there.
pub struct ConsumerMetrics {
    system: String,
    group: String,
    filter: String,
    delivered: Counter,
    redelivered: Counter,
    acked: Counter,
    nacked: Counter,
    terminated: Counter,
    released: Counter,
    settle_errors: Counter,
    dead_lettered: Counter,
    given_up: Counter,
    receive_errors: Counter,
    lagged_events: Counter,
    in_flight: Gauge,
    processing: Gauge,
    lag: Gauge,
    process_latency: Timer,
}

impl ConsumerMetrics {
    /// All counters at zero. With the feature `metrics` they count for the recorder that is installed now, too.
    pub fn new(system: &str, group: &str, filter: &str) -> Self {
        let labels: Labels<'_> = &[
            (semconv::MESSAGING_SYSTEM, system),
            (semconv::MESSAGING_CONSUMER_GROUP_NAME, group),
            (semconv::MESSAGING_DESTINATION_TEMPLATE, filter),
        ];
        let counter = |name| Counter::new(name, labels);
        Self {
            system: system.to_owned(),
            group: group.to_owned(),
            filter: filter.to_owned(),
            delivered: counter(semconv::MESSAGING_CLIENT_CONSUMED_MESSAGES),
            redelivered: counter("a3s_event.consumer.redelivered"),
            acked: counter("a3s_event.consumer.acked"),
            nacked: counter("a3s_event.consumer.nacked"),
            terminated: counter("a3s_event.consumer.terminated"),
            released: counter("a3s_event.consumer.released"),
            settle_errors: counter("a3s_event.consumer.settle_errors"),
            dead_lettered: counter("a3s_event.consumer.dead_lettered"),
            given_up: counter("a3s_event.consumer.given_up"),
            receive_errors: counter("a3s_event.consumer.receive_errors"),
            lagged_events: counter("a3s_event.consumer.lagged_events"),
            in_flight: Gauge::new("a3s_event.consumer.in_flight", labels),
            processing: Gauge::new("a3s_event.consumer.processing", labels),
            lag: Gauge::new("a3s_event.consumer.lag", labels),
            process_latency: Timer::new(semconv::MESSAGING_PROCESS_DURATION, labels),
        }
    }

    /// The provider.
    pub fn system(&self) -> &str {
        &self.system
    }

    /// The subscriber.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The subject filter.
    pub fn filter(&self) -> &str {
        &self.filter
    }

    /// Counts an event as being processed until the returned value is dropped, and then how long that took.
    pub fn begin_processing(self: &Arc<Self>) -> Processing {
        self.processing.up();
        Processing { metrics: Arc::clone(self), start: Instant::now() }
    }

    /// Notes how many events wait for this consumer.
    pub fn record_lag(&self, lag: u64) {
        self.lag.set(lag);
    }

    /// Counts an event that was written to the dead letters.
    pub fn record_dead_letter(&self) {
        self.dead_lettered.one();
    }

    /// Counts an event that was given up, whether its dead letter is kept or nobody was there to keep it.
    pub fn record_given_up(&self) {
        self.given_up.one();
    }

    /// Counts an event that was handed out, the `attempt`th time.
    pub(crate) fn record_delivery(&self, attempt: u64) {
        self.delivered.one();
        if attempt > 1 {
            self.redelivered.one();
        }
    }

    /// Counts an event that was acknowledged before it was handed out.
    pub(crate) fn record_delivery_and_ack(&self, attempt: u64) {
        self.record_delivery(attempt);
        self.acked.one();
    }

    /// Counts a call that brought an error instead of an event; the end of a subscription is none.
    pub(crate) fn record_failed_delivery(&self, error: &EventError) {
        match error {
            EventError::Lagged { missed, .. } => self.record_receive_error(*missed),
            error if error.is_closed() => {}
            _ => self.record_receive_error(0),
        }
    }

    fn record_receive_error(&self, lagged_events: u64) {
        self.receive_errors.one();
        if lagged_events > 0 {
            self.lagged_events.add(lagged_events);
        }
    }

    /// The counters now. Each is read by itself: the snapshot is not one instant.
    pub fn snapshot(&self) -> ConsumerMetricsSnapshot {
        ConsumerMetricsSnapshot {
            group: self.group.clone(),
            filter: self.filter.clone(),
            delivered: self.delivered.get(),
            redelivered: self.redelivered.get(),
            acked: self.acked.get(),
            nacked: self.nacked.get(),
            terminated: self.terminated.get(),
            released: self.released.get(),
            settle_errors: self.settle_errors.get(),
            dead_lettered: self.dead_lettered.get(),
            given_up: self.given_up.get(),
            receive_errors: self.receive_errors.get(),
            lagged_events: self.lagged_events.get(),
            in_flight: self.in_flight.get(),
            processing: self.processing.get(),
            lag: self.lag.get(),
            process_latency: self.process_latency.snapshot(),
        }
    }
}

impl SettlementObserver for ConsumerMetrics {
    fn begun(&self) {
        self.in_flight.up();
    }

    fn settled(&self, kind: &AckKind, took_effect: bool) {
        let counter = match kind {
            AckKind::Extend => return,
            _ if !took_effect => &self.settle_errors,
            AckKind::Ack => &self.acked,
            AckKind::Nak(_) => &self.nacked,
            AckKind::Term(_) => &self.terminated,
            AckKind::Release => &self.released,
        };
        counter.one();
    }

    fn ended(&self) {
        self.in_flight.down();
    }
}

impl fmt::Debug for ConsumerMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ConsumerMetrics").field(&self.snapshot()).finish()
    }
}

/// An event is being processed as long as this lives.
#[derive(Debug)]
#[must_use = "processing ends when this is dropped"]
pub struct Processing {
    metrics: Arc<ConsumerMetrics>,
    start: Instant,
}

impl Drop for Processing {
    fn drop(&mut self) {
        self.metrics.processing.down();
        self.metrics.process_latency.record(self.start.elapsed());
    }
}

/// The counters of one subscriber and filter at one time.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ConsumerMetricsSnapshot {
    /// The subscriber.
    pub group: String,
    /// The subject filter.
    pub filter: String,
    /// Deliveries, the repeated ones too.
    pub delivered: u64,
    /// Deliveries that were not an event's first.
    pub redelivered: u64,
    /// Acknowledgements that took effect.
    pub acked: u64,
    /// Refusals that took effect.
    pub nacked: u64,
    /// Events that the program ended as not processable.
    pub terminated: u64,
    /// Events given back without an attempt.
    pub released: u64,
    /// Settlements that failed, for instance because the lease was lost.
    pub settle_errors: u64,
    /// Events written to the dead letters.
    pub dead_lettered: u64,
    /// Events given up. Those that are not among the dead-lettered ones are in the log only.
    pub given_up: u64,
    /// Calls for the next event that failed.
    pub receive_errors: u64,
    /// Events that retention dropped before they were delivered.
    pub lagged_events: u64,
    /// Deliveries that the program holds and has not settled now.
    pub in_flight: u64,
    /// Events that a handler works on now.
    pub processing: u64,
    /// Events that waited for this consumer when it was last asked for its lag.
    pub lag: u64,
    /// How long handlers took.
    pub process_latency: LatencySnapshot,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_settle_has_its_counter() {
        let metrics = ConsumerMetrics::new("memory", "g", "events.>");
        let kinds = [AckKind::Ack, AckKind::Nak(None), AckKind::Term(String::new()), AckKind::Release];
        for (times, kind) in (1..).zip(&kinds) {
            for _ in 0..times {
                metrics.settled(kind, true);
            }
            metrics.settled(kind, false);
        }
        let counts = metrics.snapshot();
        assert_eq!(
            (counts.acked, counts.nacked, counts.terminated, counts.released, counts.settle_errors),
            (1, 2, 3, 4, 4)
        );
    }

    #[test]
    fn processing_ends_when_its_guard_is_dropped() {
        let metrics = Arc::new(ConsumerMetrics::new("memory", "g", "events.>"));
        let first = metrics.begin_processing();
        let second = metrics.begin_processing();
        assert_eq!(metrics.snapshot().processing, 2);
        drop((first, second));
        let counts = metrics.snapshot();
        assert_eq!((counts.processing, counts.process_latency.count), (0, 2));
    }
}
