//! Settings of the NATS provider.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::NatsProvider;
use super::settings::SETTINGS;
use super::wire::EventFormat;
use crate::error::{EventError, Result};
use crate::provider::settings::Choice;
use crate::provider::{DEFAULT_MAX_UNCONFIRMED_ACKS, EventProvider, Isolation, ProviderUrl, StreamLimits};
use crate::subject::validate_prefix;
use crate::tls::TlsFiles;

/// Default maximum number of publishes of a batch that wait for their acknowledgement.
pub const DEFAULT_MAX_IN_FLIGHT: usize = 256;

/// Storage of a stream on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageType {
    /// Files. The events survive a restart of the server.
    File,
    /// Memory. The events are lost when the server restarts.
    Memory,
}

impl Choice for StorageType {
    const ALL: &'static [(&'static str, Self)] = &[("file", Self::File), ("memory", Self::Memory)];
}

/// Basic settings of the NATS provider. [`NatsProvider::builder`] has the others.
///
/// The `Debug` output contains no credentials.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NatsConfig {
    /// URL of the server, or several URLs separated by commas. Credentials, `user:password@` or `token@`, precede each
    /// host and must be the same for all. Default `nats://127.0.0.1:4222`.
    pub url: String,
    /// Token to authenticate with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Path of a credentials file (`.creds`: a JWT and its seed) to authenticate with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_path: Option<String>,
    /// Name of the stream. Default `A3S_EVENTS`.
    pub stream_name: String,
    /// First tokens of every subject. Default `events`.
    pub subject_prefix: String,
    /// Storage of a new stream. Default [`StorageType::File`].
    pub storage: StorageType,
    /// Maximum number of events in a new stream; the oldest are dropped. 0 is unlimited. Default 100,000.
    pub max_events: i64,
    /// Maximum age of an event in a new stream, in seconds. 0 is for ever. Default 604,800, a week.
    pub max_age_secs: u64,
    /// Maximum size of a new stream in bytes; the oldest events are dropped. 0, the default, is unlimited.
    pub max_bytes: i64,
    /// Timeout of connecting, in seconds. Default 5.
    pub connect_timeout_secs: u64,
    /// Timeout of every other call, in seconds. Default 10.
    pub request_timeout_secs: u64,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            token: None,
            credentials_path: None,
            stream_name: "A3S_EVENTS".to_owned(),
            subject_prefix: "events".to_owned(),
            storage: StorageType::File,
            max_events: 100_000,
            max_age_secs: 604_800,
            max_bytes: 0,
            connect_timeout_secs: 5,
            request_timeout_secs: 10,
        }
    }
}

impl NatsConfig {
    /// Returns the subjects of the stream: everything under the prefix.
    pub fn stream_subjects(&self) -> Vec<String> {
        vec![format!("{}.>", self.subject_prefix)]
    }

    /// Returns the subject of a topic in a category. Never fails, and passes wildcards through.
    pub fn build_subject(&self, category: &str, topic: &str) -> String {
        format!("{}.{category}.{topic}", self.subject_prefix)
    }

    /// Returns the filter that matches everything in a category.
    pub fn category_subject(&self, category: &str) -> String {
        format!("{}.{category}.>", self.subject_prefix)
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_timeout_secs)
    }

    pub(super) fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.request_timeout_secs)
    }
}

impl fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SETTINGS.debug_config("NatsConfig", &NatsProviderBuilder::new(self.clone()), f)
    }
}

/// Connects a [`NatsProvider`] with settings that [`NatsConfig`] lacks. The `Debug` output contains no credentials.
///
/// `replicas`, `dedup_window`, `max_event_bytes`, `compression`, `discard_new` and `atomic_batches` describe a new
/// stream. If you set one and the stream exists with another value, connecting fails with a
/// [`Conflict`](EventError::Conflict) that names the field. If you leave one out, an existing stream keeps its value.
///
/// ```no_run
/// use std::time::Duration;
/// use a3s_event::{NatsConfig, NatsProvider};
///
/// # async fn run() -> a3s_event::Result<()> {
/// let config = NatsConfig { stream_name: "ORDERS".to_owned(), ..NatsConfig::default() };
/// let provider = NatsProvider::builder(config)
///     .user_and_password("orders", "secret")
///     .replicas(3)
///     .dedup_window(Duration::from_secs(600))
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct NatsProviderBuilder {
    pub(super) config: NatsConfig,
    pub(super) create_if_missing: bool,
    pub(super) user_and_password: Option<(String, String)>,
    pub(super) nkey: Option<String>,
    pub(super) root_certificates: Option<PathBuf>,
    pub(super) client_certificate: Option<PathBuf>,
    pub(super) client_key: Option<PathBuf>,
    pub(super) require_tls: bool,
    pub(super) tls_first: bool,
    pub(super) client_name: Option<String>,
    pub(super) publish_timeout: Option<Duration>,
    pub(super) max_in_flight: usize,
    pub(super) max_unconfirmed_acks: usize,
    pub(super) format: EventFormat,
    pub(super) replicas: Option<usize>,
    pub(super) dedup_window: Option<Duration>,
    pub(super) max_event_bytes: Option<usize>,
    pub(super) compression: Option<bool>,
    pub(super) discard_new: Option<bool>,
    pub(super) atomic_batches: Option<bool>,
}

