//! Settings of the memory provider.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::MemoryProvider;
use crate::error::Result;
use crate::provider::settings::{Setting, Settings, common, row};
use crate::provider::support::Clock;
use crate::provider::validate::DEFAULT_MAX_EVENT_BYTES;
use crate::provider::{EventProvider, Isolation, ProviderUrl, StreamLimits};
use crate::subject::validate_prefix;

/// Default deduplication window: the time for which a `msg_id` is remembered.
pub const DEFAULT_DEDUP_WINDOW: Duration = Duration::from_secs(120);

pub(in crate::provider) static SETTINGS: Settings<MemoryProviderBuilder> = Settings::new(&[
    row!("(path)" = stream_name, common::STREAM_NAME),
    row!("subject_prefix" = config.subject_prefix, Setting::text().doc("first tokens of every subject")),
    row!("max_events" = config.max_events, common::MAX_EVENTS),
    row!("max_bytes" = max_bytes, common::MAX_BYTES),
    row!("max_age" = max_age, common::MAX_AGE),
    row!("max_event_bytes" = max_event_bytes, common::MAX_EVENT_BYTES),
    row!("dedup_window" = dedup_window, common::DEDUP_WINDOW),
    row!(
        "channel_capacity" = config.channel_capacity,
        Setting::count("events").doc("no effect: consumers read from the store, so no channel can overflow")
    ),
]);

/// The basic settings. [`MemoryProvider::builder`] has the others.
#[derive(Debug, Clone)]
pub struct MemoryConfig {
    /// First tokens of every subject. Default `events`.
    pub subject_prefix: String,
    /// Maximum number of stored events; the oldest are dropped. 0 is unlimited. Default 100,000.
    pub max_events: usize,
    /// No effect: subscribers read from the store itself, so no channel can overflow. Any capacity is accepted. Default
    /// 10,000.
    pub channel_capacity: usize,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { subject_prefix: "events".to_owned(), max_events: 100_000, channel_capacity: 10_000 }
    }
}

/// Builds a [`MemoryProvider`], with settings that [`MemoryConfig`] lacks.
///
/// ```
/// use std::time::Duration;
/// use a3s_event::MemoryProvider;
///
/// # fn main() -> a3s_event::Result<()> {
/// let provider = MemoryProvider::builder().max_events(1_000).max_age(Duration::from_secs(3_600)).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct MemoryProviderBuilder {
    pub(super) config: MemoryConfig,
    pub(super) stream_name: String,
    pub(super) max_bytes: u64,
    pub(super) max_age: Duration,
    pub(super) max_event_bytes: usize,
    pub(super) dedup_window: Duration,
    pub(super) clock: Clock,
}

impl MemoryProviderBuilder {
    pub(super) fn new(config: MemoryConfig) -> Self {
        Self {
            config,
            stream_name: "memory".to_owned(),
            max_bytes: 0,
            max_age: Duration::ZERO,
            max_event_bytes: DEFAULT_MAX_EVENT_BYTES,
            dedup_window: DEFAULT_DEDUP_WINDOW,
            clock: Clock::default(),
        }
    }

    /// Sets the first tokens of every subject. Default `events`.
    pub fn subject_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.config.subject_prefix = prefix.into();
        self
    }

    /// Sets the name of the stream in [`ReceivedEvent::stream`](crate::ReceivedEvent::stream). Default `memory`.
    pub fn stream_name(mut self, name: impl Into<String>) -> Self {
        self.stream_name = name.into();
        self
    }

    /// Sets the maximum number of stored events; the oldest are dropped. 0 is unlimited. Default 100,000.
    pub fn max_events(mut self, max: usize) -> Self {
        self.config.max_events = max;
        self
    }

    /// Sets the maximum size of all stored events in bytes of JSON; the oldest are dropped, but never the newest. 0,
    /// the default, is unlimited.
    pub fn max_bytes(mut self, max: u64) -> Self {
        self.max_bytes = max;
        self
    }

    /// Sets the maximum age of a stored event. Zero, the default, is unlimited.
    pub fn max_age(mut self, max: Duration) -> Self {
        self.max_age = max;
        self
    }

    /// Sets the maximum size of one event in bytes of JSON. Default 1 MiB, as on NATS.
    pub fn max_event_bytes(mut self, max: usize) -> Self {
        self.max_event_bytes = max;
        self
    }

    /// Sets the time for which a `msg_id` is remembered. Default 120 s; zero disables deduplication.
    pub fn dedup_window(mut self, window: Duration) -> Self {
        self.dedup_window = window;
        self
    }

    /// Sets the clock of storage times and ages. Default: the system's clock.
    #[cfg(feature = "testing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Builds the provider.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`](crate::EventError::Config) for:
    ///
    /// - a prefix that is not a subject
    /// - an empty stream name
    /// - a `max_event_bytes` or `max_bytes` too small for any event
    pub fn build(self) -> Result<MemoryProvider> {
        SETTINGS.check(&self)?;
        validate_prefix(&self.config.subject_prefix)?;
        Ok(MemoryProvider::from_builder(self))
    }
}

