//! Every public path, literal and signature that users of earlier versions compile against.

#![allow(unused_imports, clippy::unwrap_used, reason = "the imports are the test")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use a3s_event::bus::EventBusBuilder;
use a3s_event::crypto::{EncryptedPayload, EventEncryptor};
use a3s_event::dlq::{DeadLetterEvent, DlqHandler, MemoryDlqHandler, SinkDlqHandler, should_dead_letter};
use a3s_event::error::{EncryptionFailure, EventError, Result};
use a3s_event::metrics::{
    BusMetrics, BusMetricsSnapshot, ConsumerMetrics, ConsumerMetricsSnapshot, EventMetrics, LatencyBucket,
    LatencyHistogram, LatencySnapshot, MetricsSnapshot, PROMETHEUS_CONTENT_TYPE, Processing,
};
use a3s_event::provider::memory::{MemoryConfig, MemoryProvider};
use a3s_event::provider::{EventProvider, PendingEvent, ProviderInfo, Subscription};
use a3s_event::scaling::{INSTANCE_HEALTH, INSTANCE_READY, INSTANCE_STOPPED, SCALE_DOWN, SCALE_UP};
use a3s_event::schema::{Compatibility, EventSchema, MemorySchemaRegistry, SchemaRegistry, SchemaRules};
use a3s_event::sink::{CollectorSink, EventSink, FailingSink, InProcessSink, LogSink, TopicSink};
#[cfg(feature = "webhook")]
use a3s_event::source::webhook::{
    DEFAULT_MAX_BODY, DEFAULT_TOLERANCE, ORIGINAL_SUBJECT, WEBHOOK_ID, WebhookReceiver,
    WebhookReceiverBuilder,
};
use a3s_event::source::{
    CronSource, Direction, EventSource, MetricsSource, SourceHandle, SourceRunner, SourceState, SourceStatus,
    ThresholdAlert, ThresholdSource, WebhookSource,
};
#[cfg(feature = "cron")]
use a3s_event::source::{MissedTickBehavior, Schedule, Tick};
use a3s_event::state::{FileStateStore, InvalidSubscription, MemoryStateStore, StateStore};
use a3s_event::store::EventBus;
use a3s_event::subject::subject_matches;
use a3s_event::trace::{TRACEPARENT, TRACESTATE, TraceContext, process_span, record_error, semconv};
use a3s_event::types::{
    DeliverPolicy, Event, EventCounts, PublishOptions, ReceivedEvent, SubscribeOptions, SubscriptionFilter,
};
use async_trait::async_trait;

#[rustfmt::skip]
mod runtime {
    pub(crate) use a3s_event::bus::consumer::ConsumerHandle as _;
    pub(crate) use a3s_event::consumer::layers::{
        IdempotencyStore, MemoryIdempotencyStore, ProviderIdempotencyStore, concurrency_limit, idempotent, timeout, traced, typed,
    };
    pub(crate) use a3s_event::consumer::{
        Backoff, ConsumerBuilder, ConsumerHandle, ConsumerState, ConsumerStats, Handler, HandlerError, HandlerResult,
        RetryPolicy,
    };
    pub(crate) use a3s_event::dlq::{
        DeadLetter, FailureClass, DeadLetterFilter, DeadLetterStatus, ProviderDlqHandler, REPLAYS_KEY, Replay, ReplayError, ReplayReport,
        StoredDeadLetter,
    };
    pub(crate) use a3s_event::provider::UndecodableRecord;
    pub(crate) use a3s_event::provider::support::{
        CLOCK_TOLERANCE_MS, answered_without_storing, shorten, stand_in, unix_millis,
        unsupported, without_values,
    };
    pub(crate) use a3s_event::provider::group::{ConsumerSnapshot, Lease, PendingState, StaleLease, Time};
    pub(crate) use a3s_event::{DeadLetter as _, FailureClass as _, ProviderDlqHandler as _};
}

