//! The broker: triggers that route events to sinks.
//!
//! Routing happens once and is not repeated: a sink that fails is counted and logged. Needs the feature `routing`.

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tracing::Instrument;

use crate::error::Result;
use crate::sink::EventSink;
use crate::subject::subject_matches;
use crate::types::Event;

/// How long a route waits for its sinks when nothing else was said.
const DEFAULT_DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// Which events a trigger wants. All criteria that are set must hold; without any, every event matches.
///
/// ```
/// use a3s_event::{Event, TriggerFilter};
///
/// let event = Event::typed("events.orders.eu.new", "orders", "order.created", 1, "", "shop", serde_json::json!({}))
///     .with_metadata("region", "eu");
/// assert!(TriggerFilter::by_type("order.created").with_attribute("region", "eu").matches(&event));
/// assert!(TriggerFilter::by_subject("events.orders.>").matches(&event));
/// assert!(!TriggerFilter::by_source("warehouse").matches(&event));
/// assert!(TriggerFilter::default().matches(&event));
/// ```
#[derive(Debug, Clone, Default)]
pub struct TriggerFilter {
    /// The event type, exactly.
    pub event_type: Option<String>,
    /// The source, exactly.
    pub source: Option<String>,
    /// A subject filter, with the wildcards of [`subject_matches`].
    pub subject_pattern: Option<String>,
    /// Metadata entries that the event must have, exactly.
    pub attributes: Vec<(String, String)>,
}

impl TriggerFilter {
    /// Matches events of this type.
    pub fn by_type(event_type: impl Into<String>) -> Self {
        Self { event_type: Some(event_type.into()), ..Self::default() }
    }

    /// Matches events from this source.
    pub fn by_source(source: impl Into<String>) -> Self {
        Self { source: Some(source.into()), ..Self::default() }
    }

    /// Matches events whose subject this subject filter matches. One that breaks the grammar matches nothing.
    pub fn by_subject(pattern: impl Into<String>) -> Self {
        Self { subject_pattern: Some(pattern.into()), ..Self::default() }
    }

    /// Wants a metadata entry besides.
    #[must_use]
    pub fn with_attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.push((key.into(), value.into()));
        self
    }

    /// Whether the event fulfils all criteria that are set.
    pub fn matches(&self, event: &Event) -> bool {
        let is =
            |wanted: &Option<String>, found: &String| wanted.as_ref().is_none_or(|wanted| wanted == found);
        is(&self.event_type, &event.event_type)
            && is(&self.source, &event.source)
            && self.attributes.iter().all(|(key, value)| event.metadata.get(key) == Some(value))
            && self.subject_pattern.as_ref().is_none_or(|pattern| subject_matches(&event.subject, pattern))
    }
}

/// Sends what a filter matches to a sink.
pub struct Trigger {
    /// Name, for logs and removal. Several triggers may have the same.
    pub name: String,
    /// Which events.
    pub filter: TriggerFilter,
    /// Where to.
    pub sink: Arc<dyn EventSink>,
}

