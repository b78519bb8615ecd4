//! The cost of many consumers for publishers, mostly on a SQLite file. Each figure has a baseline without the
//! consumers.
//!
//! `cargo bench --bench sqlite_consumers --features sqlite [-- FILTER]`. Each figure is the median of its seconds,
//! between the lowest and the highest. The share of a core is printed in percent, and figures with a bound as a ratio.
//! The files are in `TMPDIR`. Set it to a folder in memory, such as `/dev/shm`, to exclude the disk from the figures.

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a benchmark may panic, and prints"
)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use a3s_event::provider::PublishRequest;
use a3s_event::provider::sqlite::{SqliteConfig, SqliteProvider, Synchronous};
use a3s_event::{DeliverPolicy, Event, EventProvider, MemoryProvider, SubscribeOptions, Subscription};

/// First argument of the process that writes for [`foreign_writer`]. The second argument is the folder.
const WRITER: &str = "--write-beside";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, folder] = arguments.as_slice()
        && first == WRITER
    {
        return write_beside(Path::new(folder));
    }
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

/// Prints the lowest, the median and the highest, and returns the last two.
fn report(name: &str, seconds: &mut [f64]) -> (f64, f64) {
    seconds.sort_by(f64::total_cmp);
    let found = [0, seconds.len() / 2, seconds.len() - 1].map(|at| seconds[at]);
    let [low, middle, high] = found.map(|seconds| format!("{:.2} us", seconds * 1e6));
    println!("{name:<70} time: [{low} {middle} {high}]");
    (found[1], found[2])
}

fn report_ratio(name: &str, what: &str, ratio: f64) {
    println!("{name:<70} {what}: {ratio:.2}");
}

/// Returns the median of `numbers`.
fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn event(subject: &str) -> Event {
    Event::new(subject, "bench", "", "bench", serde_json::json!({ "price": 6.31, "pair": "USD/CNY" }))
}

async fn open(path: &Path, max_events: u64) -> SqliteProvider {
    let config = SqliteConfig::file(path.join("events.db")).synchronous(Synchronous::Normal);
    SqliteProvider::connect(config.max_events(max_events)).await.unwrap()
}

async fn fill(provider: &dyn EventProvider, events: usize, subject: impl Fn(usize) -> String) {
    for from in (0..events).step_by(1_000) {
        let events: Vec<_> = (from..events.min(from + 1_000)).map(|number| event(&subject(number))).collect();
        let batch: Vec<_> = events.iter().map(PublishRequest::from).collect();
        for stored in provider.publish_batch(&batch).await {
            stored.unwrap();
        }
    }
}

async fn publishes(provider: &dyn EventProvider, subject: &str, count: usize) -> Vec<f64> {
    let event = event(subject);
    let mut seconds = Vec::new();
    for _ in 0..count {
        let begin = Instant::now();
        provider.publish(&event).await.unwrap();
        seconds.push(begin.elapsed().as_secs_f64());
    }
    seconds
}

/// Number of rounds for figures about the slowest of many publishes, because one hiccup of the machine decides them.
const ROUNDS: usize = 7;

/// Measures publishes beside listings of 100 durable consumers, each behind by 100,000 subjects.
fn beside_a_listing(name: &str, runtime: &tokio::runtime::Runtime) {
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        // The default settings: each publish waits for the disk.
        let config = SqliteConfig::file(folder.path().join("events.db"));
        let provider = Arc::new(SqliteProvider::connect(config.max_events(0)).await.unwrap());
        fill(&*provider, 100_000, |number| format!("events.s.u{number}")).await;
        for number in 0..100 {
            drop(provider.subscribe_durable(&format!("c{number}"), "events.s.*").await.unwrap());
        }
        let mut ratios = [Vec::new(), Vec::new()];
        let mut listings = Vec::new();
        for round in 1..=ROUNDS {
            for (kind, lists) in [("baseline_alone", false), ("100_durables", true)] {
                let stops = Arc::new(AtomicBool::new(false));
                let until = Instant::now() + Duration::from_secs(2);
                let listing =
                    tokio::spawn(list_until(Arc::clone(&provider), until, Arc::clone(&stops), lists));
                let mut seconds = Vec::new();
                while !stops.load(Ordering::Relaxed) {
                    seconds.extend(publishes(&*provider, "events.s.u1", 1).await);
                }
                listings.extend(listing.await.unwrap());
                let (median, longest) = report(&format!("{name}/{kind}/{round}"), &mut seconds);
                ratios[usize::from(lists)].push(longest / median);
            }
        }
        report(&format!("{name}/the_listing_itself"), &mut listings);
        let what = format!("longest / median publish, median of {ROUNDS} rounds");
        for (ratios, kind) in ratios.iter_mut().zip(["baseline_alone", "100_durables"]) {
            report_ratio(&format!("{name}/{kind}"), &what, median(ratios));
        }
    });
}

/// Lists the consumers repeatedly until `until`, if asked to, and returns the seconds of each listing.
async fn list_until(
    provider: Arc<SqliteProvider>,
    until: Instant,
    stops: Arc<AtomicBool>,
    lists: bool,
) -> Vec<f64> {
    let mut seconds = Vec::new();
    while lists && Instant::now() < until {
        let begin = Instant::now();
        assert_eq!(provider.consumers().await.unwrap().len(), 100);
        seconds.push(begin.elapsed().as_secs_f64());
    }
    tokio::time::sleep_until(until.into()).await;
    stops.store(true, Ordering::Relaxed);
    seconds
}