#[cfg(feature = "routing")]
#[rustfmt::skip]
mod routing {
    pub(crate) use a3s_event::broker::{
        BrokerHandle, DeliverySettings, EventFilter, HOP_LIMIT_REASON, HOPS_KEY, TriggerSpec, TriggerStats,
    };
    pub(crate) use a3s_event::sink::{DeliveryKey, PayloadForm, SinkFailure};
    #[cfg(feature = "http")]
    pub(crate) use a3s_event::sink::{HttpSink, HttpSinkBuilder};

    #[allow(dead_code, reason = "compiled, not run")]
    fn literals(sink: std::sync::Arc<dyn a3s_event::EventSink>) -> (a3s_event::Trigger, a3s_event::RouteResult) {
        let filter = a3s_event::TriggerFilter { event_type: None, source: None, subject_pattern: None, attributes: vec![] };
        let trigger = a3s_event::Trigger { name: String::new(), filter, sink };
        (trigger, a3s_event::RouteResult { matched: 1, delivered: 1, failed: 0 })
    }
}

#[rustfmt::skip]
mod root {
    pub(crate) use a3s_event::{
        CollectorSink, Compatibility, CronSource, DeadLetterEvent, DeliverPolicy, DlqHandler, EncryptedPayload, Event, EventBus,
        EventCounts, EventEncryptor, EventError, EventMetrics, EventProvider, EventSchema, EventSink, EventSource, FailingSink,
        FileStateStore, InProcessSink, InstanceHealthPayload, InstanceReadyPayload, InstanceStoppedPayload, LogSink,
        MemoryConfig, MemoryDlqHandler, MemoryProvider, MemorySchemaRegistry, MemoryStateStore, MetricsSnapshot, PendingEvent,
        ProviderInfo, PublishOptions, ReceivedEvent, Result, ScaleDownPayload, ScaleUpPayload, ScalingEvent, SchemaRegistry,
        SinkDlqHandler, StateStore, SubscribeOptions, Subscription, SubscriptionFilter, TopicSink,
    };
    #[cfg(feature = "encryption")]
    pub(crate) use a3s_event::{crypto, Aes256GcmEncryptor, EncryptionKey, KeyState};
    #[cfg(feature = "cloudevents")]
    pub(crate) use a3s_event::{cloudevents, CloudEvent};
    #[cfg(feature = "json-schema")]
    pub(crate) use a3s_event::{schema, JsonSchemaRegistry};
    #[cfg(feature = "routing")]
    pub(crate) use a3s_event::{broker, Broker, RouteResult, Trigger, TriggerFilter};
}

/// A provider as version 0.2.0 had them: `build_subject` and `category_subject` are required, the rest is unknown.
struct Of020;

/// A provider as version 0.3.0 had them: `subject_prefix` is required.
struct Of030;

macro_rules! old_provider {
    ($provider:ident { $($own:tt)* }) => {
        #[async_trait]
        impl EventProvider for $provider {
            async fn publish(&self, _event: &Event) -> Result<u64> {
                Ok(1)
            }
            async fn subscribe_durable(&self, _name: &str, _filter: &str) -> Result<Box<dyn Subscription>> {
                Ok(Box::new(Ended))
            }
            async fn subscribe(&self, _filter: &str) -> Result<Box<dyn Subscription>> {
                Ok(Box::new(Ended))
            }
            async fn history(&self, _filter: Option<&str>, _limit: usize) -> Result<Vec<Event>> {
                Ok(Vec::new())
            }
            async fn unsubscribe(&self, _name: &str) -> Result<()> {
                Ok(())
            }
            async fn info(&self) -> Result<ProviderInfo> {
                Ok(ProviderInfo { provider: "old".to_owned(), messages: 0, bytes: 0, consumers: 0 })
            }
            fn name(&self) -> &str {
                "old"
            }
            $($own)*
        }
    };
}

old_provider!(Of020 {
    fn build_subject(&self, category: &str, topic: &str) -> String {
        format!("orders.{category}.{topic}")
    }
    fn category_subject(&self, category: &str) -> String {
        format!("orders.{category}.>")
    }
});

old_provider!(Of030 {
    fn subject_prefix(&self) -> &str {
        "orders"
    }
});

/// A subscription with the two methods that earlier versions had.
struct Ended;

