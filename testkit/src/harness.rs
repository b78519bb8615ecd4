//! What the kit needs to know about a provider: how to start it, and what can be done to it from outside.

use std::sync::Arc;
use std::time::Duration;

use a3s_event::{Event, EventProvider};
use async_trait::async_trait;

/// Starts providers for the cases. Only [`start`](Harness::start) must be written.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// A fresh and empty provider, isolated from every other one, with default settings.
    async fn start(&self) -> Box<dyn Fixture>;

    /// The same with settings; `None` when the provider cannot be set up like this, which makes the case not applicable.
    async fn start_with(&self, settings: &Settings) -> Option<Box<dyn Fixture>> {
        let _ = settings;
        None
    }

    /// Lets time pass for the provider.
    async fn elapse(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Whether time that [`elapse`](Harness::elapse) lets pass costs none, as on the paused clock. Cases that take minutes
    /// run only then.
    fn waiting_is_free(&self) -> bool {
        false
    }

    /// The clock that stamps stored events, in Unix milliseconds. The wall clock of this machine by default.
    fn unix_millis(&self) -> u64 {
        Event::new("", "", "", "", serde_json::Value::Null).timestamp
    }
}

/// A running provider. Dropping it cleans up.
///
/// An `Arc` of a provider is the fixture of one that has nothing to clean up.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The provider.
    fn provider(&self) -> Arc<dyn EventProvider>;

    /// Another connection to the same stream. The same handle by default.
    async fn connect(&self) -> Arc<dyn EventProvider> {
        self.provider()
    }

    /// Restarts the backend and reopens the provider over the same storage. Handles from before may still exist, as
    /// after a crash; they are not used again. `None`, the default, when nothing outlives a restart.
    async fn restart(&self) -> Option<Arc<dyn EventProvider>> {
        None
    }

    /// Stores bytes that are not an event under a subject, past the provider, and returns the sequence of the record.
    /// `None`, the default, when the storage cannot hold such a record.
    async fn store_undecodable(&self, subject: &str, raw: &[u8]) -> Option<u64> {
        let _ = (subject, raw);
        None
    }

    /// Drops everything that is stored before this sequence, past the provider, as retention does. `None`, the default, where
    /// that cannot be done: the cases then need a stream with a [limit](Settings::max_events).
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

/// Settings that a few cases need. What is `None` keeps its default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// Most stored events; the oldest are dropped.
    pub max_events: Option<usize>,
    /// Most stored bytes; the oldest events are dropped, but never the newest one.
    pub max_bytes: Option<u64>,
    /// How long a `msg_id` is remembered.
    pub dedup_window: Option<Duration>,
}

impl Settings {
    /// A stream that keeps at most this many events.
    pub fn max_events(max: usize) -> Self {
        Self { max_events: Some(max), ..Self::default() }
    }

    /// A stream that keeps at most this many bytes.
    pub fn max_bytes(max: u64) -> Self {
        Self { max_bytes: Some(max), ..Self::default() }
    }

    /// A stream that remembers a `msg_id` this long.
    pub fn dedup_window(window: Duration) -> Self {
        Self { dedup_window: Some(window), ..Self::default() }
    }
}
