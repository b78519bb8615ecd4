//! The handler runtime: fetches events, calls a function for each, and settles them by its result.
//!
//! See the guides [Writing a consumer](crate::docs::writing_a_consumer) and
//! [Graceful shutdown](crate::docs::graceful_shutdown).

mod command;
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

use self::command::{Command, Commands};
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
use crate::poison::IgnorePoison;
use crate::provider::{Capabilities, Delivery};
use crate::text::shorten;
use crate::types::{Event, SubscribeOptions, SubscriptionFilter};

/// Maximum number of handlers that run at a time.
const MAX_CONCURRENCY: usize = 10_000;
/// Default number of events held in ordered lanes, per worker. It lets the other lanes run while one is slow.
const LANE_BUFFER: usize = 8;

/// Minimum of the default drain timeout.
const LEAST_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

type KeyFn = dyn Fn(&Event) -> String + Send + Sync;

/// Function from a delivery to a future, called from many tasks at once.
///
/// Its result settles the event. A handler may settle the delivery itself instead, for instance to ack early; its
/// result then has no effect.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event handler",
    label = "expected an `async fn(Delivery) -> HandlerResult`",
    note = "a handler takes one `Delivery` and returns a future of `a3s_event::consumer::HandlerResult`; \
            `handle_typed` takes the decoded payload before the `Delivery`",
    note = "the handler and its future must be `Send`, the handler also `Sync` and `'static`: move an `Arc` of the shared state into it"
)]
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

/// State that the tasks of a consumer share.
struct Runtime {
    /// Name that the program gave the consumer.
    subscriber: String,
    command: Commands,
    queue: Queue,
    policy: RetryPolicy,
    /// Number of attempts after which an event is given up.
    attempts: Option<u64>,
    failures: Failures,
    stats: Counters,
    health: Health,
    /// Current settings of the consumer, by subscription.
    in_force: Vec<Arc<InForce>>,
    /// Notified when one of them changes.
    settings_changed: Arc<Notify>,
    /// If true, the worker retries a failed event itself, without a redelivery.
    retries_here: bool,
    /// If true, a release does not count as an attempt.
    releases_uncounted: bool,
    operation_timeout: Duration,
    /// The first error that kept the shutdown from storing what it had to.
    cut_short: Mutex<Option<EventError>>,
}

impl Runtime {
    /// Notes an error of the shutdown: events are redelivered that should not be, or late.
    fn note_cut_short(&self, error: EventError) {
        self.cut_short.lock().ignore_poison().get_or_insert(error);
    }
}

impl EventBus {
    /// Returns the builder of a consumer of this name. The consumer handles the registered subscription of this name,
    /// unless you call [`subject`](ConsumerBuilder::subject). All consumers of one name share the work.
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
            without_dead_letters: false,
            #[cfg(feature = "routing")]
            letters_to: None,
            #[cfg(feature = "routing")]
            as_stored: false,
        }
    }
}

/// Builder of a consumer; see [`EventBus::consumer`].
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
    without_dead_letters: bool,
    #[cfg(feature = "routing")]
    letters_to: Option<Arc<dyn DlqHandler>>,
    #[cfg(feature = "routing")]
    as_stored: bool,
}

