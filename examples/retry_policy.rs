//! Retries: a growing backoff, a delay that the handler chooses, a timeout, and errors that no retry can fix.
//!
//! ```text
//! cargo run --example retry_policy
//! ```

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::sync::Arc;
use std::time::Duration;

use a3s_event::consumer::{Backoff, HandlerError, HandlerResult, RetryPolicy};
use a3s_event::{Delivery, DlqHandler, EventBus, MemoryDlqHandler, MemoryProvider, Result};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

#[derive(Deserialize)]
struct Mail {
    to: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let dead_letters = Arc::new(MemoryDlqHandler::default());
    let bus =
        EventBus::builder(MemoryProvider::default()).dlq_handler(Arc::clone(&dead_letters) as _).build()?;

    let policy = RetryPolicy::default()
        .attempts(4)
        .backoff(Backoff::exponential(Duration::from_millis(50), Duration::from_secs(1)).jitter(0.0))
        .timeout(Duration::from_millis(200))
        // A payload that is not what the handler expects will not become so.
        .fatal_on::<serde_json::Error>();
    let started = Instant::now();
    let handler = move |delivery: Delivery| send(delivery, started);
    let mail =
        bus.consumer("mail").subject("events.mail.>").concurrency(4).policy(policy).handle(handler).await?;

    for (topic, payload) in [
        ("flaky", json!({"to": "grete@example.com"})),
        ("busy", json!({"to": "emmy@example.com"})),
        ("slow", json!({"to": "sofja@example.com"})),
        ("broken", json!("not an object")),
    ] {
        bus.publish("mail", topic, topic, "example", payload).await?;
    }

    while mail.stats().handled + mail.stats().dead_lettered < 4 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    mail.shutdown().await?;
    for letter in dead_letters.list(10).await? {
        println!("dead letter: {}: {}", letter.event.event.summary, letter.reason);
    }
    bus.close().await
}

async fn send(delivery: Delivery, started: Instant) -> HandlerResult {
    let (topic, attempt) = (delivery.event().summary.clone(), delivery.num_delivered());
    println!("{:>4} ms  {topic}, attempt {attempt}", started.elapsed().as_millis());
    let mail = Mail::deserialize(&delivery.event().payload)?;
    match (topic.as_str(), attempt) {
        // An ordinary error: the policy's backoff decides when the next attempt is.
        ("flaky", ..3) => Err("the connection was reset".into()),
        // The server said when to call again.
        ("busy", 1) => Err(HandlerError::retry_after("the server is busy", Duration::from_millis(300))),
        // Hangs: each attempt ends with the timeout, and the last one with a dead letter.
        ("slow", _) => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok(())
        }
        _ => {
            println!("         {topic}: sent to {}", mail.to);
            Ok(())
        }
    }
}