impl NatsProviderBuilder {
    pub(super) fn new(config: NatsConfig) -> Self {
        Self {
            config,
            create_if_missing: true,
            user_and_password: None,
            nkey: None,
            root_certificates: None,
            client_certificate: None,
            client_key: None,
            require_tls: false,
            tls_first: false,
            client_name: None,
            publish_timeout: None,
            max_in_flight: DEFAULT_MAX_IN_FLIGHT,
            max_unconfirmed_acks: DEFAULT_MAX_UNCONFIRMED_ACKS,
            format: EventFormat::default(),
            replicas: None,
            dedup_window: None,
            max_event_bytes: None,
            compression: None,
            discard_new: None,
            atomic_batches: None,
        }
    }

    /// Creates the stream if it does not exist, and again if it is deleted later. Default true. With false, a missing
    /// stream is an error.
    pub fn create_if_missing(mut self, create: bool) -> Self {
        self.create_if_missing = create;
        self
    }

    /// Sets the user and password to authenticate with.
    pub fn user_and_password(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.user_and_password = Some((user.into(), password.into()));
        self
    }

    /// Sets the seed of the NKey to authenticate with.
    pub fn nkey(mut self, seed: impl Into<String>) -> Self {
        self.nkey = Some(seed.into());
        self
    }

    /// Sets the path of a credentials file, like [`NatsConfig::credentials_path`].
    pub fn credentials_file(mut self, path: impl Into<String>) -> Self {
        self.config.credentials_path = Some(path.into());
        self
    }

    /// Sets the PEM file of the certificates to trust instead of those of the system.
    pub fn root_certificates(mut self, path: impl Into<PathBuf>) -> Self {
        self.root_certificates = Some(path.into());
        self
    }

