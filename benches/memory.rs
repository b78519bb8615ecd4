//! The memory provider compared with the bare cost of the same work without its guarantees.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark may panic"
)]

mod support;

use std::collections::{HashMap, VecDeque};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use a3s_event::{
    BusMetrics, DeliverPolicy, Event, EventBus, EventProvider, MemoryProvider, SubscribeOptions,
    Subscription, SubscriptionFilter,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use support::{Receipts, event, in_chunks, provider, runtime};
use tokio::runtime::Runtime;
use tokio::sync::{broadcast, mpsc};

const CHUNK: u64 = 50_000;
const RING: usize = 10_000;

/// Baseline: one deep clone and a push into a ring.
fn publish(c: &mut Criterion) {
    let rt = runtime();
    let event = event("events.market.forex.usd_cny");
    for (name, max_events) in [("below_max", 0), ("at_max", RING)] {
        let mut group = c.benchmark_group(format!("publish_{name}"));
        group.throughput(Throughput::Elements(1));
        let full_ring = || -> VecDeque<Event> { (0..max_events).map(|_| event.clone()).collect() };
        group.bench_function("baseline_clone_and_ring", |b| {
            b.iter_custom(|iters| {
                in_chunks(iters, CHUNK, full_ring, |ring, count| {
                    for _ in 0..count {
                        if max_events != 0 && ring.len() >= max_events {
                            ring.pop_front();
                        }
                        ring.push_back(black_box(&event).clone());
                    }
                })
            });
        });
        let full_store = || {
            let provider = provider(max_events);
            for _ in 0..max_events {
                rt.block_on(provider.publish(&event)).unwrap();
            }
            provider
        };
        group.bench_function("provider", |b| {
            b.iter_custom(|iters| {
                in_chunks(iters, CHUNK, full_store, |provider, count| {
                    rt.block_on(async {
                        for _ in 0..count {
                            provider.publish(black_box(&event)).await.unwrap();
                        }
                    });
                })
            });
        });
        group.bench_function("bus", |b| {
            b.iter_custom(|iters| {
                in_chunks(
                    iters,
                    CHUNK,
                    || EventBus::new(full_store()),
                    |bus, count| {
                        rt.block_on(async {
                            for _ in 0..count {
                                bus.publish_event(black_box(&event)).await.unwrap();
                            }
                        });
                    },
                )
            });
        });
        let batch: Vec<Event> = (0..100).map(|_| event.clone()).collect();
        group.bench_function("bus_batch_of_100", |b| {
            b.iter_custom(|iters| {
                in_chunks(
                    iters,
                    CHUNK,
                    || EventBus::new(full_store()),
                    |bus, count| {
                        rt.block_on(async {
                            let mut left = usize::try_from(count).unwrap();
                            while left > 0 {
                                let batch = &batch[..left.min(batch.len())];
                                left -= batch.len();
                                for result in bus.publish_batch(black_box(batch)).await {
                                    result.unwrap();
                                }
                            }
                        });
                    },
                )
            });
        });
        group.finish();
    }
}

/// Baseline: the provider alone. Shows the cost of counting: the bus reads a clock twice and records the publish.
fn metered_publish(c: &mut Criterion) {
    let rt = runtime();
    let event = event("events.market.forex.usd_cny");
    let mut group = c.benchmark_group("metered_publish");
    group.throughput(Throughput::Elements(1));
    group.bench_function("baseline_provider", |b| {
        b.iter_custom(|iters| {
            in_chunks(
                iters,
                CHUNK,
                || provider(RING),
                |provider, count| {
                    rt.block_on(async {
                        for _ in 0..count {
                            provider.publish(black_box(&event)).await.unwrap();
                        }
                    });
                },
            )
        });
    });
    group.bench_function("metrics_alone", |b| {
        let metrics = BusMetrics::new("memory");
        b.iter(|| metrics.record_publish(black_box(Instant::now())));
    });
    group.bench_function("provider_and_metrics", |b| {
        b.iter_custom(|iters| {
            in_chunks(
                iters,
                CHUNK,
                || (provider(RING), BusMetrics::new("memory")),
                |(provider, metrics), count| {
                    rt.block_on(async {
                        for _ in 0..count {
                            let start = Instant::now();
                            provider.publish(black_box(&event)).await.unwrap();
                            metrics.record_publish(start);
                        }
                    });
                },
            )
        });
    });
    group.finish();
}

/// Baseline: the same events from the provider's own subscription.
fn metered_delivery(c: &mut Criterion) {
    let rt = runtime();
    let event = event("events.market.forex.usd_cny");
    let mut group = c.benchmark_group("metered_delivery");
    group.throughput(Throughput::Elements(1));
    for (name, metered) in [("baseline_provider", false), ("bus", true)] {
        group.bench_function(name, |b| {
            b.iter_custom(|iters| {
                let subscribed = || {
                    rt.block_on(async {
                        let bus = EventBus::new(provider(RING));
                        let subscription = if metered {
                            let filter = SubscriptionFilter {
                                subscriber_id: "worker".to_owned(),
                                subjects: vec!["events.market.>".to_owned()],
                                durable: true,
                                options: None,
                            };
                            bus.update_subscription(filter).await.unwrap();
                            bus.create_subscriber("worker").await.unwrap().remove(0)
                        } else {
                            bus.provider().subscribe_durable("worker", "events.market.>").await.unwrap()
                        };
                        for _ in 0..RING {
                            bus.provider().publish(&event).await.unwrap();
                        }
                        (bus, subscription)
                    })
                };
                in_chunks(iters, RING as u64, subscribed, |(_, subscription), count| {
                    rt.block_on(async {
                        for _ in 0..count {
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

/// Baseline: the same clone through a tokio mpsc channel.
fn one_to_one(c: &mut Criterion) {
    let rt = runtime();
    let event = event("events.market.forex.usd_cny");
    let mut group = c.benchmark_group("one_to_one");
    group.throughput(Throughput::Elements(1));
    group.bench_function("baseline_clone_through_mpsc", |b| {
        b.iter_custom(|iters| {
            rt.block_on(async {
                let (sender, mut receiver) = mpsc::channel::<Event>(1_024);
                let start = Instant::now();
                for _ in 0..iters {
                    sender.send(black_box(&event).clone()).await.unwrap();
                    black_box(receiver.recv().await.unwrap());
                }
                start.elapsed()
            })
        });
    });
    group.bench_function("publish_deliver_ack", |b| {
        b.iter_custom(|iters| {
            rt.block_on(async {
                let provider = provider(1_000);
                let mut subscription = provider.subscribe_durable("worker", "events.market.>").await.unwrap();
                let start = Instant::now();
                for _ in 0..iters {
                    provider.publish(black_box(&event)).await.unwrap();
                    let delivery = subscription.next_delivery().await.unwrap().unwrap();
                    black_box(delivery.event());
                    delivery.ack().await.unwrap();
                }
                start.elapsed()
            })
        });
    });
    group.finish();
}

fn from_now_on() -> SubscribeOptions {
    SubscribeOptions { deliver_policy: DeliverPolicy::New, ..SubscribeOptions::default() }
}

/// Spawns a task that receives and acknowledges in batches until the provider closes.
fn spawn_batch_worker(rt: &Runtime, mut subscription: Box<dyn Subscription>, receipts: &Arc<Receipts>) {
    let receipts = Arc::clone(receipts);
    rt.spawn(async move {
        while let Some(batch) = subscription.next_batch(64, Duration::from_secs(60)).await {
            for delivery in batch {
                let delivery = delivery.unwrap();
                black_box(delivery.event());
                delivery.ack().await.unwrap();
                receipts.one();
            }
        }
    });
}

/// Spawns a task that receives and acknowledges until the provider closes.
fn spawn_worker(rt: &Runtime, mut subscription: Box<dyn Subscription>, receipts: &Arc<Receipts>) {
    let receipts = Arc::clone(receipts);
    rt.spawn(async move {
        while let Some(delivery) = subscription.next_delivery().await.unwrap() {
            black_box(delivery.event());
            delivery.ack().await.unwrap();
            receipts.one();
        }
    });
}

/// Baseline: tokio broadcast of `Arc<Event>`. Bursts of ten events to 100 receiving tasks.
fn one_to_100(c: &mut Criterion) {
    const READERS: usize = 100;
    const BURST: usize = 10;
    let rt = runtime();
    let event = event("events.market.forex.usd_cny");
    let mut group = c.benchmark_group("one_to_100");
    group.throughput(Throughput::Elements((READERS * BURST) as u64));

    let receipts = Arc::new(Receipts::default());
    let (sender, _) = broadcast::channel::<Arc<Event>>(1_024);
    for _ in 0..READERS {
        let mut receiver = sender.subscribe();
        let receipts = Arc::clone(&receipts);
        rt.spawn(async move {
            while let Ok(event) = receiver.recv().await {
                black_box(&*event);
                receipts.one();
            }
        });
    }
    group.bench_function("baseline_tokio_broadcast", |b| {
        b.iter(|| {
            rt.block_on(receipts.wait_for(READERS * BURST, async || {
                for _ in 0..BURST {
                    sender.send(Arc::new(black_box(&event).clone())).unwrap();
                }
            }));
        });
    });

    type Spawn = fn(&Runtime, Box<dyn Subscription>, &Arc<Receipts>);
    for (name, spawn) in
        [("same_filter", spawn_worker as Spawn), ("same_filter_in_batches", spawn_batch_worker)]
    {
        let receipts = Arc::new(Receipts::default());
        let provider = provider(RING);
        for _ in 0..READERS {
            let subscription =
                rt.block_on(provider.subscribe_with_options("events.market.>", &from_now_on())).unwrap();
            spawn(&rt, subscription, &receipts);
        }
        group.bench_function(name, |b| {
            b.iter(|| {
                rt.block_on(receipts.wait_for(READERS * BURST, async || {
                    for _ in 0..BURST {
                        provider.publish(black_box(&event)).await.unwrap();
                    }
                }));
            });
        });
        rt.block_on(provider.close()).unwrap();
    }
    group.finish();
}

/// Baseline: a hash lookup and one wake. 1,000 subscribers with distinct filters, of which one matches.
fn distinct_filters(c: &mut Criterion) {
    const READERS: usize = 1_000;
    let rt = runtime();
    let events: Vec<Event> =
        (0..READERS).map(|number| event(&format!("events.market.topic-{number}.tick"))).collect();
    let mut group = c.benchmark_group("1000_distinct_filters");
    group.throughput(Throughput::Elements(1));

    let receipts = Arc::new(Receipts::default());
    let mut channels: HashMap<String, mpsc::Sender<Arc<Event>>> = HashMap::new();
    for event in &events {
        let (sender, mut receiver) = mpsc::channel(16);
        channels.insert(event.subject.clone(), sender);
        let receipts = Arc::clone(&receipts);
        rt.spawn(async move {
            while let Some(event) = receiver.recv().await {
                black_box(&*event);
                receipts.one();
            }
        });
    }
    let mut turn = events.iter().cycle();
    group.bench_function("baseline_hash_lookup_and_wake", |b| {
        b.iter(|| {
            let event = turn.next().unwrap();
            rt.block_on(receipts.wait_for(1, async || {
                channels[&event.subject].send(Arc::new(event.clone())).await.unwrap();
            }));
        });
    });

    let receipts = Arc::new(Receipts::default());
    let provider = provider(RING);
    for number in 0..READERS {
        let filter = format!("events.market.topic-{number}.*");
        let subscription = rt.block_on(provider.subscribe_with_options(&filter, &from_now_on())).unwrap();
        spawn_worker(&rt, subscription, &receipts);
    }
    let mut turn = events.iter().cycle();
    group.bench_function("one_of_1000_matches", |b| {
        b.iter(|| {
            let event = turn.next().unwrap();
            rt.block_on(receipts.wait_for(1, async || {
                provider.publish(black_box(event)).await.unwrap();
            }));
        });
    });
    rt.block_on(provider.close()).unwrap();
    group.finish();
}

/// Baseline: publishing with no subscriber.
fn idle_subscribers(c: &mut Criterion) {
    let rt = runtime();
    let event = event("events.market.forex.usd_cny");
    let mut group = c.benchmark_group("publish_beside_idle_subscribers");
    for (name, subscribers) in [("baseline_none", 0), ("10000_that_do_not_match", 10_000)] {
        let provider = provider(RING);
        let mut subscriptions = Vec::new();
        for number in 0..subscribers {
            let filter = format!("events.other.topic-{number}.>");
            subscriptions.push(rt.block_on(provider.subscribe(&filter)).unwrap());
        }
        group.bench_function(name, |b| {
            b.iter_custom(|iters| {
                rt.block_on(async {
                    let start = Instant::now();
                    for _ in 0..iters {
                        provider.publish(black_box(&event)).await.unwrap();
                    }
                    start.elapsed()
                })
            });
        });
    }
    group.finish();
}

fn filled(rt: &Runtime, events: usize) -> MemoryProvider {
    let provider = provider(0);
    rt.block_on(async {
        for number in 0..events {
            // One category in a thousand events, the others spread over ten.
            let subject = match number % 1_000 {
                999 => "events.rare.topic.tick".to_owned(),
                rest => format!("events.common-{}.topic-{}.tick", rest % 10, number % 500),
            };
            provider.publish(&event(&subject)).await.unwrap();
        }
    });
    provider
}

/// Baseline: the history of a frequent category.
fn history(c: &mut Criterion) {
    let rt = runtime();
    let provider = filled(&rt, 100_000);
    let mut group = c.benchmark_group("history_100_of_100000");
    for (name, filter) in [
        ("baseline_frequent_category", "events.common-3.>"),
        ("rare_category", "events.rare.>"),
        ("absent_category", "events.absent.>"),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| black_box(rt.block_on(provider.history(Some(filter), 100)).unwrap()));
        });
    }
    group.finish();
}

/// Baseline: the same calls on a nearly empty store.
fn status(c: &mut Criterion) {
    let rt = runtime();
    for (name, events) in [("baseline_100_events", 100), ("100000_events", 100_000)] {
        let provider = filled(&rt, events);
        c.benchmark_group("info").bench_function(name, |b| {
            b.iter(|| black_box(rt.block_on(provider.info()).unwrap()));
        });
        c.benchmark_group("health").bench_function(name, |b| {
            b.iter(|| black_box(rt.block_on(provider.health()).unwrap()));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    targets = publish, metered_publish, metered_delivery, one_to_one, one_to_100, distinct_filters, idle_subscribers, history, status
}
criterion_main!(benches);
