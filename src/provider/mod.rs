//! The provider contract and the built-in providers.
//!
//! An [`EventProvider`] stores events and opens subscriptions. A [`Subscription`] delivers events to one consumer.
//! [`Capabilities`] declares which guarantees a provider supports; calls that need an absent one are refused, never
//! ignored.
//!
//! [The delivery contract](crate::docs::delivery) lists all guarantees. To add a backend, see
//! [writing a provider](crate::docs::writing_a_provider). A provider is complete when it passes the conformance kit.

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
pub mod pace;
mod position;
mod query;
mod receipt;
pub mod receiver;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub mod redis;
mod registry;
mod sent_acks;
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
pub use query::{
    ConsumerInfo, DiscardPolicy, HistoryPage, HistoryQuery, LimitSource, StoredEvent, StreamLimits,
    StreamSummary, UnreadableRecord,
};
pub use receipt::PublishReceipt;
pub use registry::{ProviderRegistry, ProviderUrl, Scheme};

use self::support::unsupported;
use crate::error::Result;
use crate::task::poll_once;
use crate::types::{Event, PublishOptions, ReceivedEvent, SubscribeOptions};

/// Default timeout of a provider call. The bus has a longer timeout of its own, for providers that hang.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Default maximum number of unconfirmed acks per consumer: sent to the backend and not yet stored.
pub const DEFAULT_MAX_UNCONFIRMED_ACKS: usize = 1_000;

/// A backend that stores events and delivers them to subscriptions.
///
/// Implement the required methods. Every other method has a default: it refuses the call, falls back to a required
/// method, or does nothing. Methods take `&self` and are called from many tasks at once. Every method must limit its
/// waiting by a timeout.
///
/// # Contract
///
/// The delivery contract in [`docs::delivery`](crate::docs::delivery) binds every implementation. In short:
///
/// - A publish that returned `Ok` is stored.
/// - Subjects and filters are validated before any I/O.
/// - First deliveries arrive in sequence order.
/// - An event that is not settled is redelivered.
#[async_trait]
pub trait EventProvider: Send + Sync {
    /// Stores one event and returns its sequence, which is greater than that of every publish acknowledged before.
    ///
    /// # Errors
    ///
    /// [`InvalidSubject`](crate::EventError::InvalidSubject), [`InvalidEvent`](crate::EventError::InvalidEvent) and
    /// [`TooLarge`](crate::EventError::TooLarge) before any I/O; otherwise the backend's error.
    /// [`may_be_stored`](crate::EventError::may_be_stored) tells whether the event may be stored.
    async fn publish(&self, event: &Event) -> Result<u64>;

    /// Opens the durable consumer `consumer_name` and creates it with default options if it does not exist. All
    /// subscriptions to this name share its events. An existing consumer keeps its settings and its position.
    ///
    /// Requires the capability `durable`; sharing requires `shared_consumers`.
    ///
    /// # Errors
    ///
    /// [`InvalidName`](crate::EventError::InvalidName) and [`InvalidSubject`](crate::EventError::InvalidSubject) before
    /// any I/O; [`Conflict`](crate::EventError::Conflict) if the consumer has another filter.
    async fn subscribe_durable(
        &self,
        consumer_name: &str,
        filter_subject: &str,
    ) -> Result<Box<dyn Subscription>>;

    /// Opens an ephemeral consumer. It is private, starts with the first retained event, and is deleted when the
    /// subscription is dropped.
    ///
    /// # Errors
    ///
    /// [`InvalidSubject`](crate::EventError::InvalidSubject) before any I/O; otherwise the backend's error.
    async fn subscribe(&self, filter_subject: &str) -> Result<Box<dyn Subscription>>;

    /// Returns exactly the newest `limit` stored events that match the filter, newest first. `None` matches every
    /// event. If fewer events match, it returns them without waiting. Leaves no consumer behind.
    ///
    /// # Errors
    ///
    /// [`InvalidSubject`](crate::EventError::InvalidSubject) before any I/O; otherwise the backend's error.
    async fn history(&self, filter_subject: Option<&str>, limit: usize) -> Result<Vec<Event>>;

