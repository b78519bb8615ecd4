//! Checks of what comes from outside, shared by every provider so that the same input fails the same way everywhere.

use std::fmt::{self, Write};

use serde_json::Value;

use crate::error::{EventError, Result, shorten};
use crate::subject::{is_invisible, validate_published};
use crate::types::{Event, PublishOptions};

/// Longest event id in bytes.
pub const MAX_ID_LEN: usize = 512;
/// Longest `msg_id` in bytes.
pub const MAX_MSG_ID_LEN: usize = 512;
/// Most bytes in the keys and values of an event's metadata.
pub const MAX_METADATA_BYTES: usize = 32 * 1024;
/// Deepest nesting of arrays and objects in a payload.
pub const MAX_PAYLOAD_DEPTH: usize = 100;
/// Largest event in bytes of JSON unless the provider is configured otherwise; NATS has the same default.
pub const DEFAULT_MAX_PAYLOAD: usize = 1024 * 1024;

/// Checks an event for publishing on a stream with this prefix and returns its size in bytes of JSON.
///
/// # Errors
///
/// [`EventError::InvalidSubject`], [`EventError::InvalidEvent`] for the id, version or payload depth, and
/// [`EventError::TooLarge`] for the metadata or the whole event.
pub fn validate_event(event: &Event, prefix: &str, max_payload: usize) -> Result<usize> {
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
    let size = encoded_len(event)?;
    if size > max_payload {
        return Err(EventError::TooLarge { what: "event", actual: size, limit: max_payload });
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
    // Without an early exit the compiler looks at many bytes at a time.
    let in_ascii = text.bytes().fold(false, |found, byte| found | (byte < 0x20) | (byte == 0x7f));
    in_ascii || (!text.is_ascii() && text.chars().any(char::is_control))
}

/// Checks publish options.
///
/// # Errors
///
/// [`EventError::Config`] that names the option, its value and the rule.
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
    } else {
        return Ok(());
    };
    Err(EventError::Config(format!("msg_id \"{}\": {rule}", shorten(msg_id))))
}

/// The size of the event's JSON in bytes: what it takes on the wire and in a store.
///
/// It walks the event instead of writing the JSON out, because every publish needs the number; a test holds it equal to
/// what serde_json writes.
///
/// # Errors
///
/// [`EventError::InvalidEvent`] when the payload is nested deeper than [`MAX_PAYLOAD_DEPTH`].
pub fn encoded_len(event: &Event) -> Result<usize> {
    const KEYS_AND_PUNCTUATION: usize = concat!(
        r#"{"id":,"subject":,"category":,"eventType":,"version":,"payload":,"#,
        r#""summary":,"source":,"timestamp":,"metadata":{}}"#
    )
    .len();
    let strings =
        [&event.id, &event.subject, &event.category, &event.event_type, &event.summary, &event.source];
    let metadata: usize = event.metadata.iter().map(|(k, v)| string_len(k) + string_len(v) + 1).sum();
    let payload = value_len(&event.payload, MAX_PAYLOAD_DEPTH).ok_or_else(|| EventError::InvalidEvent {
        field: "payload",
        value: "…".to_owned(),
        rule: format!("is nested deeper than {MAX_PAYLOAD_DEPTH} levels"),
    })?;
    Ok(KEYS_AND_PUNCTUATION
        + strings.into_iter().map(|text| string_len(text)).sum::<usize>()
        + integer_len(u64::from(event.version))
        + integer_len(event.timestamp)
        + metadata
        + commas(event.metadata.len())
        + payload)
}

/// `None` when the value is nested deeper than `depth_left` levels.
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

/// Length of a JSON string with its quotes.
fn string_len(text: &str) -> usize {
    // Nearly every string needs no escape, and that can be seen eight bytes at a time.
    if has_escapes(text.as_bytes()) {
        return text.bytes().map(escaped_len).sum::<usize>() + 2;
    }
    text.len() + 2
}

