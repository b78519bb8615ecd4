//! The connection: one client, its stream, and requests to JetStream's API with a deadline.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Subject;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{self, Compression, DiscardPolicy, RetentionPolicy};
use async_nats::jetstream::{self, ErrorCode, consumer};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::batch::Faster;
use super::config::{NatsConfig, NatsProviderBuilder, StorageType};
use super::error::{PROVIDER, refused};
use super::link::Link;
use super::subscription::NatsSubscription;
use crate::error::{BackendError, ErrorKind, EventError, Result};
use crate::provider::validate::MAX_METADATA_BYTES;
use crate::provider::{Durability, HistoryQuery};
use crate::subject::validate_consumer_name;
use crate::types::{Event, PublishOptions, SubscribeOptions};

/// A connection to a stream: what [`NatsProvider`](super::NatsProvider) does, and the native handles.
#[derive(Clone)]
pub struct NatsClient {
    pub(super) shared: Arc<Shared>,
}

/// What the client, its subscriptions and their deliveries share.
pub(super) struct Shared {
    pub(super) settings: NatsProviderBuilder,
    pub(super) link: Link,
    /// Set when the provider was closed.
    pub(super) closed: watch::Sender<bool>,
    pub(super) durability: Durability,
    pub(super) replicas: usize,
    pub(super) max_payload: usize,
    /// How long the server remembers ids.
    pub(super) dedup_window: Duration,
    /// Whether events can be read without a consumer, many at a time.
    pub(super) batched_direct_get: bool,
    /// Whether the stream takes batches that are stored as one.
    pub(super) atomic_batches: bool,
    pub(super) faster: Faster,
}

/// Counts of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    /// Number of stored events.
    pub messages: u64,
    /// Their size in bytes, as the server counts it.
    pub bytes: u64,
    /// Sequence of the oldest stored event.
    pub first_sequence: u64,
    /// Sequence of the newest event.
    pub last_sequence: u64,
    /// Number of consumers.
    pub consumer_count: usize,
}

impl NatsClient {
    /// Connects and makes the stream when it does not exist.
    ///
    /// # Errors
    ///
    /// As [`NatsProviderBuilder::connect`].
    pub async fn connect(config: NatsConfig) -> Result<Self> {
        Ok(NatsProviderBuilder::new(config).connect().await?.into_client())
    }

    pub(super) async fn from_builder(settings: NatsProviderBuilder) -> Result<Self> {
        let link = Link::connect(&settings).await?;
        let mut shared = Shared {
            max_payload: link.client().max_payload(),
            settings,
            link,
            closed: watch::Sender::new(false),
            durability: Durability::Unknown,
            replicas: 1,
            dedup_window: Duration::ZERO,
            batched_direct_get: false,
            atomic_batches: false,
            faster: Faster::default(),
        };
        let stream = shared.open_stream().await?;
        shared.durability = durability(&stream);
        shared.replicas = stream.num_replicas;
        shared.dedup_window = stream.duplicate_window;
        shared.batched_direct_get =
            stream.allow_direct && shared.link.client().is_server_compatible(2, 11, 0);
        shared.atomic_batches = stream.allow_atomic_publish;
        let max_message_size = shared.settings.max_message_size.unwrap_or(stream.max_message_size);
        if let Ok(max @ 1..) = usize::try_from(max_message_size) {
            shared.max_payload = shared.max_payload.min(max);
        }
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Stores one event; see [`EventProvider::publish`](crate::EventProvider::publish).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn publish(&self, event: &Event) -> Result<u64> {
        self.shared.publish(event, &PublishOptions::default()).await.map(|receipt| receipt.sequence)
    }

    /// Stores one event with options; see
    /// [`EventProvider::publish_with_options`](crate::EventProvider::publish_with_options).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn publish_with_options(&self, event: &Event, opts: &PublishOptions) -> Result<u64> {
        self.shared.publish(event, opts).await.map(|receipt| receipt.sequence)
    }

