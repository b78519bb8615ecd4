//! Schemas and encryption on every provider with the same body, and what bad input ends in.

#![cfg(all(feature = "encryption", feature = "json-schema"))]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use a3s_event::dlq::DeadLetterFilter;
use a3s_event::{
    Aes256GcmEncryptor, DlqHandler, EncryptionFailure, ErrorKind, Event, EventBus, EventEncryptor,
    EventError, EventProvider, EventSchema, FailureClass, FileStateStore, HistoryQuery, JsonSchemaRegistry,
    MemoryDlqHandler, MemoryProvider, MemorySchemaRegistry, ProviderDlqHandler, ProviderRegistry,
    SchemaRegistry, StateStore, SubscribeOptions, SubscriptionFilter,
};
use serde_json::{Value, json};

use super::{eventually, next};

fn schemas() -> Arc<JsonSchemaRegistry> {
    let registry = JsonSchemaRegistry::new();
    let schema = json!({"type": "object", "required": ["card"], "properties": {"card": {"type": "string"}}});
    registry.register_json("pay.card", 1, schema).unwrap();
    Arc::new(registry)
}

fn payment(payload: Value) -> Event {
    Event::typed("events.pay.card", "pay", "pay.card", 1, "", "it", payload)
}

/// What a program with schemas and encryption has, over a stream to which others publish too.
async fn the_whole_path(provider: Arc<dyn EventProvider>) {
    let dlq = Arc::new(MemoryDlqHandler::default());
    let encryptor = Arc::new(Aes256GcmEncryptor::new("k1", &[7; 32]));
    let mut bus = EventBus::from_provider(Arc::clone(&provider));
    bus.set_schema_registry(schemas());
    bus.set_validate_on_consume(true);
    bus.set_encryptor(encryptor.clone());
    bus.set_dlq_handler(dlq.clone());
    bus.update_subscription(SubscriptionFilter {
        subscriber_id: "worker".to_owned(),
        subjects: vec!["events.pay.>".to_owned()],
        durable: true,
        options: Some(SubscribeOptions { max_deliver: Some(3), ..SubscribeOptions::default() }),
    })
    .await
    .unwrap();
    let mut subscription = bus.create_subscriber("worker").await.unwrap().remove(0);

    // The publisher is told, and nothing is stored.
    let error = bus.publish_event(&payment(json!({"card": 4111}))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert_eq!(provider.info().await.unwrap().messages, 0);

    let good = payment(json!({"card": "4111"}));
    bus.publish_event(&good).await.unwrap();
    let others = [
        payment(json!({"card": 4111})),
        Event { payload: provider.history(None, 1).await.unwrap().remove(0).payload, ..payment(json!(null)) },
        Event { payload: encryptor.encrypt(&json!({"card": null})).unwrap(), ..payment(json!(null)) },
        Event { payload: json!({"card": "4242", "encrypted": true}), ..payment(json!(null)) },
    ];
    for event in &others {
        provider.publish(event).await.unwrap();
    }

    let delivery = next(&mut subscription).await;
    assert_eq!((&delivery.event().id, &delivery.event().payload), (&good.id, &good.payload));
    delivery.ack().await.unwrap();
    for expected in ["Schema validation failed", "'k1'", "Schema validation failed"] {
        let error = tokio::time::timeout(Duration::from_secs(20), subscription.next_delivery()).await;
        let error = error.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Undecodable);
        let text = error.to_string();
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains("4111"), "{text}");
    }
    let delivery = next(&mut subscription).await;
    assert_eq!(delivery.event().payload, others[3].payload);
    delivery.ack().await.unwrap();

    let dead = dlq.list(10).await.unwrap();
    let ids: Vec<&str> = dead.iter().rev().map(|letter| letter.event.event.id.as_str()).collect();
    assert_eq!(ids, others[..3].iter().map(|event| event.id.as_str()).collect::<Vec<_>>());
    let letter = &dead[2].event.event;
    assert_eq!((&letter.subject, &letter.payload), (&others[0].subject, &others[0].payload));
    let metrics = bus.metrics().snapshot();
    assert_eq!((metrics.dlq_count, metrics.validation_errors), (3, 3));

    // History is in clear where it can be.
    assert_eq!(bus.query(&HistoryQuery::new(5)).await.unwrap()[4].event.payload, good.payload);
    // A replay of a dead letter opens: same id, same subject.
    bus.publish_event(&good).await.unwrap();
    let sealed = provider.history(None, 1).await.unwrap().remove(0);
    provider.publish(&sealed).await.unwrap();
    for _ in 0..2 {
        let delivery = next(&mut subscription).await;
        assert_eq!(delivery.event().payload, good.payload);
        delivery.ack().await.unwrap();
    }
}