    /// Sets the PEM files of the client's certificate with its chain, and of its key. The key file must contain exactly
    /// one key.
    pub fn client_certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.client_certificate = Some(certificate.into());
        self.client_key = Some(key.into());
        self
    }

    /// Refuses connections without TLS.
    pub fn require_tls(mut self, require: bool) -> Self {
        self.require_tls = require;
        self
    }

    /// Starts TLS before the server's greeting, for servers with `handshake_first`.
    pub fn tls_first(mut self, first: bool) -> Self {
        self.tls_first = first;
        self
    }

    /// Sets the name of this client in the server's lists.
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.client_name = Some(name.into());
        self
    }

    /// Sets the timeout of a publish whose options have none. Default is the request timeout.
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.publish_timeout = Some(timeout);
        self
    }

    /// Sets the maximum number of publishes of a batch that wait for their acknowledgement. Default 256.
    pub fn max_in_flight(mut self, max: usize) -> Self {
        self.max_in_flight = max;
        self
    }

    /// Sets the maximum number of unconfirmed acks of one consumer. At the limit, an ack waits until earlier ones are
    /// confirmed. Default 1,000.
    pub fn max_unconfirmed_acks(mut self, max: usize) -> Self {
        self.max_unconfirmed_acks = max;
        self
    }

    /// Sets the format in which events are written: the event's own JSON, the default, or CloudEvents. The provider
    /// reads both, regardless of this setting.
    pub fn format(mut self, format: EventFormat) -> Self {
        self.format = format;
        self
    }

    /// Sets the number of servers that store a new stream: 1, 3 or 5. The server's default is 1.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = Some(replicas);
        self
    }

    /// Sets the time for which the server remembers a `msg_id`: at least 100 ms, and at most the time for which it
    /// keeps an event. The server's default is 120 s.
    pub fn dedup_window(mut self, window: Duration) -> Self {
        self.dedup_window = Some(window);
        self
    }

    /// Sets the maximum size of one event in bytes of JSON, below the server's own limit.
    pub fn max_event_bytes(mut self, max: usize) -> Self {
        self.max_event_bytes = Some(max);
        self
    }

    /// Compresses the stream's files (S2). Requires nats-server 2.10.
    pub fn compression(mut self, compress: bool) -> Self {
        self.compression = Some(compress);
        self
    }

    /// Refuses new events when the stream is full, instead of dropping the oldest.
    pub fn discard_new(mut self, discard_new: bool) -> Self {
        self.discard_new = Some(discard_new);
        self
    }

    /// Sends events without options as atomic batches in [`publish_batch`](crate::EventProvider::publish_batch)
    /// (nats-server 2.12): always if true, never if false. By default, the provider measures which way is faster.
    /// Atomic batches are more than ten times as fast if the server syncs every write, and slightly slower otherwise.
    ///
    /// With true, an existing stream that does not allow them is a conflict. Otherwise it keeps its setting.
    pub fn atomic_batches(mut self, atomic: bool) -> Self {
        self.atomic_batches = Some(atomic);
        self
    }

    /// Connects, and creates the stream if it does not exist.
    ///
    /// # Errors
    ///
    /// - [`EventError::Config`] if a setting is wrong or a file cannot be used, before any network I/O. Also if the
    ///   stream is missing and [`create_if_missing`](Self::create_if_missing) is false.
    /// - [`EventError::Connection`] if there is no server.
    /// - [`EventError::Conflict`] if the stream exists with other storage, other subjects or another value of a
    ///   setting.
    /// - The server's error otherwise.
    pub async fn connect(mut self) -> Result<NatsProvider> {
        self.take_credentials_of_url()?;
        self.validate()?;
        self.tls_files().read(self.config.connect_timeout()).await?;
        NatsProvider::from_builder(self).await
    }

    fn tls_files(&self) -> TlsFiles {
        TlsFiles {
            root_certificates: self.root_certificates.clone(),
            client: self.client_certificate.clone().zip(self.client_key.clone()),
        }
    }

    /// Moves the credentials out of the servers' URLs, because the client would ignore and log them.
    fn take_credentials_of_url(&mut self) -> Result<()> {
        let mut servers = Vec::new();
        let mut credentials = Vec::new();
        for server in self.config.url.split(',').map(str::trim) {
            if !server.contains('@') && server.contains(['?', '#']) {
                // The client would ignore and log them.
                let rule = "has a query or a fragment; pass the URL to EventBus::connect, or set the fields of the config";
                return Err(EventError::Config(format!("url: a server {rule}")));
            }
            if !server.contains('@') {
                servers.push(server.to_owned());
                continue;
            }
            let server = if server.contains("://") { server.to_owned() } else { format!("nats://{server}") };
            let url = ProviderUrl::parse(&server)?;
            servers.push(format!("{}://{}", url.scheme(), url.authority()));
            credentials.push((url.username().map(str::to_owned), url.password().map(str::to_owned)));
        }
        credentials.dedup();
        if credentials.len() > 1 {
            return Err(EventError::Config("url: all servers must have the same credentials".to_owned()));
        }
        match credentials.pop() {
            Some((Some(user), Some(password))) if self.user_and_password.is_none() => {
                self.user_and_password = Some((user, password));
            }
            Some((Some(token), None)) if self.config.token.is_none() => self.config.token = Some(token),
            None | Some((None, _)) => {}
            Some(_) => return Err(only_one_way()),
        }
        self.config.url = servers.join(",");
        Ok(())
    }

    fn validate(&self) -> Result<()> {
        SETTINGS.check(self)?;
        let config = &self.config;
        validate_prefix(&config.subject_prefix)?;
        if self.client_certificate.is_some() != self.client_key.is_some() {
            return Err(EventError::Config(
                "client_certificate and client_key: must be set together".to_owned(),
            ));
        }
        let ways = [
            config.token.is_some(),
            config.credentials_path.is_some(),
            self.user_and_password.is_some(),
            self.nkey.is_some(),
        ];
        if ways.into_iter().filter(|given| *given).count() > 1 {
            return Err(only_one_way());
        }
        Ok(())
    }
}

fn only_one_way() -> EventError {
    EventError::Config("token, credentials_path, user and password, nkey: only one can be given".to_owned())
}

impl fmt::Debug for NatsProviderBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SETTINGS.debug("NatsProviderBuilder", self, f)
    }
}

/// Connects to `nats://[user:password@]host[:port][,…][/stream name][?key=value&…]`. A user without a password is a
/// token.
pub(in crate::provider) async fn connect(url: ProviderUrl) -> Result<Arc<dyn EventProvider>> {
    Ok(Arc::new(from_url(&url)?.connect().await?))
}

