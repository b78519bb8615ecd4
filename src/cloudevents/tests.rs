//! Conversions are lossless in every direction, and invalid input is refused.

use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::error::EventError;
use crate::timestamp;
use crate::types::Event;

fn typed_event() -> Event {
    Event {
        id: "evt-1".into(),
        subject: "events.market.forex".into(),
        category: "market".into(),
        event_type: "forex.rate".into(),
        version: 2,
        payload: json!({"rate": 7.35}),
        summary: "USD/CNY moved".into(),
        source: "reuters".into(),
        timestamp: 1_709_210_096_789,
        metadata: HashMap::from([("region".into(), "eu".into())]),
    }
}

fn event_json(event: &Event) -> Value {
    serde_json::to_value(event).unwrap()
}

fn reread(event: &CloudEvent) -> CloudEvent {
    CloudEvent::from_json(&event.to_json().unwrap()).unwrap()
}

/// Reads a valid event with one member replaced.
fn read_with(name: &str, value: Value) -> Result<CloudEvent> {
    let mut json = json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"});
    json[name] = value;
    CloudEvent::from_json(json.to_string().as_bytes())
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T>, expected: &str) {
    match result {
        Err(EventError::InvalidEvent { field, .. }) => assert_eq!(field, expected),
        other => panic!("expected an error for {expected}: {other:?}"),
    }
}

#[test]
fn an_event_has_its_promised_keys_in_memory() {
    let event = CloudEvent::from(typed_event());
    assert_eq!(
        event,
        CloudEvent {
            specversion: "1.0".into(),
            id: "evt-1".into(),
            source: "reuters".into(),
            event_type: "forex.rate".into(),
            datacontenttype: Some("application/json".into()),
            dataschema: None,
            subject: Some("events.market.forex".into()),
            time: Some("2024-02-29T12:34:56.789Z".into()),
            data: Some(json!({"rate": 7.35})),
            extensions: HashMap::from([
                ("a3scategory".into(), json!("market")),
                ("a3sversion".into(), json!(2)),
                ("a3ssummary".into(), json!("USD/CNY moved")),
                ("a3stimestamp".into(), json!(1_709_210_096_789_u64)),
                ("a3seventtype".into(), json!("forex.rate")),
                ("a3smeta_region".into(), json!("eu")),
            ]),
        }
    );
    let untyped = CloudEvent::from(Event { event_type: String::new(), ..typed_event() });
    assert_eq!(untyped.event_type, "a3s.event");
    assert!(!untyped.extensions.contains_key("a3seventtype"));
}

#[test]
fn the_json_is_flat_with_legal_names_and_values() {
    let mut event = typed_event();
    event.source = "the price desk".into();
    event.metadata.insert("Région".into(), "île".into());
    let json: Value = serde_json::from_slice(&CloudEvent::from(event).to_json().unwrap()).unwrap();
    assert_eq!(
        json,
        json!({
            "specversion": "1.0",
            "id": "evt-1",
            "source": "the%20price%20desk",
            "type": "forex.rate",
            "datacontenttype": "application/json",
            "subject": "events.market.forex",
            "time": "2024-02-29T12:34:56.789Z",
            "a3scategory": "market",
            "a3sversion": 2,
            "a3ssummary": "USD/CNY moved",
            "a3stimestamp": "1709210096789",
            "a3seventtype": "forex.rate",
            "a3smetaregion": "eu",
            "a3soriginal": r#"{"a3smeta_Région":"île","source":"the price desk"}"#,
            "data": {"rate": 7.35},
        })
    );
}

