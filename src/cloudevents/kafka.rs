//! The Kafka binding of CloudEvents 1.0.2: binary and structured mode.
//!
//! The functions work on headers and bytes; the program chooses topic and key of the record. [`key`] is the key mapper
//! of the specification, which is optional.
//!
//! ```
//! use a3s_event::CloudEvent;
//! use a3s_event::cloudevents::{AcceptedFormats, kafka};
//!
//! let event = CloudEvent::new("1", "/rates", "forex.rate").with_extension("partitionkey", "usd");
//! assert_eq!(kafka::key(&event), Some("usd"));
//! let message = kafka::to_binary(&event)?;
//! assert_eq!(message.header("ce_type"), Some("forex.rate"));
//! assert_eq!(message.body, None); // without data: a tombstone where the topic is compacted
//!
//! assert_eq!(kafka::from_record(message.headers, message.body.as_deref(), AcceptedFormats::Conformant)?, event);
//! # Ok::<(), a3s_event::EventError>(())
//! ```

use std::borrow::Cow;

use serde_json::Value;

use super::binding::{self, BoundMessage, JSON, Spelling, percent_decode, sort_headers};
use super::{AcceptedFormats, CloudEvent};
use crate::error::Result;

const SPELLING: Spelling = Spelling { prefix: "ce_", content_type: "content-type", encode: as_is };

fn as_is(value: &str) -> Cow<'_, str> {
    Cow::Borrowed(value)
}

/// Returns the attribute `partitionkey`, to use as the key of the record. It stays an attribute, too.
pub fn key(event: &CloudEvent) -> Option<&str> {
    event.extensions.get("partitionkey").and_then(Value::as_str)
}

/// Writes the binary mode. Header values are plain UTF-8.
///
/// # Errors
///
/// [`EventError::InvalidEvent`](crate::EventError::InvalidEvent) that names the attribute that does not conform.
pub fn to_binary(event: &CloudEvent) -> Result<BoundMessage> {
    binding::to_binary(event, &SPELLING)
}

/// Writes the structured mode.
///
/// # Errors
///
/// [`EventError::InvalidEvent`](crate::EventError::InvalidEvent) that names the attribute that does not conform.
pub fn to_structured(event: &CloudEvent) -> Result<BoundMessage> {
    Ok(BoundMessage::with_content_type(JSON, event.to_json()?))
}

/// Reads a record in either mode.
///
/// # Errors
///
/// Same as [`http::from_message`](super::http::from_message).
pub fn from_record<N: AsRef<str>, V: AsRef<[u8]>>(
    headers: impl IntoIterator<Item = (N, V)>,
    value: Option<&[u8]>,
    accept: AcceptedFormats,
) -> Result<CloudEvent> {
    let headers: Vec<(N, V)> = headers.into_iter().collect();
    let read = |decode: fn(&str) -> Option<String>| {
        let headers = headers.iter().map(|(name, value)| (name, value));
        let sorted = sort_headers(headers, SPELLING.prefix, decode)?;
        if sorted.is_structured()? {
            return CloudEvent::from_json_accepting(value.unwrap_or_default(), accept);
        }
        sorted.into_binary(value, accept)
    };
    let read_as_is = || read(|value| Some(value.to_owned()));
    match accept {
        AcceptedFormats::Conformant => read_as_is(),
        // Some writers percent-encode here as in HTTP. A value that is legal only undecoded was not encoded, such as a
        // URI with an escape.
        AcceptedFormats::KnownDivergences => {
            let decoded = read(|value| percent_decode(value, AcceptedFormats::KnownDivergences));
            decoded.or_else(|error| read_as_is().map_err(|_| error))
        }
    }
}
