//! Conversion of an event in memory to legal names and values, the same for every format and binding.
//!
//! An [`Event`](crate::Event) has free text where CloudEvents require a URI-reference or a string without control
//! characters. Its metadata keys need not be attribute names. A value without a legal form is carried unchanged in the
//! attribute `a3soriginal`, a JSON object from keys in memory to values.

use std::borrow::Cow;
use std::fmt::Write;

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::attributes::{
    MAX_ATTRIBUTE_NAME_LEN, NAME_RULE, STRING_RULE, invalid, is_attribute_name, is_disallowed,
    is_extension_name, is_json, is_media_type, is_string, is_uri, is_uri_reference,
};
use super::{CloudEvent, DATA_BASE64, SPEC_VERSION, not_base64};
use crate::error::Result;
use crate::timestamp;

pub(super) const CATEGORY: &str = "a3scategory";
pub(super) const VERSION: &str = "a3sversion";
pub(super) const SUMMARY: &str = "a3ssummary";
pub(crate) const TIMESTAMP: &str = "a3stimestamp";
pub(super) const TYPE: &str = "a3seventtype";
/// Prefix of a metadata entry in memory; any key may follow.
pub(super) const META_IN_MEMORY: &str = "a3smeta_";
/// Prefix of a metadata entry on the wire; a key that is itself an attribute name follows.
pub(super) const META: &str = "a3smeta";
/// Exact values that have no legal form.
pub(super) const ORIGINAL: &str = "a3soriginal";
/// Types of attributes in a binding that carries only strings.
pub(super) const TYPES: &str = "a3stypes";

/// Replaces an empty source.
const NO_SOURCE: &str = "urn:a3s:unknown";
/// Replaces an empty id.
const NO_ID: &str = "-";

/// An event with legal names and values. Extensions are sorted by name.
#[derive(Debug)]
pub(super) struct Wire<'a> {
    pub(super) id: Cow<'a, str>,
    pub(super) source: Cow<'a, str>,
    pub(super) event_type: Cow<'a, str>,
    pub(super) datacontenttype: Option<&'a str>,
    pub(super) dataschema: Option<&'a str>,
    pub(super) subject: Option<Cow<'a, str>>,
    pub(super) time: Option<&'a str>,
    pub(super) extensions: Vec<(Cow<'a, str>, Scalar<'a>)>,
    pub(super) data: Data<'a>,
}

/// The value of an attribute.
#[derive(Debug, Clone)]
pub(super) enum Scalar<'a> {
    Text(Cow<'a, str>),
    Integer(i32),
    Boolean(bool),
}

