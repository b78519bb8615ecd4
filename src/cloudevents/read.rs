//! Conversion of what was read to an event in memory, with the same checks for every format and binding.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::attributes::{
    NAME_RULE, STRING_RULE, invalid, is_extension_name, is_media_type, is_string, is_uri, is_uri_reference,
};
use super::wire::{
    CATEGORY, EXCLUSIVE_RULE, MEDIA_TYPE_RULE, META, META_IN_MEMORY, ORIGINAL, SCHEMA_RULE, SUMMARY,
    TIME_RULE, TIMESTAMP, TYPE, TYPES, URI_RULE, VERSION, check_data, escaped, text_of, timestamp_of,
    version_of,
};
use super::{AcceptedFormats, CloudEvent, DATA_BASE64, SPEC_VERSION, not_base64, types};
use crate::error::{EventError, Result};
use crate::{json, timestamp};

/// Member under which version 0.2 wrote the extensions, with the keys that they have in memory.
const NESTED: &str = "extensions";

/// Unchecked members of an event. A value is `None` if the member is missing.
#[derive(Debug, Default)]
pub(super) struct Raw {
    specversion: Option<Value>,
    id: Option<Value>,
    source: Option<Value>,
    event_type: Option<Value>,
    datacontenttype: Option<Value>,
    dataschema: Option<Value>,
    subject: Option<Value>,
    time: Option<Value>,
    data: Option<Value>,
    data_base64: Option<Value>,
    extensions: Vec<(String, Value)>,
    duplicate: Option<&'static str>,
}

impl Raw {
    /// Adds one member. [`Raw::into_event`] reports a duplicate.
    pub(super) fn put(&mut self, name: &str, value: Value) {
        let (place, name) = match name {
            "specversion" => (&mut self.specversion, "specversion"),
            "id" => (&mut self.id, "id"),
            "source" => (&mut self.source, "source"),
            "type" => (&mut self.event_type, "type"),
            "datacontenttype" => (&mut self.datacontenttype, "datacontenttype"),
            "dataschema" => (&mut self.dataschema, "dataschema"),
            "subject" => (&mut self.subject, "subject"),
            "time" => (&mut self.time, "time"),
            "data" => (&mut self.data, "data"),
            DATA_BASE64 => (&mut self.data_base64, "data"),
            _ => return self.extensions.push((name.to_owned(), value)),
        };
        if place.replace(value).is_some() {
            self.duplicate = Some(name);
        }
    }

    fn is_of_version_0_2(&self) -> bool {
        self.extensions.iter().any(|(name, value)| name == NESTED && value.get(CATEGORY).is_some())
    }

    /// Checks the members and makes an event of them.
    ///
    /// # Errors
    ///
    /// `InvalidEvent` that names the attribute that does not conform.
    pub(super) fn into_event(self, accept: AcceptedFormats) -> Result<CloudEvent> {
        if let Some(name) = self.duplicate {
            return Err(invalid(name, "…", "is given twice"));
        }
        let is_lenient = accept == AcceptedFormats::KnownDivergences;
        // Version 0.2 wrote the free text of an event unchanged.
        let is_free_text = self.is_of_version_0_2();
        let specversion =
            required("specversion", self.specversion, |version| version == SPEC_VERSION, "must be 1.0")?;
        let blank_is_unset = |value: Option<Value>| {
            value
                .filter(|value| !(value.is_null() || is_lenient && value.as_str().is_some_and(str::is_empty)))
        };
        let free_text = |field, value, is_legal: fn(&str) -> bool, rule| match value {
            Some(Value::String(text)) if is_free_text => Ok(text),
            value => required(field, value, is_legal, rule),
        };
        let subject = blank_is_unset(self.subject);
        let mut event = CloudEvent {
            specversion,
            id: free_text("id", self.id, is_string, STRING_RULE)?,
            source: free_text("source", self.source, is_uri_reference, URI_RULE)?,
            event_type: free_text("type", self.event_type, is_string, STRING_RULE)?,
            datacontenttype: optional(
                "datacontenttype",
                blank_is_unset(self.datacontenttype),
                is_media_type,
                MEDIA_TYPE_RULE,
            )?,
            dataschema: optional("dataschema", blank_is_unset(self.dataschema), is_uri, SCHEMA_RULE)?,
            subject: subject
                .map(|subject| free_text("subject", Some(subject), is_string, STRING_RULE))
                .transpose()?,
            time: optional("time", self.time, |time| timestamp::parse(time).is_some(), TIME_RULE)?,
            data: self.data,
            extensions: std::collections::HashMap::with_capacity(self.extensions.len()),
        };
        let mut late = Late::default();
        for (name, value) in self.extensions {
            match value {
                Value::Object(nested) if name == NESTED => insert_nested(&mut event, nested)?,
                value => {
                    let name = if is_lenient { name.to_ascii_lowercase() } else { name };
                    insert(&mut event, &mut late, name, value, is_lenient)?;
                }
            }
        }
        place_data(&mut event, self.data_base64.filter(|value| !value.is_null()))?;
        if let Some(original) = late.original {
            restore(&mut event, &original)?;
        }
        if let Some(list) = late.types {
            apply_types(&mut event, &list)?;
        }
        Ok(event)
    }
}

