//! Settings of the Redis provider.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::address::{self, Address};
use super::settings::SETTINGS;
use super::{DEFAULT_PORT, DEFAULT_SENTINEL_PORT};
use crate::error::{EventError, Result};
use crate::provider::validate::DEFAULT_MAX_EVENT_BYTES;
use crate::provider::{DEFAULT_MAX_UNCONFIRMED_ACKS, DEFAULT_TIMEOUT, Durability};
use crate::subject::validate_prefix;

/// Default maximum number of events in a new stream.
pub const DEFAULT_MAX_EVENTS: u64 = 100_000;
/// Default time for which a new stream remembers a `msg_id`.
pub const DEFAULT_DEDUP_WINDOW: Duration = Duration::from_secs(120);
/// Default timeout of connecting to one server.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of a [`RedisProvider`](super::RedisProvider). The `Debug` output contains no credentials.
///
/// `max_events`, `max_bytes`, `max_age` and `dedup_window` belong to the stream, which keeps them. If you set one, it
/// replaces the value of the stream for all its users. If you leave it out, the stream's value applies.
///
/// ```
/// use std::time::Duration;
/// use a3s_event::provider::redis::RedisConfig;
///
/// let config = RedisConfig::at("one.example:6379,two.example:6379")
///     .user_and_password("orders", "s3cret")
///     .tls(true)
///     .stream_name("orders")
///     .max_events(1_000_000)
///     .max_age(Duration::from_secs(7 * 24 * 3_600));
/// assert!(!format!("{config:?}").contains("s3cret"));
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct RedisConfig {
    /// `host[:port]` of the server, or several separated by commas: nodes of a cluster, replicas or Sentinels. Default
    /// `127.0.0.1`. The default port is 6379, and 26379 for Sentinels.
    pub servers: String,
    /// Path of the server's Unix socket, which replaces [`servers`](Self::servers).
    pub socket: Option<PathBuf>,
    /// User to authenticate as. Needs a password.
    pub user: Option<String>,
    /// Password to authenticate with. Without a user, that of the server's default user.
    pub password: Option<String>,
    /// Connection through TLS. Default false.
    pub tls: bool,
    /// Number of the database. Default 0, the only one of a cluster.
    pub db: u32,
    /// Name of the stream. Default `events`.
    pub stream_name: String,
    /// Beginning of every key. Default `a3s`.
    pub key_prefix: String,
    /// If true, creates the stream if it does not exist, and again if it is deleted later. Default true.
    pub create_if_missing: bool,
    /// Leading tokens of every subject. Default `events`. A stream keeps the prefix that it was created with.
    pub subject_prefix: String,
    /// Maximum number of stored events; the oldest are dropped. 0 is unlimited. Default: the stream's, and
    /// [`DEFAULT_MAX_EVENTS`] for a new one.
    pub max_events: Option<u64>,
    /// Maximum size of all stored events in bytes of JSON; the oldest are dropped, but never the newest. 0 is
    /// unlimited. Default: the stream's, and unlimited for a new one.
    pub max_bytes: Option<u64>,
    /// Maximum age of a stored event. Zero is unlimited. Default: the stream's, and unlimited for a new one.
    pub max_age: Option<Duration>,
    /// Maximum size of one event in bytes of JSON. Default 1 MiB, as on NATS.
    pub max_event_bytes: usize,
    /// Time for which a `msg_id` is remembered; zero disables deduplication. Default: the stream's, and
    /// [`DEFAULT_DEDUP_WINDOW`] for a new one.
    pub dedup_window: Option<Duration>,
    /// Timeout of a call, unless its options have one. Default 10 s.
    pub timeout: Duration,
    /// Timeout of connecting to one server. Default 5 s.
    pub connect_timeout: Duration,
    /// Maximum number of events that one call to the server stores for several publishers. Default 500.
    pub commit_max_events: usize,
    /// Maximum bytes of JSON that one call to the server stores for several publishers. Default 1 MiB.
    pub commit_max_bytes: usize,
    /// Maximum number of acks per consumer that are in flight and not yet stored. Default 1,000.
    pub max_unconfirmed_acks: usize,
    /// PEM file of the certificates to trust instead of those of the system.
    pub root_certificates: Option<PathBuf>,
    /// PEM file of the client's certificate with its chain.
    pub client_certificate: Option<PathBuf>,
    /// PEM file of the client's key.
    pub client_key: Option<PathBuf>,
    /// Name of the primary that the Sentinels monitor. With it, [`servers`](Self::servers) are the Sentinels.
    pub sentinel: Option<String>,
    /// User to authenticate as with the Sentinels.
    pub sentinel_user: Option<String>,
    /// Password to authenticate with the Sentinels.
    pub sentinel_password: Option<String>,
    /// Name of this client in the server's lists. Default `a3s-event`.
    pub client_name: String,
    /// Number of replicas that must have a publish or a durable consumer before the call returns. Default 0.
    ///
    /// If fewer have it within the timeout, the call fails, and the event may be stored.
    pub wait_replicas: u16,
    /// If true, a publish waits until the server has synced it to its disk. Default false. Requires `appendonly` and
    /// Redis 7.2 or Valkey. `appendfsync always` on the server is faster.
    pub wait_aof: bool,
    /// Durability that the operator vouches for: [`Durability::None`] to [`Durability::PowerLoss`]. It applies if the
    /// server does not show its configuration, as in many managed services. A durability above that of a shown
    /// configuration is a [`Conflict`](EventError::Conflict).
    pub durability: Option<Durability>,
    /// If true, uses a server that may evict any key when its memory is full, which loses events and positions. Default
    /// false, which refuses such a server.
    pub allow_eviction: bool,
    /// If true, a consumer group beside each durable consumer shows its position and lag to other tools. Default false.
    pub mirror_groups: bool,
}

