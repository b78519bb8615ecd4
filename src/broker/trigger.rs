//! Triggers and their delivery settings.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::filter::{EventFilter, TriggerFilter};
use super::index::ANY_SUBJECT;
use crate::backoff::Backoff;
use crate::error::{EventError, Result};
use crate::provider::group::ConsumerConfig;
use crate::sink::EventSink;
use crate::text::shorten;
use crate::types::{DeliverPolicy, SubscribeOptions};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_CONCURRENCY: usize = 32;
const DEFAULT_QUEUE: usize = 1_024;
const MAX_CONCURRENCY: usize = 10_000;
const MAX_QUEUE: usize = 1_000_000;
const MAX_NAME_LEN: usize = 128;

/// Sends the events that match a filter to a sink.
pub struct Trigger {
    /// Name, for logs and removal. Several triggers may share it.
    pub name: String,
    /// Filter of the events.
    pub filter: TriggerFilter,
    /// Destination of the events.
    pub sink: Arc<dyn EventSink>,
}

impl Trigger {
    /// Creates a trigger.
    pub fn new(name: impl Into<String>, filter: TriggerFilter, sink: Arc<dyn EventSink>) -> Self {
        Self { name: name.into(), filter, sink }
    }

    /// Adds a filter that must match too.
    pub fn with_filter(self, filter: EventFilter) -> TriggerSpec {
        TriggerSpec::from(self).with_filter(filter)
    }

    /// Sets the delivery settings.
    pub fn with_delivery(self, settings: DeliverySettings) -> TriggerSpec {
        TriggerSpec::from(self).with_delivery(settings)
    }
}

impl fmt::Debug for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trigger")
            .field("name", &self.name)
            .field("filter", &self.filter)
            .field("sink", &self.sink.name())
            .finish()
    }
}

/// A trigger with all its settings; see [`Broker::put_trigger`](super::Broker::put_trigger).
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use a3s_event::broker::{DeliverySettings, EventFilter};
/// use a3s_event::consumer::Backoff;
/// use a3s_event::{LogSink, Trigger, TriggerFilter};
///
/// let trigger = Trigger::new("new-orders", TriggerFilter::by_subject("events.orders.>"), Arc::new(LogSink::default()))
///     .with_filter(EventFilter::prefix("type", "order."))
///     .with_delivery(
///         DeliverySettings::durable()
///             .retries(5)
///             .backoff(Backoff::linear(Duration::from_secs(1), Duration::from_secs(10)))
///             .dead_letter_sink(Arc::new(LogSink::new("given-up"))),
///     );
/// ```
#[derive(Debug)]
#[must_use]
pub struct TriggerSpec {
    pub(super) trigger: Trigger,
    pub(super) filter: Option<EventFilter>,
    pub(super) settings: DeliverySettings,
}

impl From<Trigger> for TriggerSpec {
    /// Creates a fire-and-forget trigger with the defaults.
    fn from(trigger: Trigger) -> Self {
        Self { trigger, filter: None, settings: DeliverySettings::fire_and_forget() }
    }
}

impl TriggerSpec {
    /// Adds a filter that must match too, in addition to the filters set before.
    pub fn with_filter(mut self, filter: EventFilter) -> Self {
        self.filter = Some(match self.filter.take() {
            Some(before) => EventFilter::all([before, filter]),
            None => filter,
        });
        self
    }

    /// Sets the delivery settings.
    pub fn with_delivery(mut self, settings: DeliverySettings) -> Self {
        self.settings = settings;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let name = &self.trigger.name;
        if name.is_empty() || name.len() > MAX_NAME_LEN {
            let rule = format!("must have between 1 and {MAX_NAME_LEN} bytes");
            return Err(EventError::InvalidName { field: "trigger", value: shorten(name), rule });
        }
        self.trigger.filter.check()?;
        if let Some(filter) = &self.filter {
            filter.check()?;
        }
        self.settings.check()
    }
}

/// Delivery settings of a trigger.
///
/// **Fire-and-forget** delivers routed events from the memory of this process. The queue is bounded; events that do not
/// fit are dropped and counted. A crash loses events that were not delivered. An event whose publish failed is not
/// routed, even if it was stored.
///
/// **Durable** reads the stream with its own durable consumer while the broker [runs](super::Broker::run). It settles
/// an event when the sink has accepted it or its dead letter is stored: at least once, across restarts.
#[derive(Clone)]
#[must_use]
pub struct DeliverySettings {
    pub(super) durable: bool,
    pub(super) retries: Option<u32>,
    pub(super) backoff: Backoff,
    pub(super) timeout: Duration,
    pub(super) concurrency: Option<usize>,
    pub(super) queue: usize,
    pub(super) ordered: bool,
    pub(super) dead_letter: Option<Arc<dyn EventSink>>,
    pub(super) deliver_policy: DeliverPolicy,
    pub(super) ack_wait: Option<Duration>,
}

