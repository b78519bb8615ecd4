//! What the conformance kit cannot see of the Redis provider: servers that are killed, replaced, moved and slow, while
//! programs publish and consume.

#![cfg(unix)]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot be set up fails, as it should, and says what it could not check"
)]

mod crash;
#[cfg(target_os = "linux")]
mod disk;
mod load;
mod migration;
mod promotion;
mod stored;
#[path = "../it/traced.rs"]
mod traced;

use std::path::PathBuf;
use std::time::Duration;

use a3s_event::provider::redis::{RedisConfig, RedisProvider};
use a3s_event::{Delivery, Event, SubscribeOptions, Subscription};
use a3s_event_testkit::servers::redis::versions;
use futures_util::future::join_all;

/// No wait of these tests is longer.
const DEADLINE: Duration = Duration::from_secs(30);
const FILTER: &str = "events.>";

/// Runs a test on each version at the same time, because it waits more than it works.
async fn on_each(test: impl AsyncFn(&'static str, PathBuf)) {
    join_all(versions().into_iter().map(|(version, binary)| test(version, binary))).await;
}

fn event(topic: &str) -> Event {
    Event::new(format!("events.test.{topic}"), "test", topic, "test", serde_json::json!({}))
}

async fn open(config: RedisConfig) -> RedisProvider {
    // Shorter than most faults, so that calls fail.
    RedisProvider::connect(config.timeout(Duration::from_millis(500))).await.unwrap()
}

/// Waits until something holds.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let seen = tokio::time::timeout(DEADLINE, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(seen.await.is_ok(), "not seen in time: {what}");
}

/// Options of a durable consumer whose leases last a second.
fn short_leases() -> SubscribeOptions {
    SubscribeOptions { ack_wait_secs: Some(1), ..SubscribeOptions::default() }
}

async fn next(subscription: &mut dyn Subscription) -> Delivery {
    let next = tokio::time::timeout(DEADLINE, subscription.next_delivery()).await;
    next.expect("a delivery in time").unwrap().expect("an open subscription")
}
