#![doc = include_str!("../../docs/links.txt")]
#![doc = ""]
#![doc = include_str!("docs.md")]

mod address;
mod ahead;
mod config;
mod connect;
mod consumer;
mod consumers;
mod durability;
mod error;
mod fetch;
mod history;
mod keeper;
mod keys;
mod lag;
mod link;
mod pattern;
#[cfg(test)]
mod permissions;
mod publish;
#[cfg(test)]
mod scale;
mod script;
mod settings;
mod settle;
mod start;
#[cfg(test)]
mod stored;
mod strays;
mod stream;
mod streams;
mod subjects;
mod url;
mod wake;

use std::fmt;
use std::sync::{Arc, Mutex};

pub use config::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_DEDUP_WINDOW, DEFAULT_MAX_EVENTS, RedisConfig};
pub use fetch::RedisFetch;
pub(super) use settings::SETTINGS;
pub(super) use url::{UNIX, connect, default_limits, isolate};

use self::error::PROVIDER;
use self::publish::Publisher;
use self::script::reset::Moved;
use self::script::{close_consumer, delete_stream, publish as publish_script, purge, reset};
use self::settle::Settler;
use self::strays::Strays;
use self::stream::Stream;
use self::wake::Consumers;
use super::driver::{Checked, ConsumerSpec, Driver};
use super::support::OwnedTask;
use super::{
    AckFailures, Capabilities, ConsumerInfo, ConsumerPosition, HistoryPage, HistoryQuery, ProviderInfo,
    PublishReceipt, StreamSummary,
};
use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;

/// Port of a server whose address names none.
pub(super) const DEFAULT_PORT: u16 = 6_379;
/// Port of a Sentinel whose address names none.
const DEFAULT_SENTINEL_PORT: u16 = 26_379;

/// A provider that stores events in Redis or Valkey.
#[derive(Debug)]
pub struct RedisProvider {
    shared: Arc<Shared>,
}

/// State that the provider, its subscriptions and their deliveries share.
struct Shared {
    stream: Arc<Stream>,
    capabilities: Capabilities,
    consumers: Arc<Consumers>,
    publisher: Publisher,
    settler: Settler,
    strays: Strays,
    /// Ends when the provider is closed.
    keeper: Mutex<Option<OwnedTask<()>>>,
    ack_failures: Arc<AckFailures>,
}

impl RedisProvider {
    /// Connects, and opens the stream. Creates it if it does not exist, unless `create_if_missing` is false.
    ///
    /// # Errors
    ///
    /// - [`EventError::Config`] for a wrong setting, or a server that cannot keep the promises of the provider.
    /// - [`EventError::Conflict`] for a stream that was created with another prefix.
    /// - [`EventError::NotFound`] for a stream that does not exist and is not to be created.
    /// - Otherwise the server's error, for instance of the kind [`Unauthorized`](crate::ErrorKind::Unauthorized).
    pub async fn connect(config: RedisConfig) -> Result<Self> {
        config.check()?;
        let consumers = Arc::<Consumers>::default();
        let stream = Arc::new(Stream::open(config, Arc::clone(&consumers) as _).await?);
        let server = stream.link.server();
        let in_force =
            durability::in_force(server.persistence, stream.config.wait_aof, stream.config.durability)?;
        tracing::debug!(
            stream = &*stream.name,
            server = server.product,
            version = server.version,
            is_cluster = server.is_cluster,
            durability = ?in_force.durability,
            reason = in_force.reason,
            "connected"
        );
        let dedup_window = stream.limits().dedup_window.unwrap_or(DEFAULT_DEDUP_WINDOW);
        let capabilities =
            durability::capabilities(in_force.durability, stream.config.max_event_bytes, dedup_window);
        let shared = Shared {
            capabilities,
            publisher: Publisher::start(Arc::clone(&stream)),
            settler: Settler::start(Arc::clone(&stream)),
            strays: Strays::default(),
            keeper: Mutex::new(Some(keeper::start(Arc::clone(&stream), Arc::clone(&consumers)))),
            ack_failures: Arc::default(),
            consumers,
            stream,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Returns the settings.
    pub fn config(&self) -> &RedisConfig {
        &self.shared.stream.config
    }
}

impl Shared {
    /// Tells the members in this process that the consumer was moved or deleted. The message of the server may come
    /// after their next call.
    fn note_change(&self, name: &str) {
        if let Some(consumer) = self.consumers.of(name) {
            consumer.announce_change();
        }
    }

    /// Deletes a consumer on the server.
    async fn close_consumer(
        &self,
        operation: &'static str,
        name: &str,
        generation: Option<&str>,
    ) -> Result<()> {
        let call = close_consumer::close_consumer(&self.stream.keys, name, generation);
        close_consumer::read(self.stream.link.call(operation, &call).await?).map(drop)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("config", &self.stream.config).finish_non_exhaustive()
    }
}

impl Driver for RedisProvider {
    type Fetch = RedisFetch;

    fn name(&self) -> &'static str {
        PROVIDER
    }

    fn subject_prefix(&self) -> &str {
        self.shared.stream.prefix()
    }

    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities
    }

    fn max_event_bytes(&self) -> usize {
        self.config().max_event_bytes
    }

    async fn store(&self, event: Checked<'_>) -> Result<PublishReceipt> {
        self.shared.publisher.publish(&self.shared.stream, event).await
    }

