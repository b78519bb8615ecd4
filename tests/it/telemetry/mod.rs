//! What is counted and traced, on every provider.

mod counts;
mod traces;

use std::sync::Arc;

use a3s_event::{EventProvider, MemoryProvider, ProviderRegistry};

/// Runs one test body on a fresh stream of each provider that is compiled in.
async fn on_every_provider(test: impl AsyncFn(Arc<dyn EventProvider>)) {
    test(Arc::new(MemoryProvider::default())).await;
    #[cfg(feature = "sqlite")]
    {
        let folder = tempfile::tempdir().unwrap();
        test(connect(&format!("sqlite://{}/events.db", folder.path().display())).await).await;
    }
    #[cfg(feature = "nats")]
    {
        let server = a3s_event_testkit::NatsServer::start().await;
        test(connect(&server.url()).await).await;
    }
}

#[allow(dead_code, reason = "memory needs no URL")]
async fn connect(url: &str) -> Arc<dyn EventProvider> {
    ProviderRegistry::builtin().connect(url).await.unwrap()
}