/// Attributes that change other attributes. They are applied last.
#[derive(Default)]
struct Late {
    original: Option<String>,
    types: Option<String>,
}

/// Turns an attribute of the wire into a key in memory.
fn insert(
    event: &mut CloudEvent,
    late: &mut Late,
    name: String,
    value: Value,
    is_lenient: bool,
) -> Result<()> {
    let (key, value) = match (name.as_str(), value) {
        (_, Value::Null) => return Ok(()),
        (ORIGINAL | TYPES, value) => {
            let text = text_of(&name, &value)?.to_owned();
            let place = if name == TYPES { &mut late.types } else { &mut late.original };
            if place.replace(text).is_some() {
                return Err(twice(&name));
            }
            return Ok(());
        }
        (VERSION, value) => (name, Value::from(version_of(&value)?)),
        (TIMESTAMP, value) => (name, Value::from(timestamp_of(&value)?)),
        (CATEGORY | SUMMARY | TYPE, value) => {
            check_string(&name, text_of(&name, &value)?)?;
            (name, value)
        }
        (_, value) => match name.strip_prefix(META) {
            Some(key) if is_extension_name(&name) && !key.is_empty() => {
                check_string(&name, text_of(&name, &value)?)?;
                ([META_IN_MEMORY, key].concat(), value)
            }
            _ => foreign(name, value, is_lenient)?,
        },
    };
    insert_once(event, key, value)
}

/// Inserts the entries that version 0.2 had in memory, unchanged. Today's writers would not write some of them.
fn insert_nested(event: &mut CloudEvent, nested: serde_json::Map<String, Value>) -> Result<()> {
    nested
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .try_for_each(|(key, value)| insert_once(event, key, value))
}

fn insert_once(event: &mut CloudEvent, key: String, value: Value) -> Result<()> {
    match event.extensions.entry(key) {
        Entry::Vacant(place) => {
            place.insert(value);
            Ok(())
        }
        Entry::Occupied(place) => Err(twice(place.key())),
    }
}

fn twice(name: &str) -> EventError {
    invalid("extension", name, "is given twice")
}

fn check_string(name: &str, text: &str) -> Result<()> {
    if is_string(text) { Ok(()) } else { Err(invalid("extension", name, STRING_RULE)) }
}

fn foreign(name: String, value: Value, is_lenient: bool) -> Result<(String, Value)> {
    if !is_extension_name(&name) {
        return Err(invalid("extension", &name, NAME_RULE));
    }
    let rule = match &value {
        Value::String(text) if !is_string(text) => STRING_RULE,
        Value::String(_) | Value::Bool(_) => return Ok((name, value)),
        Value::Number(number) if number.as_i64().is_some_and(|integer| i32::try_from(integer).is_ok()) => {
            return Ok((name, value));
        }
        // Several SDKs have integers of 64 bits: a string keeps all digits.
        Value::Number(number) if is_lenient && !number.is_f64() => {
            let digits = number.to_string();
            return Ok((name, Value::String(digits)));
        }
        Value::Number(_) => "a number must be an integer of 32 bits",
        Value::Null | Value::Array(_) | Value::Object(_) => "must be a string, a boolean or an integer",
    };
    Err(invalid("extension", &name, rule))
}

