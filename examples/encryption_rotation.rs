//! Encrypted payloads, and the rotation of their key while programs publish and read.
//!
//! ```text
//! cargo run --example encryption_rotation
//! ```
//!
//! Real keys come from files: `EncryptionKey::from_file`.

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::sync::Arc;

use a3s_event::{Aes256GcmEncryptor, EncryptionKey, Event, EventBus, EventEncryptor, MemoryProvider, Result};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<()> {
    let january = EncryptionKey::from_text("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")?;
    let february = EncryptionKey::from_text("ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=")?;
    let keys = Arc::new(Aes256GcmEncryptor::new("2026-01", &january).require_bound());
    let bus = EventBus::builder(MemoryProvider::default()).encryptor(Arc::clone(&keys) as _).build()?;

    pay(&bus, 1).await?;

    // Step 1: every reader gets the new key, which decrypts and does not encrypt yet.
    keys.add_key("2026-02", &february)?;
    pay(&bus, 2).await?;

    // Step 2: the publishers use it.
    keys.promote("2026-02")?;
    pay(&bus, 3).await?;

    println!("\nThe primary key is {}. Readers see all payments in clear:", keys.active_key_id());
    for event in bus.list_events(Some("payments"), 10).await? {
        println!("  {}", event.payload);
    }

    // Step 3: once nothing is stored that the old key encrypted, nobody needs it.
    keys.disable_key("2026-01")?;
    println!("\nWith key 2026-01 disabled, what it encrypted stays an envelope:");
    for event in bus.list_events(Some("payments"), 10).await? {
        let shown = key_of(&event).map(|key| format!("encrypted with {key}"));
        println!("  {}", shown.unwrap_or_else(|| event.payload.to_string()));
    }
    bus.close().await
}

async fn pay(bus: &EventBus, number: u64) -> Result<()> {
    let payload = json!({"payment": number, "card": "4111 1111 1111 1111"});
    let stored = bus.publish("payments", "made", "a payment", "example", payload).await?;
    println!("payment {number} is encrypted with {}", key_of(&stored).unwrap_or("no key"));
    Ok(())
}

/// Returns the id of the key of an encrypted payload.
fn key_of(event: &Event) -> Option<&str> {
    event.payload.get("keyId")?.as_str()
}
