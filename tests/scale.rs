//! The cost of a publish and of a fetch with many neighbours, at scale, at a limit and beside other work, as a ratio to
//! the same calls without. A ratio above 3 fails. Slow, and meaningful only in a release build on a quiet machine:
//! `scripts/test --slow scale`.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use a3s_event::provider::support::OwnedTask;
use a3s_event::provider::{PublishReceipt, PublishRequest};
use a3s_event::{Event, EventProvider, ProviderRegistry, SqliteProvider};
use a3s_event_testkit::NatsServer;

/// Ratio from which on a situation fails.
const LIMIT: f64 = 3.0;
/// Events of one measurement.
const EVENTS: usize = 300;
/// Measurements of one situation; the median counts.
const ROUNDS: usize = 7;

/// What is there or happens while the calls are measured.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Situation {
    Alone,
    IdleDurables(usize),
    Subjects(usize),
    ForeignWriter,
    FullStream,
    ListingConsumers,
    Backup,
}

const SITUATIONS: [Situation; 8] = [
    Situation::Alone,
    Situation::IdleDurables(900),
    Situation::IdleDurables(5_000),
    Situation::Subjects(100_000),
    Situation::ForeignWriter,
    Situation::FullStream,
    Situation::ListingConsumers,
    Situation::Backup,
];

/// A place for one stream, fresh in each situation.
enum Place {
    Memory,
    Folder(tempfile::TempDir),
    Server(NatsServer),
}

impl Place {
    /// Connects to the stream with these settings. Memory has one connection only.
    async fn connect(&self, settings: &str) -> Arc<dyn EventProvider> {
        let url = match self {
            Self::Memory => "memory://".to_owned(),
            Self::Folder(folder) => format!("sqlite://{}", folder.path().join("events.db").display()),
            Self::Server(server) => format!("{}/SCALE", server.url()),
        };
        ProviderRegistry::builtin().connect(&format!("{url}{settings}")).await.unwrap()
    }

    fn has(&self, situation: Situation) -> bool {
        match situation {
            Situation::ForeignWriter => !matches!(self, Self::Memory),
            Situation::Backup => matches!(self, Self::Folder(_)),
            // nats-server refuses more than 1,000 consumers of one stream.
            Situation::IdleDurables(count) => count < 1_000 || !matches!(self, Self::Server(_)),
            _ => true,
        }
    }
}

fn event(subject: String) -> Event {
    Event::builder(subject).payload("x".repeat(100)).build()
}

async fn publish_all(provider: &dyn EventProvider, subjects: impl Iterator<Item = String>) {
    let subjects: Vec<String> = subjects.collect();
    for chunk in subjects.chunks(1_000) {
        let events: Vec<Event> = chunk.iter().cloned().map(event).collect();
        let requests: Vec<PublishRequest<'_>> = events.iter().map(PublishRequest::from).collect();
        let stored: Result<Vec<PublishReceipt>, _> =
            provider.publish_batch(&requests).await.into_iter().collect();
        stored.unwrap();
    }
}

/// Brings about a situation. What goes on in it ends with the returned task.
async fn begin(
    situation: Situation,
    place: &Place,
    provider: &Arc<dyn EventProvider>,
) -> Option<OwnedTask<()>> {
    match situation {
        Situation::Alone => None,
        Situation::IdleDurables(count) => {
            for number in 0..count {
                let filter = format!("events.idle.{number}");
                drop(provider.subscribe_durable(&format!("idle-{number}"), &filter).await.unwrap());
            }
            None
        }
        Situation::Subjects(count) => {
            publish_all(&**provider, (0..count).map(|number| format!("events.many.{number}"))).await;
            None
        }
        Situation::FullStream => {
            publish_all(&**provider, (0..2_000).map(|_| "events.old".to_owned())).await;
            None
        }
        Situation::ForeignWriter => {
            let foreign = place.connect("").await;
            Some(OwnedTask::spawn(async move {
                loop {
                    foreign.publish(&event("events.foreign".to_owned())).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }))
        }
        Situation::ListingConsumers => {
            for number in 0..100 {
                drop(provider.subscribe_durable(&format!("idle-{number}"), "events.idle.>").await.unwrap());
            }
            let provider = Arc::clone(provider);
            Some(OwnedTask::spawn(async move {
                loop {
                    provider.consumers().await.unwrap();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }))
        }
        Situation::Backup => {
            publish_all(&**provider, (0..20_000).map(|_| "events.old".to_owned())).await;
            let provider = Arc::clone(provider);
            Some(OwnedTask::spawn(async move {
                let folder = tempfile::tempdir().unwrap();
                let sqlite: &SqliteProvider = provider.as_any().unwrap().downcast_ref().unwrap();
                for number in 0_u64.. {
                    sqlite.backup(folder.path().join(number.to_string())).await.unwrap();
                }
            }))
        }
    }
}

/// Returns the time per event of publishing and of fetching with acks.
async fn measure(provider: &Arc<dyn EventProvider>) -> [Duration; 2] {
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        let subject = format!("events.measured.{round}");
        let mut consumer = provider.subscribe_durable(&format!("measured-{round}"), &subject).await.unwrap();
        let begin = Instant::now();
        for _ in 0..EVENTS {
            provider.publish(&event(subject.clone())).await.unwrap();
        }
        let published = begin.elapsed();
        let begin = Instant::now();
        let mut fetched = 0;
        while fetched < EVENTS {
            for delivery in
                consumer.next_batch(50, Duration::from_secs(10)).await.expect("the consumer is open")
            {
                delivery.unwrap().ack().await.unwrap();
                fetched += 1;
            }
        }
        consumer.flush().await.unwrap();
        times[0].push(published);
        times[1].push(begin.elapsed());
        consumer.close().await.unwrap();
        provider.unsubscribe(&format!("measured-{round}")).await.unwrap();
    }
    times.map(|mut times| {
        times.sort_unstable();
        times[ROUNDS / 2] / u32::try_from(EVENTS).unwrap()
    })
}

async fn compare<F: Future<Output = Place>>(name: &str, place: impl Fn() -> F) {
    let mut alone = None;
    let mut too_slow = Vec::new();
    for situation in SITUATIONS {
        let place = place().await;
        if !place.has(situation) {
            continue;
        }
        let settings = if situation == Situation::FullStream { "?max_events=1000" } else { "" };
        let provider = place.connect(settings).await;
        let going_on = begin(situation, &place, &provider).await;
        let [publish, fetch] = measure(&provider).await;
        drop(going_on);
        let [publish_alone, fetch_alone] = *alone.get_or_insert([publish, fetch]);
        for (call, took, alone) in [("publish", publish, publish_alone), ("fetch", fetch, fetch_alone)] {
            let ratio = took.as_secs_f64() / alone.as_secs_f64();
            println!("{name:8} {call:8} {ratio:6.2}  {took:>12.3?}  {situation:?}");
            if ratio > LIMIT {
                too_slow.push(format!("{call} {situation:?}: {ratio:.2}"));
            }
        }
        provider.close().await.unwrap();
    }
    assert!(too_slow.is_empty(), "{name}: {too_slow:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow: scripts/test --slow scale"]
async fn scale_memory() {
    compare("memory", || async { Place::Memory }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow: scripts/test --slow scale"]
async fn scale_sqlite() {
    compare("sqlite", || async { Place::Folder(tempfile::tempdir().unwrap()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow: scripts/test --slow scale"]
async fn scale_nats() {
    compare("nats", || async { Place::Server(NatsServer::start().await) }).await;
}
