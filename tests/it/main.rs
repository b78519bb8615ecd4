//! The bus and its providers as users see them; defects of earlier versions, and faults of real servers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests panic, and print what they measured"
)]

mod allocations;
mod backend;
#[cfg(all(
    feature = "encryption",
    feature = "http",
    feature = "json-schema",
    feature = "nats",
    feature = "routing",
    feature = "sqlite",
    feature = "webhook"
))]
mod canary;
#[cfg(feature = "cloudevents")]
mod cloudevents;
mod codec;
mod consumer;
mod dead_letters;
#[cfg(all(feature = "nats", feature = "sqlite"))]
mod differential;
mod documentation;
#[cfg(all(feature = "cloudevents", feature = "cron", feature = "encryption"))]
mod fuzz;
mod letters;
mod memory;
#[cfg(feature = "nats")]
mod nats;
#[cfg_attr(not(feature = "nats"), allow(dead_code, reason = "only these tests kill processes"))]
#[path = "../support/process.rs"]
mod process;
mod publish;
mod random;
mod records;
mod replays;
#[cfg(feature = "routing")]
mod routing;
mod secrecy;
#[cfg(feature = "sqlite")]
#[path = "../support/sqlite.rs"]
mod sqlite_file;
mod state;
mod stress;
mod subscriptions;
mod telemetry;
mod traced;

use std::time::Duration;

use a3s_event::{Delivery, Event, EventBus, MemoryProvider, Subscription};

/// Whether what takes long is wanted too.
fn slow_tier() -> bool {
    std::env::var_os("A3S_EVENT_SLOW").is_some()
}

fn bus() -> EventBus {
    EventBus::new(MemoryProvider::default())
}

fn event(subject: &str, number: u64) -> Event {
    Event::new(subject, "market", "", "it", serde_json::json!({ "number": number }))
}

fn number(delivery: &Delivery) -> u64 {
    delivery.event().payload["number"].as_u64().expect("a numbered event")
}

/// The next delivery; the test fails when there is none. On a paused clock the wait costs nothing.
async fn next(subscription: &mut Box<dyn Subscription>) -> Delivery {
    tokio::time::timeout(Duration::from_secs(100), subscription.next_delivery())
        .await
        .expect("nothing was delivered")
        .expect("an error was delivered")
        .expect("the subscription ended")
}

/// Waits until something is as it should be.
async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("not so: {what}"));
}

/// Nothing is delivered for a while.
async fn assert_idle(subscription: &mut Box<dyn Subscription>, wait: Duration) {
    let waited = tokio::time::timeout(wait, subscription.next_delivery()).await;
    assert!(waited.is_err(), "unexpected: {waited:?}");
}
