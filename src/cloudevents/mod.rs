//! Events as [CloudEvents](https://cloudevents.io) 1.0, the format that other SDKs, brokers and functions understand.
//!
//! [`CloudEvent`] is the envelope. It converts from an [`Event`](crate::Event) and back without loss. [`http`],
//! [`nats`] and [`kafka`] convert it to headers and bytes and back; they are functions and need no client. The guide is
//! [`docs::cloudevents`](crate::docs::cloudevents).

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::error::Result;

mod attributes;
mod binding;
mod convert;
mod json;
mod read;
mod types;
mod wire;

pub mod http;
pub mod kafka;
pub mod nats;

#[cfg(feature = "webhook")]
pub(crate) use self::{
    attributes::{is_json, is_utf8},
    wire::TIMESTAMP,
};
pub use attributes::MAX_ATTRIBUTE_NAME_LEN;
pub use binding::BoundMessage;
pub use json::{MAX_BATCH_EVENTS, from_json_batch, to_json_batch};

/// Version of the specification, the value of `specversion`.
pub const SPEC_VERSION: &str = "1.0";
/// Content type of data that names no other one.
pub const DEFAULT_DATA_CONTENT_TYPE: &str = "application/json";
/// Key of [`CloudEvent::extensions`] for binary data in base64.
///
/// The JSON format uses the same member name for binary data. The underscore keeps it apart from every attribute name.
pub const DATA_BASE64: &str = "data_base64";

/// `type` of an event without one.
const UNTYPED: &str = "a3s.event";

/// A CloudEvent in memory.
///
/// `extensions` holds the extension attributes, and the fields of an [`Event`](crate::Event) that CloudEvents lack:
///
/// - `a3scategory`, `a3sversion`, `a3ssummary` and `a3stimestamp` (a number, Unix milliseconds);
/// - `a3seventtype` if the event is typed;
/// - `a3smeta_{key}` for each entry of its metadata.
///
/// On the wire these have legal names and values; the guide [`docs::cloudevents`](crate::docs::cloudevents) has the
/// mapping.
///
/// Binary data is in `extensions` under [`DATA_BASE64`], and `data` is then `None`: see
/// [`with_binary_data`](CloudEvent::with_binary_data).
///
/// `Serialize` writes the JSON format of CloudEvents 1.0 and fails if the event does not conform. `Deserialize` reads
/// it strictly, and also reads the nested form of version 0.2. [`to_json`](CloudEvent::to_json) and
/// [`from_json`](CloudEvent::from_json) do the same, with errors that name the attribute.
///
/// ```
/// use a3s_event::{CloudEvent, Event};
///
/// let event = Event::typed("events.market.forex", "market", "forex.rate", 1, "USD/CNY", "reuters", serde_json::json!({"rate": 7.35}))
///     .with_metadata("region", "eu");
/// let cloud_event = CloudEvent::from(event);
/// assert_eq!(cloud_event.event_type, "forex.rate");
/// assert_eq!(cloud_event.extensions["a3smeta_region"], "eu");
///
/// let json = cloud_event.to_json()?;
/// let back = Event::try_from(CloudEvent::from_json(&json)?)?;
/// assert_eq!(back.metadata["region"], "eu");
/// # Ok::<(), a3s_event::EventError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct CloudEvent {
    /// Version of the specification: [`SPEC_VERSION`].
    pub specversion: String,
    /// Identity of the event within its source, not empty.
    pub id: String,
    /// Origin of the event: a URI-reference on the wire, free text in memory if it comes from an
    /// [`Event`](crate::Event).
    pub source: String,
    /// Type of the event, `type` on the wire, not empty.
    pub event_type: String,
    /// Media type of the data; JSON when absent.
    pub datacontenttype: Option<String>,
    /// URI of the schema of the data.
    pub dataschema: Option<String>,
    /// Subject of the event within its source.
    pub subject: Option<String>,
    /// Time of the event, in RFC 3339.
    pub time: Option<String>,
    /// Data: a JSON value, or a string if `datacontenttype` is not JSON. `Some(Value::Null)` is the data `null`.
    pub data: Option<Value>,
    /// Extension attributes, and the reserved keys named above. Values are strings, booleans and integers of 32 bits.
    pub extensions: HashMap<String, Value>,
}