    /// Deletes a durable consumer and its position, and ends its open subscriptions. Returns `Ok` if it does not exist.
    ///
    /// # Errors
    ///
    /// The backend's error.
    async fn unsubscribe(&self, consumer_name: &str) -> Result<()>;

    /// Returns the counts of the stream, in time that does not depend on the number of stored events.
    ///
    /// # Errors
    ///
    /// The backend's error.
    async fn info(&self) -> Result<ProviderInfo>;

    /// Returns the name of the provider, for instance `memory`.
    fn name(&self) -> &str;

    /// Returns the prefix of every subject of the stream.
    fn subject_prefix(&self) -> &str {
        "events"
    }

    /// Builds the subject of a topic in a category. Never fails and keeps wildcards, so it builds filters too. The
    /// result is validated when it is used.
    fn build_subject(&self, category: &str, topic: &str) -> String {
        format!("{}.{category}.{topic}", self.subject_prefix())
    }

    /// Builds the filter that matches every subject in a category.
    fn category_subject(&self, category: &str) -> String {
        format!("{}.{category}.>", self.subject_prefix())
    }

    /// Returns the declared capabilities. By default all are [`Unknown`](Support::Unknown).
    fn capabilities(&self) -> Capabilities {
        Capabilities::unknown()
    }

    /// Stores one event with options.
    ///
    /// The default refuses options that are out of range or that [`capabilities`](EventProvider::capabilities) declares
    /// absent. Otherwise it publishes without the options.
    ///
    /// # Errors
    ///
    /// - As [`publish`](EventProvider::publish).
    /// - [`Unsupported`](crate::EventError::Unsupported) for an option declared absent.
    /// - [`Conflict`](crate::EventError::Conflict) if `expected_sequence` is not the stream's last sequence.
    async fn publish_with_options(&self, event: &Event, opts: &PublishOptions) -> Result<u64> {
        validate::validate_publish_options(opts)?;
        self.capabilities().check_publish(self.name(), opts)?;
        self.publish(event).await
    }

    /// Stores one event with options and reports whether it was a duplicate.
    ///
    /// The default calls [`publish_with_options`](EventProvider::publish_with_options) and reports no duplicate. A
    /// provider with the capability `dedup` must implement this method.
    ///
    /// # Errors
    ///
    /// As [`publish_with_options`](EventProvider::publish_with_options).
    async fn publish_with_receipt(&self, event: &Event, opts: &PublishOptions) -> Result<PublishReceipt> {
        self.publish_with_options(event, opts).await.map(PublishReceipt::stored)
    }

    /// Stores many events and returns one result per event, in order. An event that fails does not stop the events
    /// after it. The default publishes one event after the other; a provider with the capability `batch_publish` does
    /// better.
    async fn publish_batch(&self, batch: &[PublishRequest<'_>]) -> Vec<Result<PublishReceipt>> {
        let mut results = Vec::with_capacity(batch.len());
        for request in batch {
            results.push(self.publish_with_receipt(request.event, &request.options).await);
        }
        results
    }

    /// Opens a durable consumer with options and creates it if it does not exist. On an existing consumer, permitted
    /// changes are applied and others refused.
    ///
    /// # Errors
    ///
    /// - As [`subscribe_durable`](EventProvider::subscribe_durable).
    /// - [`Config`](crate::EventError::Config) for an option out of range.
    /// - [`Conflict`](crate::EventError::Conflict) for a changed filter or start policy. The error names the field.
    /// - [`Unsupported`](crate::EventError::Unsupported) for an option declared absent.
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

    /// Reads one page of stored events by filter, sequence and time, newest first. The page also lists every record in
    /// its range that cannot be read as an event, and the start of the next page. Requires the capability
    /// `history_query`.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::EventError::Unsupported) without the capability; otherwise as
    /// [`history`](EventProvider::history).
    async fn query_page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        let _ = query;
        Err(unsupported("query", self.name()))
    }

