//! The SQLite provider against plain rusqlite that does the same inserts, in one run and on one disk, turn by turn.
//!
//! `cargo bench --bench sqlite --features sqlite [-- --quick]`

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a benchmark may panic, and prints"
)]

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
use comfy_table::Table;
use rusqlite::{Connection, params};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const SUBJECT: &str = "events.market.forex.usd_cny";
const FILTER: &str = "events.>";
const BATCH: usize = 1_000;

/// How much is measured.
struct Scale {
    rounds: usize,
    single: usize,
    batches: usize,
    large: usize,
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let scale = if quick {
        Scale { rounds: 1, single: 200, batches: 5, large: 20_000 }
    } else {
        Scale { rounds: 5, single: 1_000, batches: 100, large: 1_000_000 }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut report = Report::default();
    publishing(&runtime, &scale, &mut report);
    consuming(&runtime, &scale, &mut report);
    growing(&runtime, &scale, &mut report);
    latency(&runtime, &scale, &mut report);
    println!("{}", report.0);
}

/// A row per figure.
struct Report(Table);

impl Default for Report {
    fn default() -> Self {
        let mut table = Table::new();
        table.set_header(["figure", "baseline", "provider", "provider / baseline", "wanted"]);
        Self(table)
    }
}

impl Report {
    fn add(&mut self, figure: &str, baseline: String, provider: String, ratio: f64, wanted: &str) {
        self.0.add_row([figure, &baseline, &provider, &format!("{ratio:.2}"), wanted]);
    }

    fn rates(&mut self, figure: &str, baseline: &[f64], provider: &[f64], wanted: &str) {
        let (baseline, provider) = (median(baseline), median(provider));
        let rate = |rate: f64| format!("{rate:.0}/s");
        self.add(figure, rate(baseline), rate(provider), provider / baseline, wanted);
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn per_second(count: usize, work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    count as f64 / begin.elapsed().as_secs_f64()
}

/// Plain rusqlite with the tables of the provider that an event needs.
struct Raw {
    connection: Connection,
    _folder: TempDir,
}

impl Raw {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let connection = Connection::open(folder.path().join("raw.db")).unwrap();
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).unwrap();
        connection.pragma_update(None, "synchronous", "FULL").unwrap();
        connection
            .execute_batch(
                "CREATE TABLE events (sequence INTEGER PRIMARY KEY, subject INTEGER NOT NULL, stored_at INTEGER NOT NULL,
                     size INTEGER NOT NULL, record BLOB NOT NULL) STRICT;
                 CREATE INDEX events_by_subject ON events (subject);",
            )
            .unwrap();
        Self { connection, _folder: folder }
    }

    fn publish(&self, transactions: usize, rows: usize, event: &Event) {
        for _ in 0..transactions {
            let transaction = self.connection.unchecked_transaction().unwrap();
            for _ in 0..rows {
                let record = serde_json::to_vec(event).unwrap();
                transaction
                    .prepare_cached(
                        "INSERT INTO events (subject, stored_at, size, record) VALUES (1, 1, ?1, ?2)",
                    )
                    .unwrap()
                    .execute(params![i64::try_from(record.len()).unwrap(), record])
                    .unwrap();
            }
            transaction.commit().unwrap();
        }
    }
}