/// The default settings for a server on this machine.
impl Default for RedisConfig {
    fn default() -> Self {
        Self::at("127.0.0.1")
    }
}

impl RedisConfig {
    /// Returns the default settings for the server at `host[:port]`, or for several separated by commas.
    pub fn at(servers: impl Into<String>) -> Self {
        Self {
            servers: servers.into(),
            socket: None,
            user: None,
            password: None,
            tls: false,
            db: 0,
            stream_name: "events".to_owned(),
            key_prefix: "a3s".to_owned(),
            create_if_missing: true,
            subject_prefix: "events".to_owned(),
            max_events: None,
            max_bytes: None,
            max_age: None,
            max_event_bytes: DEFAULT_MAX_EVENT_BYTES,
            dedup_window: None,
            timeout: DEFAULT_TIMEOUT,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            commit_max_events: 500,
            commit_max_bytes: 1 << 20,
            max_unconfirmed_acks: DEFAULT_MAX_UNCONFIRMED_ACKS,
            root_certificates: None,
            client_certificate: None,
            client_key: None,
            sentinel: None,
            sentinel_user: None,
            sentinel_password: None,
            client_name: "a3s-event".to_owned(),
            wait_replicas: 0,
            wait_aof: false,
            durability: None,
            allow_eviction: false,
            mirror_groups: false,
        }
    }

    /// Returns the default settings for the server with this Unix socket.
    pub fn unix(socket: impl Into<PathBuf>) -> Self {
        Self { servers: String::new(), socket: Some(socket.into()), ..Self::default() }
    }

    /// Sets the user and password to authenticate with.
    pub fn user_and_password(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self.password = Some(password.into());
        self
    }

    /// Sets the password of the server's default user.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Sets whether to connect through TLS. A server without TLS is then refused.
    pub fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// Sets the number of the database. A cluster has only 0.
    pub fn db(mut self, db: u32) -> Self {
        self.db = db;
        self
    }

    /// Sets the name of the stream.
    pub fn stream_name(mut self, name: impl Into<String>) -> Self {
        self.stream_name = name.into();
        self
    }

