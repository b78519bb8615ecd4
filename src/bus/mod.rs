//! The bus: one API over any provider.
//!
//! Publishing checks the subject and the options and validates the payload against its schema. It then encrypts a copy,
//! hands it to the provider, and routes it through the broker. Consuming decrypts events and dead-letters those that
//! cannot be processed. The bus depends on no concrete provider.

mod builder;
pub mod consumer;
mod dead_letter;
mod in_force;
mod metered;
mod observe;
mod open;
mod publish;
mod records;
mod registry;
mod subscribe;
mod subscription;
mod verdict;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use builder::EventBusBuilder;
pub use observe::Observer;

use self::open::Opener;
use self::registry::Registry;
use crate::crypto::EventEncryptor;
use crate::dlq::{DeadLetterEvent, DlqHandler};
use crate::error::{EventError, Result};
use crate::metrics::{BusMetrics, EventMetrics};
use crate::provider::{
    ConsumerInfo, EventProvider, HistoryPage, HistoryQuery, IntoProvider, ProviderInfo, ProviderRegistry,
    StoredEvent,
};
use crate::schema::SchemaRegistry;
use crate::state::StateStore;
use crate::task::within;
use crate::types::{Event, EventCounts, PublishOptions, SubscribeOptions};

/// Default timeout of a provider call. Providers have shorter timeouts of their own; this one catches a provider that
/// hangs.
const DEFAULT_OPERATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Publishes, subscribes and queries over any provider.
///
/// ```
/// use a3s_event::{EventBus, SubscriptionFilter};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> a3s_event::Result<()> {
/// let bus = EventBus::connect("memory://").await?;
/// bus.update_subscription(SubscriptionFilter {
///     subscriber_id: "analyst".to_owned(),
///     subjects: vec!["events.market.>".to_owned()],
///     durable: true,
///     options: None,
/// })
/// .await?;
/// let mut subscriptions = bus.create_subscriber("analyst").await?;
///
/// bus.publish("market", "forex.usd_cny", "USD/CNY moved", "reuters", serde_json::json!({"rate": 7.35})).await?;
///
/// let delivery = subscriptions[0].next_delivery().await?.expect("the bus is open");
/// assert_eq!(delivery.event().payload["rate"], 7.35);
/// delivery.ack().await?;
/// # Ok(())
/// # }
/// ```
pub struct EventBus {
    provider: Arc<dyn EventProvider>,
    schema_registry: Option<Arc<dyn SchemaRegistry>>,
    validates_on_consume: bool,
    encryptor: Option<Arc<dyn EventEncryptor>>,
    dlq_handler: Option<Arc<dyn DlqHandler>>,
    #[cfg(feature = "routing")]
    router: Option<Arc<dyn Router>>,
    state_store: Option<Arc<dyn StateStore>>,
    registry: Arc<Registry>,
    metrics: Arc<BusMetrics>,
    operation_timeout: Duration,
    warned_of_undeclared: AtomicBool,
}

impl EventBus {
    /// Creates a bus over a provider, which is given by value or as an `Arc`.
    pub fn new(provider: impl IntoProvider) -> Self {
        Self::from_provider(provider.into_provider())
    }

    /// Creates a bus over a provider that is shared with other owners.
    pub fn from_provider(provider: Arc<dyn EventProvider>) -> Self {
        let metrics = BusMetrics::new(provider.name()).with_ack_failures(provider.ack_failures());
        let metrics = Arc::new(metrics);
        Self {
            provider,
            schema_registry: None,
            validates_on_consume: false,
            encryptor: None,
            dlq_handler: None,
            #[cfg(feature = "routing")]
            router: None,
            state_store: None,
            registry: Arc::default(),
            metrics,
            operation_timeout: DEFAULT_OPERATION_TIMEOUT,
            warned_of_undeclared: AtomicBool::new(false),
        }
    }

    /// Creates a bus that validates payloads against registered schemas before it publishes them.
    pub fn with_schema_registry(provider: impl IntoProvider, registry: Arc<dyn SchemaRegistry>) -> Self {
        let mut bus = Self::new(provider);
        bus.set_schema_registry(registry);
        bus
    }

    /// Connects to the provider that a URL names, for instance `memory://`. [`ProviderRegistry`] lists the schemes.
    ///
    /// # Errors
    ///
    /// Same as [`ProviderRegistry::connect`].
    pub async fn connect(url: &str) -> Result<Self> {
        Ok(Self::from_provider(ProviderRegistry::builtin().connect(url).await?))
    }

