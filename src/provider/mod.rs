//! The contract that backends implement, and the backends.
//!
//! [`EventProvider`] stores and serves events, [`Subscription`] hands them out, [`Capabilities`] says which promises a
//! provider honours; the others are refused, never ignored. The promises themselves are in
//! [the delivery contract](crate::docs::delivery). A provider is done when it passes the conformance kit; see
//! [writing a provider](crate::docs::writing_a_provider).

mod ack;
mod ack_failures;
mod capability;
mod delivery;
pub mod driver;
pub mod group;
mod isolation;
pub mod members;
pub mod memory;
#[cfg(feature = "nats")]
#[cfg_attr(docsrs, doc(cfg(feature = "nats")))]
pub mod nats;
mod position;
mod query;
mod receipt;
pub mod receiver;
mod registry;
pub mod settings;
#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
pub mod sqlite;
pub mod support;
pub mod validate;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use ack::{AckFuture, AckHandler, AckKind, Settlement};
pub(crate) use ack::{Acker, AlreadyAcked, SettlementObserver};
pub use ack_failures::AckFailures;
pub use capability::{Capabilities, Durability, Support};
pub use delivery::{Delivery, PendingEvent, UndecodableRecord};
pub use isolation::Isolation;
pub use position::{ConsumerPosition, SubscriptionEnd};
pub use query::{ConsumerInfo, HistoryPage, HistoryQuery, StoredEvent, StreamSummary, UnreadableRecord};
pub use receipt::PublishReceipt;
pub use registry::{ProviderRegistry, ProviderUrl, Scheme};

use self::support::unsupported;
use crate::error::Result;
use crate::task::poll_once;
use crate::types::{Event, PublishOptions, ReceivedEvent, SubscribeOptions};

/// Deadline of a provider's call when nothing else was said. The bus's own deadline is longer: it is for providers that
/// hang.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// How many acks may be on their way unless configured otherwise.
pub const DEFAULT_MAX_UNCONFIRMED_ACKS: usize = 1_000;

/// A backend: it stores events and hands them out.
///
/// Implementors write the required methods; everything else has a default that is honest: what a provider does not
/// implement it refuses or does one by one. Methods take `&self` and are called from many tasks at once. No method may
/// wait without a deadline.
///
/// # Contract
///
/// The delivery contract in [`docs::delivery`](crate::docs::delivery) binds every implementation. In short: a publish
/// that returned is stored; subjects and filters are checked before any I/O; first deliveries come in sequence order;
/// what is not settled comes again.
#[async_trait]
pub trait EventProvider: Send + Sync {
    /// Stores one event and returns its sequence, which is greater than that of every publish acknowledged before.
    ///
    /// # Errors
    ///
    /// [`InvalidSubject`](crate::EventError::InvalidSubject), [`InvalidEvent`](crate::EventError::InvalidEvent) and
    /// [`TooLarge`](crate::EventError::TooLarge) before any I/O; otherwise the backend's error, which says through
    /// [`may_be_stored`](crate::EventError::may_be_stored) whether the event may have been stored all the same.
    async fn publish(&self, event: &Event) -> Result<u64>;

    /// Opens the durable consumer `consumer_name`, creating it with default options when it does not exist. Everyone
    /// who opens the same name shares the work. An existing consumer keeps its settings and its position.
    ///
    /// Needs the capability `durable`; sharing needs `shared_consumers`.
    ///
    /// # Errors
    ///
    /// [`InvalidName`](crate::EventError::InvalidName) and [`InvalidSubject`](crate::EventError::InvalidSubject) before
    /// any I/O; [`Conflict`](crate::EventError::Conflict) when the consumer has another filter.
    async fn subscribe_durable(
        &self,
        consumer_name: &str,
        filter_subject: &str,
    ) -> Result<Box<dyn Subscription>>;

    /// Opens an ephemeral consumer: private, starting with everything retained, gone when dropped.
    ///
    /// # Errors
    ///
    /// [`InvalidSubject`](crate::EventError::InvalidSubject) before any I/O; otherwise the backend's error.
    async fn subscribe(&self, filter_subject: &str) -> Result<Box<dyn Subscription>>;

    /// Exactly the newest `limit` stored events that match, newest first; everything matches `None`. Leaves no consumer
    /// behind and does not wait when there are fewer.
    ///
    /// # Errors
    ///
    /// [`InvalidSubject`](crate::EventError::InvalidSubject) before any I/O; otherwise the backend's error.
    async fn history(&self, filter_subject: Option<&str>, limit: usize) -> Result<Vec<Event>>;

