#![doc = include_str!("docs.md")]

mod config;
mod log;
mod publish;
mod stream;
mod subscription;

use std::any::Any;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;

pub use config::{DEFAULT_DEDUP_WINDOW, MemoryConfig, MemoryProviderBuilder};
pub(super) use config::{SETTINGS, connect};
pub use subscription::MemorySubscription;

use self::log::Limits;
use self::publish::Dedup;
use self::stream::{Dropped, Lifecycle, Stream};
use self::subscription::ConsumerCell;
use super::consumer::{Consumer, ConsumerConfig, Time};
use super::{
    Capabilities, ConsumerInfo, ConsumerPosition, Durability, EventProvider, HistoryPage, HistoryQuery,
    ProviderInfo, PublishReceipt, PublishRequest, Subscription,
};
use crate::deadline::After;
use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;
use crate::provider::support::unix_millis;
use crate::subject::{validate_consumer_name, validate_filter_under};
use crate::types::{Event, PublishOptions, SubscribeOptions};

/// The provider that keeps events in the memory of this process.
#[derive(Debug)]
pub struct MemoryProvider {
    shared: Arc<Shared>,
}

/// What the provider, its subscriptions and their deliveries share.
#[derive(Debug)]
struct Shared {
    settings: MemoryProviderBuilder,
    clock: Clock,
    stream: RwLock<Stream>,
}

/// Time since the provider was made, on tokio's clock, so that tests can pause it.
#[derive(Debug, Clone, Copy)]
struct Clock {
    origin: tokio::time::Instant,
}

impl Clock {
    fn now(self) -> Time {
        Time::from_origin(self.origin.elapsed())
    }

    fn instant(self, time: Time) -> tokio::time::Instant {
        self.origin.after(time.since_origin())
    }
}

impl MemoryProvider {
    /// An empty provider. A prefix that is not a subject is found out by the first publish or subscription; the
    /// [builder](MemoryProvider::builder) refuses it at once.
    pub fn new(config: MemoryConfig) -> Self {
        Self::from_builder(MemoryProviderBuilder::new(config))
    }

    /// Starts from the default settings.
    pub fn builder() -> MemoryProviderBuilder {
        MemoryProviderBuilder::new(MemoryConfig::default())
    }

    fn from_builder(settings: MemoryProviderBuilder) -> Self {
        let limits = Limits {
            max_events: settings.config.max_events,
            max_bytes: settings.max_bytes,
            // Rounded up: an age below a millisecond is not for ever.
            max_age_ms: u64::try_from(settings.max_age.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX),
        };
        let stream = Stream::new(&settings.config.subject_prefix, limits, Dedup::new(settings.dedup_window));
        let clock = Clock { origin: tokio::time::Instant::now() };
        Self { shared: Arc::new(Shared { settings, clock, stream: RwLock::new(stream) }) }
    }

    #[cfg(test)]
    fn settings(&self) -> &MemoryProviderBuilder {
        &self.shared.settings
    }

    fn end(&self, lifecycle: Lifecycle) {
        let mut stream = self.shared.write();
        if stream.lifecycle == Lifecycle::Open {
            stream.lifecycle = lifecycle;
        }
        stream.wake_all();
    }
}

impl Default for MemoryProvider {
    fn default() -> Self {
        Self::new(MemoryConfig::default())
    }
}

/// Without the provider nobody can publish: subscriptions end once everything is delivered and settled.
impl Drop for MemoryProvider {
    fn drop(&mut self) {
        self.end(Lifecycle::Abandoned);
    }
}

impl Shared {
    /// The stream for reading, without events that are too old.
    fn read(&self) -> RwLockReadGuard<'_, Stream> {
        let stream = self.stream.read().ignore_poison();
        if !stream.log.has_age_limit() || !stream.log.has_expired(unix_millis()) {
            return stream;
        }
        drop(stream);
        let mut dropped = Dropped::default();
        self.write().enforce_retention(unix_millis(), &mut dropped);
        self.stream.read().ignore_poison()
    }

    /// The stream for changing. No method panics half-way through a change, so that poison means nothing here.
    fn write(&self) -> RwLockWriteGuard<'_, Stream> {
        self.stream.write().ignore_poison()
    }

    fn check_open(stream: &Stream) -> Result<()> {
        match stream.lifecycle {
            Lifecycle::Closed => Err(EventError::Closed("the memory provider was closed".to_owned())),
            Lifecycle::Open | Lifecycle::Abandoned => Ok(()),
        }
    }

    /// Opens a durable consumer; `options` are `None` to take an existing one as it is.
    fn open_durable(
        &self,
        name: &str,
        filter: &str,
        options: Option<&SubscribeOptions>,
    ) -> Result<Arc<ConsumerCell>> {
        validate_consumer_name(name)?;
        let config = self.consumer_config(filter, options)?;
        loop {
            let existing = {
                let mut stream = self.write();
                Self::check_open(&stream)?;
                match stream.durable(name) {
                    Some(existing) => existing,
                    None => return self.add(&mut stream, Some(name.to_owned()), config),
                }
            };
            existing.with_machine(|machine| match options {
                Some(_) => machine.reconfigure(name, config.clone()),
                None => machine.config().check_filter(name, filter),
            })?;
            existing.wake_one();
            // Forgotten in the meantime: open it anew.
            if !existing.gone.load(std::sync::atomic::Ordering::Relaxed) {
                return Ok(existing);
            }
        }
    }

    fn open_ephemeral(&self, filter: &str, options: &SubscribeOptions) -> Result<Arc<ConsumerCell>> {
        let config = self.consumer_config(filter, Some(options))?;
        let mut stream = self.write();
        Self::check_open(&stream)?;
        self.add(&mut stream, None, config)
    }

    /// Adds a consumer: durable under its name, ephemeral without one.
    fn add(
        &self,
        stream: &mut Stream,
        durable_name: Option<String>,
        config: ConsumerConfig,
    ) -> Result<Arc<ConsumerCell>> {
        let start = stream.start(&config.filter, &config.deliver_policy);
        let future = stream.future(&config.deliver_policy);
        let durable = durable_name.is_some();
        let name = durable_name.unwrap_or_else(|| stream.next_ephemeral_name());
        let filter = config.filter.clone();
        let machine = Consumer::new(config, start);
        stream.add_consumer(&filter, machine.cursor(), future, |group, next_ordinal| {
            ConsumerCell::new(
                name,
                durable,
                self.settings.stream_name.as_str().into(),
                self.clock,
                group,
                machine,
                next_ordinal,
            )
        })
    }

    fn consumer_config(&self, filter: &str, options: Option<&SubscribeOptions>) -> Result<ConsumerConfig> {
        validate_filter_under(filter, &self.settings.config.subject_prefix)?;
        ConsumerConfig::new(filter, options.unwrap_or(&SubscribeOptions::default()))
    }
}