#[tokio::test]
async fn the_whole_path_on_memory() {
    the_whole_path(Arc::new(MemoryProvider::default())).await;
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn the_whole_path_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("events.db").display());
    the_whole_path(ProviderRegistry::builtin().connect(&url).await.unwrap()).await;
}

#[cfg(feature = "nats")]
#[tokio::test]
async fn the_whole_path_on_nats() {
    let server = a3s_event_testkit::NatsServer::start().await;
    the_whole_path(ProviderRegistry::builtin().connect(&server.url()).await.unwrap()).await;
}

/// A bus without the key says so. It judges no envelope as if that were the payload.
#[tokio::test]
async fn an_envelope_without_its_key_is_undecryptable_and_not_invalid() {
    let provider: Arc<dyn EventProvider> = Arc::new(MemoryProvider::default());
    let mut sender = EventBus::from_provider(Arc::clone(&provider));
    sender.set_encryptor(Arc::new(Aes256GcmEncryptor::new("k1", &[7; 32])));
    let sent = payment(json!({"card": "4111"}));
    sender.publish_event(&sent).await.unwrap();
    let sealed = provider.history(None, 1).await.unwrap().remove(0);

    let letters = MemoryProvider::builder().subject_prefix("letters").build().unwrap();
    let letters = Arc::new(ProviderDlqHandler::new(Arc::new(letters)).unwrap());
    let mut bus = EventBus::from_provider(Arc::clone(&provider));
    bus.set_dlq_handler(letters.clone());
    // A typed handler judges the payload as well.
    let consumer = bus.consumer("typed").subject("events.pay.>");
    let consumer = consumer.handle_typed(|_: BTreeMap<String, u32>, _| async move { Ok(()) }).await.unwrap();
    eventually("it is given up", async || consumer.stats().dead_lettered == 1).await;
    consumer.shutdown().await.unwrap();

    bus.set_schema_registry(schemas());
    bus.set_validate_on_consume(true);
    let consumer = bus.consumer("schema").subject("events.pay.>").handle(|_| async { Ok(()) }).await.unwrap();
    eventually("it is given up", async || consumer.stats().dead_lettered == 1).await;
    consumer.shutdown().await.unwrap();
    bus.update_subscription(SubscriptionFilter {
        subscriber_id: "by hand".to_owned(),
        subjects: vec!["events.pay.>".to_owned()],
        durable: true,
        options: None,
    })
    .await
    .unwrap();
    let mut subscription = bus.create_subscriber("by hand").await.unwrap().remove(0);
    let error = subscription.next_delivery().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Undecodable);

    let found = letters.find(&DeadLetterFilter::default(), 10).await.unwrap();
    assert_eq!(found.len(), 3);
    for stored in found {
        let (class, reason) = (stored.letter.class, stored.letter.reason);
        assert_eq!(class, FailureClass::Undecryptable, "{reason}");
        assert!(reason.contains("encryption key 'k1': no encryptor is set for this envelope"), "{reason}");
        assert_eq!(stored.letter.event.event.payload, sealed.payload);
    }
    assert_eq!(bus.metrics().snapshot().validation_errors, 0, "no payload was seen");

    // To publish a sealed event of a type with a schema is the same mistake.
    let error = bus.publish_event(&sealed).await.unwrap_err();
    assert!(
        matches!(&error, EventError::Encryption { failure: EncryptionFailure::NoEncryptor, .. }),
        "{error}"
    );
    assert_eq!(provider.info().await.unwrap().messages, 1);
    // With the key it is read; a payload that only bears the mark is judged as what it is.
    let error = bus.publish_event(&payment(json!({"encrypted": true}))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    bus.set_encryptor(Arc::new(Aes256GcmEncryptor::new("k1", &[7; 32])));
    let mut subscription = bus.create_subscriber("by hand").await.unwrap().remove(0);
    provider.publish(&sealed).await.unwrap();
    assert_eq!(next(&mut subscription).await.event().payload, sent.payload);
}