    /// Forgets a durable consumer and its position; `Ok` when there is none. Its open subscriptions end.
    ///
    /// # Errors
    ///
    /// The backend's error.
    async fn unsubscribe(&self, consumer_name: &str) -> Result<()>;

    /// Counts of the stream, in time that does not depend on how much is stored.
    ///
    /// # Errors
    ///
    /// The backend's error.
    async fn info(&self) -> Result<ProviderInfo>;

    /// Name of the provider, for instance `memory`.
    fn name(&self) -> &str;

    /// What every subject of the stream begins with.
    fn subject_prefix(&self) -> &str {
        "events"
    }

    /// The subject of a topic in a category. Never fails and passes wildcards through, so it builds filters too; the
    /// result is checked when it is used.
    fn build_subject(&self, category: &str, topic: &str) -> String {
        format!("{}.{category}.{topic}", self.subject_prefix())
    }

    /// The filter of everything in a category.
    fn category_subject(&self, category: &str) -> String {
        format!("{}.{category}.>", self.subject_prefix())
    }

    /// What the provider declares about itself. The default declares nothing.
    fn capabilities(&self) -> Capabilities {
        Capabilities::unknown()
    }

    /// Stores one event with options.
    ///
    /// The default refuses options out of range and those that [`capabilities`](EventProvider::capabilities) declares
    /// absent, and otherwise publishes without them.
    ///
    /// # Errors
    ///
    /// As [`publish`](EventProvider::publish); [`Unsupported`](crate::EventError::Unsupported) for an option declared
    /// absent; [`Conflict`](crate::EventError::Conflict) when `expected_sequence` is not the stream's last sequence.
    async fn publish_with_options(&self, event: &Event, opts: &PublishOptions) -> Result<u64> {
        validate::validate_publish_options(opts)?;
        self.capabilities().check_publish(self.name(), opts)?;
        self.publish(event).await
    }

    /// Stores one event with options, and tells a duplicate from a first publish.
    ///
    /// The default calls [`publish_with_options`](EventProvider::publish_with_options) and reports no duplicate; a provider
    /// that declares the capability `dedup` implements this method.
    ///
    /// # Errors
    ///
    /// As [`publish_with_options`](EventProvider::publish_with_options).
    async fn publish_with_receipt(&self, event: &Event, opts: &PublishOptions) -> Result<PublishReceipt> {
        self.publish_with_options(event, opts).await.map(PublishReceipt::stored)
    }

    /// Stores many events and returns one result per event, in order. An event that fails does not stop the ones behind
    /// it. Needs the capability `batch_publish` to be more than one publish after the other, which is the default.
    async fn publish_batch(&self, batch: &[PublishRequest<'_>]) -> Vec<Result<PublishReceipt>> {
        let mut results = Vec::with_capacity(batch.len());
        for request in batch {
            results.push(self.publish_with_receipt(request.event, &request.options).await);
        }
        results
    }

    /// Opens a durable consumer with options. Where the consumer exists, legal changes are applied and others refused.
    ///
    /// # Errors
    ///
    /// As [`subscribe_durable`](EventProvider::subscribe_durable); [`Config`](crate::EventError::Config) for an option
    /// out of range; [`Conflict`](crate::EventError::Conflict) that names the field for a change that is not legal
    /// (filter and start policy); [`Unsupported`](crate::EventError::Unsupported) for an option declared absent.
    async fn subscribe_durable_with_options(
        &self,
        consumer_name: &str,
        filter_subject: &str,
        opts: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        self.capabilities().check_subscribe(self.name(), opts)?;
        group::ConsumerConfig::new(filter_subject, opts)?;
        self.subscribe_durable(consumer_name, filter_subject).await
    }

    /// Opens an ephemeral consumer with options.
    ///
    /// # Errors
    ///
    /// As [`subscribe`](EventProvider::subscribe) and
    /// [`subscribe_durable_with_options`](EventProvider::subscribe_durable_with_options).
    async fn subscribe_with_options(
        &self,
        filter_subject: &str,
        opts: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        self.capabilities().check_subscribe(self.name(), opts)?;
        group::ConsumerConfig::new(filter_subject, opts)?;
        self.subscribe(filter_subject).await
    }

    /// Reads stored events by filter, sequence and time, newest first. The page names every record in its range that cannot
    /// be read as an event, and says where to go on. Needs the capability `history_query`.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::EventError::Unsupported) without the capability; otherwise as
    /// [`history`](EventProvider::history).
    async fn query_page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        let _ = query;
        Err(unsupported("query", self.name()))
    }

