//! Routing beside the same work by hand, and what the number of triggers costs.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark that cannot run should stop")]
#![allow(missing_docs, reason = "the macros of criterion")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use a3s_event::broker::DeliverySettings;
use a3s_event::{Broker, Event, EventSink, InProcessSink, Trigger, TriggerFilter};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use support::runtime;

/// The trigger that the event is for.
const WANTED: usize = 7;

fn event() -> Event {
    let payload = serde_json::json!({ "total": 13_650, "currency": "EUR" });
    Event::typed("events.orders.7.new", "orders", "order.7", 1, "an order", "shop", payload)
}

/// Looks at the event, and is done.
fn sink() -> Arc<dyn EventSink> {
    Arc::new(InProcessSink::new("sink", |event: Event| async move {
        std::hint::black_box(event.payload["total"].as_u64());
        Ok(())
    }))
}

fn hanging() -> Arc<dyn EventSink> {
    Arc::new(InProcessSink::new("slow", |_| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(())
    }))
}

/// Triggers in turn by type, by source and by subject, of which one matches the event.
fn filter(number: usize) -> TriggerFilter {
    match (number == WANTED, number % 3) {
        (true, _) | (_, 0) => TriggerFilter::by_type(format!("order.{number}")),
        (_, 1) => TriggerFilter::by_source(format!("shop-{number}")),
        _ => TriggerFilter::by_subject(format!("events.orders.{number}.>")),
    }
}

async fn broker(triggers: usize) -> Broker {
    let broker = Broker::new();
    let sink = sink();
    for number in 0..triggers {
        broker.add_trigger(Trigger::new(number.to_string(), filter(number), Arc::clone(&sink))).await;
    }
    broker
}

/// A loop over ten filters, and a task for the sink that is to have the event.
async fn by_hand(sinks: &[(String, Arc<dyn EventSink>)], event: &Event) {
    for (event_type, sink) in sinks {
        if *event_type == event.event_type {
            let (sink, event) = (Arc::clone(sink), event.clone());
            tokio::spawn(async move { sink.deliver(&event).await }).await.unwrap().unwrap();
        }
    }
}

fn route_1_of_10(c: &mut Criterion) {
    let runtime = runtime();
    let event = event();
    let sinks: Vec<_> = (0..10).map(|number| (format!("order.{number}"), sink())).collect();
    let broker = runtime.block_on(broker(10));
    let mut group = c.benchmark_group("route_1_of_10");
    group.bench_function("baseline_match_and_spawn", |b| {
        b.to_async(&runtime).iter(|| by_hand(&sinks, &event));
    });
    group.bench_function("broker", |b| b.to_async(&runtime).iter(|| broker.route(&event)));
    group.finish();
}

fn route_1_of_many(c: &mut Criterion) {
    let runtime = runtime();
    let event = event();
    let mut group = c.benchmark_group("route_1_of_many");
    for (name, triggers) in [("baseline_10", 10), ("1000", 1_000), ("10000", 10_000)] {
        let broker = runtime.block_on(broker(triggers));
        group.bench_function(name, |b| b.to_async(&runtime).iter(|| broker.route(&event)));
    }
    group.finish();
}

/// Adds one trigger, and removes it again.
fn add_trigger(c: &mut Criterion) {
    let runtime = runtime();
    let mut group = c.benchmark_group("add_trigger");
    for (name, triggers) in [("baseline_to_10", 10), ("to_10000", 10_000)] {
        let broker = runtime.block_on(broker(triggers));
        let sink = sink();
        group.bench_function(name, |b| {
            b.iter_batched(
                || Trigger::new("new", TriggerFilter::by_type("order.new"), Arc::clone(&sink)),
                |trigger| {
                    runtime.block_on(async {
                        broker.add_trigger(trigger).await;
                        broker.remove_trigger("new").await;
                    });
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// The same event with nothing else going on, and while the sink of another trigger sleeps for a second at a time.
fn route_beside_a_slow_sink(c: &mut Criterion) {
    let runtime = runtime();
    let event = event();
    let mut group = c.benchmark_group("route_beside_a_slow_sink");
    let idle = runtime.block_on(broker(10));
    group.bench_function("baseline_idle", |b| b.to_async(&runtime).iter(|| idle.route(&event)));

    let busy = runtime.block_on(async {
        let busy = broker(10).await.with_route_deadline(Duration::from_millis(1));
        let settings = DeliverySettings::fire_and_forget().concurrency(32).queue(0);
        let slow = Trigger::new("slow", TriggerFilter::by_type("slow"), hanging());
        busy.put_trigger(slow.with_delivery(settings)).await.unwrap();
        let mut for_slow = event.clone();
        for_slow.event_type = "slow".to_owned();
        for _ in 0..32 {
            busy.route(&for_slow).await;
        }
        busy
    });
    group.bench_function("32_run", |b| b.to_async(&runtime).iter(|| busy.route(&event)));
    group.finish();
}

criterion_group!(benches, route_1_of_10, route_1_of_many, add_trigger, route_beside_a_slow_sink);
criterion_main!(benches);
