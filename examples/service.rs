//! A service with everything that production needs: a bus by URL, a schema, an encryption key, dead letters, metrics,
//! HTTP, and an orderly shutdown on SIGTERM.
//!
//! ```text
//! ORDERS_KEY_FILE=none cargo run --example service --features json-schema,sqlite
//! curl -d '{"id": 7, "total": 4750}' http://127.0.0.1:8080/orders
//! curl http://127.0.0.1:8080/metrics
//! ```
//!
//! Settings come from the environment: `ORDERS_BUS` (a URL, default `memory://`), `ORDERS_LISTEN` (default
//! `127.0.0.1:8080`), and `ORDERS_KEY_FILE` (a file with 32 random bytes in base64, or `none`).

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use a3s_event::consumer::{ConsumerHandle, HandlerResult};
use a3s_event::metrics::PROMETHEUS_CONTENT_TYPE;
use a3s_event::shutdown::{self, Terminated};
use a3s_event::{
    Aes256GcmEncryptor, Delivery, EncryptionKey, ErrorKind, Event, EventBus, EventBusBuilder,
    JsonSchemaRegistry, ProviderDlqHandler, PublishOptions,
};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;

#[derive(Deserialize)]
struct Order {
    id: u64,
    total: u64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    // SIGTERM and Ctrl-C are handled from here on, so that neither ends the process without a shutdown.
    let terminated = shutdown::terminated()?;
    let bus = Arc::new(connect().await?);
    let observer = bus.observe_every(Duration::from_secs(15))?;
    let orders = bus.provider().category_subject("orders");
    let billing = bus.consumer("billing").subject(orders).concurrency(8).handle_typed(bill).await?;
    let billing = Arc::new(billing);

    let routes = Router::new()
        .route("/orders", post(place_order))
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .with_state(Arc::clone(&bus));
    let listener = TcpListener::bind(setting("ORDERS_LISTEN", "127.0.0.1:8080")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, routes).with_graceful_shutdown(ended(terminated, Arc::clone(&billing))).await?;

    // No request comes any more. Running handlers end, every ack is stored, and the connection is closed.
    billing.shutdown().await?;
    drop(observer);
    bus.close().await?;
    println!("stopped: {:?}", billing.stats());
    Ok(())
}

/// Connects to the bus, with its schemas, key and dead letters.
async fn connect() -> Result<EventBus, Box<dyn Error + Send + Sync>> {
    let schemas = JsonSchemaRegistry::new();
    let order = json!({
        "type": "object",
        "required": ["id", "total"],
        "properties": {"id": {"type": "integer"}, "total": {"type": "integer", "minimum": 0}},
    });
    schemas.register_json("order.placed", 1, order)?;

    let mut builder = EventBusBuilder::connect(&setting("ORDERS_BUS", "memory://")).await?;
    // Without the setting the service does not start, so that a forgotten key stores nothing unencrypted.
    let key_file =
        std::env::var("ORDERS_KEY_FILE").map_err(|_| "ORDERS_KEY_FILE: name a key file, or none")?;
    if key_file != "none" {
        let key = EncryptionKey::from_file(key_file)?;
        builder = builder.encryptor(Arc::new(Aes256GcmEncryptor::new("orders-1", &key).require_bound()));
    }
    let dead_letters = ProviderDlqHandler::new(builder.provider())?;
    let builder = builder.schema_registry(Arc::new(schemas)).validate_on_consume(true);
    Ok(builder.dlq_handler(Arc::new(dead_letters)).build()?)
}

/// Handles an order. `Ok` acks it; an error is retried, and the event is dead-lettered after the last attempt.
async fn bill(order: Order, delivery: Delivery) -> HandlerResult {
    println!("order {} over {} is billed at attempt {}", order.id, order.total, delivery.num_delivered());
    Ok(())
}

async fn place_order(State(bus): State<Arc<EventBus>>, body: String) -> impl IntoResponse {
    let Ok(order) = serde_json::from_str::<serde_json::Value>(&body) else {
        return (StatusCode::BAD_REQUEST, "the body is not JSON\n".to_owned());
    };
    // A client that got no answer can repeat its request: the bus stores an order once.
    let msg_id = order.get("id").map(|id| format!("order-{id}"));
    let options = PublishOptions { msg_id, ..PublishOptions::default() };
    let event = Event::builder(bus.provider().build_subject("orders", "placed"))
        .category("orders")
        .event_type("order.placed", 1)
        .source("orders-service")
        .payload(order)
        .build();
    match bus.publish_event_with_options(&event, &options).await {
        Ok(sequence) => (StatusCode::ACCEPTED, format!("{sequence}\n")),
        Err(error) if error.kind() == ErrorKind::Schema => {
            (StatusCode::UNPROCESSABLE_ENTITY, format!("{error}\n"))
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

async fn metrics(State(bus): State<Arc<EventBus>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, PROMETHEUS_CONTENT_TYPE)], bus.telemetry().snapshot().to_prometheus())
}

async fn health(State(bus): State<Arc<EventBus>>) -> StatusCode {
    match bus.health().await {
        Ok(true) => StatusCode::OK,
        Ok(false) | Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// Waits for a signal, or until the consumer has stopped by itself, for instance because it was deleted.
async fn ended(terminated: Terminated, billing: Arc<ConsumerHandle>) {
    tokio::select! {
        () = terminated.recv() => {}
        _ = billing.stopped() => {}
    }
}
