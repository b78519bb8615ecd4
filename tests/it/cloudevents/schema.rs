//! What we write against the official JSON Schema of CloudEvents.

use a3s_event::{CloudEvent, Event};
use serde_json::{Value, json};

use super::cloud_events;

fn official_schema() -> jsonschema::Validator {
    let schema = include_str!("../../fixtures/cloudevents/cloudevents.schema.json");
    let schema: Value = serde_json::from_str(schema).unwrap();
    jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
}

fn written(event: &CloudEvent) -> Value {
    serde_json::from_slice(&event.to_json().unwrap()).unwrap()
}

#[test]
fn our_json_is_valid() {
    let schema = official_schema();
    let mut events = cloud_events();
    events.push(CloudEvent::new("1", "/s", "t"));
    // Nothing of the empty event is a legal attribute.
    events.push(CloudEvent::from(Event::new("", "", "", "", Value::Null)));
    events.push(CloudEvent::from(Event { id: String::new(), ..Event::new("", "", "", " ", Value::Null) }));
    for event in events {
        let json = written(&event);
        assert!(schema.is_valid(&json), "{json}: {:?}", schema.validate(&json));
    }
}

#[test]
fn the_schema_refuses_what_we_refuse() {
    let schema = official_schema();
    for (name, value) in [
        ("id", json!("")),
        ("source", json!("the price desk")),
        ("type", json!("")),
        ("subject", json!("")),
        ("time", json!("today")),
        ("dataschema", json!("no uri")),
        ("specversion", json!(1.0)),
    ] {
        let mut json = written(&CloudEvent::new("1", "/s", "t"));
        json[name] = value;
        assert!(!schema.is_valid(&json), "{name}");
        assert!(CloudEvent::from_json(json.to_string().as_bytes()).is_err(), "{name}");
    }
}
