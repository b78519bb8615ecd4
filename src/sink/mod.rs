//! Sinks: targets that events are delivered to.
//!
//! A sink is the target of a trigger of the broker and of a dead-letter queue. Use [`TopicSink`] and [`InProcessSink`]
//! in programs, [`LogSink`] to watch events, and [`CollectorSink`] and [`FailingSink`] in tests.

mod delivery_key;
mod failure;
#[cfg(feature = "http")]
mod http;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;

pub use delivery_key::DeliveryKey;
pub use failure::SinkFailure;
#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub use http::{HttpSink, HttpSinkBuilder};

use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;
use crate::provider::EventProvider;
use crate::types::{Event, PublishOptions};

/// A target for events. Its methods are called from many tasks at once.
///
/// ```
/// use a3s_event::{Event, EventError, EventSink, Result};
///
/// struct Webhook;
///
/// #[async_trait::async_trait]
/// impl EventSink for Webhook {
///     async fn deliver(&self, event: &Event) -> Result<()> {
///         if event.subject.is_empty() {
///             return Err(EventError::SinkDelivery { sink: self.name().into(), reason: "no subject".into() });
///         }
///         Ok(())
///     }
///
///     fn name(&self) -> &str {
///         "webhook"
///     }
/// }
/// ```
#[async_trait]
pub trait EventSink: Send + Sync {
    /// Delivers one event. `Ok` means that the target has taken it.
    ///
    /// The caller may drop the future, so a sink must not rely on being polled to its end.
    ///
    /// # Errors
    ///
    /// [`EventError::SinkDelivery`], or the error of the target. The event then counts as not delivered.
    async fn deliver(&self, event: &Event) -> Result<()>;

    /// Delivers one event under a key that is the same for each attempt at this delivery. The broker calls this method.
    ///
    /// A sink whose target deduplicates passes the key on, so that an attempt without an answer stores nothing twice. A
    /// sink that needs an owned event avoids a copy if it holds the only reference. The default calls
    /// [`deliver`](EventSink::deliver).
    ///
    /// # Errors
    ///
    /// As [`deliver`](EventSink::deliver).
    async fn deliver_keyed(&self, event: Arc<Event>, key: DeliveryKey) -> Result<()> {
        let _ = key;
        self.deliver(&event).await
    }

    /// Returns the name of the sink, for logs and errors.
    fn name(&self) -> &str;

    /// Returns the form in which the sink takes payloads that are encrypted at rest. The default is as they are stored,
    /// so payloads leave the process encrypted.
    fn payload(&self) -> PayloadForm {
        PayloadForm::AsStored
    }
}

/// The form in which a sink takes payloads that are encrypted at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum PayloadForm {
    /// As they are stored: encrypted.
    #[default]
    AsStored,
    /// In clear. For sinks that stay in the process or are configured so.
    Clear,
}

/// Publishes events to a provider, unchanged and under their own subject. Encrypted payloads stay encrypted.
///
/// For a broker, the sink publishes with the [delivery key](DeliveryKey) as `msg_id` if the provider deduplicates. If
/// an attempt gets no answer, the next one stores no second event within the deduplication window, 120 s unless
/// configured otherwise. Only attempts at the same delivery are deduplicated. An event is stored each time if it is in
/// the source stream twice, is replayed, passes a loop or matches two triggers.
///
/// An error is the provider's own, so its classification is kept.
pub struct TopicSink {
    name: String,
    provider: Arc<dyn EventProvider>,
}

impl TopicSink {
    /// Creates a sink that publishes to `provider`.
    pub fn new(name: impl Into<String>, provider: Arc<dyn EventProvider>) -> Self {
        Self { name: name.into(), provider }
    }
}

#[async_trait]
impl EventSink for TopicSink {
    async fn deliver(&self, event: &Event) -> Result<()> {
        self.provider.publish(event).await.map(drop)
    }