    /// Returns a builder for a bus with several parts over this provider. [`EventBusBuilder::connect`] takes a URL.
    pub fn builder(provider: impl IntoProvider) -> EventBusBuilder {
        EventBusBuilder::new(provider)
    }

    /// Sets the schema registry; the bus validates payloads against it before publishing.
    pub fn set_schema_registry(&mut self, registry: Arc<dyn SchemaRegistry>) {
        self.schema_registry = Some(registry);
    }

    /// Enables validation of consumed events against the schema registry, after decryption. Use it for streams to which
    /// other programs publish. Off by default; applies to subscriptions created from now on.
    ///
    /// An event that fails surfaces once as [`EventError::Undecodable`] and is dead-lettered, like one that cannot be
    /// decrypted.
    ///
    /// It needs a [schema registry](EventBus::set_schema_registry). Without one, opening a subscription or a consumer
    /// fails with [`EventError::Config`].
    pub fn set_validate_on_consume(&mut self, validate: bool) {
        self.validates_on_consume = validate;
    }

    /// Sets the dead-letter handler. It receives the events that the bus's subscriptions and consumers cannot process:
    ///
    /// - events delivered `max_deliver` times
    /// - events that were [terminated](crate::Delivery::term)
    /// - events that cannot be decoded or decrypted, or that fail validation on consume
    ///
    /// An event is settled once the handler has accepted its dead letter. Dead letters of encrypted events stay
    /// encrypted; [`dead_letters`](EventBus::dead_letters) decrypts them. Applies to subscriptions created from now on.
    ///
    /// The bus counts deliveries itself, with or without a handler, and opens consumers without a delivery limit. With
    /// a handler, it also removes a limit that another program has set. If it cannot, it returns a
    /// [`Conflict`](EventError::Conflict). **All programs that share a durable consumer should have a dead-letter
    /// handler**: a program without one logs an exhausted event as an error and settles it.
    pub fn set_dlq_handler(&mut self, handler: Arc<dyn DlqHandler>) {
        self.dlq_handler = Some(handler);
    }

    /// Sets the encryptor. The bus encrypts payloads on publish and decrypts them for all readers of this bus. Applies
    /// to subscriptions created from now on.
    pub fn set_encryptor(&mut self, encryptor: Arc<dyn EventEncryptor>) {
        self.encryptor = Some(encryptor);
    }

    /// Sets the store for subscriptions and loads its content. A store that is not empty replaces the current
    /// subscriptions. An invalid stored subscription is set aside with a warning in the log, and the others take
    /// effect. [`invalid_subscriptions`](EventBus::invalid_subscriptions) lists those set aside.
    ///
    /// Loading blocks while it reads from the store, for instance a file.
    ///
    /// # Errors
    ///
    /// Returns the store's error; the bus is then unchanged.
    pub fn set_state_store(&mut self, store: Arc<dyn StateStore>) -> Result<()> {
        let loaded = store.load()?;
        if !loaded.is_empty() {
            self.registry.replace(loaded, |filter| self.check_subscription(filter));
        }
        self.state_store = Some(store);
        Ok(())
    }

    /// Sets the router that receives published events.
    #[cfg(feature = "routing")]
    pub(crate) fn set_router(&mut self, router: Arc<dyn Router>) {
        self.router = Some(router);
    }

    /// Returns the state store, if one is set.
    pub fn state_store(&self) -> Option<&dyn StateStore> {
        self.state_store.as_deref()
    }

    /// Returns the encryptor, if one is set.
    pub fn encryptor(&self) -> Option<&dyn EventEncryptor> {
        self.encryptor.as_deref()
    }

    /// Returns the dead-letter handler, if one is set.
    pub fn dlq_handler(&self) -> Option<&dyn DlqHandler> {
        self.dlq_handler.as_deref()
    }

    /// Returns the dead-letter handler as a shared pointer, if one is set.
    #[cfg(feature = "routing")]
    pub(crate) fn dlq_handler_arc(&self) -> Option<Arc<dyn DlqHandler>> {
        self.dlq_handler.clone()
    }

    /// Returns the schema registry, if one is set.
    pub fn schema_registry(&self) -> Option<&dyn SchemaRegistry> {
        self.schema_registry.as_deref()
    }

