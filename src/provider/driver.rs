//! What a backend writes to become a provider.
//!
//! A [`Driver`] stores checked events and opens consumers; for every driver there is an [`EventProvider`], which checks what
//! comes from outside, fills in the defaults, and refuses what the driver declares absent. So a driver repeats none of
//! that, and the same input fails the same way on every backend. What receives is a [`Fetch`], under a
//! [`Receiver`].
//!
//! The driver layer may still change: implement [`EventProvider`] itself where that matters more than its length.

use std::any::Any;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;

use super::group::ConsumerConfig;
use super::receiver::{Fetch, Receiver};
use super::support::unsupported;
use super::validate::{DEFAULT_MAX_EVENT_BYTES, validate_event, validate_publish_options};
use super::{
    AckFailures, Capabilities, ConsumerInfo, ConsumerPosition, EventProvider, HistoryPage, HistoryQuery,
    ProviderInfo, PublishReceipt, PublishRequest, StreamSummary, Subscription, all_pages,
};
use crate::error::Result;
use crate::subject::{validate_consumer_name, validate_filter_under};
use crate::types::{Event, PublishOptions, SubscribeOptions};

/// A backend. See the [module](self).
///
/// Methods are called from many tasks at once, and none may wait without a deadline.
pub trait Driver: Send + Sync + 'static {
    /// What receives for one member of a consumer.
    type Fetch: Fetch;

    /// Name of the provider, for instance `memory`.
    fn name(&self) -> &str;

    /// What every subject of the stream begins with: `events` by default.
    fn subject_prefix(&self) -> &str {
        "events"
    }

    /// What the backend can do. Options that it declares absent never reach the driver.
    fn capabilities(&self) -> Capabilities;

    /// Largest event in bytes of JSON: that of the [capabilities](Driver::capabilities), else
    /// [`DEFAULT_MAX_EVENT_BYTES`].
    fn max_event_bytes(&self) -> usize {
        Driver::capabilities(self).max_event_bytes.unwrap_or(DEFAULT_MAX_EVENT_BYTES)
    }

    /// Stores one event.
    ///
    /// # Errors
    ///
    /// The backend's error, which says through [`may_be_stored`](crate::EventError::may_be_stored) whether the event may
    /// have been stored all the same; [`Conflict`](crate::EventError::Conflict) for another expected sequence.
    fn store(&self, event: Checked<'_>) -> impl Future<Output = Result<PublishReceipt>> + Send;

    /// Stores many events and returns one result per event, in order. The default stores one after the other.
    fn store_batch(
        &self,
        batch: Vec<Checked<'_>>,
    ) -> impl Future<Output = Vec<Result<PublishReceipt>>> + Send {
        async move {
            let mut results = Vec::with_capacity(batch.len());
            for event in batch {
                results.push(self.store(event).await);
            }
            results
        }
    }

    /// Opens a consumer, which is made when it does not exist.
    ///
    /// # Errors
    ///
    /// [`Conflict`](crate::EventError::Conflict) for a durable consumer with another filter or start; otherwise the
    /// backend's error.
    fn open(&self, consumer: ConsumerSpec) -> impl Future<Output = Result<Self::Fetch>> + Send;

    /// Forgets a durable consumer and its position; `Ok` when there is none. Its open subscriptions end. Needs the capability
    /// `durable`.
    ///
    /// # Errors
    ///
    /// The backend's error.
    fn delete_consumer(&self, name: &str) -> impl Future<Output = Result<()>> + Send {
        let _ = name;
        async { Err(unsupported("durable", Driver::name(self))) }
    }

    /// As [`EventProvider::query_page`]. The filter is checked. Without the capability `history_query` only the filter and the
    /// limit are asked for.
    ///
    /// # Errors
    ///
    /// The backend's error.
    fn page(&self, query: &HistoryQuery) -> impl Future<Output = Result<HistoryPage>> + Send;

    /// As [`EventProvider::reset_consumer`].
    ///
    /// # Errors
    ///
    /// As there.
    fn move_consumer(
        &self,
        name: &str,
        position: ConsumerPosition,
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = (name, position);
        async { Err(unsupported("reset_consumer", Driver::name(self))) }
    }

    /// As [`EventProvider::consumers`].
    ///
    /// # Errors
    ///
    /// As there.
    fn list_consumers(&self) -> impl Future<Output = Result<Vec<ConsumerInfo>>> + Send {
        async { Err(unsupported("consumers", Driver::name(self))) }
    }

    /// As [`EventProvider::streams`], in any order.
    ///
    /// # Errors
    ///
    /// As there.
    fn list_streams(&self) -> impl Future<Output = Result<Vec<StreamSummary>>> + Send {
        async { Err(unsupported("streams", Driver::name(self))) }
    }

    /// As [`EventProvider::delete_stream`].
    ///
    /// # Errors
    ///
    /// As there.
    fn drop_stream(&self) -> impl Future<Output = Result<()>> + Send {
        async { Err(unsupported("delete_stream", Driver::name(self))) }
    }

    /// As [`EventProvider::purge`]. The filter is checked.
    ///
    /// # Errors
    ///
    /// As there.
    fn purge_events(&self, filter: Option<&str>) -> impl Future<Output = Result<u64>> + Send {
        let _ = filter;
        async { Err(unsupported("purge", Driver::name(self))) }
    }

    /// As [`EventProvider::info`].
    ///
    /// # Errors
    ///
    /// The backend's error.
    fn count(&self) -> impl Future<Output = Result<ProviderInfo>> + Send;

    /// Whether a publish would be stored. The default asks for the [counts](Driver::count).
    fn is_healthy(&self) -> impl Future<Output = bool> + Send {
        async { self.count().await.is_ok() }
    }

    /// As [`EventProvider::ack_failures`].
    fn failed_acks(&self) -> Option<Arc<AckFailures>> {
        None
    }

    /// Ends the provider: later publishes fail and open subscriptions end.
    ///
    /// # Errors
    ///
    /// The backend's error.
    fn shut(&self) -> impl Future<Output = Result<()>> + Send;
}

