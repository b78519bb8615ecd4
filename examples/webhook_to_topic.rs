//! Turns a signed webhook into one event on a topic, however often it is sent, and refuses one with a foreign
//! signature.
//!
//! ```text
//! cargo run --example webhook_to_topic --features http,webhook
//! ```

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use a3s_event::sink::{HttpSink, HttpSinkBuilder};
use a3s_event::source::webhook::WebhookReceiver;
use a3s_event::{Event, EventBus, EventSink, EventSource};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// The secret that the shop and the receiver share. A real program reads it from its secret storage.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// A secret that the receiver does not accept.
const OTHER_SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
/// Timeout of every wait in this program.
const DEADLINE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let bus = Arc::new(EventBus::connect("memory://").await?);
    let mut orders = bus.provider().subscribe_durable("billing", "events.orders.>").await?;

    // The receiver is an axum router. It answers 202 when the event is stored.
    let receiver = WebhookReceiver::builder("shop", "/hooks/orders")
        .subject("events.orders.received")
        .category("orders")
        .secret(SECRET)
        .publish_to(Arc::clone(&bus))
        .build()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = axum::serve(listener, receiver.router()).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let serving = tokio::spawn(serving.into_future());

    // The shop signs and posts its order, and posts it again as if it had seen no answer.
    let shop = shop(port).sign_with(SECRET).build()?;
    let order = Event::typed("orders.17", "orders", "order.placed", 1, "", "/shop", json!({ "total": 42 }));
    for _ in 0..2 {
        shop.deliver(&order).await?;
        println!("shop: order {} was accepted", order.id);
    }

    let forged = Event::typed("orders.18", "orders", "order.placed", 1, "", "/shop", json!({ "total": 0 }));
    match self::shop(port).sign_with(OTHER_SECRET).build()?.deliver(&forged).await {
        Ok(()) => return Err("a forged order was accepted".into()),
        Err(error) => println!("forged order: refused, {}", cause(&error)),
    }

    let received = tokio::time::timeout(DEADLINE, orders.next()).await??.ok_or("the subscription ended")?;
    println!(
        "billing: {} of {} on {}",
        received.event.event_type, received.event.payload, received.event.subject
    );
    println!("events on the topic: {}", bus.info().await?.messages);

    receiver.stop().await?;
    drop(stop);
    serving.await??;
    bus.close().await?;
    Ok(())
}

/// Returns the builder of a sink that may post to this machine without TLS. By default a sink refuses both.
fn shop(port: u16) -> HttpSinkBuilder {
    HttpSink::builder("receiver", format!("http://127.0.0.1:{port}/hooks/orders"))
        .allow_http()
        .allow_port(port)
        .allow_network("127.0.0.1")
}

fn cause(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}
