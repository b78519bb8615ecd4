//! CloudEvents in the JSON batch format: a batch is read completely or refused, and a round trip preserves it.

use a3s_event::cloudevents::{AcceptedFormats, from_json_batch, http, to_json_batch};

use super::check_error;
use super::cloudevents::check_event_of;

pub fn check(data: &[u8]) {
    for accept in [AcceptedFormats::Conformant, AcceptedFormats::KnownDivergences] {
        let events = match from_json_batch(data, accept) {
            Ok(events) => events,
            Err(error) => {
                check_error(&error);
                continue;
            }
        };
        let documents: Vec<serde_json::Value> = serde_json::from_slice(data).expect("it was read before");
        assert_eq!(events.len(), documents.len());
        std::iter::zip(&documents, &events).for_each(|(document, event)| check_event_of(document, event));
        if events.iter().any(|event| event.validate().is_err()) {
            continue;
        }
        let json = to_json_batch(&events).expect("every one can be written");
        assert_eq!(
            from_json_batch(&json, AcceptedFormats::Conformant).expect("what was written is read"),
            events
        );
        let message = http::to_batch(&events).expect("what was read can be sent");
        assert_eq!(message.body.as_deref(), Some(json.as_slice()));
    }
}
