//! Sources: components that create events by themselves.
//!
//! A source produces into a channel. [`SourceRunner`] publishes the events and restarts the source when it fails. This
//! module has [`CronSource`] for schedules, [`ThresholdSource`] for measured values, and with the feature `webhook` a
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
    /// Produces events into `sender` until the source is stopped or the receiver is dropped. Both end with `Ok`. The
    /// future runs as long as the source does, so spawn a task for it.
    ///
    /// The source waits while the channel is full.
    ///
    /// # Errors
    ///
    /// [`EventError::Source`](crate::EventError::Source) if the source cannot continue.
    async fn start(&self, sender: mpsc::Sender<Event>) -> Result<()>;

    /// Stops the source for good, even if it was never started. Does not wait for `start` to return.
    ///
    /// # Errors
    ///
    /// [`EventError::Source`](crate::EventError::Source) if the source cannot be stopped.
    async fn stop(&self) -> Result<()>;

    /// Returns the name of the source, for logs and errors.
    fn name(&self) -> &str;
}

/// A source that turns HTTP requests into events.
#[async_trait]
pub trait WebhookSource: EventSource {
    /// Returns the path on which it takes requests, for instance `/hooks/orders`.
    fn path(&self) -> &str;

    /// Returns the content types that it takes. Default `application/json`.
    fn content_types(&self) -> Vec<String> {
        vec!["application/json".to_owned()]
    }
}

/// A source that creates an event when a measured value passes a threshold.
#[async_trait]
pub trait MetricsSource: EventSource {
    /// Returns the name of the measured metric.
    fn metric_name(&self) -> &str;

    /// Returns the threshold, in the unit of the metric.
    fn threshold(&self) -> f64;
}

/// Switch that stops a source for good.
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

    /// Runs `work` until the switch is set. Returns `None` if the switch is set first, or was set before.
    async fn or<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut stopped = self.0.subscribe();
        tokio::select! {
            biased;
            // Fails only without a sender, and `self` holds the sender.
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