impl Serialize for Scalar<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Integer(integer) => serializer.serialize_i32(*integer),
            Self::Boolean(boolean) => serializer.serialize_bool(*boolean),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Data<'a> {
    Absent,
    Json(&'a Value),
    /// Data of a content type that is not JSON.
    Text(&'a str),
    Base64(&'a str),
}

impl<'a> Wire<'a> {
    /// Converts an event.
    ///
    /// # Errors
    ///
    /// `InvalidEvent` that names the attribute that does not conform.
    pub(super) fn of(event: &'a CloudEvent) -> Result<Self> {
        if event.specversion != SPEC_VERSION {
            return Err(invalid("specversion", &event.specversion, "must be 1.0"));
        }
        let mut free = FreeText { is_event: event.extensions.contains_key(CATEGORY), originals: Vec::new() };
        let id = free.required("id", &event.id, is_string, STRING_RULE, |id| {
            if id.is_empty() { NO_ID.to_owned() } else { escape_string(id) }
        })?;
        let source = free.required("source", &event.source, is_uri_reference, URI_RULE, escape_source)?;
        let event_type = free.required("type", &event.event_type, is_string, STRING_RULE, escape_string)?;
        let subject = match event.subject.as_deref() {
            None => None,
            Some("") if free.is_event => None,
            Some(subject) => {
                Some(free.required("subject", subject, is_string, STRING_RULE, escape_string)?)
            }
        };
        let extensions = free.extensions(event)?;
        Ok(Self {
            id,
            source,
            event_type,
            datacontenttype: optional(
                "datacontenttype",
                &event.datacontenttype,
                is_media_type,
                MEDIA_TYPE_RULE,
            )?,
            dataschema: optional("dataschema", &event.dataschema, is_uri, SCHEMA_RULE)?,
            subject,
            time: optional("time", &event.time, |time| timestamp::parse(time).is_some(), TIME_RULE)?,
            extensions,
            data: data_of(event)?,
        })
    }
}

pub(super) const URI_RULE: &str = "must be a URI-reference of RFC 3986";
pub(super) const MEDIA_TYPE_RULE: &str = "must be a media type of RFC 2046";
pub(super) const SCHEMA_RULE: &str = "must be a URI of RFC 3986";
pub(super) const EXCLUSIVE_RULE: &str = "data and data_base64 exclude each other";
pub(super) const TIME_RULE: &str = "must be a time of RFC 3339";

/// Escapes text that has no legal form, and collects the originals.
struct FreeText<'a> {
    /// Only the free text of an `Event` is carried; in any other CloudEvent it is an error.
    is_event: bool,
    originals: Vec<(&'a str, &'a str)>,
}

impl<'a> FreeText<'a> {
    fn required(
        &mut self,
        field: &'static str,
        value: &'a str,
        is_legal: fn(&str) -> bool,
        rule: &str,
        escape: fn(&str) -> String,
    ) -> Result<Cow<'a, str>> {
        if !value.is_empty() && is_legal(value) {
            return Ok(Cow::Borrowed(value));
        }
        let escaped = if self.is_event { escape(value) } else { String::new() };
        if escaped.is_empty() {
            return Err(invalid(field, value, if value.is_empty() { "must not be empty" } else { rule }));
        }
        self.originals.push((field, value));
        Ok(Cow::Owned(escaped))
    }

    fn extensions(mut self, event: &'a CloudEvent) -> Result<Vec<(Cow<'a, str>, Scalar<'a>)>> {
        let mut extensions = Vec::with_capacity(event.extensions.len() + 1);
        for (key, value) in &event.extensions {
            if let Some((name, scalar)) = self.extension(key, value)? {
                extensions.push((name, scalar));
            }
        }
        if let Some(original) = originals_as_json(self.originals) {
            extensions.push((Cow::Borrowed(ORIGINAL), Scalar::Text(Cow::Owned(original))));
        }
        extensions.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(extensions)
    }

    /// Returns `None` if the entry has no attribute for itself.
    fn extension(&mut self, key: &'a str, value: &'a Value) -> Result<Option<(Cow<'a, str>, Scalar<'a>)>> {
        let scalar = match key {
            _ if value.is_null() || key == DATA_BASE64 => return Ok(None),
            TIMESTAMP => Scalar::Text(Cow::Owned(timestamp_of(value)?.to_string())),
            VERSION => {
                let version = version_of(value)?;
                // An Integer of the type system cannot hold larger versions, so they are written as a string.
                i32::try_from(version)
                    .map_or_else(|_| Scalar::Text(Cow::Owned(version.to_string())), Scalar::Integer)
            }
            CATEGORY | SUMMARY | TYPE => {
                let text = text_of(key, value)?;
                if !is_string(text) {
                    self.originals.push((key, text));
                    return Ok(None);
                }
                Scalar::Text(Cow::Borrowed(text))
            }
            _ => {
                if let Some(metadata_key) = key.strip_prefix(META_IN_MEMORY) {
                    return self.metadata(key, metadata_key, value);
                }
                match foreign(key, value)? {
                    Some(scalar) => scalar,
                    None => return Ok(None),
                }
            }
        };
        Ok(Some((Cow::Borrowed(key), scalar)))
    }

    fn metadata(
        &mut self,
        key: &'a str,
        metadata_key: &str,
        value: &'a Value,
    ) -> Result<Option<(Cow<'a, str>, Scalar<'a>)>> {
        let text = text_of(key, value)?;
        let has_name =
            is_attribute_name(metadata_key) && metadata_key.len() <= MAX_ATTRIBUTE_NAME_LEN - META.len();
        if !has_name || !is_string(text) {
            self.originals.push((key, text));
            return Ok(None);
        }
        Ok(Some((Cow::Owned([META, metadata_key].concat()), Scalar::Text(Cow::Borrowed(text)))))
    }
}

/// Checks an extension that is not this library's. `null` means unset.
pub(super) fn foreign<'a>(name: &str, value: &'a Value) -> Result<Option<Scalar<'a>>> {
    check_foreign_name(name)?;
    let rule = match value {
        Value::Null => return Ok(None),
        Value::Bool(boolean) => return Ok(Some(Scalar::Boolean(*boolean))),
        Value::String(text) if is_string(text) => return Ok(Some(Scalar::Text(Cow::Borrowed(text)))),
        Value::String(_) => STRING_RULE,
        Value::Number(number) => match number.as_i64().and_then(|integer| i32::try_from(integer).ok()) {
            Some(integer) => return Ok(Some(Scalar::Integer(integer))),
            None => "a number must be an integer of 32 bits",
        },
        Value::Array(_) | Value::Object(_) => "must be a string, a boolean or an integer",
    };
    Err(invalid("extension", name, rule))
}

