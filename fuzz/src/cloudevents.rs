//! Guarantees for every CloudEvent that a reader accepts.

use a3s_event::cloudevents::{AcceptedFormats, http, kafka, nats};
use a3s_event::{CloudEvent, Event, Result};
use serde_json::{Value, from_slice, to_value};

use super::check_error;

/// Reads strictly and with known divergences, and checks the events. The body may be a JSON document of the event.
pub(crate) fn check_reader(body: &[u8], read: impl Fn(AcceptedFormats) -> Result<CloudEvent>) {
    let document = from_slice(body).unwrap_or(Value::Null);
    let (strict, lenient) = (read(AcceptedFormats::Conformant), read(AcceptedFormats::KnownDivergences));
    assert!(strict.is_err() || lenient.is_ok(), "what conforms is never refused: {strict:?}, {lenient:?}");
    for result in [strict, lenient] {
        match result {
            Ok(event) => check_event_of(&document, &event),
            Err(error) => check_error(&error),
        }
    }
}

/// Checks an event of a JSON document, as [`check_event`] does.
///
/// The nested form of version 0.2 has the in-memory content of that version. It is always read, but writing it may
/// fail.
pub(crate) fn check_event_of(document: &Value, event: &CloudEvent) {
    match event.validate() {
        Err(error) if document["extensions"].is_object() => check_error(&error),
        _ => check_event(event),
    }
}

/// Checks that the event can be written in every form, reads back the same, and survives the conversion to an
/// [`Event`].
fn check_event(event: &CloudEvent) {
    event.validate().expect("what was read can be written");
    let strict = AcceptedFormats::Conformant;
    let json = event.to_json().expect("written as JSON");
    same(event, CloudEvent::from_json(&json));

    let message = http::to_binary(event).expect("written for HTTP");
    same(event, http::from_message(message.headers, &message.body.unwrap_or_default(), strict));
    let message = nats::to_binary(event).expect("written for NATS");
    same(event, nats::from_message(message.headers, &message.body.unwrap_or_default(), strict));
    let message = kafka::to_binary(event).expect("written for Kafka");
    same(event, kafka::from_record(message.headers, message.body.as_deref(), strict));

    match Event::try_from(event.clone()) {
        Ok(ours) => {
            let theirs = CloudEvent::from(ours.clone());
            let json = theirs.to_json().expect("an event is written as JSON");
            same(&theirs, CloudEvent::from_json(&json));
            let again = Event::try_from(theirs).expect("what an event became is one");
            assert_eq!(to_value(again).unwrap(), to_value(ours).unwrap());
        }
        Err(error) => check_error(&error),
    }
}

fn same(event: &CloudEvent, read: Result<CloudEvent>) {
    assert_eq!(&read.expect("what was written is read"), event);
}
