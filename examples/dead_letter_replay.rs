//! Dead letters: a bug dead-letters events, the bug is fixed, and a replay publishes the events again.
//!
//! ```text
//! cargo run --example dead_letter_replay
//! ```
//!
//! At the terminal, `a3s-event dlq list` and `a3s-event dlq replay` do the same.

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use a3s_event::consumer::{ConsumerHandle, HandlerError, HandlerResult};
use a3s_event::dlq::{DeadLetterFilter, Replay};
use a3s_event::{Delivery, EventBusBuilder, ProviderDlqHandler};
use serde::Deserialize;
use serde_json::json;

/// A deployment without the bug.
static IS_FIXED: AtomicBool = AtomicBool::new(false);

#[derive(Deserialize)]
struct Invoice {
    number: u64,
    currency: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let builder = EventBusBuilder::connect("memory://").await?;
    let dead_letters = Arc::new(ProviderDlqHandler::new(builder.provider())?);
    let bus = builder.dlq_handler(Arc::clone(&dead_letters) as _).build()?;
    let books = bus.consumer("books").subject("events.invoices.>").handle_typed(book).await?;

    for (number, currency) in [(1, "EUR"), (2, "XTS"), (3, "EUR"), (4, "XTS")] {
        let payload = json!({"number": number, "currency": currency});
        bus.publish("invoices", "sent", &format!("invoice {number}"), "example", payload).await?;
    }
    until(&books, |handled, dead| handled == 2 && dead == 2).await?;

    for stored in dead_letters.find(&DeadLetterFilter::default(), 10).await? {
        println!("letter {}: {}: {}", stored.id, stored.letter.event.event.summary, stored.letter.reason);
    }

    IS_FIXED.store(true, Ordering::Relaxed);
    println!("the bug is fixed; replaying");
    // Once per event, at most 50 per second, under the same subject and id.
    let replay = Replay::matching(DeadLetterFilter::default().subject("events.invoices.>")).per_second(50);
    let report = dead_letters.replay(&*bus.provider_arc(), &replay).await?;
    println!("{} letters were replayed", report.replayed.len());
    until(&books, |handled, _| handled == 4).await?;

    let open = dead_letters.count_matching(&DeadLetterFilter::default()).await?;
    println!("{open} letters are open");
    books.shutdown().await?;
    Ok(bus.close().await?)
}

async fn book(invoice: Invoice, _delivery: Delivery) -> HandlerResult {
    if invoice.currency == "XTS" && !IS_FIXED.load(Ordering::Relaxed) {
        return Err(HandlerError::fatal("currency XTS is not known"));
    }
    println!("invoice {} is booked", invoice.number);
    Ok(())
}

/// Waits until the consumer has handled and dead-lettered so many events.
async fn until(
    consumer: &ConsumerHandle,
    is_done: impl Fn(u64, u64) -> bool,
) -> Result<(), tokio::time::error::Elapsed> {
    tokio::time::timeout(Duration::from_secs(30), async {
        while !is_done(consumer.stats().handled, consumer.stats().dead_lettered) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}