#[test]
fn the_nested_form_of_version_0_2_is_read() {
    let json = json!({
        "specversion": "1.0", "id": "evt-1", "source": "the price desk", "type": "forex.rate",
        "datacontenttype": "application/json", "subject": "events.market.forex",
        "time": "2024-02-29T12:34:56.789Z", "data": {"rate": 7.35},
        "extensions": {
            "a3scategory": "market", "a3sversion": 2, "a3ssummary": "USD/CNY moved", "a3stimestamp": 1_709_210_096_789_u64,
            "a3seventtype": "forex.rate", "a3smeta_region": "eu", "a3smeta_Any Key": "v",
        },
    });
    let event: CloudEvent = serde_json::from_value(json).unwrap();
    let mut expected = typed_event();
    expected.source = "the price desk".into();
    expected.metadata.insert("Any Key".into(), "v".into());
    assert_eq!(event, CloudEvent::from(expected.clone()));
    assert_eq!(event_json(&Event::try_from(event).unwrap()), event_json(&expected));
    // An extension of another system with this name is an ordinary one.
    let event = read_with("extensions", json!("x")).unwrap();
    assert_eq!(reread(&event), event);
}

#[test]
fn missing_fields_of_an_event_have_their_defaults() {
    let event = Event::try_from(CloudEvent::new("1", "/s", "t")).unwrap();
    assert_eq!(
        (event.category.as_str(), event.version, event.summary.as_str(), event.timestamp),
        ("", 1, "", 0)
    );
    assert_eq!((event.payload, event.event_type.as_str()), (Value::Null, "t"));
    let event =
        Event::try_from(CloudEvent::new("1", "/s", "t").with_time("2024-02-29T14:34:56.789+02:00")).unwrap();
    assert_eq!(event.timestamp, 1_709_210_096_789);
}

#[test]
fn tracing_and_partitioning_have_their_own_attributes() {
    let mut event = typed_event();
    for (key, value) in [("traceparent", "00-ab-cd-01"), ("tracestate", "a=b"), ("partitionkey", "usd")] {
        event.metadata.insert(key.into(), value.into());
    }
    let cloud_event = CloudEvent::from(event.clone());
    assert_eq!(cloud_event.extensions["traceparent"], "00-ab-cd-01");
    assert_eq!(cloud_event.extensions["tracestate"], "a=b");
    assert_eq!(kafka::key(&cloud_event), Some("usd"));
    assert_eq!(event_json(&Event::try_from(reread(&cloud_event)).unwrap()), event_json(&event));
}

