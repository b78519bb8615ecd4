//! The SQLite provider compared with plain rusqlite that does the same inserts. Both use one disk and take turns.
//!
//! `cargo bench --bench sqlite --features sqlite [-- [--quick] [FILTER]]`; `scripts/bench-ratios` prints the ratios.
//! Each figure is the median time of a round, printed in the format of the other benchmarks.

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a benchmark may panic, and prints"
)]

#[path = "support/raw_sqlite.rs"]
mod raw_sqlite;
#[allow(dead_code, reason = "shared with benchmarks that need more of it")]
mod support;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use a3s_event::provider::PublishRequest;
use a3s_event::provider::sqlite::{SqliteConfig, SqliteProvider, Synchronous};
use a3s_event::{Event, EventProvider};
use raw_sqlite::Raw;
use tokio::runtime::Runtime;

const SUBJECT: &str = "events.market.forex.usd_cny";
const FILTER: &str = "events.>";
const BATCH: usize = 1_000;
/// The groups that `publishing` prints, in its order.
const PUBLISH: [&str; 5] = [
    "sqlite_publish_1_caller",
    "sqlite_publish_64_callers",
    "sqlite_publish_64_callers_in_step",
    "sqlite_publish_1000_callers",
    "sqlite_publish_batch_of_1000",
];

/// Number of rounds and repetitions.
struct Scale {
    rounds: usize,
    single: usize,
    batches: usize,
    large: usize,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let filter = arguments.iter().find(|argument| !argument.starts_with("--")).cloned().unwrap_or_default();
    let scale = Scale { rounds: if quick { 1 } else { 5 }, single: 1_000, batches: 100, large: 1_000_000 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // The groups of each benchmark, and the function that measures them.
    type Benchmark = (&'static [&'static str], fn(&Runtime, &Scale));
    let benchmarks: [Benchmark; 5] = [
        (&PUBLISH, publishing),
        (&["sqlite_consume_and_ack"], consuming),
        (&["sqlite_publish_with_1000000_stored", "sqlite_history_100_of_1000000"], growing),
        (&["sqlite_publish_to_delivery"], latency),
        (&["sqlite_publish_to_other_process"], other_process),
    ];
    for (groups, benchmark) in benchmarks {
        if groups.iter().any(|group| group.contains(&filter)) {
            benchmark(&runtime, &scale);
        }
    }
}

/// Prints the median, the lowest and the highest of `seconds`.
fn report(name: &str, seconds: &[f64]) {
    let mut seconds = seconds.to_vec();
    seconds.sort_by(f64::total_cmp);
    let [low, middle, high] =
        [0, seconds.len() / 2, seconds.len() - 1].map(|at| format!("{:.2} us", seconds[at] * 1e6));
    println!("{name:<70} time: [{low} {middle} {high}]");
}

/// Returns the seconds per repetition of work that repeats `count` times.
fn each(count: usize, work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    begin.elapsed().as_secs_f64() / count as f64
}

fn open(runtime: &Runtime, path: &Path, synchronous: Synchronous) -> Arc<SqliteProvider> {
    let config = SqliteConfig::file(path.join("events.db")).synchronous(synchronous);
    Arc::new(runtime.block_on(SqliteProvider::connect(config)).unwrap())
}

async fn publish_batches(provider: &SqliteProvider, batches: usize, event: &Event) {
    let events = vec![event.clone(); BATCH];
    let batch: Vec<_> = events.iter().map(PublishRequest::from).collect();
    for _ in 0..batches {
        for result in provider.publish_batch(&batch).await {
            result.unwrap();
        }
    }
}