fn open(runtime: &Runtime, path: &Path, synchronous: Synchronous) -> Arc<SqliteProvider> {
    let config = SqliteConfig::file(path.join("events.db")).synchronous(synchronous);
    Arc::new(runtime.block_on(SqliteProvider::open(config)).unwrap())
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

fn publishing(runtime: &Runtime, scale: &Scale, report: &mut Report) {
    let event = support::event(SUBJECT);
    let (raw, folder) = (Raw::new(), tempfile::tempdir().unwrap());
    let provider = open(runtime, folder.path(), Synchronous::Full);
    let rows = scale.batches * BATCH;
    let mut rates: [Vec<f64>; 6] = Default::default();
    for _ in 0..scale.rounds {
        rates[0].push(per_second(scale.single, || raw.publish(scale.single, 1, &event)));
        rates[1].push(per_second(scale.single, || {
            runtime.block_on(async {
                for _ in 0..scale.single {
                    provider.publish(&event).await.unwrap();
                }
            });
        }));
        rates[2].push(per_second(rows, || raw.publish(scale.batches, BATCH, &event)));
        rates[3]
            .push(per_second(rows, || runtime.block_on(publish_batches(&provider, scale.batches, &event))));
        for (place, callers) in [(4, 64), (5, 1_000)] {
            let each = (4 * scale.single).div_ceil(callers).max(20);
            rates[place].push(per_second(callers * each, || {
                runtime.block_on(publish_concurrently(&provider, callers, each, &event));
            }));
        }
    }
    let [raw_single, single, raw_batch, batch, concurrent, many] = rates;
    report.rates("publish, one caller (baseline: one row per transaction)", &raw_single, &single, ">= 0.8");
    report.rates("publish_batch(1000) (baseline: 1,000 rows per transaction)", &raw_batch, &batch, ">= 0.7");
    report.rates("publish, 64 callers (same baseline)", &raw_batch, &concurrent, ">= 0.7");
    report.rates("publish, 1,000 callers (same baseline)", &raw_batch, &many, "");
}

/// Takes and acks everything, a batch at a time.
async fn consume(provider: &SqliteProvider, count: usize) {
    let mut subscription = provider.subscribe_durable("worker", FILTER).await.unwrap();
    let mut left = count;
    while left > 0 {
        let batch = subscription.next_batch(BATCH, Duration::from_secs(5)).await.unwrap();
        assert!(!batch.is_empty(), "{left} events are left");
        left -= batch.len();
        let mut acks: Vec<_> = batch.into_iter().map(|delivery| Box::pin(delivery.unwrap().ack())).collect();
        // All are sent before the first answer is waited for, so that they share a transaction.
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

fn consuming(runtime: &Runtime, scale: &Scale, report: &mut Report) {
    let event = support::event(SUBJECT);
    let count = scale.batches * BATCH;
    let (mut published, mut consumed) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds {
        let folder = tempfile::tempdir().unwrap();
        let provider = open(runtime, folder.path(), Synchronous::Full);
        published
            .push(per_second(count, || runtime.block_on(publish_batches(&provider, scale.batches, &event))));
        consumed.push(per_second(count, || runtime.block_on(consume(&provider, count))));
    }
    let ratio = median(&published) / median(&consumed);
    let time = |rate: f64| format!("{:.2} s", count as f64 / rate);
    report.add(
        &format!("time to consume and ack {count} (baseline: to publish them in batches)"),
        time(median(&published)),
        time(median(&consumed)),
        ratio,
        "<= 1.5",
    );
}

/// Mean times of one publish and of one `history(100)`.
fn costs(runtime: &Runtime, provider: &SqliteProvider, repeat: usize) -> (f64, f64) {
    let event = support::event(SUBJECT);
    let publish = per_second(repeat, || {
        runtime.block_on(async {
            for _ in 0..repeat {
                provider.publish(&event).await.unwrap();
            }
        });
    });
    let history = per_second(repeat, || {
        runtime.block_on(async {
            for _ in 0..repeat {
                assert_eq!(provider.history(Some("events.market.>"), 100).await.unwrap().len(), 100);
            }
        });
    });
    (1.0 / publish, 1.0 / history)
}

fn growing(runtime: &Runtime, scale: &Scale, report: &mut Report) {
    let small_folder = tempfile::tempdir().unwrap();
    let large_folder = tempfile::tempdir().unwrap();
    let small = open(runtime, small_folder.path(), Synchronous::Full);
    let large = open(runtime, large_folder.path(), Synchronous::Full);
    let event = support::event(SUBJECT);
    runtime.block_on(publish_batches(&small, 10, &event));
    runtime.block_on(publish_batches(&large, scale.large / BATCH, &event));
    let mut times: [Vec<f64>; 4] = Default::default();
    for _ in 0..scale.rounds {
        let (publish, history) = costs(runtime, &small, scale.single / 2);
        times[0].push(publish);
        times[2].push(history);
        let (publish, history) = costs(runtime, &large, scale.single / 2);
        times[1].push(publish);
        times[3].push(history);
    }
    let micros = |seconds: f64| format!("{:.0} us", seconds * 1e6);
    for (figure, at) in [("publish", 0), ("history(100)", 2)] {
        let (small, large) = (median(&times[at]), median(&times[at + 1]));
        let figure = format!("{figure} with {} stored (baseline: 10,000)", scale.large);
        report.add(&figure, micros(small), micros(large), large / small, "<= 1.3");
    }
}

fn latency(runtime: &Runtime, scale: &Scale, report: &mut Report) {
    let event = support::event(SUBJECT);
    let folder = tempfile::tempdir().unwrap();
    let provider = open(runtime, folder.path(), Synchronous::Normal);
    let mut millis: Vec<f64> = runtime.block_on(async {
        let mut subscription = provider.subscribe_durable("worker", FILTER).await.unwrap();
        let mut millis = Vec::new();
        for _ in 0..scale.single {
            let begin = Instant::now();
            let (published, delivery) = tokio::join!(provider.publish(&event), subscription.next_delivery());
            published.unwrap();
            millis.push(begin.elapsed().as_secs_f64() * 1e3);
            delivery.unwrap().unwrap().ack().await.unwrap();
        }
        millis
    });
    millis.sort_by(f64::total_cmp);
    let (p50, p99) = (millis[millis.len() / 2], millis[millis.len() * 99 / 100]);
    let found = format!("p50 {p50:.2} ms, p99 {p99:.2} ms");
    report.add("publish to delivery, synchronous=normal", "-".to_owned(), found, p50, "p50 < 2 ms");
}
