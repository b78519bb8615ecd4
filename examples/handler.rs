//! A service that starts a consumer, runs it until SIGTERM, and drains it.
//!
//! ```text
//! cargo run --example handler
//! ```

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::time::Duration;

use a3s_event::consumer::{HandlerError, HandlerResult, RetryPolicy};
use a3s_event::{Delivery, EventBus, Result, shutdown};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Order {
    number: u64,
    total: i64,
}

#[tokio::main]
async fn main() -> Result<()> {
    // From here on, SIGTERM and Ctrl-C end this process in order.
    let terminated = shutdown::terminated()?;
    let bus = EventBus::connect("memory://").await?;
    the_rest_of_the_world(&bus).await?;

    let policy = RetryPolicy::default().attempts(5).timeout(Duration::from_secs(10));
    let billing = bus.consumer("billing").subject("events.orders.>").concurrency(4).policy(policy);
    let billing = billing.handle_typed(bill).await?;
    billing.run_until(|| terminated.recv()).await?;

    println!("drained: {:?}", billing.stats());
    bus.close().await
}

/// Bills an order. `Ok` acks the event. An error is retried, unless it is fatal.
async fn bill(order: Order, delivery: Delivery) -> HandlerResult {
    if order.total < 0 {
        return Err(HandlerError::fatal("the total is negative"));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    println!("order {} billed at delivery {}", order.number, delivery.num_delivered());
    Ok(())
}

/// Publishes orders, and sends SIGTERM to this process after 350 ms.
async fn the_rest_of_the_world(bus: &EventBus) -> Result<()> {
    for number in 1..=20 {
        let total = if number == 7 { -1 } else { 10 * number };
        let payload = json!({"number": number, "total": total});
        bus.publish("orders", "placed", "an order was placed", "shop", payload).await?;
    }
    tokio::spawn(async {
        tokio::time::sleep(Duration::from_millis(350)).await;
        let pid = std::process::id().to_string();
        std::process::Command::new("kill").args(["-TERM", &pid]).spawn()
    });
    Ok(())
}