    /// Opens a durable consumer as it is; see
    /// [`EventProvider::subscribe_durable`](crate::EventProvider::subscribe_durable).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn subscribe_durable(
        &self,
        consumer_name: &str,
        filter_subject: &str,
    ) -> Result<NatsSubscription> {
        self.shared.subscribe_durable(consumer_name, filter_subject, None).await
    }

    /// Opens a durable consumer with options; see
    /// [`EventProvider::subscribe_durable_with_options`](crate::EventProvider::subscribe_durable_with_options).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn subscribe_durable_with_options(
        &self,
        consumer_name: &str,
        filter_subject: &str,
        opts: &SubscribeOptions,
    ) -> Result<NatsSubscription> {
        self.shared.subscribe_durable(consumer_name, filter_subject, Some(opts)).await
    }

    /// Opens an ephemeral consumer; see [`EventProvider::subscribe`](crate::EventProvider::subscribe).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn subscribe(&self, filter_subject: &str) -> Result<NatsSubscription> {
        self.shared.subscribe_ephemeral(filter_subject, &SubscribeOptions::default()).await
    }

    /// Opens an ephemeral consumer with options; see
    /// [`EventProvider::subscribe_with_options`](crate::EventProvider::subscribe_with_options).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn subscribe_with_options(
        &self,
        filter_subject: &str,
        opts: &SubscribeOptions,
    ) -> Result<NatsSubscription> {
        self.shared.subscribe_ephemeral(filter_subject, opts).await
    }

    /// The newest stored events; see [`EventProvider::history`](crate::EventProvider::history).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn history(&self, filter_subject: Option<&str>, limit: usize) -> Result<Vec<Event>> {
        let mut query = HistoryQuery::new(limit);
        query.filter = filter_subject.map(str::to_owned);
        let found = self.shared.query(&query).await?;
        Ok(found.into_iter().map(|stored| Arc::unwrap_or_clone(stored.event)).collect())
    }

    /// Forgets a durable consumer; see [`EventProvider::unsubscribe`](crate::EventProvider::unsubscribe).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn unsubscribe(&self, consumer_name: &str) -> Result<()> {
        // Nothing can have a name that is not one, and it must not become a part of a subject.
        if validate_consumer_name(consumer_name).is_err() {
            return Ok(());
        }
        self.shared.delete_consumer(consumer_name).await
    }

    /// Counts of the stream.
    ///
    /// # Errors
    ///
    /// The server's error, or [`EventError::Timeout`].
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

    /// How many servers keep the stream, as it was when this connected. With more than one, what is acknowledged survives
    /// the loss of a server, which [`Capabilities::durability`](crate::Capabilities) says as well.
    pub fn replicas(&self) -> usize {
        self.shared.replicas
    }

    /// The client of async-nats. What is done through it is not portable. A client whose connection task has ended is
    /// replaced: ask again then.
    pub fn nats_client(&self) -> &async_nats::Client {
        self.shared.link.client()
    }

    /// The JetStream context of async-nats, of the same client. What is done through it is not portable.
    pub fn jetstream_context(&self) -> &jetstream::Context {
        self.shared.link.jetstream()
    }

    /// The settings it was connected with.
    pub fn config(&self) -> &NatsConfig {
        &self.shared.settings.config
    }
}

impl fmt::Debug for NatsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsClient").field("config", self.config()).finish_non_exhaustive()
    }
}