    /// Returns exactly the newest events that match a query, reading as many [pages](EventProvider::query_page) as
    /// needed. Unreadable records are skipped; only a page lists them. Requires the capability `history_query`.
    ///
    /// # Errors
    ///
    /// As [`query_page`](EventProvider::query_page).
    async fn query(&self, query: &HistoryQuery) -> Result<Vec<StoredEvent>> {
        all_pages(query.clone(), |query| async move { self.query_page(&query).await }).await
    }

    /// Moves a durable consumer to another position. Open subscriptions stay open and continue from there. Unsettled
    /// deliveries are forgotten, and settling one of them fails.
    ///
    /// # Errors
    ///
    /// - [`Unsupported`](crate::EventError::Unsupported) by default, and for a consumer whose start policy the provider
    ///   cannot move; it is then unchanged.
    /// - [`NotFound`](crate::EventError::NotFound) if no durable consumer has this name.
    /// - Otherwise the backend's error.
    async fn reset_consumer(&self, consumer_name: &str, position: ConsumerPosition) -> Result<()> {
        let _ = (consumer_name, position);
        Err(unsupported("reset_consumer", self.name()))
    }

    /// Returns the state of every consumer, such as lag and pending events. Requires the capability `consumer_info`.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::EventError::Unsupported) without the capability; otherwise the backend's error.
    async fn consumers(&self) -> Result<Vec<ConsumerInfo>> {
        Err(unsupported("consumers", self.name()))
    }

    /// Returns the streams that this connection can see with their counts and limits, sorted by name.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::EventError::Unsupported) by default: the provider then knows only its own stream, which
    /// [`info`](EventProvider::info) describes. Otherwise the backend's error.
    async fn streams(&self) -> Result<Vec<StreamSummary>> {
        Err(unsupported("streams", self.name()))
    }

    /// Deletes the provider's stream with all its events and consumers, and ends open subscriptions. A later publish
    /// fails, or creates a new stream if the provider supports that.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::EventError::Unsupported) by default; otherwise the backend's error.
    async fn delete_stream(&self) -> Result<()> {
        Err(unsupported("delete_stream", self.name()))
    }

    /// Deletes the stored events that match the filter, or all of them without one, and returns their number. Consumers
    /// skip the deleted events, as they skip events that retention dropped.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::EventError::Unsupported) by default, and from SQLite and memory for a filter that matches
    /// only a part of the stream; an error for an invalid filter; otherwise the backend's error.
    async fn purge(&self, filter_subject: Option<&str>) -> Result<u64> {
        let _ = filter_subject;
        Err(unsupported("purge", self.name()))
    }

    /// Returns `true` if the backend makes progress.
    ///
    /// # Errors
    ///
    /// None by default: if [`info`](EventProvider::info) fails, the result is `Ok(false)`.
    async fn health(&self) -> Result<bool> {
        Ok(self.info().await.is_ok())
    }

    /// Returns the counts of acks that were sent and did not take effect, for the [metrics](crate::metrics) of the bus.
    /// Returns `None` by default, for providers that confirm each ack.
    fn ack_failures(&self) -> Option<Arc<AckFailures>> {
        None
    }

    /// Returns the concrete provider, for access to its native client. Code that uses it is not portable.
    fn as_any(&self) -> Option<&dyn Any> {
        None
    }

    /// Closes the provider: later publishes fail and open subscriptions end with `Ok(None)`.
    ///
    /// # Errors
    ///
    /// The backend's error. The default does nothing.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// A provider by value, or an `Arc` of one, for instance what [`ProviderRegistry::connect`] returns.
///
/// Every [`EventProvider`] has it; you need not implement it.
pub trait IntoProvider {
    /// Returns the provider as a shared pointer.
    fn into_provider(self) -> Arc<dyn EventProvider>;
}

impl<P: EventProvider + 'static> IntoProvider for P {
    fn into_provider(self) -> Arc<dyn EventProvider> {
        Arc::new(self)
    }
}

impl<P: EventProvider + 'static> IntoProvider for Arc<P> {
    fn into_provider(self) -> Arc<dyn EventProvider> {
        self
    }
}