impl Trigger {
    /// Puts a trigger together.
    pub fn new(name: impl Into<String>, filter: TriggerFilter, sink: Arc<dyn EventSink>) -> Self {
        Self { name: name.into(), filter, sink }
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

/// What became of one event: `matched` is the sum of `delivered` and `failed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteResult {
    /// How many triggers matched.
    pub matched: usize,
    /// How many sinks took the event.
    pub delivered: usize,
    /// How many sinks failed, panicked or took too long.
    pub failed: usize,
}

/// Routes events to the sinks of all triggers that match.
///
/// Sinks run side by side and share one deadline, 10 s unless [stated](Broker::with_delivery_timeout). Triggers can be
/// added and removed at any time and never wait for a delivery; an event that is being routed keeps the triggers it
/// matched.
///
/// ```
/// use std::sync::Arc;
/// use a3s_event::{Broker, CollectorSink, Event, Trigger, TriggerFilter};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let broker = Broker::new();
/// let sink = Arc::new(CollectorSink::new("orders"));
/// broker.add_trigger(Trigger::new("new-orders", TriggerFilter::by_type("order.created"), sink.clone())).await;
///
/// let event = Event::typed("events.orders.new", "orders", "order.created", 1, "", "shop", serde_json::json!({}));
/// let result = broker.route(&event).await;
/// assert_eq!((result.matched, result.delivered, result.failed), (1, 1, 0));
/// assert_eq!(sink.count().await, 1);
/// # }
/// ```
#[derive(Debug)]
pub struct Broker {
    triggers: RwLock<Vec<Arc<Trigger>>>,
    delivery_timeout: Duration,
}

impl Broker {
    /// A broker without triggers.
    pub fn new() -> Self {
        Self { triggers: RwLock::default(), delivery_timeout: DEFAULT_DELIVERY_TIMEOUT }
    }

    /// Sets how long a route waits for its sinks.
    #[must_use]
    pub fn with_delivery_timeout(mut self, timeout: Duration) -> Self {
        self.delivery_timeout = timeout;
        self
    }

    /// Adds a trigger, for events that are routed from now on.
    pub async fn add_trigger(&self, trigger: Trigger) {
        self.write().push(Arc::new(trigger));
    }

    /// Removes all triggers of this name; false when there was none.
    pub async fn remove_trigger(&self, name: &str) -> bool {
        let mut triggers = self.write();
        let count = triggers.len();
        triggers.retain(|trigger| trigger.name != name);
        triggers.len() < count
    }

    /// How many triggers there are.
    pub async fn trigger_count(&self) -> usize {
        self.read().len()
    }

    /// Delivers the event to the sinks of all triggers that match, and waits until each one has taken it, failed or used
    /// up the delivery timeout. A failure is logged and touches no other sink.
    ///
    /// A sink that used up its time is told to stop. Dropping the future stops all sinks that still run. In both cases
    /// the sink may have taken the event all the same. The deadline also holds against a sink that blocks its thread,
    /// provided that the runtime has another one.
    pub async fn route(&self, event: &Event) -> RouteResult {
        let matching = self.matching(event);
        let mut result = RouteResult { matched: matching.len(), delivered: 0, failed: 0 };
        if matching.is_empty() {
            return result;
        }

        // One deadline for the whole set, so that it bounds the wait even where a task cannot be stopped.
        let mut deadline = pin!(tokio::time::sleep(self.delivery_timeout));
        let event = Arc::new(event.clone());
        let mut deliveries = JoinSet::new();
        let mut running: HashMap<Id, Arc<Trigger>> = HashMap::with_capacity(matching.len());
        for trigger in matching {
            let sink = Arc::clone(&trigger.sink);
            let event = Arc::clone(&event);
            let delivery = async move { sink.deliver(&event).await };
            running.insert(deliveries.spawn(delivery.in_current_span()).id(), trigger);
        }

        while let Some(joined) = tokio::select! {
            biased;
            joined = deliveries.join_next_with_id() => joined,
            () = &mut deadline => None,
        } {
            let (id, outcome) = outcome_of(joined);
            let trigger = running.remove(&id);
            match outcome {
                Ok(()) => result.delivered += 1,
                Err(reason) => {
                    result.failed += 1;
                    log_failure(trigger.as_deref(), &event, &reason);
                }
            }
        }
        for trigger in running.values() {
            result.failed += 1;
            log_failure(Some(trigger), &event, "no answer within the delivery timeout");
        }
        // Dropping the set stops the tasks that are still running.
        result
    }

