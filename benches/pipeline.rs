//! Encryption compared with the bare cipher, and a bus with all features compared with a plain one.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark may panic"
)]

mod support;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use a3s_event::{
    Aes256GcmEncryptor, Event, EventBus, EventEncryptor, EventSchema, JsonSchemaRegistry,
    MemorySchemaRegistry, SchemaRegistry,
};
use aes_gcm::aead::{AeadInOut, Generate, KeyInit, Nonce};
use aes_gcm::{Aes256Gcm, Key};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde_json::{Value, json};
use support::{event, in_chunks, provider, runtime};

const CHUNK: u64 = 20_000;
const KEY: [u8; 32] = [7; 32];

/// Returns an event with a payload of 1 KiB of JSON.
fn event_of_1_kib() -> Event {
    let mut event = event("events.market.forex.usd_cny");
    event.event_type = "market.order".to_owned();
    let fill = 1_024 - event.payload.to_string().len() - r#","fill":"""#.len();
    event.payload["fill"] = "x".repeat(fill).into();
    assert_eq!(event.payload.to_string().len(), 1_024);
    event
}

/// Baseline: serializes the payload to JSON and encrypts it in place under a random nonce.
fn seal(c: &mut Criterion) {
    let event = event_of_1_kib();
    let cipher = Aes256Gcm::new(<&Key<Aes256Gcm>>::from(&KEY));
    let encryptor = Aes256GcmEncryptor::new("k1", &KEY);
    let mut group = c.benchmark_group("seal_1_kib");
    group.throughput(Throughput::Bytes(1_024));
    group.bench_function("baseline_json_and_cipher", |b| {
        b.iter(|| {
            let nonce = Nonce::<Aes256Gcm>::generate();
            let mut buffer = serde_json::to_vec(&black_box(&event).payload).unwrap();
            cipher.encrypt_in_place(&nonce, b"", &mut buffer).unwrap();
            (nonce, buffer)
        });
    });
    group.bench_function("encrypt_event", |b| {
        b.iter(|| encryptor.encrypt_event(black_box(&event)).unwrap());
    });
    group.finish();
}

/// Baseline: decrypts in place and parses the JSON.
fn open(c: &mut Criterion) {
    let event = event_of_1_kib();
    let cipher = Aes256Gcm::new(<&Key<Aes256Gcm>>::from(&KEY));
    let encryptor = Aes256GcmEncryptor::new("k1", &KEY);
    let nonce = Nonce::<Aes256Gcm>::generate();
    let mut buffer = serde_json::to_vec(&event.payload).unwrap();
    cipher.encrypt_in_place(&nonce, b"", &mut buffer).unwrap();
    let sealed = Event { payload: encryptor.encrypt_event(&event).unwrap(), ..event };
    let mut group = c.benchmark_group("open_1_kib");
    group.throughput(Throughput::Bytes(1_024));
    group.bench_function("baseline_cipher_and_json", |b| {
        b.iter(|| {
            let mut buffer = black_box(&buffer).clone();
            cipher.decrypt_in_place(&nonce, b"", &mut buffer).unwrap();
            serde_json::from_slice::<Value>(&buffer).unwrap()
        });
    });
    group.bench_function("decrypt_event", |b| {
        b.iter(|| encryptor.decrypt_event(black_box(&sealed)).unwrap());
    });
    group.finish();
}

/// Baseline: both baselines above, one after the other.
fn seal_and_open(c: &mut Criterion) {
    let mut event = event_of_1_kib();
    let cipher = Aes256Gcm::new(<&Key<Aes256Gcm>>::from(&KEY));
    let encryptor = Aes256GcmEncryptor::new("k1", &KEY);
    let mut group = c.benchmark_group("seal_and_open_1_kib");
    group.throughput(Throughput::Bytes(1_024));
    group.bench_function("baseline_json_and_cipher", |b| {
        b.iter(|| {
            let nonce = Nonce::<Aes256Gcm>::generate();
            let mut buffer = serde_json::to_vec(&black_box(&event).payload).unwrap();
            cipher.encrypt_in_place(&nonce, b"", &mut buffer).unwrap();
            cipher.decrypt_in_place(&nonce, b"", &mut buffer).unwrap();
            serde_json::from_slice::<Value>(&buffer).unwrap()
        });
    });
    group.bench_function("event", |b| {
        b.iter(|| {
            let sealed = encryptor.encrypt_event(black_box(&event)).unwrap();
            let clear = std::mem::replace(&mut event.payload, sealed);
            let opened = encryptor.decrypt_event(black_box(&event)).unwrap();
            event.payload = clear;
            opened
        });
    });
    group.finish();
}

