//! The test bus.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::checks::Checked;
use super::connection::Connection;
use super::consumer::TestConsumerBuilder;
use super::explore::Explorer;
use super::faults::Faults;
use super::world::{Life, World};
use super::{Clock, Outcome};
use crate::bus::{EventBus, EventBusBuilder};
use crate::dlq::ProviderDlqHandler;
use crate::error::Result;
use crate::provider::memory::MemoryProvider;
use crate::provider::{EventProvider, IntoProvider, PublishReceipt};
use crate::types::{Event, PublishOptions};

/// A bus for tests, with faults. Clones are the same bus.
///
/// [`explore`](TestBus::explore) simulates one for each seed; [`on`](TestBus::on) puts one over a real provider. See the
/// [module](super) for an example.
#[derive(Clone)]
pub struct TestBus {
    pub(super) world: Arc<World>,
}

impl TestBus {
    /// Runs a test once for each seed, each time on a new bus in memory on a simulated clock.
    /// [`explorer`](TestBus::explorer) has settings.
    ///
    /// With the environment variable `A3S_EVENT_SEED`, it runs only that seed.
    ///
    /// # Panics
    ///
    /// If the test fails with a seed: if it panics, returns an error, waits an hour of simulated time without
    /// [`advance`](TestBus::advance), or calls the provider in a loop without a pause. The message has the seed, the
    /// steps, and the command that repeats the run. Also inside of a tokio runtime.
    pub fn explore<T, F, Fut>(seeds: impl IntoIterator<Item = u64>, test: F)
    where
        F: Fn(Self) -> Fut,
        Fut: Future<Output = Outcome<T>>,
    {
        Self::explorer(seeds).run(test);
    }

    /// Returns the builder of an exploration with settings.
    pub fn explorer(seeds: impl IntoIterator<Item = u64>) -> Explorer {
        Explorer::new(seeds)
    }

    /// Creates a bus over a real provider: time passes by itself, and [`advance`](TestBus::advance) waits. Its faults
    /// are drawn from the seed 0. Dead letters are kept in memory.
    ///
    /// The stream should hold nothing else: consumers of this bus read all of it.
    pub fn on(provider: impl IntoProvider) -> Self {
        let letters = Arc::new(MemoryProvider::default());
        Self::from_world(World::new(0, Clock::default(), false, provider.into_provider(), letters))
    }

    pub(super) fn from_world(world: Arc<World>) -> Self {
        Self { world }
    }

    /// Creates the bus of one process.
    pub(super) fn bus_of(world: &Arc<World>, life: &Arc<Life>) -> Result<EventBus> {
        let connect = |provider: &Arc<dyn EventProvider>, is_for_letters| {
            Arc::new(Connection {
                world: Arc::clone(world),
                life: Arc::clone(life),
                provider: Arc::clone(provider),
                is_for_letters,
            })
        };
        let letters = ProviderDlqHandler::new(connect(&world.letters, true))?;
        let builder = EventBusBuilder::new(connect(&world.provider, false)).dlq_handler(Arc::new(letters));
        world.set_up().iter().fold(builder, |builder, set_up| set_up(builder)).build()
    }

    /// Changes how the buses of this test are built, for instance with an encryptor or schemas. Call it before the
    /// first consumer and the first publish.
    ///
    /// ```
    /// use std::time::Duration;
    /// use a3s_event::testing::TestBus;
    ///
    /// TestBus::explore(0..1, |t| async move {
    ///     t.set_up(|bus| bus.operation_timeout(Duration::from_secs(5)));
    ///     t.publish("events.a", 1).await?;
    ///     Ok(())
    /// });
    /// ```
    pub fn set_up(&self, change: impl Fn(EventBusBuilder) -> EventBusBuilder + Send + Sync + 'static) {
        self.world.add_set_up(Arc::new(change));
    }

    /// Returns the bus of the test itself. Its process never crashes; the other faults concern it, too.
    ///
    /// # Errors
    ///
    /// As [`EventBusBuilder::build`].
    pub fn bus(&self) -> Result<Arc<EventBus>> {
        self.world.own_bus(|| Self::bus_of(&self.world, &Life::new("test", &Arc::default())))
    }

    /// Publishes an event with this payload. Its category is the second token of the subject.
    ///
    /// # Errors
    ///
    /// As [`EventBus::publish_event_with_receipt`], including planned faults.
    pub async fn publish(
        &self,
        subject: impl Into<String>,
        payload: impl Into<serde_json::Value>,
    ) -> Result<PublishReceipt> {
        self.publish_event(Event::builder(subject).payload(payload).source("test").build()).await
    }

    /// Publishes an event.
    ///
    /// # Errors
    ///
    /// As [`EventBus::publish_event_with_receipt`], including planned faults.
    pub async fn publish_event(&self, event: Event) -> Result<PublishReceipt> {
        self.bus()?.publish_event_with_receipt(&event, &PublishOptions::default()).await
    }

    /// Returns the builder of a consumer, which runs like a process of its own.
    pub fn consumer(&self, name: impl Into<String>) -> TestConsumerBuilder {
        TestConsumerBuilder::new(self.clone(), name.into())
    }

    /// Returns the plan of faults. Without planned faults, nothing fails.
    pub fn faults(&self) -> Faults {
        Faults { world: Arc::clone(&self.world) }
    }

    /// Lets time pass. Everything that is due happens in its order. Then it [settles](TestBus::settle).
    pub async fn advance(&self, time: Duration) {
        self.world.advance(time).await;
    }

    /// Runs until no task is ready and nothing is due. The clock does not move. On a real provider, it waits until
    /// every consumer has settled its events, at most 10 s.
    pub async fn settle(&self) {
        self.world.settle().await;
    }

    /// Returns a consumer for [checks](super::Checks), as the last [`settle`](TestBus::settle) or
    /// [`advance`](TestBus::advance) left it.
    ///
    /// # Errors
    ///
    /// If no consumer of this name was started, or the provider could not be asked.
    pub fn assert(&self, consumer: &str) -> Outcome<Checked> {
        Checked::new(&self.world, consumer)
    }

    /// Returns the dead-letter queue of all consumers, without faults, for instance to
    /// [replay](ProviderDlqHandler::replay) letters to [`provider`](TestBus::provider).
    ///
    /// # Errors
    ///
    /// As [`ProviderDlqHandler::new`].
    pub fn dead_letters(&self) -> Result<ProviderDlqHandler> {
        ProviderDlqHandler::new(Arc::clone(&self.world.letters))
    }

    /// Returns the provider, without faults.
    pub fn provider(&self) -> &dyn EventProvider {
        &*self.world.provider
    }

    /// Returns the wall clock.
    pub fn clock(&self) -> &Clock {
        &self.world.clock
    }

    /// Returns the seed of this run.
    pub fn seed(&self) -> u64 {
        self.world.seed
    }

    /// Draws a number below `limit` from the seed; 0 if `limit` is 0. For tests that draw their own workload.
    pub fn draw(&self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { self.world.random().u64(0..limit) }
    }

    /// Adds a line to the trace.
    pub fn note(&self, what: impl fmt::Display) {
        self.world.note("test", format_args!("{what}"));
    }

    /// Returns the steps so far, one per line. The same seed gives the same steps.
    pub fn trace(&self) -> String {
        self.world.trace().all()
    }
}

impl fmt::Debug for TestBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestBus").field("seed", &self.seed()).finish_non_exhaustive()
    }
}
