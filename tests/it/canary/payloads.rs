//! Payloads and keys: what validates, opens, types and keeps an event says what is wrong with it, and not what is in it.

use std::path::Path;
use std::sync::Arc;

use a3s_event::consumer::HandlerError;
use a3s_event::dlq::DeadLetterFilter;
use a3s_event::provider::HistoryQuery;
use a3s_event::{
    Aes256GcmEncryptor, Delivery, DlqHandler, EncryptionKey, Event, EventBus, EventProvider, EventSchema,
    FileStateStore, JsonSchemaRegistry, MemoryProvider, MemorySchemaRegistry, NatsProvider,
    ProviderDlqHandler, SchemaRegistry, StateStore,
};
use a3s_event_testkit::NatsServer;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::show::{line, show, show_error, show_result};
use super::{ENCRYPTION_KEY, FILE_KEY, KEY_VARIABLE, NO_KEY, NO_KEY_VARIABLE, PAYLOAD, RECORD, TOKEN};
use crate::eventually;

/// A subject of its own for each consumer.
const CARDS: &str = "events.pay.card";

pub(super) async fn shown(folder: &Path) {
    with_keys(folder);
    with_states(folder);
    for schemas in [json_schemas(), required_fields()] {
        with_schemas(schemas).await;
    }
    with_undecodable_records().await;
    with_unreadable_letters().await;
}

fn with_keys(folder: &Path) {
    let encoded = STANDARD.encode(FILE_KEY);
    for (name, text, mode) in [
        ("good.key", encoded.as_str(), 0o600),
        ("open.key", encoded.as_str(), 0o644),
        ("short.key", &encoded[..40], 0o600),
        ("none.key", NO_KEY, 0o600),
        ("long.key", &format!("{encoded}{}", "x".repeat(2_000)), 0o600),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        show_result("key", EncryptionKey::from_file(&path));
    }
    for variable in [KEY_VARIABLE, NO_KEY_VARIABLE] {
        show_result("key", EncryptionKey::from_env(variable));
    }
    show_result("key", EncryptionKey::from_text(NO_KEY));
    show_result("key", EncryptionKey::from_text(&encoded[1..]));
    let key = EncryptionKey::from_env(KEY_VARIABLE).unwrap();
    let mut encryptor = Aes256GcmEncryptor::new("from-file", &key);
    show("encryptor", &encryptor);
    show_error("key", &encryptor.add_key("from-file", ENCRYPTION_KEY).unwrap_err());
    show_error("key", &encryptor.rotate_to("unknown").unwrap_err());
    show_error("key", &encryptor.disable_key("from-file").unwrap_err());
}

/// Files of somebody else in place of a state.
fn with_states(folder: &Path) {
    let path = folder.join("state.json");
    let store = FileStateStore::new(&path);
    for content in [
        json!({ "token": TOKEN }),
        json!({ TOKEN: { "subscriberId": 1 } }),
        json!({"a": {"subscriberId": "a", "subjects": TOKEN, "durable": true}}),
        json!({"version": 1, "checksum": TOKEN, "subscriptions": { TOKEN: 1 }}),
    ] {
        std::fs::write(&path, content.to_string()).unwrap();
        show("store", &store);
        show_error("state", &store.load().unwrap_err());
        show_error("state", &store.save(&Default::default()).unwrap_err());
    }
}

/// Every kind of rule, broken by a payload that nobody may see.
fn rules() -> Vec<(Value, Value)> {
    let card = |rule: Value| (json!({"properties": { "card": rule }}), json!({ "card": PAYLOAD }));
    vec![
        card(json!({"type": "integer"})),
        card(json!({"enum": ["visa"]})),
        card(json!({"const": "visa"})),
        card(json!({"pattern": "^[0-9]+$"})),
        card(json!({"maxLength": 3})),
        card(json!({"minLength": 99})),
        card(json!({"not": {"type": "string"}})),
        card(json!({"oneOf": [{"type": "integer"}, {"type": "null"}]})),
        card(json!({"oneOf": [true, {"type": "string"}]})),
        card(json!({"anyOf": [{"type": "integer"}, {"type": "null"}]})),
        card(json!({"if": true, "then": {"type": "integer"}})),
        card(json!(false)),
        (json!({"items": {"type": "integer"}}), json!([PAYLOAD])),
        (json!({"uniqueItems": true}), json!([PAYLOAD, PAYLOAD])),
        (json!({"contains": {"type": "integer"}}), json!([PAYLOAD])),
        (json!({"maxItems": 0}), json!([PAYLOAD])),
        (json!({"prefixItems": [true], "items": false}), json!([1, PAYLOAD])),
        (json!({"unevaluatedItems": false}), json!([PAYLOAD])),
        (json!({"required": ["number"]}), json!({ "card": PAYLOAD })),
        (json!({"type": "object"}), json!(PAYLOAD)),
        (json!({"additionalProperties": false}), json!({ "card": PAYLOAD })),
        (json!({"unevaluatedProperties": false}), json!({ "card": PAYLOAD })),
        (json!({"propertyNames": {"maxLength": 1}}), json!({ "card": PAYLOAD })),
        (json!({"maxProperties": 0}), json!({ "card": PAYLOAD })),
        (json!({"dependentRequired": {"card": ["owner"]}}), json!({ "card": PAYLOAD })),
    ]
}

fn json_schemas() -> Arc<dyn SchemaRegistry> {
    let registry = JsonSchemaRegistry::new();
    for (version, (schema, _)) in (1..).zip(rules()) {
        registry.register_json("card", version, schema).unwrap();
    }
    show("schemas", &registry);
    Arc::new(registry)
}

