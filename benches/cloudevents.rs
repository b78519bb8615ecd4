//! CloudEvents compared with the official SDK.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark may panic"
)]

use std::hint::black_box;

use a3s_event::cloudevents::{AcceptedFormats, from_json_batch, http, to_json_batch};
use a3s_event::{CloudEvent, Event};
use cloudevents::{EventBuilder, EventBuilderV10};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

#[path = "support/mod.rs"]
#[allow(dead_code, reason = "shared with benchmarks that need more")]
mod support;

type Sdk = cloudevents::Event;

/// Returns the SDK's event with the attributes that `event` has on the wire.
fn sdk_event(event: &CloudEvent) -> Sdk {
    let json: serde_json::Value = serde_json::from_slice(&event.to_json().unwrap()).unwrap();
    let mut builder = EventBuilderV10::new()
        .id(&event.id)
        .source(&event.source)
        .ty(&event.event_type)
        .subject(event.subject.as_deref().unwrap())
        .time(event.time.as_deref().unwrap())
        .data("application/json", event.data.clone().unwrap());
    for (name, value) in json.as_object().unwrap() {
        if name.starts_with("a3s") {
            builder = match value.as_str() {
                Some(text) => builder.extension(name, text),
                None => builder.extension(name, value.as_i64().unwrap()),
            };
        }
    }
    builder.build().unwrap()
}

/// Baseline: the SDK writes and reads its own event. This library also converts from an `Event` and back to one.
fn there_and_back(c: &mut Criterion) {
    let event = support::event("events.market.orders");
    let cloud_event = CloudEvent::from(event.clone());
    let sdk = sdk_event(&cloud_event);
    let sdk_json = serde_json::to_vec(&sdk).unwrap();
    let our_json = cloud_event.to_json().unwrap();
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&sdk_json).unwrap(),
        serde_json::from_slice::<serde_json::Value>(&our_json).unwrap(),
        "both write the same event"
    );

    let mut group = c.benchmark_group("cloudevent_to_json_and_back");
    group.bench_function("baseline_sdk", |b| {
        b.iter(|| {
            let json = serde_json::to_vec(black_box(&sdk)).unwrap();
            serde_json::from_slice::<Sdk>(&json).unwrap()
        });
    });
    group.bench_function("from_event_to_event", |b| {
        b.iter_batched(
            || event.clone(),
            |event| {
                let json = CloudEvent::from(event).to_json().unwrap();
                Event::try_from(CloudEvent::from_json(&json).unwrap()).unwrap()
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("without_conversion", |b| {
        b.iter(|| CloudEvent::from_json(&black_box(&cloud_event).to_json().unwrap()).unwrap());
    });
    group.finish();

    let mut group = c.benchmark_group("cloudevent_write");
    group.bench_function("baseline_sdk", |b| b.iter(|| serde_json::to_vec(black_box(&sdk)).unwrap()));
    group.bench_function("json", |b| b.iter(|| black_box(&cloud_event).to_json().unwrap()));
    group.bench_function("http_binary", |b| b.iter(|| http::to_binary(black_box(&cloud_event)).unwrap()));
    group.finish();

    let mut group = c.benchmark_group("cloudevent_read");
    group.bench_function("baseline_sdk", |b| {
        b.iter(|| serde_json::from_slice::<Sdk>(black_box(&our_json)).unwrap());
    });
    group.bench_function("json", |b| b.iter(|| CloudEvent::from_json(black_box(&our_json)).unwrap()));
    let message = http::to_binary(&cloud_event).unwrap();
    let body = message.body.clone().unwrap();
    group.bench_function("http_binary", |b| {
        let headers = || message.headers.iter().map(|(name, value)| (name, value));
        b.iter(|| http::from_message(headers(), black_box(&body), AcceptedFormats::Conformant).unwrap());
    });
    group.finish();
}

/// Baseline: the SDK's events as a JSON array.
fn batch(c: &mut Criterion) {
    let events: Vec<CloudEvent> =
        (0..100).map(|_| CloudEvent::from(support::event("events.market.orders"))).collect();
    let sdk: Vec<Sdk> = events.iter().map(sdk_event).collect();
    let mut group = c.benchmark_group("batch_of_100_to_json_and_back");
    group.bench_function("baseline_sdk", |b| {
        b.iter(|| serde_json::from_slice::<Vec<Sdk>>(&serde_json::to_vec(black_box(&sdk)).unwrap()).unwrap());
    });
    group.bench_function("json", |b| {
        b.iter(|| {
            from_json_batch(&to_json_batch(black_box(&events)).unwrap(), AcceptedFormats::Conformant).unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, there_and_back, batch);
criterion_main!(benches);
