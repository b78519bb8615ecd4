//! The providers that a test runs on, one after the other, with the same body.

use std::sync::Arc;

use a3s_event::{EventBus, EventProvider, MemoryProvider, ProviderDlqHandler, ProviderRegistry};

/// A stream for events and one for dead letters.
pub(crate) struct Backend {
    /// Where another process finds the two, if it can.
    pub(crate) urls: Option<[String; 2]>,
    memory: [Arc<MemoryProvider>; 2],
    storage: Storage,
}

/// What goes with the backend.
#[allow(dead_code, reason = "some is only kept alive")]
enum Storage {
    Process,
    #[cfg(feature = "sqlite")]
    Folder(tempfile::TempDir),
    #[cfg(feature = "nats")]
    Server(a3s_event_testkit::NatsServer),
}

impl Backend {
    fn new(urls: Option<[String; 2]>, storage: Storage) -> Self {
        Self { urls, memory: Default::default(), storage }
    }

    #[allow(clippy::unused_async, reason = "the others are async")]
    pub(crate) async fn memory() -> Self {
        Self::new(None, Storage::Process)
    }

    #[cfg(feature = "sqlite")]
    #[allow(clippy::unused_async, reason = "the others are async")]
    pub(crate) async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("sqlite://{}", folder.path().join(name).display());
        Self::new(Some([url("events.db"), url("letters.db")]), Storage::Folder(folder))
    }

    #[cfg(feature = "nats")]
    pub(crate) async fn nats() -> Self {
        let server = a3s_event_testkit::NatsServer::start().await;
        let url = server.url();
        let urls = [format!("{url}/EVENTS"), format!("{url}/LETTERS?subject_prefix=letters")];
        Self::new(Some(urls), Storage::Server(server))
    }

    /// The stream of events, as another process would open it.
    pub(crate) async fn events(&self) -> Arc<dyn EventProvider> {
        self.open(0).await
    }

    /// The stream of dead letters, as another process would open it.
    pub(crate) async fn letters(&self) -> Arc<ProviderDlqHandler> {
        Arc::new(ProviderDlqHandler::new(self.open(1).await).unwrap())
    }

    async fn open(&self, which: usize) -> Arc<dyn EventProvider> {
        match &self.urls {
            None => Arc::clone(&self.memory[which]) as Arc<dyn EventProvider>,
            Some(urls) => ProviderRegistry::builtin().connect(&urls[which]).await.unwrap(),
        }
    }

    /// A bus with dead letters, as another process would have it.
    pub(crate) async fn bus(&self) -> EventBus {
        let mut bus = EventBus::from_provider(self.events().await);
        bus.set_dlq_handler(self.letters().await);
        bus
    }

    /// Stores a record that is no event, where that is possible.
    #[cfg_attr(
        not(any(feature = "sqlite", feature = "nats")),
        expect(unused_variables, reason = "memory has none")
    )]
    pub(crate) async fn store_undecodable(&self, subject: &str, raw: &[u8]) -> Option<u64> {
        match &self.storage {
            Storage::Process => None,
            #[cfg(feature = "sqlite")]
            Storage::Folder(folder) => {
                Some(crate::sqlite_file::store_raw(&folder.path().join("events.db"), subject, raw).unwrap())
            }
            #[cfg(feature = "nats")]
            Storage::Server(_) => {
                let provider = self.events().await;
                let nats = provider.as_any().unwrap().downcast_ref::<a3s_event::NatsProvider>().unwrap();
                let stored = nats.client().jetstream_context();
                let stored = stored.publish(subject.to_owned(), raw.to_vec().into()).await.unwrap();
                Some(stored.await.unwrap().sequence)
            }
        }
    }
}

/// Runs each test on every provider.
macro_rules! on_every_provider {
    ($($test:ident)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::backend::Backend::memory().await).await;
            })*
        }
        $crate::backend::on_every_server! { $($test)* }
    };
}

/// Runs each test on every provider that several processes can share.
macro_rules! on_every_server {
    ($($test:ident)*) => {
        #[cfg(feature = "sqlite")]
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::backend::Backend::sqlite().await).await;
            })*
        }
        #[cfg(feature = "nats")]
        mod nats {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::backend::Backend::nats().await).await;
            })*
        }
    };
}

pub(crate) use {on_every_provider, on_every_server};