#[async_trait]
impl Subscription for Ended {
    async fn next(&mut self) -> Result<Option<ReceivedEvent>> {
        Ok(None)
    }
    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>> {
        Ok(None)
    }
}

#[tokio::test]
async fn providers_of_both_generations_work() {
    for bus in [EventBus::new(Of020), EventBus::new(Of030)] {
        let event = bus.publish("a", "b", "", "", serde_json::json!(1)).await.unwrap();
        assert_eq!(event.subject, "orders.a.b");
        assert_eq!(bus.provider().category_subject("a"), "orders.a.>");
        let options = PublishOptions { msg_id: Some("m".into()), ..PublishOptions::default() };
        assert_eq!(bus.publish_event_with_options(&event, &options).await.unwrap(), 1);
        let batch = bus.publish_batch(&[event.clone(), event]).await;
        assert!(batch.into_iter().all(|result| result.unwrap().sequence == 1));
        let mut subscription = bus.provider().subscribe("orders.>").await.unwrap();
        assert!(subscription.next_delivery().await.unwrap().is_none());
        assert!(subscription.next_batch(5, Duration::from_secs(1)).await.is_none());
        assert!(bus.health().await.unwrap());
        assert!(bus.query(&a3s_event::HistoryQuery::new(1)).await.is_err());
        bus.close().await.unwrap();
    }
}

#[test]
fn frozen_structs_are_literals() {
    let event = Event {
        id: String::new(),
        subject: String::new(),
        category: String::new(),
        event_type: String::new(),
        version: 1,
        payload: serde_json::Value::Null,
        summary: String::new(),
        source: String::new(),
        timestamp: 0,
        metadata: HashMap::new(),
    };
    let received = ReceivedEvent { event, sequence: 1, num_delivered: 1, stream: String::new() };
    let _ = DeadLetterEvent {
        event: received.clone(),
        reason: String::new(),
        dead_lettered_at: 0,
        original_subject: None,
        delivery_attempts: None,
        first_failure_at: None,
    };
    let _ = SubscriptionFilter {
        subscriber_id: String::new(),
        subjects: Vec::new(),
        durable: true,
        options: Some(SubscribeOptions {
            max_deliver: None,
            backoff_secs: Vec::new(),
            max_ack_pending: None,
            deliver_policy: DeliverPolicy::All,
            ack_wait_secs: None,
        }),
    };
    let _ = PublishOptions { msg_id: None, expected_sequence: None, timeout_secs: None };
    let _ = MemoryConfig { subject_prefix: String::new(), max_events: 0, channel_capacity: 0 };
    let _ = ProviderInfo { provider: String::new(), messages: 0, bytes: 0, consumers: 0 };
    let _ = EventCounts { categories: HashMap::new(), total: 0 };
    let _ = EventSchema {
        event_type: String::new(),
        version: 1,
        required_fields: Vec::new(),
        description: String::new(),
    };
    let _ = EventMetrics {
        publish_count: AtomicU64::new(0),
        publish_errors: AtomicU64::new(0),
        subscribe_count: AtomicU64::new(0),
        unsubscribe_count: AtomicU64::new(0),
        dlq_count: AtomicU64::new(0),
        validation_errors: AtomicU64::new(0),
        encrypt_count: AtomicU64::new(0),
        decrypt_count: AtomicU64::new(0),
        publish_latency_us: AtomicU64::new(0),
        publish_max_latency_us: AtomicU64::new(0),
    };
    #[cfg(feature = "routing")]
    let _ =
        root::TriggerFilter { event_type: None, source: None, subject_pattern: None, attributes: Vec::new() };
    let pending = PendingEvent::new(
        received,
        || Box::pin(async { Ok(()) }) as std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send>>,
        || Box::pin(async { Ok(()) }),
    );
    let _moved_out: ReceivedEvent = pending.received;
}

