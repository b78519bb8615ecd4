//! Layers around a handler. Each is a function from a handler to a handler.
//!
//! The [policy](super::RetryPolicy) has retries and the timeout of an attempt. The runtime adds a span around every
//! attempt.
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use a3s_event::consumer::layers::{self, MemoryIdempotencyStore};
//! use a3s_event::{Delivery, EventBus};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> a3s_event::Result<()> {
//! let bus = EventBus::connect("memory://").await?;
//! let send = |delivery: Delivery| async move {
//!     println!("mail about {}", delivery.event().id);
//!     Ok(())
//! };
//! // From the inside out: skip events handled before, and handle at most four at a time over all that share this.
//! let send = layers::idempotent(Arc::new(MemoryIdempotencyStore::new(10_000)), send);
//! let send = layers::concurrency_limit(4, send);
//! let consumer = bus.consumer("mailer").subject("events.orders.>").concurrency(16).handle(send).await?;
//! consumer.shutdown().await
//! # }
//! ```

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tracing::Instrument;

use super::Handler;
use super::policy::{HandlerError, HandlerResult};
use crate::bus::subscription::cannot_be_decrypted;
use crate::crypto::sealed_error;
use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;
use crate::provider::support::unsupported;
use crate::provider::{Delivery, EventProvider, HistoryQuery};
use crate::reserved;
use crate::text::without_values;
use crate::types::{Event, PublishOptions};

/// Fails a handler that takes longer than `limit`. Use it for a part of a handler; the policy has a timeout for the
/// whole.
pub fn timeout(limit: Duration, handler: impl Handler) -> impl Handler {
    let handler = Arc::new(handler);
    move |delivery: Delivery| {
        let handler = Arc::clone(&handler);
        async move {
            match tokio::time::timeout(limit, handler.call(delivery)).await {
                Ok(result) => result,
                Err(_elapsed) => Err(HandlerError::retry(format!("no result within {limit:?}"))),
            }
        }
    }
}

/// Limits how many calls run at a time, also over several consumers that share the handler; at least one. Waiting calls
/// count against the timeout of the policy.
pub fn concurrency_limit(limit: usize, handler: impl Handler) -> impl Handler {
    let shared = Arc::new((Semaphore::new(limit.max(1)), handler));
    move |delivery: Delivery| {
        let shared = Arc::clone(&shared);
        async move {
            let (permits, handler) = &*shared;
            // The semaphore is never closed.
            let _permit = permits.acquire().await.map_err(HandlerError::retry)?;
            handler.call(delivery).await
        }
    }
}

/// Runs a handler in a span of this name. Use it for a part of a handler; the runtime has a span for the whole.
pub fn traced(name: &'static str, handler: impl Handler) -> impl Handler {
    let handler = Arc::new(handler);
    move |delivery: Delivery| {
        let handler = Arc::clone(&handler);
        let span =
            tracing::info_span!("handler", otel.name = name, messaging.message.id = delivery.event().id);
        async move { handler.call(delivery).await }.instrument(span)
    }
}

/// Deserializes the payload to the handler's type. An event whose payload does not fit is dead-lettered at once. The
/// reason says what was expected and shows no value, because payloads that are encrypted at rest are in clear here. A
/// payload that is still encrypted, because the bus has no encryptor, is dead-lettered as undecryptable.
pub fn typed<T, F, Fut>(handler: F) -> impl Handler
where
    T: DeserializeOwned + Send + 'static,
    F: Fn(T, Delivery) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = HandlerResult> + Send + 'static,
{
    let handler = Arc::new(handler);
    move |delivery: Delivery| {
        let payload = T::deserialize(&delivery.event().payload);
        let handler = Arc::clone(&handler);
        async move {
            match payload {
                Ok(payload) => handler(payload, delivery).await,
                Err(error) => Err(match sealed_error(&delivery.event().payload) {
                    Some(sealed) => HandlerError::undecryptable(cannot_be_decrypted(&sealed)),
                    None => HandlerError::mismatch(without_values(&error)),
                }),
            }
        }
    }
}

/// Skips events that were handled before, by their id. An event is remembered when its handler has succeeded. If the
/// process dies in between, the event is handled again: at least once, and rarely twice.
///
/// Publishers choose the ids: an event that takes the id of another publisher's event prevents that event from being
/// handled. If publishers do not trust each other, give each its own stream, or its own subjects and consumer.
///
/// Records that the store itself has written succeed without being handled or remembered.
pub fn idempotent(handled: Arc<dyn IdempotencyStore>, handler: impl Handler) -> impl Handler {
    let handler = Arc::new(handler);
    move |delivery: Delivery| {
        let (handled, handler) = (Arc::clone(&handled), Arc::clone(&handler));
        async move {
            if handled.is_record(delivery.event()) {
                return Ok(());
            }
            let id = delivery.event().id.clone();
            if handled.contains(&id).await? {
                tracing::debug!(event = id, "event skipped: it was handled before");
                return Ok(());
            }
            handler.call(delivery).await?;
            Ok(handled.insert(&id).await?)
        }
    }
}

