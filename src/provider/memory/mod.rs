#![doc = include_str!("../../docs/links.txt")]
#![doc = ""]
#![doc = include_str!("docs.md")]

mod config;
mod consumer;
mod fetch;
mod log;
mod publish;
mod stream;

use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use config::{DEFAULT_DEDUP_WINDOW, MemoryConfig, MemoryProviderBuilder};
pub(super) use config::{SETTINGS, connect, default_limits, isolate};
pub use fetch::MemoryFetch;

use self::consumer::ConsumerCell;
use self::log::Limits;
use self::publish::Dedup;
use self::stream::{Dropped, Lifecycle, Stream};
use super::driver::{Checked, ConsumerSpec, Driver};
use super::group::{ConsumerConfig, GroupState, Time};
use super::{
    Capabilities, ConsumerInfo, ConsumerPosition, Durability, HistoryPage, HistoryQuery, ProviderInfo,
    PublishReceipt, StreamLimits, StreamSummary,
};
use crate::deadline::After;
use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;
use crate::provider::support::closed;

/// A provider that keeps events in the memory of this process.
#[derive(Debug)]
pub struct MemoryProvider {
    shared: Arc<Shared>,
}

const NAME: &str = "memory";

/// State that the provider, its subscriptions and their deliveries share.
#[derive(Debug)]
struct Shared {
    settings: MemoryProviderBuilder,
    clock: Clock,
    stream: RwLock<Stream>,
}

