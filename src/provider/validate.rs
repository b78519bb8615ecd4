//! Checks of external input. All providers share them, so that the same input fails the same way everywhere.

use std::io::{self, Write};

use serde_json::Value;

use crate::error::{EventError, Result};
use crate::subject::validate_published;
use crate::text::{is_invisible, shorten};
use crate::types::{Event, PublishOptions};

/// Maximum length of an event id in bytes.
pub const MAX_ID_LEN: usize = 512;
/// Maximum length of a `msg_id` in bytes.
pub const MAX_MSG_ID_LEN: usize = 512;
/// Maximum size of the keys and values of an event's metadata in bytes.
pub const MAX_METADATA_BYTES: usize = 32 * 1024;
/// Maximum nesting depth of arrays and objects in a payload.
pub const MAX_PAYLOAD_DEPTH: usize = 100;
/// Maximum number of bytes of JSON for one byte of text: `\u0000`.
const LONGEST_ESCAPE: usize = 6;
/// Default maximum size of an event in bytes of JSON. NATS has the same default.
pub const DEFAULT_MAX_EVENT_BYTES: usize = 1024 * 1024;
/// Minimum of a size limit in bytes. A smaller limit would accept no event.
pub const SMALLEST_LIMIT: i128 = 256;

/// Validates an event for publishing on a stream with this prefix and returns its size in bytes of JSON. The size is
/// exact for a large event. For an event far below the limit, it omits the characters that escapes add.
///
/// # Errors
///
/// [`EventError::InvalidSubject`], [`EventError::InvalidEvent`] for the id, version or payload depth, and
/// [`EventError::TooLarge`] for the metadata or the whole event.
pub fn validate_event(event: &Event, prefix: &str, max_event_bytes: usize) -> Result<usize> {
    validate_published(&event.subject, prefix)?;
    validate_id(&event.id)?;
    if event.version == 0 || event.version == u32::MAX {
        return Err(EventError::InvalidEvent {
            field: "version",
            value: event.version.to_string(),
            rule: format!("must be between 1 and {}", u32::MAX - 1),
        });
    }
    let metadata: usize = event.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if metadata > MAX_METADATA_BYTES {
        return Err(EventError::TooLarge { what: "metadata", actual: metadata, limit: MAX_METADATA_BYTES });
    }
    let unescaped = unescaped_len(event)?;
    // Only near the limit does the exact size matter, and it takes several times as long to compute.
    if unescaped <= max_event_bytes / LONGEST_ESCAPE {
        return Ok(unescaped);
    }
    let size = encoded_len(event)?;
    if size > max_event_bytes {
        return Err(EventError::TooLarge { what: "event", actual: size, limit: max_event_bytes });
    }
    Ok(size)
}

fn validate_id(id: &str) -> Result<()> {
    let rule = if id.is_empty() {
        "must not be empty".to_owned()
    } else if id.len() > MAX_ID_LEN {
        format!("is {} bytes long, at most {MAX_ID_LEN} are allowed", id.len())
    } else if has_control(id) {
        "must have no control character".to_owned()
    } else {
        return Ok(());
    };
    Err(EventError::InvalidEvent { field: "id", value: shorten(id), rule })
}

fn has_control(text: &str) -> bool {
    // Without an early exit, the compiler checks many bytes at a time.
    let in_ascii = text.bytes().fold(false, |found, byte| found | (byte < 0x20) | (byte == 0x7f));
    in_ascii || (!text.is_ascii() && text.chars().any(char::is_control))
}

/// Validates the nesting depth of a payload before it is encrypted.
///
/// # Errors
///
/// [`EventError::InvalidEvent`] if it is nested deeper than [`MAX_PAYLOAD_DEPTH`].
pub fn validate_payload(payload: &Value) -> Result<()> {
    payload_len(payload).map(drop)
}

