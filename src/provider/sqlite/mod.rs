#![doc = include_str!("../../docs/links.txt")]
#![doc = ""]
#![doc = include_str!("docs.md")]

mod acks;
mod cells;
mod checksum;
mod clock;
mod condition;
mod config;
mod consumer_row;
mod consumers;
mod error;
mod fetch;
mod foreign;
mod history;
mod integrity;
mod lag;
mod log;
mod maintenance;
mod member;
mod pending;
mod place;
mod positions;
mod publish;
mod queue;
mod readers;
mod retention;
mod schema;
mod store;
mod writer;

use std::sync::Arc;

pub use config::{DEFAULT_BUSY_TIMEOUT, DEFAULT_DEDUP_WINDOW, SqliteConfig, Synchronous};
pub(super) use config::{SETTINGS, connect, file, isolate};
pub use maintenance::FileInfo;
pub use member::SqliteFetch;

use self::cells::Cells;
use self::error::{Sql, io_failed};
use self::queue::{Access, Queue, Size, answered, ended};
use self::readers::Readers;
use self::store::Store;
use self::writer::Writer;
use super::driver::{Checked, ConsumerSpec, Driver};
use super::{
    AckFailures, Capabilities, ConsumerInfo, ConsumerPosition, DEFAULT_TIMEOUT, Durability, HistoryPage,
    HistoryQuery, LimitSource, ProviderInfo, PublishReceipt, StreamLimits, StreamSummary,
};
use crate::error::{EventError, Result};

const NAME: &str = "sqlite";

/// A provider that stores events in a SQLite file on this machine.
#[derive(Debug)]
pub struct SqliteProvider {
    shared: Arc<Shared>,
}

/// State that the provider, its subscriptions and their deliveries share. Dropping the last of them ends the writer
/// thread.
#[derive(Debug)]
struct Shared {
    config: Arc<SqliteConfig>,
    queue: Arc<Queue>,
    cells: Arc<Cells>,
    readers: Arc<Readers>,
    ack_failures: Arc<AckFailures>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue.stop();
    }
}

impl SqliteProvider {
    /// Opens the file. Creates it if it does not exist, unless `create_if_missing` is false.
    ///
    /// # Errors
    ///
    /// - [`EventError::Config`] for an invalid setting, a directory, a file of another program, or a file of a newer
    ///   version.
    /// - [`EventError::Conflict`] for a file that was created with another prefix.
    /// - A [`Backend`](EventError::Backend) error of the kind [`Storage`](crate::ErrorKind::Storage), naming the file,
    ///   if the file cannot be opened or read.
    pub async fn connect(mut config: SqliteConfig) -> Result<Self> {
        config.check()?;
        if let Some(path) = config.file_path() {
            // An absolute path stays valid if the program changes its working directory, and SQLite does not parse it
            // as a URI.
            config.path = std::path::absolute(path).map_err(|error| io_failed("open", path, error))?;
        }
        let config = Arc::new(config);
        let readers = Arc::new(Readers::new(&config));
        let (queue, cells) = (Arc::new(Queue::new(&config.path)), Arc::new(Cells::default()));
        let opened =
            Writer::start(Arc::clone(&config), Arc::clone(&queue), Arc::clone(&cells), Arc::clone(&readers));
        let mut opened = opened.map_err(|error| io_failed("open", &config.path, error))?;
        let ack_failures = Arc::<AckFailures>::default();
        let shared = Arc::new(Shared { config, queue, cells, readers, ack_failures });
        answered("open", &shared.config.path, DEFAULT_TIMEOUT, &mut opened).await?;
        Ok(Self { shared })
    }

    /// Returns the settings in force.
    pub fn config(&self) -> &SqliteConfig {
        &self.shared.config
    }
}

impl Shared {
    /// Runs `work` on the writer thread and waits for the commit.
    async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        access: Access,
        work: impl FnOnce(&mut Store) -> Sql<Result<T>> + Send + 'static,
    ) -> Result<T> {
        let mut answer = self.queue.call(operation, access, Size::ONE, DEFAULT_TIMEOUT, work).await?;
        answered(operation, &self.config.path, DEFAULT_TIMEOUT, &mut answer).await
    }

    /// Returns the filter that matches every event of the stream.
    fn everything(&self) -> String {
        format!("{}.>", self.config.subject_prefix)
    }

    fn check_open(&self) -> Result<()> {
        if self.queue.is_stopping() { Err(ended()) } else { Ok(()) }
    }

    /// Limits a query to events within `max_age`. Older ones may still be in the file.
    fn retained(&self, query: &HistoryQuery) -> HistoryQuery {
        let mut query = query.clone();
        if !self.config.max_age.is_zero() {
            let max_age_ms = u64::try_from(self.config.max_age.as_millis()).unwrap_or(u64::MAX);
            let oldest = self.config.now_ms().saturating_sub(max_age_ms).saturating_add(1);
            query.since_time = query.since_time.max(Some(oldest));
        }
        query
    }
}

impl Driver for SqliteProvider {
    type Fetch = SqliteFetch;