    fn matching(&self, event: &Event) -> Vec<Arc<Trigger>> {
        let wants = |trigger: &&Arc<Trigger>| trigger.filter.matches(event);
        self.read().iter().filter(wants).cloned().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Arc<Trigger>>> {
        self.triggers.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// No method panics half-way through a change, so that poison means nothing here.
    fn write(&self) -> RwLockWriteGuard<'_, Vec<Arc<Trigger>>> {
        self.triggers.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Broker {
    fn default() -> Self {
        Self::new()
    }
}

/// Which task ended, and why its delivery failed if it did.
fn outcome_of(
    joined: std::result::Result<(Id, Result<()>), JoinError>,
) -> (Id, std::result::Result<(), String>) {
    match joined {
        Ok((id, delivered)) => (id, delivered.map_err(|error| error.to_string())),
        Err(error) => (error.id(), Err(error.to_string())),
    }
}

fn log_failure(trigger: Option<&Trigger>, event: &Event, reason: &str) {
    tracing::warn!(
        trigger = trigger.map(|trigger| trigger.name.as_str()),
        sink = trigger.map(|trigger| trigger.sink.name()),
        id = event.id,
        subject = event.subject,
        reason,
        "event was not delivered to a sink"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::{CollectorSink, FailingSink, InProcessSink};
    use serde_json::json;
    use std::sync::mpsc;
    use tokio::time::Instant;

    fn event() -> Event {
        Event::typed("events.orders.eu.new", "orders", "order.created", 1, "", "shop", json!({}))
            .with_metadata("region", "eu")
    }

    /// Adds a trigger for all events.
    async fn add(broker: &Broker, name: &str, sink: Arc<impl EventSink + 'static>) {
        broker.add_trigger(Trigger::new(name, TriggerFilter::default(), sink)).await;
    }

    fn hanging_sink() -> Arc<InProcessSink> {
        Arc::new(InProcessSink::new("hanging", |_| std::future::pending()))
    }

    fn working_sink() -> Arc<CollectorSink> {
        Arc::new(CollectorSink::new("working"))
    }

    fn result(delivered: usize, failed: usize) -> RouteResult {
        RouteResult { matched: delivered + failed, delivered, failed }
    }

    #[test]
    fn all_criteria_that_are_set_must_hold() {
        let full = TriggerFilter {
            event_type: Some("order.created".into()),
            source: Some("shop".into()),
            subject_pattern: Some("events.*.eu.>".into()),
            attributes: vec![("region".into(), "eu".into())],
        };
        assert!(full.matches(&event()));
        assert!(TriggerFilter::default().matches(&event()));
        for filter in [
            TriggerFilter::by_type("order"),
            TriggerFilter::by_type(""),
            TriggerFilter::by_source("warehouse"),
            TriggerFilter::by_subject("events.orders.us.>"),
            TriggerFilter::by_subject("events.>.new"),
            TriggerFilter::default().with_attribute("region", "us"),
            TriggerFilter::default().with_attribute("zone", ""),
            full.with_attribute("region", "us"),
        ] {
            assert!(!filter.matches(&event()), "{filter:?}");
        }
    }

    #[tokio::test]
    async fn an_event_goes_to_the_sinks_of_matching_triggers_only() {
        let broker = Broker::new().with_delivery_timeout(Duration::MAX);
        let [wanted, other] = ["wanted", "other"].map(|name| Arc::new(CollectorSink::new(name)));
        for (event_type, sink) in [("order.created", &wanted), ("order.paid", &other)] {
            let filter = TriggerFilter::by_type(event_type);
            broker.add_trigger(Trigger::new("name", filter, sink.clone())).await;
        }
        assert_eq!(broker.route(&event()).await, result(1, 0));
        assert_eq!((wanted.count().await, other.count().await), (1, 0));
        assert_eq!(Broker::default().route(&event()).await, result(0, 0));
    }

    #[tokio::test]
    async fn triggers_are_removed_by_name_all_at_once() {
        let broker = Broker::new();
        let sink = Arc::new(CollectorSink::new("sink"));
        for name in ["a", "b", "a"] {
            add(&broker, name, sink.clone()).await;
        }
        assert_eq!(broker.trigger_count().await, 3);
        assert!(broker.remove_trigger("a").await);
        assert!(!broker.remove_trigger("a").await);
        assert_eq!(broker.trigger_count().await, 1);
        assert_eq!(broker.route(&event()).await, result(1, 0));
    }

    #[tokio::test]
    async fn a_sink_that_fails_or_panics_is_counted_and_harms_nobody() {
        let broker = Broker::new();
        let collector = working_sink();
        add(&broker, "fails", Arc::new(FailingSink::new("failing", "on purpose"))).await;
        add(&broker, "panics", Arc::new(InProcessSink::new("panicking", |_| async { panic!("on purpose") })))
            .await;
        add(&broker, "works", collector.clone()).await;
        assert_eq!(broker.route(&event()).await, result(1, 2));
        assert_eq!(broker.route(&event()).await, result(1, 2));
        assert_eq!(collector.count().await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn sinks_run_side_by_side() {
        let broker = Broker::new();
        for name in ["a", "b", "c"] {
            let sink = InProcessSink::new(name, |_| async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(())
            });
            add(&broker, name, Arc::new(sink)).await;
        }
        let begin = Instant::now();
        assert_eq!(broker.route(&event()).await, result(3, 0));
        assert_eq!(begin.elapsed().as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_over_the_deadline_counts_as_failed() {
        for (broker, seconds) in
            [(Broker::new(), 10), (Broker::new().with_delivery_timeout(Duration::from_secs(2)), 2)]
        {
            add(&broker, "hangs", hanging_sink()).await;
            add(&broker, "works", working_sink()).await;
            let begin = Instant::now();
            assert_eq!(broker.route(&event()).await, result(1, 1));
            assert_eq!(begin.elapsed().as_secs(), seconds);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_sink_that_blocks_its_thread_does_not_hold_the_route() {
        let (release, blocked) = mpsc::channel::<()>();
        let blocked = Arc::new(std::sync::Mutex::new(blocked));
        let sink = InProcessSink::new("blocking", move |_| {
            let blocked = Arc::clone(&blocked);
            async move {
                let _ = blocked.lock().unwrap().recv();
                Ok(())
            }
        });
        let broker = Arc::new(Broker::new().with_delivery_timeout(Duration::from_millis(20)));
        add(&broker, "blocks", Arc::new(sink)).await;
        let routed = tokio::spawn(async move { broker.route(&event()).await });
        assert_eq!(routed.await.unwrap(), result(0, 1));
        drop(release);
    }

    #[tokio::test(start_paused = true)]
    async fn triggers_change_while_a_delivery_runs() {
        let broker = Broker::new();
        add(&broker, "hangs", hanging_sink()).await;
        let begin = Instant::now();
        let change = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            add(&broker, "late", working_sink()).await;
            assert!(broker.remove_trigger("hangs").await);
            assert_eq!(broker.route(&event()).await, result(1, 0));
            begin.elapsed().as_secs()
        };
        let sample = event();
        let (first, changed_after) = tokio::join!(broker.route(&sample), change);
        assert_eq!((first, changed_after), (result(0, 1), 1));
    }

    #[tokio::test]
    async fn dropping_a_route_stops_its_sinks() {
        let alive = Arc::new(());
        let sink = InProcessSink::new("hanging", {
            let alive = Arc::clone(&alive);
            move |_| {
                let alive = Arc::clone(&alive);
                async move {
                    let _alive = alive;
                    std::future::pending().await
                }
            }
        });
        let idle = Arc::strong_count(&alive);
        let broker = Broker::new();
        add(&broker, "hangs", Arc::new(sink)).await;
        let routed = tokio::time::timeout(Duration::from_millis(10), broker.route(&event())).await;
        assert!(routed.is_err());
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&alive), idle);
    }
}