impl IntoProvider for Arc<dyn EventProvider> {
    fn into_provider(self) -> Arc<dyn EventProvider> {
        self
    }
}

/// An event of a batch, with its options.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PublishRequest<'a> {
    /// The event to publish.
    pub event: &'a Event,
    /// The options of this publish.
    pub options: PublishOptions,
}

impl<'a> PublishRequest<'a> {
    /// Creates an entry with options.
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
    /// Size of the stored events in bytes, as the provider counts them: about the size of their JSON.
    pub bytes: u64,
    /// Number of consumers.
    pub consumers: usize,
}

/// A stream of events for one consumer.
///
/// All `next*` methods are **cancel-safe**: dropping the returned future loses no event. `Ok(None)` means that the
/// subscription is closed, and every later call returns it again. After an `Err`, log it and call again, unless
/// [`is_closed`](crate::EventError::is_closed) is true for it.
#[async_trait]
pub trait Subscription: Send + Sync {
    /// Waits for the next event and acknowledges it before returning it: delivery is **at most once from then on**. If
    /// processing fails, the event is not redelivered. For at-least-once processing, use
    /// [`next_manual_ack`](Subscription::next_manual_ack) or [`next_delivery`](Subscription::next_delivery).
    async fn next(&mut self) -> Result<Option<ReceivedEvent>>;

    /// Waits for the next event. The caller must settle it within the ack wait.
    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>>;

    /// Waits for the next event without copying its payload. The caller must settle it within the ack wait.
    async fn next_delivery(&mut self) -> Result<Option<Delivery>> {
        Ok(self.next_manual_ack().await?.map(Delivery::from))
    }

    /// Returns up to `max` deliveries. Waits at most `wait` for the first one, then adds those already available.
    ///
    /// `None` means that the subscription is closed. The batch is empty if no event arrived in time. An error ends the
    /// batch and is its last entry. Cancel-safe: nothing is awaited after the first delivery was taken.
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
                // Nothing is available, or the subscription is closed: the next call reports it.
                Some(None) | None => break,
            }
        }
        Some(batch)
    }

    /// Enables [deliveries](Delivery::undecodable_record) of records that are not events, so that the caller can store
    /// them before settling them. Otherwise the provider settles such a record and returns
    /// [`Undecodable`](crate::EventError::Undecodable). [`EventBus`](crate::EventBus) calls this if it has a
    /// dead-letter handler.
    ///
    /// Returns `false`, the default, if the provider does not support it.
    fn keep_undecodable(&mut self) -> bool {
        false
    }

    /// Returns the number of matching retained events that were not yet delivered to this consumer.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::EventError::Unsupported) unless the provider has the capability `consumer_info`.
    async fn lag(&self) -> Result<u64> {
        Err(unsupported("lag", "unknown"))
    }

    /// Returns the settings in force, with every default filled in, as last read from the backend. They can differ from
    /// the requested ones: a consumer that was opened without options keeps its own. `None`, the default, means that
    /// the provider does not know them.
    fn settings(&self) -> Option<group::ConsumerConfig> {
        None
    }

    /// Returns the reason for the end of the subscription, after a `next*` method returned `Ok(None)`. `None`, the
    /// default, means that the subscription is open or that the reason is unknown.
    fn end(&self) -> Option<SubscriptionEnd> {
        None
    }

    /// Waits until the backend has stored every settlement made before this call, including acks in flight.
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// The backend's error, or a timeout. An event whose settlement was not stored is redelivered. The default does
    /// nothing, for providers that confirm each settlement.
    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    /// Closes the subscription and releases the events that it has not handed out. A release counts no attempt if the
    /// provider has the capability [`release_keeps_attempt`](Capabilities::release_keeps_attempt). A durable consumer
    /// keeps its position. Events that were handed out can still be settled.
    ///
    /// # Errors
    ///
    /// The backend's error. The default does nothing.
    async fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Returns the newest events that match a query, reading as many pages as needed.
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
