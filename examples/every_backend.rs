//! One program on every backend: the URL decides where the events are kept.
//!
//! ```text
//! cargo run --example every_backend
//! cargo run --example every_backend --features redis,sqlite -- memory:// sqlite::memory: nats://127.0.0.1/EXAMPLE redis://127.0.0.1/example
//! ```
//!
//! Each argument is the URL of a bus; the default is `memory://`. A NATS server needs JetStream: `nats-server -js`.

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::time::Duration;

use a3s_event::provider::ProviderUrl;
use a3s_event::{Durability, EventBus, EventError, PublishOptions, Result, SubscriptionFilter};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<()> {
    let mut urls: Vec<_> = std::env::args().skip(1).collect();
    if urls.is_empty() {
        urls.push("memory://".to_owned());
    }
    for url in urls {
        let bus = EventBus::connect(&url).await?;
        // A parsed URL hides its credentials when it is printed.
        println!("{}", ProviderUrl::parse(&url)?);
        run(&bus).await?;
        bus.close().await?;
    }
    Ok(())
}

/// The same on every provider. What differs, the provider declares.
async fn run(bus: &EventBus) -> Result<()> {
    let survives = match bus.provider().capabilities().durability {
        Durability::None => "not a restart",
        Durability::ProcessCrash => "a crash of the process",
        Durability::PowerLoss => "a power loss",
        _ => "what the provider declares",
    };
    println!("  a stored event survives {survives}");

    bus.update_subscription(SubscriptionFilter {
        subscriber_id: "shipping".to_owned(),
        subjects: vec![bus.provider().build_subject("orders", ">")],
        durable: true,
        options: None,
    })
    .await?;
    let mut orders = bus.create_subscriber("shipping").await?.remove(0);

    // The id of the order makes a repeated publish store nothing.
    let order = bus.publish("orders", "placed", "an order", "example", json!({"total": 4_750})).await?;
    let again = PublishOptions { msg_id: Some(format!("ship-{}", order.id)), ..PublishOptions::default() };
    let first = bus.publish_event_with_receipt(&order, &again).await?;
    let second = bus.publish_event_with_receipt(&order, &again).await?;
    println!("  a repeated publish is a duplicate: {}", !first.duplicate && second.duplicate);

    let delivery = next(&mut *orders).await?;
    delivery.nak_after(Duration::ZERO).await?;
    loop {
        let delivery = next(&mut *orders).await?;
        let is_redelivered = delivery.num_delivered() == 2;
        delivery.ack_confirmed().await?;
        if is_redelivered {
            println!("  a nacked event is redelivered: true");
            break;
        }
    }
    orders.close().await?;
    bus.remove_subscription("shipping").await
}

async fn next(orders: &mut dyn a3s_event::Subscription) -> Result<a3s_event::Delivery> {
    let next = tokio::time::timeout(Duration::from_secs(10), orders.next_delivery()).await;
    let next = next.map_err(|_| EventError::Timeout("no delivery within 10 s".to_owned()))??;
    next.ok_or_else(|| EventError::Closed("the subscription has ended".to_owned()))
}
