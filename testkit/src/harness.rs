//! Interface of the kit to a provider: starting it, and acting on it from outside.

use std::sync::Arc;
use std::time::Duration;

use a3s_event::{Event, EventProvider};
use async_trait::async_trait;

/// Starts providers for the cases. Only [`start`](Harness::start) is required.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// Starts a fresh and empty provider, isolated from every other one, with default settings.
    async fn start(&self) -> Box<dyn Fixture>;

    /// Starts a provider with settings. Returns `None` if the provider does not support them; the case is then not
    /// applicable.
    async fn start_with(&self, settings: &Settings) -> Option<Box<dyn Fixture>> {
        let _ = settings;
        None
    }

    /// Lets time pass for the provider.
    async fn elapse(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Returns true if [`elapse`](Harness::elapse) takes no real time, as on the paused clock. Cases that take minutes
    /// run only then.
    fn waiting_is_free(&self) -> bool {
        false
    }

    /// Returns the time of the clock that stamps stored events, in Unix milliseconds. By default the wall clock of this
    /// machine.
    fn unix_millis(&self) -> u64 {
        Event::new("", "", "", "", serde_json::Value::Null).timestamp
    }
}

/// A running provider. Dropping it cleans up.
///
/// An `Arc` of a provider is the fixture of a provider that needs no cleanup.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// Returns the provider.
    fn provider(&self) -> Arc<dyn EventProvider>;

    /// Opens another connection to the same stream. Returns the same handle by default.
    async fn connect(&self) -> Arc<dyn EventProvider> {
        self.provider()
    }

    /// Restarts the backend and reopens the provider over the same storage. Handles from before may still exist, as
    /// after a crash; they are not used again. Returns `None`, the default, if nothing outlives a restart.
    async fn restart(&self) -> Option<Arc<dyn EventProvider>> {
        None
    }

    /// Stores bytes that are not an event under a subject, bypassing the provider, and returns the sequence of the
    /// record. Returns `None`, the default, if the storage cannot hold such a record.
    async fn store_undecodable(&self, subject: &str, raw: &[u8]) -> Option<u64> {
        let _ = (subject, raw);
        None
    }

    /// Drops everything stored before this sequence, bypassing the provider, as retention does. Returns `None`, the
    /// default, if that is impossible; the cases then need a stream with a [limit](Settings::max_events).
    async fn drop_before(&self, sequence: u64) -> Option<()> {
        let _ = sequence;
        None
    }
}

#[async_trait]
impl<P: EventProvider + 'static> Fixture for Arc<P> {
    fn provider(&self) -> Arc<dyn EventProvider> {
        Arc::<P>::clone(self)
    }
}

/// Settings that a few cases need. `None` keeps the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// Maximum number of stored events; the oldest are dropped.
    pub max_events: Option<usize>,
    /// Maximum number of stored bytes; the oldest events are dropped, but never the newest one.
    pub max_bytes: Option<u64>,
    /// Time for which a `msg_id` is remembered.
    pub dedup_window: Option<Duration>,
}

impl Settings {
    /// Creates settings for a stream that keeps at most this many events.
    pub fn max_events(max: usize) -> Self {
        Self { max_events: Some(max), ..Self::default() }
    }

    /// Creates settings for a stream that keeps at most this many bytes.
    pub fn max_bytes(max: u64) -> Self {
        Self { max_bytes: Some(max), ..Self::default() }
    }

    /// Creates settings for a stream that remembers a `msg_id` this long.
    pub fn dedup_window(window: Duration) -> Self {
        Self { dedup_window: Some(window), ..Self::default() }
    }
}