    async fn deliver_keyed(&self, event: Arc<Event>, key: DeliveryKey) -> Result<()> {
        if self.provider.capabilities().dedup.is_no() {
            return self.deliver(&event).await;
        }
        let options = PublishOptions { msg_id: Some(key.to_string()), ..PublishOptions::default() };
        self.provider.publish_with_options(&event, &options).await.map(drop)
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for TopicSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicSink")
            .field("name", &self.name)
            .field("provider", &self.provider.name())
            .finish()
    }
}

type Handling = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Calls a function of this process with each event.
///
/// ```
/// use a3s_event::{Event, EventSink, InProcessSink};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> a3s_event::Result<()> {
/// let sink = InProcessSink::new("printer", |event: Event| async move {
///     println!("{}", event.summary);
///     Ok(())
/// });
/// sink.deliver(&Event::new("events.a", "a", "hello", "doc", serde_json::json!({}))).await?;
/// # Ok(())
/// # }
/// ```
pub struct InProcessSink {
    name: String,
    handler: Box<dyn Fn(Event) -> Handling + Send + Sync>,
}

impl InProcessSink {
    /// Creates a sink that awaits `handler` for each event and returns its error.
    pub fn new<F, Fut>(name: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Event) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        Self { name: name.into(), handler: Box::new(move |event| Box::pin(handler(event))) }
    }
}

#[async_trait]
impl EventSink for InProcessSink {
    async fn deliver(&self, event: &Event) -> Result<()> {
        (self.handler)(event.clone()).await
    }

    async fn deliver_keyed(&self, event: Arc<Event>, _key: DeliveryKey) -> Result<()> {
        (self.handler)(Arc::unwrap_or_clone(event)).await
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn payload(&self) -> PayloadForm {
        PayloadForm::Clear
    }
}

impl fmt::Debug for InProcessSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcessSink").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Logs each event through `tracing` at level info. It never logs the payload, which may be confidential.
#[derive(Debug)]
pub struct LogSink {
    name: String,
}

impl LogSink {
    /// Creates a sink whose log lines carry this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }
}

impl Default for LogSink {
    /// Creates a sink with the name `log-sink`.
    fn default() -> Self {
        Self::new("log-sink")
    }
}

#[async_trait]
impl EventSink for LogSink {
    async fn deliver(&self, event: &Event) -> Result<()> {
        // Logged as string values, not with Display, so that formatters escape line breaks in them.
        tracing::info!(
            sink = self.name,
            id = event.id,
            subject = event.subject,
            event_type = event.event_type,
            version = event.version,
            source = event.source,
            summary = event.summary,
            "event"
        );
        Ok(())
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// Collects events, for tests.
///
/// It holds at most [`MAX_EVENTS`](CollectorSink::MAX_EVENTS) events and refuses further ones. In a running program, a
/// forgotten collector then causes errors in the log and does not fill the memory.
///
/// ```
/// use a3s_event::{CollectorSink, Event, EventSink};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> a3s_event::Result<()> {
/// let sink = CollectorSink::new("test");
/// sink.deliver(&Event::new("events.a", "a", "", "doc", serde_json::json!(1))).await?;
/// assert_eq!(sink.count().await, 1);
/// assert_eq!(sink.events().await[0].payload, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct CollectorSink {
    name: String,
    events: Mutex<Vec<Event>>,
}

impl CollectorSink {
    /// Maximum number of events that a collector takes.
    pub const MAX_EVENTS: usize = 1_000_000;

    /// Creates an empty collector.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), events: Mutex::default() }
    }

    /// Returns the collected events in order of arrival.
    pub async fn events(&self) -> Vec<Event> {
        self.collected().clone()
    }

    /// Returns the number of collected events.
    pub async fn count(&self) -> usize {
        self.collected().len()
    }

