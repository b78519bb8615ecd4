//! Events exchanged with the official Rust SDK.

use a3s_event::CloudEvent;
use a3s_event::cloudevents::{AcceptedFormats, BoundMessage, from_json_batch, http as ours, to_json_batch};
use cloudevents::binding::http::{Builder, Serializer, to_event};
use cloudevents::event::ExtensionValue;
use cloudevents::message::{BinaryDeserializer, StructuredDeserializer};
use cloudevents::{AttributesReader, Data, EventBuilder, EventBuilderV10};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use serde_json::Value;

use super::{cloud_events, comparable};

type Sdk = cloudevents::Event;

/// What the SDK understood is what we meant. `decode` stands for what the SDK does not do itself.
fn assert_understood(sdk: &Sdk, event: &CloudEvent, decode: impl Fn(&str) -> String) {
    let json: Value = serde_json::from_slice(&event.to_json().unwrap()).unwrap();
    let text = |name: &str| json.get(name).and_then(Value::as_str).map(str::to_owned);
    assert_eq!(Some(decode(sdk.id())), text("id"));
    assert_eq!(Some(decode(sdk.source())), text("source"));
    assert_eq!(Some(decode(sdk.ty())), text("type"));
    assert_eq!(sdk.subject().map(&decode), text("subject"));
    assert_eq!(sdk.datacontenttype().map(str::to_owned), text("datacontenttype"));
    assert_eq!(sdk.dataschema().map(ToString::to_string), text("dataschema"));
    let time = text("time").map(|time| chrono_like(&time));
    assert_eq!(sdk.time().map(|time| time.timestamp_millis()), time);
    match (sdk.data(), &event.data) {
        (Some(Data::Json(value)), Some(data)) => assert_eq!(value, data),
        (Some(Data::String(text)), Some(data)) => assert_eq!(text, data),
        // Read from a message's body: the SDK leaves it as it is.
        (Some(Data::Binary(bytes)), Some(Value::String(text)))
            if event.datacontenttype.as_deref() == Some("text/xml") =>
        {
            assert_eq!(bytes, text.as_bytes());
        }
        (Some(Data::Binary(bytes)), Some(data)) => {
            assert_eq!(&serde_json::from_slice::<Value>(bytes).unwrap(), data);
        }
        (Some(Data::Binary(bytes)), None) => assert_eq!(Some(bytes), event.binary_data().unwrap().as_ref()),
        (understood, meant) => panic!("{understood:?} is not {meant:?}"),
    }
    for (name, value) in sdk.iter_extensions() {
        if name == "a3stypes" {
            continue;
        }
        let value = match value {
            ExtensionValue::String(text) => decode(text),
            ExtensionValue::Boolean(boolean) => boolean.to_string(),
            ExtensionValue::Integer(integer) => integer.to_string(),
        };
        let meant = &json[name];
        assert_eq!(value, meant.as_str().map_or_else(|| meant.to_string(), str::to_owned), "{name}");
    }
}

/// Milliseconds of a time that we wrote, by way of the SDK's own type.
fn chrono_like(time: &str) -> i64 {
    let event = EventBuilderV10::new().id("1").source("/s").ty("t").time(time).build().unwrap();
    event.time().unwrap().timestamp_millis()
}

fn header_map(message: &BoundMessage) -> HeaderMap {
    let header = |(name, value): &(String, String)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    message.headers.iter().map(header).collect()
}

/// A request that the SDK fills.
#[derive(Default)]
struct Sent(HeaderMap);

impl Builder<Request<Option<Vec<u8>>>> for Sent {
    fn header(&mut self, key: &str, value: HeaderValue) {
        self.0.insert(HeaderName::from_bytes(key.as_bytes()).unwrap(), value);
    }

    fn body(&mut self, bytes: Vec<u8>) -> cloudevents::message::Result<Request<Option<Vec<u8>>>> {
        let mut request = Request::new(Some(bytes));
        *request.headers_mut() = std::mem::take(&mut self.0);
        Ok(request)
    }

