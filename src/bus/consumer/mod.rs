//! The handler runtime: fetches events, calls a function for each, and settles them by what it returns.
//!
//! [Writing a consumer](crate::docs::writing_a_consumer) and [shutting down](crate::docs::graceful_shutdown) are its guides.

mod failures;
mod fetch;
mod handle;
mod health;
pub mod layers;
mod policy;
mod queue;
mod reopen;
mod supervisor;
mod worker;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

pub use crate::backoff::Backoff;
pub use handle::{ConsumerHandle, ConsumerState, ConsumerStats};
pub use policy::{HandlerError, HandlerResult, RetryPolicy};

use self::failures::Failures;
use self::fetch::Fetcher;
use self::handle::Counters;
use self::health::Health;
use self::policy::DEFAULT_ATTEMPTS;
use self::queue::{LaneBounds, Queue, Source};
use self::supervisor::Supervisor;
use super::EventBus;
use super::in_force::InForce;
use super::open::Opener;
use crate::clock::unix_millis;
#[cfg(feature = "routing")]
use crate::dlq::DlqHandler;
use crate::error::{EventError, Result};
use crate::provider::{Capabilities, Delivery};
use crate::text::shorten;
use crate::types::{Event, SubscribeOptions, SubscriptionFilter};

/// Most handlers that run at a time.
const MAX_CONCURRENCY: usize = 10_000;
/// Events held by default in ordered lanes, per worker: one slow lane should not stop the others.
const LANE_BUFFER: usize = 8;

/// How long a shutdown waits by default, or longer.
const LEAST_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

type KeyFn = dyn Fn(&Event) -> String + Send + Sync;

/// What a handler is: a function from a delivery to a future, called from many tasks at once.
///
/// What it returns settles the event. A handler may settle the delivery by itself instead, for instance ack it early; then
/// what it returns changes nothing any more.
pub trait Handler: Send + Sync + 'static {
    /// Handles one delivery.
    fn call(&self, delivery: Delivery) -> impl Future<Output = HandlerResult> + Send;
}

impl<F, Fut> Handler for F
where
    F: Fn(Delivery) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = HandlerResult> + Send,
{
    fn call(&self, delivery: Delivery) -> impl Future<Output = HandlerResult> + Send {
        self(delivery)
    }
}

/// What the tasks of a consumer are told; each is stronger than the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Command {
    Run,
    Pause,
    /// The handle is gone, and the tasks are about to be.
    Gone,
    Drain,
    Abort,
}

/// Waits until a command is given that is at least as strong, or nobody is left to give one.
async fn wait_for_stop(commands: &mut watch::Receiver<Command>, least: Command) {
    let _ = commands.wait_for(|command| *command >= least).await;
}

/// Gives a command, unless one that is at least as strong was given.
fn raise(commands: &watch::Sender<Command>, to: Command) {
    commands.send_if_modified(|command| {
        let is_weaker = *command < to;
        if is_weaker {
            *command = to;
        }
        is_weaker
    });
}

/// What the tasks of a consumer share.
struct Runtime {
    queue: Queue,
    policy: RetryPolicy,
    /// After how many an event is given up.
    attempts: Option<u64>,
    failures: Failures,
    stats: Counters,
    health: Health,
    /// By subscription, what its consumer's settings are now.
    in_force: Vec<Arc<InForce>>,
    /// Told when one of them changes.
    settings_changed: Arc<Notify>,
    /// Whether a failed event is tried again by its worker, and not by another delivery.
    retries_here: bool,
    /// Whether giving back does not count as an attempt.
    releases_uncounted: bool,
    operation_timeout: Duration,
}

