//! Fetches for one subscription, never more than there is room for. It retries after errors until the consumer drains.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::health::Part;
use super::queue::{Source, Waiting};
use super::{Command, KeyFn, Runtime};
use crate::backoff::Backoff;
use crate::bus::dead_letter::Fate;
use crate::bus::in_force::InForce;
use crate::bus::open::Opener;
use crate::bus::subscription::{BusSubscription, Incoming};
use crate::error::{EventError, Result};
use crate::provider::Subscription;
use crate::types::SubscriptionFilter;

/// Maximum number of events fetched at a time.
const MAX_BATCH: usize = 128;
/// Timeout of one fetch; the next fetch follows it.
const WAIT: Duration = Duration::from_secs(30);
/// Consecutive errors after which the subscription may be reopened.
const TOLERATED: u64 = 3;
/// Delays after errors.
const FETCH_AGAIN: Backoff = Backoff::exponential(Duration::from_millis(100), Duration::from_secs(30));
/// Age at which a due nacked event was certainly delivered to some member, if the provider has nothing more to deliver.
const CERTAINLY_DUE: Duration = Duration::from_secs(5);

/// Releases events that no worker will handle.
async fn release(batch: Vec<Result<Incoming>>) {
    for incoming in batch.into_iter().flatten() {
        if let Err(error) = incoming.stored.release().await {
            tracing::debug!(%error, "releasing an event failed; it is redelivered when its lease ends");
        }
    }
}

/// Sender of the answer to a lag request.
pub(super) type LagRequest = oneshot::Sender<Result<u64>>;

/// Fetches for one subject of a subscription.
pub(super) struct Fetcher {
    pub(super) runtime: Arc<Runtime>,
    pub(super) opener: Opener,
    pub(super) filter: SubscriptionFilter,
    pub(super) subject: String,
    pub(super) source: Arc<Source>,
    pub(super) key: Option<Arc<KeyFn>>,
    pub(super) subscription: BusSubscription,
    pub(super) in_force: Arc<InForce>,
    pub(super) lag_requests: mpsc::Receiver<LagRequest>,
    /// Sequence of the newest event that was fetched.
    pub(super) newest: u64,
    /// Time when it was first opened, in Unix milliseconds.
    pub(super) opened_at: u64,
    /// Number of consecutive errors.
    pub(super) trouble: u64,
}

/// Next step of a fetcher.
enum Next {
    Fetched {
        asked_for: usize,
        batch: Option<Vec<Result<Incoming>>>,
    },
    /// Read the command again.
    Look,
    Lag(LagRequest),
}

impl Fetcher {
    /// Fetches until the consumer drains. Returns an error that reopening cannot overcome.
    pub(super) async fn run(mut self) -> Result<()> {
        self.bound_queue();
        loop {
            let command = self.runtime.command.current();
            if command >= Command::Drain {
                break;
            }
            match self.next(command).await {
                Next::Look => {}
                Next::Lag(request) => {
                    // The requester may be gone.
                    let _ = request.send(self.subscription.lag().await);
                }
                Next::Fetched { batch: Some(batch), .. }
                    if self.runtime.command.current() == Command::Gone =>
                {
                    release(batch).await;
                }
                Next::Fetched { asked_for, batch: Some(batch) } => self.take(batch, asked_for).await?,
                Next::Fetched { batch: None, .. } => {
                    self.go_on_behind_end("the subscription was closed").await?;
                }
            }
        }
        // Closing flushes it; each later settlement waits for its own confirmation.
        self.in_force.confirm();
        if let Err(error) = self.subscription.close().await {
            self.log_not_closed(&error);
            self.runtime.note_cut_short(error);
        }
        Ok(())
    }

    fn log_not_closed(&self, error: &EventError) {
        tracing::warn!(
            subscriber = self.filter.subscriber_id,
            consumer = self.name(),
            %error,
            "closing the subscription failed; events are redelivered when their leases end"
        );
    }

    /// Waits for the next step. It loses no fetched events.
    async fn next(&mut self, command: Command) -> Next {
        let Self { runtime, subscription, lag_requests, source, .. } = self;
        let fetching = async {
            if command >= Command::Pause {
                return std::future::pending().await;
            }
            let asked_for = runtime.queue.room(source).await.min(MAX_BATCH);
            (asked_for, subscription.next_incoming(asked_for, WAIT).await)
        };
        tokio::select! {
            biased;
            () = runtime.command.differs_from(command) => Next::Look,
            Some(request) = lag_requests.recv() => Next::Lag(request),
            (asked_for, batch) = fetching => Next::Fetched { asked_for, batch },
        }
    }

