//! Metrics of a bus: plain atomics, without a lock on the path of an event and without a global registry.
//!
//! [`EventMetrics`] holds the counters of earlier versions. [`BusMetrics`], which
//! [`EventBus::telemetry`](crate::EventBus::telemetry) returns, also has latency histograms and the counters of each
//! subscription. A snapshot can be serialized or written in the Prometheus text format. With the feature `metrics`, the
//! same numbers go to the recorder of the `metrics` facade.

mod bus;
mod consumer;
mod histogram;
mod instrument;
#[cfg(test)]
mod page;
mod prometheus;

pub use bus::{BusMetrics, BusMetricsSnapshot};
pub use consumer::{ConsumerMetrics, ConsumerMetricsSnapshot, Processing};
pub use histogram::{LatencyBucket, LatencyHistogram, LatencySnapshot};
pub use prometheus::PROMETHEUS_CONTENT_TYPE;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Counters of one bus. Reading them never blocks a publisher.
///
/// ```
/// use a3s_event::metrics::EventMetrics;
///
/// let metrics = EventMetrics::new();
/// metrics.record_publish(std::time::Instant::now());
/// assert_eq!(metrics.snapshot().publish_count, 1);
/// ```
#[derive(Debug, Default)]
pub struct EventMetrics {
    /// Number of successful publishes.
    pub publish_count: AtomicU64,
    /// Number of failed publishes, without those that a schema refused.
    pub publish_errors: AtomicU64,
    /// Number of subscriptions registered or replaced: one per call of
    /// [`update_subscription`](crate::EventBus::update_subscription).
    pub subscribe_count: AtomicU64,
    /// Number of calls of [`remove_subscription`](crate::EventBus::remove_subscription).
    pub unsubscribe_count: AtomicU64,
    /// Number of dead-lettered events.
    pub dlq_count: AtomicU64,
    /// Number of payloads refused by their schema.
    pub validation_errors: AtomicU64,
    /// Number of encrypted payloads.
    pub encrypt_count: AtomicU64,
    /// Number of decrypted payloads.
    pub decrypt_count: AtomicU64,
    /// Sum of the latencies of successful publishes, in microseconds.
    pub publish_latency_us: AtomicU64,
    /// Maximum latency of a successful publish, in microseconds.
    pub publish_max_latency_us: AtomicU64,
}

impl EventMetrics {
    /// Creates counters at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a successful publish that began at `start`.
    pub fn record_publish(&self, start: Instant) {
        self.record_publish_latency(start.elapsed());
    }

    fn record_publish_latency(&self, latency: Duration) {
        let latency_us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        count(&self.publish_count);
        self.publish_latency_us.fetch_add(latency_us, Ordering::Relaxed);
        self.publish_max_latency_us.fetch_max(latency_us, Ordering::Relaxed);
    }

    /// Counts a failed publish.
    pub fn record_publish_error(&self) {
        count(&self.publish_errors);
    }

    /// Counts a registered subscription.
    pub fn record_subscribe(&self) {
        count(&self.subscribe_count);
    }

    /// Counts a removed subscription.
    pub fn record_unsubscribe(&self) {
        count(&self.unsubscribe_count);
    }

    /// Counts a dead-lettered event.
    pub fn record_dlq(&self) {
        count(&self.dlq_count);
    }

    /// Counts a payload that its schema refused.
    pub fn record_validation_error(&self) {
        count(&self.validation_errors);
    }

    /// Counts an encrypted payload.
    pub fn record_encrypt(&self) {
        count(&self.encrypt_count);
    }

    /// Counts a decrypted payload.
    pub fn record_decrypt(&self) {
        count(&self.decrypt_count);
    }

    /// Returns a snapshot of the counters. Each is read separately, so the snapshot is not one consistent instant.
    pub fn snapshot(&self) -> MetricsSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let publish_count = read(&self.publish_count);
        MetricsSnapshot {
            publish_count,
            publish_errors: read(&self.publish_errors),
            subscribe_count: read(&self.subscribe_count),
            unsubscribe_count: read(&self.unsubscribe_count),
            dlq_count: read(&self.dlq_count),
            validation_errors: read(&self.validation_errors),
            encrypt_count: read(&self.encrypt_count),
            decrypt_count: read(&self.decrypt_count),
            avg_publish_latency_us: read(&self.publish_latency_us).checked_div(publish_count).unwrap_or(0),
            max_publish_latency_us: read(&self.publish_max_latency_us),
        }
    }

    /// Sets all counters to zero.
    pub fn reset(&self) {
        for counter in [
            &self.publish_count,
            &self.publish_errors,
            &self.subscribe_count,
            &self.unsubscribe_count,
            &self.dlq_count,
            &self.validation_errors,
            &self.encrypt_count,
            &self.decrypt_count,
            &self.publish_latency_us,
            &self.publish_max_latency_us,
        ] {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Snapshot of the counters of [`EventMetrics`].
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricsSnapshot {
    /// Number of successful publishes.
    pub publish_count: u64,
    /// Number of failed publishes, without those that a schema refused.
    pub publish_errors: u64,
    /// Number of subscriptions registered or replaced: one per call of
    /// [`update_subscription`](crate::EventBus::update_subscription).
    pub subscribe_count: u64,
    /// Number of calls of [`remove_subscription`](crate::EventBus::remove_subscription).
    pub unsubscribe_count: u64,
    /// Number of dead-lettered events.
    pub dlq_count: u64,
    /// Number of payloads refused by their schema.
    pub validation_errors: u64,
    /// Number of encrypted payloads.
    pub encrypt_count: u64,
    /// Number of decrypted payloads.
    pub decrypt_count: u64,
    /// Average latency of successful publishes in microseconds; 0 if there were none.
    pub avg_publish_latency_us: u64,
    /// Maximum latency of a successful publish in microseconds.
    pub max_publish_latency_us: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recorder_moves_its_own_counter() {
        let metrics = EventMetrics::new();
        metrics.record_publish_error();
        metrics.record_subscribe();
        metrics.record_unsubscribe();
        metrics.record_dlq();
        metrics.record_validation_error();
        metrics.record_encrypt();
        metrics.record_decrypt();
        assert_eq!(
            serde_json::to_value(metrics.snapshot()).unwrap(),
            serde_json::json!({
                "publishCount": 0, "publishErrors": 1, "subscribeCount": 1, "unsubscribeCount": 1, "dlqCount": 1,
                "validationErrors": 1, "encryptCount": 1, "decryptCount": 1, "avgPublishLatencyUs": 0,
                "maxPublishLatencyUs": 0,
            })
        );
        metrics.reset();
        assert_eq!(metrics.snapshot().publish_errors, 0);
    }

    #[test]
    fn latency_is_averaged_and_its_maximum_kept() {
        let metrics = EventMetrics::new();
        let now = Instant::now();
        metrics.record_publish(now.checked_sub(Duration::from_millis(10)).unwrap());
        metrics.record_publish(now);
        let snapshot = metrics.snapshot();
        assert_eq!(snapshot.publish_count, 2);
        assert!(snapshot.max_publish_latency_us >= 10_000);
        assert!(
            snapshot.avg_publish_latency_us >= 5_000
                && snapshot.avg_publish_latency_us < snapshot.max_publish_latency_us
        );
    }

    #[test]
    fn counters_are_exact_under_contention() {
        let metrics = EventMetrics::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| metrics.record_publish(Instant::now())));
            }
        });
        assert_eq!(metrics.snapshot().publish_count, 4_000);
    }
}