#[async_trait]
impl EventProvider for MemoryProvider {
    async fn publish(&self, event: &Event) -> Result<u64> {
        self.shared.publish(event, &PublishOptions::default()).map(|receipt| receipt.sequence)
    }

    async fn publish_with_options(&self, event: &Event, opts: &PublishOptions) -> Result<u64> {
        self.shared.publish(event, opts).map(|receipt| receipt.sequence)
    }

    async fn publish_with_receipt(&self, event: &Event, opts: &PublishOptions) -> Result<PublishReceipt> {
        self.shared.publish(event, opts)
    }

    async fn publish_batch(&self, batch: &[PublishRequest<'_>]) -> Vec<Result<PublishReceipt>> {
        self.shared.publish_batch(batch)
    }

    async fn subscribe_durable(
        &self,
        consumer_name: &str,
        filter_subject: &str,
    ) -> Result<Box<dyn Subscription>> {
        let cell = self.shared.open_durable(consumer_name, filter_subject, None)?;
        Ok(Box::new(MemorySubscription::new(Arc::clone(&self.shared), cell)))
    }

    async fn subscribe_durable_with_options(
        &self,
        consumer_name: &str,
        filter_subject: &str,
        opts: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        let cell = self.shared.open_durable(consumer_name, filter_subject, Some(opts))?;
        Ok(Box::new(MemorySubscription::new(Arc::clone(&self.shared), cell)))
    }

    async fn subscribe(&self, filter_subject: &str) -> Result<Box<dyn Subscription>> {
        self.subscribe_with_options(filter_subject, &SubscribeOptions::default()).await
    }

    async fn subscribe_with_options(
        &self,
        filter_subject: &str,
        opts: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        let cell = self.shared.open_ephemeral(filter_subject, opts)?;
        Ok(Box::new(MemorySubscription::new(Arc::clone(&self.shared), cell)))
    }

    async fn history(&self, filter_subject: Option<&str>, limit: usize) -> Result<Vec<Event>> {
        let mut query = HistoryQuery::new(limit);
        query.filter = filter_subject.map(str::to_owned);
        let found = self.query(&query).await?;
        Ok(found.into_iter().map(|stored| Arc::unwrap_or_clone(stored.event)).collect())
    }

    async fn query_page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        if let Some(filter) = &query.filter {
            validate_filter_under(filter, &self.shared.settings.config.subject_prefix)?;
        }
        Ok(self.shared.read().log.page(query))
    }

    async fn unsubscribe(&self, consumer_name: &str) -> Result<()> {
        let mut stream = self.shared.write();
        if let Some(cell) = stream.durable(consumer_name) {
            stream.remove_consumer(&cell);
        }
        Ok(())
    }

    async fn reset_consumer(&self, consumer_name: &str, position: ConsumerPosition) -> Result<()> {
        let found = {
            let stream = self.shared.read();
            Shared::check_open(&stream)?;
            stream.durable(consumer_name)
        };
        match found {
            Some(cell) => cell.reset(&self.shared, position),
            None => Err(EventError::NotFound(format!("consumer '{consumer_name}'"))),
        }
    }

    async fn info(&self) -> Result<ProviderInfo> {
        let stream = self.shared.read();
        Ok(ProviderInfo {
            provider: self.name().to_owned(),
            messages: stream.log.len() as u64,
            bytes: stream.log.bytes(),
            consumers: stream.consumer_count(),
        })
    }

    async fn consumers(&self) -> Result<Vec<ConsumerInfo>> {
        let cells = self.shared.read().consumers();
        let mut consumers: Vec<_> = cells.iter().map(|cell| cell.info(&self.shared)).collect();
        consumers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(consumers)
    }

    async fn health(&self) -> Result<bool> {
        Ok(self.shared.read().lifecycle == Lifecycle::Open)
    }

    fn name(&self) -> &str {
        "memory"
    }

    fn subject_prefix(&self) -> &str {
        &self.shared.settings.config.subject_prefix
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::all(Durability::Process);
        capabilities.max_event_bytes = Some(self.shared.settings.max_event_bytes);
        capabilities.dedup_window = Some(self.shared.settings.dedup_window);
        capabilities
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }

    async fn close(&self) -> Result<()> {
        self.end(Lifecycle::Closed);
        Ok(())
    }
}