fn has_escapes(bytes: &[u8]) -> bool {
    // The last word overlaps the one before it instead of being padded.
    if let Some(tail) = bytes.last_chunk::<8>() {
        let (words, _) = bytes.as_chunks::<8>();
        let words = words.iter().chain([tail]);
        return words.fold(0, |found, word| found | escapes_in(u64::from_ne_bytes(*word))) != 0;
    }
    if let (Some(head), Some(tail)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        let word = u64::from(u32::from_ne_bytes(*head)) << 32 | u64::from(u32::from_ne_bytes(*tail));
        return escapes_in(word) != 0;
    }
    bytes.iter().any(|byte| escaped_len(*byte) > 1)
}

/// Not zero if one of eight bytes needs an escape (S. E. Anderson, "Bit Twiddling Hacks": find a byte less than n, find
/// a byte equal to n).
fn escapes_in(word: u64) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    const QUOTES: u64 = u64::from_ne_bytes([b'"'; 8]);
    const BACKSLASHES: u64 = u64::from_ne_bytes([b'\\'; 8]);
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES.wrapping_mul(limit)) & !word & HIGH;
    below(word, 0x20) | below(word ^ QUOTES, 1) | below(word ^ BACKSLASHES, 1)
}

/// Length of one byte in a JSON string (RFC 8259, section 7, with the short escapes that serde_json writes).
fn escaped_len(byte: u8) -> usize {
    match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..=0x1f => "\\u0000".len(),
        _ => 1,
    }
}

fn number_len(number: &serde_json::Number) -> usize {
    match number.as_u64() {
        Some(integer) => integer_len(integer),
        None => {
            let mut counter = CountBytes(0);
            // Counting cannot fail; a failing Display would only make the count smaller.
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
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
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
        fn the_counted_size_is_the_written_size(
            payload in json_value(),
            texts in prop::collection::vec(any::<String>(), 6),
            metadata in prop::collection::hash_map(any::<String>(), any::<String>(), 0..4),
            version in any::<u32>(),
            timestamp in any::<u64>(),
        ) {
            let [id, subject, category, event_type, summary, source] = <[String; 6]>::try_from(texts).unwrap();
            let event =
                Event { id, subject, category, event_type, version, payload, summary, source, timestamp, metadata };
            prop_assert_eq!(encoded_len(&event).unwrap(), serde_json::to_vec(&event).unwrap().len());
        }
    }

    #[test]
    fn the_limit_itself_is_accepted_and_one_byte_more_is_not() {
        let mut event = event(json!(""));
        let empty = encoded_len(&event).unwrap();
        event.payload = json!("x".repeat(DEFAULT_MAX_PAYLOAD - empty));
        assert_eq!(validate_event(&event, "events", DEFAULT_MAX_PAYLOAD).unwrap(), DEFAULT_MAX_PAYLOAD);
        event.payload = json!("x".repeat(DEFAULT_MAX_PAYLOAD - empty + 1));
        assert!(matches!(
            validate_event(&event, "events", DEFAULT_MAX_PAYLOAD),
            Err(EventError::TooLarge { what: "event", actual, limit }) if actual == limit + 1
        ));
    }

    #[test]
    fn bad_ids_versions_and_metadata_are_refused() {
        let check = |event: &Event| validate_event(event, "events", DEFAULT_MAX_PAYLOAD);
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
        encoded_len(&event(nested(MAX_PAYLOAD_DEPTH))).unwrap();
        assert!(matches!(
            encoded_len(&event(nested(MAX_PAYLOAD_DEPTH + 1))),
            Err(EventError::InvalidEvent { field: "payload", .. })
        ));
    }

    #[test]
    fn bad_publish_options_name_the_option() {
        for (options, name) in [
            (PublishOptions { timeout_secs: Some(0), ..Default::default() }, "timeout_secs"),
            (PublishOptions { msg_id: Some(String::new()), ..Default::default() }, "msg_id"),
            (PublishOptions { msg_id: Some("a\nb".into()), ..Default::default() }, "msg_id"),
            (PublishOptions { msg_id: Some("m".repeat(1000)), ..Default::default() }, "msg_id"),
        ] {
            let error = validate_publish_options(&options).unwrap_err();
            assert!(matches!(&error, EventError::Config(text) if text.contains(name)), "{error}");
        }
        validate_publish_options(&PublishOptions { msg_id: Some("a b/c".into()), ..Default::default() })
            .unwrap();
    }
}