async fn publish_concurrently(provider: &Arc<SqliteProvider>, callers: usize, each: usize, event: &Event) {
    let callers: Vec<_> = (0..callers)
        .map(|_| {
            let (provider, event) = (Arc::clone(provider), event.clone());
            tokio::spawn(async move {
                for _ in 0..each {
                    provider.publish(&event).await.unwrap();
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
}

fn publishing(runtime: &Runtime, scale: &Scale) {
    let event = support::event(SUBJECT);
    let (raw, folder) = (Raw::new(), tempfile::tempdir().unwrap());
    let provider = open(runtime, folder.path(), Synchronous::Full);
    let raw = |transactions: usize, rows: usize| {
        each(transactions * rows, || raw.publish(transactions, rows, &event))
    };
    let rows = scale.batches * BATCH;
    let concurrently = |callers: usize| {
        let calls = (16 * scale.single).div_ceil(callers);
        each(callers * calls, || runtime.block_on(publish_concurrently(&provider, callers, calls, &event)))
    };
    let one_by_one = || {
        each(scale.single, || {
            runtime.block_on(async {
                for _ in 0..scale.single {
                    provider.publish(&event).await.unwrap();
                }
            });
        })
    };
    let in_batches = || each(rows, || runtime.block_on(publish_batches(&provider, scale.batches, &event)));
    let mut times: [Vec<f64>; 7] = Default::default();
    for _ in 0..scale.rounds {
        times[0].push(raw(scale.single, 1));
        times[1].push(one_by_one());
        times[2].push(raw(16 * scale.single / 64, 64));
        times[3].push(concurrently(64));
        times[4].push(raw(scale.batches, BATCH));
        times[5].push(in_batches());
        times[6].push(concurrently(1_000));
    }
    let [raw_single, single, raw_64, callers_64, raw_batch, batch, callers_1000] = times;
    // 64 waiting callers put at most 64 rows into one transaction.
    let figures = [
        ("baseline_transactions_of_1", &raw_single, &single),
        ("baseline_transactions_of_1000", &raw_batch, &callers_64),
        ("baseline_transactions_of_64", &raw_64, &callers_64),
        ("baseline_transactions_of_1000", &raw_batch, &callers_1000),
        ("baseline_transactions_of_1000", &raw_batch, &batch),
    ];
    for (group, (name, baseline, figure)) in PUBLISH.into_iter().zip(figures) {
        report(&format!("{group}/{name}"), baseline);
        report(&format!("{group}/provider"), figure);
    }
}

/// Receives and acks all events in batches.
async fn consume(provider: &SqliteProvider, count: usize) {
    let mut subscription = provider.subscribe_durable("worker", FILTER).await.unwrap();
    let mut left = count;
    while left > 0 {
        let batch = subscription.next_batch(BATCH, Duration::from_secs(5)).await.unwrap();
        assert!(!batch.is_empty(), "{left} events are left");
        left -= batch.len();
        let mut acks: Vec<_> = batch.into_iter().map(|delivery| Box::pin(delivery.unwrap().ack())).collect();
        // Sends all acks before it waits for the first answer, so that they share a transaction.
        std::future::poll_fn(|context| {
            acks.retain_mut(|ack| match ack.as_mut().poll(context) {
                Poll::Ready(acked) => acked.map(|()| false).unwrap(),
                Poll::Pending => true,
            });
            Poll::Ready(())
        })
        .await;
        for ack in acks {
            ack.await.unwrap();
        }
    }
}

fn consuming(runtime: &Runtime, scale: &Scale) {
    let event = support::event(SUBJECT);
    let count = scale.batches * BATCH;
    let (mut published, mut consumed) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds {
        let folder = tempfile::tempdir().unwrap();
        let provider = open(runtime, folder.path(), Synchronous::Full);
        published.push(each(count, || runtime.block_on(publish_batches(&provider, scale.batches, &event))));
        consumed.push(each(count, || runtime.block_on(consume(&provider, count))));
    }
    report("sqlite_consume_and_ack/baseline_publish_in_batches", &published);
    report("sqlite_consume_and_ack/next_batch_of_1000", &consumed);
}

/// Returns the mean times of one publish and of one `history(100)`.
fn costs(runtime: &Runtime, provider: &SqliteProvider, repeat: usize) -> (f64, f64) {
    let event = support::event(SUBJECT);
    let publish = each(repeat, || {
        runtime.block_on(async {
            for _ in 0..repeat {
                provider.publish(&event).await.unwrap();
            }
        });
    });
    let history = each(repeat, || {
        runtime.block_on(async {
            for _ in 0..repeat {
                assert_eq!(provider.history(Some("events.market.>"), 100).await.unwrap().len(), 100);
            }
        });
    });
    (publish, history)
}

fn growing(runtime: &Runtime, scale: &Scale) {
    let small_folder = tempfile::tempdir().unwrap();
    let large_folder = tempfile::tempdir().unwrap();
    let small = open(runtime, small_folder.path(), Synchronous::Full);
    let large = open(runtime, large_folder.path(), Synchronous::Full);
    let event = support::event(SUBJECT);
    runtime.block_on(publish_batches(&small, 10, &event));
    runtime.block_on(publish_batches(&large, scale.large / BATCH, &event));
    let mut times: [Vec<f64>; 4] = Default::default();
    // Short turns, so that both providers see the same speed of the disk.
    for _ in 0..scale.rounds * 5 {
        for (provider, at) in [(&small, 0), (&large, 1)] {
            let (publish, history) = costs(runtime, provider, scale.single / 5);
            times[at].push(publish);
            times[at + 2].push(history);
        }
    }
    for (figure, at) in [("sqlite_publish_with_1000000_stored", 0), ("sqlite_history_100_of_1000000", 2)] {
        report(&format!("{figure}/baseline_of_10000"), &times[at]);
        report(&format!("{figure}/provider"), &times[at + 1]);
    }
}

fn latency(runtime: &Runtime, scale: &Scale) {
    let event = support::event(SUBJECT);
    let folder = tempfile::tempdir().unwrap();
    let provider = open(runtime, folder.path(), Synchronous::Normal);
    let seconds: Vec<f64> = runtime.block_on(async {
        let mut subscription = provider.subscribe_durable("worker", FILTER).await.unwrap();
        let mut seconds = Vec::new();
        for _ in 0..scale.single {
            let begin = Instant::now();
            let (published, delivery) = tokio::join!(provider.publish(&event), subscription.next_delivery());
            published.unwrap();
            seconds.push(begin.elapsed().as_secs_f64());
            delivery.unwrap().unwrap().ack().await.unwrap();
        }
        seconds
    });
    report("sqlite_publish_to_delivery/baseline_that_is_allowed", &[2e-3]);
    report("sqlite_publish_to_delivery/synchronous_normal", &seconds);
}

/// Times a publish until its delivery by a second provider on the same file, which sees it as another process does.
///
/// A pause before each publish lets the second provider go to sleep.
fn other_process(runtime: &Runtime, scale: &Scale) {
    let event = support::event(SUBJECT);
    let folder = tempfile::tempdir().unwrap();
    let here = open(runtime, folder.path(), Synchronous::Full);
    let there = open(runtime, folder.path(), Synchronous::Full);
    let seconds: Vec<f64> = runtime.block_on(async {
        let mut subscription = there.subscribe(FILTER).await.unwrap();
        let mut seconds = Vec::new();
        for number in 0..scale.single as u64 / 20 {
            // The pauses differ, so that publishes fall on different moments between two polls.
            let published_at = async {
                tokio::time::sleep(Duration::from_millis(200 + 7 * (number % 10))).await;
                let begin = Instant::now();
                here.publish(&event).await.unwrap();
                begin
            };
            let delivered_at = async {
                let delivery = subscription.next_delivery().await.unwrap().unwrap();
                (Instant::now(), delivery)
            };
            let (published_at, (delivered_at, delivery)) = tokio::join!(published_at, delivered_at);
            seconds.push((delivered_at - published_at).as_secs_f64());
            delivery.ack().await.unwrap();
        }
        seconds
    });
    report("sqlite_publish_to_other_process/baseline_that_is_allowed", &[50e-3]);
    report("sqlite_publish_to_other_process/provider", &seconds);
}
