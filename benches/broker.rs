//! Routing compared with hand-written routing, and the cost of the number of triggers.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark that cannot run should stop")]
#![allow(missing_docs, reason = "the macros of criterion")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use a3s_event::broker::DeliverySettings;
use a3s_event::{Broker, Event, EventBus, EventSink, InProcessSink, MemoryProvider, Trigger, TriggerFilter};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use support::runtime;
use tokio::runtime::Runtime;

/// Number of the trigger that matches the event.
const WANTED: usize = 7;

fn event() -> Event {
    let mut event = support::event("events.orders.7.new");
    event.event_type = format!("order.{WANTED}");
    event
}

/// Returns a sink that only reads the event.
fn sink() -> Arc<dyn EventSink> {
    Arc::new(InProcessSink::new("sink", |event: Event| async move {
        std::hint::black_box(event.payload.get("total"));
        Ok(())
    }))
}

fn hanging() -> Arc<dyn EventSink> {
    Arc::new(InProcessSink::new("slow", |_| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(())
    }))
}

/// Returns the filter of a trigger, in turn by type, source and subject. Only the filter of `WANTED` matches the event.
fn filter(number: usize) -> TriggerFilter {
    match (number == WANTED, number % 3) {
        (true, _) | (_, 0) => TriggerFilter::by_type(format!("order.{number}")),
        (_, 1) => TriggerFilter::by_source(format!("shop-{number}")),
        _ => TriggerFilter::by_subject(format!("events.orders.{number}.>")),
    }
}

/// Times repetitions of `work` inside a task, because programs publish from tasks.
fn in_task<F: Future + Send>(
    runtime: &Runtime,
    iters: u64,
    work: impl Fn() -> F + Send + 'static,
) -> Duration {
    let timed = async move {
        let start = Instant::now();
        for _ in 0..iters {
            work().await;
        }
        start.elapsed()
    };
    runtime.block_on(runtime.spawn(timed)).expect("it ended")
}

/// Routes the event `iters` times.
fn routes(runtime: &Runtime, iters: u64, broker: &Arc<Broker>) -> Duration {
    let (broker, event) = (Arc::clone(broker), Arc::new(event()));
    in_task(runtime, iters, move || {
        let (broker, event) = (Arc::clone(&broker), Arc::clone(&event));
        async move { broker.route(&event).await }
    })
}

async fn broker(triggers: usize) -> Broker {
    let broker = Broker::new();
    let sink = sink();
    for number in 0..triggers {
        broker.add_trigger(Trigger::new(number.to_string(), filter(number), Arc::clone(&sink))).await;
    }
    broker
}

type Sinks = Vec<(String, Arc<dyn EventSink>)>;

/// Routes by hand: a loop over ten types, and a task for the matching sink.
async fn by_hand(sinks: Arc<Sinks>, event: Arc<Event>) {
    for (event_type, sink) in &*sinks {
        if *event_type == event.event_type {
            let (sink, event) = (Arc::clone(sink), Event::clone(&event));
            tokio::spawn(async move { sink.deliver(&event).await }).await.unwrap().unwrap();
        }
    }
}

fn route_1_of_10(c: &mut Criterion) {
    let runtime = runtime();
    let sinks: Sinks = (0..10).map(|number| (format!("order.{number}"), sink())).collect();
    let (sinks, event) = (Arc::new(sinks), Arc::new(event()));
    let broker = Arc::new(runtime.block_on(broker(10)));
    let mut group = c.benchmark_group("route_1_of_10");
    group.bench_function("baseline_match_and_spawn", |b| {
        b.iter_custom(|iters| {
            let (sinks, event) = (Arc::clone(&sinks), Arc::clone(&event));
            in_task(&runtime, iters, move || by_hand(Arc::clone(&sinks), Arc::clone(&event)))
        });
    });
    group.bench_function("broker", |b| b.iter_custom(|iters| routes(&runtime, iters, &broker)));
    group.finish();
}

fn route_1_of_many(c: &mut Criterion) {
    let runtime = runtime();
    let mut group = c.benchmark_group("route_1_of_many");
    for (name, triggers) in [("baseline_10", 10), ("1000", 1_000), ("10000", 10_000)] {
        let broker = Arc::new(runtime.block_on(broker(triggers)));
        group.bench_function(name, |b| b.iter_custom(|iters| routes(&runtime, iters, &broker)));
    }
    group.finish();
}

