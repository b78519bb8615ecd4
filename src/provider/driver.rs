//! The trait that a backend implements to become a provider.
//!
//! A [`Driver`] stores checked events and opens consumers. Every driver is an [`EventProvider`], which validates the
//! input, fills in the defaults, and refuses what the driver declares absent. A driver therefore repeats no checks, and
//! the same input fails the same way on every backend. A [`Fetch`] receives events, under a [`Receiver`].
//!
//! The driver layer may still change. If you need a stable interface, implement [`EventProvider`] directly.

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

/// A backend that becomes an [`EventProvider`]; see the [module](self).
///
/// Methods are called from many tasks at once. Every method must limit its waiting by a timeout.
pub trait Driver: Send + Sync + 'static {
    /// The type that receives events for one member of a consumer.
    type Fetch: Fetch;

    /// Returns the name of the provider, for instance `memory`.
    fn name(&self) -> &str;

    /// Returns the prefix of every subject of the stream. Default `events`.
    fn subject_prefix(&self) -> &str {
        "events"
    }

    /// Returns the capabilities of the backend. Options that it declares absent never reach the driver.
    fn capabilities(&self) -> Capabilities;

    /// Returns the maximum size of one event in bytes of JSON: the limit of the [capabilities](Driver::capabilities),
    /// or [`DEFAULT_MAX_EVENT_BYTES`] if they have none.
    fn max_event_bytes(&self) -> usize {
        Driver::capabilities(self).max_event_bytes.unwrap_or(DEFAULT_MAX_EVENT_BYTES)
    }

    /// Stores one event.
    ///
    /// # Errors
    ///
    /// The backend's error, or [`Conflict`](crate::EventError::Conflict) if another sequence was expected.
    /// [`may_be_stored`](crate::EventError::may_be_stored) tells whether the event may be stored.
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

    /// Opens a consumer and creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// [`Conflict`](crate::EventError::Conflict) if a durable consumer has another filter or start; otherwise the
    /// backend's error.
    fn open(&self, consumer: ConsumerSpec) -> impl Future<Output = Result<Self::Fetch>> + Send;

    /// Deletes a durable consumer and its position, and ends its open subscriptions. Returns `Ok` if it does not exist.
    /// Requires the capability `durable`.
    ///
    /// # Errors
    ///
    /// The backend's error.
    fn delete_consumer(&self, name: &str) -> impl Future<Output = Result<()>> + Send {
        let _ = name;
        async { Err(unsupported("durable", Driver::name(self))) }
    }

    /// Implements [`EventProvider::query_page`]. The filter is validated. Without the capability `history_query`, a
    /// query has only a filter and a limit.
    ///
    /// # Errors
    ///
    /// The backend's error.
    fn page(&self, query: &HistoryQuery) -> impl Future<Output = Result<HistoryPage>> + Send;

    /// Implements [`EventProvider::reset_consumer`].
    ///
    /// # Errors
    ///
    /// As [`EventProvider::reset_consumer`].
    fn move_consumer(
        &self,
        name: &str,
        position: ConsumerPosition,
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = (name, position);
        async { Err(unsupported("reset_consumer", Driver::name(self))) }
    }

    /// Implements [`EventProvider::consumers`].
    ///
    /// # Errors
    ///
    /// As [`EventProvider::consumers`].
    fn list_consumers(&self) -> impl Future<Output = Result<Vec<ConsumerInfo>>> + Send {
        async { Err(unsupported("consumers", Driver::name(self))) }
    }

    /// Implements [`EventProvider::streams`], in any order.
    ///
    /// # Errors
    ///
    /// As [`EventProvider::streams`].
    fn list_streams(&self) -> impl Future<Output = Result<Vec<StreamSummary>>> + Send {
        async { Err(unsupported("streams", Driver::name(self))) }
    }

    /// Implements [`EventProvider::delete_stream`].
    ///
    /// # Errors
    ///
    /// As [`EventProvider::delete_stream`].
    fn drop_stream(&self) -> impl Future<Output = Result<()>> + Send {
        async { Err(unsupported("delete_stream", Driver::name(self))) }
    }

    /// Returns `true` if [`purge_events`](Driver::purge_events) can delete a part of the stream. Otherwise it is called
    /// without a filter only: a filter that matches every subject is left out, and any other filter is refused.
    fn purges_by_filter(&self) -> bool {
        true
    }

    /// Implements [`EventProvider::purge`]. The filter is validated.
    ///
    /// # Errors
    ///
    /// As [`EventProvider::purge`].
    fn purge_events(&self, filter: Option<&str>) -> impl Future<Output = Result<u64>> + Send {
        let _ = filter;
        async { Err(unsupported("purge", Driver::name(self))) }
    }

    /// Implements [`EventProvider::info`].
    ///
    /// # Errors
    ///
    /// The backend's error.
    fn count(&self) -> impl Future<Output = Result<ProviderInfo>> + Send;

    /// Returns `true` if a publish would be stored. The default calls [`count`](Driver::count).
    fn is_healthy(&self) -> impl Future<Output = bool> + Send {
        async { self.count().await.is_ok() }
    }

    /// Implements [`EventProvider::ack_failures`].
    fn failed_acks(&self) -> Option<Arc<AckFailures>> {
        None
    }

    /// Closes the provider: later publishes fail and open subscriptions end.
    ///
    /// # Errors
    ///
    /// The backend's error.
    fn shut(&self) -> impl Future<Output = Result<()>> + Send;
}

