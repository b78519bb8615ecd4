//! The NATS provider compared with plain async-nats that does the same JetStream work. Both run on one server, which
//! the benchmark starts, and take turns.
//!
//! `cargo bench --bench nats [-- --quick]`

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a benchmark may panic, and prints"
)]

#[path = "support/report.rs"]
#[allow(dead_code, reason = "shared with benchmarks that need more of it")]
mod report;
#[allow(dead_code, reason = "shared with benchmarks that need more of it")]
mod support;

use std::sync::Arc;

use a3s_event::provider::PublishRequest;
use a3s_event::{Event, EventProvider, NatsConfig, NatsProvider};
use a3s_event_testkit::NatsServer;
use async_nats::jetstream::{self, consumer, stream};
use futures_util::StreamExt;
use report::Report;

const SUBJECT: &str = "events.market.forex.usd_cny";
const WINDOW: usize = 256;
const BATCH: usize = 1_000;
const CALLERS: usize = 64;
/// Number of events published per event that the slow consumer takes.
const SLOWER: usize = 100;

/// Number of rounds and repetitions.
struct Scale {
    rounds: usize,
    sequential: usize,
    many: usize,
    synced: usize,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let scale = if quick {
        Scale { rounds: 1, sequential: 200, many: 2_000, synced: 500 }
    } else {
        Scale { rounds: 7, sequential: 2_000, many: 20_000, synced: 4_000 }
    };
    let mut report = Report::default();
    publishing(&scale, &mut report).await;
    publishing_synced(&scale, &mut report).await;
    consuming(&scale, &mut report).await;
    memory(&scale, &mut report).await;
    report.print();
}

/// Both sides of a comparison, each with its own stream on one server.
struct Sides {
    provider: Arc<NatsProvider>,
    raw: jetstream::Context,
    raw_subject: String,
    event: Arc<Event>,
    _server: NatsServer,
}

impl Sides {
    async fn start(config: &str) -> Self {
        let server = NatsServer::start_with(config).await;
        let config = NatsConfig { url: server.url(), max_events: 0, ..NatsConfig::default() };
        let provider = Arc::new(NatsProvider::connect(config).await.unwrap());
        let raw = jetstream::new(async_nats::connect(server.url()).await.unwrap());
        let mine = raw.get_stream("A3S_EVENTS").await.unwrap().cached_info().config.clone();
        let theirs = stream::Config { name: "RAW".to_owned(), subjects: vec!["raw.>".to_owned()], ..mine };
        raw.create_stream(theirs).await.unwrap();
        let raw_subject = SUBJECT.replace("events", "raw");
        Self { provider, raw, raw_subject, event: Arc::new(support::event(SUBJECT)), _server: server }
    }

    async fn purge(&self) {
        for name in ["A3S_EVENTS", "RAW"] {
            self.raw.get_stream(name).await.unwrap().purge().await.unwrap();
        }
    }

    async fn raw_publish(&self) {
        let body = serde_json::to_vec(&*self.event).unwrap();
        self.raw.publish(self.raw_subject.clone(), body.into()).await.unwrap().await.unwrap();
    }

    async fn raw_pipelined(&self, count: usize) {
        let publishes = futures_util::stream::iter(0..count).map(|_| self.raw_publish());
        publishes.buffered(WINDOW).for_each(async |()| {}).await;
    }

    async fn batches(&self, count: usize) {
        let events = vec![(*self.event).clone(); BATCH.min(count)];
        let batch: Vec<_> = events.iter().map(PublishRequest::from).collect();
        for _ in 0..count / batch.len() {
            for answer in self.provider.publish_batch(&batch).await {
                answer.unwrap();
            }
        }
    }
}

/// Returns repetitions per second of async work in a task of the runtime.
async fn rate(count: usize, work: impl Future<Output = ()>) -> f64 {
    let begin = std::time::Instant::now();
    work.await;
    count as f64 / begin.elapsed().as_secs_f64()
}