    /// Sets the beginning of every key.
    pub fn key_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.key_prefix = prefix.into();
        self
    }

    /// Sets whether the provider creates the stream if it does not exist, and again if it is deleted later.
    pub fn create_if_missing(mut self, create: bool) -> Self {
        self.create_if_missing = create;
        self
    }

    /// Sets the leading tokens of every subject.
    pub fn subject_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.subject_prefix = prefix.into();
        self
    }

    /// Sets the maximum number of stored events of the stream; 0 is unlimited.
    pub fn max_events(mut self, max: u64) -> Self {
        self.max_events = Some(max);
        self
    }

    /// Sets the maximum size of all stored events of the stream in bytes of JSON; 0 is unlimited.
    pub fn max_bytes(mut self, max: u64) -> Self {
        self.max_bytes = Some(max);
        self
    }

    /// Sets the maximum age of a stored event of the stream; zero is unlimited.
    pub fn max_age(mut self, max: Duration) -> Self {
        self.max_age = Some(max);
        self
    }

    /// Sets the maximum size of one event in bytes of JSON.
    pub fn max_event_bytes(mut self, max: usize) -> Self {
        self.max_event_bytes = max;
        self
    }

    /// Sets the time for which the stream remembers a `msg_id`; zero disables deduplication.
    pub fn dedup_window(mut self, window: Duration) -> Self {
        self.dedup_window = Some(window);
        self
    }

    /// Sets the timeout of a call whose options have none.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the timeout of connecting to one server.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the maximum number of events that one call to the server stores for several publishers.
    pub fn commit_max_events(mut self, events: usize) -> Self {
        self.commit_max_events = events;
        self
    }

    /// Sets the maximum bytes of JSON that one call to the server stores for several publishers.
    pub fn commit_max_bytes(mut self, bytes: usize) -> Self {
        self.commit_max_bytes = bytes;
        self
    }

    /// Sets the maximum number of acks per consumer that are in flight and not yet stored. At the limit, an ack waits.
    pub fn max_unconfirmed_acks(mut self, max: usize) -> Self {
        self.max_unconfirmed_acks = max;
        self
    }

    /// Sets the PEM file of the certificates to trust instead of those of the system.
    pub fn root_certificates(mut self, path: impl Into<PathBuf>) -> Self {
        self.root_certificates = Some(path.into());
        self
    }

    /// Sets the PEM files of the client's certificate with its chain, and of its key.
    pub fn client_certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.client_certificate = Some(certificate.into());
        self.client_key = Some(key.into());
        self
    }

    /// Sets the name of the primary that the Sentinels at [`servers`](Self::servers) monitor.
    pub fn sentinel(mut self, name: impl Into<String>) -> Self {
        self.sentinel = Some(name.into());
        self
    }

    /// Sets the user to authenticate as with the Sentinels.
    pub fn sentinel_user(mut self, user: impl Into<String>) -> Self {
        self.sentinel_user = Some(user.into());
        self
    }

    /// Sets the password to authenticate with the Sentinels.
    pub fn sentinel_password(mut self, password: impl Into<String>) -> Self {
        self.sentinel_password = Some(password.into());
        self
    }

    /// Sets the name of this client in the server's lists.
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.client_name = name.into();
        self
    }

    /// Sets the number of replicas that must have a publish or a durable consumer before the call returns.
    pub fn wait_replicas(mut self, replicas: u16) -> Self {
        self.wait_replicas = replicas;
        self
    }

    /// Sets whether a publish waits until the server has synced it to its disk.
    pub fn wait_aof(mut self, wait: bool) -> Self {
        self.wait_aof = wait;
        self
    }

    /// Sets the durability that the operator vouches for: [`Durability::None`] to [`Durability::PowerLoss`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// Sets whether to use a server that may evict any key.
    pub fn allow_eviction(mut self, allow: bool) -> Self {
        self.allow_eviction = allow;
        self
    }

    /// Sets whether a consumer group beside each durable consumer shows its position and lag to other tools.
    pub fn mirror_groups(mut self, mirror: bool) -> Self {
        self.mirror_groups = mirror;
        self
    }

    /// Returns the address of each server, or of each Sentinel.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] for a server that is not `host[:port]`.
    pub(super) fn addresses(&self) -> Result<Vec<Address>> {
        match &self.socket {
            Some(path) => Ok(vec![Address::Unix(path.clone())]),
            None if self.sentinel.is_some() => address::parse_all(&self.servers, DEFAULT_SENTINEL_PORT),
            None => address::parse_all(&self.servers, DEFAULT_PORT),
        }
    }

    /// Checks the settings without connecting.
    pub(super) fn check(&self) -> Result<()> {
        SETTINGS.check(self)?;
        validate_prefix(&self.subject_prefix)?;
        self.addresses()?;
        let is_declarable = |durability| {
            matches!(
                durability,
                Durability::None | Durability::Deferred | Durability::ProcessCrash | Durability::PowerLoss
            )
        };
        if let Some(durability) = self.durability.filter(|durability| !is_declarable(*durability)) {
            return Err(EventError::Config(format!(
                "durability {durability:?}: must be None, Deferred, ProcessCrash or PowerLoss: a failover can lose events"
            )));
        }
        let is_socket = self.socket.is_some();
        for (is_wrong, rule) in [
            (self.user.is_some() && self.password.is_none(), "user: needs a password"),
            (is_socket && !self.servers.is_empty(), "socket and servers: only one can be given"),
            (is_socket && self.tls, "socket: must be without tls"),
            (is_socket && self.sentinel.is_some(), "socket: must be without sentinel"),
            (
                self.sentinel_user.is_some() && self.sentinel_password.is_none(),
                "sentinel_user: needs sentinel_password",
            ),
            (
                self.sentinel_password.is_some() && self.sentinel.is_none(),
                "sentinel_password: needs sentinel",
            ),
            (
                self.client_certificate.is_some() != self.client_key.is_some(),
                "client_certificate and client_key: must be set together",
            ),
            (
                self.root_certificates.is_some() && !self.tls,
                "root_certificates: needs tls, as with rediss://",
            ),
            (
                self.client_certificate.is_some() && !self.tls,
                "client_certificate: needs tls, as with rediss://",
            ),
        ] {
            if is_wrong {
                return Err(EventError::Config(rule.to_owned()));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SETTINGS.debug("RedisConfig", self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let config = RedisConfig::at("canary:canary@one,two")
            .user_and_password("canary", "canary")
            .client_certificate("client.pem", "canary")
            .sentinel_user("canary")
            .sentinel_password("canary");
        let shown = format!("{config:?} {:?}", config.check());
        assert!(!shown.contains("canary"), "{shown}");
        assert!(shown.contains("servers: \"***@one,two\"") && shown.contains("client.pem"), "{shown}");
    }

    #[test]
    fn sentinels_and_servers_have_their_ports() {
        let addresses = |config: RedisConfig| config.addresses().unwrap();
        let tcp = |host: &str, port| Address::Tcp { host: host.to_owned(), port };
        assert_eq!(addresses(RedisConfig::default()), [tcp("127.0.0.1", 6_379)]);
        assert_eq!(addresses(RedisConfig::default().sentinel("main")), [tcp("127.0.0.1", 26_379)]);
        assert_eq!(addresses(RedisConfig::at("a,b:1").sentinel("main")), [tcp("a", 26_379), tcp("b", 1)]);
        assert_eq!(addresses(RedisConfig::unix("redis.sock")), [Address::Unix("redis.sock".into())]);
    }

    #[test]
    fn wrong_settings_are_refused_with_their_name() {
        let config = RedisConfig::default;
        let long = "a".repeat(256);
        for (config, text) in [
            (RedisConfig::at("a:b"), "servers \"a:b\": must be host[:port]"),
            (config().subject_prefix("events."), "subject_prefix"),
            (config().stream_name(""), "stream_name \"\": must have 1 to 255 characters"),
            (config().stream_name("42"), "stream_name \"42\": must"),
            (config().stream_name("a{b}"), "stream_name \"a{b}\": must"),
            (config().stream_name("a*"), "stream_name \"a*\": must"),
            (config().stream_name(long), "stream_name"),
            (config().key_prefix(""), "key_prefix"),
            (config().key_prefix("{a}"), "key_prefix"),
            (config().max_event_bytes(10), "max_event_bytes 10"),
            (
                config().max_event_bytes(65 << 20),
                "max_event_bytes 68157440: must be at least 256, at most 64MiB",
            ),
            (config().max_bytes(10), "max_bytes 10"),
            (
                config().max_age(Duration::from_micros(1)),
                "max_age 1us: must be at least 1ms, or 0 (unlimited)",
            ),
            (config().dedup_window(Duration::from_nanos(1)), "dedup_window 1ns"),
            (config().timeout(Duration::ZERO), "timeout 0s"),
            (config().connect_timeout(Duration::ZERO), "connect_timeout 0s"),
            (config().commit_max_events(0), "commit_max_events 0: must be at least 1, at most 1000"),
            (config().commit_max_bytes(usize::MAX), "commit_max_bytes"),
            (config().max_unconfirmed_acks(0), "max_unconfirmed_acks 0"),
            (config().client_name("my client"), "client_name \"my client\""),
            (config().password(""), "password ***: must not be empty"),
            (config().sentinel(""), "sentinel \"\""),
            (config().sentinel_password("s"), "sentinel_password: needs sentinel"),
            (config().sentinel("s").sentinel_user("u"), "sentinel_user: needs sentinel_password"),
            (config().durability(Durability::NodeLoss), "durability NodeLoss"),
            (config().durability(Durability::Unknown), "durability Unknown"),
            (config().root_certificates("ca.pem"), "root_certificates: needs tls"),
            (config().client_certificate("c.pem", "k.pem"), "client_certificate: needs tls"),
            (
                RedisConfig { client_key: Some("k".into()), ..config().tls(true) },
                "client_certificate and client_key",
            ),
            (RedisConfig { user: Some("u".to_owned()), ..config() }, "user: needs a password"),
            (RedisConfig { socket: Some("s".into()), ..config() }, "socket and servers"),
            (RedisConfig::unix("s").tls(true), "socket: must be without tls"),
            (RedisConfig::unix("s").sentinel("main"), "socket: must be without sentinel"),
        ] {
            let error = config.check().unwrap_err();
            assert!(matches!(&error, EventError::Config(rule) if rule.starts_with(text)), "{text}: {error}");
        }
    }

    #[test]
    fn sound_settings_are_taken() {
        let config = RedisConfig::default;
        for config in [
            config(),
            config().stream_name("a:b.c-d_1").key_prefix("prod:a3s"),
            config().max_age(Duration::ZERO).dedup_window(Duration::ZERO).max_events(0).max_bytes(0),
            config().durability(Durability::PowerLoss),
            RedisConfig::unix("redis.sock").user_and_password("u", "p"),
            RedisConfig::at("a,b").sentinel("main").sentinel_user("u").sentinel_password("p"),
            RedisConfig::at("a").tls(true).root_certificates("ca.pem").client_certificate("c.pem", "k.pem"),
        ] {
            config.check().unwrap();
        }
    }
}