/// Validates publish options.
///
/// # Errors
///
/// [`EventError::Config`], which names the option, its value and the rule.
pub fn validate_publish_options(options: &PublishOptions) -> Result<()> {
    if options.timeout_secs == Some(0) {
        return Err(EventError::Config("timeout_secs 0: must be at least 1".to_owned()));
    }
    let Some(msg_id) = &options.msg_id else {
        return Ok(());
    };
    let rule = if msg_id.is_empty() {
        "must not be empty".to_owned()
    } else if msg_id.len() > MAX_MSG_ID_LEN {
        format!("is {} bytes long, at most {MAX_MSG_ID_LEN} are allowed", msg_id.len())
    } else if msg_id.chars().any(|c| c.is_control() || is_invisible(c)) {
        "must have no control or invisible character".to_owned()
    } else if msg_id.starts_with(char::is_whitespace) || msg_id.ends_with(char::is_whitespace) {
        // A transport that carries the id in a header strips white space at its ends.
        "must not begin or end with white space".to_owned()
    } else {
        return Ok(());
    };
    Err(EventError::Config(format!("msg_id \"{}\": {rule}", shorten(msg_id))))
}

/// Returns the size of the event's JSON in bytes, as sent and stored.
fn encoded_len(event: &Event) -> Result<usize> {
    let mut counter = CountBytes(0);
    serde_json::to_writer(&mut counter, event)?;
    Ok(counter.0)
}

/// Returns the size without the characters that escapes add, in a fraction of the time.
fn unescaped_len(event: &Event) -> Result<usize> {
    const KEYS_AND_PUNCTUATION: usize = concat!(
        r#"{"id":,"subject":,"category":,"eventType":,"version":,"payload":,"#,
        r#""summary":,"source":,"timestamp":,"metadata":{}}"#
    )
    .len();
    let strings =
        [&event.id, &event.subject, &event.category, &event.event_type, &event.summary, &event.source];
    let metadata: usize = event.metadata.iter().map(|(k, v)| string_len(k) + string_len(v) + 1).sum();
    let payload = payload_len(&event.payload)?;
    Ok(KEYS_AND_PUNCTUATION
        + strings.into_iter().map(|text| string_len(text)).sum::<usize>()
        + integer_len(u64::from(event.version))
        + integer_len(event.timestamp)
        + metadata
        + commas(event.metadata.len())
        + payload)
}

fn payload_len(payload: &Value) -> Result<usize> {
    value_len(payload, MAX_PAYLOAD_DEPTH).ok_or_else(|| EventError::InvalidEvent {
        field: "payload",
        value: "…".to_owned(),
        rule: format!("is nested deeper than {MAX_PAYLOAD_DEPTH} levels"),
    })
}

/// Returns the size, or `None` if the value is nested deeper than `depth_left` levels.
fn value_len(value: &Value, depth_left: usize) -> Option<usize> {
    Some(match value {
        Value::Null | Value::Bool(true) => 4,
        Value::Bool(false) => 5,
        Value::Number(number) => number_len(number),
        Value::String(text) => string_len(text),
        Value::Array(items) => {
            let depth_left = depth_left.checked_sub(1)?;
            let mut len = 2 + commas(items.len());
            for item in items {
                len += value_len(item, depth_left)?;
            }
            len
        }
        Value::Object(fields) => {
            let depth_left = depth_left.checked_sub(1)?;
            let mut len = 2 + commas(fields.len());
            for (key, value) in fields {
                len += string_len(key) + 1 + value_len(value, depth_left)?;
            }
            len
        }
    })
}

fn commas(items: usize) -> usize {
    items.saturating_sub(1)
}

fn string_len(text: &str) -> usize {
    text.len() + r#""""#.len()
}

fn number_len(number: &serde_json::Number) -> usize {
    match number.as_u64() {
        Some(integer) => integer_len(integer),
        None => {
            let mut counter = CountBytes(0);
            // Counting cannot fail.
            let _ = write!(counter, "{number}");
            counter.0
        }
    }
}

fn integer_len(integer: u64) -> usize {
    integer.checked_ilog10().map_or(1, |digits| digits as usize + 1)
}

struct CountBytes(usize);

