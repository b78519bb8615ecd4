#![doc = include_str!("docs.md")]

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
mod pending;
mod place;
mod positions;
mod publish;
mod queue;
mod readers;
mod retention;
mod schema;
mod store;
mod subscription;
mod writer;

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;

pub use config::{DEFAULT_BUSY_TIMEOUT, DEFAULT_DEDUP_WINDOW, SqliteConfig, Synchronous};
pub(super) use config::{SETTINGS, connect};
pub use maintenance::FileInfo;
pub use subscription::SqliteSubscription;

use self::cells::Cells;
use self::consumers::Opened;
use self::error::{Sql, io_failed};
use self::queue::{Access, Queue, Size, answered, ended};
use self::readers::Readers;
use self::store::Store;
use self::writer::Writer;
use super::consumer::ConsumerConfig;
use super::{
    Capabilities, ConsumerInfo, ConsumerPosition, DEFAULT_TIMEOUT, Durability, EventProvider, HistoryPage,
    HistoryQuery, ProviderInfo, PublishReceipt, PublishRequest, Subscription,
};
use crate::error::{EventError, Result};
use crate::subject::{validate_consumer_name, validate_filter_under};
use crate::types::{Event, PublishOptions, SubscribeOptions};

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
        let shared = Arc::new(Shared { config, queue, cells, readers });
        answered("open", DEFAULT_TIMEOUT, &mut opened).await?;
        Ok(Self { shared })
    }

    /// The settings in force.
    pub fn config(&self) -> &SqliteConfig {
        &self.shared.config
    }

    async fn open_durable(
        &self,
        name: &str,
        filter: &str,
        options: Option<&SubscribeOptions>,
    ) -> Result<Box<dyn Subscription>> {
        validate_consumer_name(name)?;
        let config = self.consumer_config(filter, options)?;
        let change = options.is_some();
        let owned = name.to_owned();
        let work = move |store: &mut Store| store.open_durable(&owned, config, change);
        let opened = self.shared.call("subscribe_durable", Access::Sync, work).await?;
        Ok(self.member(opened))
    }

    async fn open_ephemeral(
        &self,
        filter: &str,
        options: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        let config = self.consumer_config(filter, Some(options))?;
        let work = move |store: &mut Store| store.open_ephemeral(config);
        let opened = self.shared.call("subscribe", Access::Read, work).await?;
        Ok(self.member(opened))
    }

    fn member(&self, Opened { key, settings }: Opened) -> Box<dyn Subscription> {
        let cell = self.shared.cells.join(key, settings);
        Box::new(SqliteSubscription::new(Arc::clone(&self.shared), cell))
    }

    fn consumer_config(&self, filter: &str, options: Option<&SubscribeOptions>) -> Result<ConsumerConfig> {
        validate_filter_under(filter, &self.shared.config.subject_prefix)?;
        ConsumerConfig::new(filter, options.unwrap_or(&SubscribeOptions::default()))
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

#[async_trait]
impl EventProvider for SqliteProvider {
    async fn publish(&self, event: &Event) -> Result<u64> {
        self.shared.publish(event, &PublishOptions::default()).await.map(|receipt| receipt.sequence)
    }

    async fn publish_with_options(&self, event: &Event, opts: &PublishOptions) -> Result<u64> {
        self.shared.publish(event, opts).await.map(|receipt| receipt.sequence)
    }

    async fn publish_with_receipt(&self, event: &Event, opts: &PublishOptions) -> Result<PublishReceipt> {
        self.shared.publish(event, opts).await
    }

    async fn publish_batch(&self, batch: &[PublishRequest<'_>]) -> Vec<Result<PublishReceipt>> {
        self.shared.publish_batch(batch).await
    }

    async fn subscribe_durable(
        &self,
        consumer_name: &str,
        filter_subject: &str,
    ) -> Result<Box<dyn Subscription>> {
        self.open_durable(consumer_name, filter_subject, None).await
    }

    async fn subscribe_durable_with_options(
        &self,
        consumer_name: &str,
        filter_subject: &str,
        opts: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        self.open_durable(consumer_name, filter_subject, Some(opts)).await
    }

    async fn subscribe(&self, filter_subject: &str) -> Result<Box<dyn Subscription>> {
        self.open_ephemeral(filter_subject, &SubscribeOptions::default()).await
    }

    async fn subscribe_with_options(
        &self,
        filter_subject: &str,
        opts: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        self.open_ephemeral(filter_subject, opts).await
    }

    async fn history(&self, filter_subject: Option<&str>, limit: usize) -> Result<Vec<Event>> {
        let mut query = HistoryQuery::new(limit);
        query.filter = filter_subject.map(str::to_owned);
        let found = self.query(&query).await?;
        Ok(found.into_iter().map(|stored| Arc::unwrap_or_clone(stored.event)).collect())
    }

    async fn query_page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        if let Some(filter) = &query.filter {
            validate_filter_under(filter, &self.shared.config.subject_prefix)?;
        }
        let query = self.shared.retained(query);
        let everything = format!("{}.>", self.shared.config.subject_prefix);
        self.shared.read("history", move |connection| history::page(connection, &query, &everything)).await
    }

    async fn unsubscribe(&self, consumer_name: &str) -> Result<()> {
        let name = consumer_name.to_owned();
        let work = move |store: &mut Store| store.unsubscribe(&name).map(Ok);
        self.shared.call("unsubscribe", Access::Sync, work).await
    }

    async fn reset_consumer(&self, consumer_name: &str, position: ConsumerPosition) -> Result<()> {
        let name = consumer_name.to_owned();
        let work = move |store: &mut Store| store.reset_durable(&name, position);
        self.shared.call("reset_consumer", Access::Sync, work).await
    }

    async fn info(&self) -> Result<ProviderInfo> {
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

    async fn consumers(&self) -> Result<Vec<ConsumerInfo>> {
        let ephemerals = |store: &mut Store| store.ephemerals().map(Ok);
        let ephemerals = self.shared.call("consumers", Access::Read, ephemerals).await?;
        let everything = format!("{}.>", self.shared.config.subject_prefix);
        let read = move |connection: &rusqlite::Connection| lag::infos(connection, &everything, ephemerals);
        self.shared.read("consumers", read).await
    }

    /// Whether an event can be stored: one is written and taken back, of the size of what the disk had no room for last.
    async fn health(&self) -> Result<bool> {
        let probe = |store: &mut Store| Ok(store.probe().map_err(|failure| failure.to_error("health")));
        let proven = self.shared.call("health", Access::Own, probe).await;
        if let Err(error) = &proven {
            tracing::debug!(%error, "the sqlite provider cannot store an event");
        }
        Ok(proven.is_ok())
    }

    fn name(&self) -> &str {
        NAME
    }

    fn subject_prefix(&self) -> &str {
        &self.shared.config.subject_prefix
    }

    fn capabilities(&self) -> Capabilities {
        let durability = match (self.shared.config.file_path(), self.shared.config.synchronous) {
            (None, _) => Durability::Process,
            (Some(_), Synchronous::Normal) => Durability::ProcessCrash,
            (Some(_), Synchronous::Full) => Durability::PowerLoss,
        };
        let mut capabilities = Capabilities::all(durability);
        capabilities.max_event_bytes = Some(self.shared.config.max_event_bytes);
        capabilities.dedup_window = Some(self.shared.config.dedup_window);
        capabilities
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }

    /// Finishes what is queued and closes the file. Whoever reads at the moment is interrupted.
    async fn close(&self) -> Result<()> {
        self.shared.queue.stop();
        tokio::time::timeout(DEFAULT_TIMEOUT, self.shared.queue.ended())
            .await
            .map_err(|_elapsed| EventError::Timeout(format!("close on provider '{NAME}'")))
    }
}