    fn name(&self) -> &'static str {
        NAME
    }

    fn subject_prefix(&self) -> &str {
        &self.shared.config.subject_prefix
    }

    fn capabilities(&self) -> Capabilities {
        let durability = match (self.shared.config.file_path(), self.shared.config.synchronous) {
            (None, _) => Durability::None,
            (Some(_), Synchronous::Normal) => Durability::ProcessCrash,
            (Some(_), Synchronous::Full) => Durability::PowerLoss,
        };
        let mut capabilities = Capabilities::all(durability);
        capabilities.max_event_bytes = Some(self.shared.config.max_event_bytes);
        capabilities.dedup_window = Some(self.shared.config.dedup_window);
        capabilities
    }

    fn max_event_bytes(&self) -> usize {
        self.shared.config.max_event_bytes
    }

    async fn store(&self, event: Checked<'_>) -> Result<PublishReceipt> {
        self.shared.publish(event).await
    }

    async fn store_batch(&self, batch: Vec<Checked<'_>>) -> Vec<Result<PublishReceipt>> {
        self.shared.publish_batch(&batch).await
    }

    async fn open(&self, consumer: ConsumerSpec) -> Result<SqliteFetch> {
        let ConsumerSpec { name, config, applies, .. } = consumer;
        let opened = match name {
            Some(name) => {
                let work = move |store: &mut Store| store.open_durable(&name, config, applies);
                self.shared.call("subscribe_durable", Access::Sync, work).await?
            }
            None => {
                let work = move |store: &mut Store| store.open_ephemeral(config);
                self.shared.call("subscribe", Access::Read, work).await?
            }
        };
        let cell = self.shared.cells.join(opened.key, opened.settings);
        Ok(SqliteFetch::new(Arc::clone(&self.shared), cell))
    }

    async fn delete_consumer(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        let work = move |store: &mut Store| store.unsubscribe(&name).map(Ok);
        self.shared.call("unsubscribe", Access::Sync, work).await
    }

    async fn move_consumer(&self, name: &str, position: ConsumerPosition) -> Result<()> {
        let name = name.to_owned();
        let work = move |store: &mut Store| store.reset_durable(&name, position);
        self.shared.call("reset_consumer", Access::Sync, work).await
    }

    async fn page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        let query = self.shared.retained(query);
        let everything = self.shared.everything();
        self.shared.read("history", move |connection| history::page(connection, &query, &everything)).await
    }

    fn purges_by_filter(&self) -> bool {
        false
    }

    /// Deletes all events, in steps, so that publishing continues. Those that are stored meanwhile stay.
    async fn purge_events(&self, _everything: Option<&str>) -> Result<u64> {
        let newest = |store: &mut Store| store.counters().map(|counters| Ok(counters.last));
        let newest = self.shared.call("purge", Access::Read, newest).await?;
        let mut purged = 0;
        loop {
            let step = move |store: &mut Store| store.purge_some(newest).map(Ok);
            match self.shared.call("purge", Access::Sync, step).await? {
                0 => return Ok(purged),
                dropped => purged += dropped,
            }
        }
    }

    async fn count(&self) -> Result<ProviderInfo> {
        let ephemerals = self.shared.cells.ephemerals();
        let read = |connection: &rusqlite::Connection| {
            connection
                .prepare_cached("SELECT messages, bytes, (SELECT count(*) FROM consumers) FROM stream")?
                .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        };
        let (messages, bytes, durables) = self.shared.read("info", read).await?;
        Ok(ProviderInfo {
            provider: NAME.to_owned(),
            messages: store::unsigned(messages),
            bytes: store::unsigned(bytes),
            consumers: usize::try_from(store::unsigned(durables)).unwrap_or(usize::MAX) + ephemerals,
        })
    }

    async fn list_consumers(&self) -> Result<Vec<ConsumerInfo>> {
        let ephemerals = |store: &mut Store| store.ephemerals().map(Ok);
        let ephemerals = self.shared.call("consumers", Access::Read, ephemerals).await?;
        let everything = self.shared.everything();
        let read = move |connection: &rusqlite::Connection| lag::infos(connection, &everything, ephemerals);
        self.shared.read("consumers", read).await
    }

    /// Returns the stream of the file. The limits are those of this connection: a file stores none, and one in memory has
    /// no other connection.
    async fn list_streams(&self) -> Result<Vec<StreamSummary>> {
        let counts = self.count().await?;
        let config = &self.shared.config;
        let mut summary = StreamSummary::new(config.stream_name.as_str(), vec![self.shared.everything()]);
        summary.events = counts.messages;
        summary.bytes = counts.bytes;
        summary.consumers = counts.consumers;
        summary.is_own = true;
        let mut limits = StreamLimits::new(config.max_events, config.max_bytes, config.max_age);
        if config.file_path().is_some() {
            limits.source = LimitSource::Connection;
        }
        summary.limits = Some(limits);
        Ok(vec![summary])
    }

    /// Returns true if an event can be stored. Writes one as large as the largest write that found no room, and rolls
    /// it back.
    async fn is_healthy(&self) -> bool {
        let probe = |store: &mut Store| {
            let probed = store.probe();
            Ok(probed.map_err(|failure| failure.of_file(store.path()).to_error("health")))
        };
        let proven = self.shared.call("health", Access::Own, probe).await;
        if let Err(error) = &proven {
            tracing::debug!(%error, "the sqlite provider cannot store an event");
        }
        proven.is_ok()
    }

    fn failed_acks(&self) -> Option<Arc<AckFailures>> {
        Some(Arc::clone(&self.shared.ack_failures))
    }

    /// Finishes the queued work and closes the file. Interrupts running reads.
    async fn shut(&self) -> Result<()> {
        self.shared.queue.stop();
        tokio::time::timeout(DEFAULT_TIMEOUT, self.shared.queue.ended()).await.map_err(|_elapsed| {
            let path = self.shared.config.path.display();
            EventError::Timeout(format!("close on provider '{NAME}', file '{path}'"))
        })
    }
}