    /// Returns the router, if one is set.
    #[cfg(feature = "routing")]
    pub(crate) fn router(&self) -> Option<&dyn Router> {
        self.router.as_deref()
    }

    /// Returns the bus's counters in the form of earlier versions; [`telemetry`](EventBus::telemetry) has all metrics.
    pub fn metrics(&self) -> &EventMetrics {
        self.metrics.events()
    }

    /// Returns all metrics of the bus, including latencies and the counters of each subscription.
    pub fn telemetry(&self) -> &BusMetrics {
        &self.metrics
    }

    /// Returns the name of the provider.
    pub fn provider_name(&self) -> &str {
        self.provider.name()
    }

    /// Returns the provider.
    pub fn provider(&self) -> &dyn EventProvider {
        &*self.provider
    }

    /// Returns the provider as a shared pointer.
    pub fn provider_arc(&self) -> Arc<dyn EventProvider> {
        Arc::clone(&self.provider)
    }

    /// Returns the newest `limit` events of one category or of all, newest first. Payloads are decrypted; those that
    /// cannot be decrypted stay as stored.
    ///
    /// # Errors
    ///
    /// Same as [`EventProvider::history`], and [`EventError::Timeout`].
    pub async fn list_events(&self, category: Option<&str>, limit: usize) -> Result<Vec<Event>> {
        let filter = category.map(|category| self.provider.category_subject(category));
        let history = self.provider.history(filter.as_deref(), limit);
        let mut events = self.within_deadline("history", history).await?;
        for event in &mut events {
            if let Some(payload) = self.decrypted(event) {
                event.payload = payload;
            }
        }
        Ok(events)
    }

    /// Returns stored events by filter, sequence and time, newest first. Payloads are decrypted; those that cannot be
    /// decrypted stay as stored. Unreadable records are omitted; [`query_page`](EventBus::query_page) lists them.
    ///
    /// # Errors
    ///
    /// Same as [`EventProvider::query`], and [`EventError::Timeout`].
    pub async fn query(&self, query: &HistoryQuery) -> Result<Vec<StoredEvent>> {
        self.check_query()?;
        let mut found = self.within_deadline("query", self.provider.query(query)).await?;
        self.decrypt_all(&mut found);
        Ok(found)
    }