/// A sink that takes events as they are stored gets them encrypted, although they are validated in clear.
#[cfg(feature = "routing")]
#[tokio::test]
async fn a_sealed_event_is_validated_in_clear_and_routed_sealed() {
    use a3s_event::broker::DeliverySettings;
    use a3s_event::{Broker, CollectorSink, DeliverPolicy, EventSink, Trigger, TriggerFilter};

    /// Takes events as they are stored, which is the default of a sink.
    struct Sealed(CollectorSink);

    #[async_trait::async_trait]
    impl EventSink for Sealed {
        async fn deliver(&self, event: &Event) -> a3s_event::Result<()> {
            self.0.deliver(event).await
        }
        fn name(&self) -> &str {
            self.0.name()
        }
    }

    let provider: Arc<dyn EventProvider> = Arc::new(MemoryProvider::default());
    let dlq = Arc::new(MemoryDlqHandler::default());
    let with = |validates: bool, key: [u8; 32]| {
        let mut bus = EventBus::from_provider(Arc::clone(&provider));
        if validates {
            bus.set_schema_registry(schemas());
        }
        bus.set_validate_on_consume(validates);
        bus.set_encryptor(Arc::new(Aes256GcmEncryptor::new("k1", &key)));
        bus.set_dlq_handler(dlq.clone());
        bus
    };
    let publisher = with(false, [7; 32]);
    let stranger = with(false, [8; 32]);
    let untyped = Event { event_type: String::new(), ..payment(json!({"card": 1})) };
    publisher.publish_event(&payment(json!({"card": "4111"}))).await.unwrap();
    let good = provider.history(None, 1).await.unwrap().remove(0);
    publisher.publish_event(&payment(json!({"card": 4111}))).await.unwrap();
    stranger.publish_event(&payment(json!({"card": "4111"}))).await.unwrap();
    stranger.publish_event(&untyped).await.unwrap();

    let sink = Arc::new(Sealed(CollectorSink::new("sink")));
    let broker = Arc::new(Broker::new());
    let settings = DeliverySettings::durable().deliver_policy(DeliverPolicy::All);
    let trigger = Trigger::new("t", TriggerFilter::by_subject("events.>"), sink.clone());
    broker.put_trigger(trigger.with_delivery(settings)).await.unwrap();
    let mut running = broker.run(Arc::new(with(true, [7; 32]))).await.unwrap();
    eventually("all are routed or given up", async || {
        sink.0.count().await == 2 && dlq.count().await.unwrap() == 2
    })
    .await;
    running.shutdown().await;
    let routed = sink.0.events().await;
    assert_eq!((&routed[0].id, &routed[0].payload), (&good.id, &good.payload));
    assert_eq!(routed[1].id, untyped.id, "there is no schema to judge it by");
    let reasons: Vec<_> = dlq.list(10).await.unwrap().into_iter().map(|letter| letter.reason).collect();
    assert!(reasons[1].contains("Schema validation failed"), "{reasons:?}");
    assert!(reasons[0].contains("cannot be decrypted"), "{reasons:?}");
}

