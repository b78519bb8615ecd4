//! CloudEvents between this library and implementations that know nothing of it.

mod python_sdk;
mod rust_sdk;
mod schema;

use std::collections::HashMap;

use a3s_event::{CloudEvent, Event};
use serde_json::{Value, json};

/// Events with what is hard to carry: free text, odd metadata keys, large numbers, every kind of data.
fn hard_events() -> Vec<Event> {
    let mut plain = Event::typed(
        "events.market.forex",
        "market",
        "forex.rate",
        2,
        "USD/CNY moved",
        "reuters",
        json!({"rate": 7.25, "book": [1, 2, {"deep": null}]}),
    );
    plain.metadata.insert("region".into(), "eu".into());
    plain
        .metadata
        .insert("traceparent".into(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    let free_text = Event {
        id: "order 7 / 50%".into(),
        subject: "events.a.b".into(),
        category: "a".into(),
        event_type: String::new(),
        version: u32::MAX - 1,
        payload: json!({"text": "zwölf €", "large": u64::MAX}),
        summary: "two\nlines and a \u{7f}".into(),
        source: "the price desk".into(),
        timestamp: 1_709_210_096_789,
        metadata: HashMap::from([
            (String::new(), "empty key".into()),
            ("Région".into(), "Île-de-France".into()),
            ("empty".into(), String::new()),
            ("UPPER".into(), "1".into()),
            ("upper".into(), "2".into()),
            ("ce-".into(), "\u{ffff}".into()),
            ("partitionkey".into(), "kéy 1".into()),
        ]),
    };
    let mut from_another = CloudEvent::new("c-1", "https://source.example/x?y#z", "com.example.made")
        .with_binary_data("application/vnd.example+avro", b"\x00\xff\x10binary")
        .with_subject("the subject")
        .with_time("2024-02-29T12:34:56.789Z")
        .with_extension("tenant", "acme")
        .with_extension("retries", 3)
        .with_extension("final", true);
    from_another.dataschema = Some("https://schemas.example/made.avsc".into());
    let mut text = from_another.clone().with_data(Value::from("<much wow=\"xml\"/>"));
    text.datacontenttype = Some("text/xml".into());
    vec![
        plain,
        Event { timestamp: 0, ..free_text.clone() },
        free_text,
        Event::try_from(from_another).unwrap(),
        Event::try_from(text).unwrap(),
    ]
}

fn cloud_events() -> Vec<CloudEvent> {
    hard_events().into_iter().map(CloudEvent::from).collect()
}

/// The event as JSON, to be compared.
fn comparable(event: CloudEvent) -> Value {
    serde_json::to_value(Event::try_from(event).unwrap()).unwrap()
}