fn json_schemas() -> Arc<JsonSchemaRegistry> {
    let registry = JsonSchemaRegistry::new();
    let schema = json!({
        "type": "object",
        "required": ["order", "customer", "lines", "cents", "currency"],
        "properties": {
            "order": {"type": "string", "minLength": 36},
            "customer": {
                "type": "object",
                "required": ["id"],
                "properties": {"id": {"type": "integer"}, "name": {"type": "string"}, "city": {"type": "string"}},
            },
            "lines": {
                "type": "array",
                "items": {
                    "required": ["sku", "quantity"],
                    "properties": {"sku": {"type": "string"}, "quantity": {"type": "integer", "minimum": 1}},
                },
            },
            "cents": {"type": "integer", "minimum": 0},
            "currency": {"enum": ["EUR", "USD"]},
        },
    });
    registry.register_json("market.order", 1, schema).unwrap();
    Arc::new(registry)
}

fn field_lists() -> Arc<MemorySchemaRegistry> {
    let registry = MemorySchemaRegistry::new();
    let required_fields = ["order", "customer", "lines", "cents", "currency"].map(str::to_owned).to_vec();
    let description = String::new();
    registry
        .register(EventSchema {
            event_type: "market.order".to_owned(),
            version: 1,
            required_fields,
            description,
        })
        .unwrap();
    Arc::new(registry)
}

type Parts = (Option<Arc<dyn SchemaRegistry>>, bool);

fn bus((schemas, encrypted): &Parts) -> EventBus {
    let mut bus = EventBus::new(provider(1_000));
    if let Some(schemas) = schemas {
        bus.set_schema_registry(schemas.clone());
        bus.set_validate_on_consume(true);
    }
    if *encrypted {
        bus.set_encryptor(Arc::new(Aes256GcmEncryptor::new("k1", &KEY)));
    }
    bus
}

/// Baseline: publish, deliver and ack on a plain bus. Metrics are always on.
fn pipeline(c: &mut Criterion) {
    let rt = runtime();
    let event = event_of_1_kib();
    let mut group = c.benchmark_group("pipeline_1_kib");
    group.throughput(Throughput::Elements(1));
    let cases: [(&str, Parts); 5] = [
        ("baseline_bus_alone", (None, false)),
        ("field_lists", (Some(field_lists()), false)),
        ("json_schema", (Some(json_schemas()), false)),
        ("encryption", (None, true)),
        ("json_schema_and_encryption", (Some(json_schemas()), true)),
    ];
    for (name, parts) in &cases {
        group.bench_function(*name, |b| {
            b.iter_custom(|iters| {
                let open = || {
                    let bus = bus(parts);
                    let filter = a3s_event::SubscriptionFilter {
                        subscriber_id: "worker".to_owned(),
                        subjects: vec!["events.>".to_owned()],
                        durable: true,
                        options: None,
                    };
                    let subscription = rt.block_on(async {
                        bus.update_subscription(filter).await.unwrap();
                        bus.create_subscriber("worker").await.unwrap().remove(0)
                    });
                    (bus, subscription)
                };
                in_chunks(iters, CHUNK, open, |(bus, subscription), count| {
                    rt.block_on(async {
                        for _ in 0..count {
                            bus.publish_event(black_box(&event)).await.unwrap();
                            let delivery = subscription.next_delivery().await.unwrap().unwrap();
                            black_box(delivery.event());
                            delivery.ack().await.unwrap();
                        }
                    });
                })
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    targets = seal, open, seal_and_open, pipeline
}
criterion_main!(benches);
