//! The JSON format and the JSON batch format of CloudEvents 1.0.2.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{Error as _, SerializeMap};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::attributes::invalid;
use super::read::Raw;
use super::wire::{Data, Wire};
use super::{AcceptedFormats, CloudEvent, DATA_BASE64, SPEC_VERSION};
use crate::error::{EventError, Result};
use crate::json::StrictValue;

/// Maximum number of events in a batch that is read.
pub const MAX_BATCH_EVENTS: usize = 10_000;

impl CloudEvent {
    /// Writes the JSON format in UTF-8: defined attributes first, then the extensions sorted by name, then the data.
    ///
    /// # Errors
    ///
    /// [`EventError::InvalidEvent`] that names the attribute that does not conform.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        Ok(serde_json::to_vec(&Wire::of(self)?)?)
    }

    /// Reads the JSON format strictly, as [`AcceptedFormats::Conformant`]. A duplicate key is an error, also in the
    /// data. The nested form of version 0.2 is read, too.
    ///
    /// # Errors
    ///
    /// [`EventError::Serialization`] for input that is not JSON or has a duplicate key. [`EventError::InvalidEvent`]
    /// that names the attribute that does not conform.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        Self::from_json_accepting(json, AcceptedFormats::Conformant)
    }

    /// Reads the JSON format, and accepts the formats that `accept` allows.
    ///
    /// # Errors
    ///
    /// Same as [`from_json`](CloudEvent::from_json).
    pub fn from_json_accepting(json: &[u8], accept: AcceptedFormats) -> Result<Self> {
        serde_json::from_slice::<Raw>(json)?.into_event(accept)
    }
}

/// Writes the JSON batch format.
///
/// # Errors
///
/// [`EventError::CloudEventConversion`] with the index of the event that does not conform, and the reason.
pub fn to_json_batch(events: &[CloudEvent]) -> Result<Vec<u8>> {
    let wires =
        events.iter().enumerate().map(|(index, event)| Wire::of(event).map_err(|error| at(index, &error)));
    Ok(serde_json::to_vec(&wires.collect::<Result<Vec<_>>>()?)?)
}

/// Reads the JSON batch format, all or nothing: one invalid event fails the batch. An empty batch is valid.
///
/// # Errors
///
/// - [`EventError::Serialization`] for input that is not a JSON array.
/// - [`EventError::InvalidEvent`] for `batch` if there are more than [`MAX_BATCH_EVENTS`].
/// - [`EventError::CloudEventConversion`] with the index of the first invalid event, and the reason.
pub fn from_json_batch(json: &[u8], accept: AcceptedFormats) -> Result<Vec<CloudEvent>> {
    let Batch { entries, count } = serde_json::from_slice(json)?;
    if count > MAX_BATCH_EVENTS {
        let rule = format!("at most {MAX_BATCH_EVENTS} are allowed");
        return Err(invalid("batch", &format!("{count} events"), rule));
    }
    let read = |(index, entry): (usize, Raw)| entry.into_event(accept).map_err(|error| at(index, &error));
    entries.into_iter().enumerate().map(read).collect()
}

/// The first events of a batch, and the number of all its events.
struct Batch {
    entries: Vec<Raw>,
    count: usize,
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Batch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a batch of CloudEvents as a JSON array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Batch, A::Error> {
                let mut entries = Vec::new();
                while entries.len() < MAX_BATCH_EVENTS {
                    let index = entries.len();
                    let entry = seq.next_element();
                    match entry
                        .map_err(|error| de::Error::custom(format!("event {index} of the batch: {error}")))?
                    {
                        Some(entry) => entries.push(entry),
                        None => break,
                    }
                }
                let mut count = entries.len();
                // Events over the limit are counted, not kept.
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Batch { entries, count })
            }
        }

        deserializer.deserialize_seq(Entries)
    }
}

fn at(index: usize, error: &EventError) -> EventError {
    EventError::CloudEventConversion(format!("event {index} of the batch: {error}"))
}

impl Serialize for CloudEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        Wire::of(self).map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for CloudEvent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Raw::deserialize(deserializer)?.into_event(AcceptedFormats::Conformant).map_err(de::Error::custom)
    }
}

impl Serialize for Wire<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("specversion", SPEC_VERSION)?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("source", &self.source)?;
        map.serialize_entry("type", &self.event_type)?;
        let optional = [
            ("datacontenttype", self.datacontenttype),
            ("dataschema", self.dataschema),
            ("subject", self.subject.as_deref()),
            ("time", self.time),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                map.serialize_entry(name, value)?;
            }
        }
        for (name, value) in &self.extensions {
            map.serialize_entry(name, value)?;
        }
        match self.data {
            Data::Absent => {}
            Data::Json(value) => map.serialize_entry("data", value)?,
            Data::Text(text) => map.serialize_entry("data", text)?,
            Data::Base64(text) => map.serialize_entry(DATA_BASE64, text)?,
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a CloudEvent as a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Raw, A::Error> {
                let mut raw = Raw::default();
                while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                    let value: StrictValue = map.next_value()?;
                    raw.put(&name, value.into_value());
                }
                Ok(raw)
            }
        }

        deserializer.deserialize_map(Members)
    }
}
