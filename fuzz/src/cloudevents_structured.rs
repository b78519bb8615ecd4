//! A CloudEvent in the JSON format.

use a3s_event::CloudEvent;

pub fn check(data: &[u8]) {
    super::cloudevents::check_reader(data, |accept| CloudEvent::from_json_accepting(data, accept));
}