/// Adds one trigger and removes it.
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

/// Baseline: routing the event alone. Compared with routing while the sink of another trigger sleeps 1 s per event.
fn route_beside_a_slow_sink(c: &mut Criterion) {
    let runtime = runtime();
    let mut group = c.benchmark_group("route_beside_a_slow_sink");
    let idle = Arc::new(runtime.block_on(broker(10)));
    group.bench_function("baseline_idle", |b| b.iter_custom(|iters| routes(&runtime, iters, &idle)));

    let busy = runtime.block_on(async {
        let busy = broker(10).await.with_route_timeout(Duration::from_millis(1));
        let settings = DeliverySettings::fire_and_forget().concurrency(32).queue(0);
        let slow = Trigger::new("slow", TriggerFilter::by_type("slow"), hanging());
        busy.put_trigger(slow.with_delivery(settings)).await.unwrap();
        let mut for_slow = event();
        for_slow.event_type = "slow".to_owned();
        for _ in 0..32 {
            busy.route(&for_slow).await;
        }
        busy
    });
    let busy = Arc::new(busy);
    group.bench_function("32_run", |b| b.iter_custom(|iters| routes(&runtime, iters, &busy)));
    group.finish();
}

/// Returns a bus with ten triggers, of which one matches, and a trigger whose sink sleeps for 1 s.
async fn slow_bus(deadline: Duration) -> EventBus {
    let broker = broker(10).await.with_route_timeout(deadline);
    let settings = DeliverySettings::fire_and_forget().queue(0);
    let slow = Trigger::new("slow", TriggerFilter::default(), hanging());
    broker.put_trigger(slow.with_delivery(settings)).await.unwrap();
    bus(broker)
}

fn bus(broker: Broker) -> EventBus {
    EventBus::builder(MemoryProvider::default()).broker(Arc::new(broker)).build().unwrap()
}

/// Baseline: a sleep as long as the route timeout. Compared with the first publish into a sleeping sink.
fn first_publish_into_a_slow_sink(c: &mut Criterion) {
    const DEADLINE: Duration = Duration::from_millis(10);
    let runtime = runtime();
    let mut group = c.benchmark_group("first_publish_into_a_slow_sink");
    group.bench_function("baseline_deadline", |b| {
        b.iter_custom(|iters| in_task(&runtime, iters, || tokio::time::sleep(DEADLINE)));
    });
    group.bench_function("bus", |b| {
        b.iter_custom(|iters| {
            let timed = async move {
                let mut waited = Duration::ZERO;
                for _ in 0..iters {
                    let bus = slow_bus(DEADLINE).await;
                    let event = event();
                    let start = Instant::now();
                    bus.publish_event(&event).await.unwrap();
                    waited += start.elapsed();
                }
                waited
            };
            runtime.block_on(runtime.spawn(timed)).expect("it ended")
        });
    });
    group.finish();
}

/// Baseline: publishing without the slow sink. Compared with every later publish while that sink still sleeps.
fn publish_beside_a_slow_sink(c: &mut Criterion) {
    let runtime = runtime();
    let publishes = |iters: u64, bus: &Arc<EventBus>| {
        let (bus, event) = (Arc::clone(bus), Arc::new(event()));
        in_task(&runtime, iters, move || {
            let (bus, event) = (Arc::clone(&bus), Arc::clone(&event));
            async move { bus.publish_event(&event).await.unwrap() }
        })
    };
    let mut group = c.benchmark_group("publish_beside_a_slow_sink");
    let idle = Arc::new(bus(runtime.block_on(broker(10))));
    group.bench_function("baseline_without", |b| b.iter_custom(|iters| publishes(iters, &idle)));
    let slow = runtime.block_on(slow_bus(Duration::from_millis(1)));
    runtime.block_on(slow.publish_event(&event())).unwrap();
    let slow = Arc::new(slow);
    group.bench_function("while_it_sleeps", |b| b.iter_custom(|iters| publishes(iters, &slow)));
    group.finish();
}

criterion_group!(
    benches,
    route_1_of_10,
    route_1_of_many,
    add_trigger,
    route_beside_a_slow_sink,
    first_publish_into_a_slow_sink,
    publish_beside_a_slow_sink
);
criterion_main!(benches);
