//! The handler runtime compared with hand-written loops: the cost of a policy, of lanes and of catching panics.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a benchmark that cannot run should stop"
)]
#![allow(missing_docs, reason = "the macros of criterion")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use a3s_event::{Delivery, EventBus, EventProvider, MemoryProvider, SubscribeOptions, SubscriptionFilter};
use criterion::{Criterion, criterion_group, criterion_main};
use support::{event, provider, runtime};
use tokio::sync::{Notify, Semaphore};

/// Number of events stored before the measurement starts.
const EVENTS: u64 = 20_000;
const WORKERS: usize = 8;
const FILTER: &str = "events.>";

/// Counts handled events and notifies when all of them are handled.
struct Tally {
    handled: AtomicU64,
    all: Notify,
}

impl Tally {
    fn new() -> Arc<Self> {
        Arc::new(Self { handled: AtomicU64::new(0), all: Notify::new() })
    }

    /// Does the work of a handler: reads a field of the payload.
    fn handle(&self, delivery: &Delivery) {
        let cents = delivery.event().payload["cents"].as_u64().expect("a number");
        if self.handled.fetch_add(cents / 13_650, Ordering::Relaxed) + 1 == EVENTS {
            self.all.notify_one();
        }
    }
}

/// Returns a provider with a full stream of 50 subjects.
fn stored(runtime: &tokio::runtime::Runtime) -> Arc<MemoryProvider> {
    let provider = Arc::new(provider(usize::try_from(EVENTS).expect("fits")));
    runtime.block_on(async {
        for number in 0..EVENTS {
            provider.publish(&event(&format!("events.market.{}", number % 50))).await.expect("stored");
        }
    });
    provider
}

/// Times `work` once per iteration, each on a new full stream.
fn timed<F: Future<Output = Duration>>(
    iters: u64,
    work: impl Fn(Arc<MemoryProvider>, Arc<Tally>) -> F,
) -> Duration {
    let runtime = runtime();
    (0..iters)
        .map(|_| {
            let provider = stored(&runtime);
            runtime.block_on(async { work(provider, Tally::new()).await })
        })
        .sum()
}

/// Runs `members` loops that receive, handle and ack one event after the other.
async fn by_hand(provider: Arc<MemoryProvider>, members: usize, tally: Arc<Tally>) -> Duration {
    let start = Instant::now();
    let mut loops = tokio::task::JoinSet::new();
    for _ in 0..members {
        let options = SubscribeOptions::default();
        let mut member = provider.subscribe_durable_with_options("w", FILTER, &options).await.unwrap();
        let tally = Arc::clone(&tally);
        loops.spawn(async move {
            while let Some(delivery) = member.next_delivery().await.unwrap() {
                tally.handle(&delivery);
                delivery.ack().await.unwrap();
            }
        });
    }
    tally.all.notified().await;
    start.elapsed()
}

/// Runs one loop that spawns a task per event, and waits while 8 of them run.
async fn by_tasks(provider: Arc<MemoryProvider>, tally: Arc<Tally>) -> Duration {
    let bus = EventBus::from_provider(provider);
    let filter = SubscriptionFilter {
        subscriber_id: "w".into(),
        subjects: vec![FILTER.into()],
        durable: true,
        options: None,
    };
    bus.update_subscription(filter).await.expect("registered");
    let start = Instant::now();
    let mut subscription = bus.create_subscriber("w").await.expect("opened").pop().expect("one subject");
    let counting = Arc::clone(&tally);
    let receiving = tokio::spawn(async move {
        let running = Arc::new(Semaphore::new(WORKERS));
        while let Some(delivery) = subscription.next_delivery().await.unwrap() {
            let permit = Arc::clone(&running).acquire_owned().await.expect("open");
            let tally = Arc::clone(&counting);
            tokio::spawn(async move {
                tally.handle(&delivery);
                delivery.ack().await.unwrap();
                drop(permit);
            });
        }
    });
    tally.all.notified().await;
    let took = start.elapsed();
    receiving.abort();
    took
}

async fn by_runtime(provider: Arc<MemoryProvider>, ordered: bool, tally: Arc<Tally>) -> Duration {
    let bus = EventBus::from_provider(provider);
    let start = Instant::now();
    let builder = bus.consumer("w").subject(FILTER).concurrency(WORKERS);
    let builder = if ordered { builder.ordered_by_subject() } else { builder };
    let counting = Arc::clone(&tally);
    let handler = move |delivery: Delivery| {
        let tally = Arc::clone(&counting);
        async move {
            tally.handle(&delivery);
            Ok(())
        }
    };
    let consumer = builder.handle(handler).await.unwrap();
    tally.all.notified().await;
    let took = start.elapsed();
    drop(consumer);
    took
}

fn runtime_8_workers(c: &mut Criterion) {
    let mut group = c.benchmark_group("runtime_8_workers");
    group.sample_size(10);
    group.bench_function("baseline_8_tasks_by_hand", |b| {
        b.iter_custom(|iters| timed(iters, by_tasks));
    });
    group.bench_function("unordered", |b| {
        b.iter_custom(|iters| timed(iters, |provider, tally| by_runtime(provider, false, tally)));
    });
    group.bench_function("ordered_by_subject", |b| {
        b.iter_custom(|iters| timed(iters, |provider, tally| by_runtime(provider, true, tally)));
    });
    group.bench_function("one_loop_by_hand", |b| {
        b.iter_custom(|iters| timed(iters, |provider, tally| by_hand(provider, 1, tally)));
    });
    group.bench_function("8_loops_by_hand", |b| {
        b.iter_custom(|iters| timed(iters, |provider, tally| by_hand(provider, WORKERS, tally)));
    });
    group.finish();
}

criterion_group!(benches, runtime_8_workers);
criterion_main!(benches);
