//! All metrics of one bus.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, RwLock};
use std::time::Instant;

use serde::Serialize;

use super::consumer::{ConsumerMetrics, ConsumerMetricsSnapshot};
use super::histogram::LatencySnapshot;
use super::instrument::{ExportedCounter, ExportedTotal, Labels, Observed, Timer};
use super::{EventMetrics, MetricsSnapshot, prometheus};
use crate::clock::unix_millis;
use crate::poison::IgnorePoison;
use crate::provider::AckFailures;
use crate::trace::semconv;

/// The metrics of one bus: the [`EventMetrics`] of earlier versions, the publish latency, and the counters of each
/// subscription.
///
/// With the feature `metrics`, the same numbers also go to the recorder of the `metrics` facade. A bus uses the
/// recorder that is installed when the bus is created, and a subscription the one that is installed when it is opened.
/// Install the recorder first.
///
/// ```
/// use a3s_event::EventBus;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> a3s_event::Result<()> {
/// let bus = EventBus::connect("memory://").await?;
/// bus.publish("market", "forex", "", "doc", serde_json::json!(1)).await?;
/// let snapshot = bus.telemetry().snapshot();
/// assert_eq!(snapshot.publish_latency.count, 1);
/// assert!(snapshot.to_prometheus().contains("a3s_event_published_total{messaging_system=\"memory\"} 1\n"));
/// # Ok(())
/// # }
/// ```
pub struct BusMetrics {
    system: String,
    events: EventMetrics,
    publish_latency: Timer,
    exported: Exported,
    /// Ack failures that the provider counts.
    ack_failures: Option<Arc<AckFailures>>,
    acks_lost: ExportedTotal,
    stale_acks: ExportedTotal,
    consumers: RwLock<BTreeMap<(String, String), Arc<ConsumerMetrics>>>,
    connected: Observed,
    observed_at: Observed,
}

/// Exported counterparts of the counters of [`EventMetrics`].
struct Exported {
    sent: ExportedCounter,
    publish_errors: ExportedCounter,
    subscribes: ExportedCounter,
    unsubscribes: ExportedCounter,
    dead_letters: ExportedCounter,
    validation_errors: ExportedCounter,
    encrypts: ExportedCounter,
    decrypts: ExportedCounter,
}

impl BusMetrics {
    /// Creates metrics at zero for a bus over the provider with this name.
    pub fn new(system: &str) -> Self {
        let labels: Labels<'_> = &[(semconv::MESSAGING_SYSTEM, system)];
        let counter = |name| ExportedCounter::new(name, labels);
        Self {
            system: system.to_owned(),
            events: EventMetrics::new(),
            publish_latency: Timer::new(
                semconv::MESSAGING_CLIENT_OPERATION_DURATION,
                &[(semconv::MESSAGING_SYSTEM, system), (semconv::MESSAGING_OPERATION_NAME, "publish")],
            ),
            exported: Exported {
                sent: counter(semconv::MESSAGING_CLIENT_SENT_MESSAGES),
                publish_errors: counter("a3s_event.publish_errors"),
                subscribes: counter("a3s_event.subscribes"),
                unsubscribes: counter("a3s_event.unsubscribes"),
                dead_letters: counter("a3s_event.dead_letters"),
                validation_errors: counter("a3s_event.validation_errors"),
                encrypts: counter("a3s_event.encrypts"),
                decrypts: counter("a3s_event.decrypts"),
            },
            ack_failures: None,
            acks_lost: ExportedTotal::new("a3s_event.acks_lost", labels),
            stale_acks: ExportedTotal::new("a3s_event.stale_acks", labels),
            consumers: RwLock::default(),
            connected: Observed::new("a3s_event.connected"),
            observed_at: Observed::new("a3s_event.observed_at"),
        }
    }

    /// Adds the ack failures that the provider counts.
    pub(crate) fn with_ack_failures(mut self, failures: Option<Arc<AckFailures>>) -> Self {
        self.ack_failures = failures;
        self
    }

    /// Returns the counters of earlier versions.
    pub fn events(&self) -> &EventMetrics {
        &self.events
    }

    /// Counts a successful publish that began at `start`.
    pub fn record_publish(&self, start: Instant) {
        let latency = start.elapsed();
        self.events.record_publish_latency(latency);
        self.publish_latency.record(latency);
        self.exported.sent.add(1);
    }

    pub(crate) fn record_publish_error(&self) {
        self.events.record_publish_error();
        self.exported.publish_errors.add(1);
    }

    pub(crate) fn record_subscribe(&self) {
        self.events.record_subscribe();
        self.exported.subscribes.add(1);
    }

