//! Consumers of a test bus: each one runs like a process of its own, which can crash and start again.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::TestBus;
use super::world::{Consumers, Life, World};
use crate::bus::EventBus;
use crate::bus::consumer::{
    ConsumerBuilder, ConsumerHandle, ConsumerState, ConsumerStats, Handler, HandlerResult, RetryPolicy,
    layers,
};
use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;
use crate::provider::Delivery;
use crate::provider::support::OwnedTask;
use crate::types::{Event, SubscribeOptions};

/// Time from a crash to the next start.
const RESTART: Duration = Duration::from_secs(1);

type Starting<'a> = Pin<Box<dyn Future<Output = Result<ConsumerHandle>> + Send + 'a>>;
type Configure = dyn for<'a> Fn(ConsumerBuilder<'a>) -> ConsumerBuilder<'a> + Send + Sync;

/// Builder of a consumer; see [`TestBus::consumer`]. It has the settings of [`ConsumerBuilder`].
#[must_use]
pub struct TestConsumerBuilder {
    bus: TestBus,
    name: String,
    settings: Vec<Box<Configure>>,
}

impl TestConsumerBuilder {
    pub(super) fn new(bus: TestBus, name: String) -> Self {
        Self { bus, name, settings: Vec::new() }
    }

    /// Adds a subject filter, as [`ConsumerBuilder::subject`] does.
    pub fn subject(self, filter: impl Into<String>) -> Self {
        let filter = filter.into();
        self.with(move |builder| builder.subject(filter.clone()))
    }

    /// Makes the consumer ephemeral, as [`ConsumerBuilder::ephemeral`] does.
    pub fn ephemeral(self) -> Self {
        self.with(|builder| builder.ephemeral())
    }

    /// Sets the options of the subscription, as [`ConsumerBuilder::options`] does.
    pub fn options(self, options: SubscribeOptions) -> Self {
        self.with(move |builder| builder.options(options.clone()))
    }

    /// Sets how many events are handled at a time, as [`ConsumerBuilder::concurrency`] does.
    pub fn concurrency(self, handlers: usize) -> Self {
        self.with(move |builder| builder.concurrency(handlers))
    }

    /// Handles events of the same subject in order, as [`ConsumerBuilder::ordered_by_subject`] does.
    pub fn ordered_by_subject(self) -> Self {
        self.with(|builder| builder.ordered_by_subject())
    }

    /// Handles events of the same key in order, as [`ConsumerBuilder::ordered_by_key`] does.
    pub fn ordered_by_key(self, key: impl Fn(&Event) -> String + Send + Sync + 'static) -> Self {
        let key = Arc::new(key);
        self.with(move |builder| {
            let key = Arc::clone(&key);
            builder.ordered_by_key(move |event| key(event))
        })
    }

    /// Sets the maximum number of events fetched and not settled, as [`ConsumerBuilder::prefetch`] does.
    pub fn prefetch(self, events: usize) -> Self {
        self.with(move |builder| builder.prefetch(events))
    }

    /// Sets the retry policy, as [`ConsumerBuilder::policy`] does.
    pub fn policy(self, policy: RetryPolicy) -> Self {
        self.with(move |builder| builder.policy(policy.clone()))
    }

    /// Sets how long a shutdown waits for handlers, as [`ConsumerBuilder::drain_timeout`] does.
    pub fn drain_timeout(self, timeout: Duration) -> Self {
        self.with(move |builder| builder.drain_timeout(timeout))
    }

    /// Starts the consumer with this handler. After a crash, it starts again with the same handler and settings.
    ///
    /// # Errors
    ///
    /// As [`ConsumerBuilder::handle`]; [`EventError::Config`] if a consumer of this name runs on the bus.
    pub async fn handle(self, handler: impl Handler) -> Result<TestConsumer> {
        let Self { bus: TestBus { world, .. }, name, settings } = self;
        let process = Arc::new_cyclic(|process: &Weak<Process>| {
            let (handler, consumer) = (Arc::new(handler), name.as_str().into());
            let handler = Traced { handler, world: Arc::downgrade(&world), consumer };
            Process {
                name,
                world: Arc::downgrade(&world),
                program: Box::new(Program { settings, handler }),
                running: Mutex::default(),
                consumers: Consumers::default(),
                crashes: AtomicU64::new(0),
                keeper: Mutex::default(),
                this: Weak::clone(process),
            }
        });
        {
            let mut processes = world.processes.lock().ignore_poison();
            if processes.get(&process.name).is_some_and(|process| process.is_kept()) {
                return Err(EventError::Config(format!(
                    "consumer \"{}\": it runs already; shut it down, or use another name",
                    process.name
                )));
            }
            processes.insert(process.name.clone(), Arc::clone(&process));
        }
        process.start().await?;
        Ok(TestConsumer { name: process.name.as_str().into(), process: Arc::downgrade(&process) })
    }