/// An event that passed every check, with options that the driver declares to honour. Only the layer makes one.
#[derive(Debug, Clone, Copy)]
pub struct Checked<'a> {
    event: &'a Event,
    options: &'a PublishOptions,
    size: usize,
}

impl<'a> Checked<'a> {
    fn new<D: Driver>(driver: &D, event: &'a Event, options: &'a PublishOptions) -> Result<Self> {
        validate_publish_options(options)?;
        if options.msg_id.is_some() || options.expected_sequence.is_some() {
            driver.capabilities().check_publish(Driver::name(driver), options)?;
        }
        let size = validate_event(event, Driver::subject_prefix(driver), driver.max_event_bytes())?;
        Ok(Self { event, options, size })
    }

    /// The event.
    pub fn event(&self) -> &'a Event {
        self.event
    }

    /// The options.
    pub fn options(&self) -> &'a PublishOptions {
        self.options
    }

    /// Its size in bytes of JSON: exact for a large event, and without the characters that escapes add for one that is far
    /// below the limit.
    pub fn size(&self) -> usize {
        self.size
    }
}

/// The consumer to open. Its filter, name and options are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerSpec {
    /// The name of a durable consumer; an ephemeral one has none.
    pub name: Option<String>,
    /// The settings, with every default filled in.
    pub config: ConsumerConfig,
    /// Whether an existing consumer takes over these settings. Otherwise it keeps its own, and only the filter has to be the
    /// same.
    pub applies: bool,
}

impl ConsumerSpec {
    fn new<D: Driver>(
        driver: &D,
        name: Option<&str>,
        filter: &str,
        options: Option<&SubscribeOptions>,
    ) -> Result<Self> {
        let (provider, capabilities) = (Driver::name(driver), Driver::capabilities(driver));
        if let Some(options) = options {
            capabilities.check_subscribe(provider, options)?;
        }
        if let Some(name) = name {
            validate_consumer_name(name)?;
        }
        validate_filter_under(filter, Driver::subject_prefix(driver))?;
        if name.is_some() && capabilities.durable.is_no() {
            return Err(unsupported("durable", provider));
        }
        let config = ConsumerConfig::new(filter, options.unwrap_or(&SubscribeOptions::default()))?;
        Ok(Self { name: name.map(str::to_owned), config, applies: options.is_some() })
    }
}

/// As the `subscribe` methods of [`EventProvider`], whose names and options this takes.
pub(super) async fn open<D: Driver>(
    driver: &D,
    name: Option<&str>,
    filter: &str,
    options: Option<&SubscribeOptions>,
) -> Result<Receiver<D::Fetch>> {
    let fetch = driver.open(ConsumerSpec::new(driver, name, filter, options)?).await?;
    Ok(Receiver::new(fetch))
}

async fn page<D: Driver>(driver: &D, query: HistoryQuery) -> Result<HistoryPage> {
    if let Some(filter) = &query.filter {
        validate_filter_under(filter, Driver::subject_prefix(driver))?;
    }
    driver.page(&query).await
}