async fn publishing(scale: &Scale, report: &mut Report) {
    let sides = Arc::new(Sides::start("").await);
    let mut rates: [Vec<f64>; 7] = Default::default();
    for _ in 0..scale.rounds {
        rates[0].push(
            rate(scale.sequential, async {
                for _ in 0..scale.sequential {
                    sides.raw_publish().await;
                }
            })
            .await,
        );
        rates[1].push(
            rate(scale.sequential, async {
                for _ in 0..scale.sequential {
                    sides.provider.publish(&sides.event).await.unwrap();
                }
            })
            .await,
        );
        rates[2].push(rate(scale.many, sides.raw_pipelined(scale.many)).await);
        rates[3].push(rate(scale.many, sides.batches(scale.many)).await);
        rates[6].push(
            rate(scale.many, async {
                for _ in 0..scale.many / BATCH {
                    sides.raw_pipelined(BATCH).await;
                }
            })
            .await,
        );
        let each = scale.many / CALLERS;
        rates[4].push(
            rate(each * CALLERS, async {
                let callers = (0..CALLERS).map(|_| {
                    let sides = Arc::clone(&sides);
                    tokio::spawn(async move {
                        for _ in 0..each {
                            sides.raw_publish().await;
                        }
                    })
                });
                futures_util::future::join_all(callers).await;
            })
            .await,
        );
        rates[5].push(
            rate(each * CALLERS, async {
                let callers = (0..CALLERS).map(|_| {
                    let sides = Arc::clone(&sides);
                    tokio::spawn(async move {
                        for _ in 0..each {
                            sides.provider.publish(&sides.event).await.unwrap();
                        }
                    })
                });
                futures_util::future::join_all(callers).await;
            })
            .await,
        );
        sides.purge().await;
    }
    let [raw_one, one, raw_window, batch, raw_callers, callers, raw_batch] = rates;
    report.rates("publish, one after the other", &raw_one, &one, ">= 0.87 (1.15 times the time)");
    let figure = "publish_batch(1000) (baseline: a window of 256 over 1,000 at a time)";
    report.rates(figure, &raw_batch, &batch, ">= 0.9");
    report.rates("the same (baseline: one window of 256 over everything)", &raw_window, &batch, "");
    report.rates("publish, 64 callers (baseline: 64 tasks)", &raw_callers, &callers, ">= 0.9");
}

async fn publishing_synced(scale: &Scale, report: &mut Report) {
    let sides = Sides::start("jetstream { sync_interval: always }").await;
    let (mut raw, mut batches) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds.min(3) {
        raw.push(rate(scale.synced, sides.raw_pipelined(scale.synced)).await);
        batches.push(rate(scale.synced, sides.batches(scale.synced)).await);
        sides.purge().await;
    }
    report.rates("publish_batch, server syncs every write (same baseline)", &raw, &batches, ">= 10");
}

async fn consuming(scale: &Scale, report: &mut Report) {
    let sides = Sides::start("").await;
    let count = scale.many;
    let mut rates: [Vec<f64>; 3] = Default::default();
    for _ in 0..scale.rounds {
        sides.raw_pipelined(count).await;
        sides.batches(count).await;
        let stream = sides.raw.get_stream("RAW").await.unwrap();
        for (place, is_confirmed) in [(0, true), (2, false)] {
            let config =
                consumer::pull::Config { durable_name: Some("raw".to_owned()), ..Default::default() };
            let worker = stream.create_consumer(config).await.unwrap();
            let mut messages = worker.messages().await.unwrap();
            rates[place].push(
                rate(count, async {
                    for _ in 0..count {
                        let message = messages.next().await.unwrap().unwrap();
                        let event: Event = serde_json::from_slice(&message.payload).unwrap();
                        assert_eq!(event.version, 1);
                        if is_confirmed {
                            message.double_ack().await.unwrap();
                        } else {
                            message.ack().await.unwrap();
                        }
                    }
                })
                .await,
            );
            drop(messages);
            stream.delete_consumer("raw").await.unwrap();
        }
        let mut subscription = sides.provider.subscribe_durable("worker", "events.>").await.unwrap();
        rates[1].push(
            rate(count, async {
                for _ in 0..count {
                    subscription.next_delivery().await.unwrap().unwrap().ack().await.unwrap();
                }
            })
            .await,
        );
        sides.provider.unsubscribe("worker").await.unwrap();
        sides.purge().await;
    }
    let [confirmed, ours, unconfirmed] = rates;
    report.rates("next_delivery and ack (baseline: messages and double_ack)", &confirmed, &ours, ">= 0.8");
    report.rates("the same (baseline: messages and an ack that is not confirmed)", &unconfirmed, &ours, "");
}

/// Returns the resident memory of this process in MiB, if the system reports it.
fn resident() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1_024.0)
}

async fn memory(scale: &Scale, report: &mut Report) {
    let sides = Sides::start("").await;
    let mut subscription = sides.provider.subscribe_durable("slow", "events.>").await.unwrap();
    sides.batches(1_000).await;
    let mut grown = Vec::new();
    let before = resident();
    for _ in 0..scale.many * 5 / 1_000 {
        sides.batches(1_000).await;
        for _ in 0..1_000 / SLOWER {
            subscription.next_delivery().await.unwrap().unwrap().ack().await.unwrap();
        }
        grown.extend(before.zip(resident()).map(|(before, now)| now - before));
    }
    let most = grown.iter().copied().fold(0.0, f64::max);
    let figure = format!("memory with a consumer 100 times slower, {} events", scale.many * 5);
    report.add(&figure, "-", &format!("{most:.1} MiB more"), "-", "flat");
}