impl ConsumerBuilder<'_> {
    /// Adds a subject filter of the events to handle. Call it once per filter.
    pub fn subject(mut self, filter: impl Into<String>) -> Self {
        self.subjects.push(filter.into());
        self
    }

    /// Makes the consumer ephemeral: private, and gone when it ends. The default is durable. Takes effect only with
    /// [`subject`](ConsumerBuilder::subject).
    pub fn ephemeral(mut self) -> Self {
        self.durable = false;
        self
    }

    /// Sets the options of the subscription. Takes effect only with [`subject`](ConsumerBuilder::subject).
    /// `max_deliver` is the number of attempts unless the policy has one. Delays come from the policy.
    pub fn options(mut self, options: SubscribeOptions) -> Self {
        self.options = Some(options);
        self
    }

    /// Sets how many events are handled at a time. Default 1, which handles them in order unless one fails.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = handlers;
        self
    }

    /// Handles events of the same subject one after the other, in stream order; see
    /// [`ordered_by_key`](ConsumerBuilder::ordered_by_key).
    pub fn ordered_by_subject(self) -> Self {
        self.ordered_by_key(|event| event.subject.clone())
    }

    /// Handles events of the same key one after the other, in stream order. The next one starts when the one before it
    /// is settled or dead-lettered. Events of different keys do not wait for each other.
    ///
    /// A failed event keeps its place: its process retries it, and extends its lease meanwhile. The process counts
    /// these attempts; after a crash, the count continues from the deliveries. The order holds within one process, so
    /// run one process per set of keys.
    pub fn ordered_by_key(mut self, key: impl Fn(&Event) -> String + Send + Sync + 'static) -> Self {
        self.key = Some(Arc::new(key));
        self
    }

    /// Sets the maximum number of events fetched and not settled, per subject, including running ones. It is at least
    /// the concurrency. The default is a multiple of the concurrency:
    ///
    /// - ordered: 8 times
    /// - without an order: twice, or once if the provider counts a release as an attempt
    ///
    /// If the provider does not count releases, the default grows up to 128 while events are handled quickly.
    pub fn prefetch(mut self, events: usize) -> Self {
        self.prefetch = Some(events);
        self
    }

    /// Sets the retry policy for events whose handler fails.
    pub fn policy(mut self, policy: RetryPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets how long a shutdown waits for handlers. Default: the handler timeout of the policy, so that no handler has
    /// to be interrupted, and at least 30 s.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = Some(timeout);
        self
    }

    /// Drops the events that this consumer gives up, instead of dead-lettering them. They are only in the log. Declare
    /// this for a consumer whose events may be lost: without it, a consumer on a bus without a dead-letter handler logs
    /// a warning when it starts.
    pub fn without_dead_letters(mut self) -> Self {
        self.without_dead_letters = true;
        self
    }

    /// Sets a dead-letter handler that replaces the one of the bus.
    #[cfg(feature = "routing")]
    pub(crate) fn letters_to(mut self, handler: Arc<dyn DlqHandler>) -> Self {
        self.letters_to = Some(handler);
        self
    }

    /// Delivers events as stored: encrypted ones stay encrypted.
    #[cfg(feature = "routing")]
    pub(crate) fn sealed(mut self) -> Self {
        self.as_stored = true;
        self
    }

    /// Returns the opener of the subscriptions.
    fn opener(&self) -> Opener {
        let mut opener = self.bus.opener();
        #[cfg(feature = "routing")]
        {
            opener.as_stored = self.as_stored;
            opener.dlq_handler = self.letters_to.clone().or(opener.dlq_handler);
        }
        if self.without_dead_letters {
            opener.dlq_handler = None;
        }
        opener
    }

    /// Opens the subscription and calls `handler` for each event, until the returned handle is shut down or dropped.
    ///
    /// At the start, the log warns of events that the consumer would lose, because the bus has no dead-letter handler,
    /// and of other stored consumers of this name, whose lag grows because their subjects are no longer handled.
    ///
    /// # Errors
    ///
    /// - [`EventError::InvalidName`] for an empty name
    /// - [`EventError::NotFound`] without a subject, if no subscription of this name is registered
    /// - [`EventError::Config`] for a number out of range, and for validation on consume without a schema registry
    /// - otherwise same as [`EventBus::create_subscriber`]
    pub async fn handle(self, handler: impl Handler) -> Result<ConsumerHandle> {
        self.policy.check()?;
        self.bus.check_validation()?;
        let filter = self.filter()?;
        self.bus.check_subscription(&filter)?;
        let opener = self.opener();
        let runtime = Arc::new(self.runtime(&filter, opener.dlq_handler.is_some())?);
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
                lag_requests: receiver,
                newest: 0,
                opened_at: unix_millis(),
                trouble: 0,
            });
        }

        if opener.dlq_handler.is_none() && !self.without_dead_letters {
            tracing::warn!(
                subscriber = filter.subscriber_id,
                "no dead-letter handler is set: events that this consumer gives up are lost; set one with \
                 EventBus::set_dlq_handler, or declare the loss with ConsumerBuilder::without_dead_letters"
            );
        }
        let mut fetching = JoinSet::new();
        for fetcher in fetchers {
            fetching.spawn(fetcher.run());
        }
        let (handler, mut working) = (Arc::new(handler), JoinSet::new());
        for _ in 0..self.concurrency {
            working.spawn(worker::work(Arc::clone(&runtime), Arc::clone(&handler)));
        }
        let default_timeout = self.policy.timeout.unwrap_or_default().max(LEAST_DRAIN_TIMEOUT);
        let supervisor = Supervisor {
            runtime: Arc::clone(&runtime),
            fetchers: fetching,
            workers: working,
            state: state_sender,
            failure: Arc::clone(&failure),
            drain_timeout: self.drain_timeout.unwrap_or(default_timeout),
        };
        let supervisor = tokio::spawn(supervisor.run(opener, filter));
        Ok(ConsumerHandle { runtime, state, failure, lag_requests, supervisor })
    }

    /// Works as [`handle`](ConsumerBuilder::handle), and deserializes the payload to the handler's type. An event whose
    /// payload does not fit is dead-lettered at once.
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
    /// Same as [`handle`](ConsumerBuilder::handle).
    pub async fn handle_typed<T, F, Fut>(self, handler: F) -> Result<ConsumerHandle>
    where
        T: DeserializeOwned + Send + 'static,
        F: Fn(T, Delivery) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = HandlerResult> + Send + 'static,
    {
        self.handle(layers::typed(handler)).await
    }

    fn filter(&self) -> Result<SubscriptionFilter> {
        if self.name.is_empty() {
            let rule = "the name of a consumer must not be empty".to_owned();
            return Err(EventError::InvalidName { field: "name", value: String::new(), rule });
        }
        if self.subjects.is_empty() {
            let registered = self.bus.registry.get(&self.name);
            return registered.ok_or_else(|| {
                EventError::NotFound(format!(
                    "subscription '{}'; register it, or give the consumer a subject",
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
            subscriber: filter.subscriber_id.clone(),
            command: Commands::new(Command::Run),
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
            cut_short: Mutex::default(),
        })
    }

    fn capacity(&self, capabilities: &Capabilities) -> usize {
        let default = match (&self.key, capabilities.release_keeps_attempt.is_yes()) {
            (Some(_), _) => LANE_BUFFER * self.concurrency,
            (None, true) => 2 * self.concurrency,
            // The provider would count a waiting event as delivered when it is released.
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