fn place_data(event: &mut CloudEvent, base64: Option<Value>) -> Result<()> {
    if let Some(base64) = base64 {
        if event.data.take().is_some_and(|data| !data.is_null()) {
            return Err(invalid("data", "…", EXCLUSIVE_RULE));
        }
        if !base64.as_str().is_some_and(is_base64) {
            return Err(not_base64(&base64));
        }
        event.extensions.insert(DATA_BASE64.to_owned(), base64);
    } else if let Some(data) = &event.data {
        check_data(event.datacontenttype.as_deref(), data)?;
    }
    Ok(())
}

pub(super) fn is_base64(text: &str) -> bool {
    STANDARD.decode(text).is_ok()
}

/// Restores the values that had no legal form.
fn restore(event: &mut CloudEvent, original: &str) -> Result<()> {
    let bad = |rule: &str| invalid(ORIGINAL, original, rule);
    let originals: BTreeMap<String, String> = json::from_slice(original.as_bytes())
        .and_then(serde_json::from_value)
        .map_err(|_| bad("must be a JSON object of strings"))?;
    let is_event = event.extensions.contains_key(CATEGORY) || originals.contains_key(CATEGORY);
    for (key, value) in originals {
        let place = match key.as_str() {
            "id" | "source" | "type" | "subject" if !is_event => {
                return Err(bad("has free text, which is allowed only for an event of this library"));
            }
            "id" => &mut event.id,
            "source" => &mut event.source,
            "type" => &mut event.event_type,
            "subject" => event.subject.as_mut().ok_or_else(|| bad("names a missing attribute"))?,
            CATEGORY | SUMMARY | TYPE => {
                insert_once(event, key, Value::String(value))?;
                continue;
            }
            _ if key.starts_with(META_IN_MEMORY) => {
                insert_once(event, key, Value::String(value))?;
                continue;
            }
            _ => return Err(bad("names an attribute that is not carried there")),
        };
        // The attribute was changed in transit, or the original is forged.
        if *place != escaped(&key, &value) {
            return Err(bad("contradicts the attribute of that name"));
        }
        *place = value;
    }
    Ok(())
}

/// Restores the types of values from a binding that carries only strings.
fn apply_types(event: &mut CloudEvent, list: &str) -> Result<()> {
    let bad = |rule: &str| invalid(TYPES, list, rule);
    for (name, kind) in types::parse(list).ok_or_else(|| bad("must be a sorted list of name:type"))? {
        match (name, kind) {
            ("datacontenttype", "absent") => event.datacontenttype = None,
            // Only the reader of a message's body can apply it.
            ("data", _) => {}
            _ => {
                let value = event.extensions.get_mut(name).ok_or_else(|| bad("names a missing attribute"))?;
                // A format with types may already have restored it.
                if let Value::String(text) = value {
                    *value =
                        types::typed(kind, text).ok_or_else(|| bad("contradicts the attribute's value"))?;
                }
            }
        }
    }
    Ok(())
}

fn required(
    field: &'static str,
    value: Option<Value>,
    is_legal: impl Fn(&str) -> bool,
    rule: &str,
) -> Result<String> {
    match value {
        None | Some(Value::Null) => Err(invalid(field, "", "is missing")),
        Some(Value::String(text)) if text.is_empty() => Err(invalid(field, "", "must not be empty")),
        Some(Value::String(text)) if is_legal(&text) => Ok(text),
        Some(Value::String(text)) => Err(invalid(field, &text, rule)),
        Some(other) => Err(invalid(field, &other.to_string(), "must be a string")),
    }
}

fn optional(
    field: &'static str,
    value: Option<Value>,
    is_legal: impl Fn(&str) -> bool,
    rule: &str,
) -> Result<Option<String>> {
    match value {
        None | Some(Value::Null) => Ok(None),
        value => required(field, value, is_legal, rule).map(Some),
    }
}