    /// Queues a fetched batch. An error can only be its last item.
    async fn take(&mut self, batch: Vec<Result<Incoming>>, asked_for: usize) -> Result<()> {
        let leased_at = Instant::now();
        let (mut fetched, mut failed) = (Vec::with_capacity(batch.len()), None);
        for delivered in batch {
            match delivered {
                Ok(incoming) => fetched.push(self.waiting(incoming, leased_at)),
                Err(error) => failed = Some(error),
            }
        }
        let has_all = failed.is_none() && fetched.len() < asked_for;
        self.bound_queue();
        self.runtime.queue.push(fetched);
        if has_all && let Some(due_before) = leased_at.checked_sub(CERTAINLY_DUE) {
            self.runtime.queue.forget_refused(self.source.index, due_before);
        }
        match failed {
            Some(error) => self.overcome(error).await,
            None => {
                self.recovered();
                self.take_limit_off().await
            }
        }
    }

    fn waiting(&mut self, incoming: Incoming, leased_at: Instant) -> Waiting {
        let stream = incoming.stored.stream();
        if *self.source.stream != *stream {
            let letters = Arc::clone(&self.source.letters);
            let Source { index, epoch, .. } = *self.source;
            self.source = Arc::new(Source { index, epoch, stream: stream.into(), letters });
        }
        self.newest = self.newest.max(incoming.stored.sequence());
        let lane = self.key.as_ref().map(|key| match &incoming.content {
            Ok(event) => key(event).into(),
            // Its key is unknown, and no handler receives it.
            Err(_) => "".into(),
        });
        Waiting::new(incoming, Arc::clone(&self.source), lane, leased_at)
    }

    /// Continues after an error, with a delay if that helps.
    async fn overcome(&mut self, error: EventError) -> Result<()> {
        let (subscriber, consumer) = (&self.filter.subscriber_id, self.name());
        match error {
            EventError::Lagged { missed, .. } => {
                self.runtime.stats.missed(missed);
                tracing::error!(
                    subscriber,
                    consumer,
                    missed,
                    "retention dropped events before they were handled"
                );
                Ok(())
            }
            EventError::Undecodable { .. } => {
                tracing::error!(
                    subscriber,
                    consumer,
                    %error,
                    "record given up and lost: no dead-letter handler is set"
                );
                self.runtime.stats.given_up(Fate::Lost);
                self.source.letters.count(Fate::Lost);
                Ok(())
            }
            error if error.is_closed() => self.go_on_behind_end(&error.to_string()).await,
            error => {
                tracing::warn!(subscriber, consumer, %error, "fetching failed; retrying");
                self.failed(&error);
                if self.trouble.is_multiple_of(TOLERATED) {
                    return self.go_on_behind_errors(&error.to_string()).await;
                }
                self.pause().await;
                Ok(())
            }
        }
    }

    /// Removes a delivery limit that another program set meanwhile. The provider would drop an event that reaches it.
    async fn take_limit_off(&mut self) -> Result<()> {
        if self.in_force.max_deliver().is_none() || self.opener.dlq_handler.is_none() {
            return Ok(());
        }
        if let Err(error) = self.subscription.close().await {
            self.log_not_closed(&error);
        }
        self.open_as_it_is().await
    }

    pub(super) fn bound_queue(&self) {
        self.runtime.queue.bound(self.source.index, self.in_force.max_ack_pending());
    }

    /// Records an error.
    pub(super) fn failed(&mut self, error: &EventError) {
        self.trouble += 1;
        self.runtime.health.failed(Part::Fetching(self.source.index), error);
    }

    pub(super) fn recovered(&mut self) {
        self.trouble = 0;
        self.runtime.health.works(Part::Fetching(self.source.index));
    }

    /// Waits longer after each consecutive error, unless the consumer drains.
    pub(super) async fn pause(&mut self) {
        let stop = self.runtime.command.reaches(Command::Drain);
        let _ = tokio::time::timeout(FETCH_AGAIN.delay(self.trouble), stop).await;
    }
}