/// Returns the URL of a stream on the same server with its own subject prefix.
pub(in crate::provider) fn isolate(url: ProviderUrl, isolation: &Isolation) -> Option<ProviderUrl> {
    if isolation.max_bytes.is_some() {
        // With a limit in bytes, the server refuses an event that is larger. Other providers drop all other events and
        // keep it.
        return None;
    }
    let url = isolation.limit(url).without_setting("create_if_missing");
    let prefix = isolation.name.to_ascii_lowercase();
    Some(url.with_path(format!("/{}", isolation.name)).with_setting("subject_prefix", prefix))
}

/// Returns the limits of a new stream whose URL sets none.
pub(in crate::provider) fn default_limits() -> StreamLimits {
    let config = NatsConfig::default();
    let [max_events, max_bytes] = [config.max_events, config.max_bytes].map(i64::unsigned_abs);
    StreamLimits::new(max_events, max_bytes, Duration::from_secs(config.max_age_secs))
}

fn from_url(url: &ProviderUrl) -> Result<NatsProviderBuilder> {
    let mut config = NatsConfig { url: servers(url), ..NatsConfig::default() };
    let stream = url.path().trim_matches('/');
    if !stream.is_empty() {
        stream.clone_into(&mut config.stream_name);
    }
    let mut builder = NatsProviderBuilder::new(config).require_tls(url.scheme() == "tls");
    match (url.username(), url.password()) {
        (Some(user), Some(password)) => builder = builder.user_and_password(user, password),
        (Some(token), None) => builder.config.token = Some(token.to_owned()),
        (None, _) => {}
    }
    SETTINGS.read(url, &mut builder)?;
    Ok(builder)
}

