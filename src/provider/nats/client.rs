//! The connection: one client, its stream, and requests to JetStream's API with a timeout.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_nats::Subject;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{self, ErrorCode, consumer};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::batch::Faster;
use super::config::{NatsConfig, NatsProviderBuilder};
use super::confirm::Confirmer;
use super::error::{PROVIDER, refused};
use super::life::Lives;
use super::link::Link;
use super::shelf::Shelves;
use super::strays::Strays;
use super::stream::durability;
use super::unreadable::Hostile;
use super::{NatsProvider, NatsSubscription};
use crate::error::{BackendError, ErrorKind, Result};
use crate::provider::support::closed;
use crate::provider::{AckFailures, Durability, EventProvider, driver};
use crate::types::{Event, PublishOptions, SubscribeOptions};

/// A connection to a stream, with the operations of [`NatsProvider`](super::NatsProvider) and the native handles.
#[derive(Clone)]
pub struct NatsClient {
    pub(super) shared: Arc<Shared>,
}

/// State shared by the client, its subscriptions and their deliveries.
pub(super) struct Shared {
    pub(super) settings: NatsProviderBuilder,
    pub(super) link: Link,
    /// True once the provider is closed.
    pub(super) closed: watch::Sender<bool>,
    pub(super) durability: Durability,
    pub(super) replicas: usize,
    pub(super) max_event_bytes: usize,
    /// Time for which the server remembers a `msg_id`.
    pub(super) dedup_window: Duration,
    /// If true, one request can read many events without a consumer.
    pub(super) batched_direct_get: bool,
    /// If true, the stream accepts atomic batches.
    pub(super) atomic_batches: bool,
    pub(super) faster: Faster,
    /// Consumers that are open in this process.
    pub(super) lives: Lives,
    /// Records that end the connection that receives them.
    pub(super) hostile: Hostile,
    /// The task that empties abandoned inboxes. Set once the provider is complete, like the other tasks.
    pub(super) strays: OnceLock<Strays>,
    /// The task that has acks confirmed.
    pub(super) confirmer: OnceLock<Confirmer>,
    pub(super) ack_failures: Arc<AckFailures>,
    /// The task that watches the events that members fetched ahead.
    pub(super) shelves: OnceLock<Shelves>,
    /// Held while the stream is created again.
    pub(super) making: tokio::sync::Mutex<()>,
}

/// Statistics of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    /// Number of stored events.
    pub messages: u64,
    /// Size of the stored events in bytes, as the server counts it.
    pub bytes: u64,
    /// Sequence of the oldest stored event.
    pub first_sequence: u64,
    /// Sequence of the newest event.
    pub last_sequence: u64,
    /// Number of consumers.
    pub consumer_count: usize,
}

impl NatsClient {
    /// Connects, and creates the stream if it does not exist.
    ///
    /// # Errors
    ///
    /// Same as [`NatsProviderBuilder::connect`].
    pub async fn connect(config: NatsConfig) -> Result<Self> {
        Ok(NatsProviderBuilder::new(config).connect().await?.into_client())
    }

    pub(super) async fn from_builder(settings: NatsProviderBuilder) -> Result<Self> {
        let link = Link::connect(&settings).await?;
        let closed = watch::Sender::new(false);
        let mut shared = Shared {
            max_event_bytes: link.client().max_payload(),
            settings,
            link,
            closed,
            durability: Durability::Unknown,
            replicas: 1,
            dedup_window: Duration::ZERO,
            batched_direct_get: false,
            atomic_batches: false,
            faster: Faster::default(),
            lives: Lives::default(),
            hostile: Hostile::default(),
            strays: OnceLock::new(),
            confirmer: OnceLock::new(),
            ack_failures: Arc::default(),
            shelves: OnceLock::new(),
            making: tokio::sync::Mutex::new(()),
        };
        let stream = shared.open_stream().await?;
        shared.durability = durability(&stream);
        shared.replicas = stream.num_replicas;
        shared.dedup_window = stream.duplicate_window;
        shared.batched_direct_get =
            stream.allow_direct && shared.link.client().is_server_compatible(2, 11, 0);
        shared.atomic_batches = stream.allow_atomic_publish;
        // The server's limit includes the headers; -1 means no limit.
        let of_stream = usize::try_from(stream.max_message_size).ok().filter(|max| *max > 0);
        if let Some(max) = shared.settings.max_event_bytes.or(of_stream) {
            shared.max_event_bytes = shared.max_event_bytes.min(max);
        }
        let shared = Arc::new(shared);
        let strays = Strays::start(Arc::downgrade(&shared), shared.closed.subscribe());
        let _ = shared.strays.set(strays);
        let confirmer = Confirmer::start(Arc::downgrade(&shared), shared.closed.subscribe());
        let _ = shared.confirmer.set(confirmer);
        let shelves = Shelves::start(Arc::downgrade(&shared), shared.closed.subscribe());
        let _ = shared.shelves.set(shelves);
        Ok(Self { shared })
    }

