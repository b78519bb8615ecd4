//! What the conformance kit cannot see of the Redis provider: servers that are killed, replaced, moved, slow and full, other
//! programs beside it, few permissions, and what it costs the server.

#![cfg(unix)]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot be set up fails, as it should, and says what it could not check"
)]

mod ahead;
mod cost;
mod crash;
#[cfg(target_os = "linux")]
mod disk;
mod foreign;
mod idle;
mod load;
mod lost;
mod memory;
mod migration;
mod permissions;
mod promotion;
mod stored;
#[path = "../it/traced.rs"]
mod traced;

use std::path::PathBuf;
use std::time::Duration;

use a3s_event::provider::PublishRequest;
use a3s_event::provider::redis::{RedisConfig, RedisProvider};
use a3s_event::{Delivery, Event, EventProvider, SubscribeOptions, Subscription};
use a3s_event_testkit::servers::redis::{RedisServer, versions};
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

/// An event with a number as its payload.
fn numbered(number: u64) -> Event {
    Event::new(format!("events.test.{}", number % 10), "test", "", "test", number.into())
}

async fn connect(server: &RedisServer) -> RedisProvider {
    RedisProvider::connect(config(server)).await.unwrap()
}

fn config(server: &RedisServer) -> RedisConfig {
    RedisConfig::at(server.address().to_string())
}

async fn publish_numbers(provider: &RedisProvider, numbers: std::ops::RangeInclusive<u64>) {
    let events: Vec<_> = numbers.map(numbered).collect();
    for chunk in events.chunks(500) {
        let batch: Vec<_> = chunk.iter().map(PublishRequest::from).collect();
        for answer in provider.publish_batch(&batch).await {
            answer.unwrap();
        }
    }
}