#[test]
fn public_types_cross_threads() {
    fn crosses<T: Send + Sync>() {}
    crosses::<EventBus>();
    crosses::<EventBusBuilder>();
    crosses::<Box<dyn Subscription>>();
    crosses::<Arc<dyn EventProvider>>();
    crosses::<PendingEvent>();
    crosses::<a3s_event::Delivery>();
    crosses::<EventError>();
    crosses::<EventMetrics>();
    crosses::<MemoryProvider>();
    crosses::<a3s_event::ProviderRegistry>();
    #[cfg(feature = "routing")]
    crosses::<root::Broker>();
    #[cfg(feature = "encryption")]
    crosses::<root::Aes256GcmEncryptor>();
}

/// The methods of the bus with the types that callers spell out.
#[allow(dead_code, clippy::unused_async, reason = "compiled, not run")]
async fn bus_signatures(mut bus: EventBus, event: &Event) -> Result<()> {
    bus.set_dlq_handler(Arc::new(MemoryDlqHandler::new(10)) as Arc<dyn DlqHandler>);
    bus.set_state_store(Arc::new(MemoryStateStore::default()) as Arc<dyn StateStore>)?;
    bus.set_schema_registry(Arc::new(MemorySchemaRegistry::new()) as Arc<dyn SchemaRegistry>);
    let _: Option<&dyn StateStore> = bus.state_store();
    let _: Option<&dyn EventEncryptor> = bus.encryptor();
    let _: Option<&dyn DlqHandler> = bus.dlq_handler();
    let _: Option<&dyn SchemaRegistry> = bus.schema_registry();
    let _: &EventMetrics = bus.metrics();
    let _: &BusMetrics = bus.telemetry();
    bus.observe_lag().await?;
    let _: &str = bus.provider_name();
    let _: &dyn EventProvider = bus.provider();
    let _: Arc<dyn EventProvider> = bus.provider_arc();
    let _: Event = bus.publish("c", "t", "summary", "source", serde_json::Value::Null).await?;
    let _: u64 = bus.publish_event(event).await?;
    let _: u64 = bus.publish_event_with_options(event, &PublishOptions::default()).await?;
    let _: Vec<Event> = bus.list_events(Some("c"), 1).await?;
    let _: EventCounts = bus.counts(1).await?;
    let _: Vec<Box<dyn Subscription>> = bus.create_subscriber("s").await?;
    bus.remove_subscription("s").await?;
    let _: Vec<SubscriptionFilter> = bus.list_subscriptions().await;
    let _: Option<SubscriptionFilter> = bus.get_subscription("s").await;
    let _: ProviderInfo = bus.info().await?;
    let _: bool = bus.health().await?;
    let _ = EventBus::with_schema_registry(MemoryProvider::default(), Arc::new(MemorySchemaRegistry::new()));
    let _ = EventBus::from_provider(Arc::new(MemoryProvider::default()));
    Ok(())
}

#[tokio::test]
async fn a_delivery_is_acked_and_kept() {
    let provider = MemoryProvider::default();
    provider.publish(&Event::new("events.a", "a", "", "", serde_json::json!(1))).await.unwrap();
    let mut subscription = provider.subscribe_durable("worker", "events.>").await.unwrap();
    let delivery = subscription.next_delivery().await.unwrap().unwrap();
    let received: ReceivedEvent = delivery.ack_into_received().await.unwrap();
    assert_eq!(received.sequence, 1);
    assert_eq!(provider.consumers().await.unwrap()[0].pending, 0);
}

#[test]
fn what_a_provider_stores_of_a_consumer_has_constructors() {
    let lease = runtime::Lease::new(7, 2);
    assert_eq!((lease.sequence, lease.attempt), (7, 2));
    let pending = runtime::PendingState::new(7, 2, true, runtime::Time::ZERO);
    assert_eq!((pending.sequence, pending.attempt, pending.leased), (7, 2, true));
    let config = a3s_event::provider::group::ConsumerConfig::new("events.>", &SubscribeOptions::default());
    let snapshot = runtime::ConsumerSnapshot::new(config.unwrap(), 7);
    assert_eq!((snapshot.cursor, snapshot.pending.len()), (7, 0));
}