    /// Works as [`handle`](TestConsumerBuilder::handle), and deserializes the payload, as
    /// [`ConsumerBuilder::handle_typed`] does.
    ///
    /// # Errors
    ///
    /// As [`handle`](TestConsumerBuilder::handle).
    pub async fn handle_typed<T, F, Fut>(self, handler: F) -> Result<TestConsumer>
    where
        T: DeserializeOwned + Send + 'static,
        F: Fn(T, Delivery) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = HandlerResult> + Send + 'static,
    {
        self.handle(layers::typed(handler)).await
    }

    fn with(
        mut self,
        set: impl for<'a> Fn(ConsumerBuilder<'a>) -> ConsumerBuilder<'a> + Send + Sync + 'static,
    ) -> Self {
        self.settings.push(Box::new(set));
        self
    }
}

impl fmt::Debug for TestConsumerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestConsumerBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A consumer of a [`TestBus`]. It continues when this handle is dropped; the end of the test ends it. Clones are the
/// same consumer.
///
/// A consumer that crashes loses everything in memory: handlers that run are dropped, its leases end after the ack wait,
/// and what it had fetched is redelivered after that. It starts again a second later, as a supervised service does.
#[derive(Clone)]
pub struct TestConsumer {
    name: Arc<str>,
    /// The bus owns it, so that a handler can hold this handle.
    process: Weak<Process>,
}

impl TestConsumer {
    /// Shuts the consumer down in order, as [`ConsumerHandle::shutdown`] does. It does not start again by itself.
    ///
    /// # Errors
    ///
    /// As [`ConsumerHandle::shutdown`]; [`EventError::Closed`] if it does not run, for instance after a crash, or if it
    /// crashes meanwhile.
    pub async fn shutdown(&self) -> Result<()> {
        let process = self.process()?;
        process.note(format_args!("shut down"));
        let running = process.handle().zip(process.life());
        let (handle, life) = running.ok_or_else(|| self.is_down())?;
        process.keep_down();
        let ended = tokio::select! {
            biased;
            () = life.ended.notified() => {
                process.crashed();
                Err(EventError::Closed(format!("the consumer \"{}\" crashed", self.name)))
            }
            ended = handle.shutdown() => ended,
        };
        process.running().take();
        process.note(format_args!("is down"));
        ended
    }

    /// Starts the consumer after a [`shutdown`](TestConsumer::shutdown).
    ///
    /// # Errors
    ///
    /// As [`ConsumerBuilder::handle`]; [`EventError::Config`] if it runs.
    pub async fn start(&self) -> Result<()> {
        let process = self.process()?;
        if process.is_kept() {
            return Err(EventError::Config(format!("consumer \"{}\": it runs already", self.name)));
        }
        process.start().await
    }

    /// Returns how often the consumer has crashed.
    pub fn crashes(&self) -> u64 {
        self.process.upgrade().map_or(0, |process| process.crashes.load(Ordering::Relaxed))
    }

    /// Returns the state of the consumer; `None` while it is down.
    pub fn state(&self) -> Option<ConsumerState> {
        self.handle().map(|handle| handle.state())
    }

    /// Returns the counters since the consumer last started; `None` while it is down.
    pub fn stats(&self) -> Option<ConsumerStats> {
        self.handle().map(|handle| handle.stats())
    }

    /// Returns the last error of a part that has not worked since, as [`ConsumerHandle::last_error`] does.
    pub fn last_error(&self) -> Option<String> {
        self.handle().and_then(|handle| handle.last_error())
    }

    /// Deletes the consumer's durable consumers behind its back, as another program or an operator can.
    ///
    /// # Errors
    ///
    /// The provider's error.
    pub async fn delete_behind_its_back(&self) -> Result<()> {
        let process = self.process()?;
        let world = process.world.upgrade().ok_or_else(|| self.is_down())?;
        for consumer in process.consumers() {
            world.note("test", format_args!("delete consumer {consumer}"));
            world.provider.unsubscribe(&consumer).await?;
        }
        Ok(())
    }

    fn process(&self) -> Result<Arc<Process>> {
        self.process.upgrade().ok_or_else(|| EventError::Closed("the test is over".to_owned()))
    }

    fn handle(&self) -> Option<Arc<ConsumerHandle>> {
        self.process.upgrade()?.handle()
    }

    fn is_down(&self) -> EventError {
        EventError::Closed(format!("the consumer \"{}\" is down", self.name))
    }
}

impl fmt::Debug for TestConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestConsumer")
            .field("name", &self.name)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// A consumer with what it takes to start it again.
pub(super) struct Process {
    name: String,
    world: Weak<World>,
    program: Box<dyn Start>,
    running: Mutex<Option<Running>>,
    consumers: Consumers,
    crashes: AtomicU64,
    /// The task that starts it again.
    keeper: Mutex<Option<OwnedTask<()>>>,
    this: Weak<Process>,
}