impl Write for CountBytes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn event(payload: Value) -> Event {
        Event::new("events.a", "a", "summary", "source", payload)
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn sizes_are_those_of_the_written_json(
            payload in json_value(),
            texts in prop::collection::vec(any::<String>(), 6),
            metadata in prop::collection::hash_map(any::<String>(), any::<String>(), 0..4),
            version in any::<u32>(),
            timestamp in any::<u64>(),
        ) {
            let [id, subject, category, event_type, summary, source] = <[String; 6]>::try_from(texts).unwrap();
            let event =
                Event { id, subject, category, event_type, version, payload, summary, source, timestamp, metadata };
            let written = serde_json::to_string(&event).unwrap();
            prop_assert_eq!(encoded_len(&event).unwrap(), written.len());
            let unescaped = unescaped_len(&event).unwrap();
            prop_assert!(unescaped <= written.len() && written.len() <= unescaped * LONGEST_ESCAPE);
            if !written.contains('\\') {
                prop_assert_eq!(unescaped, written.len());
            }
        }
    }

    #[test]
    fn escapes_count_at_the_limit() {
        let event = event(json!("\u{1}".repeat(DEFAULT_MAX_EVENT_BYTES / 6)));
        let error = validate_event(&event, "events", DEFAULT_MAX_EVENT_BYTES).unwrap_err();
        assert!(matches!(error, EventError::TooLarge { actual, .. } if actual > DEFAULT_MAX_EVENT_BYTES));
    }

    #[test]
    fn the_limit_itself_is_accepted_and_one_byte_more_is_not() {
        let mut event = event(json!(""));
        let empty = encoded_len(&event).unwrap();
        event.payload = json!("x".repeat(DEFAULT_MAX_EVENT_BYTES - empty));
        assert_eq!(
            validate_event(&event, "events", DEFAULT_MAX_EVENT_BYTES).unwrap(),
            DEFAULT_MAX_EVENT_BYTES
        );
        event.payload = json!("x".repeat(DEFAULT_MAX_EVENT_BYTES - empty + 1));
        assert!(matches!(
            validate_event(&event, "events", DEFAULT_MAX_EVENT_BYTES),
            Err(EventError::TooLarge { what: "event", actual, limit }) if actual == limit + 1
        ));
    }

    #[test]
    fn bad_ids_versions_and_metadata_are_refused() {
        let check = |event: &Event| validate_event(event, "events", DEFAULT_MAX_EVENT_BYTES);
        for id in [String::new(), "x".repeat(1024), "a\rb".to_owned()] {
            let bad = Event { id, ..event(json!(1)) };
            assert!(matches!(check(&bad), Err(EventError::InvalidEvent { field: "id", .. })), "{:?}", bad.id);
        }
        for version in [0, u32::MAX] {
            let bad = Event { version, ..event(json!(1)) };
            assert!(matches!(check(&bad), Err(EventError::InvalidEvent { field: "version", .. })));
        }
        let long_key = event(json!(1)).with_metadata("k".repeat(64 * 1024), "");
        assert!(matches!(check(&long_key), Err(EventError::TooLarge { what: "metadata", .. })));
        let mut many_keys = event(json!(1));
        many_keys.metadata = (0..100_000).map(|n| (n.to_string(), String::new())).collect();
        assert!(matches!(check(&many_keys), Err(EventError::TooLarge { what: "metadata", .. })));
        for payload in [json!({}), json!(null), json!("")] {
            check(&event(payload)).unwrap();
        }
        for timestamp in [0, u64::MAX] {
            check(&Event { timestamp, ..event(json!(1)) }).unwrap();
        }
    }

    #[test]
    fn deep_payloads_are_refused_at_the_limit() {
        let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        unescaped_len(&event(nested(MAX_PAYLOAD_DEPTH))).unwrap();
        assert!(matches!(
            unescaped_len(&event(nested(MAX_PAYLOAD_DEPTH + 1))),
            Err(EventError::InvalidEvent { field: "payload", .. })
        ));
    }

    #[test]
    fn bad_publish_options_name_the_option() {
        for (options, name) in [
            (PublishOptions { timeout_secs: Some(0), ..Default::default() }, "timeout_secs"),
            (PublishOptions { msg_id: Some(String::new()), ..Default::default() }, "msg_id"),
            (PublishOptions { msg_id: Some("a\nb".into()), ..Default::default() }, "msg_id"),
            (PublishOptions { msg_id: Some(" a".into()), ..Default::default() }, "white space"),
            (PublishOptions { msg_id: Some("a\u{2003}".into()), ..Default::default() }, "white space"),
            (PublishOptions { msg_id: Some("m".repeat(1000)), ..Default::default() }, "msg_id"),
        ] {
            let error = validate_publish_options(&options).unwrap_err();
            assert!(matches!(&error, EventError::Config(text) if text.contains(name)), "{error}");
        }
        validate_publish_options(&PublishOptions { msg_id: Some("a b/c".into()), ..Default::default() })
            .unwrap();
    }
}
