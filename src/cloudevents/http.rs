//! The HTTP binding of CloudEvents 1.0.2: binary, structured and batched mode.
//!
//! The functions work on headers and bytes. A server passes what it received to [`from_message`] or [`from_batch`],
//! depending on [`mode`]. A client sends what [`to_binary`], [`to_structured`] or [`to_batch`] return.
//!
//! ```
//! use a3s_event::CloudEvent;
//! use a3s_event::cloudevents::{AcceptedFormats, http};
//!
//! let event = CloudEvent::new("1", "/rates", "forex.rate").with_data(serde_json::json!({"rate": 7.35}));
//! let message = http::to_binary(&event)?;
//! assert_eq!(message.header("ce-type"), Some("forex.rate"));
//! assert_eq!(message.header("content-type"), Some("application/json"));
//!
//! let body = message.body.unwrap_or_default();
//! assert_eq!(http::from_message(message.headers, &body, AcceptedFormats::Conformant)?, event);
//! # Ok::<(), a3s_event::EventError>(())
//! ```

use super::attributes::{essence, invalid};
use super::binding::{
    self, BoundMessage, JSON, JSON_BATCH, Spelling, is_of_format, percent_decode, percent_encode,
    sort_headers,
};
use super::{AcceptedFormats, CloudEvent, from_json_batch, to_json_batch};
use crate::error::{EventError, Result};
use crate::headers::single;

const SPELLING: Spelling = Spelling { prefix: "ce-", content_type: "content-type", encode: percent_encode };

/// Modes in which HTTP carries CloudEvents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ContentMode {
    /// Attributes are headers, the body is the data.
    Binary,
    /// The body is the event in the JSON format.
    Structured,
    /// The body is an array of events in the JSON format.
    Batch,
}

/// Returns the mode of a message with this `Content-Type`.
pub fn mode(content_type: Option<&str>) -> ContentMode {
    let content_type = content_type.unwrap_or_default().trim();
    if !is_of_format(content_type) {
        ContentMode::Binary
    } else if essence(content_type).eq_ignore_ascii_case(JSON_BATCH) {
        ContentMode::Batch
    } else {
        ContentMode::Structured
    }
}

/// Writes the binary mode. Header values are percent-encoded, so they are printable ASCII.
///
/// # Errors
///
/// [`EventError::InvalidEvent`] that names the attribute that does not conform.
pub fn to_binary(event: &CloudEvent) -> Result<BoundMessage> {
    binding::to_binary(event, &SPELLING)
}

/// Writes the structured mode.
///
/// # Errors
///
/// [`EventError::InvalidEvent`] that names the attribute that does not conform.
pub fn to_structured(event: &CloudEvent) -> Result<BoundMessage> {
    Ok(BoundMessage::with_content_type(JSON, event.to_json()?))
}

/// Writes the batched mode. The specification allows it only if the receiver asked for it.
///
/// # Errors
///
/// Same as [`to_json_batch`].
pub fn to_batch(events: &[CloudEvent]) -> Result<BoundMessage> {
    Ok(BoundMessage::with_content_type(JSON_BATCH, to_json_batch(events)?))
}

/// Reads a message in binary or structured mode. Headers that do not belong to CloudEvents are ignored.
///
/// # Errors
///
/// - [`EventError::InvalidEvent`] that names the attribute that does not conform. The name is `content-type` for a
///   batch or a format that is not JSON, and `header` for a value that cannot be decoded.
/// - [`EventError::Serialization`] for a body that is not JSON.
pub fn from_message<N: AsRef<str>, V: AsRef<[u8]>>(
    headers: impl IntoIterator<Item = (N, V)>,
    body: &[u8],
    accept: AcceptedFormats,
) -> Result<CloudEvent> {
    let sorted = sort_headers(headers, SPELLING.prefix, |value| percent_decode(value, accept))?;
    if sorted.is_structured()? {
        return CloudEvent::from_json_accepting(body, accept);
    }
    sorted.into_binary(Some(body), accept)
}

/// Reads a message in batched mode, all or nothing: one invalid event fails the batch.
///
/// # Errors
///
/// Same as [`from_json_batch`]. [`EventError::InvalidEvent`] for a `content-type` that is not
/// `application/cloudevents-batch+json`.
pub fn from_batch<N: AsRef<str>, V: AsRef<[u8]>>(
    headers: impl IntoIterator<Item = (N, V)>,
    body: &[u8],
    accept: AcceptedFormats,
) -> Result<Vec<CloudEvent>> {
    let headers = headers.into_iter().filter(|(name, _)| name.as_ref().eq_ignore_ascii_case("content-type"));
    let content_types: Vec<V> = headers.map(|(_, value)| value).collect();
    let content_type = single(&content_types)
        .map_err(|unreadable| invalid("header", "content-type", unreadable.rule()))?
        .unwrap_or_default();
    if mode(Some(content_type)) != ContentMode::Batch {
        return Err(invalid("content-type", content_type, format!("must be {JSON_BATCH}")));
    }
    from_json_batch(body, accept)
}

/// Returns the HTTP status code for an error of this module:
///
/// - 413 for a batch with too many events, and for [`EventError::TooLarge`];
/// - 415 for a content type that is not read;
/// - 400 for any other invalid message;
/// - 500 for an error that the sender did not cause.
pub fn status(error: &EventError) -> u16 {
    match error {
        EventError::InvalidEvent { field: "batch", .. } | EventError::TooLarge { .. } => 413,
        EventError::InvalidEvent { field: "content-type", .. } => 415,
        EventError::InvalidEvent { .. }
        | EventError::CloudEventConversion(_)
        | EventError::Serialization(_) => 400,
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_type_decides_the_mode() {
        for (content_type, expected) in [
            (None, ContentMode::Binary),
            (Some("application/json"), ContentMode::Binary),
            (Some("application/cloudevents+json"), ContentMode::Structured),
            (Some("Application/CloudEvents+JSON; charset=utf-8"), ContentMode::Structured),
            (Some("application/cloudevents-batch+json"), ContentMode::Batch),
            (Some("application/cloudevents-batch+json;charset=UTF-8"), ContentMode::Batch),
        ] {
            assert_eq!(mode(content_type), expected, "{content_type:?}");
        }
    }

    #[test]
    fn a_message_in_a_format_that_is_not_read_is_415() {
        for content_type in
            ["application/cloudevents+avro", "application/cloudevents-batch+json", "application/cloudevents"]
        {
            let error = from_message([("Content-Type", content_type)], b"{}", AcceptedFormats::Conformant)
                .unwrap_err();
            assert_eq!(status(&error), 415, "{error}");
        }
        let error = from_batch([("Content-Type", JSON)], b"[]", AcceptedFormats::Conformant).unwrap_err();
        assert_eq!(status(&error), 415, "{error}");
    }
}