impl fmt::Debug for MemoryProviderBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SETTINGS.debug("MemoryProviderBuilder", self, f)
    }
}

/// Returns the limits of a new stream whose URL sets none.
pub(in crate::provider) fn default_limits() -> StreamLimits {
    StreamLimits::new(MemoryConfig::default().max_events as u64, 0, Duration::ZERO)
}

/// Adds only the limits: every connection has its own stream.
#[expect(clippy::unnecessary_wraps, reason = "other schemes return None")]
pub(in crate::provider) fn isolate(url: ProviderUrl, isolation: &Isolation) -> Option<ProviderUrl> {
    Some(isolation.limit(url))
}

/// Connects to `memory://[stream name][?subject_prefix=…&max_events=…&…]`: a new, empty provider.
pub(in crate::provider) async fn connect(url: ProviderUrl) -> Result<Arc<dyn EventProvider>> {
    url.refuse_credentials()?;
    let mut builder = MemoryProvider::builder();
    let name = format!("{}{}", url.authority(), url.path());
    if !name.trim_matches('/').is_empty() {
        builder = builder.stream_name(name.trim_matches('/'));
    }
    SETTINGS.read(&url, &mut builder)?;
    Ok(Arc::new(builder.build()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::EventError;

    #[test]
    fn the_defaults_are_the_promised_ones() {
        let config = MemoryConfig::default();
        assert_eq!(
            (config.subject_prefix.as_str(), config.max_events, config.channel_capacity),
            ("events", 100_000, 10_000)
        );
    }

    #[test]
    fn wrong_settings_are_refused_with_their_name() {
        for (builder, name) in [
            (MemoryProvider::builder().subject_prefix(""), "subject_prefix"),
            (MemoryProvider::builder().subject_prefix("events."), "subject_prefix"),
            (MemoryProvider::builder().subject_prefix("a.*"), "subject_prefix"),
            (MemoryProvider::builder().stream_name(""), "stream_name"),
            (MemoryProvider::builder().max_event_bytes(10), "max_event_bytes"),
            (MemoryProvider::builder().max_bytes(10), "max_bytes"),
        ] {
            let error = builder.build().unwrap_err();
            assert!(matches!(&error, EventError::Config(text) if text.starts_with(name)), "{error}");
        }
    }

    #[tokio::test]
    async fn every_setting_of_the_url_takes_effect() {
        let url = "memory://orders?subject_prefix=acme.events&max_events=7&channel_capacity=1&max_bytes=9000\
                   &max_age=1m&max_event_bytes=2000&dedup_window=5s";
        let provider = connect(ProviderUrl::parse(url).unwrap()).await.unwrap();
        let memory = provider.as_any().unwrap().downcast_ref::<MemoryProvider>().unwrap();
        let settings = memory.settings();
        assert_eq!(settings.stream_name, "orders");
        assert_eq!(settings.config.subject_prefix, "acme.events");
        assert_eq!((settings.config.max_events, settings.config.channel_capacity), (7, 1));
        assert_eq!((settings.max_bytes, settings.max_event_bytes), (9000, 2000));
        assert_eq!((settings.max_age.as_secs(), settings.dedup_window.as_secs()), (60, 5));

        let refused =
            connect(ProviderUrl::parse("memory://user:hunter2@orders").unwrap()).await.err().unwrap();
        assert!(refused.to_string().contains("no user name") && !refused.to_string().contains("hunter2"));
    }
}