    async fn store_batch(&self, batch: Vec<Checked<'_>>) -> Vec<Result<PublishReceipt>> {
        self.shared.publisher.publish_batch(&self.shared.stream, &batch).await
    }

    async fn open(&self, consumer: ConsumerSpec) -> Result<RedisFetch> {
        let consumer = self.shared.open(consumer).await?;
        Ok(RedisFetch::new(Arc::clone(&self.shared), consumer))
    }

    async fn delete_consumer(&self, name: &str) -> Result<()> {
        self.shared.close_consumer("unsubscribe", name, None).await?;
        self.shared.note_change(name);
        Ok(())
    }

    async fn page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        let stream = &*self.shared.stream;
        history::page(stream, &stream.keys, stream.prefix(), query).await
    }

    async fn move_consumer(&self, name: &str, position: ConsumerPosition) -> Result<()> {
        const OPERATION: &str = "reset_consumer";
        let stream = &*self.shared.stream;
        let epoch = stream.epoch();
        let call = reset::reset(&stream.keys, &epoch, name, position);
        match reset::read(stream.link.call(OPERATION, &call).await?)? {
            Moved::Done => {
                self.shared.note_change(name);
                Ok(())
            }
            Moved::Absent => Err(EventError::NotFound(format!("consumer '{name}' does not exist"))),
            Moved::StreamReplaced => {
                stream.replaced(OPERATION, &epoch).await?;
                Err(stream.lost(OPERATION))
            }
        }
    }

    async fn list_consumers(&self) -> Result<Vec<ConsumerInfo>> {
        let stream = &*self.shared.stream;
        let mut infos = consumers::infos(stream, &stream.keys, stream.prefix()).await?;
        for info in &mut infos {
            let ahead =
                self.shared.consumers.of(&info.name).map_or(0, |consumer| consumer.ahead.count() as u64);
            let ahead = ahead.min(info.pending);
            info.pending -= ahead;
            info.lag += ahead;
        }
        Ok(infos)
    }

    async fn list_streams(&self) -> Result<Vec<StreamSummary>> {
        let stream = &*self.shared.stream;
        streams::summaries(stream, &stream.config.key_prefix, &stream.name).await
    }

    /// Deletes the stream in steps. The first one ends it for everybody.
    async fn drop_stream(&self) -> Result<()> {
        let stream = &*self.shared.stream;
        loop {
            let reply =
                stream.link.call("delete_stream", &delete_stream::delete_stream(&stream.keys)).await?;
            if !delete_stream::read(reply)? {
                return Ok(());
            }
        }
    }

    /// Deletes matching events in steps, so that publishing continues. Those that are stored meanwhile stay.
    async fn purge_events(&self, filter: Option<&str>) -> Result<u64> {
        const OPERATION: &str = "purge";
        let stream = &*self.shared.stream;
        let pattern = filter.map(|filter| pattern::lua_pattern(filter, stream.prefix())).unwrap_or_default();
        let epoch = stream.epoch();
        let (mut from, mut through, mut deleted) = (0, None, 0);
        loop {
            let call = purge::purge(&stream.keys, &epoch, &pattern, from, through);
            let Some(step) = purge::read(stream.link.call(OPERATION, &call).await?)? else {
                stream.replaced(OPERATION, &epoch).await?;
                return Err(stream.lost(OPERATION));
            };
            deleted += step.deleted;
            through = Some(step.through);
            match step.next {
                Some(next) => from = next,
                None => return Ok(deleted),
            }
        }
    }

    async fn count(&self) -> Result<ProviderInfo> {
        const OPERATION: &str = "info";
        let stream = &*self.shared.stream;
        let found = streams::stream(stream, &stream.keys, OPERATION).await?;
        let found = found.ok_or_else(|| stream.lost(OPERATION))?;
        Ok(ProviderInfo {
            provider: PROVIDER.to_owned(),
            messages: found.events,
            bytes: found.bytes,
            consumers: usize::try_from(found.consumers).unwrap_or(usize::MAX),
        })
    }

    /// Returns true if an event would be stored: the server takes a publish without events.
    async fn is_healthy(&self) -> bool {
        const OPERATION: &str = "health";
        let stream = &*self.shared.stream;
        let call = publish_script::publish(&stream.keys, &stream.epoch(), &[]);
        let checked = async {
            stream.link.call(OPERATION, &call).await?;
            stream.link.check(OPERATION).await
        };
        let proven = checked.await;
        if let Err(error) = &proven {
            tracing::debug!(%error, "the redis provider cannot store an event");
        }
        proven.is_ok()
    }

    fn failed_acks(&self) -> Option<Arc<AckFailures>> {
        Some(Arc::clone(&self.shared.ack_failures))
    }

    /// Publishes and settles what waits, and closes the connection.
    async fn shut(&self) -> Result<()> {
        let shared = &*self.shared;
        let keeper = shared.keeper.lock().ignore_poison().take();
        drop(keeper);
        shared.consumers.close();
        let ending = async {
            shared.publisher.close().await;
            shared.strays.ended().await;
            shared.settler.close().await;
        };
        let limit = shared.stream.timeout();
        let ended = tokio::time::timeout(limit, ending).await;
        shared.stream.link.close().await;
        ended.map_err(|_elapsed| {
            EventError::Timeout(format!("close on provider '{PROVIDER}' did not end within {limit:?}"))
        })
    }
}
