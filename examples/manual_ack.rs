//! Manual acknowledgement with `ack`, `nak_after`, `term` and `extend`.
//!
//! ```text
//! cargo run --example manual_ack
//! ```

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::time::Duration;

use a3s_event::{Delivery, Event, EventError, EventProvider, MemoryProvider, Result, SubscribeOptions};
use serde_json::json;

/// Timeout of every wait in this program.
const DEADLINE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<()> {
    let provider = MemoryProvider::default();
    for (topic, amount) in [("paid", json!(30)), ("flaky", json!(12)), ("broken", json!("twelve"))] {
        let subject = provider.build_subject("orders", topic);
        let event = Event::new(subject, "orders", topic, "shop", json!({ "amount": amount }));
        provider.publish(&event).await?;
    }

    let options = SubscribeOptions { max_deliver: Some(5), ack_wait_secs: Some(30), ..Default::default() };
    let mut orders = provider.subscribe_durable_with_options("billing", "events.orders.>", &options).await?;

    let mut settled = 0;
    while settled < 3 {
        let batch = orders.next_batch(10, DEADLINE).await.unwrap_or_default();
        if batch.is_empty() {
            return Err(EventError::Timeout("waiting for orders".to_owned()));
        }
        for delivery in batch {
            settled += handle(delivery?).await?;
        }
    }

    let left: u64 = provider.consumers().await?.iter().map(|consumer| consumer.pending + consumer.lag).sum();
    println!("unsettled events: {left}");
    orders.close().await
}

/// Handles one delivery and returns the number of finished orders, 0 or 1.
async fn handle(delivery: Delivery) -> Result<usize> {
    let (topic, attempt) = (delivery.event().summary.clone(), delivery.num_delivered());
    let amount = delivery.event().payload.get("amount").and_then(serde_json::Value::as_u64);
    match (amount, topic.as_str(), attempt) {
        // This order can never be processed: settle it without redelivery, with a reason.
        (None, _, _) => {
            println!("{topic}, attempt {attempt}: term");
            delivery.term("the amount is not a number").await?;
            Ok(1)
        }
        // This order may succeed later: request redelivery after a delay.
        (Some(_), "flaky", 1) => {
            println!("{topic}, attempt {attempt}: nak_after 100 ms");
            delivery.nak_after(Duration::from_millis(100)).await?;
            Ok(0)
        }
        // This order takes longer than expected: restart the lease, continue, and ack.
        (Some(amount), _, _) => {
            delivery.extend().await?;
            println!("{topic}, attempt {attempt}: ack, {amount} billed");
            delivery.ack().await?;
            Ok(1)
        }
    }
}