/// Formats that a reader accepts.
///
/// Every reader accepts all spellings that the specification allows. Writers have no such switch: they write conforming
/// events, or fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AcceptedFormats {
    /// Only formats that conform to the specification.
    #[default]
    Conformant,
    /// Also the known deviations of SDKs in use. The guide lists them and how they are read.
    KnownDivergences,
}

impl CloudEvent {
    /// Creates an event without data, time and extensions.
    pub fn new(id: impl Into<String>, source: impl Into<String>, event_type: impl Into<String>) -> Self {
        Self {
            specversion: SPEC_VERSION.to_owned(),
            id: id.into(),
            source: source.into(),
            event_type: event_type.into(),
            datacontenttype: None,
            dataschema: None,
            subject: None,
            time: None,
            data: None,
            extensions: HashMap::new(),
        }
    }

    /// Sets JSON data, and the content type to [`DEFAULT_DATA_CONTENT_TYPE`].
    #[must_use]
    pub fn with_data(mut self, data: Value) -> Self {
        self.datacontenttype = Some(DEFAULT_DATA_CONTENT_TYPE.to_owned());
        self.data = Some(data);
        self.extensions.remove(DATA_BASE64);
        self
    }

    /// Sets binary data and its content type.
    ///
    /// ```
    /// use a3s_event::CloudEvent;
    ///
    /// let event = CloudEvent::new("1", "/camera/3", "picture.taken").with_binary_data("image/png", b"\x89PNG");
    /// assert_eq!(event.binary_data()?.as_deref(), Some(&b"\x89PNG"[..]));
    /// # Ok::<(), a3s_event::EventError>(())
    /// ```
    #[must_use]
    pub fn with_binary_data(mut self, content_type: impl Into<String>, data: impl AsRef<[u8]>) -> Self {
        self.datacontenttype = Some(content_type.into());
        self.data = None;
        self.extensions.insert(DATA_BASE64.to_owned(), Value::String(STANDARD.encode(data)));
        self
    }

    /// Sets the subject.
    #[must_use]
    pub fn with_subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Sets the time, which must be RFC 3339.
    #[must_use]
    pub fn with_time(mut self, time: impl Into<String>) -> Self {
        self.time = Some(time.into());
        self
    }

    /// Sets one extension attribute. It replaces an earlier one with the same key.
    #[must_use]
    pub fn with_extension(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.extensions.insert(key.into(), value.into());
        self
    }

    /// Returns the binary data, or `None` if the event has JSON data, text or no data.
    ///
    /// # Errors
    ///
    /// [`EventError::InvalidEvent`](crate::EventError::InvalidEvent) for `data` if it is not base64.
    pub fn binary_data(&self) -> Result<Option<Vec<u8>>> {
        let Some(value) = self.extensions.get(DATA_BASE64) else { return Ok(None) };
        let decoded = value.as_str().and_then(|text| STANDARD.decode(text).ok());
        decoded.map(Some).ok_or_else(|| not_base64(value))
    }

    /// Checks that the event can be written: that the names and values of its attributes are legal, and that its data
    /// fits its content type. Free text in the fields of an [`Event`](crate::Event) passes, because it has a form on
    /// the wire.
    ///
    /// # Errors
    ///
    /// [`EventError::InvalidEvent`](crate::EventError::InvalidEvent) that names the attribute, its value and the rule.
    pub fn validate(&self) -> Result<()> {
        wire::Wire::of(self).map(drop)
    }
}

fn not_base64(value: &Value) -> crate::EventError {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    attributes::invalid("data", &text, "data_base64 must be a string of standard base64 with padding")
}

#[cfg(test)]
mod tests;