    /// Exactly the newest events that a query asks for, from as many [pages](EventProvider::query_page) as it takes. Records
    /// that cannot be read are left out; only a page names them. Needs the capability `history_query`.
    ///
    /// # Errors
    ///
    /// As [`query_page`](EventProvider::query_page).
    async fn query(&self, query: &HistoryQuery) -> Result<Vec<StoredEvent>> {
        all_pages(query.clone(), |query| async move { self.query_page(&query).await }).await
    }

    /// Moves a durable consumer to another position. What was delivered and not settled is forgotten: a settlement of it
    /// is refused. Open subscriptions stay open and go on from the new position.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::EventError::Unsupported) by default, and where a provider cannot move a consumer that has this
    /// start policy, which stays as it is then; [`NotFound`](crate::EventError::NotFound) when there is
    /// no durable consumer of this name; otherwise the backend's error.
    async fn reset_consumer(&self, consumer_name: &str, position: ConsumerPosition) -> Result<()> {
        let _ = (consumer_name, position);
        Err(unsupported("reset_consumer", self.name()))
    }

    /// Position, lag and pending events of every consumer. Needs the capability `consumer_info`.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::EventError::Unsupported) without the capability; otherwise the backend's error.
    async fn consumers(&self) -> Result<Vec<ConsumerInfo>> {
        Err(unsupported("consumers", self.name()))
    }

    /// The streams that this connection can see, sorted by name.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::EventError::Unsupported) by default: then there is the provider's own, of which
    /// [`info`](EventProvider::info) tells. Otherwise the backend's error.
    async fn streams(&self) -> Result<Vec<StreamSummary>> {
        Err(unsupported("streams", self.name()))
    }

    /// Deletes the provider's stream with all its events and consumers; open subscriptions end. What is published
    /// afterwards fails, or makes a new stream where the provider does so.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::EventError::Unsupported) by default; otherwise the backend's error.
    async fn delete_stream(&self) -> Result<()> {
        Err(unsupported("delete_stream", self.name()))
    }

    /// Deletes the stored events that the filter matches, or all of them without one, and returns how many there were.
    /// Consumers go on behind them, as behind what retention took.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::EventError::Unsupported) by default; an error for a filter that is none; otherwise the
    /// backend's error.
    async fn purge(&self, filter_subject: Option<&str>) -> Result<u64> {
        let _ = filter_subject;
        Err(unsupported("purge", self.name()))
    }

    /// Whether the backend makes progress.
    ///
    /// # Errors
    ///
    /// None by default: a failing [`info`](EventProvider::info) is `Ok(false)`.
    async fn health(&self) -> Result<bool> {
        Ok(self.info().await.is_ok())
    }

    /// Counts of the acks that were sent and did not take effect, for the [metrics](crate::metrics) of the bus; `None` by default,
    /// for providers that confirm each ack.
    fn ack_failures(&self) -> Option<Arc<AckFailures>> {
        None
    }

    /// The concrete provider, to reach a native client. What is done through it is not portable.
    fn as_any(&self) -> Option<&dyn Any> {
        None
    }

    /// Ends the provider: later publishes fail and open subscriptions end with `Ok(None)`.
    ///
    /// # Errors
    ///
    /// The backend's error. The default does nothing.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// One entry of a batch.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PublishRequest<'a> {
    /// The event.
    pub event: &'a Event,
    /// Its options.
    pub options: PublishOptions,
}

impl<'a> PublishRequest<'a> {
    /// An entry with options.
    pub fn new(event: &'a Event, options: PublishOptions) -> Self {
        Self { event, options }
    }
}

impl<'a> From<&'a Event> for PublishRequest<'a> {
    fn from(event: &'a Event) -> Self {
        Self::new(event, PublishOptions::default())
    }
}

/// Counts of a provider's stream.
#[derive(Debug, Clone)]
pub struct ProviderInfo {
    /// Name of the provider.
    pub provider: String,
    /// Number of stored events.
    pub messages: u64,
    /// Their size in bytes, as the provider counts them: about that of their JSON.
    pub bytes: u64,
    /// Number of consumers.
    pub consumers: usize,
}