#[async_trait]
impl<D: Driver> EventProvider for D {
    async fn publish(&self, event: &Event) -> Result<u64> {
        self.publish_with_options(event, &PublishOptions::default()).await
    }

    async fn publish_with_options(&self, event: &Event, opts: &PublishOptions) -> Result<u64> {
        Ok(self.store(Checked::new(self, event, opts)?).await?.sequence)
    }

    async fn publish_with_receipt(&self, event: &Event, opts: &PublishOptions) -> Result<PublishReceipt> {
        self.store(Checked::new(self, event, opts)?).await
    }

    async fn publish_batch(&self, batch: &[PublishRequest<'_>]) -> Vec<Result<PublishReceipt>> {
        let mut checked = Vec::with_capacity(batch.len());
        let mut results = Vec::with_capacity(batch.len());
        for PublishRequest { event, options } in batch {
            results.push(Checked::new(self, event, options).map(|event| {
                checked.push(event);
                // Stands in for the receipt until it is known.
                PublishReceipt::stored(0)
            }));
        }
        let stored = self.store_batch(checked).await;
        results
            .iter_mut()
            .filter(|result| result.is_ok())
            .zip(stored)
            .for_each(|(place, stored)| *place = stored);
        results
    }

    async fn subscribe_durable(
        &self,
        consumer_name: &str,
        filter_subject: &str,
    ) -> Result<Box<dyn Subscription>> {
        Ok(Box::new(open(self, Some(consumer_name), filter_subject, None).await?))
    }

    async fn subscribe_durable_with_options(
        &self,
        consumer_name: &str,
        filter_subject: &str,
        opts: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        Ok(Box::new(open(self, Some(consumer_name), filter_subject, Some(opts)).await?))
    }

    async fn subscribe(&self, filter_subject: &str) -> Result<Box<dyn Subscription>> {
        Ok(Box::new(open(self, None, filter_subject, None).await?))
    }

    async fn subscribe_with_options(
        &self,
        filter_subject: &str,
        opts: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        Ok(Box::new(open(self, None, filter_subject, Some(opts)).await?))
    }

    async fn history(&self, filter_subject: Option<&str>, limit: usize) -> Result<Vec<Event>> {
        let mut query = HistoryQuery::new(limit);
        query.filter = filter_subject.map(str::to_owned);
        let found = all_pages(query, |query| page(self, query)).await?;
        Ok(found.into_iter().map(|stored| Arc::unwrap_or_clone(stored.event)).collect())
    }

    async fn query_page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        if Driver::capabilities(self).history_query.is_no() {
            return Err(unsupported("query", Driver::name(self)));
        }
        page(self, query.clone()).await
    }

    async fn unsubscribe(&self, consumer_name: &str) -> Result<()> {
        // Nothing can have a name that is not one.
        if Driver::capabilities(self).durable.is_no() || validate_consumer_name(consumer_name).is_err() {
            return Ok(());
        }
        self.delete_consumer(consumer_name).await
    }

    async fn reset_consumer(&self, consumer_name: &str, position: ConsumerPosition) -> Result<()> {
        validate_consumer_name(consumer_name)?;
        self.move_consumer(consumer_name, position).await
    }

    async fn info(&self) -> Result<ProviderInfo> {
        self.count().await
    }

    async fn consumers(&self) -> Result<Vec<ConsumerInfo>> {
        let mut consumers = self.list_consumers().await?;
        consumers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(consumers)
    }

    async fn streams(&self) -> Result<Vec<StreamSummary>> {
        let mut streams = self.list_streams().await?;
        streams.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(streams)
    }

    async fn delete_stream(&self) -> Result<()> {
        self.drop_stream().await
    }

    async fn purge(&self, filter_subject: Option<&str>) -> Result<u64> {
        if let Some(filter) = filter_subject {
            validate_filter_under(filter, Driver::subject_prefix(self))?;
        }
        self.purge_events(filter_subject).await
    }

    async fn health(&self) -> Result<bool> {
        Ok(self.is_healthy().await)
    }

    fn name(&self) -> &str {
        Driver::name(self)
    }

    fn subject_prefix(&self) -> &str {
        Driver::subject_prefix(self)
    }

    fn capabilities(&self) -> Capabilities {
        Driver::capabilities(self)
    }

    fn ack_failures(&self) -> Option<Arc<AckFailures>> {
        self.failed_acks()
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }

    async fn close(&self) -> Result<()> {
        self.shut().await
    }
}
