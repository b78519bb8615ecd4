//! What many consumers of a SQLite file cost those who publish to it, each figure beside the same without them.
//!
//! `cargo bench --bench sqlite_consumers --features sqlite [-- FILTER]`. Each figure is the median of its seconds, between
//! the lowest and the highest; the share of a core is printed in percent.

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a benchmark may panic, and prints"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use a3s_event::provider::PublishRequest;
use a3s_event::provider::sqlite::{SqliteConfig, SqliteProvider, Synchronous};
use a3s_event::{DeliverPolicy, Event, EventProvider, SubscribeOptions, Subscription};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filter = arguments.iter().find(|argument| !argument.starts_with("--")).cloned().unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for (name, measure) in [
        ("publish_beside_a_listing", beside_a_listing as fn(&str, &tokio::runtime::Runtime)),
        ("publish_to_a_full_stream", full_stream),
        ("share_of_a_core_beside_a_foreign_writer", foreign_writer),
        ("deliver_with_many_waiting", many_waiting),
        ("publish_beside_a_lowered_limit", lowered_limit),
    ] {
        if name.contains(&filter) {
            measure(name, &runtime);
        }
    }
}

fn report(name: &str, seconds: &mut [f64]) {
    seconds.sort_by(f64::total_cmp);
    let [low, middle, high] =
        [0, seconds.len() / 2, seconds.len() - 1].map(|at| format!("{:.2} us", seconds[at] * 1e6));
    println!("{name:<70} time: [{low} {middle} {high}]");
}

fn event(subject: &str) -> Event {
    Event::new(subject, "bench", "", "bench", serde_json::json!({ "price": 6.31, "pair": "USD/CNY" }))
}

async fn open(path: &Path, max_events: u64) -> SqliteProvider {
    let config = SqliteConfig::file(path.join("events.db")).synchronous(Synchronous::Normal);
    SqliteProvider::open(config.max_events(max_events)).await.unwrap()
}

async fn fill(provider: &SqliteProvider, events: usize, subject: impl Fn(usize) -> String) {
    for from in (0..events).step_by(1_000) {
        let events: Vec<_> = (from..events.min(from + 1_000)).map(|number| event(&subject(number))).collect();
        let batch: Vec<_> = events.iter().map(PublishRequest::from).collect();
        for stored in provider.publish_batch(&batch).await {
            stored.unwrap();
        }
    }
}

async fn publishes(provider: &SqliteProvider, subject: &str, count: usize) -> Vec<f64> {
    let event = event(subject);
    let mut seconds = Vec::new();
    for _ in 0..count {
        let begin = Instant::now();
        provider.publish(&event).await.unwrap();
        seconds.push(begin.elapsed().as_secs_f64());
    }
    seconds
}

/// 100 durable consumers, each behind by 100,000 subjects.
fn beside_a_listing(name: &str, runtime: &tokio::runtime::Runtime) {
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let provider = Arc::new(open(folder.path(), 0).await);
        fill(&provider, 100_000, |number| format!("events.s.u{number}")).await;
        for number in 0..100 {
            drop(provider.subscribe_durable(&format!("c{number}"), "events.s.*").await.unwrap());
        }
        report(&format!("{name}/baseline_alone"), &mut publishes(&provider, "events.s.u1", 2_000).await);
        let stops = Arc::new(AtomicBool::new(false));
        let listing = tokio::spawn({
            let (provider, stops) = (Arc::clone(&provider), Arc::clone(&stops));
            async move {
                let mut seconds = Vec::new();
                while !stops.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    assert_eq!(provider.consumers().await.unwrap().len(), 100);
                    seconds.push(begin.elapsed().as_secs_f64());
                }
                seconds
            }
        });
        report(&format!("{name}/100_durables"), &mut publishes(&provider, "events.s.u1", 4_000).await);
        stops.store(true, Ordering::Relaxed);
        report(&format!("{name}/the_listing_itself"), &mut listing.await.unwrap());
    });
}

