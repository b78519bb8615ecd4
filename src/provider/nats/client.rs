//! The connection: one client, its stream, and requests to JetStream's API with a deadline.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{self, Compression, DiscardPolicy, RetentionPolicy};
use async_nats::jetstream::{self, ErrorCode, consumer};
use async_nats::{
    ConnectOptions, Event as ConnectionEvent, Message, Request, RequestError, ServerAddr, Subject,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::config::{NatsConfig, NatsProviderBuilder, StorageType};
use super::error::{PROVIDER, connection_ended, not_connected, refused, timeout, unanswered};
use super::subscription::NatsSubscription;
use crate::error::{BackendError, ErrorKind, EventError, Result};
use crate::provider::validate::MAX_METADATA_BYTES;
use crate::provider::{Durability, HistoryQuery};
use crate::subject::validate_consumer_name;
use crate::types::{Event, PublishOptions, SubscribeOptions};

/// A connection that does not answer this often is dead after three of them.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// A connection to a stream: what [`NatsProvider`](super::NatsProvider) does, and the native handles.
#[derive(Clone)]
pub struct NatsClient {
    pub(super) shared: Arc<Shared>,
}

/// What the client, its subscriptions and their deliveries share.
pub(super) struct Shared {
    pub(super) settings: NatsProviderBuilder,
    pub(super) client: async_nats::Client,
    pub(super) jetstream: jetstream::Context,
    /// Set when the provider was closed.
    pub(super) closed: watch::Sender<bool>,
    /// Counts the connections that were made, so that a reconnect can be waited for.
    pub(super) connections: watch::Receiver<u64>,
    pub(super) durability: Durability,
    pub(super) max_payload: usize,
    /// Whether events can be read without a consumer, many at a time.
    pub(super) batched_direct_get: bool,
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
        let (connected, connections) = watch::channel(0);
        let client = connect(&settings, connected).await?;
        let jetstream =
            jetstream::ContextBuilder::new().timeout(settings.config.request_timeout()).build(client.clone());
        let mut shared = Shared {
            max_payload: client.max_payload(),
            settings,
            client,
            jetstream,
            closed: watch::Sender::new(false),
            connections,
            durability: Durability::Unknown,
            batched_direct_get: false,
        };
        let stream = shared.open_stream().await?;
        shared.durability = durability(&stream);
        shared.batched_direct_get = stream.allow_direct && shared.client.is_server_compatible(2, 11, 0);
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
        self.shared.publish(event, &PublishOptions::default()).await
    }

    /// Stores one event with options; see
    /// [`EventProvider::publish_with_options`](crate::EventProvider::publish_with_options).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn publish_with_options(&self, event: &Event, opts: &PublishOptions) -> Result<u64> {
        self.shared.publish(event, opts).await
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

    /// The client of async-nats. What is done through it is not portable.
    pub fn nats_client(&self) -> &async_nats::Client {
        &self.shared.client
    }

    /// The JetStream context of async-nats. What is done through it is not portable.
    pub fn jetstream_context(&self) -> &jetstream::Context {
        &self.shared.jetstream
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

async fn connect(
    settings: &NatsProviderBuilder,
    connected: watch::Sender<u64>,
) -> Result<async_nats::Client> {
    let config = &settings.config;
    let servers = config
        .url
        .split(',')
        .map(|url| url.trim().parse::<ServerAddr>())
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|_| EventError::Config("url: is not the URL of a NATS server".to_owned()))?;
    let options = connect_options(settings).await?.event_callback(move |event| {
        note(&event, &connected);
        async {}
    });
    let deadline = config.connect_timeout();
    match tokio::time::timeout(deadline, options.connect(servers)).await {
        Ok(connected) => connected.map_err(not_connected),
        Err(_) => {
            Err(EventError::Connection(format!("nats-server did not answer within {} s", deadline.as_secs())))
        }
    }
}

async fn connect_options(settings: &NatsProviderBuilder) -> Result<ConnectOptions> {
    let config = &settings.config;
    let mut options = ConnectOptions::new()
        .connection_timeout(config.connect_timeout())
        .request_timeout(Some(config.request_timeout()))
        .ping_interval(PING_INTERVAL)
        .require_tls(settings.require_tls)
        .name(settings.client_name.as_deref().unwrap_or("a3s-event"));
    if let Some(token) = &config.token {
        options = options.token(token.clone());
    }
    if let Some((user, password)) = &settings.user_and_password {
        options = options.user_and_password(user.clone(), password.clone());
    }
    if let Some(seed) = &settings.nkey {
        options = options.nkey(seed.clone());
    }
    if let Some(path) = &config.credentials_path {
        let read = options.credentials_file(path).await;
        options =
            read.map_err(|error| EventError::Config(format!("credentials_path: cannot be read: {error}")))?;
    }
    if let Some(path) = &settings.root_certificates {
        options = options.add_root_certificates(path.clone());
    }
    if let Some((certificate, key)) = &settings.client_certificate {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    if settings.tls_first {
        options = options.tls_first();
    }
    Ok(options)
}

fn note(event: &ConnectionEvent, connected: &watch::Sender<u64>) {
    match event {
        ConnectionEvent::Connected => connected.send_modify(|count| *count += 1),
        ConnectionEvent::Disconnected => tracing::warn!("the connection to nats-server was lost"),
        ConnectionEvent::ServerError(error) => tracing::warn!(%error, "nats-server reports an error"),
        ConnectionEvent::ClientError(error) => tracing::warn!(%error, "the nats client reports an error"),
        other => tracing::debug!(event = %other, "nats connection"),
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

    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
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
        let answer = match self.request(format!("$JS.API.{subject}").into(), &body, deadline).await {
            None => return Err(timeout(operation, deadline)),
            Some(Err(error)) if self.is_gone(&error) => return Err(connection_ended()),
            Some(Err(error)) => return Err(unanswered(operation, error, deadline)),
            Some(Ok(answer)) => answer,
        };
        match serde_json::from_slice(&answer.payload) {
            Ok(Response::Ok(answer)) => Ok(Ok(answer)),
            Ok(Response::Err { error }) => Ok(Err(error)),
            Err(error) => Err(BackendError::new(PROVIDER, operation, ErrorKind::Backend, error).into()),
        }
    }

    /// A request that does the same when it is sent twice: it is sent again on a new connection, where the answer to the
    /// first one would never come. `None` when there was no answer in time.
    pub(super) async fn request(
        &self,
        subject: Subject,
        body: &[u8],
        deadline: Duration,
    ) -> Option<std::result::Result<Message, RequestError>> {
        let mut connections = self.connections.clone();
        let asking = async {
            loop {
                let connection = *connections.borrow_and_update();
                let request = Request::new().payload(body.to_vec().into()).timeout(None);
                tokio::select! {
                    biased;
                    answer = self.client.send_request(subject.clone(), request) => return answer,
                    true = async { connections.wait_for(|now| *now != connection).await.is_ok() } => {}
                }
            }
        };
        tokio::time::timeout(deadline, asking).await.ok()
    }

    /// Whether the task behind the client has ended, so that nothing will ever be answered again.
    pub(super) fn is_gone(&self, error: &RequestError) -> bool {
        // The callback that counts connections lives as long as that task.
        error.kind() == async_nats::RequestErrorKind::Other && self.connections.has_changed().is_err()
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
                    Err(error) => return Err(refused("stream create", error)),
                }
            }
            Err(error) => return Err(refused("stream info", error)),
        };
        self.check_stream(&existing)?;
        Ok(existing)
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

    /// The consumer's state, `None` when there is no such consumer.
    pub(super) async fn consumer(&self, name: &str) -> Result<Option<consumer::Info>> {
        let subject = format!("CONSUMER.INFO.{}.{name}", self.stream_name());
        match self.ask("consumer info", subject, Vec::new()).await? {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.error_code() == ErrorCode::CONSUMER_NOT_FOUND => Ok(None),
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
