//! Conversion between an event and a CloudEvent, without loss in either direction.
//!
//! Attributes that an event has no field for are stored in its metadata, under their names in HTTP: `ce-tenant` is the
//! extension `tenant`. A metadata entry becomes an attribute only if that attribute converts back to the same entry.
//! Every other entry stays the user's metadata.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde_json::Value;

use super::attributes::{invalid, is_extension_name, is_media_type, is_string, is_uri};
use super::read::is_base64;
use super::types::{self, Types};
use super::wire::{
    CATEGORY, EXCLUSIVE_RULE, MEDIA_TYPE_RULE, META_IN_MEMORY, SCHEMA_RULE, SUMMARY, Scalar, TIME_RULE,
    TIMESTAMP, TYPE, VERSION, check_data, foreign, is_reserved, text_of, timestamp_of, version_of,
};
use super::{CloudEvent, DATA_BASE64, DEFAULT_DATA_CONTENT_TYPE, SPEC_VERSION, UNTYPED, not_base64};
use crate::error::{EventError, Result};
use crate::timestamp;
use crate::types::Event;

/// Prefix of the metadata entries that hold attributes.
const CE: &str = "ce-";
/// Extensions that keep their own name in metadata: distributed tracing and partitioning.
const SHARED_NAMES: [&str; 3] = ["traceparent", "tracestate", "partitionkey"];

const CE_TIME: &str = "ce-time";
const CE_SCHEMA: &str = "ce-dataschema";
const CE_CONTENT_TYPE: &str = "ce-datacontenttype";
// No attribute maps to a name with a second hyphen.
const CE_ENCODING: &str = "ce-data-encoding";
const CE_TYPES: &str = "ce-extension-types";
const CE_ABSENT: &str = "ce-absent-attributes";

const BASE64: &str = "base64";

impl From<Event> for CloudEvent {
    fn from(event: Event) -> Self {
        let Event {
            id,
            subject,
            category,
            event_type,
            version,
            payload,
            summary,
            source,
            timestamp,
            mut metadata,
        } = event;
        let mut event = Self::new(id, source, if event_type.is_empty() { UNTYPED } else { &event_type });
        event.extensions.reserve(metadata.len() + 5);
        event.subject = (!subject.is_empty()).then_some(subject);
        event.datacontenttype = Some(DEFAULT_DATA_CONTENT_TYPE.to_owned());
        event.time = timestamp::format_rfc3339(timestamp);
        event.data = Some(payload);
        for (key, value) in [
            (CATEGORY, Value::String(category)),
            (VERSION, Value::from(version)),
            (SUMMARY, Value::String(summary)),
            (TIMESTAMP, Value::from(timestamp)),
        ] {
            event.extensions.insert(key.to_owned(), value);
        }
        if !event_type.is_empty() {
            event.extensions.insert(TYPE.to_owned(), Value::String(event_type));
        }
        if metadata.keys().any(|key| key.starts_with(CE)) {
            take_attributes(&mut event, &mut metadata, timestamp);
        }
        for (key, value) in metadata {
            match extension_of(&key) {
                Some(name) if is_string(&value) => {
                    event.extensions.insert(name.to_owned(), Value::String(value))
                }
                _ => event.extensions.insert([META_IN_MEMORY, &key].concat(), Value::String(value)),
            };
        }
        event
    }
}

/// Returns the extension that the name of a metadata entry stands for.
fn extension_of(key: &str) -> Option<&str> {
    if SHARED_NAMES.contains(&key) {
        return Some(key);
    }
    key.strip_prefix(CE).filter(|name| {
        is_extension_name(name)
            && !is_reserved(name)
            && !matches!(*name, CATEGORY | VERSION | SUMMARY | TIMESTAMP | TYPE)
            && !SHARED_NAMES.contains(name)
    })
}

/// Returns the metadata key of an extension.
fn metadata_key_of(name: &str) -> String {
    if SHARED_NAMES.contains(&name) { name.to_owned() } else { [CE, name].concat() }
}

