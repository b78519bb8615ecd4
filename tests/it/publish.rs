//! Publishing through the bus: order of the checks, schema, metrics, spans, deadlines, routing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use a3s_event::provider::{PublishReceipt, PublishRequest};
use a3s_event::{
    Capabilities, ErrorKind, Event, EventBus, EventError, EventProvider, EventSchema, HistoryQuery,
    MemoryProvider, MemorySchemaRegistry, ProviderInfo, PublishOptions, Result, SchemaRegistry, Subscription,
    Support,
};
use async_trait::async_trait;
use serde_json::json;

use super::{bus, event};

#[tokio::test]
async fn publish_builds_the_subject_and_returns_the_stored_event() {
    let bus = bus();
    let stored =
        bus.publish("market", "forex.usd_cny", "moved", "reuters", json!({"rate": 7.35})).await.unwrap();
    assert_eq!(stored.subject, "events.market.forex.usd_cny");
    let listed = bus.list_events(Some("market"), 10).await.unwrap();
    assert_eq!(serde_json::to_value(&listed[0]).unwrap(), serde_json::to_value(&stored).unwrap());
}

#[tokio::test]
async fn bad_names_are_refused_before_anything_is_stored() {
    let bus = bus();
    for (category, topic, kind) in [
        ("market.forex", "x", "InvalidName"),
        ("", "x", "InvalidName"),
        ("*", ">", "InvalidSubject"),
        ("..", "x", "InvalidName"),
        ("market", "", "InvalidSubject"),
        ("market", "a b", "InvalidSubject"),
        ("market", "a\r\nPUB x 0", "InvalidSubject"),
        ("market", ">", "InvalidSubject"),
    ] {
        let error = bus.publish(category, topic, "", "", json!(1)).await.unwrap_err();
        assert!(format!("{error:?}").starts_with(kind), "{category:?} {topic:?}: {error:?}");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    for category in ["-", "~", "市场"] {
        bus.publish(category, "x", "", "", json!(1)).await.unwrap();
    }
    assert_eq!(bus.info().await.unwrap().messages, 3);
    assert_eq!(bus.metrics().snapshot().publish_count, 3);
}

#[tokio::test]
async fn counts_and_queries_read_what_was_published() {
    let bus = bus();
    for (category, topic) in [("market", "a"), ("market", "b"), ("system", "c")] {
        bus.publish(category, topic, "", "", json!(1)).await.unwrap();
    }
    let counts = bus.counts(100).await.unwrap();
    assert_eq!((counts.total, counts.categories["market"], counts.categories["system"]), (3, 2, 1));
    assert_eq!(bus.counts(2).await.unwrap().total, 2);
    let found = bus.query(&HistoryQuery::new(5).filter("events.market.>").before_sequence(2)).await.unwrap();
    assert_eq!(found.iter().map(|stored| stored.sequence).collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn a_payload_against_its_schema_is_counted_and_not_stored() {
    let registry = Arc::new(MemorySchemaRegistry::new());
    registry
        .register(EventSchema {
            event_type: "order".into(),
            version: 1,
            required_fields: vec!["total".into()],
            description: String::new(),
        })
        .unwrap();
    let bus = EventBus::with_schema_registry(MemoryProvider::default(), registry);
    let order = |payload| Event::typed("events.order.new", "order", "order", 1, "", "", payload);
    let error = bus.publish_event(&order(json!({"id": 1}))).await.unwrap_err();
    assert!(
        matches!(&error, EventError::SchemaValidation { reason, .. } if reason.contains("total")),
        "{error}"
    );
    bus.publish_event(&order(json!({"total": 1}))).await.unwrap();
    let counts = || {
        let metrics = bus.metrics().snapshot();
        (metrics.validation_errors, metrics.publish_errors, metrics.publish_count)
    };
    assert_eq!(counts(), (1, 0, 1), "it is no failure of the provider");
    assert_eq!(bus.info().await.unwrap().messages, 1);
    let mut outside = order(json!({"total": 3}));
    outside.subject = "elsewhere.order".to_owned();
    let batch = [order(json!({"id": 2})), outside, order(json!({"total": 4}))];
    let stored: Vec<_> = bus.publish_batch(&batch).await.iter().map(Result::is_ok).collect();
    assert_eq!(stored, [false, false, true]);
    assert_eq!(counts(), (2, 1, 2), "each counts once, in a batch too");
}

#[tokio::test]
async fn a_batch_reports_each_entry_where_it_stands() {
    let bus = bus();
    let events = [
        event("events.market.a", 1),
        event("elsewhere.b", 2),
        event("events.bad token", 3),
        event("events.market.c", 4),
    ];
    let results = bus.publish_batch(&events).await;
    let sequences: Vec<Option<u64>> =
        results.iter().map(|result| Some(result.as_ref().ok()?.sequence)).collect();
    assert_eq!(sequences, [Some(1), None, None, Some(2)]);
    let metrics = bus.metrics().snapshot();
    assert_eq!((metrics.publish_count, metrics.publish_errors), (2, 2));
    assert!(bus.publish_batch(&[]).await.is_empty());

    let options = PublishOptions { msg_id: Some("once".into()), ..PublishOptions::default() };
    let twice = [PublishRequest::new(&events[0], options.clone()), PublishRequest::new(&events[3], options)];
    let results = bus.publish_batch_with_options(&twice).await;
    assert_eq!(
        results.into_iter().map(Result::unwrap).collect::<Vec<_>>(),
        [PublishReceipt::stored(3), PublishReceipt::duplicate(3)]
    );
}

/// A provider that never answers.
struct Silent;

#[async_trait]
impl EventProvider for Silent {
    async fn publish(&self, _event: &Event) -> Result<u64> {
        std::future::pending().await
    }
    async fn subscribe_durable(&self, _name: &str, _filter: &str) -> Result<Box<dyn Subscription>> {
        std::future::pending().await
    }
    async fn subscribe(&self, _filter: &str) -> Result<Box<dyn Subscription>> {
        std::future::pending().await
    }
    async fn history(&self, _filter: Option<&str>, _limit: usize) -> Result<Vec<Event>> {
        std::future::pending().await
    }
    async fn unsubscribe(&self, _name: &str) -> Result<()> {
        std::future::pending().await
    }
    async fn info(&self) -> Result<ProviderInfo> {
        std::future::pending().await
    }
    fn name(&self) -> &str {
        "silent"
    }
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::unknown();
        capabilities.expected_sequence = Support::No;
        capabilities.durable = Support::No;
        capabilities
    }
}

#[tokio::test(start_paused = true)]
async fn no_call_outlives_its_deadline() {
    let bus = EventBus::new(Silent);
    let start = tokio::time::Instant::now();
    let options = PublishOptions { timeout_secs: Some(2), ..PublishOptions::default() };
    let error = bus.publish_event_with_options(&event("events.a.b", 1), &options).await.unwrap_err();
    assert_eq!(start.elapsed().as_secs(), 2);
    assert!(error.kind() == ErrorKind::Timeout && error.may_be_stored() && error.is_retryable(), "{error}");

    let error = bus.list_events(None, 1).await.unwrap_err();
    assert_eq!((error.kind(), start.elapsed().as_secs()), (ErrorKind::Timeout, 32));
    assert!(!bus.health().await.unwrap());
    let batch = bus.publish_batch(&[event("events.a.b", 1)]).await;
    assert!(batch[0].as_ref().unwrap_err().may_be_stored());
}

#[tokio::test(start_paused = true)]
async fn what_the_provider_declares_absent_is_refused_before_any_io() {
    let bus = EventBus::new(Silent);
    let start = tokio::time::Instant::now();
    let options = PublishOptions { expected_sequence: Some(1), ..PublishOptions::default() };
    let error = bus.publish_event_with_options(&event("events.a.b", 1), &options).await.unwrap_err();
    assert!(
        matches!(&error, EventError::Unsupported { option, provider } if option == "expected_sequence" && provider == "silent")
    );
    let durable = a3s_event::SubscriptionFilter {
        subscriber_id: "s".into(),
        subjects: vec!["events.a.>".into()],
        durable: true,
        options: None,
    };
    assert_eq!(bus.update_subscription(durable).await.unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(start.elapsed().is_zero());
}

/// A memory provider that takes a while and looks at the span it is called under.
struct Slow {
    inner: MemoryProvider,
    spans: Arc<Mutex<Vec<String>>>,
}

impl Slow {
    fn note_span(&self) {
        let name = tracing::Span::current().metadata().map(|metadata| metadata.name().to_owned());
        self.spans.lock().unwrap().push(name.unwrap_or_default());
    }
}

#[async_trait]
impl EventProvider for Slow {
    async fn publish(&self, event: &Event) -> Result<u64> {
        self.note_span();
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.note_span();
        self.inner.publish(event).await
    }
    async fn subscribe_durable(&self, name: &str, filter: &str) -> Result<Box<dyn Subscription>> {
        self.inner.subscribe_durable(name, filter).await
    }
    async fn subscribe(&self, filter: &str) -> Result<Box<dyn Subscription>> {
        self.inner.subscribe(filter).await
    }
    async fn history(&self, filter: Option<&str>, limit: usize) -> Result<Vec<Event>> {
        self.inner.history(filter, limit).await
    }
    async fn unsubscribe(&self, name: &str) -> Result<()> {
        self.inner.unsubscribe(name).await
    }
    async fn info(&self) -> Result<ProviderInfo> {
        self.inner.info().await
    }
    fn name(&self) -> &str {
        "slow"
    }
}

/// A subscriber that enables every span and counts warnings.
#[derive(Default)]
struct Recorder {
    spans: Mutex<Vec<&'static tracing::Metadata<'static>>>,
    current: Mutex<Vec<u64>>,
    warnings: Arc<AtomicUsize>,
}

impl tracing::Subscriber for Recorder {
    fn enabled(&self, _metadata: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, attributes: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let mut spans = self.spans.lock().unwrap();
        spans.push(attributes.metadata());
        tracing::span::Id::from_u64(spans.len() as u64)
    }
    fn record(&self, _span: &tracing::span::Id, _values: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _span: &tracing::span::Id, _follows: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        if *event.metadata().level() == tracing::Level::WARN {
            self.warnings.fetch_add(1, Ordering::SeqCst);
        }
    }
    fn enter(&self, span: &tracing::span::Id) {
        self.current.lock().unwrap().push(span.into_u64());
    }
    fn exit(&self, _span: &tracing::span::Id) {
        self.current.lock().unwrap().pop();
    }
    fn current_span(&self) -> tracing_core::span::Current {
        let spans = self.spans.lock().unwrap();
        match self.current.lock().unwrap().last() {
            Some(id) => tracing_core::span::Current::new(
                tracing::span::Id::from_u64(*id),
                spans[usize::try_from(*id).unwrap() - 1],
            ),
            None => tracing_core::span::Current::none(),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_span_covers_the_awaited_work() {
    let _recorded = crate::traced::traced(Recorder::default());
    let spans = Arc::default();
    let bus = EventBus::new(Slow { inner: MemoryProvider::default(), spans: Arc::clone(&spans) });
    bus.publish_event(&event("events.a.b", 1)).await.unwrap();
    assert_eq!(*spans.lock().unwrap(), ["publish", "publish"], "before and after the wait");
}

#[tokio::test(start_paused = true)]
async fn options_of_unknown_effect_are_passed_with_one_warning() {
    let recorder = Recorder::default();
    let warnings = Arc::clone(&recorder.warnings);
    let _recorded = crate::traced::traced(recorder);
    let bus = EventBus::new(Slow { inner: MemoryProvider::default(), spans: Arc::default() });
    let options = PublishOptions { msg_id: Some("m".into()), ..PublishOptions::default() };
    for _ in 0..3 {
        bus.publish_event_with_options(&event("events.a.b", 1), &options).await.unwrap();
    }
    assert_eq!(warnings.load(Ordering::SeqCst), 1);
}

#[cfg(feature = "routing")]
#[tokio::test]
async fn a_broker_has_delivered_when_publish_returns() {
    use a3s_event::{Broker, CollectorSink, Trigger, TriggerFilter};

    let sink = Arc::new(CollectorSink::new("collector"));
    let broker = Arc::new(Broker::new());
    broker
        .add_trigger(Trigger::new("market", TriggerFilter::by_subject("events.market.>"), sink.clone()))
        .await;
    let bus = EventBus::builder(MemoryProvider::default()).broker(broker).build().unwrap();
    bus.publish("market", "a", "", "", json!(1)).await.unwrap();
    assert_eq!(sink.count().await, 1);
    bus.publish("system", "a", "", "", json!(1)).await.unwrap();
    for result in bus.publish_batch(&[event("events.market.a", 1), event("events.market.b", 2)]).await {
        result.unwrap();
    }
    assert_eq!(sink.count().await, 3);
}
