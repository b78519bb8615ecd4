//! Instruments that count for the snapshots and, with the feature `metrics`, for the recorder that the program
//! installed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::histogram::{LatencyHistogram, LatencySnapshot};

/// Labels that distinguish the instruments of one name.
pub(super) type Labels<'a> = &'a [(&'static str, &'a str)];

#[cfg(feature = "metrics")]
fn exported(labels: Labels<'_>) -> Vec<metrics::Label> {
    labels.iter().map(|(key, value)| metrics::Label::new(*key, (*value).to_owned())).collect()
}

/// Exported counterpart of a counter that is kept elsewhere.
pub(super) struct ExportedCounter {
    #[cfg(feature = "metrics")]
    counter: metrics::Counter,
}

impl ExportedCounter {
    #[cfg_attr(
        not(feature = "metrics"),
        allow(unused_variables, reason = "only what is exported has a name")
    )]
    pub(super) fn new(name: &'static str, labels: Labels<'_>) -> Self {
        Self {
            #[cfg(feature = "metrics")]
            counter: metrics::counter!(name, exported(labels)),
        }
    }

    #[cfg_attr(
        not(feature = "metrics"),
        allow(unused_variables, clippy::unused_self, reason = "nothing is exported")
    )]
    pub(super) fn add(&self, count: u64) {
        #[cfg(feature = "metrics")]
        self.counter.increment(count);
    }
}

/// Exported counterpart of a total that is counted elsewhere and read from time to time.
pub(super) struct ExportedTotal {
    told: AtomicU64,
    counter: ExportedCounter,
}

impl ExportedTotal {
    pub(super) fn new(name: &'static str, labels: Labels<'_>) -> Self {
        Self { told: AtomicU64::new(0), counter: ExportedCounter::new(name, labels) }
    }

    pub(super) fn set(&self, total: u64) {
        let told = self.told.fetch_max(total, Ordering::Relaxed);
        self.counter.add(total.saturating_sub(told));
    }
}

/// A number that only grows.
pub(super) struct Counter {
    value: AtomicU64,
    exported: ExportedCounter,
}

impl Counter {
    pub(super) fn new(name: &'static str, labels: Labels<'_>) -> Self {
        Self { value: AtomicU64::new(0), exported: ExportedCounter::new(name, labels) }
    }

    pub(super) fn one(&self) {
        self.add(1);
    }

    pub(super) fn add(&self, count: u64) {
        self.value.fetch_add(count, Ordering::Relaxed);
        self.exported.add(count);
    }

    pub(super) fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
pub(super) struct Gauge {
    value: AtomicU64,
    #[cfg(feature = "metrics")]
    exported: metrics::Gauge,
}

impl Gauge {
    #[cfg_attr(
        not(feature = "metrics"),
        allow(unused_variables, reason = "only what is exported has a name")
    )]
    pub(super) fn new(name: &'static str, labels: Labels<'_>) -> Self {
        Self {
            value: AtomicU64::new(0),
            #[cfg(feature = "metrics")]
            exported: metrics::gauge!(name, exported(labels)),
        }
    }

    pub(super) fn up(&self) {
        self.value.fetch_add(1, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        self.exported.increment(1.0);
    }

    pub(super) fn down(&self) {
        self.value.fetch_sub(1, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        self.exported.decrement(1.0);
    }

    pub(super) fn set(&self, value: u64) {
        self.value.store(value, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        self.exported.set(value as f64);
    }

    pub(super) fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// A number that is unknown and not exported before the first observation.
pub(super) struct Observed {
    value: AtomicU64,
    #[cfg(feature = "metrics")]
    name: &'static str,
}

impl Observed {
    const UNKNOWN: u64 = u64::MAX;

    #[cfg_attr(
        not(feature = "metrics"),
        allow(unused_variables, reason = "only what is exported has a name")
    )]
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            value: AtomicU64::new(Self::UNKNOWN),
            #[cfg(feature = "metrics")]
            name,
        }
    }

    #[cfg_attr(
        not(feature = "metrics"),
        allow(unused_variables, reason = "only what is exported has labels")
    )]
    pub(super) fn set(&self, value: u64, labels: Labels<'_>) {
        self.value.store(value, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        metrics::gauge!(self.name, exported(labels)).set(value as f64);
    }

    pub(super) fn get(&self) -> Option<u64> {
        Some(self.value.load(Ordering::Relaxed)).filter(|value| *value != Self::UNKNOWN)
    }
}

/// Records latencies.
pub(super) struct Timer {
    histogram: LatencyHistogram,
    #[cfg(feature = "metrics")]
    exported: metrics::Histogram,
}

impl Timer {
    #[cfg_attr(
        not(feature = "metrics"),
        allow(unused_variables, reason = "only what is exported has a name")
    )]
    pub(super) fn new(name: &'static str, labels: Labels<'_>) -> Self {
        Self {
            histogram: LatencyHistogram::new(),
            #[cfg(feature = "metrics")]
            exported: metrics::histogram!(name, exported(labels)),
        }
    }

    pub(super) fn record(&self, latency: Duration) {
        self.histogram.record(latency);
        #[cfg(feature = "metrics")]
        self.exported.record(latency.as_secs_f64());
    }

    pub(super) fn snapshot(&self) -> LatencySnapshot {
        self.histogram.snapshot()
    }
}