    fn finish(&mut self) -> cloudevents::message::Result<Request<Option<Vec<u8>>>> {
        self.body(Vec::new())
    }
}

fn read_request(request: Request<Option<Vec<u8>>>, accept: AcceptedFormats) -> CloudEvent {
    let body = request.body().clone().unwrap_or_default();
    ours::from_message(request.headers().iter().map(|(name, value)| (name.as_str(), value)), &body, accept)
        .unwrap()
}

fn percent_decoded(text: &str) -> String {
    let headers = [("ce-specversion", "1.0"), ("ce-source", "/s"), ("ce-type", "t"), ("ce-id", text)];
    ours::from_message(headers, b"", AcceptedFormats::Conformant)
        .map_or_else(|_| text.to_owned(), |event| event.id)
}

#[test]
fn json_is_understood_both_ways() {
    for event in cloud_events() {
        let sdk: Sdk = serde_json::from_slice(&event.to_json().unwrap()).unwrap();
        assert_understood(&sdk, &event, str::to_owned);
        let back = CloudEvent::from_json(&serde_json::to_vec(&sdk).unwrap()).unwrap();
        assert_eq!(comparable(back), comparable(event));
    }
}

#[test]
fn a_batch_is_understood_both_ways() {
    let events = cloud_events();
    let sdk: Vec<Sdk> = serde_json::from_slice(&to_json_batch(&events).unwrap()).unwrap();
    assert_eq!(sdk.len(), events.len());
    let back = from_json_batch(&serde_json::to_vec(&sdk).unwrap(), AcceptedFormats::Conformant).unwrap();
    for ((sdk, back), event) in sdk.iter().zip(back).zip(events) {
        assert_understood(sdk, &event, str::to_owned);
        assert_eq!(comparable(back), comparable(event));
    }
}

#[test]
fn structured_http_is_understood_both_ways() {
    for event in cloud_events() {
        let message = ours::to_structured(&event).unwrap();
        let sdk = to_event(&header_map(&message), message.body.unwrap()).unwrap();
        assert_understood(&sdk, &event, str::to_owned);
        let serializer = Serializer::new(Sent::default());
        let request = StructuredDeserializer::deserialize_structured(sdk, serializer).unwrap();
        assert_eq!(comparable(read_request(request, AcceptedFormats::Conformant)), comparable(event));
    }
}

/// The SDK neither decodes nor encodes the values of headers: what it read encoded it also writes encoded.
#[test]
fn binary_http_is_understood_both_ways() {
    for event in cloud_events() {
        let message = ours::to_binary(&event).unwrap();
        let sdk = to_event(&header_map(&message), message.body.unwrap()).unwrap();
        assert_understood(&sdk, &event, percent_decoded);
        let request = BinaryDeserializer::deserialize_binary(sdk, Request::builder()).unwrap();
        assert_eq!(comparable(read_request(request, AcceptedFormats::Conformant)), comparable(event));
    }
}

#[test]
fn what_the_sdk_makes_itself_is_understood() {
    let sdk = EventBuilderV10::new()
        .id("100% sure")
        .source("urn:example:source")
        .ty("com.example.made")
        .subject("two words")
        .time("2024-02-29T12:34:56Z")
        .extension("large", 5_000_000_000_i64)
        .extension("flag", true)
        .data("application/json", serde_json::json!({"a": 1}))
        .build()
        .unwrap();
    let json = serde_json::to_vec(&sdk).unwrap();
    // An Integer of CloudEvents has 32 bits.
    assert!(CloudEvent::from_json(&json).is_err());
    let from_json = CloudEvent::from_json_accepting(&json, AcceptedFormats::KnownDivergences).unwrap();
    let request = BinaryDeserializer::deserialize_binary(sdk, Request::builder()).unwrap();
    let from_http = read_request(request, AcceptedFormats::KnownDivergences);
    for event in [from_json, from_http] {
        assert_eq!((event.id.as_str(), event.subject.as_deref()), ("100% sure", Some("two words")));
        assert_eq!(event.extensions["large"], "5000000000");
        assert_eq!(event.data, Some(serde_json::json!({"a": 1})));
    }
}
