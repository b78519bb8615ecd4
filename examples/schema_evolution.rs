//! Schemas: a payload that breaks its schema is refused, and so is a version that would break readers.
//!
//! ```text
//! cargo run --example schema_evolution --features json-schema
//! ```

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::sync::Arc;

use a3s_event::{Compatibility, Event, EventBus, JsonSchemaRegistry, MemoryProvider, Result, SchemaRules};
use serde::Deserialize;
use serde_json::{Value, json};

/// A quote, as the newest reader knows it. It reads both versions.
#[derive(Deserialize)]
struct Quote {
    symbol: String,
    rate: f64,
    /// New in version 2.
    #[serde(default)]
    venue: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    // Readers of a new version must be able to read old events.
    let rules = SchemaRules::new().strict().compatibility_with_all(Compatibility::Backward);
    let schemas = JsonSchemaRegistry::with_rules(rules);
    schemas.register_json("market.quote", 1, quote(&["symbol", "rate"], &json!({})))?;
    schemas.register_json(
        "market.quote",
        2,
        quote(&["symbol", "rate"], &json!({"venue": {"type": "string"}})),
    )?;
    println!("version 2 adds an optional field and is accepted");

    let required = quote(&["symbol", "rate", "venue"], &json!({"venue": {"type": "string"}}));
    if let Err(error) = schemas.register_json("market.quote", 3, required) {
        println!("version 3 is refused: {error}");
    }

    let bus = EventBus::with_schema_registry(MemoryProvider::default(), Arc::new(schemas));
    publish(&bus, 1, json!({"symbol": "USDCNY", "rate": 7.35})).await;
    publish(&bus, 2, json!({"symbol": "USDCNY", "rate": 7.36, "venue": "EBS"})).await;
    publish(&bus, 2, json!({"symbol": "USDCNY", "rate": "high"})).await;
    publish(&bus, 4, json!({"symbol": "USDCNY", "rate": 7.37})).await;

    println!("\nOne reader for both versions:");
    for event in bus.list_events(Some("market"), 10).await? {
        let Quote { symbol, rate, venue } = Quote::deserialize(&event.payload)?;
        println!(
            "  v{}: {symbol} {rate} at {}",
            event.version,
            venue.as_deref().unwrap_or("an unknown venue")
        );
    }
    bus.close().await
}

fn quote(required: &[&str], further: &Value) -> Value {
    let mut properties = json!({"symbol": {"type": "string"}, "rate": {"type": "number", "minimum": 0}});
    if let (Some(properties), Some(further)) = (properties.as_object_mut(), further.as_object()) {
        properties.extend(further.clone());
    }
    json!({"type": "object", "required": required, "properties": properties})
}

async fn publish(bus: &EventBus, version: u32, payload: Value) {
    let event =
        Event::builder("events.market.fx").event_type("market.quote", version).payload(payload).build();
    match bus.publish_event(&event).await {
        Ok(sequence) => println!("version {version} is stored as number {sequence}"),
        Err(error) => println!("version {version} is refused: {error}"),
    }
}