/// A consumer's stream of events.
///
/// All `next*` methods are **cancel-safe**: dropping the returned future loses no event. `Ok(None)` means closed, is
/// terminal and repeats. `Err` is not terminal unless [`is_closed`](crate::EventError::is_closed): log it and call again.
#[async_trait]
pub trait Subscription: Send + Sync {
    /// The next event, acknowledged before it is handed over: **at most once from there on**. If processing fails, the
    /// event does not come again; use [`next_manual_ack`](Subscription::next_manual_ack) or
    /// [`next_delivery`](Subscription::next_delivery) for at-least-once processing.
    async fn next(&mut self) -> Result<Option<ReceivedEvent>>;

    /// The next event, to be settled by the caller within the ack wait.
    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>>;

    /// The next event without a copy of its payload, to be settled by the caller within the ack wait.
    async fn next_delivery(&mut self) -> Result<Option<Delivery>> {
        Ok(self.next_manual_ack().await?.map(Delivery::from))
    }

    /// Up to `max` deliveries: waits at most `wait` for the first and takes what else is there without waiting.
    ///
    /// `None` means closed. The batch is empty when nothing came in time. An error ends the batch and is its last entry.
    /// Cancel-safe: nothing is awaited once the first delivery was taken.
    async fn next_batch(&mut self, max: usize, wait: Duration) -> Option<Vec<Result<Delivery>>> {
        let mut batch = Vec::new();
        if max == 0 {
            return Some(batch);
        }
        match tokio::time::timeout(wait, self.next_delivery()).await {
            Err(_elapsed) => return Some(batch),
            Ok(first) => batch.push(first.transpose()?),
        }
        while batch.len() < max && batch.last().is_some_and(Result::is_ok) {
            match poll_once(self.next_delivery()).await.map(Result::transpose) {
                Some(Some(item)) => batch.push(item),
                // Nothing there, or closed: the next call says which.
                Some(None) | None => break,
            }
        }
        Some(batch)
    }

    /// Asks for records that are not events as [deliveries](Delivery::undecodable_record), to be settled by the caller,
    /// instead of settling them and returning [`Undecodable`](crate::EventError::Undecodable). Whoever asks can keep such a
    /// record elsewhere before it is settled; the bus does so where it has a dead-letter handler.
    ///
    /// `false`, the default, means that the provider does not do this.
    fn keep_undecodable(&mut self) -> bool {
        false
    }

    /// How many matching retained events were not delivered to this consumer yet.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::EventError::Unsupported) unless the provider has the capability `consumer_info`.
    async fn lag(&self) -> Result<u64> {
        Err(unsupported("lag", "unknown"))
    }

    /// The settings in force, with every default filled in, as last read from the backend. They can differ from those that
    /// were asked for: a consumer that was opened without options keeps its own. `None`, the default, means that the
    /// provider cannot tell.
    fn settings(&self) -> Option<group::ConsumerConfig> {
        None
    }

    /// Why the subscription ended, once a `next*` method returned `Ok(None)`. `None`, the default, means that it is open or
    /// that the provider cannot tell.
    fn end(&self) -> Option<SubscriptionEnd> {
        None
    }

    /// Waits until the backend has stored what was settled before this call: the acks that are on their way. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The backend's error, or a timeout. What is not stored is delivered again. The default does nothing, for providers whose
    /// settlements wait themselves.
    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    /// Ends the subscription: what it holds but has not handed out is given back without counting an attempt. A durable
    /// consumer keeps its position. Events that were handed out can still be settled.
    ///
    /// # Errors
    ///
    /// The backend's error. The default does nothing.
    async fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The newest events that a query asks for, from as many pages as it takes.
async fn all_pages<F: Future<Output = Result<HistoryPage>>>(
    query: HistoryQuery,
    page: impl Fn(HistoryQuery) -> F,
) -> Result<Vec<StoredEvent>> {
    let mut found = Vec::new();
    let mut rest = query.clone();
    loop {
        let mut page = page(rest).await?;
        found.append(&mut page.events);
        let Some(next) = page.next.filter(|_| found.len() < query.limit) else { return Ok(found) };
        rest = query.clone().before_sequence(next);
        rest.limit = query.limit - found.len();
    }
}