#[test]
fn small_facts_hold() {
    assert!(subject_matches("events.a.b", "events.*.b"));
    assert_eq!(SCALE_UP, "a3s.gateway.scale.up");
    assert_eq!(SCALE_DOWN, "a3s.gateway.scale.down");
    assert_eq!(INSTANCE_READY, "a3s.box.instance.ready");
    assert_eq!(INSTANCE_STOPPED, "a3s.box.instance.stopped");
    assert_eq!(INSTANCE_HEALTH, "a3s.box.instance.health");
    let metrics = EventMetrics::new();
    metrics.record_publish(Instant::now());
    let _: MetricsSnapshot = metrics.snapshot();
}

#[cfg(feature = "cloudevents")]
mod cloudevents {
    use std::collections::HashMap;

    use a3s_event::cloudevents::{
        AcceptedFormats, BoundMessage, CloudEvent, DATA_BASE64, DEFAULT_DATA_CONTENT_TYPE,
        MAX_ATTRIBUTE_NAME_LEN, MAX_BATCH_EVENTS, SPEC_VERSION, from_json_batch, http, kafka, nats,
        to_json_batch,
    };
    use a3s_event::{Event, EventError, Result};
    use serde_json::{Value, json};

    #[test]
    fn a_cloud_event_is_a_literal_and_converts() {
        assert_eq!((SPEC_VERSION, DEFAULT_DATA_CONTENT_TYPE), ("1.0", "application/json"));
        let literal = CloudEvent {
            specversion: SPEC_VERSION.to_owned(),
            id: "1".to_owned(),
            source: "/s".to_owned(),
            event_type: "t".to_owned(),
            datacontenttype: Some(DEFAULT_DATA_CONTENT_TYPE.to_owned()),
            dataschema: None,
            subject: Some("about".to_owned()),
            time: Some("2026-02-03T10:11:12Z".to_owned()),
            data: Some(json!(1)),
            extensions: HashMap::from([("ext".to_owned(), Value::from("v"))]),
        };
        let built = CloudEvent::new("1", "/s", "t")
            .with_data(json!(1))
            .with_subject("about")
            .with_time("2026-02-03T10:11:12Z")
            .with_extension("ext", "v");
        assert_eq!(literal, built);
        let event: std::result::Result<Event, EventError> = built.try_into();
        let _: CloudEvent = event.unwrap().into();
    }

    /// Compiled, not run: the signatures are the test.
    #[allow(dead_code, reason = "the types are the test")]
    fn signatures(event: &CloudEvent) -> Result<()> {
        let _: Vec<u8> = event.to_json()?;
        let _: CloudEvent = CloudEvent::from_json(b"")?;
        let _: CloudEvent = CloudEvent::from_json_accepting(b"", AcceptedFormats::KnownDivergences)?;
        let _: Option<Vec<u8>> = event.binary_data()?;
        event.validate()?;
        let _: Vec<CloudEvent> = from_json_batch(&to_json_batch(&[])?, AcceptedFormats::Conformant)?;
        let message: BoundMessage = http::to_binary(event)?;
        let _: (Vec<(String, String)>, Option<Vec<u8>>) = (message.headers, message.body);
        let _: BoundMessage = http::to_structured(event)?;
        let _: BoundMessage = http::to_batch(&[])?;
        let headers = || [("ce-id", "1")];
        let _: CloudEvent = http::from_message(headers(), b"", AcceptedFormats::Conformant)?;
        let _: Vec<CloudEvent> = http::from_batch(headers(), b"", AcceptedFormats::Conformant)?;
        let _: http::ContentMode = http::mode(None);
        let _: u16 = http::status(&EventError::Config(String::new()));
        let (_, _): (BoundMessage, BoundMessage) = (nats::to_binary(event)?, nats::to_structured(event)?);
        let _: CloudEvent = nats::from_message(headers(), b"", AcceptedFormats::Conformant)?;
        let (_, _): (BoundMessage, BoundMessage) = (kafka::to_binary(event)?, kafka::to_structured(event)?);
        let _: CloudEvent = kafka::from_record(headers(), None, AcceptedFormats::Conformant)?;
        let _: Option<&str> = kafka::key(event);
        let _: (&str, usize, usize) = (DATA_BASE64, MAX_ATTRIBUTE_NAME_LEN, MAX_BATCH_EVENTS);
        Ok(())
    }
}