/// One bad input each: the area, the input in words, what it ends in, and what the error must say.
type Row = (&'static str, &'static str, EventError, ErrorKind, &'static str);

fn encryption_rows(rows: &mut Vec<Row>) {
    let encryptor = Aes256GcmEncryptor::new("k1", &[7; 32]);
    let mut sealed = payment(json!({"card": "4111"}));
    sealed.payload = encryptor.encrypt_event(&sealed).unwrap();
    let mut row = |input, field: &str, value: Value, text| {
        let mut event = sealed.clone();
        event.payload[field] = value;
        rows.push((
            "crypto",
            input,
            encryptor.decrypt_event(&event).unwrap_err(),
            ErrorKind::Encryption,
            text,
        ));
    };
    row("unknown key id", "keyId", json!("k9"), "'k9': no key has this id");
    row("ciphertext shorter than the tag", "ciphertext", json!("AAAA"), "'k1'");
    row("nonce of the wrong length", "nonce", json!("AAAA"), "96 bits");
    row("bad base64", "nonce", json!("~"), "not base64");
    row("algorithm none", "alg", json!("none"), "algorithm");
    row("unknown algorithm", "alg", json!("XTEA"), "algorithm");
    row("unknown version", "v", json!(9), "version");
    row("no text", "ciphertext", json!(1), "'ciphertext'");
    let moved = Event { id: "another".to_owned(), ..sealed.clone() };
    let error = encryptor.decrypt_event(&moved).unwrap_err();
    rows.push(("crypto", "envelope moved to another event", error, ErrorKind::Encryption, "moved"));
    encryptor.restore_sealed_count("k1", (1 << 32) - 1).unwrap();
    let error = encryptor.encrypt_event(&sealed).unwrap_err();
    assert!(matches!(&error, EventError::Encryption { failure: EncryptionFailure::KeyExhausted, .. }));
    rows.push(("crypto", "the 2^32nd encryption under one key", error, ErrorKind::Encryption, "'k1'"));
}

fn schema_rows(rows: &mut Vec<Row>) {
    let fields = |fields: Vec<String>| EventSchema {
        event_type: "t".to_owned(),
        version: 1,
        required_fields: fields,
        description: String::new(),
    };
    let registries: [Box<dyn SchemaRegistry>; 2] =
        [Box::new(MemorySchemaRegistry::new()), Box::new(JsonSchemaRegistry::new())];
    for registry in registries {
        let mut row = |input, names: Vec<String>, text| {
            let error = registry.register(fields(names)).unwrap_err();
            rows.push(("schema", input, error, ErrorKind::Config, text));
        };
        row("required field twice", vec!["a".to_owned(), "a".to_owned()], "'a' is named twice");
        row("empty name", vec![String::new()], "empty name");
        row("10,000 fields", (0..10_000).map(|n| n.to_string()).collect(), "10000 required fields");
        registry.register(fields(vec!["a".to_owned()])).unwrap();
        for (input, payload) in
            [("payload not an object", json!([])), ("required field is null", json!({"a": null}))]
        {
            let event = Event::typed("events.a", "a", "t", 1, "", "", payload);
            rows.push(("schema", input, registry.validate(&event).unwrap_err(), ErrorKind::Schema, "'t' v1"));
        }
        registry
            .register(EventSchema { version: 2, ..fields(vec!["a".to_owned(), "b".to_owned()]) })
            .unwrap();
        let error = registry.check_compatibility("t", 2, a3s_event::Compatibility::Backward).unwrap_err();
        rows.push((
            "schema",
            "incompatible version",
            error,
            ErrorKind::Schema,
            "not Backward-compatible with v1",
        ));
        let unknown = Event::typed("events.a", "a", "unknown", 1, "", "", json!({}));
        registry.validate(&unknown).unwrap();
    }
    let strict = MemorySchemaRegistry::with_rules(a3s_event::SchemaRules::new().strict());
    let error = strict.validate(&payment(json!({}))).unwrap_err();
    rows.push(("schema", "unknown type, strict", error, ErrorKind::Schema, "no schema"));
}

fn state_rows(rows: &mut Vec<Row>) {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStateStore::new(folder.path().join("state.json"));
    let filter = r#"{"subscriberId": "a", "subjects": ["events.a"], "durable": true}"#;
    let checksummed =
        |sum: &str| format!(r#"{{"version": 1, "checksum": "{sum}", "subscriptions": {{"a": {filter}}}}}"#);
    for (input, content, text) in [
        ("an array", "[]".to_owned(), "invalid type: sequence, expected a map"),
        ("valid JSON of another shape", r#"{"a": 1}"#.to_owned(), "expected struct SubscriptionFilter"),
        ("version 999", r#"{"version": 999}"#.to_owned(), "version 999"),
        ("another checksum", checksummed("00"), "checksum"),
        ("empty", String::new(), "EOF while parsing"),
        ("truncated", checksummed("00")[..50].to_owned(), "EOF while parsing"),
        ("trailing bytes", "{} x".to_owned(), "trailing characters"),
        ("two documents", "{}{}".to_owned(), "trailing characters"),
        ("byte order mark", "\u{feff}{}".to_owned(), "expected value"),
        ("comment", "{/**/}".to_owned(), "key must be a string"),
        ("100,000 brackets", "[".repeat(100_000), "is not a state file"),
        ("lone surrogate", r#"{"\ud800": {}}"#.to_owned(), "is not a state file"),
        ("number out of range", r#"{"a": 1e400}"#.to_owned(), "is not a state file"),
    ] {
        std::fs::write(store.path(), &content).unwrap();
        rows.push(("state", input, store.load().unwrap_err(), ErrorKind::Config, text));
        let error = store.save(&std::collections::HashMap::new()).unwrap_err();
        rows.push(("state", input, error, ErrorKind::Config, text));
        assert_eq!(std::fs::read_to_string(store.path()).unwrap(), content, "{input}: left as it is");
    }
    std::fs::File::create(store.path()).unwrap().set_len(200 << 20).unwrap();
    rows.push(("state", "200 MB", store.load().unwrap_err(), ErrorKind::Config, "larger than"));
}

/// Texts of a stored event that is none.
fn json_rows(rows: &mut Vec<Row>) {
    let event = |payload: &str| {
        format!(
            r#"{{"id":"e","subject":"events.a","category":"a","payload":{payload},"summary":"","source":"","timestamp":1}}"#
        )
    };
    serde_json::from_str::<Event>(&event("1")).unwrap();
    let exact: Event = serde_json::from_str(&event("9007199254740993")).unwrap();
    assert_eq!(exact.payload, json!(9_007_199_254_740_993_u64), "2^53 + 1 is kept exactly");
    for (input, text) in [
        ("129 levels", event(&("[".repeat(129) + &"]".repeat(129)))),
        ("100,000 brackets", event(&"[".repeat(100_000))),
        ("duplicate field", event("1").replace("\"id\":\"e\"", "\"id\":\"e\",\"id\":\"f\"")),
        ("1e400", event("1e400")),
        ("NaN", event("NaN")),
        ("Infinity", event("Infinity")),
        ("trailing bytes", event("1") + "x"),
        ("two documents", event("1") + "{}"),
        ("byte order mark", format!("\u{feff}{}", event("1"))),
        ("comment", event("1 /* one */")),
        ("lone surrogate", event(r#""\ud800""#)),
        ("version as text", event("1").replace("\"payload\"", "\"version\":\"1.0\",\"payload\"")),
    ] {
        let error = serde_json::from_str::<Event>(&text).map_err(EventError::from).unwrap_err();
        rows.push(("json", input, error, ErrorKind::Serialization, ""));
    }
    let invalid =
        serde_json::from_slice::<Event>(b"{\"id\":\"\xff\"}").map_err(EventError::from).unwrap_err();
    rows.push(("json", "invalid UTF-8", invalid, ErrorKind::Serialization, ""));
}

#[tokio::test]
async fn every_bad_input_ends_in_its_typed_error() {
    let mut rows = Vec::new();
    json_rows(&mut rows);
    state_rows(&mut rows);
    encryption_rows(&mut rows);
    schema_rows(&mut rows);

    let deep = (0..101).fold(json!(1), |inner, _| Value::Array(vec![inner]));
    let bus = EventBus::new(MemoryProvider::default());
    let error = bus.publish_event(&payment(deep)).await.unwrap_err();
    rows.push(("json", "101 levels in a payload", error, ErrorKind::InvalidInput, "100 levels"));
    let too_large = payment(json!({"card": "x".repeat(1 << 20)}));
    let error = bus.publish_event(&too_large).await.unwrap_err();
    rows.push(("json", "1 MiB and more", error, ErrorKind::InvalidInput, "limit"));

    for (area, input, error, kind, text) in &rows {
        let shown = error.to_string();
        assert_eq!(error.kind(), *kind, "{area}: {input}: {shown}");
        assert!(shown.contains(text), "{area}: {input}: {shown}");
        assert!(!shown.contains('\n') && !error.is_retryable(), "{area}: {input}: {shown}");
    }
    assert!(rows.len() > 60, "{}", rows.len());
}