    fn provider(&self) -> NatsProvider {
        NatsProvider { client: self.clone() }
    }

    /// Stores one event. See [`EventProvider::publish`](crate::EventProvider::publish).
    ///
    /// # Errors
    ///
    /// Same as that method.
    pub async fn publish(&self, event: &Event) -> Result<u64> {
        self.provider().publish(event).await
    }

    /// Stores one event with options. See
    /// [`EventProvider::publish_with_options`](crate::EventProvider::publish_with_options).
    ///
    /// # Errors
    ///
    /// Same as that method.
    pub async fn publish_with_options(&self, event: &Event, opts: &PublishOptions) -> Result<u64> {
        self.provider().publish_with_options(event, opts).await
    }

    /// Opens a durable consumer without changing its settings. See
    /// [`EventProvider::subscribe_durable`](crate::EventProvider::subscribe_durable).
    ///
    /// # Errors
    ///
    /// Same as that method.
    pub async fn subscribe_durable(
        &self,
        consumer_name: &str,
        filter_subject: &str,
    ) -> Result<NatsSubscription> {
        driver::open(&self.provider(), Some(consumer_name), filter_subject, None).await
    }

    /// Opens a durable consumer with options. See
    /// [`EventProvider::subscribe_durable_with_options`](crate::EventProvider::subscribe_durable_with_options).
    ///
    /// # Errors
    ///
    /// Same as that method.
    pub async fn subscribe_durable_with_options(
        &self,
        consumer_name: &str,
        filter_subject: &str,
        opts: &SubscribeOptions,
    ) -> Result<NatsSubscription> {
        driver::open(&self.provider(), Some(consumer_name), filter_subject, Some(opts)).await
    }

    /// Opens an ephemeral consumer. See [`EventProvider::subscribe`](crate::EventProvider::subscribe).
    ///
    /// # Errors
    ///
    /// Same as that method.
    pub async fn subscribe(&self, filter_subject: &str) -> Result<NatsSubscription> {
        driver::open(&self.provider(), None, filter_subject, None).await
    }

    /// Opens an ephemeral consumer with options. See
    /// [`EventProvider::subscribe_with_options`](crate::EventProvider::subscribe_with_options).
    ///
    /// # Errors
    ///
    /// Same as that method.
    pub async fn subscribe_with_options(
        &self,
        filter_subject: &str,
        opts: &SubscribeOptions,
    ) -> Result<NatsSubscription> {
        driver::open(&self.provider(), None, filter_subject, Some(opts)).await
    }

    /// Returns the newest stored events. See [`EventProvider::history`](crate::EventProvider::history).
    ///
    /// # Errors
    ///
    /// Same as that method.
    pub async fn history(&self, filter_subject: Option<&str>, limit: usize) -> Result<Vec<Event>> {
        self.provider().history(filter_subject, limit).await
    }

    /// Deletes a durable consumer. See [`EventProvider::unsubscribe`](crate::EventProvider::unsubscribe).
    ///
    /// # Errors
    ///
    /// Same as that method.
    pub async fn unsubscribe(&self, consumer_name: &str) -> Result<()> {
        self.provider().unsubscribe(consumer_name).await
    }

    /// Returns statistics of the stream.
    ///
    /// # Errors
    ///
    /// The server's error, or [`EventError::Timeout`](crate::EventError::Timeout).
    pub async fn stream_info(&self) -> Result<StreamInfo> {
        let state = self.shared.stream().await?.state;
        Ok(StreamInfo {
            messages: state.messages,
            bytes: state.bytes,
            first_sequence: state.first_sequence,
            last_sequence: state.last_sequence,
            consumer_count: state.consumer_count,
        })
    }

    /// Returns the number of servers that store the stream, as of connecting. With more than one, acknowledged events
    /// survive the loss of a server. [`Capabilities::durability`](crate::Capabilities) reports this too.
    pub fn replicas(&self) -> usize {
        self.shared.replicas
    }