impl EventBus {
    /// Starts a consumer of this name. It handles the subscription of this name, if one is registered, unless
    /// [`subject`](ConsumerBuilder::subject) says what it handles. All consumers of one name share the work.
    ///
    /// ```
    /// use a3s_event::consumer::HandlerResult;
    /// use a3s_event::{Delivery, EventBus};
    ///
    /// async fn analyze(delivery: Delivery) -> HandlerResult {
    ///     let rate = delivery.event().payload["rate"].as_f64().ok_or("no rate")?;
    ///     println!("{rate}");
    ///     Ok(())
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> a3s_event::Result<()> {
    /// let bus = EventBus::connect("memory://").await?;
    /// let consumer = bus.consumer("analyst").subject("events.market.>").concurrency(8).handle(analyze).await?;
    /// consumer.shutdown().await
    /// # }
    /// ```
    pub fn consumer(&self, name: impl Into<String>) -> ConsumerBuilder<'_> {
        ConsumerBuilder {
            bus: self,
            name: name.into(),
            subjects: Vec::new(),
            durable: true,
            options: None,
            concurrency: 1,
            prefetch: None,
            key: None,
            policy: RetryPolicy::default(),
            drain_timeout: None,
            #[cfg(feature = "routing")]
            letters_to: None,
            #[cfg(feature = "routing")]
            as_stored: false,
        }
    }
}

/// Puts a consumer together; see [`EventBus::consumer`].
#[must_use]
pub struct ConsumerBuilder<'a> {
    bus: &'a EventBus,
    name: String,
    subjects: Vec<String>,
    durable: bool,
    options: Option<SubscribeOptions>,
    concurrency: usize,
    prefetch: Option<usize>,
    key: Option<Arc<KeyFn>>,
    policy: RetryPolicy,
    drain_timeout: Option<Duration>,
    #[cfg(feature = "routing")]
    letters_to: Option<Arc<dyn DlqHandler>>,
    #[cfg(feature = "routing")]
    as_stored: bool,
}