fn check_foreign_name(name: &str) -> Result<()> {
    if !is_extension_name(name) {
        Err(invalid("extension", name, NAME_RULE))
    } else if is_reserved(name) {
        Err(invalid("extension", name, "is reserved for the wire format"))
    } else {
        Ok(())
    }
}

/// Returns true for names that appear only on the wire, never in memory.
pub(super) fn is_reserved(name: &str) -> bool {
    matches!(name, ORIGINAL | TYPES) || name.strip_prefix(META).is_some_and(|key| !key.is_empty())
}

fn data_of(event: &CloudEvent) -> Result<Data<'_>> {
    let base64 = match event.extensions.get(DATA_BASE64) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if event.binary_data().is_ok() => Some(text),
        Some(other) => return Err(not_base64(other)),
    };
    match (&event.data, base64) {
        (Some(_), Some(_)) => Err(invalid("data", "…", EXCLUSIVE_RULE)),
        (None, None) => Ok(Data::Absent),
        (None, Some(text)) => Ok(Data::Base64(text)),
        (Some(data), None) => {
            check_data(event.datacontenttype.as_deref(), data)?;
            match data {
                Value::String(text) if !is_json(event.datacontenttype.as_deref()) => Ok(Data::Text(text)),
                data => Ok(Data::Json(data)),
            }
        }
    }
}

/// Checks that data of a content type other than JSON is a string.
pub(super) fn check_data(content_type: Option<&str>, data: &Value) -> Result<()> {
    if data.is_string() || is_json(content_type) {
        return Ok(());
    }
    let rule = "data of a content type that is not JSON must be a string or binary";
    Err(invalid("data", content_type.unwrap_or_default(), rule))
}

fn optional<'a>(
    field: &'static str,
    value: &'a Option<String>,
    is_legal: impl Fn(&str) -> bool,
    rule: &str,
) -> Result<Option<&'a str>> {
    match value.as_deref() {
        Some(text) if !is_legal(text) => Err(invalid(field, text, rule)),
        value => Ok(value),
    }
}

/// Returns the text of one of this library's attributes.
pub(super) fn text_of<'a>(key: &str, value: &'a Value) -> Result<&'a str> {
    value.as_str().ok_or_else(|| invalid("extension", key, "must be a string"))
}

/// Returns the version from a number or from its digits.
pub(super) fn version_of(value: &Value) -> Result<u32> {
    let version = integer_of(value).and_then(|version| u32::try_from(version).ok());
    version
        .ok_or_else(|| invalid("a3sversion", &value.to_string(), "must be an integer from 0 to 4294967295"))
}

/// Returns the timestamp in Unix milliseconds from a number or from its digits.
pub(super) fn timestamp_of(value: &Value) -> Result<u64> {
    let rule = "must be Unix milliseconds, an integer from 0 to 18446744073709551615";
    integer_of(value).ok_or_else(|| invalid("a3stimestamp", &value.to_string(), rule))
}

fn integer_of(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
        _ => None,
    }
}

/// Escapes free text to a URI-reference: bytes other than unreserved characters and slashes become `%XY`.
pub(super) fn escape_source(source: &str) -> String {
    if source.is_empty() {
        return NO_SOURCE.to_owned();
    }
    let mut out = String::with_capacity(source.len() * 2);
    for byte in source.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            push_escaped(&mut out, byte);
        }
    }
    out
}

/// Escapes free text to a String of the type system that people can read. The exact text is carried separately.
pub(super) fn escape_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if c == '%' || is_disallowed(c) {
            c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| push_escaped(&mut out, byte));
        } else {
            out.push(c);
        }
    }
    out
}

/// Returns the escaped form that the writer gives to the text of one of the four attributes.
pub(super) fn escaped(field: &str, text: &str) -> String {
    match field {
        "source" => escape_source(text),
        "id" if text.is_empty() => NO_ID.to_owned(),
        _ => escape_string(text),
    }
}

pub(super) fn push_escaped(out: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    for digit in [byte >> 4, byte & 15] {
        out.extend(DIGITS.get(usize::from(digit)).copied().map(char::from));
    }
}

/// Returns the collected originals as a JSON object without disallowed characters, or `None` if there are none.
fn originals_as_json(mut originals: Vec<(&str, &str)>) -> Option<String> {
    if originals.is_empty() {
        return None;
    }
    originals.sort_unstable();
    let entries: Vec<String> = originals
        .into_iter()
        .map(|(key, value)| format!("{}:{}", Value::from(key), Value::from(value)))
        .collect();
    let mut out = String::new();
    for c in format!("{{{}}}", entries.join(",")).chars() {
        if is_disallowed(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    Some(out)
}
