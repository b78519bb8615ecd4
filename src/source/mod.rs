//! Sources: where events come from without somebody publishing them.
//!
//! A source produces into a channel; [`SourceRunner`] publishes what comes out of it, and starts the source again when it
//! fails. Here are [`CronSource`] for schedules, [`ThresholdSource`] for measured values, and with the feature `webhook` a
//! receiver of webhooks.

mod cron;
mod runner;
#[cfg(feature = "cron")]
#[cfg_attr(docsrs, doc(cfg(feature = "cron")))]
mod schedule;
#[cfg(feature = "cron")]
mod scheduled;
mod threshold;
#[cfg(feature = "webhook")]
#[cfg_attr(docsrs, doc(cfg(feature = "webhook")))]
pub mod webhook;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

pub use cron::CronSource;
pub use runner::{SourceHandle, SourceRunner, SourceState, SourceStatus};
#[cfg(feature = "cron")]
#[cfg_attr(docsrs, doc(cfg(feature = "cron")))]
pub use schedule::Schedule;
#[cfg(feature = "cron")]
#[cfg_attr(docsrs, doc(cfg(feature = "cron")))]
pub use scheduled::{MissedTickBehavior, Tick};
pub use threshold::{Direction, ThresholdAlert, ThresholdSource};

use crate::error::Result;
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
    /// [`EventError::Source`](crate::EventError::Source) when the source cannot go on.
    async fn start(&self, sender: mpsc::Sender<Event>) -> Result<()>;

    /// Ends the source for good, also one that was not started yet. Does not wait for `start` to return.
    ///
    /// # Errors
    ///
    /// [`EventError::Source`](crate::EventError::Source) when the source cannot be told.
    async fn stop(&self) -> Result<()>;

    /// Name of the source, for logs and errors.
    fn name(&self) -> &str;
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

/// The switch that ends a source for good.
struct Stop(watch::Sender<bool>);

impl Stop {
    fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    fn now(&self) {
        self.0.send_replace(true);
    }

    fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Works until the switch is set; `None` then, and at once when it was set before.
    async fn or<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut stopped = self.0.subscribe();
        tokio::select! {
            biased;
            // Fails only without a sender, and `self` holds it.
            _ = stopped.wait_for(|stopped| *stopped) => None,
            done = work => Some(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
