//! Counters of one subscription.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::histogram::LatencySnapshot;
use super::instrument::{Counter, Gauge, Labels, Timer};
use crate::error::EventError;
use crate::provider::{AckKind, SettlementObserver};
use crate::trace::semconv;

/// Counters of one subscriber and filter on one bus, kept in atomics without a lock.
///
/// The bus counts the deliveries and settlements of its subscriptions, for hand-written loops and for the handler
/// runtime. Other processes that share the durable consumer have counters of their own.
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
    /// Creates counters at zero. With the feature `metrics`, they also count for the recorder that is installed at this
    /// time.
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

    /// Returns the name of the provider.
    pub fn system(&self) -> &str {
        &self.system
    }

    /// Returns the name of the subscriber.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Returns the subject filter.
    pub fn filter(&self) -> &str {
        &self.filter
    }

    /// Counts an event as being processed until the returned guard is dropped, and then records the processing time.
    pub fn begin_processing(self: &Arc<Self>) -> Processing {
        self.processing.up();
        Processing { metrics: Arc::clone(self), start: Instant::now() }
    }

    /// Records how many events wait for this consumer.
    pub fn record_lag(&self, lag: u64) {
        self.lag.set(lag);
    }

    /// Counts an event that was written to the dead letters.
    pub fn record_dead_letter(&self) {
        self.dead_lettered.one();
    }

    /// Counts an event that was given up, with or without a dead letter.
    pub fn record_given_up(&self) {
        self.given_up.one();
    }

    /// Counts a delivery. `attempt` is 1 for the first delivery of an event.
    pub(crate) fn record_delivery(&self, attempt: u64) {
        self.delivered.one();
        if attempt > 1 {
            self.redelivered.one();
        }
    }

    /// Counts a delivery that was acked before it was returned.
    pub(crate) fn record_delivery_and_ack(&self, attempt: u64) {
        self.record_delivery(attempt);
        self.acked.one();
    }

    /// Counts a call for the next event that returned an error. The end of a subscription is not counted.
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

    /// Returns a snapshot of the counters. Each is read separately, so the snapshot is not one consistent instant.
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

/// Guard of an event that is being processed. Processing ends when it is dropped.
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

/// Snapshot of the counters of one subscriber and filter.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ConsumerMetricsSnapshot {
    /// Name of the subscriber.
    pub group: String,
    /// Subject filter.
    pub filter: String,
    /// Number of deliveries, including redeliveries.
    pub delivered: u64,
    /// Number of redeliveries.
    pub redelivered: u64,
    /// Number of acks that took effect.
    pub acked: u64,
    /// Number of naks that took effect.
    pub nacked: u64,
    /// Number of events that the program terminated as not processable.
    pub terminated: u64,
    /// Number of events released for redelivery at once.
    pub released: u64,
    /// Number of settlements that failed, for instance because the lease was lost.
    pub settle_errors: u64,
    /// Number of events written to the dead letters.
    pub dead_lettered: u64,
    /// Number of events given up. Those without a dead letter are only in the log.
    pub given_up: u64,
    /// Number of calls for the next event that failed.
    pub receive_errors: u64,
    /// Number of events that retention dropped before they were delivered.
    pub lagged_events: u64,
    /// Number of deliveries that the program holds and has not settled.
    pub in_flight: u64,
    /// Number of events that handlers are processing.
    pub processing: u64,
    /// Number of events that waited for this consumer when the provider last reported its lag.
    pub lag: u64,
    /// Processing time of handlers.
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