/// Moves the entries that `TryFrom` wrote back to their attributes. Other entries stay in the metadata.
fn take_attributes(event: &mut CloudEvent, metadata: &mut HashMap<String, String>, timestamp: u64) {
    take_absence(event, metadata, timestamp);
    if metadata.get(CE_ENCODING).is_some_and(|encoding| encoding == BASE64)
        && let Some(text) = event.data.take_if(|data| data.as_str().is_some_and(is_base64))
    {
        metadata.remove(CE_ENCODING);
        event.extensions.insert(DATA_BASE64.to_owned(), text);
    }
    if let Some(text) = metadata.get(CE_TIME)
        && event.time.as_ref() != Some(text)
        && timestamp::parse(text).is_some_and(|at| at.millis == timestamp)
    {
        event.time = metadata.remove(CE_TIME);
        event.extensions.remove(TIMESTAMP);
    }
    if metadata.get(CE_SCHEMA).is_some_and(|uri| is_uri(uri)) {
        event.dataschema = metadata.remove(CE_SCHEMA);
    }
    if let Some(content_type) = metadata.get(CE_CONTENT_TYPE)
        && content_type != DEFAULT_DATA_CONTENT_TYPE
        && is_media_type(content_type)
        && event.data.as_ref().is_none_or(|data| check_data(Some(content_type), data).is_ok())
    {
        event.datacontenttype = metadata.remove(CE_CONTENT_TYPE);
    }
    if let Some(typed) = metadata.get(CE_TYPES).and_then(|list| typed_extensions(list, metadata)) {
        metadata.remove(CE_TYPES);
        for (name, value) in typed {
            metadata.remove(&metadata_key_of(&name));
            event.extensions.insert(name, value);
        }
    }
}

fn take_absence(event: &mut CloudEvent, metadata: &mut HashMap<String, String>, timestamp: u64) {
    let Some(list) = metadata.get(CE_ABSENT) else { return };
    let can_be_absent = |name: &str| match name {
        "data" => event.data == Some(Value::Null),
        "datacontenttype" => !metadata.contains_key(CE_CONTENT_TYPE),
        "time" => !metadata.contains_key(CE_TIME) && timestamp <= timestamp::MAX_MILLIS,
        _ => false,
    };
    let names: Vec<&str> = list.split(',').collect();
    if !names.is_sorted_by(|a, b| a < b) || !names.into_iter().all(can_be_absent) {
        return;
    }
    for name in metadata.remove(CE_ABSENT).unwrap_or_default().split(',') {
        match name {
            "data" => event.data = None,
            "datacontenttype" => event.datacontenttype = None,
            _ => event.time = None,
        }
    }
}

/// Returns the extensions with the types of the list, or `None` if their values would give another list.
fn typed_extensions(list: &str, metadata: &HashMap<String, String>) -> Option<Vec<(String, Value)>> {
    let typed = |(name, kind): (&str, &str)| {
        let (key, text) = metadata.get_key_value(&metadata_key_of(name))?;
        (extension_of(key) == Some(name)).then_some(())?;
        Some((name.to_owned(), types::typed(kind, text)?))
    };
    types::parse(list)?.into_iter().map(typed).collect()
}

/// # Errors
///
/// [`EventError::InvalidEvent`] for values that an event cannot hold:
///
/// - another `specversion`;
/// - an extension with an illegal name or value;
/// - data that does not fit its content type;
/// - an invalid `time`;
/// - one of this library's attributes, if it is malformed or contradicts another one.
///
/// Free text in `id`, `source`, `type` and `subject` is no error.
impl TryFrom<CloudEvent> for Event {
    type Error = EventError;

    fn try_from(mut cloud_event: CloudEvent) -> Result<Self> {
        if cloud_event.specversion != SPEC_VERSION {
            return Err(invalid("specversion", &cloud_event.specversion, "must be 1.0"));
        }
        let mut own = Own::default();
        let mut metadata = Metadata(HashMap::with_capacity(cloud_event.extensions.len()));
        let mut base64 = None;
        let mut types = Types::default();
        for (key, value) in std::mem::take(&mut cloud_event.extensions) {
            if value.is_null() {
                continue;
            }
            match key.as_str() {
                DATA_BASE64 => base64 = Some(value),
                CATEGORY | VERSION | SUMMARY | TIMESTAMP | TYPE => own.take(&key, value)?,
                _ => match key.strip_prefix(META_IN_MEMORY) {
                    Some(name) => metadata.insert(name.to_owned(), text_of(&key, &value)?.to_owned())?,
                    None => metadata.insert_extension(&key, value, &mut types)?,
                },
            }
        }
        let timestamp = keep_attributes(&cloud_event, own.timestamp, base64.is_some(), types, &mut metadata)?;
        let CloudEvent { id, source, event_type, subject, data, .. } = cloud_event;
        Ok(Self {
            event_type: own.type_of(event_type)?,
            payload: payload(data, base64)?,
            id,
            subject: subject.unwrap_or_default(),
            category: own.category,
            version: own.version.unwrap_or(1),
            summary: own.summary,
            source,
            timestamp,
            metadata: metadata.0,
        })
    }
}

/// Fields of an event that are extensions of a CloudEvent.
#[derive(Default)]
struct Own {
    category: String,
    version: Option<u32>,
    summary: String,
    timestamp: Option<u64>,
    event_type: Option<String>,
}

