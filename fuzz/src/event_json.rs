//! The JSON of an event: a round trip preserves it, and its size limit is exact.
//!
//! Input: a text that may be an event.

use a3s_event::provider::validate::validate_event;
use a3s_event::{Event, EventError};
use serde_json::{from_slice, to_value, to_vec};

use super::check_error;

pub fn check(data: &[u8]) {
    let event: Event = match from_slice(data) {
        Ok(event) => event,
        Err(error) => return check_error(&error.into()),
    };
    let json = to_vec(&event).expect("an event has a JSON form");
    let again: Event = from_slice(&json).expect("what was written is read");
    assert_eq!(to_value(&again).unwrap(), to_value(&event).unwrap());

    // Limits near the size, which must be exact, and far above it, where an estimate is enough.
    let len = json.len();
    for limit in [len - 1, len, len + 1, 6 * len, 7 * len] {
        match validate_event(&event, "events", limit) {
            Ok(size) => assert!(size <= len && len <= limit, "{size} for {len} bytes, allowed were {limit}"),
            Err(EventError::TooLarge { what: "event", actual, .. }) => {
                assert!(actual == len && len > limit, "{actual} for {len} bytes, allowed were {limit}");
            }
            Err(error) => check_error(&error),
        }
    }
}
