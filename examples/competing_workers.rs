//! Two workers share one durable consumer. One of them dies while it holds an event, and the other one receives it.
//!
//! ```text
//! cargo run --example competing_workers
//! ```

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::time::Duration;

use a3s_event::{
    EventBus, EventError, PendingEvent, ReceivedEvent, Result, SubscribeOptions, Subscription,
    SubscriptionFilter,
};
use serde_json::json;

/// Timeout of every wait in this program.
const DEADLINE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<()> {
    let bus = EventBus::connect("memory://").await?;
    bus.update_subscription(SubscriptionFilter {
        subscriber_id: "resize".to_owned(),
        subjects: vec!["events.photo.>".to_owned()],
        durable: true,
        options: Some(SubscribeOptions {
            // Lease of a worker. The event is redelivered when it expires.
            ack_wait_secs: Some(1),
            ..Default::default()
        }),
    })
    .await?;
    // Opening the same durable twice makes two members of one group.
    let mut ann = worker(&bus).await?;
    let mut bob = worker(&bus).await?;

    for number in 1..=6 {
        let summary = format!("photo {number}");
        bus.publish("photo", "uploaded", &summary, "camera", json!({ "number": number })).await?;
    }

    // The workers share the work: each photo goes to one of them.
    for _ in 0..2 {
        report("ann", &done(&mut ann).await?);
        report("bob", &done(&mut bob).await?);
    }

    // Ann takes a photo and dies without an ack or a nak, so the photo stays leased until her lease expires.
    let held = next(&mut ann).await?;
    println!("ann receives {} and crashes", held.received.event.summary);
    drop(held);
    drop(ann);

    // Bob receives the last photo, and then Ann's, one second after she took it.
    for _ in 0..2 {
        report("bob", &done(&mut bob).await?);
    }
    bus.close().await
}

async fn worker(bus: &EventBus) -> Result<Box<dyn Subscription>> {
    let mut subscriptions = bus.create_subscriber("resize").await?;
    subscriptions.pop().ok_or_else(|| EventError::NotFound("subscription 'resize'".to_owned()))
}

/// Receives the next event, or fails when `DEADLINE` has passed.
async fn next(worker: &mut Box<dyn Subscription>) -> Result<PendingEvent> {
    let next = tokio::time::timeout(DEADLINE, worker.next_manual_ack()).await;
    let pending = next.map_err(|_elapsed| EventError::Timeout("waiting for a photo".to_owned()))??;
    pending.ok_or_else(|| EventError::Closed("subscription 'resize'".to_owned()))
}

/// Receives the next event, does the work and acknowledges the event.
async fn done(worker: &mut Box<dyn Subscription>) -> Result<ReceivedEvent> {
    let pending = next(worker).await?;
    let received = pending.received.clone();
    pending.ack().await?;
    Ok(received)
}

fn report(worker: &str, received: &ReceivedEvent) {
    println!("{worker} finished {} at delivery {}", received.event.summary, received.num_delivered);
}