impl ConsumerBuilder<'_> {
    /// A filter of what is handled; one more each time it is called.
    pub fn subject(mut self, filter: impl Into<String>) -> Self {
        self.subjects.push(filter.into());
        self
    }

    /// Makes the consumer private, and gone when it ends; with [`subject`](ConsumerBuilder::subject). Without, it is
    /// durable.
    pub fn ephemeral(mut self) -> Self {
        self.durable = false;
        self
    }

    /// Options of the subscription; with [`subject`](ConsumerBuilder::subject). `max_deliver` is the number of attempts
    /// unless the policy has one; delays come from the policy.
    pub fn options(mut self, options: SubscribeOptions) -> Self {
        self.options = Some(options);
        self
    }

    /// How many events are handled at a time. Default 1, which handles them in order unless one fails.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = handlers;
        self
    }

    /// Handles events of the same subject one after the other, in the order of the stream; see
    /// [`ordered_by_key`](ConsumerBuilder::ordered_by_key).
    pub fn ordered_by_subject(self) -> Self {
        self.ordered_by_key(|event| event.subject.clone())
    }

    /// Handles events of the same key one after the other, in the order of the stream: the next one starts when the one
    /// before it is settled or dead-lettered. Events of different keys do not wait for each other.
    ///
    /// A failed event keeps its place: its worker tries it again, and keeps its lease alive meanwhile. These attempts are
    /// counted by the process; after a crash the count goes on from the deliveries. The order holds within one process: run
    /// one per set of keys.
    pub fn ordered_by_key(mut self, key: impl Fn(&Event) -> String + Send + Sync + 'static) -> Self {
        self.key = Some(Arc::new(key));
        self
    }

    /// Most events fetched and not settled, per subject, running ones included; never fewer than run at a time. Default
    /// twice as many as run, 8 times as many in ordered lanes; without an order and where giving back counts as an attempt,
    /// as many as run. Where giving back costs nothing the default grows up to 128 while events are handled quickly.
    pub fn prefetch(mut self, events: usize) -> Self {
        self.prefetch = Some(events);
        self
    }

    /// What happens to an event whose handler fails.
    pub fn policy(mut self, policy: RetryPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// How long a shutdown waits for handlers. Default as long as the policy lets a handler take, so that none has to be
    /// interrupted, and at least 30 s.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = Some(timeout);
        self
    }

    /// Where dead letters go instead of the handler of the bus.
    #[cfg(feature = "routing")]
    pub(crate) fn letters_to(mut self, handler: Arc<dyn DlqHandler>) -> Self {
        self.letters_to = Some(handler);
        self
    }

    /// Gives out events as they are stored: encrypted ones stay encrypted.
    #[cfg(feature = "routing")]
    pub(crate) fn sealed(mut self) -> Self {
        self.as_stored = true;
        self
    }

    /// What opens the subscriptions.
    #[cfg(not(feature = "routing"))]
    fn opener(&self) -> Opener {
        self.bus.opener()
    }

    /// What opens the subscriptions.
    #[cfg(feature = "routing")]
    fn opener(&self) -> Opener {
        let mut opener = self.bus.opener();
        opener.encryptor = opener.encryptor.filter(|_| !self.as_stored);
        opener.dlq_handler = self.letters_to.clone().or(opener.dlq_handler);
        opener
    }

    /// Opens the subscription and calls `handler` for each event, until the handle ends it.
    ///
    /// # Errors
    ///
    /// [`EventError::NotFound`] without a subject, when no subscription of this name is registered; [`EventError::Config`]
    /// for a number out of range; otherwise as [`EventBus::create_subscriber`].
    pub async fn handle(self, handler: impl Handler) -> Result<ConsumerHandle> {
        self.policy.check()?;
        let filter = self.filter()?;
        self.bus.check_subscription(&filter)?;
        let opener = self.opener();
        let runtime = Arc::new(self.runtime(&filter, opener.dlq_handler.is_some())?);
        let (command, commands) = watch::channel(Command::Run);
        let (state_sender, state) = watch::channel(ConsumerState::Running);
        let failure = Arc::new(Mutex::new(None));

        let mut fetchers = Vec::with_capacity(filter.subjects.len());
        let mut lag_requests = Vec::with_capacity(filter.subjects.len());
        for (index, (subject, in_force)) in filter.subjects.iter().zip(&runtime.in_force).enumerate() {
            let opening = opener.open_incoming(&filter, subject, runtime.attempts, Arc::clone(in_force));
            let subscription = opening.await?;
            let (sender, receiver) = mpsc::channel(1);
            lag_requests.push(sender);
            fetchers.push(Fetcher {
                runtime: Arc::clone(&runtime),
                opener: Opener::clone(&opener),
                filter: filter.clone(),
                subject: subject.clone(),
                source: Arc::new(Source {
                    index,
                    epoch: 0,
                    stream: "".into(),
                    letters: Arc::clone(subscription.letters()),
                }),
                key: self.key.clone(),
                subscription,
                in_force: Arc::clone(in_force),
                command: commands.clone(),
                lag_requests: receiver,
                newest: 0,
                opened_at: unix_millis(),
                trouble: 0,
            });
        }

        let mut fetching = JoinSet::new();
        for fetcher in fetchers {
            fetching.spawn(fetcher.run());
        }
        let (handler, mut working) = (Arc::new(handler), JoinSet::new());
        for _ in 0..self.concurrency {
            working.spawn(worker::work(Arc::clone(&runtime), Arc::clone(&handler), commands.clone()));
        }
        let default_timeout = self.policy.timeout.unwrap_or_default().max(LEAST_DRAIN_TIMEOUT);
        let supervisor = Supervisor {
            runtime: Arc::clone(&runtime),
            fetchers: fetching,
            workers: working,
            command: command.clone(),
            state: state_sender,
            failure: Arc::clone(&failure),
            drain_timeout: self.drain_timeout.unwrap_or(default_timeout),
        };
        let supervisor = tokio::spawn(supervisor.run());
        Ok(ConsumerHandle { runtime, command, state, failure, lag_requests, supervisor })
    }

    /// As [`handle`](ConsumerBuilder::handle), with the payload as a value of the handler's type. A payload that is none
    /// goes to the dead letters at once.
    ///
    /// ```
    /// use a3s_event::EventBus;
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Order {
    ///     total: u64,
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> a3s_event::Result<()> {
    /// let bus = EventBus::connect("memory://").await?;
    /// let consumer = bus
    ///     .consumer("billing")
    ///     .subject("events.orders.>")
    ///     .handle_typed(|order: Order, delivery| async move {
    ///         println!("{}: {}", delivery.event().id, order.total);
    ///         Ok(())
    ///     })
    ///     .await?;
    /// consumer.shutdown().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`handle`](ConsumerBuilder::handle).
    pub async fn handle_typed<T, F, Fut>(self, handler: F) -> Result<ConsumerHandle>
    where
        T: DeserializeOwned + Send + 'static,
        F: Fn(T, Delivery) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = HandlerResult> + Send + 'static,
    {
        self.handle(layers::typed(handler)).await
    }

    fn filter(&self) -> Result<SubscriptionFilter> {
        if self.subjects.is_empty() {
            let registered = self.bus.registry.get(&self.name);
            return registered.ok_or_else(|| {
                EventError::NotFound(format!(
                    "subscription '{}', and no subject was given",
                    shorten(&self.name)
                ))
            });
        }
        Ok(SubscriptionFilter {
            subscriber_id: self.name.clone(),
            subjects: self.subjects.clone(),
            durable: self.durable,
            options: self.options.clone(),
        })
    }

    fn runtime(&self, filter: &SubscriptionFilter, has_dead_letters: bool) -> Result<Runtime> {
        let concurrency = self.concurrency;
        if !(1..=MAX_CONCURRENCY).contains(&concurrency) {
            return Err(EventError::Config(format!(
                "concurrency {concurrency}: must be between 1 and {MAX_CONCURRENCY}"
            )));
        }
        let capabilities = self.bus.provider.capabilities();
        let releases_uncounted = capabilities.release_keeps_attempt.is_yes();
        let capacity = self.capacity(&capabilities);
        let lane_bounds =
            LaneBounds { most_counted: (capacity / concurrency).max(1), parks_busy: releases_uncounted };
        let grows = self.prefetch.is_none() && releases_uncounted;
        let settings_changed = Arc::new(Notify::new());
        let as_asked_for = || Arc::new(InForce::new(filter.options.as_ref(), Arc::clone(&settings_changed)));
        Ok(Runtime {
            queue: Queue::new(filter.subjects.len(), capacity, grows, lane_bounds),
            in_force: filter.subjects.iter().map(|_| as_asked_for()).collect(),
            settings_changed,
            health: Health::default(),
            policy: self.policy.clone(),
            attempts: self.attempts(filter.options.as_ref(), has_dead_letters),
            failures: Failures::default(),
            stats: Counters::default(),
            retries_here: self.key.is_some() || capabilities.nak_with_delay.is_no(),
            releases_uncounted,
            operation_timeout: self.bus.operation_timeout,
        })
    }

    fn capacity(&self, capabilities: &Capabilities) -> usize {
        let default = match (&self.key, capabilities.release_keeps_attempt.is_yes()) {
            (Some(_), _) => LANE_BUFFER * self.concurrency,
            (None, true) => 2 * self.concurrency,
            // What waits here would count as delivered when it is given back.
            (None, false) => self.concurrency,
        };
        self.prefetch.unwrap_or(default).max(self.concurrency)
    }

    fn attempts(&self, options: Option<&SubscribeOptions>, has_dead_letters: bool) -> Option<u64> {
        let max_deliver = options.and_then(|options| options.max_deliver);
        let configured = self.policy.attempts.or(max_deliver.and_then(|max| u64::try_from(max).ok()));
        let default = has_dead_letters.then_some(DEFAULT_ATTEMPTS);
        configured.or(default).filter(|attempts| *attempts != u64::MAX)
    }
}

impl fmt::Debug for ConsumerBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerBuilder")
            .field("name", &self.name)
            .field("subjects", &self.subjects)
            .field("concurrency", &self.concurrency)
            .field("ordered", &self.key.is_some())
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