impl DeliverySettings {
    /// Creates settings for deliveries when an event is routed; undelivered events are not stored. No retries by
    /// default.
    pub fn fire_and_forget() -> Self {
        Self {
            durable: false,
            retries: None,
            backoff: Backoff::exponential(Duration::from_secs(1), Duration::from_secs(60)),
            timeout: DEFAULT_TIMEOUT,
            concurrency: None,
            queue: DEFAULT_QUEUE,
            ordered: false,
            dead_letter: None,
            deliver_policy: DeliverPolicy::New,
            ack_wait: None,
        }
    }

    /// Creates settings for deliveries from the stream, at least once. The default is 4 retries with a destination for
    /// dead letters, and no limit without one. The destination is a sink of the trigger or the broker, or the handler
    /// of the bus.
    pub fn durable() -> Self {
        Self { durable: true, ..Self::fire_and_forget() }
    }

    /// Sets how often a failed delivery is retried before it is given up.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = Some(retries);
        self
    }

    /// Sets the delay before a retry, unless the sink sets it. Default exponential from 1 s to 60 s with jitter.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets the timeout of one attempt. Default 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how many deliveries run at a time. Default 32; 1 when durable.
    pub fn concurrency(mut self, deliveries: usize) -> Self {
        self.concurrency = Some(deliveries);
        self
    }

    /// Sets how many fire-and-forget deliveries wait for their turn; further ones are dropped. Default 1,024.
    pub fn queue(mut self, deliveries: usize) -> Self {
        self.queue = deliveries;
        self
    }

    /// Keeps the order of events. A durable trigger keeps it for each subject, and handles other subjects meanwhile. It
    /// begins when the deliveries of the trigger that it replaces have ended. A fire-and-forget trigger delivers one
    /// event at a time, in the order of routing. A retry delays the events behind it.
    pub fn ordered(mut self) -> Self {
        self.ordered = true;
        self
    }

    /// Sets the destination of events that were given up. It overrides the broker's.
    pub fn dead_letter_sink(mut self, sink: Arc<dyn EventSink>) -> Self {
        self.dead_letter = Some(sink);
        self
    }

    /// Sets where a durable trigger starts if its consumer does not exist yet. Default [`DeliverPolicy::New`].
    pub fn deliver_policy(mut self, policy: DeliverPolicy) -> Self {
        self.deliver_policy = policy;
        self
    }

    /// Sets the lease of a durable trigger's deliveries, in whole seconds. After a crash of the process, an event is
    /// redelivered when its lease expires. Default 30 s; the lease of a running delivery is extended.
    pub fn ack_wait(mut self, lease: Duration) -> Self {
        self.ack_wait = Some(lease);
        self
    }

    pub(super) fn concurrency_or_default(&self) -> usize {
        match (self.concurrency, self.durable, self.ordered) {
            (_, false, true) => 1,
            (Some(deliveries), ..) => deliveries,
            (None, true, _) => 1,
            (None, false, false) => DEFAULT_CONCURRENCY,
        }
    }

    /// Returns the subscribe options of its durable consumer.
    pub(super) fn subscribe_options(&self) -> SubscribeOptions {
        SubscribeOptions {
            deliver_policy: self.deliver_policy.clone(),
            ack_wait_secs: self.ack_wait.map(|lease| lease.as_secs()),
            ..SubscribeOptions::default()
        }
    }

    fn check(&self) -> Result<()> {
        let range = |name: &str, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(EventError::Config(format!("{name} {value}: must be between {least} and {most}")))
        };
        range("concurrency", self.concurrency_or_default(), 1, MAX_CONCURRENCY)?;
        range("queue", self.queue, 0, MAX_QUEUE)?;
        if self.timeout.is_zero() {
            return Err(EventError::Config("timeout 0s: must be longer than zero".to_owned()));
        }
        if let Some(lease) = self.ack_wait.filter(|lease| lease.subsec_nanos() > 0) {
            return Err(EventError::Config(format!("ack_wait {lease:?}: must be whole seconds")));
        }
        ConsumerConfig::new(ANY_SUBJECT, &self.subscribe_options()).map(drop)
    }
}

impl fmt::Debug for DeliverySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeliverySettings")
            .field("durable", &self.durable)
            .field("retries", &self.retries)
            .field("backoff", &self.backoff)
            .field("timeout", &self.timeout)
            .field("concurrency", &self.concurrency_or_default())
            .field("ordered", &self.ordered)
            .field("dead_letter", &self.dead_letter.as_ref().map(|sink| sink.name()))
            .finish_non_exhaustive()
    }
}
