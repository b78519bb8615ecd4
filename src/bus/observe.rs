//! Polls the provider's health and the lag of its consumers, so that reading metrics never waits for the provider.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::registry::Registry;
use super::{EventBus, answer_within};
use crate::deadline::period;
use crate::error::{EventError, Result};
use crate::metrics::BusMetrics;
use crate::provider::{ConsumerInfo, EventProvider};
use crate::task::OwnedTask;

/// Minimum pause between two observations; each sends the provider two requests.
const SHORTEST_PERIOD: Duration = Duration::from_millis(100);

impl EventBus {
    /// Reads from the provider the lag of the durable consumers that this bus opened, and stores it in their
    /// [metrics](EventBus::telemetry). It waits for the provider. If your metrics are scraped, use
    /// [`observe_every`](EventBus::observe_every), which asks in the background.
    ///
    /// # Errors
    ///
    /// Same as [`consumers`](EventBus::consumers).
    pub async fn observe_lag(&self) -> Result<()> {
        let known = self.consumers().await?;
        note_lag(&self.metrics, &self.registry, &known);
        Ok(())
    }

    /// Observes the provider's health and the lag of the durable consumers that this bus opened, in the background: now
    /// and once per `period`. The [metrics](EventBus::telemetry) hold the last answers, the connection state, and the
    /// time of the last answer; reading them never waits. There is one request at a time, each with the bus's operation
    /// timeout.
    ///
    /// Observation ends when the observer is dropped, or when the bus and its consumers are.
    ///
    /// ```
    /// use std::time::Duration;
    /// use a3s_event::EventBus;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> a3s_event::Result<()> {
    /// let bus = EventBus::connect("memory://").await?;
    /// let _observer = bus.observe_every(Duration::from_secs(15))?;
    /// # while bus.telemetry().snapshot().connected.is_none() { tokio::time::sleep(Duration::from_millis(1)).await; }
    /// // A scrape serves this without asking the provider.
    /// let text = bus.telemetry().snapshot().to_prometheus();
    /// assert!(text.contains("a3s_event_connected{messaging_system=\"memory\"} 1\n"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] for a period shorter than 100 ms.
    ///
    /// # Panics
    ///
    /// If called outside a tokio runtime.
    pub fn observe_every(&self, period: Duration) -> Result<Observer> {
        if period < SHORTEST_PERIOD {
            return Err(EventError::Config(format!(
                "observation period {period:?}: must be at least {SHORTEST_PERIOD:?}"
            )));
        }
        let observing = Observing {
            provider: Arc::clone(&self.provider),
            metrics: Arc::downgrade(&self.metrics),
            registry: Arc::downgrade(&self.registry),
            timeout: self.operation_timeout,
        };
        Ok(Observer { _task: OwnedTask::spawn(observing.run(period)) })
    }
}

/// Observes the provider of a bus until dropped; see [`EventBus::observe_every`].
#[must_use = "nothing is observed once this is dropped"]
pub struct Observer {
    _task: OwnedTask<()>,
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}

struct Observing {
    provider: Arc<dyn EventProvider>,
    /// Weak, because the bus may be dropped.
    metrics: Weak<BusMetrics>,
    registry: Weak<Registry>,
    timeout: Duration,
}

impl Observing {
    async fn run(self, every: Duration) {
        let mut ticks = tokio::time::interval(period(every));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !self.observe().await {
                return;
            }
        }
    }

    /// Returns `false` if the bus and its consumers are gone.
    async fn observe(&self) -> bool {
        let provider = self.provider.name();
        let healthy = answer_within(self.timeout, "health", provider, self.provider.health()).await;
        let known = match &healthy {
            Ok(true) => answer_within(self.timeout, "consumers", provider, self.provider.consumers()).await,
            _ => Ok(Vec::new()),
        };
        let (Some(metrics), Some(registry)) = (self.metrics.upgrade(), self.registry.upgrade()) else {
            return false;
        };
        match (healthy, known) {
            (Ok(true), Ok(known)) => {
                metrics.record_connected(true);
                note_lag(&metrics, &registry, &known);
            }
            (Ok(true), Err(error)) => {
                metrics.record_connected(true);
                if !matches!(error, EventError::Unsupported { .. }) {
                    tracing::debug!(%error, "reading the lag failed");
                }
            }
            (unhealthy, _) => {
                metrics.record_connected(false);
                tracing::debug!(
                    error = unhealthy.err().map(|error| error.to_string()),
                    "the provider is not healthy"
                );
            }
        }
        true
    }
}

fn note_lag(metrics: &BusMetrics, registry: &Registry, known: &[ConsumerInfo]) {
    for consumer in metrics.consumers() {
        let name = registry.consumer_name(consumer.group(), consumer.filter());
        let found = known.iter().find(|known| known.name == name && known.filter == consumer.filter());
        if let Some(lag) = found.map(|found| found.lag) {
            consumer.record_lag(lag);
        }
    }
    metrics.record_observation();
}