/// 5,000 durable consumers that nobody reads, at three kinds of filters.
fn full_stream(name: &str, runtime: &tokio::runtime::Runtime) {
    runtime.block_on(async {
        for (kind, filter) in [
            ("baseline_no_consumers", None),
            ("5000_abandoned_of_everything", Some("events.>")),
            ("5000_abandoned_of_one_filter", Some("events.test.*")),
            ("5000_abandoned_of_as_many_filters", Some("events.test.c#")),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let provider = open(folder.path(), 1_000).await;
            fill(&provider, 1_000, |_| "events.test.a".to_owned()).await;
            for number in 0..5_000 {
                let Some(filter) = filter else { break };
                let filter = filter.replace('#', &number.to_string());
                drop(provider.subscribe_durable(&format!("c{number}"), &filter).await.unwrap());
            }
            report(&format!("{name}/{kind}"), &mut publishes(&provider, "events.test.a", 4_000).await);
        }
    });
}

/// Processor time of this process, from `/proc`; nothing where there is none.
fn processor_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

/// 1,000 subscriptions that wait for other subjects than the writer, 20 times a second, writes.
fn foreign_writer(name: &str, runtime: &tokio::runtime::Runtime) {
    runtime.block_on(async {
        const SECONDS: u64 = 10;
        for subscriptions in [0, 1_000] {
            let folder = tempfile::tempdir().unwrap();
            let (here, there) = (open(folder.path(), 0).await, open(folder.path(), 0).await);
            let mut waiting = Vec::new();
            for number in 0..subscriptions {
                let mut subscription: Box<dyn Subscription> = here
                    .subscribe_durable(&format!("c{number}"), &format!("events.wait.k{number}"))
                    .await
                    .unwrap();
                waiting.push(tokio::spawn(async move { subscription.next_delivery().await.map(drop) }));
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            let begin = processor_seconds();
            let mut ticks = tokio::time::interval(Duration::from_millis(50));
            for _ in 0..SECONDS * 20 {
                ticks.tick().await;
                there.publish(&event("events.other")).await.unwrap();
            }
            let used =
                processor_seconds().zip(begin).map(|(end, begin)| (end - begin) * 100.0 / SECONDS as f64);
            println!("{name}/{subscriptions}_subscriptions: {:.1} %", used.unwrap_or(f64::NAN));
            waiting.iter().for_each(tokio::task::JoinHandle::abort);
        }
    });
}

/// Ephemeral consumers that begin with the newest event of each subject.
fn many_waiting(name: &str, runtime: &tokio::runtime::Runtime) {
    runtime.block_on(async {
        for subjects in [1_000, 100_000] {
            let folder = tempfile::tempdir().unwrap();
            let provider = open(folder.path(), 0).await;
            fill(&provider, subjects, |number| format!("events.s.u{number}")).await;
            let options =
                SubscribeOptions { deliver_policy: DeliverPolicy::LastPerSubject, ..Default::default() };
            let mut subscription = provider.subscribe_with_options("events.>", &options).await.unwrap();
            let mut seconds = Vec::new();
            for _ in 0..500 {
                let begin = Instant::now();
                subscription.next_delivery().await.unwrap().unwrap().ack().await.unwrap();
                seconds.push(begin.elapsed().as_secs_f64());
            }
            report(&format!("{name}/{subjects}"), &mut seconds);
        }
    });
}

/// 300,000 events are too many from one moment to the next.
fn lowered_limit(name: &str, runtime: &tokio::runtime::Runtime) {
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let provider = open(folder.path(), 0).await;
        fill(&provider, 300_000, |number| format!("events.s.u{}", number % 1_000)).await;
        report(&format!("{name}/baseline_no_limit"), &mut publishes(&provider, "events.s.u1", 1_000).await);
        provider.close().await.unwrap();
        let provider = open(folder.path(), 1_000).await;
        report(&format!("{name}/1000_events"), &mut publishes(&provider, "events.s.u1", 1_000).await);
    });
}