    /// Returns one page of stored events, the unreadable records, and the position of the next page. Payloads are
    /// decrypted; those that cannot be decrypted stay as stored.
    ///
    /// # Errors
    ///
    /// Same as [`EventProvider::query_page`], and [`EventError::Timeout`].
    pub async fn query_page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        self.check_query()?;
        let mut page = self.within_deadline("query", self.provider.query_page(query)).await?;
        self.decrypt_all(&mut page.events);
        Ok(page)
    }

    fn check_query(&self) -> Result<()> {
        if self.provider.capabilities().history_query.is_no() {
            return Err(crate::provider::support::unsupported("query", self.provider.name()));
        }
        Ok(())
    }

    fn decrypt_all(&self, found: &mut [StoredEvent]) {
        for stored in found {
            if let Some(payload) = self.decrypted(&stored.event) {
                Arc::make_mut(&mut stored.event).payload = payload;
            }
        }
    }

    /// Returns the newest `limit` dead letters, newest first. Payloads are decrypted; those that cannot be decrypted
    /// stay as stored.
    ///
    /// # Errors
    ///
    /// [`EventError::NotFound`] without a dead-letter handler; otherwise same as [`DlqHandler::list`], and
    /// [`EventError::Timeout`].
    pub async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetterEvent>> {
        let Some(handler) = &self.dlq_handler else {
            return Err(EventError::NotFound(
                "dead-letter handler; call EventBus::set_dlq_handler to set one".to_owned(),
            ));
        };
        let mut letters = self.within_deadline("dead_letters", handler.list(limit)).await?;
        for letter in &mut letters {
            if let Some(payload) = self.decrypted(&letter.event.event) {
                letter.event.event.payload = payload;
            }
        }
        Ok(letters)
    }

    /// Counts the newest `limit` events per category.
    ///
    /// # Errors
    ///
    /// Same as [`EventProvider::history`], and [`EventError::Timeout`].
    pub async fn counts(&self, limit: usize) -> Result<EventCounts> {
        let events = self.within_deadline("history", self.provider.history(None, limit)).await?;
        let mut counts = EventCounts { total: events.len() as u64, ..EventCounts::default() };
        for event in events {
            *counts.categories.entry(event.category).or_default() += 1;
        }
        Ok(counts)
    }

    /// Returns position and lag of every consumer of the stream, including those that this bus did not create.
    ///
    /// # Errors
    ///
    /// Same as [`EventProvider::consumers`], and [`EventError::Timeout`].
    pub async fn consumers(&self) -> Result<Vec<ConsumerInfo>> {
        self.within_deadline("consumers", self.provider.consumers()).await
    }

    /// Returns the counts of the stream.
    ///
    /// # Errors
    ///
    /// Same as [`EventProvider::info`], and [`EventError::Timeout`].
    pub async fn info(&self) -> Result<ProviderInfo> {
        self.within_deadline("info", self.provider.info()).await
    }

    /// Returns `true` if the provider makes progress, and `false` if it does not answer within the operation timeout.
    ///
    /// # Errors
    ///
    /// Same as [`EventProvider::health`].
    pub async fn health(&self) -> Result<bool> {
        match self.within_deadline("health", self.provider.health()).await {
            Err(EventError::Timeout(_)) => Ok(false),
            answer => answer,
        }
    }

    /// Closes the provider: later publishes fail, and open subscriptions end with `Ok(None)`.
    ///
    /// # Errors
    ///
    /// Same as [`EventProvider::close`], and [`EventError::Timeout`].
    pub async fn close(&self) -> Result<()> {
        self.within_deadline("close", self.provider.close()).await
    }

    /// Returns the decrypted payload, or `None` if it is not encrypted or cannot be decrypted.
    fn decrypted(&self, event: &Event) -> Option<serde_json::Value> {
        let encryptor =
            self.encryptor.as_deref().filter(|encryptor| encryptor.is_encrypted(&event.payload))?;
        match subscription::decrypt(encryptor, event, self.provider.subject_prefix()) {
            Ok(payload) => {
                self.metrics.record_decrypt();
                Some(payload)
            }
            Err(error) => {
                tracing::warn!(event = event.id, %error, "decrypting the payload failed; it is returned encrypted");
                None
            }
        }
    }

    async fn within_deadline<T>(
        &self,
        operation: &str,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        answer_within(self.operation_timeout, operation, self.provider.name(), call).await
    }

    /// Refuses validation on consume without schemas: it would accept every event. Called where the setting takes
    /// effect, because its setters may be called in any order.
    fn check_validation(&self) -> Result<()> {
        if self.validates_on_consume && self.schema_registry.is_none() {
            return Err(EventError::Config(
                "validate_on_consume: needs a schema registry; set one with schema_registry or \
                 set_schema_registry"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    fn opener(&self) -> Opener {
        Opener {
            provider: Arc::clone(&self.provider),
            encryptor: self.encryptor.clone(),
            schemas: self.schema_registry.clone().filter(|_| self.validates_on_consume),
            as_stored: false,
            dlq_handler: self.dlq_handler.clone(),
            registry: Arc::clone(&self.registry),
            metrics: Arc::clone(&self.metrics),
            timeout: self.operation_timeout,
        }
    }

    /// Warns once if options are in use and the provider does not declare whether it supports them.
    fn warn_of_undeclared(&self, publish: Option<&PublishOptions>, subscribe: Option<&SubscribeOptions>) {
        if let Some(option) = self.provider.capabilities().undeclared(publish, subscribe)
            && !self.warned_of_undeclared.swap(true, Ordering::Relaxed)
        {
            let provider = self.provider.name();
            tracing::warn!(
                provider,
                option,
                "the provider declares no capabilities; options may have no effect"
            );
        }
    }
}

/// Receives what a bus has published. The [broker](crate::broker), which builds on the bus, implements it.
#[cfg(feature = "routing")]
#[async_trait::async_trait]
pub(crate) trait Router: std::any::Any + Send + Sync {
    /// Routes events, each in clear and as stored.
    async fn route_published(&self, published: &[(&Event, &Event)]);
}

/// Waits for a provider's answer, with a timeout.
async fn answer_within<T>(
    limit: Duration,
    operation: &str,
    provider: &str,
    call: impl Future<Output = Result<T>> + Send,
) -> Result<T> {
    within(limit, || format!("{operation} on provider '{provider}'"), call).await
}

impl fmt::Debug for EventBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventBus").field("provider", &self.provider.name()).finish_non_exhaustive()
    }
}