/// A validated event with its options. Options that the driver declares absent are already refused. Only this layer
/// creates it.
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

    /// Returns the event.
    pub fn event(&self) -> &'a Event {
        self.event
    }

    /// Returns the options.
    pub fn options(&self) -> &'a PublishOptions {
        self.options
    }

    /// Returns the size in bytes of JSON. It is exact for a large event. For an event far below the limit, it omits the
    /// characters that escapes add.
    pub fn size(&self) -> usize {
        self.size
    }
}

/// The consumer to open, with a validated filter, name and options.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerSpec {
    /// Name of a durable consumer; `None` for an ephemeral one.
    pub name: Option<String>,
    /// The settings, with every default filled in.
    pub config: ConsumerConfig,
    /// If true, an existing consumer takes over these settings. If false, it keeps its own, and only the filter must be
    /// the same.
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

/// Opens a consumer. Takes the names and options of the `subscribe` methods of [`EventProvider`].
pub(super) async fn open<D: Driver>(
    driver: &D,
    name: Option<&str>,
    filter: &str,
    options: Option<&SubscribeOptions>,
) -> Result<Receiver<D::Fetch>> {
    let fetch = driver.open(ConsumerSpec::new(driver, name, filter, options)?).await?;
    Ok(Receiver::new(fetch))
}

/// Returns true if a valid filter matches every subject of the stream.
fn matches_everything(filter: &str, prefix: &str) -> bool {
    let Some(head) = filter.strip_suffix('>') else { return false };
    let mut prefix = prefix.split('.');
    head.split_terminator('.').all(|token| prefix.next().is_some_and(|own| token == "*" || token == own))
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
        Ok(self.store(Checked::new(self, event, &PublishOptions::default())?).await?.sequence)
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
                // A placeholder until the receipt is known.
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
        // No consumer can have an invalid name.
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
        if self.purges_by_filter() {
            return self.purge_events(filter_subject).await;
        }
        match filter_subject {
            Some(filter) if !matches_everything(filter, Driver::subject_prefix(self)) => {
                Err(unsupported("purge with a filter", Driver::name(self)))
            }
            _ => self.purge_events(None).await,
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::provider::memory::MemoryProvider;

    #[test]
    fn a_filter_of_everything_is_recognized() {
        for (filter, prefix) in
            [(">", "events"), ("events.>", "events"), ("*.>", "events"), ("a.>", "a.b"), ("a.*.>", "a.b")]
        {
            assert!(matches_everything(filter, prefix), "{filter} under {prefix}");
        }
        for (filter, prefix) in [
            ("events.a", "events"),
            ("events.*", "events"),
            ("events.a.>", "events"),
            ("events.*.>", "events"),
            ("event.>", "events"),
            ("a.b", "a.b"),
        ] {
            assert!(!matches_everything(filter, prefix), "{filter} under {prefix}");
        }
    }

    #[tokio::test]
    async fn a_driver_that_deletes_all_or_nothing_sees_no_filter() {
        let provider = MemoryProvider::default();
        let publish = async || {
            let event = Event::new("events.a", "a", "", "", serde_json::json!(1));
            provider.publish(&event).await.unwrap();
        };
        publish().await;
        let error = provider.purge(Some("events.a")).await.unwrap_err();
        assert_eq!(error.to_string(), "purge with a filter is not supported by provider 'memory'");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        for everything in [None, Some(">"), Some("events.>"), Some("*.>")] {
            assert_eq!(provider.purge(everything).await.unwrap(), u64::from(everything.is_none()));
        }
        for everything in [">", "events.>", "*.>"] {
            publish().await;
            assert_eq!(provider.purge(Some(everything)).await.unwrap(), 1, "{everything}");
        }
    }
}