/// Remembers which events were handled.
#[async_trait]
pub trait IdempotencyStore: Send + Sync {
    /// Returns true if this event was handled.
    ///
    /// # Errors
    ///
    /// The error of the backend behind the store; the attempt then fails.
    async fn contains(&self, event_id: &str) -> Result<bool>;

    /// Remembers an event.
    ///
    /// # Errors
    ///
    /// The error of the backend behind the store; the attempt then fails, and the event is handled again.
    async fn insert(&self, event_id: &str) -> Result<()>;

    /// Returns true if a store of this kind wrote the event to remember another one. [`idempotent`] neither handles nor
    /// remembers such records; otherwise remembering would never end. The default is for stores that write no events.
    fn is_record(&self, event: &Event) -> bool {
        let _ = event;
        false
    }
}

/// Idempotency store for the newest events of this process.
pub struct MemoryIdempotencyStore {
    capacity: usize,
    events: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    ids: HashSet<Arc<str>>,
    /// The same ids, oldest first.
    order: VecDeque<Arc<str>>,
}

impl MemoryIdempotencyStore {
    /// Creates a store of this many events, at least one. When it is full, each new event evicts the oldest.
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), events: Mutex::default() }
    }
}

#[async_trait]
impl IdempotencyStore for MemoryIdempotencyStore {
    async fn contains(&self, event_id: &str) -> Result<bool> {
        Ok(self.events.lock().ignore_poison().ids.contains(event_id))
    }

    async fn insert(&self, event_id: &str) -> Result<()> {
        let mut events = self.events.lock().ignore_poison();
        let Recent { ids, order } = &mut *events;
        let id: Arc<str> = event_id.into();
        if ids.insert(Arc::clone(&id)) {
            order.push_back(id);
        }
        if order.len() > self.capacity
            && let Some(oldest) = order.pop_front()
        {
            ids.remove(&oldest);
        }
        Ok(())
    }
}

impl fmt::Debug for MemoryIdempotencyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryIdempotencyStore").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

/// Idempotency store in a provider, under `{prefix}.handled.{scope}.{hash of the id}`. It survives restarts, and all
/// processes that share the provider share it. Events are remembered for as long as the provider's limits keep them.
///
/// It can be the provider of the events themselves: a consumer receives no records of the store unless its filter names
/// their subject, such as `events.handled.>`. A program that may publish below `{prefix}.handled` can mark any event as
/// handled, so grant that to the consumers only.
pub struct ProviderIdempotencyStore {
    provider: Arc<dyn EventProvider>,
    scope: String,
}

impl ProviderIdempotencyStore {
    /// Creates a store in this provider. The scope, one token of a subject, separates consumers that handle the same
    /// events.
    ///
    /// # Errors
    ///
    /// [`EventError::Unsupported`] for a provider that declares that it has no history queries;
    /// [`EventError::InvalidName`] for a scope that is not one token.
    pub fn new(provider: Arc<dyn EventProvider>, scope: impl Into<String>) -> Result<Self> {
        let scope = scope.into();
        if provider.capabilities().history_query.is_no() {
            return Err(unsupported("query", provider.name()));
        }
        crate::subject::validate_category(&scope).map_err(|error| match error {
            EventError::InvalidName { value, rule, .. } => {
                EventError::InvalidName { field: "scope", value, rule }
            }
            error => error,
        })?;
        Ok(Self { provider, scope })
    }

    fn subject(&self, event_id: &str) -> String {
        reserved::handled_subject(self.provider.subject_prefix(), &self.scope, event_id)
    }
}

#[async_trait]
impl IdempotencyStore for ProviderIdempotencyStore {
    async fn contains(&self, event_id: &str) -> Result<bool> {
        let found = self.provider.query(&HistoryQuery::new(1).filter(self.subject(event_id))).await?;
        let is_record = |event: &Event| self.is_record(event) && event.payload.as_str() == Some(event_id);
        Ok(found.iter().any(|stored| is_record(&stored.event)))
    }

    async fn insert(&self, event_id: &str) -> Result<()> {
        let event = Event::typed(
            self.subject(event_id),
            "handled",
            reserved::HANDLED_TYPE,
            1,
            "",
            self.scope.clone(),
            serde_json::json!(event_id),
        );
        self.provider.publish_with_options(&event, &PublishOptions::default()).await.map(drop)
    }

    fn is_record(&self, event: &Event) -> bool {
        reserved::is_handled_record(event, self.provider.subject_prefix())
    }
}

impl fmt::Debug for ProviderIdempotencyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderIdempotencyStore")
            .field("provider", &self.provider.name())
            .field("scope", &self.scope)
            .finish()
    }
}