    /// Locks the events. A push is the only change, so a poisoned lock is harmless.
    fn collected(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().ignore_poison()
    }
}

#[async_trait]
impl EventSink for CollectorSink {
    async fn deliver(&self, event: &Event) -> Result<()> {
        let mut events = self.collected();
        if events.len() >= Self::MAX_EVENTS {
            return Err(EventError::SinkDelivery {
                sink: self.name.clone(),
                reason: format!("the collector is full at {} events", Self::MAX_EVENTS),
            });
        }
        events.push(event.clone());
        Ok(())
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn payload(&self) -> PayloadForm {
        PayloadForm::Clear
    }
}

/// Fails every delivery with [`EventError::SinkDelivery`], for tests.
#[derive(Debug)]
pub struct FailingSink {
    name: String,
    reason: String,
}

impl FailingSink {
    /// Creates a sink that fails with this reason.
    pub fn new(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: name.into(), reason: reason.into() }
    }
}

#[async_trait]
impl EventSink for FailingSink {
    async fn deliver(&self, _event: &Event) -> Result<()> {
        Err(EventError::SinkDelivery { sink: self.name.clone(), reason: self.reason.clone() })
    }

    fn name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryProvider;
    use serde_json::json;

    fn event(subject: &str) -> Event {
        Event::new(subject, "a", "summary", "test", json!({"n": 1}))
    }

    #[tokio::test]
    async fn a_topic_sink_publishes_the_event_unchanged() {
        let provider = Arc::new(MemoryProvider::default());
        let sink = TopicSink::new("topic", provider.clone());
        let event = event("events.a.b").with_metadata("k", "v");
        sink.deliver(&event).await.unwrap();
        let stored = provider.history(None, 10).await.unwrap();
        assert_eq!(stored.len(), 1);
        assert_eq!(serde_json::to_value(&stored[0]).unwrap(), serde_json::to_value(&event).unwrap());
        assert_eq!(sink.name(), "topic");
    }

    #[tokio::test]
    async fn a_topic_sink_keeps_the_class_of_the_providers_error() {
        let sink = TopicSink::new("topic", Arc::new(MemoryProvider::default()));
        let error = sink.deliver(&event("elsewhere.a")).await.unwrap_err();
        assert!(matches!(error, EventError::InvalidSubject { .. }), "{error}");
    }

    #[tokio::test]
    async fn an_in_process_sink_hands_over_the_event_and_the_handlers_error() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = InProcessSink::new("handler", {
            let seen = Arc::clone(&seen);
            move |event: Event| {
                let seen = Arc::clone(&seen);
                async move {
                    seen.lock().unwrap().push(event.subject.clone());
                    match event.subject.as_str() {
                        "events.bad" => Err(EventError::Timeout("handler".into())),
                        _ => Ok(()),
                    }
                }
            }
        });
        sink.deliver(&event("events.good")).await.unwrap();
        let error = sink.deliver(&event("events.bad")).await.unwrap_err();
        assert!(matches!(error, EventError::Timeout(_)));
        assert_eq!(*seen.lock().unwrap(), ["events.good", "events.bad"]);
    }

    #[tokio::test]
    async fn a_log_sink_takes_everything() {
        let sink = LogSink::default();
        assert_eq!(sink.name(), "log-sink");
        assert_eq!(LogSink::new("mine").name(), "mine");
        sink.deliver(&event("events.a")).await.unwrap();
    }

    #[tokio::test]
    async fn a_collector_keeps_events_in_order() {
        let sink = CollectorSink::new("collector");
        for subject in ["events.1", "events.2", "events.3"] {
            sink.deliver(&event(subject)).await.unwrap();
        }
        let subjects: Vec<String> = sink.events().await.into_iter().map(|event| event.subject).collect();
        assert_eq!(subjects, ["events.1", "events.2", "events.3"]);
        assert_eq!(sink.count().await, 3);
    }

    #[tokio::test]
    async fn a_failing_sink_says_who_failed_and_why() {
        let error = FailingSink::new("broken", "on purpose").deliver(&event("events.a")).await.unwrap_err();
        match error {
            EventError::SinkDelivery { sink, reason } => {
                assert_eq!((sink.as_str(), reason.as_str()), ("broken", "on purpose"));
            }
            other => panic!("unexpected error {other}"),
        }
    }
}