impl Own {
    fn take(&mut self, key: &str, value: Value) -> Result<()> {
        match (key, value) {
            (VERSION, value) => self.version = Some(version_of(&value)?),
            (TIMESTAMP, value) => self.timestamp = Some(timestamp_of(&value)?),
            (CATEGORY, Value::String(text)) => self.category = text,
            (SUMMARY, Value::String(text)) => self.summary = text,
            (_, Value::String(text)) => self.event_type = Some(text),
            (_, value) => return text_of(key, &value).map(drop),
        }
        Ok(())
    }

    fn type_of(&mut self, event_type: String) -> Result<String> {
        match self.event_type.take() {
            Some(own) if own != event_type => Err(invalid(TYPE, &own, "contradicts the attribute type")),
            None if event_type == UNTYPED => Ok(String::new()),
            _ => Ok(event_type),
        }
    }
}

struct Metadata(HashMap<String, String>);

impl Metadata {
    fn insert(&mut self, key: String, value: String) -> Result<()> {
        match self.0.entry(key) {
            Entry::Vacant(place) => {
                place.insert(value);
                Ok(())
            }
            Entry::Occupied(place) => {
                Err(invalid("extension", place.key(), "is given twice, as an extension and as metadata"))
            }
        }
    }

    fn insert_extension(&mut self, name: &str, value: Value, types: &mut Types) -> Result<()> {
        let text = match foreign(name, &value)? {
            None => return Ok(()),
            Some(Scalar::Text(text)) => text.into_owned(),
            Some(Scalar::Integer(integer)) => {
                types.note(name, types::INTEGER);
                integer.to_string()
            }
            Some(Scalar::Boolean(boolean)) => {
                types.note(name, types::BOOLEAN);
                boolean.to_string()
            }
        };
        self.insert(metadata_key_of(name), text)
    }
}

/// Stores attributes that an event has no field for, and returns the timestamp.
fn keep_attributes(
    event: &CloudEvent,
    own_timestamp: Option<u64>,
    is_binary: bool,
    types: Types,
    metadata: &mut Metadata,
) -> Result<u64> {
    let mut absent = Vec::new();
    if event.data.is_none() && !is_binary {
        absent.push("data");
    }
    if is_binary {
        metadata.insert(CE_ENCODING.to_owned(), BASE64.to_owned())?;
    }
    match event.datacontenttype.as_deref() {
        None => absent.push("datacontenttype"),
        Some(DEFAULT_DATA_CONTENT_TYPE) => {}
        Some(content_type) if is_media_type(content_type) => {
            metadata.insert(CE_CONTENT_TYPE.to_owned(), content_type.to_owned())?;
        }
        Some(content_type) => return Err(invalid("datacontenttype", content_type, MEDIA_TYPE_RULE)),
    }
    if let Some(data) = &event.data {
        check_data(event.datacontenttype.as_deref(), data)?;
    }
    match event.dataschema.as_deref() {
        None => {}
        Some(uri) if is_uri(uri) => metadata.insert(CE_SCHEMA.to_owned(), uri.to_owned())?,
        Some(uri) => return Err(invalid("dataschema", uri, SCHEMA_RULE)),
    }
    let mut timestamp = own_timestamp.unwrap_or(0);
    if let Some(text) = event.time.as_deref() {
        let at = timestamp::parse(text).ok_or_else(|| invalid("time", text, TIME_RULE))?;
        if own_timestamp.is_some_and(|own| own != at.millis) {
            return Err(invalid(TIMESTAMP, &timestamp.to_string(), "contradicts the attribute time"));
        }
        timestamp = at.millis;
        // Other systems may format the time of this library's event differently; the time is the same.
        let is_ours = own_timestamp.is_some() && !at.is_rounded;
        if !is_ours && timestamp::format_rfc3339(timestamp).as_deref() != Some(text) {
            metadata.insert(CE_TIME.to_owned(), text.to_owned())?;
        }
    } else if timestamp <= timestamp::MAX_MILLIS {
        absent.push("time");
    }
    if !absent.is_empty() {
        metadata.insert(CE_ABSENT.to_owned(), absent.join(","))?;
    }
    if let Some(list) = types.into_text() {
        metadata.insert(CE_TYPES.to_owned(), list)?;
    }
    Ok(timestamp)
}

fn payload(data: Option<Value>, base64: Option<Value>) -> Result<Value> {
    match (data, base64) {
        (Some(_), Some(_)) => Err(invalid("data", "…", EXCLUSIVE_RULE)),
        (None, Some(text)) if text.as_str().is_some_and(is_base64) => Ok(text),
        (None, Some(other)) => Err(not_base64(&other)),
        (data, None) => Ok(data.unwrap_or(Value::Null)),
    }
}
