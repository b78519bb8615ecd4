//! The NATS binding of CloudEvents after 1.0.2: binary and structured mode.
//!
//! The functions work on headers and bytes; the program chooses the subject of the message. They need no NATS client
//! and no feature.
//!
//! ```
//! use a3s_event::CloudEvent;
//! use a3s_event::cloudevents::{AcceptedFormats, nats};
//!
//! let event = CloudEvent::new("1", "/rates", "forex.rate").with_data(serde_json::json!({"rate": 7.35}));
//! let message = nats::to_binary(&event)?;
//! assert_eq!(message.header("ce-datacontenttype"), Some("application/json"));
//!
//! let body = message.body.unwrap_or_default();
//! assert_eq!(nats::from_message(message.headers, &body, AcceptedFormats::Conformant)?, event);
//! # Ok::<(), a3s_event::EventError>(())
//! ```

use super::binding::{self, BoundMessage, JSON, Spelling, percent_decode, percent_encode, sort_headers};
use super::{AcceptedFormats, CloudEvent};
use crate::error::Result;

const SPELLING: Spelling =
    Spelling { prefix: "ce-", content_type: "ce-datacontenttype", encode: percent_encode };

/// Writes the binary mode. Header values are percent-encoded, so they are printable ASCII.
///
/// # Errors
///
/// [`EventError::InvalidEvent`](crate::EventError::InvalidEvent) that names the attribute that does not conform.
pub fn to_binary(event: &CloudEvent) -> Result<BoundMessage> {
    binding::to_binary(event, &SPELLING)
}

/// Writes the structured mode, which readers of every version of the binding understand.
///
/// # Errors
///
/// [`EventError::InvalidEvent`](crate::EventError::InvalidEvent) that names the attribute that does not conform.
pub fn to_structured(event: &CloudEvent) -> Result<BoundMessage> {
    Ok(BoundMessage::with_content_type(JSON, event.to_json()?))
}

/// Reads a message in either mode. A message with neither `ce-specversion` nor the content type of a format is read as
/// structured: NATS had no headers at first.
///
/// # Errors
///
/// Same as [`http::from_message`](super::http::from_message).
pub fn from_message<N: AsRef<str>, V: AsRef<[u8]>>(
    headers: impl IntoIterator<Item = (N, V)>,
    body: &[u8],
    accept: AcceptedFormats,
) -> Result<CloudEvent> {
    let mut sorted = sort_headers(headers, SPELLING.prefix, |value| percent_decode(value, accept))?;
    if sorted.is_structured()? || !sorted.has_version {
        return CloudEvent::from_json_accepting(body, accept);
    }
    // In NATS the type of the data is an attribute, and `content-type` names a format. A `content-type` alone comes
    // from a writer that follows the other bindings.
    if sorted.attributes.has_content_type() {
        sorted.content_type = None;
    }
    sorted.into_binary(Some(body), accept)
}