#[cfg(feature = "nats")]
mod nats {
    use a3s_event::provider::EventProvider;
    use a3s_event::provider::nats::{
        EventFormat, NatsClient, NatsConfig, NatsProvider, NatsSubscription, StorageType, StreamInfo,
    };
    use a3s_event::{Event, PublishOptions, Result, SubscribeOptions};

    #[test]
    fn the_config_is_a_literal() {
        let config = NatsConfig {
            url: String::new(),
            token: None,
            credentials_path: None,
            stream_name: String::new(),
            subject_prefix: "events".to_owned(),
            storage: StorageType::File,
            max_events: 0,
            max_age_secs: 0,
            max_bytes: 0,
            connect_timeout_secs: 5,
            request_timeout_secs: 10,
        };
        assert_eq!(config.stream_subjects(), ["events.>"]);
        assert_eq!(config.build_subject("a", "b.*"), "events.a.b.*");
        assert_eq!(config.category_subject("a"), "events.a.>");
    }

    /// Compiled, not run: the signatures are the test.
    #[allow(dead_code, reason = "it needs a server")]
    async fn signatures(event: &Event) -> Result<()> {
        let provider: NatsProvider = NatsProvider::connect(NatsConfig::default()).await?;
        let client: &NatsClient = provider.client();
        let _: u64 = client.publish(event).await?;
        let _: u64 = client.publish_with_options(event, &PublishOptions::default()).await?;
        let options = SubscribeOptions::default();
        let _: NatsSubscription = client.subscribe_durable_with_options("n", "events.>", &options).await?;
        let _: NatsSubscription = client.subscribe_with_options("events.>", &options).await?;
        let _: NatsSubscription = client.subscribe_durable("n", "events.>").await?;
        let _: NatsSubscription = client.subscribe("events.>").await?;
        let _: Vec<Event> = client.history(None, 1).await?;
        client.unsubscribe("n").await?;
        let StreamInfo { messages, bytes, first_sequence, last_sequence, consumer_count } =
            client.stream_info().await?;
        let _: (u64, u64, u64, u64, usize) = (messages, bytes, first_sequence, last_sequence, consumer_count);
        let _ = (client.nats_client(), client.jetstream_context());
        let _: &NatsConfig = NatsClient::connect(NatsConfig::default()).await?.config();
        assert_eq!(provider.name(), "nats");
        Ok(())
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use std::time::Duration;

    use a3s_event::Result;
    use a3s_event::provider::sqlite::{
        DEFAULT_BUSY_TIMEOUT, DEFAULT_DEDUP_WINDOW, FileInfo, SqliteConfig, SqliteProvider, Synchronous,
    };

    #[tokio::test]
    async fn every_setting_has_its_builder_and_every_operation_its_name() -> Result<()> {
        let config: SqliteConfig = SqliteConfig::in_memory()
            .subject_prefix("events")
            .stream_name("sqlite")
            .max_events(0)
            .max_bytes(0)
            .max_age(Duration::ZERO)
            .max_event_bytes(1_024)
            .dedup_window(DEFAULT_DEDUP_WINDOW)
            .synchronous(Synchronous::Normal)
            .busy_timeout(DEFAULT_BUSY_TIMEOUT)
            .commit_max_events(1_000)
            .commit_max_bytes(4_096)
            .commit_delay(Duration::from_millis(1))
            .cache_size(1_048_576);
        let provider: SqliteProvider = SqliteProvider::connect(config.clone()).await?;
        assert_eq!(provider.config(), &config);
        let _: Vec<String> = provider.integrity_check().await?;
        let FileInfo { file_bytes, wal_bytes, free_bytes, .. } = provider.file_info().await?;
        assert_eq!((file_bytes, wal_bytes, free_bytes), (0, 0, 0));
        provider.checkpoint().await?;
        assert!(provider.backup("never made").await.is_err(), "there is no file to copy");
        Ok(())
    }
}