    pub(crate) fn record_unsubscribe(&self) {
        self.events.record_unsubscribe();
        self.exported.unsubscribes.add(1);
    }

    pub(crate) fn record_dlq(&self) {
        self.events.record_dlq();
        self.exported.dead_letters.add(1);
    }

    pub(crate) fn record_validation_error(&self) {
        self.events.record_validation_error();
        self.exported.validation_errors.add(1);
    }

    pub(crate) fn record_encrypt(&self) {
        self.events.record_encrypt();
        self.exported.encrypts.add(1);
    }

    pub(crate) fn record_decrypt(&self) {
        self.events.record_decrypt();
        self.exported.decrypts.add(1);
    }

    /// Records whether the provider is healthy.
    pub(crate) fn record_connected(&self, connected: bool) {
        self.connected.set(u64::from(connected), &[(semconv::MESSAGING_SYSTEM, &self.system)]);
    }

    /// Records that the provider reported the lag of its consumers now.
    pub(crate) fn record_observation(&self) {
        let seconds = unix_millis() / 1_000;
        self.observed_at.set(seconds, &[(semconv::MESSAGING_SYSTEM, &self.system)]);
        self.ack_failures();
    }

    /// Returns the numbers of lost and of late acks, and passes them on to the recorder.
    fn ack_failures(&self) -> (u64, u64) {
        let Some(failures) = &self.ack_failures else { return (0, 0) };
        let (lost, stale) = (failures.lost(), failures.stale());
        self.acks_lost.set(lost);
        self.stale_acks.set(stale);
        (lost, stale)
    }

    /// Returns the counters of a subscriber and filter, and creates them at zero if there are none.
    pub(crate) fn consumer(&self, group: &str, filter: &str) -> Arc<ConsumerMetrics> {
        let mut consumers = self.consumers.write().ignore_poison();
        let new = || Arc::new(ConsumerMetrics::new(&self.system, group, filter));
        Arc::clone(consumers.entry((group.to_owned(), filter.to_owned())).or_insert_with(new))
    }

    /// Returns the counters of every subscription that was opened and not removed, ordered by subscriber and filter.
    pub fn consumers(&self) -> Vec<Arc<ConsumerMetrics>> {
        let consumers = self.consumers.read().ignore_poison();
        consumers.values().map(Arc::clone).collect()
    }

    /// Drops the counters of a removed subscriber, so that short-lived subscribers do not accumulate.
    pub(crate) fn forget(&self, group: &str) {
        let mut consumers = self.consumers.write().ignore_poison();
        consumers.retain(|(known, _), _| known != group);
    }

    /// Returns a snapshot of all metrics. Each number is read separately, so the snapshot is not one consistent
    /// instant.
    pub fn snapshot(&self) -> BusMetricsSnapshot {
        let (acks_lost, stale_acks) = self.ack_failures();
        BusMetricsSnapshot {
            system: self.system.clone(),
            events: self.events.snapshot(),
            publish_latency: self.publish_latency.snapshot(),
            consumers: self.consumers().iter().map(|consumer| consumer.snapshot()).collect(),
            connected: self.connected.get().map(|connected| connected > 0),
            observed_at: self.observed_at.get(),
            acks_lost,
            stale_acks,
        }
    }
}

impl fmt::Debug for BusMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BusMetrics").field(&self.snapshot()).finish()
    }
}

/// Snapshot of the metrics of one bus.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct BusMetricsSnapshot {
    /// Name of the provider.
    pub system: String,
    /// Counters of earlier versions.
    pub events: MetricsSnapshot,
    /// Latency of successful publishes, from the call until the event is stored.
    pub publish_latency: LatencySnapshot,
    /// Snapshots of the subscriptions, ordered by subscriber and filter.
    pub consumers: Vec<ConsumerMetricsSnapshot>,
    /// If true, the provider was healthy when it was last [observed](crate::EventBus::observe_every); `None` before the
    /// first observation.
    pub connected: Option<bool>,
    /// Unix time in seconds of the provider's last report of its consumers' lag; `None` before the first report. The
    /// lag of each consumer is as old as this time.
    pub observed_at: Option<u64>,
    /// Number of acks that the provider sent and that were [lost](AckFailures::lost).
    pub acks_lost: u64,
    /// Number of acks that the provider sent and that came [too late](AckFailures::stale).
    pub stale_acks: u64,
}

impl BusMetricsSnapshot {
    /// Returns the metrics in the Prometheus text format, version 0.0.4. Serve the text as
    /// [`PROMETHEUS_CONTENT_TYPE`](super::PROMETHEUS_CONTENT_TYPE).
    pub fn to_prometheus(&self) -> String {
        prometheus::exposition(self)
    }
}
