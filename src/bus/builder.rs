//! Builder of the bus.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::EventBus;
use crate::crypto::EventEncryptor;
use crate::dlq::DlqHandler;
use crate::error::{EventError, Result};
use crate::provider::{EventProvider, IntoProvider, ProviderRegistry};
use crate::schema::SchemaRegistry;
use crate::state::StateStore;

/// Builds an [`EventBus`] with several parts in one expression.
///
/// [`connect`](EventBusBuilder::connect) begins with a URL, [`EventBus::builder`] with a provider.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use a3s_event::{EventBusBuilder, MemoryDlqHandler, MemorySchemaRegistry};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> a3s_event::Result<()> {
/// let bus = EventBusBuilder::connect("memory://")
///     .await?
///     .schema_registry(Arc::new(MemorySchemaRegistry::new()))
///     .dlq_handler(Arc::new(MemoryDlqHandler::default()))
///     .operation_timeout(Duration::from_secs(5))
///     .build()?;
/// # let _ = bus;
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct EventBusBuilder {
    bus: EventBus,
    state_store: Option<Arc<dyn StateStore>>,
}

impl EventBusBuilder {
    /// Begins with a provider: a provider by value, or an `Arc` of one.
    ///
    /// ```
    /// use a3s_event::{EventBusBuilder, ProviderRegistry};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> a3s_event::Result<()> {
    /// let provider = ProviderRegistry::builtin().connect("memory://").await?;
    /// let bus = EventBusBuilder::new(provider).build()?;
    /// # let _ = bus;
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(provider: impl IntoProvider) -> Self {
        Self { bus: EventBus::from_provider(provider.into_provider()), state_store: None }
    }

    /// Connects to the provider that a URL names, and begins with it. [`ProviderRegistry`] lists the schemes.
    ///
    /// # Errors
    ///
    /// Same as [`ProviderRegistry::connect`].
    pub async fn connect(url: &str) -> Result<Self> {
        Ok(Self::new(ProviderRegistry::builtin().connect(url).await?))
    }

    /// Returns the provider, for parts that store on the same bus, such as [`ProviderDlqHandler`](crate::ProviderDlqHandler).
    pub fn provider(&self) -> Arc<dyn EventProvider> {
        self.bus.provider_arc()
    }

    /// Sets the schema registry, as [`EventBus::set_schema_registry`] does.
    pub fn schema_registry(mut self, registry: Arc<dyn SchemaRegistry>) -> Self {
        self.bus.set_schema_registry(registry);
        self
    }

    /// Enables validation on consume, as [`EventBus::set_validate_on_consume`] does. It needs a
    /// [`schema_registry`](EventBusBuilder::schema_registry).
    pub fn validate_on_consume(mut self, validate: bool) -> Self {
        self.bus.set_validate_on_consume(validate);
        self
    }

    /// Sets the encryptor, as [`EventBus::set_encryptor`] does.
    pub fn encryptor(mut self, encryptor: Arc<dyn EventEncryptor>) -> Self {
        self.bus.set_encryptor(encryptor);
        self
    }

    /// Sets the dead-letter handler, as [`EventBus::set_dlq_handler`] does.
    pub fn dlq_handler(mut self, handler: Arc<dyn DlqHandler>) -> Self {
        self.bus.set_dlq_handler(handler);
        self
    }

    /// Sets the router, as [`EventBus::set_router`] does.
    #[cfg(feature = "routing")]
    pub(crate) fn router(mut self, router: Arc<dyn super::Router>) -> Self {
        self.bus.set_router(router);
        self
    }

    /// Sets the state store, as [`EventBus::set_state_store`] does. [`build`](EventBusBuilder::build) loads the
    /// subscriptions.
    pub fn state_store(mut self, store: Arc<dyn StateStore>) -> Self {
        self.state_store = Some(store);
        self
    }

    /// Sets the timeout of provider calls that name none. Default 30 s.
    pub fn operation_timeout(mut self, timeout: Duration) -> Self {
        self.bus.operation_timeout = timeout;
        self
    }

    /// Builds the bus.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] for a zero timeout, and for validation on consume without a schema registry; and the error
    /// of a state store that cannot be loaded.
    pub fn build(mut self) -> Result<EventBus> {
        self.bus.check_validation()?;
        if self.bus.operation_timeout.is_zero() {
            return Err(EventError::Config("operation_timeout 0s: must be longer than zero".to_owned()));
        }
        if let Some(store) = self.state_store {
            self.bus.set_state_store(store)?;
        }
        Ok(self.bus)
    }
}

impl fmt::Debug for EventBusBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventBusBuilder").field("bus", &self.bus).finish_non_exhaustive()
    }
}