/// Time since the creation of the provider, on tokio's clock, so that tests can pause it.
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
    /// Creates an empty provider. An invalid prefix fails the first publish or subscription; the
    /// [builder](MemoryProvider::builder) refuses it at once.
    pub fn new(config: MemoryConfig) -> Self {
        Self::from_builder(MemoryProviderBuilder::new(config))
    }

    /// Returns a builder with the default settings.
    pub fn builder() -> MemoryProviderBuilder {
        MemoryProviderBuilder::new(MemoryConfig::default())
    }

    fn from_builder(settings: MemoryProviderBuilder) -> Self {
        let limits = Limits {
            max_events: settings.config.max_events,
            max_bytes: settings.max_bytes,
            // Rounded up: an age below a millisecond must not become 0, which is unlimited.
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

/// Ends the subscriptions once everything is delivered and settled, because no publish can follow.
impl Drop for MemoryProvider {
    fn drop(&mut self) {
        self.end(Lifecycle::Abandoned);
    }
}

impl Shared {
    /// Returns the stream for reading, without expired events.
    fn read(&self) -> RwLockReadGuard<'_, Stream> {
        let stream = self.stream.read().ignore_poison();
        if !stream.log.has_age_limit() || !stream.log.has_expired(self.unix_millis()) {
            return stream;
        }
        drop(stream);
        let mut dropped = Dropped::default();
        self.write().enforce_retention(self.unix_millis(), &mut dropped);
        self.stream.read().ignore_poison()
    }

    /// Returns the stream for changing. No method panics half-way through a change, so poison is ignored.
    fn write(&self) -> RwLockWriteGuard<'_, Stream> {
        self.stream.write().ignore_poison()
    }

    /// Returns the time of the wall clock, which stamps events.
    fn unix_millis(&self) -> u64 {
        self.settings.clock.unix_millis()
    }

    fn check_open(stream: &Stream) -> Result<()> {
        match stream.lifecycle {
            Lifecycle::Closed => Err(closed(NAME)),
            Lifecycle::Open | Lifecycle::Abandoned => Ok(()),
        }
    }

    /// Opens a consumer and creates it if it does not exist.
    fn open(&self, wanted: ConsumerSpec) -> Result<Arc<ConsumerCell>> {
        let ConsumerSpec { name, config, applies, .. } = wanted;
        loop {
            let existing = {
                let mut stream = self.write();
                Self::check_open(&stream)?;
                match name.as_deref().and_then(|name| stream.durable(name)) {
                    Some(existing) => existing,
                    None => return self.add(&mut stream, name, config),
                }
            };
            let name = existing.name();
            existing.with_machine(|machine| match applies {
                true => machine.reconfigure(name, config.clone()),
                false => machine.config().check_filter(name, &config.filter),
            })?;
            existing.members.wake_one();
            // Deleted in the meantime: open it again.
            if !existing.gone.load(Ordering::Relaxed) {
                return Ok(existing);
            }
        }
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
        let machine = GroupState::new(config, start);
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
}

impl Driver for MemoryProvider {
    type Fetch = MemoryFetch;

    fn name(&self) -> &'static str {
        NAME
    }

    fn subject_prefix(&self) -> &str {
        &self.shared.settings.config.subject_prefix
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::all(Durability::None);
        capabilities.max_event_bytes = Some(self.shared.settings.max_event_bytes);
        capabilities.dedup_window = Some(self.shared.settings.dedup_window);
        capabilities
    }

    fn max_event_bytes(&self) -> usize {
        self.shared.settings.max_event_bytes
    }

    async fn store(&self, event: Checked<'_>) -> Result<PublishReceipt> {
        self.shared.publish(event)
    }

    async fn store_batch(&self, batch: Vec<Checked<'_>>) -> Vec<Result<PublishReceipt>> {
        self.shared.publish_batch(&batch)
    }

    async fn open(&self, consumer: ConsumerSpec) -> Result<MemoryFetch> {
        let cell = self.shared.open(consumer)?;
        Ok(MemoryFetch::new(Arc::clone(&self.shared), cell))
    }

    async fn page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        Ok(self.shared.read().log.page(query))
    }

    async fn delete_consumer(&self, name: &str) -> Result<()> {
        let mut stream = self.shared.write();
        if let Some(cell) = stream.durable(name) {
            stream.remove_consumer(&cell);
        }
        Ok(())
    }

    async fn move_consumer(&self, name: &str, position: ConsumerPosition) -> Result<()> {
        let found = {
            let stream = self.shared.read();
            Shared::check_open(&stream)?;
            stream.durable(name)
        };
        match found {
            Some(cell) => cell.reset(&self.shared, position),
            None => Err(EventError::NotFound(format!("consumer '{name}'"))),
        }
    }

    fn purges_by_filter(&self) -> bool {
        false
    }

    async fn purge_events(&self, _everything: Option<&str>) -> Result<u64> {
        let mut dropped = Dropped::default();
        let mut stream = self.shared.write();
        Shared::check_open(&stream)?;
        let purged = stream.purge(&mut dropped);
        drop(stream);
        Ok(purged)
    }

    async fn count(&self) -> Result<ProviderInfo> {
        let stream = self.shared.read();
        Ok(ProviderInfo {
            provider: Driver::name(self).to_owned(),
            messages: stream.log.len() as u64,
            bytes: stream.log.bytes(),
            consumers: stream.consumer_count(),
        })
    }

    async fn list_consumers(&self) -> Result<Vec<ConsumerInfo>> {
        let cells = self.shared.read().consumers();
        Ok(cells.iter().map(|cell| cell.info(&self.shared)).collect())
    }

    async fn list_streams(&self) -> Result<Vec<StreamSummary>> {
        let settings = &self.shared.settings;
        let subjects = vec![format!("{}.>", settings.config.subject_prefix)];
        let stream = self.shared.read();
        let mut summary = StreamSummary::new(settings.stream_name.as_str(), subjects);
        summary.events = stream.log.len() as u64;
        summary.bytes = stream.log.bytes();
        summary.consumers = stream.consumer_count();
        summary.is_own = true;
        let max_events = settings.config.max_events as u64;
        summary.limits = Some(StreamLimits::new(max_events, settings.max_bytes, settings.max_age));
        Ok(vec![summary])
    }

    async fn is_healthy(&self) -> bool {
        self.shared.read().lifecycle == Lifecycle::Open
    }

    async fn shut(&self) -> Result<()> {
        self.end(Lifecycle::Closed);
        Ok(())
    }
}
