//! Harness for any backend that a URL reaches: each case has its own stream there.

use std::sync::{Arc, Mutex, PoisonError};

use a3s_event::provider::{Isolation, ProviderRegistry, ProviderUrl};
use a3s_event::{Durability, Event, EventProvider, Result};
use async_trait::async_trait;
use tempfile::TempDir;
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::{Fixture, Harness, Settings};

/// Starts each case on a fresh stream next to that of a URL, as its [scheme](a3s_event::provider::Scheme::isolated_by)
/// defines. When the case ends, the stream is deleted and its files are removed.
///
/// A restart closes the connection and opens another one. A server keeps running.
#[derive(Debug, Clone)]
pub struct Isolated {
    registry: ProviderRegistry,
    url: ProviderUrl,
}

impl Isolated {
    /// Creates a harness for the backend that a URL reaches.
    ///
    /// # Errors
    ///
    /// For an invalid URL, and for a scheme that is unknown or does not define how to isolate a stream.
    pub fn new(registry: ProviderRegistry, url: &str) -> Result<Self> {
        let url = ProviderUrl::parse(url)?;
        registry.isolated(&url, &Isolation::new("CONFORMANCE", ""))?;
        Ok(Self { registry, url })
    }
}

#[async_trait]
impl Harness for Isolated {
    #[allow(clippy::panic, reason = "a case that cannot begin fails")]
    async fn start(&self) -> Box<dyn Fixture> {
        match self.start_with(&Settings::default()).await {
            Some(fixture) => fixture,
            None => panic!("starting the case failed: the scheme cannot isolate a stream"),
        }
    }

    #[allow(clippy::panic, reason = "a case that cannot begin fails")]
    async fn start_with(&self, settings: &Settings) -> Option<Box<dyn Fixture>> {
        let folder = tempfile::tempdir()
            .unwrap_or_else(|error| panic!("creating a folder for the case failed: {error}"));
        let unique = Event::new("", "", "", "", serde_json::Value::Null).id.replace('-', "");
        let mut isolation = Isolation::new(format!("CONFORMANCE_{unique}"), folder.path());
        isolation.max_events = settings.max_events;
        isolation.max_bytes = settings.max_bytes;
        isolation.dedup_window = settings.dedup_window;
        let url = self.registry.isolated(&self.url, &isolation).ok()??;
        let connected = self.registry.connect_to(url.clone()).await;
        let provider = connected.unwrap_or_else(|error| panic!("starting the case failed: {error}"));
        let registry = self.registry.clone();
        Some(Box::new(Stream { registry, url, provider, reopened: Mutex::default(), _folder: folder }))
    }
}

/// The stream of one case.
struct Stream {
    registry: ProviderRegistry,
    url: ProviderUrl,
    provider: Arc<dyn EventProvider>,
    /// The provider after a restart.
    reopened: Mutex<Option<Arc<dyn EventProvider>>>,
    _folder: TempDir,
}

impl Stream {
    /// Returns true if another connection reaches the same stream.
    fn outlives_a_connection(&self) -> bool {
        self.provider.capabilities().durability != Durability::None
    }

    #[allow(clippy::panic, reason = "a case that cannot go on fails")]
    async fn connect_again(&self) -> Arc<dyn EventProvider> {
        let connected = self.registry.connect_to(self.url.clone()).await;
        connected.unwrap_or_else(|error| panic!("opening another connection failed: {error}"))
    }
}

#[async_trait]
impl Fixture for Stream {
    fn provider(&self) -> Arc<dyn EventProvider> {
        Arc::clone(&self.provider)
    }

    async fn connect(&self) -> Arc<dyn EventProvider> {
        if self.outlives_a_connection() { self.connect_again().await } else { self.provider() }
    }

    async fn restart(&self) -> Option<Arc<dyn EventProvider>> {
        if !self.outlives_a_connection() {
            return None;
        }
        self.provider.close().await.ok()?;
        let reopened = self.connect_again().await;
        let kept = Arc::clone(&reopened);
        *self.reopened.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        Some(reopened)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let reopened = self.reopened.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let provider = reopened.unwrap_or_else(|| Arc::clone(&self.provider));
        // The runtime of the case ends soon, so wait here. If it cannot be blocked, the provider keeps everything in
        // this process.
        if let Ok(runtime) = Handle::try_current()
            && runtime.runtime_flavor() == RuntimeFlavor::MultiThread
        {
            tokio::task::block_in_place(|| {
                runtime.block_on(async {
                    let _ = provider.delete_stream().await;
                    let _ = provider.close().await;
                });
            });
        }
    }
}