/// Returns the servers of the authority, each with the scheme.
fn servers(url: &ProviderUrl) -> String {
    let hosts = if url.authority().is_empty() { "127.0.0.1:4222" } else { url.authority() };
    let servers = hosts.split(',').map(|host| format!("{}://{host}", url.scheme()));
    servers.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_and_the_json_are_the_promised_ones() {
        let json = serde_json::to_value(NatsConfig::default()).unwrap();
        let expected = serde_json::json!({
            "url": "nats://127.0.0.1:4222", "streamName": "A3S_EVENTS", "subjectPrefix": "events", "storage": "file",
            "maxEvents": 100_000, "maxAgeSecs": 604_800, "maxBytes": 0, "connectTimeoutSecs": 5,
            "requestTimeoutSecs": 10
        });
        assert_eq!(json, expected);
        let config: NatsConfig = serde_json::from_value(json).unwrap();
        assert_eq!((config.token, config.credentials_path), (None, None));
    }

    #[test]
    fn debug_shows_no_secret() {
        let config = NatsConfig {
            url: "nats://alice:canary@one:4222,tls://canary@two".to_owned(),
            token: Some("canary".to_owned()),
            credentials_path: Some("canary".to_owned()),
            ..NatsConfig::default()
        };
        let builder = NatsProviderBuilder::new(config).user_and_password("canary", "canary").nkey("canary");
        let shown = format!("{builder:?}");
        assert!(!shown.contains("canary") && !shown.contains("alice"), "{shown}");
        assert!(shown.contains("nats://***@one:4222,tls://***@two"), "{shown}");
    }

    #[test]
    fn every_setting_of_the_url_takes_effect() {
        let url = "tls://us%40er:pass@one:1,two:2/ORDERS?subject_prefix=acme&storage=memory&max_events=1\
                   &max_age=2s&max_bytes=300&connect_timeout=4s&request_timeout=5s&root_certificates=ca.pem\
                   &client_certificate=c.pem&client_key=k.pem&create_if_missing=false&tls_first=true&client_name=me&publish_timeout=9s&max_in_flight=6\
                   &max_unconfirmed_acks=7\
                   &replicas=3&dedup_window=7s&max_event_bytes=800&compression=true&discard_new=true&atomic_batches=false";
        let builder = from_url(&ProviderUrl::parse(url).unwrap()).unwrap();
        builder.validate().unwrap();
        let config = &builder.config;
        assert_eq!((config.url.as_str(), config.stream_name.as_str()), ("tls://one:1,tls://two:2", "ORDERS"));
        assert_eq!((config.subject_prefix.as_str(), config.storage), ("acme", StorageType::Memory));
        assert_eq!((config.max_events, config.max_age_secs, config.max_bytes), (1, 2, 300));
        assert_eq!((config.connect_timeout_secs, config.request_timeout_secs), (4, 5));
        assert_eq!(builder.user_and_password, Some(("us@er".to_owned(), "pass".to_owned())));
        assert!(!builder.create_if_missing);
        assert_eq!(builder.root_certificates, Some("ca.pem".into()));
        assert_eq!(
            (builder.client_certificate, builder.client_key),
            (Some("c.pem".into()), Some("k.pem".into()))
        );
        assert!(builder.require_tls && builder.tls_first);
        assert_eq!((builder.client_name.as_deref(), builder.max_in_flight), (Some("me"), 6));
        assert_eq!(builder.max_unconfirmed_acks, 7);
        assert_eq!(builder.publish_timeout, Some(Duration::from_secs(9)));
        assert_eq!((builder.replicas, builder.dedup_window), (Some(3), Some(Duration::from_secs(7))));
        assert_eq!((builder.max_event_bytes, builder.compression), (Some(800), Some(true)));
        assert_eq!((builder.discard_new, builder.atomic_batches), (Some(true), Some(false)));
    }

    #[test]
    fn a_user_without_a_password_is_a_token_and_the_server_has_a_default() {
        let builder = from_url(&ProviderUrl::parse("nats://t0ken@host").unwrap()).unwrap();
        assert_eq!(
            (builder.config.token.as_deref(), builder.config.url.as_str()),
            (Some("t0ken"), "nats://host")
        );
        let builder = from_url(&ProviderUrl::parse("nats://").unwrap()).unwrap();
        assert_eq!(builder.config.url, "nats://127.0.0.1:4222");
    }

    #[test]
    fn credentials_in_the_url_of_the_config_authenticate_and_leave_it() {
        let with = |url: &str| {
            let config = NatsConfig { url: url.to_owned(), ..NatsConfig::default() };
            let mut builder = NatsProviderBuilder::new(config);
            builder.take_credentials_of_url().map(|()| builder)
        };
        let builder = with("nats://us%40er:pass@one:1, tls://us%40er:pass@two:2").unwrap();
        assert_eq!(builder.config.url, "nats://one:1,tls://two:2");
        assert_eq!(builder.user_and_password, Some(("us@er".to_owned(), "pass".to_owned())));
        let builder = with("t0ken@one").unwrap();
        assert_eq!(
            (builder.config.url.as_str(), builder.config.token.as_deref()),
            ("nats://one", Some("t0ken"))
        );
        assert_eq!(with("one:1,nats://two").unwrap().config.url, "one:1,nats://two");
        let different = with("nats://a:b@one,nats://a:c@two").unwrap_err().to_string();
        assert!(different.contains("same credentials") && !different.contains("a:"), "{different}");
        let config = NatsConfig {
            url: "nats://t@one".to_owned(),
            token: Some("u".to_owned()),
            ..NatsConfig::default()
        };
        let twice = NatsProviderBuilder::new(config).take_credentials_of_url().unwrap_err().to_string();
        assert!(twice.contains("only one"), "{twice}");
    }

    #[test]
    fn wrong_settings_are_refused_with_their_name() {
        let with = |change: fn(&mut NatsProviderBuilder)| {
            let mut builder = NatsProviderBuilder::new(NatsConfig::default());
            change(&mut builder);
            builder.validate().unwrap_err().to_string()
        };
        assert!(with(|b| b.config.stream_name = "a.b".to_owned()).contains("stream_name \"a.b\""));
        assert!(with(|b| b.config.max_events = -1).contains("max_events -1"));
        assert!(with(|b| b.config.max_bytes = 255).contains("max_bytes 255"));
        assert!(with(|b| b.config.request_timeout_secs = 0).contains("request_timeout_secs"));
        assert!(with(|b| b.max_in_flight = 0).contains("max_in_flight"));
        assert!(with(|b| b.max_unconfirmed_acks = 0).contains("max_unconfirmed_acks"));
        assert!(with(|b| b.publish_timeout = Some(Duration::ZERO)).contains("publish_timeout 0s"));
        assert!(with(|b| b.dedup_window = Some(Duration::from_nanos(1))).contains("dedup_window 1ns"));
        assert!(with(|b| b.replicas = Some(2)).contains("replicas"));
        assert!(with(|b| b.max_event_bytes = Some(1)).contains("max_event_bytes 1"));
        assert!(with(|b| b.config.subject_prefix = "a.*".to_owned()).contains("subject_prefix"));
        let two = |b: &mut NatsProviderBuilder| {
            b.config.token = Some("t".to_owned());
            b.nkey = Some("n".to_owned());
        };
        assert!(with(two).contains("only one"));
        let storage =
            from_url(&ProviderUrl::parse("nats://h?storage=disk").unwrap()).unwrap_err().to_string();
        assert!(storage.contains("storage \"disk\"") && storage.contains("file or memory"), "{storage}");
    }
}