#[test]
fn what_others_send_is_found_in_the_metadata() {
    let foreign = CloudEvent::new("1", "/s", "com.example.t")
        .with_binary_data("image/png", b"\x89PNG")
        .with_extension("tenant", "acme")
        .with_extension("retries", 3)
        .with_extension("final", true);
    let event = Event::try_from(foreign.clone()).unwrap();
    assert_eq!(event.event_type, "com.example.t");
    assert_eq!(event.payload, "iVBORw==");
    assert_eq!(
        event.metadata,
        [
            ("ce-absent-attributes", "time"),
            ("ce-data-encoding", "base64"),
            ("ce-datacontenttype", "image/png"),
            ("ce-extension-types", "final:boolean,retries:integer"),
            ("ce-final", "true"),
            ("ce-retries", "3"),
            ("ce-tenant", "acme"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    );
    assert_eq!(without_ours(CloudEvent::from(event)), foreign);
}

#[test]
fn specversion_is_1_0() {
    for value in [Value::Null, json!("0.3"), json!("1.1"), json!(1.0), json!("")] {
        assert_refused(read_with("specversion", value), "specversion");
    }
    let mut event = CloudEvent::new("1", "/s", "t");
    event.specversion = "0.3".into();
    assert_refused(event.to_json(), "specversion");
    assert_refused(Event::try_from(event), "specversion");
}

#[test]
fn required_attributes_are_there_and_legal() {
    for name in ["id", "source", "type"] {
        for value in [Value::Null, json!(""), json!(7), json!("a\u{1}b")] {
            assert_refused(read_with(name, value), name);
        }
        let json = json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"});
        let Value::Object(mut members) = json else { unreachable!() };
        members.remove(name);
        assert_refused(CloudEvent::from_json(Value::Object(members).to_string().as_bytes()), name);
    }
    assert_refused(read_with("source", json!("the price desk")), "source");
    assert_refused(CloudEvent::new("1", "the price desk", "t").to_json(), "source");
    assert_refused(CloudEvent::new("", "/s", "t").validate(), "id");
    for (name, value) in [
        ("time", json!("today")),
        ("dataschema", json!("/s")),
        ("datacontenttype", json!("json")),
        ("subject", json!("")),
    ] {
        assert_refused(read_with(name, value), name);
    }
}

#[test]
fn extensions_have_legal_names_and_values() {
    for name in ["My_Ext", "my-ext", "é", "", &"a".repeat(64)] {
        assert_refused(read_with(name, json!("v")), "extension");
        assert_refused(CloudEvent::new("1", "/s", "t").with_extension(name, "v").to_json(), "extension");
        assert_refused(
            Event::try_from(CloudEvent::new("1", "/s", "t").with_extension(name, "v")),
            "extension",
        );
    }
    // In JSON `data` is the data, so no extension can have this name.
    assert_refused(CloudEvent::new("1", "/s", "t").with_extension("data", "v").to_json(), "extension");
    assert_refused(Event::try_from(CloudEvent::new("1", "/s", "t").with_extension("data", "v")), "extension");
    for value in [json!({"a": 1}), json!([1]), json!(1.5), json!(2_147_483_648_u64), json!("a\nb")] {
        assert_refused(read_with("ext", value.clone()), "extension");
        assert_refused(
            CloudEvent::new("1", "/s", "t").with_extension("ext", value.clone()).to_json(),
            "extension",
        );
        assert_refused(
            Event::try_from(CloudEvent::new("1", "/s", "t").with_extension("ext", value)),
            "extension",
        );
    }
    assert_eq!(read_with("ext", json!(null)).unwrap().extensions.len(), 0);
    let twice = br#"{"specversion":"1.0","id":"1","source":"/s","type":"t","ext":"a","ext":"b"}"#;
    assert_refused(CloudEvent::from_json(twice), "extension");
    assert_refused(
        CloudEvent::from_json(br#"{"specversion":"1.0","id":"1","id":"2","source":"/s","type":"t"}"#),
        "id",
    );
}

#[test]
fn data_is_json_or_text_or_base64() {
    let both = json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": 1, "data_base64": "aGk="});
    assert_refused(CloudEvent::from_json(both.to_string().as_bytes()), "data");
    for value in [json!("a"), json!("aGk"), json!("aG k="), json!("a_-="), json!(5)] {
        assert_refused(read_with("data_base64", value.clone()), "data");
        let event = CloudEvent::new("1", "/s", "t").with_extension(DATA_BASE64, value);
        assert_refused(event.to_json(), "data");
        assert_refused(event.binary_data(), "data");
        assert_refused(Event::try_from(event), "data");
    }
    let mut event = CloudEvent::new("1", "/s", "t").with_data(json!({"a": 1}));
    event.datacontenttype = Some("text/xml".into());
    assert_refused(event.to_json(), "data");
    assert_refused(Event::try_from(event), "data");
    // An explicit null is data; a missing member is no data.
    assert_eq!(read_with("data", Value::Null).unwrap().data, Some(Value::Null));
    assert_eq!(read_with("subject", Value::Null).unwrap().data, None);
}

#[test]
fn attributes_of_ours_that_are_malformed_are_named() {
    for (name, value) in [
        ("a3sversion", json!("abc")),
        ("a3sversion", json!(-1)),
        ("a3stimestamp", json!("soon")),
        ("a3stimestamp", json!(1.5)),
    ] {
        assert_refused(read_with(name, value.clone()), name);
        assert_refused(Event::try_from(CloudEvent::new("1", "/s", "t").with_extension(name, value)), name);
    }
    for (name, value) in [("a3scategory", json!(1)), ("a3smetaregion", json!(1)), ("a3soriginal", json!(1))] {
        assert_refused(read_with(name, value), "extension");
    }
    for text in ["", "[]", r#"{"id":"2"}"#, r#"{"data":"x"}"#, r#"{"source":"a b"}"#, r#"{"a3smeta_x":1}"#] {
        assert_refused(read_with("a3soriginal", json!(text)), "a3soriginal");
    }
    for text in ["", "x:integer", "id:integer", "b,a"] {
        assert_refused(read_with("a3stypes", json!(text)), "a3stypes");
    }
    let event = CloudEvent::from(typed_event());
    let mut other_type = event.clone();
    other_type.event_type = "other".into();
    assert_refused(Event::try_from(other_type), "a3seventtype");
    assert_refused(Event::try_from(event.with_time("2020-01-01T00:00:00Z")), "a3stimestamp");
}

#[test]
fn a_batch_is_read_as_a_whole_or_not_at_all() {
    let events: Vec<CloudEvent> = (0..3).map(|n| CloudEvent::new(n.to_string(), "/s", "t")).collect();
    let json = to_json_batch(&events).unwrap();
    assert_eq!(from_json_batch(&json, AcceptedFormats::Conformant).unwrap(), events);
    assert_eq!(from_json_batch(b"[]", AcceptedFormats::Conformant).unwrap(), []);

    let bad = br#"[{"specversion":"1.0","id":"1","source":"/s","type":"t"},{"specversion":"1.0","source":"/s","type":"t"}]"#;
    let error = from_json_batch(bad, AcceptedFormats::Conformant).unwrap_err();
    assert!(
        error.to_string().contains(r#"event 1 of the batch: invalid event id "": is missing"#),
        "{error}"
    );
    assert_eq!(http::status(&error), 400);
    let error = from_json_batch(b"[5]", AcceptedFormats::Conformant).unwrap_err();
    assert!(error.to_string().contains("event 0 of the batch"), "{error}");
    assert_eq!(http::status(&error), 400);
    let error =
        to_json_batch(&[CloudEvent::new("1", "/s", "t"), CloudEvent::new("", "/s", "t")]).unwrap_err();
    assert!(error.to_string().contains("event 1 of the batch"), "{error}");

    let many = format!("[{}{{}}]", "{},".repeat(MAX_BATCH_EVENTS));
    let error = from_json_batch(many.as_bytes(), AcceptedFormats::Conformant).unwrap_err();
    assert!(error.to_string().contains("10001 events"), "{error}");
    assert_eq!(http::status(&error), 413);
}

#[test]
fn headers_are_percent_encoded_as_the_binding_says() {
    let event =
        CloudEvent::new("1", "/s", "t").with_subject("Euro € 😀").with_extension("note", "100% \"sure\"");
    let message = http::to_binary(&event).unwrap();
    assert_eq!(message.header("ce-subject"), Some("Euro%20%E2%82%AC%20%F0%9F%98%80"));
    assert_eq!(message.header("ce-note"), Some("100%25%20%22sure%22"));
    assert!(message.headers.iter().all(|(_, value)| value.bytes().all(|byte| (0x21..=0x7e).contains(&byte))));
    assert_eq!(http::from_message(message.headers, b"", AcceptedFormats::Conformant).unwrap(), event);
    let message = kafka::to_binary(&event).unwrap();
    assert_eq!(message.header("ce_subject"), Some("Euro € 😀"));
}

fn read_subject(subject: &[u8], accept: AcceptedFormats) -> Result<Option<String>> {
    let headers: [(&str, &[u8]); 5] = [
        ("CE-SpecVersion", b"1.0"),
        ("ce-id", b"1"),
        ("Ce-Source", b"/s"),
        ("ce-type", b"t"),
        ("ce-subject", subject),
    ];
    http::from_message(headers, b"", accept).map(|event| event.subject)
}

#[test]
fn headers_are_read_in_every_spelling_that_is_allowed() {
    for (header, expected) in [
        ("Euro%20%e2%82%ac", "Euro €"),
        ("%41b", "Ab"),
        (r#""a b\"c\\""#, r#"a b"c\"#),
        (r#""100%25""#, "100%"),
        ("plain words", "plain words"),
        ("ü", "ü"),
    ] {
        assert_eq!(
            read_subject(header.as_bytes(), AcceptedFormats::Conformant).unwrap().unwrap(),
            expected,
            "{header}"
        );
    }
    for header in [&b"%C0%A0"[..], b"100%", b"%4", b"%zz", b"%E2%82", b"\xff"] {
        assert_refused(read_subject(header, AcceptedFormats::Conformant), "header");
    }
    assert_eq!(read_subject(b"100%", AcceptedFormats::KnownDivergences).unwrap().unwrap(), "100%");
}

#[test]
fn known_divergences_are_read_on_request() {
    let binary = |body: &[u8], accept| {
        let headers = [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/s"),
            ("ce-type", "t"),
            ("content-type", "application/json"),
        ];
        http::from_message(headers, body, accept)
    };
    assert_refused(binary(b"bare text", AcceptedFormats::Conformant), "data");
    assert_eq!(
        binary(b"bare text", AcceptedFormats::KnownDivergences).unwrap().data,
        Some(json!("bare text"))
    );
    assert_eq!(
        binary(b"\xff", AcceptedFormats::KnownDivergences).unwrap().binary_data().unwrap().unwrap(),
        b"\xff"
    );

    let json = json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "subject": "", "myExt": 5_000_000_000_i64});
    let json = json.to_string();
    assert!(CloudEvent::from_json(json.as_bytes()).is_err());
    let event = CloudEvent::from_json_accepting(json.as_bytes(), AcceptedFormats::KnownDivergences).unwrap();
    assert_eq!((event.subject.as_deref(), &event.extensions["myext"]), (None, &json!("5000000000")));

    let encoded = [("ce_specversion", "1.0"), ("ce_id", "a%20b"), ("ce_source", "/s"), ("ce_type", "t")];
    assert_eq!(kafka::from_record(encoded, None, AcceptedFormats::Conformant).unwrap().id, "a%20b");
    assert_eq!(kafka::from_record(encoded, None, AcceptedFormats::KnownDivergences).unwrap().id, "a b");
}

#[test]
fn nats_without_headers_is_structured() {
    let event = CloudEvent::from(typed_event());
    let none: [(&str, &str); 0] = [];
    assert_eq!(
        nats::from_message(none, &event.to_json().unwrap(), AcceptedFormats::Conformant).unwrap(),
        event
    );
}

#[test]
fn every_attribute_of_nats_is_encoded() {
    let mut event = CloudEvent::new("1", "/s", "t").with_data(json!("a"));
    event.datacontenttype = Some("text/plain; charset=utf-8".into());
    let message = nats::to_binary(&event).unwrap();
    assert_eq!(message.header("ce-datacontenttype"), Some("text/plain;%20charset=utf-8"));
    assert_eq!(http::to_binary(&event).unwrap().header("content-type"), Some("text/plain; charset=utf-8"));
}

#[test]
fn data_is_no_header() {
    for name in ["ce-data", "ce-data_base64"] {
        let headers = [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/s"),
            ("ce-type", "t"),
            (name, "aGk="),
        ];
        assert_refused(http::from_message(headers, b"", AcceptedFormats::KnownDivergences), "extension");
    }
}

#[test]
fn an_event_that_was_changed_in_memory_is_still_written_legally() {
    let event = CloudEvent::from(typed_event());
    assert_eq!(reread(&event.clone().with_subject("")).subject, None);
    assert!(
        !reread(&event.clone().with_extension("a3ssummary", Value::Null))
            .extensions
            .contains_key("a3ssummary")
    );
    assert_refused(CloudEvent { event_type: String::new(), ..event }.to_json(), "type");
}

fn through_bindings(event: &CloudEvent) -> Vec<CloudEvent> {
    let mut read = vec![reread(event)];
    for message in [http::to_binary(event), http::to_structured(event)] {
        let message = message.unwrap();
        read.push(
            http::from_message(
                message.headers,
                &message.body.unwrap_or_default(),
                AcceptedFormats::Conformant,
            )
            .unwrap(),
        );
    }
    for message in [nats::to_binary(event), nats::to_structured(event)] {
        let message = message.unwrap();
        read.push(
            nats::from_message(
                message.headers,
                &message.body.unwrap_or_default(),
                AcceptedFormats::Conformant,
            )
            .unwrap(),
        );
    }
    for message in [kafka::to_binary(event), kafka::to_structured(event)] {
        let message = message.unwrap();
        read.push(
            kafka::from_record(message.headers, message.body.as_deref(), AcceptedFormats::Conformant)
                .unwrap(),
        );
    }
    read
}

fn without_ours(mut event: CloudEvent) -> CloudEvent {
    event.extensions.retain(|key, _| !key.starts_with("a3s"));
    event
}

/// Arbitrary text, and text with a special meaning in some field.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => any::<String>(),
        2 => "[a-z0-9]{0,12}",
        1 => "[ -~]{0,20}",
        1 => prop::sample::select(vec![
            "", "%", "a b", "a\nb", "\u{7f}\u{ffff}\u{10fffe}", "true", "5", "-7", "007", "aGk=", "absent", "base64", "data",
            "data,time", "datacontenttype", "data,datacontenttype,time", "text/xml", "application/json", "a3s.event",
            "https://schemas.example/a", "2024-02-29T12:34:56.789Z", "1970-01-01T00:00:00Z", "1960-01-01T00:00:00Z",
            "a:integer", "a:boolean", "flag:boolean,n:integer", "1970-01-01T00:00:00.0001Z",
        ])
        .prop_map(str::to_owned),
    ]
}

fn metadata_key() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => text(),
        2 => text().prop_map(|name| format!("ce-{name}")),
        1 => "[a-z0-9]{50,60}",
        3 => prop::sample::select(vec![
            "traceparent", "tracestate", "partitionkey", "ce-traceparent", "ce-a3scategory", "ce-a3smetax", "ce-a3stypes",
            "ce-time", "ce-dataschema", "ce-datacontenttype", "ce-data-encoding", "ce-extension-types",
            "ce-absent-attributes", "ce-data", "ce-id", "ce-a", "ce-n", "ce-flag", "A", "a", "a3smeta_a", "data_base64",
            "extensions", "ce-extensions",
        ])
        .prop_map(str::to_owned),
    ]
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<i16>().prop_map(|eighths| Value::from(f64::from(eighths) / 8.0)),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(text(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

prop_compose! {
    fn any_event()(
        texts in (text(), text(), text(), text(), text(), text()),
        version in any::<u32>(),
        payload in json_value(),
        timestamp in prop_oneof![Just(0), Just(1_709_210_096_789), any::<u64>(), Just(timestamp::MAX_MILLIS), Just(timestamp::MAX_MILLIS + 1)],
        metadata in prop::collection::hash_map(metadata_key(), text(), 0..8),
    ) -> Event {
        let (id, subject, category, event_type, summary, source) = texts;
        Event { id, subject, category, event_type, version, payload, summary, source, timestamp, metadata }
    }
}

/// Text that is a String of the type system.
fn legal_text() -> impl Strategy<Value = String> {
    text().prop_map(|text| text.chars().filter(|c| !attributes::is_disallowed(*c)).collect())
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => legal_text().prop_map(Value::from),
        1 => any::<i32>().prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
    ]
}

fn extension_name() -> impl Strategy<Value = String> {
    let names =
        prop_oneof!["[a-z0-9]{1,20}", Just("traceparent".to_owned()), Just("partitionkey".to_owned())];
    names.prop_filter("is ours or defined", |name| {
        attributes::is_extension_name(name) && !name.starts_with("a3s")
    })
}

#[derive(Debug, Clone)]
enum AnyData {
    None,
    Json(Value),
    Text(&'static str, String),
    Binary(&'static str, Vec<u8>),
}

fn any_data() -> impl Strategy<Value = AnyData> {
    prop_oneof![
        Just(AnyData::None),
        json_value().prop_map(AnyData::Json),
        (prop::sample::select(vec!["text/xml", "text/plain; charset=utf-8", "image/svg+xml", "a/b"]), text())
            .prop_map(|(kind, text)| AnyData::Text(kind, text)),
        (prop::sample::select(vec!["image/png", "text/plain", "application/json", "a/b"]), any::<Vec<u8>>())
            .prop_map(|(kind, bytes)| AnyData::Binary(kind, bytes)),
    ]
}

prop_compose! {
    fn any_foreign()(
        id in legal_text(),
        source in prop::sample::select(vec!["/s", "https://a.example/b?c#d", "urn:x:1", "s"]),
        event_type in legal_text(),
        content_type in prop::option::of(prop::sample::select(vec!["application/json", "application/x+json", "TEXT/JSON"])),
        dataschema in prop::option::of(Just("https://schemas.example/a".to_owned())),
        subject in prop::option::of(legal_text().prop_map(|text| format!("s{text}"))),
        time in prop::option::of(prop::sample::select(vec![
            "2024-02-29T12:34:56.789Z", "2024-02-29T12:34:56Z", "2024-02-29T12:34:56.123456789-07:30", "1969-01-01T00:00:00Z",
            "1970-01-01T00:00:00.000Z",
        ])),
        extensions in prop::collection::hash_map(extension_name(), scalar(), 0..6),
        data in any_data(),
    ) -> CloudEvent {
        let mut event = CloudEvent::new(format!("i{id}"), source, format!("t{event_type}"));
        event.datacontenttype = content_type.map(str::to_owned);
        event.dataschema = dataschema;
        event.subject = subject;
        event.time = time.map(str::to_owned);
        event.extensions = extensions;
        match data {
            AnyData::None => {}
            AnyData::Json(value) => event.data = Some(value),
            AnyData::Text(kind, text) => {
                event.datacontenttype = Some(kind.to_owned());
                event.data = Some(Value::from(text));
            }
            AnyData::Binary(kind, bytes) => event = event.with_binary_data(kind, bytes),
        }
        event
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_event_comes_back_whole(event in any_event()) {
        let cloud_event = CloudEvent::from(event.clone());
        for read in through_bindings(&cloud_event) {
            prop_assert_eq!(&read, &cloud_event);
        }
        prop_assert_eq!(event_json(&Event::try_from(cloud_event).unwrap()), event_json(&event));
    }

    #[test]
    fn what_is_written_has_only_legal_names_and_values(event in any_event()) {
        let json: Value = serde_json::from_slice(&CloudEvent::from(event).to_json().unwrap()).unwrap();
        for (name, value) in json.as_object().unwrap() {
            prop_assert!(name == "data" || name == DATA_BASE64 || attributes::is_attribute_name(name), "{}", name);
            if name == "data" {
                continue;
            }
            let is_legal = match value {
                Value::String(text) => attributes::is_string(text),
                Value::Number(number) => number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
                value => value.is_boolean(),
            };
            prop_assert!(is_legal, "{}: {}", name, value);
        }
        prop_assert!(attributes::is_uri_reference(json["source"].as_str().unwrap()));
    }

    #[test]
    fn every_foreign_event_comes_back_whole(event in any_foreign()) {
        for read in through_bindings(&event) {
            prop_assert_eq!(&read, &event);
        }
        let ours = Event::try_from(event.clone()).unwrap();
        let back = CloudEvent::from(ours.clone());
        for read in through_bindings(&back) {
            prop_assert_eq!(&read, &back);
        }
        prop_assert_eq!(without_ours(back), event);
    }

    #[test]
    fn no_input_panics(json in any::<Vec<u8>>(), name in text(), value in json_value(), headers in prop::collection::vec((metadata_key(), any::<Vec<u8>>()), 0..6)) {
        let _ = CloudEvent::from_json(&json);
        let _ = from_json_batch(&json, AcceptedFormats::KnownDivergences);
        if let Ok(event) = read_with(&name, value) {
            let _ = Event::try_from(event);
        }
        let _ = http::from_message(headers.clone(), &json, AcceptedFormats::KnownDivergences);
        let _ = kafka::from_record(headers, Some(&json), AcceptedFormats::Conformant);
    }
}