/// Measures publishes into a full stream with 5,000 durable consumers that have no readers, for three kinds of filters.
fn full_stream(name: &str, runtime: &tokio::runtime::Runtime) {
    runtime.block_on(async {
        for store in ["sqlite", "memory"] {
            let mut baseline = None;
            for (kind, filter) in [
                ("baseline_no_consumers", None),
                ("5000_abandoned_of_everything", Some("events.>")),
                ("5000_abandoned_of_one_filter", Some("events.test.*")),
                ("5000_abandoned_of_as_many_filters", Some("events.test.c#")),
            ] {
                let folder = tempfile::tempdir().unwrap();
                let provider: Box<dyn EventProvider> = match store {
                    "memory" => Box::new(MemoryProvider::builder().max_events(1_000).build().unwrap()),
                    _ => Box::new(open(folder.path(), 1_000).await),
                };
                fill(&*provider, 1_000, |_| "events.test.a".to_owned()).await;
                for number in 0..5_000 {
                    let Some(filter) = filter else { break };
                    let filter = filter.replace('#', &number.to_string());
                    drop(provider.subscribe_durable(&format!("c{number}"), &filter).await.unwrap());
                }
                let name = format!("{name}/{store}/{kind}");
                let (median, _) = report(&name, &mut publishes(&*provider, "events.test.a", 4_000).await);
                report_ratio(&name, "median / median without", median / *baseline.get_or_insert(median));
            }
        }
    });
}

/// Returns the processor seconds of this process from `/proc`, or `None` if that does not exist.
fn processor_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

/// Writes 20 times a second until standard input ends.
fn write_beside(folder: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(|| {
        // Waits for the end of standard input: the other process writes nothing and only closes it.
        let _ = std::io::stdin().read_line(&mut String::new());
        std::process::exit(0);
    });
    runtime.block_on(async {
        let provider = open(folder, 0).await;
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        loop {
            ticks.tick().await;
            provider.publish(&event("events.other")).await.unwrap();
        }
    });
}

fn spawn_writer(folder: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(WRITER).arg(folder).stdin(Stdio::piped()).spawn().unwrap()
}

/// Measures 1,000 subscriptions that wait while another process writes to other subjects 20 times a second.
///
/// The processor time of that process does not count.
fn foreign_writer(name: &str, runtime: &tokio::runtime::Runtime) {
    runtime.block_on(async {
        const SECONDS: u64 = 10;
        for subscriptions in [0, 1_000] {
            let folder = tempfile::tempdir().unwrap();
            let here = open(folder.path(), 0).await;
            let mut waiting = Vec::new();
            for number in 0..subscriptions {
                let mut subscription: Box<dyn Subscription> = here
                    .subscribe_durable(&format!("c{number}"), &format!("events.wait.k{number}"))
                    .await
                    .unwrap();
                waiting.push(tokio::spawn(async move { subscription.next_delivery().await.map(drop) }));
            }
            let mut writer = spawn_writer(folder.path());
            tokio::time::sleep(Duration::from_secs(2)).await;
            let (begin, stored) = (processor_seconds(), here.info().await.unwrap().messages);
            tokio::time::sleep(Duration::from_secs(SECONDS)).await;
            let used =
                processor_seconds().zip(begin).map(|(end, begin)| (end - begin) * 100.0 / SECONDS as f64);
            let written = here.info().await.unwrap().messages - stored;
            drop(writer.stdin.take());
            writer.wait().unwrap();
            let used = used.unwrap_or(f64::NAN);
            println!(
                "{name}/{subscriptions}_subscriptions: {used:.1} % beside {written} writes in {SECONDS} s"
            );
            waiting.iter().for_each(tokio::task::JoinHandle::abort);
        }
    });
}

/// Measures ephemeral consumers that begin with the newest event of each subject.
fn many_waiting(name: &str, runtime: &tokio::runtime::Runtime) {
    runtime.block_on(async {
        let mut baseline = None;
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
            let name = format!("{name}/{subjects}");
            let (median, _) = report(&name, &mut seconds);
            report_ratio(&name, "median / median of 1000", median / *baseline.get_or_insert(median));
        }
    });
}

/// Measures publishes after the limit is lowered to 1,000 events, with 300,000 events stored.
fn lowered_limit(name: &str, runtime: &tokio::runtime::Runtime) {
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let provider = open(folder.path(), 0).await;
        fill(&provider, 300_000, |number| format!("events.s.u{}", number % 1_000)).await;
        let alone = report(
            &format!("{name}/baseline_no_limit"),
            &mut publishes(&provider, "events.s.u1", 1_000).await,
        );
        provider.close().await.unwrap();
        let provider = open(folder.path(), 1_000).await;
        let name = format!("{name}/1000_events");
        let beside = report(&name, &mut publishes(&provider, "events.s.u1", 1_000).await);
        report_ratio(&name, "median / median without", beside.0 / alone.0);
        report_ratio(&name, "longest / longest without", beside.1 / alone.1);
        println!("{name}: {} events are left to be removed", provider.info().await.unwrap().messages - 1_000);
    });
}
