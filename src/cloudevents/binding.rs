//! The parts that the bindings share: a message, and the binary mode, with attributes as headers and the data as body.

use std::borrow::Cow;

use serde_json::Value;

use super::attributes::{NAME_RULE, invalid, is_json, is_textual};
use super::read::Raw;
use super::types::{self, Types};
use super::wire::{Data, Scalar, TYPES, Wire};
use super::{AcceptedFormats, CloudEvent, DATA_BASE64, DEFAULT_DATA_CONTENT_TYPE, SPEC_VERSION};
use crate::error::Result;
use crate::headers::Unreadable;
use crate::json;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Media type of the JSON format.
pub(super) const JSON: &str = "application/cloudevents+json";
/// Media type of the JSON batch format.
pub(super) const JSON_BATCH: &str = "application/cloudevents-batch+json";
/// Beginning of both media types, and of formats that this library does not read.
pub(super) const ANY_FORMAT: &str = "application/cloudevents";

pub(super) const BINARY: &str = "binary";
pub(super) const TEXT: &str = "text";
pub(super) const ABSENT: &str = "absent";

/// Headers and body of a message, in the form that a client takes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BoundMessage {
    /// Header names and values. The names are lower-case. The values are ASCII; in Kafka they are UTF-8.
    pub headers: Vec<(String, String)>,
    /// Body. `None` if the event has no data in binary mode: an empty body, and in Kafka no value.
    pub body: Option<Vec<u8>>,
}

impl BoundMessage {
    pub(super) fn with_content_type(content_type: &str, body: Vec<u8>) -> Self {
        Self { headers: vec![("content-type".to_owned(), content_type.to_owned())], body: Some(body) }
    }

