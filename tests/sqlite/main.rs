//! What the conformance kit cannot see of the SQLite provider: other processes, crashes, and files that are not as they
//! should be.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot be set up fails, as it should, and says what it could not check"
)]

mod acks;
mod child;
mod crash;
#[cfg(unix)]
mod files;
#[cfg(unix)]
mod place;
#[path = "../support/process.rs"]
mod process;
mod processes;
mod retention;
mod upgrade;

use std::path::Path;
use std::time::Duration;

use a3s_event::provider::sqlite::{SqliteConfig, SqliteProvider};
use a3s_event::{Delivery, Event, EventProvider, Result, SubscribeOptions, Subscription};

/// No wait of these tests is longer.
const DEADLINE: Duration = Duration::from_secs(20);
const FILTER: &str = "events.>";

async fn open(path: &Path) -> SqliteProvider {
    SqliteProvider::connect(SqliteConfig::file(path)).await.unwrap()
}

fn event(topic: &str) -> Event {
    Event::new(format!("events.test.{topic}"), "test", topic, "test", serde_json::json!({}))
}

async fn publish(provider: &SqliteProvider, topic: &str) -> u64 {
    provider.publish(&event(topic)).await.unwrap()
}

/// The next delivery; `None` when the consumer of this process's file, the durable or the ephemeral one, has settled all that
/// is stored.
async fn next_unless_settled(
    provider: &SqliteProvider,
    is_durable: bool,
    subscription: &mut dyn Subscription,
) -> Option<Result<Option<Delivery>>> {
    let next = async {
        loop {
            let next = tokio::time::timeout(Duration::from_millis(100), subscription.next_delivery());
            if let Ok(answer) = next.await {
                return Some(answer);
            }
            let consumers = provider.consumers().await.unwrap();
            let consumer = consumers.iter().find(|consumer| consumer.durable == is_durable).unwrap();
            if consumer.lag == 0 && consumer.pending == 0 {
                return None;
            }
        }
    };
    tokio::time::timeout(DEADLINE, next).await.expect("a delivery, or everything settled")
}

/// A durable consumer whose leases last a second.
async fn durable(provider: &SqliteProvider, name: &str) -> Box<dyn Subscription> {
    let options = SubscribeOptions { ack_wait_secs: Some(1), ..Default::default() };
    provider.subscribe_durable_with_options(name, FILTER, &options).await.unwrap()
}
