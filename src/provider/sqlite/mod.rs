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
pub(super) use config::{SETTINGS, connect, isolate};
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
    HistoryQuery, ProviderInfo, PublishReceipt,
};
use crate::error::{EventError, Result};

const NAME: &str = "sqlite";

/// The provider that keeps events in a file of this machine.
#[derive(Debug)]
pub struct SqliteProvider {
    shared: Arc<Shared>,
}

/// What the provider, its subscriptions and their deliveries share. The writer thread ends with the last of them.
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
    /// Opens the file, which is made when it does not exist.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] for a wrong setting, a directory, a file of another program or of a newer version of this
    /// one; [`EventError::Conflict`] for a file that was made with another prefix; a [`Backend`](EventError::Backend)
    /// error of the kind [`Storage`](crate::ErrorKind::Storage) that names the file when it cannot be opened or read.
    pub async fn connect(mut config: SqliteConfig) -> Result<Self> {
        config.check()?;
        if let Some(path) = config.file_path() {
            // It stays the same file when the program changes its folder, and SQLite does not take it for a URI.
            config.path = std::path::absolute(path).map_err(|error| io_failed("open", path, error))?;
        }
        let config = Arc::new(config);
        let readers = Arc::new(Readers::new(&config));
        let (queue, cells) = (Arc::new(Queue::new()), Arc::new(Cells::default()));
        let opened =
            Writer::start(Arc::clone(&config), Arc::clone(&queue), Arc::clone(&cells), Arc::clone(&readers));
        let mut opened = opened.map_err(|error| io_failed("open", &config.path, error))?;
        let ack_failures = Arc::<AckFailures>::default();
        let shared = Arc::new(Shared { config, queue, cells, readers, ack_failures });
        answered("open", DEFAULT_TIMEOUT, &mut opened).await?;
        Ok(Self { shared })
    }

    /// The settings in force.
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
        answered(operation, DEFAULT_TIMEOUT, &mut answer).await
    }

    /// The filter of everything in the stream.
    fn everything(&self) -> String {
        format!("{}.>", self.config.subject_prefix)
    }

    fn check_open(&self) -> Result<()> {
        if self.queue.is_stopping() { Err(ended()) } else { Ok(()) }
    }

    /// Leaves out what is too old and not dropped yet.
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

    /// Whether an event can be stored: one is written and taken back, of the size of what the disk had no room for last.
    async fn is_healthy(&self) -> bool {
        let probe = |store: &mut Store| Ok(store.probe().map_err(|failure| failure.to_error("health")));
        let proven = self.shared.call("health", Access::Own, probe).await;
        if let Err(error) = &proven {
            tracing::debug!(%error, "the sqlite provider cannot store an event");
        }
        proven.is_ok()
    }

    fn failed_acks(&self) -> Option<Arc<AckFailures>> {
        Some(Arc::clone(&self.shared.ack_failures))
    }

    /// Finishes what is queued and closes the file. Whoever reads at the moment is interrupted.
    async fn shut(&self) -> Result<()> {
        self.shared.queue.stop();
        tokio::time::timeout(DEFAULT_TIMEOUT, self.shared.queue.ended())
            .await
            .map_err(|_elapsed| EventError::Timeout(format!("close on provider '{NAME}'")))
    }
}