    /// Returns the value of a header. The name is compared without regard to case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// Spelling of headers in one binding.
pub(super) struct Spelling {
    /// Prefix of an attribute.
    pub(super) prefix: &'static str,
    /// Name of the header for `datacontenttype`.
    pub(super) content_type: &'static str,
    pub(super) encode: fn(&str) -> Cow<'_, str>,
}

/// Writes the binary mode.
pub(super) fn to_binary(event: &CloudEvent, spelling: &Spelling) -> Result<BoundMessage> {
    let wire = Wire::of(event)?;
    let mut types = Types::default();
    let mut content_type = wire.datacontenttype;
    let body = match wire.data {
        Data::Absent => None,
        Data::Json(value) => {
            if content_type.is_none() {
                types.note("datacontenttype", ABSENT);
                content_type = Some(DEFAULT_DATA_CONTENT_TYPE);
            }
            Some(serde_json::to_vec(value)?)
        }
        Data::Text(text) => {
            if text.is_empty() || !content_type.is_some_and(is_textual) {
                types.note("data", TEXT);
            }
            Some(text.as_bytes().to_vec())
        }
        Data::Base64(text) => {
            let bytes = STANDARD.decode(text).map_err(|_| super::not_base64(&Value::from(text)))?;
            if bytes.is_empty() || is_json(content_type) || content_type.is_some_and(is_textual) {
                types.note("data", BINARY);
            }
            Some(bytes)
        }
    };
    let mut headers = Vec::with_capacity(wire.extensions.len() + 8);
    let mut push = |name: &str, value: &str| {
        headers.push(([spelling.prefix, name].concat(), (spelling.encode)(value).into_owned()));
    };
    push("specversion", SPEC_VERSION);
    push("id", &wire.id);
    push("source", &wire.source);
    push("type", &wire.event_type);
    for (name, value) in
        [("dataschema", wire.dataschema), ("subject", wire.subject.as_deref()), ("time", wire.time)]
    {
        if let Some(value) = value {
            push(name, value);
        }
    }
    for (name, value) in &wire.extensions {
        match value {
            Scalar::Text(text) => push(name, text),
            Scalar::Integer(integer) => {
                if event.extensions.contains_key(&**name) && *name != super::wire::VERSION {
                    types.note(&**name, types::INTEGER);
                }
                push(name, &integer.to_string());
            }
            Scalar::Boolean(boolean) => {
                types.note(&**name, types::BOOLEAN);
                push(name, &boolean.to_string());
            }
        }
    }
    if let Some(types) = types.into_text() {
        push(TYPES, &types);
    }
    if let Some(content_type) = content_type {
        // An attribute is encoded; the transport's own header already has its form.
        let is_attribute = spelling.content_type.starts_with(spelling.prefix);
        let value = if is_attribute { (spelling.encode)(content_type) } else { Cow::Borrowed(content_type) };
        headers.push((spelling.content_type.to_owned(), value.into_owned()));
    }
    Ok(BoundMessage { headers, body })
}

/// Reads the binary mode from attributes that are already decoded.
pub(super) fn from_binary(
    attributes: Attributes,
    body: Option<&[u8]>,
    accept: AcceptedFormats,
) -> Result<CloudEvent> {
    let Attributes { mut raw, content_type, types } = attributes;
    let body = body.filter(|body| !body.is_empty());
    let kind = types.as_deref().and_then(types::parse).and_then(|types| {
        types.into_iter().find(|(name, _)| *name == "data").map(|(_, kind)| kind.to_owned())
    });
    match (kind.as_deref(), body) {
        (Some(BINARY), body) => raw.put(DATA_BASE64, encoded(body.unwrap_or_default())),
        (Some(TEXT), body) => raw.put("data", text(body.unwrap_or_default())?),
        (_, None) => {}
        (_, Some(body)) if is_json(content_type.as_deref()) => match json::from_slice(body) {
            Ok(value) => raw.put("data", value),
            // Without a content type, data that is not JSON may have any format. A duplicate key is JSON, but
            // ambiguous.
            Err(error) if content_type.is_none() && !error.is_data() => raw.put(DATA_BASE64, encoded(body)),
            Err(error) if !error.is_data() && accept == AcceptedFormats::KnownDivergences => {
                match std::str::from_utf8(body) {
                    Ok(text) => raw.put("data", Value::from(text)),
                    Err(_) => raw.put(DATA_BASE64, encoded(body)),
                }
            }
            Err(error) => {
                let rule = format!("is not JSON: {error}");
                return Err(invalid("data", &format!("{} bytes", body.len()), rule));
            }
        },
        (_, Some(body)) => match std::str::from_utf8(body) {
            Ok(text) if content_type.as_deref().is_some_and(is_textual) => raw.put("data", Value::from(text)),
            _ => raw.put(DATA_BASE64, encoded(body)),
        },
    }
    raw.into_event(accept)
}

fn encoded(body: &[u8]) -> Value {
    Value::String(STANDARD.encode(body))
}

fn text(body: &[u8]) -> Result<Value> {
    std::str::from_utf8(body)
        .map(Value::from)
        .map_err(|_| invalid("data", "…", "is not UTF-8, although its content type is text"))
}

/// Attributes that were read from headers.
#[derive(Default)]
pub(super) struct Attributes {
    raw: Raw,
    content_type: Option<String>,
    types: Option<String>,
}

impl Attributes {
    pub(super) fn has_content_type(&self) -> bool {
        self.content_type.is_some()
    }

