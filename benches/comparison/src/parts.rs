//! Measures schema and encryption on a bus, and CloudEvents, compared with 0.2.0.

use std::sync::Arc;

use a3s_event::Event;

use crate::board::Board;
use crate::{BUS, CLOUD_EVENT, OURS, events};

const EARLIER: &str = "a3s-event 0.2.0";
const MANY: usize = 20_000;
const KEY: [u8; 32] = [7; 32];

/// Defines a module with the work of one version. The versions have different types of the same names.
macro_rules! version {
    ($module:ident, $version:ident) => {
        mod $module {
            use super::{Arc, KEY};
            use $version::cloudevents::CloudEvent;
            use $version::crypto::Aes256GcmEncryptor;
            use $version::provider::memory::{MemoryConfig, MemoryProvider};
            use $version::schema::{EventSchema, MemorySchemaRegistry, SchemaRegistry as _};
            use $version::{Event, EventBus};

            /// Returns a bus that checks the payload's fields and encrypts it.
            pub(super) fn bus(event: &Event) -> EventBus {
                let registry = MemorySchemaRegistry::new();
                let required_fields = event.payload.as_object().unwrap().keys().cloned().collect();
                let (event_type, description) = (event.event_type.clone(), String::new());
                registry
                    .register(EventSchema {
                        event_type,
                        version: event.version,
                        required_fields,
                        description,
                    })
                    .unwrap();
                // A full store of 0.2.0 moves every event at each publish.
                let config = MemoryConfig { max_events: 0, ..MemoryConfig::default() };
                let mut bus = EventBus::with_schema_registry(MemoryProvider::new(config), Arc::new(registry));
                bus.set_encryptor(Arc::new(Aes256GcmEncryptor::new("k1", &KEY)));
                bus
            }

            pub(super) async fn publish(bus: &EventBus, event: &Event, count: usize) {
                for _ in 0..count {
                    bus.publish_event(event).await.unwrap();
                }
            }

            /// Converts an event to CloudEvents JSON and back.
            pub(super) fn there_and_back(event: &Event, count: usize) {
                for _ in 0..count {
                    let json = serde_json::to_vec(&CloudEvent::from(event.clone())).unwrap();
                    let back: CloudEvent = serde_json::from_slice(&json).unwrap();
                    let back = Event::try_from(back).unwrap();
                    assert_eq!(back.id, event.id);
                }
            }
        }
    };
}

version!(ours, a3s_event);
version!(earlier, published_0_2_0);

pub(crate) async fn measure(board: &mut Board) {
    let mut event: Event = events().0;
    event.event_type = "market.tick".to_owned();
    let json = serde_json::to_value(&event).unwrap();
    let their_event: published_0_2_0::Event = serde_json::from_value(json).unwrap();
    let bus = earlier::bus(&their_event);
    board.time(BUS, EARLIER, MANY, earlier::publish(&bus, &their_event, MANY)).await;
    let bus = ours::bus(&event);
    board.time(BUS, OURS, MANY, ours::publish(&bus, &event, MANY)).await;
    board.time(CLOUD_EVENT, EARLIER, MANY, async { earlier::there_and_back(&their_event, MANY) }).await;
    board.time(CLOUD_EVENT, OURS, MANY, async { ours::there_and_back(&event, MANY) }).await;
}