struct Running {
    life: Arc<Life>,
    handle: Arc<ConsumerHandle>,
    _bus: Arc<EventBus>,
}

impl Process {
    /// Returns the current life, if the process runs.
    pub(super) fn life(&self) -> Option<Arc<Life>> {
        let running = self.running();
        running.as_ref().map(|running| Arc::clone(&running.life)).filter(|life| !life.is_over())
    }

    pub(super) fn handle(&self) -> Option<Arc<ConsumerHandle>> {
        let running = self.running();
        running.as_ref().filter(|running| !running.life.is_over()).map(|running| Arc::clone(&running.handle))
    }

    /// Returns the stored names of the durable consumers that the process has opened, in any of its lives.
    pub(super) fn consumers(&self) -> Vec<String> {
        self.consumers.lock().ignore_poison().clone()
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().ignore_poison()
    }

    fn note(&self, what: fmt::Arguments<'_>) {
        if let Some(world) = self.world.upgrade() {
            world.note(&self.name, what);
        }
    }

    /// Starts the consumer, and a task that starts it again after each crash.
    async fn start(&self) -> Result<()> {
        let life = self.live().await?;
        let process = Weak::clone(&self.this);
        let keeper = OwnedTask::spawn(async move {
            let mut life = life;
            loop {
                life.ended.notified().await;
                let Some(process) = process.upgrade() else { return };
                process.crashed();
                life = process.revive().await;
            }
        });
        *self.keeper.lock().ignore_poison() = Some(keeper);
        Ok(())
    }

    /// Starts the consumer once.
    async fn live(&self) -> Result<Arc<Life>> {
        let gone = || EventError::Closed("the test is over".to_owned());
        let world = self.world.upgrade().ok_or_else(gone)?;
        let life = Life::new(&self.name, &self.consumers);
        let bus = Arc::new(TestBus::bus_of(&world, &life)?);
        self.note(format_args!("start"));
        let handle = Arc::new(self.program.start(&self.name, &bus).await?);
        *self.running() = Some(Running { life: Arc::clone(&life), handle, _bus: bus });
        Ok(life)
    }

    /// Starts the consumer after a crash, as often as it takes.
    async fn revive(&self) -> Arc<Life> {
        loop {
            tokio::time::sleep(RESTART).await;
            match self.live().await {
                Ok(life) => return life,
                Err(error) => self.note(format_args!("start: {error}")),
            }
        }
    }

    /// Drops what a crashed process was doing.
    fn crashed(&self) {
        self.crashes.fetch_add(1, Ordering::Relaxed);
        let running = self.running().take();
        if let Some(Running { handle, .. }) = running {
            handle.kill();
        }
    }

    /// Returns `true` from the start to a shutdown, crashes included.
    fn is_kept(&self) -> bool {
        self.keeper.lock().ignore_poison().is_some()
    }

    /// Ends the task that starts the consumer again.
    fn keep_down(&self) {
        let keeper = self.keeper.lock().ignore_poison().take();
        drop(keeper);
    }
}

/// Settings and handler of a consumer.
struct Program<H> {
    settings: Vec<Box<Configure>>,
    handler: Traced<H>,
}

/// Starts a consumer of this name.
trait Start: Send + Sync {
    fn start<'a>(&'a self, name: &str, bus: &'a EventBus) -> Starting<'a>;
}

impl<H: Handler> Start for Program<H> {
    fn start<'a>(&'a self, name: &str, bus: &'a EventBus) -> Starting<'a> {
        let builder = self.settings.iter().fold(bus.consumer(name), |builder, set| set(builder));
        Box::pin(builder.handle(self.handler.clone()))
    }
}

/// Writes the calls of a handler into the trace.
struct Traced<H> {
    handler: Arc<H>,
    world: Weak<World>,
    consumer: Arc<str>,
}

impl<H> Clone for Traced<H> {
    fn clone(&self) -> Self {
        Self {
            handler: Arc::clone(&self.handler),
            world: Weak::clone(&self.world),
            consumer: Arc::clone(&self.consumer),
        }
    }
}

impl<H: Handler> Handler for Traced<H> {
    async fn call(&self, delivery: Delivery) -> HandlerResult {
        let sequence = delivery.sequence();
        let note = |what: fmt::Arguments<'_>| {
            if let Some(world) = self.world.upgrade() {
                world.note(&self.consumer, what);
            }
        };
        note(format_args!("handle {sequence}"));
        let handled = self.handler.call(delivery).await;
        match &handled {
            Ok(()) => note(format_args!("handled {sequence}")),
            Err(error) => note(format_args!("failed {sequence}: {error}")),
        }
        handled
    }
}