fn required_fields() -> Arc<dyn SchemaRegistry> {
    let registry = MemorySchemaRegistry::new();
    for version in 1..=u32::try_from(rules().len()).unwrap() {
        registry
            .register(EventSchema {
                event_type: "card".into(),
                version,
                required_fields: vec!["number".into()],
                description: String::new(),
            })
            .unwrap();
    }
    Arc::new(registry)
}

/// A payload that follows no schema: refused on publish, and given up on consume when another program has stored it.
async fn with_schemas(schemas: Arc<dyn SchemaRegistry>) {
    #[derive(serde::Deserialize)]
    struct Card {
        #[allow(dead_code, reason = "never read")]
        card: u64,
    }
    let provider = Arc::new(MemoryProvider::default());
    let kept = Arc::new(MemoryProvider::default());
    let letters = Arc::new(ProviderDlqHandler::new(kept.clone()).unwrap());
    let bus = |validates: bool| {
        let mut bus = EventBus::from_provider(provider.clone());
        bus.set_encryptor(Arc::new(Aes256GcmEncryptor::new("k1", ENCRYPTION_KEY)));
        bus.set_dlq_handler(letters.clone());
        if validates {
            bus.set_schema_registry(Arc::clone(&schemas));
            bus.set_validate_on_consume(true);
        }
        bus
    };
    let (strict, careless) = (bus(true), bus(false));
    for (version, (_, payload)) in (1..).zip(rules()) {
        let event = Event::typed(CARDS, "pay", "card", version, "", "shop", payload);
        show_error("schema", &strict.publish_event(&event).await.unwrap_err());
        careless.publish_event(&event).await.unwrap();
    }
    let invalid = strict.consumer("strict").subject(CARDS).handle(|_| async { Ok(()) }).await.unwrap();
    let typed = careless.consumer("typed").subject(CARDS);
    let typed = typed.handle_typed(|_: Card, _| async { Ok(()) }).await.unwrap();
    let failing = careless.consumer("failing").subject(CARDS);
    let failing =
        failing.handle(|_: Delivery| async { Err(HandlerError::fatal("on purpose")) }).await.unwrap();
    let expected = 3 * rules().len();
    eventually("all are given up", async || letters.count().await.unwrap() == expected).await;
    for consumer in [invalid, typed, failing] {
        show("consumer", &consumer);
        show("stats", &consumer.stats());
        consumer.shutdown().await.unwrap();
    }
    show("letters", &letters);
    for letter in letters.find(&DeadLetterFilter::default(), 1_000).await.unwrap() {
        show("stored dead letter", &letter);
    }
    for stored in kept.query(&HistoryQuery::new(1_000)).await.unwrap() {
        line(serde_json::to_string(&*stored.event).unwrap());
    }
    line(strict.telemetry().snapshot().to_prometheus());
    // Whoever has the key sees them in clear.
    let readable = careless.dead_letters(1).await.unwrap();
    assert!(readable[0].event.event.payload.to_string().contains(PAYLOAD));
    show_error("letter", &letters.show(1_000_000).await.unwrap_err());
}

/// Records that are no events, but nearly: what is wrong with them is told, and what they hold is not.
async fn with_undecodable_records() {
    let server = NatsServer::start().await;
    let provider = super::buses::by_url(&server.url()).await.unwrap();
    let nats = provider.as_any().unwrap().downcast_ref::<NatsProvider>().unwrap();
    let records = [
        json!({"id": "e", "subject": CARDS, "category": "pay", "version": RECORD}).to_string(),
        json!({"id": [RECORD]}).to_string(),
        json!({ "id": {"card": RECORD} }).to_string(),
        json!(RECORD).to_string(),
        format!("{{{RECORD}"),
    ];
    for raw in &records {
        let stored = nats.client().jetstream_context().publish(CARDS, raw.clone().into()).await.unwrap();
        stored.await.unwrap();
    }
    let mut bus = EventBus::from_provider(provider);
    bus.publish("pay", "card", "", "", json!(1)).await.unwrap();
    assert_eq!(bus.query(&HistoryQuery::new(10)).await.unwrap().len(), 1);
    let skipping = bus.consumer("skipping").subject(CARDS).handle(|_| async { Ok(()) }).await.unwrap();
    eventually("one is handled", async || skipping.stats().handled == 1).await;
    skipping.shutdown().await.unwrap();

    // The bytes of such a record are kept, and so the letters are not shown here: only their reasons are.
    let letters = Arc::new(ProviderDlqHandler::new(Arc::new(MemoryProvider::default())).unwrap());
    bus.set_dlq_handler(letters.clone());
    let keeping = bus.consumer("keeping").subject(CARDS).handle(|_| async { Ok(()) }).await.unwrap();
    eventually("all are kept", async || letters.count().await.unwrap() == records.len()).await;
    keeping.shutdown().await.unwrap();
    for stored in letters.find(&DeadLetterFilter::default(), 10).await.unwrap() {
        show("reason", &stored.letter.reason);
    }
}

/// Events on the subjects of the dead-letter queue that are no letters.
async fn with_unreadable_letters() {
    let provider = Arc::new(MemoryProvider::default());
    let letters = ProviderDlqHandler::new(provider.clone()).unwrap();
    for payload in [json!(PAYLOAD), json!({ "key": [PAYLOAD] }), json!({"key": "k", "event": PAYLOAD})] {
        for (event_type, subject) in
            [("a3s.dlq.letter", "events.dlq.letters.a"), ("a3s.dlq.mark", "events.dlq.marks.a")]
        {
            let event = Event::typed(subject, "dlq", event_type, 1, "", "", payload.clone());
            provider.publish(&event).await.unwrap();
        }
    }
    assert!(letters.find(&DeadLetterFilter::default(), 10).await.unwrap().is_empty());
}
