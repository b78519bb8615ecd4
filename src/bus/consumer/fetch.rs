//! Fetching for one subscription: never more than there is room for, and for ever, whatever goes wrong on the way.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::policy::Backoff;
use super::queue::{Origin, Waiting};
use super::{Command, KeyFn, Runtime, told};
use crate::bus::open::Opener;
use crate::bus::subscription::{BusSubscription, Incoming};
use crate::error::{ErrorKind, EventError, Result};
use crate::provider::Subscription;
use crate::types::{DeliverPolicy, SubscriptionFilter};

/// Most events fetched at a time.
const MAX_BATCH: usize = 128;
/// How long one call waits for an event; then the next one does.
const WAIT: Duration = Duration::from_secs(30);
/// Errors in a row after which the subscription is opened again.
const TOLERATED: u64 = 3;

/// Where the lag is to be sent.
pub(super) type LagRequest = oneshot::Sender<Result<u64>>;

/// Fetches for one subject of a subscription.
pub(super) struct Fetcher {
    pub(super) runtime: Arc<Runtime>,
    pub(super) opener: Opener,
    pub(super) filter: SubscriptionFilter,
    pub(super) subject: String,
    pub(super) origin: Arc<Origin>,
    pub(super) key: Option<Arc<KeyFn>>,
    pub(super) subscription: BusSubscription,
    pub(super) command: watch::Receiver<Command>,
    pub(super) lag_requests: mpsc::Receiver<LagRequest>,
    /// The newest event that was fetched.
    pub(super) newest: u64,
    /// How often in a row something went wrong.
    pub(super) trouble: u64,
}

/// What to do next.
enum Next {
    Fetched(Option<Vec<Result<Incoming>>>),
    /// Look at the command again.
    Look,
    Lag(LagRequest),
}

impl Fetcher {
    /// Fetches until the consumer drains. An error is one that opening again cannot overcome.
    pub(super) async fn run(mut self) -> Result<()> {
        loop {
            let command = *self.command.borrow_and_update();
            if command >= Command::Drain {
                break;
            }
            match self.next(command == Command::Pause).await {
                Next::Look => {}
                Next::Lag(request) => {
                    // Whoever asked may have gone.
                    let _ = request.send(self.subscription.lag().await);
                }
                Next::Fetched(Some(batch)) => self.take(batch).await?,
                Next::Fetched(None) => self.open_again("it was closed").await?,
            }
        }
        if let Err(error) = self.subscription.close().await {
            tracing::warn!(subject = self.subject, %error, "subscription not closed; leases decide");
        }
        Ok(())
    }

    /// Waits for the next thing to do. Nothing fetched is lost, whatever comes first.
    async fn next(&mut self, paused: bool) -> Next {
        let Self { runtime, subscription, command, lag_requests, origin, .. } = self;
        let fetching = async {
            if paused {
                return std::future::pending().await;
            }
            let room = runtime.queue.room(origin.source).await;
            subscription.next_incoming(room.min(MAX_BATCH), WAIT).await
        };
        tokio::select! {
            biased;
            changed = command.changed() => match changed {
                Ok(()) => Next::Look,
                Err(_gone) => std::future::pending().await,
            },
            Some(request) = lag_requests.recv() => Next::Lag(request),
            batch = fetching => Next::Fetched(batch),
        }
    }

    /// Queues what was fetched; an error is the last of a batch.
    async fn take(&mut self, batch: Vec<Result<Incoming>>) -> Result<()> {
        let leased_at = Instant::now();
        let (mut fetched, mut failed) = (Vec::with_capacity(batch.len()), None);
        for delivered in batch {
            match delivered {
                Ok(incoming) => fetched.push(self.waiting(incoming, leased_at)),
                Err(error) => failed = Some(error),
            }
        }
        self.runtime.queue.push(fetched);
        match failed {
            Some(error) => self.overcome(error).await,
            None => {
                self.trouble = 0;
                Ok(())
            }
        }
    }

    fn waiting(&mut self, incoming: Incoming, leased_at: Instant) -> Waiting {
        let stream = incoming.stored.stream();
        if *self.origin.stream != *stream {
            let letters = Arc::clone(&self.origin.letters);
            self.origin = Arc::new(Origin { source: self.origin.source, stream: stream.into(), letters });
        }
        self.newest = self.newest.max(incoming.stored.sequence());
        let lane = self.key.as_ref().map(|key| match &incoming.content {
            Ok(event) => key(event).into(),
            // Nobody can tell its key, and nobody handles it.
            Err(_) => "".into(),
        });
        Waiting { incoming, origin: Arc::clone(&self.origin), lane, leased_at }
    }

    /// Goes on behind an error, after a while if that helps.
    async fn overcome(&mut self, error: EventError) -> Result<()> {
        let subject = &self.subject;
        match error {
            EventError::Lagged { missed, .. } => {
                self.runtime.stats.missed(missed);
                tracing::error!(subject, missed, "retention dropped events before they were handled");
                Ok(())
            }
            EventError::Undecodable { .. } => {
                tracing::error!(subject, %error, "record skipped; there is no dead-letter handler to keep it");
                Ok(())
            }
            error if error.is_closed() => self.open_again(&error.to_string()).await,
            error => {
                self.trouble += 1;
                tracing::warn!(subject, %error, "fetching failed; trying again");
                if self.trouble.is_multiple_of(TOLERATED) {
                    return self.open_again(&error.to_string()).await;
                }
                self.pause().await;
                Ok(())
            }
        }
    }

    /// Opens the subscription again, as often as it takes, unless no repetition can help.
    async fn open_again(&mut self, why: &str) -> Result<()> {
        tracing::warn!(subject = self.subject, why, "subscription ended; opening it again");
        if !self.filter.durable && self.newest > 0 {
            // A new ephemeral consumer goes on where the lost one was.
            let options = self.filter.options.get_or_insert_default();
            options.deliver_policy = DeliverPolicy::ByStartSequence { sequence: self.newest + 1 };
        }
        while *self.command.borrow() < Command::Drain {
            self.trouble += 1;
            if self.trouble > 1 {
                self.pause().await;
            }
            match self.opener.open_incoming(&self.filter, &self.subject, self.runtime.attempts).await {
                Ok(subscription) => {
                    self.origin = Arc::new(Origin {
                        source: self.origin.source,
                        stream: Arc::clone(&self.origin.stream),
                        letters: Arc::clone(subscription.letters()),
                    });
                    self.subscription = subscription;
                    return Ok(());
                }
                Err(error) if is_permanent(&error) => return Err(error),
                Err(error) => tracing::warn!(subject = self.subject, %error, "subscription not opened"),
            }
        }
        Ok(())
    }

    /// Waits longer each time something goes wrong, unless the consumer drains.
    async fn pause(&mut self) {
        let delay =
            Backoff::exponential(Duration::from_millis(100), Duration::from_secs(30)).delay(self.trouble);
        let _ = tokio::time::timeout(delay, told(&mut self.command, Command::Drain)).await;
    }
}

/// Whether opening again can never help.
fn is_permanent(error: &EventError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Closed
            | ErrorKind::Conflict
            | ErrorKind::Config
            | ErrorKind::InvalidInput
            | ErrorKind::Unsupported
    )
}