fn durability(stream: &stream::Config) -> Durability {
    match (stream.num_replicas, stream.storage) {
        (2.., _) => Durability::NodeLoss,
        // The server syncs files every two minutes unless its `sync_interval` says otherwise.
        (_, stream::StorageType::File) => Durability::ProcessCrash,
        (_, stream::StorageType::Memory) => Durability::Process,
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
            return Err(EventError::Closed("the nats provider was closed".to_owned()));
        }
        Ok(())
    }

    /// A request to JetStream's API, JSON or nothing; the inner error is what JetStream answered.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        subject: String,
        body: Vec<u8>,
    ) -> Result<std::result::Result<T, jetstream::Error>> {
        let deadline = self.settings.config.request_timeout();
        let subject = Subject::from(format!("$JS.API.{subject}"));
        let answer = self.link.ask(&subject, &body, deadline).await;
        let answer = answer.map_err(|none| none.into_error(operation, deadline))?;
        match serde_json::from_slice(&answer.payload) {
            Ok(Response::Ok(answer)) => Ok(Ok(answer)),
            Ok(Response::Err { error }) => Ok(Err(error)),
            Err(error) => Err(BackendError::new(PROVIDER, operation, ErrorKind::Backend, error).into()),
        }
    }

    pub(super) async fn stream(&self) -> Result<stream::Info> {
        let subject = format!("STREAM.INFO.{}", self.stream_name());
        self.ask("stream info", subject, Vec::new()).await?.map_err(|error| refused("stream info", error))
    }

    /// The stream's configuration in force; the stream is made when it does not exist.
    async fn open_stream(&self) -> Result<stream::Config> {
        let name = self.stream_name();
        let found: std::result::Result<stream::Info, _> =
            self.ask("stream info", format!("STREAM.INFO.{name}"), Vec::new()).await?;
        let existing = match found {
            Ok(info) => info.config,
            Err(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND && !self.settings.create => {
                return Err(EventError::Config(format!(
                    "stream '{name}': does not exist, and create is false"
                )));
            }
            Err(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                let wanted = serde_json::to_vec(&self.wanted_stream())?;
                let made: std::result::Result<stream::Info, _> =
                    self.ask("stream create", format!("STREAM.CREATE.{name}"), wanted).await?;
                match made {
                    Ok(info) => return Ok(info.config),
                    // Another program made it in the meantime.
                    Err(error) if error.error_code() == ErrorCode::STREAM_NAME_EXIST => {
                        self.stream().await?.config
                    }
                    Err(error) if error.error_code() == ErrorCode::STREAM_SUBJECT_OVERLAP => {
                        return Err(self.overlap(error).await);
                    }
                    Err(error) => return Err(refused("stream create", error)),
                }
            }
            Err(error) => return Err(refused("stream info", error)),
        };
        self.check_stream(&existing)?;
        Ok(existing)
    }

    /// Which stream has the subjects already, as far as the server lets us ask.
    async fn overlap(&self, refusal: jetstream::Error) -> EventError {
        #[derive(Deserialize)]
        struct Names {
            streams: Vec<String>,
        }
        let subjects = self.settings.config.stream_subjects();
        let query = serde_json::json!({ "subject": subjects.first() }).to_string();
        match self.ask::<Names>("stream names", "STREAM.NAMES".to_owned(), query.into_bytes()).await {
            Ok(Ok(names)) if !names.streams.is_empty() => EventError::Conflict {
                resource: format!("stream '{}'", self.stream_name()),
                field: "subjects".to_owned(),
                existing: format!("taken by stream '{}'", names.streams.join("', '")),
                requested: format!("{subjects:?}"),
            },
            _ => refused("stream create", refusal),
        }
    }

    fn wanted_stream(&self) -> stream::Config {
        let NatsProviderBuilder { config, .. } = &self.settings;
        // JetStream writes unlimited as -1.
        let limit = |max: i64| if max == 0 { -1 } else { max };
        stream::Config {
            name: config.stream_name.clone(),
            subjects: config.stream_subjects(),
            retention: RetentionPolicy::Limits,
            storage: native_storage(config.storage),
            max_messages: limit(config.max_events),
            max_bytes: limit(config.max_bytes),
            max_messages_per_subject: -1,
            max_consumers: -1,
            max_age: Duration::from_secs(config.max_age_secs),
            max_message_size: self.settings.max_message_size.map_or(-1, with_headers),
            num_replicas: self.settings.replicas.unwrap_or(1),
            duplicate_window: self.settings.dedup_window.unwrap_or_default(),
            compression: self.settings.compression.filter(|compress| *compress).map(|_| Compression::S2),
            discard: native_discard(self.settings.discard_new.unwrap_or(false)),
            allow_direct: true,
            allow_atomic_publish: self.settings.atomic_batches.unwrap_or(true)
                && self.link.client().is_server_compatible(2, 12, 0),
            ..stream::Config::default()
        }
    }

    /// Refuses an existing stream that cannot do what the settings say. Its limits are left as they are.
    fn check_stream(&self, existing: &stream::Config) -> Result<()> {
        let settings = &self.settings;
        let everything = format!("{}.>", self.prefix());
        if !existing.subjects.iter().any(|subjects| *subjects == everything || subjects == ">") {
            return Err(self.stream_conflict("subjects", &existing.subjects, &[everything]));
        }
        let storage = native_storage(settings.config.storage);
        if existing.storage != storage {
            return Err(self.stream_conflict("storage", &existing.storage, &storage));
        }
        self.same("replicas", settings.replicas, existing.num_replicas)?;
        self.same("dedup_window", settings.dedup_window, existing.duplicate_window)?;
        self.same(
            "max_message_size",
            settings.max_message_size.map(with_headers),
            existing.max_message_size,
        )?;
        self.same("compression", settings.compression, existing.compression == Some(Compression::S2))?;
        let atomic = settings.atomic_batches.filter(|atomic| *atomic);
        self.same("atomic_batches", atomic, existing.allow_atomic_publish)?;
        self.same("discard_new", settings.discard_new, existing.discard == DiscardPolicy::New)?;
        let wanted = self.wanted_stream();
        let limits = |config: &stream::Config| {
            [config.max_messages.max(0), config.max_bytes.max(0), config.max_age.as_secs().cast_signed()]
        };
        if limits(existing) != limits(&wanted) {
            tracing::warn!(
                stream = existing.name,
                existing = ?limits(existing),
                configured = ?limits(&wanted),
                "the stream exists with other limits (events, bytes, seconds) and keeps them"
            );
        }
        Ok(())
    }

    fn same<T: PartialEq + fmt::Debug>(&self, field: &str, wanted: Option<T>, existing: T) -> Result<()> {
        match wanted {
            Some(wanted) if wanted != existing => Err(self.stream_conflict(field, &existing, &wanted)),
            _ => Ok(()),
        }
    }

    fn stream_conflict(
        &self,
        field: &str,
        existing: &dyn fmt::Debug,
        requested: &dyn fmt::Debug,
    ) -> EventError {
        EventError::Conflict {
            resource: format!("stream '{}'", self.stream_name()),
            field: field.to_owned(),
            existing: format!("{existing:?}"),
            requested: format!("{requested:?}"),
        }
    }

    /// The consumer's state, `None` when there is no such consumer, or no stream to have one.
    pub(super) async fn consumer(&self, name: &str) -> Result<Option<consumer::Info>> {
        let subject = format!("CONSUMER.INFO.{}.{name}", self.stream_name());
        match self.ask("consumer info", subject, Vec::new()).await? {
            Ok(info) => Ok(Some(info)),
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

    /// Deletes a consumer; fine when there is none.
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

    /// All consumers of the stream, in pages.
    pub(super) async fn consumers(&self) -> Result<Vec<consumer::Info>> {
        #[derive(Deserialize)]
        struct Page {
            total: usize,
            #[serde(default)]
            consumers: Option<Vec<consumer::Info>>,
        }
        let mut found = Vec::new();
        loop {
            let subject = format!("CONSUMER.LIST.{}", self.stream_name());
            let offset = serde_json::json!({ "offset": found.len() });
            let page: Page = self
                .ask("consumer list", subject, offset.to_string().into())
                .await?
                .map_err(|error| refused("consumer list", error))?;
            let listed = page.consumers.unwrap_or_default();
            let is_last = listed.is_empty() || found.len() + listed.len() >= page.total;
            found.extend(listed);
            if is_last {
                return Ok(found);
            }
        }
    }
}

/// The limit of the stream counts headers too, where the metadata of a message and its id stand.
fn with_headers(max: i32) -> i32 {
    max.saturating_add(i32::try_from(MAX_METADATA_BYTES).unwrap_or(i32::MAX))
}

fn native_storage(storage: StorageType) -> stream::StorageType {
    match storage {
        StorageType::File => stream::StorageType::File,
        StorageType::Memory => stream::StorageType::Memory,
    }
}

fn native_discard(new: bool) -> DiscardPolicy {
    if new { DiscardPolicy::New } else { DiscardPolicy::Old }
}