    /// Returns the async-nats client. Code that uses it is not portable to other providers. If the connection task of a
    /// client ends, the provider replaces the client; call this method again then.
    pub fn nats_client(&self) -> &async_nats::Client {
        self.shared.link.client()
    }

    /// Returns the JetStream context of that client. Code that uses it is not portable to other providers.
    pub fn jetstream_context(&self) -> &jetstream::Context {
        self.shared.link.jetstream()
    }

    /// Returns the settings that it was connected with.
    pub fn config(&self) -> &NatsConfig {
        &self.shared.settings.config
    }
}

impl fmt::Debug for NatsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsClient").field("config", self.config()).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn stream_name(&self) -> &str {
        &self.settings.config.stream_name
    }

    pub(super) fn prefix(&self) -> &str {
        &self.settings.config.subject_prefix
    }

    pub(super) fn check_open(&self) -> Result<()> {
        if *self.closed.borrow() {
            return Err(closed(PROVIDER));
        }
        Ok(())
    }

    /// Sends a request to JetStream's API, with a JSON or empty body. The inner error is JetStream's answer.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        subject: String,
        body: Vec<u8>,
    ) -> Result<std::result::Result<T, jetstream::Error>> {
        let deadline = self.settings.config.request_timeout();
        let subject = Subject::from(format!("$JS.API.{subject}"));
        let answer = self.link.ask(&subject, &body, deadline).await;
        let answer = answer.map_err(|none| none.into_error(self.link.server(), operation, deadline))?;
        match serde_json::from_slice(&answer.payload) {
            Ok(Response::Ok(answer)) => Ok(Ok(answer)),
            Ok(Response::Err { error }) => Ok(Err(error)),
            Err(error) => Err(BackendError::new(PROVIDER, operation, ErrorKind::Backend, error).into()),
        }
    }

    /// Returns the state of a consumer, or `None` if the consumer or the stream does not exist.
    pub(super) async fn consumer(&self, name: &str) -> Result<Option<consumer::Info>> {
        let subject = format!("CONSUMER.INFO.{}.{name}", self.stream_name());
        match self.ask("consumer info", subject, Vec::new()).await? {
            Ok(info) => {
                self.note_settings(&info);
                Ok(Some(info))
            }
            Err(error)
                if matches!(
                    error.error_code(),
                    ErrorCode::CONSUMER_NOT_FOUND | ErrorCode::STREAM_NOT_FOUND
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(refused("consumer info", error)),
        }
    }

    /// Deletes a consumer. Succeeds if there is none.
    pub(super) async fn delete_consumer(&self, name: &str) -> Result<()> {
        let subject = format!("CONSUMER.DELETE.{}.{name}", self.stream_name());
        let deleted: std::result::Result<serde_json::Value, _> =
            self.ask("consumer delete", subject, Vec::new()).await?;
        match deleted {
            Err(error) if error.error_code() != ErrorCode::CONSUMER_NOT_FOUND => {
                Err(refused("consumer delete", error))
            }
            _ => Ok(()),
        }
    }

    /// Returns all consumers of the stream, read in pages. If a consumer's server did not answer in time for its page,
    /// the consumer is requested by name.
    pub(super) async fn consumers(&self) -> Result<Vec<consumer::Info>> {
        #[derive(Deserialize)]
        struct Page {
            total: usize,
            #[serde(default)]
            consumers: Option<Vec<consumer::Info>>,
            #[serde(default)]
            missing: Option<Vec<String>>,
        }
        let (mut found, mut offset) = (Vec::new(), 0);
        loop {
            let subject = format!("CONSUMER.LIST.{}", self.stream_name());
            let body = serde_json::json!({ "offset": offset });
            let page: Page = self
                .ask("consumer list", subject, body.to_string().into())
                .await?
                .map_err(|error| refused("consumer list", error))?;
            let (listed, missing) = (page.consumers.unwrap_or_default(), page.missing.unwrap_or_default());
            offset += listed.len() + missing.len();
            let is_last = (listed.is_empty() && missing.is_empty()) || offset >= page.total;
            listed.iter().for_each(|info| self.note_settings(info));
            found.extend(listed);
            for name in missing {
                // `None` if it was deleted in the meantime.
                found.extend(self.consumer(&name).await?);
            }
            if is_last {
                return Ok(found);
            }
        }
    }
}