    /// Adds a decoded value. The name has no prefix.
    pub(super) fn put(&mut self, name: &str, value: String) {
        match name {
            "datacontenttype" => self.content_type = Some(value.clone()),
            TYPES => self.types = Some(value.clone()),
            _ => {}
        }
        self.raw.put(name, Value::String(value));
    }
}

/// Sorts headers into a content type and attributes, and decodes the values of the attributes.
pub(super) fn sort_headers<N: AsRef<str>, V: AsRef<[u8]>>(
    headers: impl IntoIterator<Item = (N, V)>,
    prefix: &str,
    decode: impl Fn(&str) -> Option<String>,
) -> Result<Sorted> {
    let mut sorted = Sorted::default();
    for (name, value) in headers {
        let name = name.as_ref().to_ascii_lowercase();
        let attribute = name.strip_prefix(prefix);
        if attribute.is_none() && name != "content-type" {
            continue;
        }
        let text = std::str::from_utf8(value.as_ref()).ok();
        match attribute {
            None => {
                let text = text.ok_or_else(|| invalid("content-type", "…", "must be UTF-8"))?;
                if sorted.content_type.replace(text.trim().to_owned()).is_some() {
                    return Err(invalid("header", &name, Unreadable::Twice.rule()));
                }
            }
            Some("data" | DATA_BASE64) => return Err(invalid("extension", &name, NAME_RULE)),
            Some(attribute) => {
                let value = text.and_then(&decode).ok_or_else(|| {
                    let shown = String::from_utf8_lossy(value.as_ref());
                    invalid(
                        "header",
                        &format!("{name}: {shown}"),
                        "must be UTF-8 with complete percent-encoding",
                    )
                })?;
                sorted.has_version |= attribute == "specversion";
                sorted.attributes.put(attribute, value);
            }
        }
    }
    Ok(sorted)
}

#[derive(Default)]
pub(super) struct Sorted {
    pub(super) content_type: Option<String>,
    pub(super) attributes: Attributes,
    pub(super) has_version: bool,
}

impl Sorted {
    /// Reads the binary mode of HTTP and Kafka. There the content type of the message is that of the data.
    ///
    /// # Errors
    ///
    /// `InvalidEvent`, also for a `datacontenttype` beside the content type. With `KnownDivergences`, equal values are
    /// accepted, because some writers send both.
    pub(super) fn into_binary(mut self, body: Option<&[u8]>, accept: AcceptedFormats) -> Result<CloudEvent> {
        match (self.content_type, &self.attributes.content_type) {
            (Some(content_type), None) => self.attributes.put("datacontenttype", content_type),
            (Some(one), Some(other)) if accept == AcceptedFormats::Conformant || one != *other => {
                return Err(invalid(
                    "header",
                    "datacontenttype",
                    "must not be sent together with content-type",
                ));
            }
            _ => {}
        }
        from_binary(self.attributes, body, accept)
    }

    /// Returns true if the body holds the event in the JSON format.
    ///
    /// # Errors
    ///
    /// `InvalidEvent` for `content-type` if it is a batch, or a format that is not JSON.
    pub(super) fn is_structured(&self) -> Result<bool> {
        let Some(content_type) = self.content_type.as_deref() else { return Ok(false) };
        if !is_of_format(content_type) {
            return Ok(false);
        }
        if super::attributes::essence(content_type).eq_ignore_ascii_case(JSON) {
            return Ok(true);
        }
        Err(invalid("content-type", content_type, format!("must be {JSON} or the content type of the data")))
    }
}

/// Returns true if the content type names one of the formats of CloudEvents.
pub(super) fn is_of_format(content_type: &str) -> bool {
    content_type.get(..ANY_FORMAT.len()).is_some_and(|start| start.eq_ignore_ascii_case(ANY_FORMAT))
}

/// Encodes a header's value for HTTP and NATS. Space, `"`, `%` and all bytes outside printable ASCII become `%XY`.
pub(super) fn percent_encode(value: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| matches!(byte, 0x21..=0x7e) && byte != b'"' && byte != b'%';
    if value.bytes().all(is_plain) {
        return Cow::Borrowed(value);
    }
    let mut out = String::with_capacity(value.len() * 2);
    for byte in value.bytes() {
        if is_plain(byte) {
            out.push(char::from(byte));
        } else {
            super::wire::push_escaped(&mut out, byte);
        }
    }
    Cow::Owned(out)
}

/// Decodes a header's value: removes the quotes of a quoted string, then turns `%XY` into bytes. Returns `None` if an
/// escape is incomplete or the bytes are not UTF-8. With `KnownDivergences` it returns the value as it is in these
/// cases.
pub(super) fn percent_decode(value: &str, accept: AcceptedFormats) -> Option<String> {
    let value = unquote(value.trim_matches([' ', '\t']));
    if !value.contains('%') {
        return Some(value.into_owned());
    }
    decode_escapes(&value)
        .or_else(|| (accept == AcceptedFormats::KnownDivergences).then(|| value.into_owned()))
}

fn decode_escapes(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            bytes.push(u8::try_from(digit()? << 4 | digit()?).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Removes the quotes of a quoted string (section 3.2.6 of RFC 7230).
fn unquote(value: &str) -> Cow<'_, str> {
    let Some(quoted) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return Cow::Borrowed(value);
    };
    let mut out = String::with_capacity(quoted.len());
    let mut is_escaped = false;
    for c in quoted.chars() {
        if c == '\\' && !is_escaped {
            is_escaped = true;
        } else {
            out.push(c);
            is_escaped = false;
        }
    }
    Cow::Owned(out)
}
