//! The envelope's forms, and what binds one to its event.
//!
//! | form | fields beside `encrypted: true` | associated data |
//! |---|---|---|
//! | unbound, as sealed by earlier versions | `keyId`, `nonce`, `ciphertext` | none |
//! | version 2 | the same, `v: 2`, `alg: "A256GCM"` | see [`associated_data`] |

use serde_json::Value;

use crate::error::EncryptionFailure;
use crate::types::Event;

/// Version of the envelopes that are bound to their event.
pub(super) const VERSION: u64 = 2;
/// Their algorithm, by its name in JSON Web Algorithms (RFC 7518).
pub(super) const ALGORITHM: &str = "A256GCM";

/// An envelope read without copying its texts.
pub(super) struct Envelope<'a> {
    pub(super) key_id: &'a str,
    pub(super) nonce: &'a str,
    pub(super) ciphertext: &'a str,
    /// Whether it is bound to an event: it has a version.
    pub(super) is_bound: bool,
}

impl<'a> Envelope<'a> {
    /// Reads an envelope. `encrypted` may be absent in an unbound one, as in earlier versions.
    pub(super) fn read(value: &'a Value) -> Result<Self, EncryptionFailure> {
        let text = |name: &'static str| {
            value.get(name).and_then(Value::as_str).ok_or(EncryptionFailure::NotAnEnvelope(name))
        };
        let (version, algorithm) = (value.get("v"), value.get("alg"));
        let is_bound = version.is_some() || algorithm.is_some();
        match value.get("encrypted") {
            Some(Value::Bool(true)) => {}
            None if !is_bound => {}
            _ => return Err(EncryptionFailure::NotAnEnvelope("encrypted")),
        }
        let envelope =
            Self { key_id: text("keyId")?, nonce: text("nonce")?, ciphertext: text("ciphertext")?, is_bound };
        if is_bound && version.and_then(Value::as_u64) != Some(VERSION) {
            return Err(EncryptionFailure::UnknownVersion);
        }
        if is_bound && algorithm.and_then(Value::as_str) != Some(ALGORITHM) {
            return Err(EncryptionFailure::UnknownAlgorithm);
        }
        Ok(envelope)
    }

    /// Whether a payload has the form of an envelope: the mark and its three texts, and either nothing else or a version.
    ///
    /// The texts themselves are not judged, so that a damaged envelope is an error and not a payload. A version of later
    /// times may bring more fields, and is an error too.
    pub(super) fn is_one(payload: &Value) -> bool {
        const UNBOUND_FIELDS: usize = 4;
        let Value::Object(fields) = payload else { return false };
        fields.get("encrypted") == Some(&Value::Bool(true))
            && ["keyId", "nonce", "ciphertext"]
                .iter()
                .all(|name| fields.get(*name).is_some_and(Value::is_string))
            && (fields.len() == UNBOUND_FIELDS || fields.get("v").is_some_and(Value::is_number))
    }
}

/// What authenticates an envelope without being in it: version, algorithm, key id, and the event's id, subject, event type
/// and version, each as text behind its length in bytes (64 bit, big-endian), so that no two events have the same data.
///
/// These are the event's own. An event that says of itself to stand for another one is not believed: whoever opens the copy
/// of an event gives the original, and knows from where he has the copy.
pub(super) fn associated_data(key_id: &str, event: &Event) -> Vec<u8> {
    let version = event.version.to_string();
    let parts = ["2", ALGORITHM, key_id, &event.id, &event.subject, &event.event_type, &version];
    let len: usize = parts.iter().map(|part| part.len() + size_of::<u64>()).sum();
    let mut data = Vec::with_capacity(len);
    for part in parts {
        data.extend_from_slice(&(part.len() as u64).to_be_bytes());
        data.extend_from_slice(part.as_bytes());
    }
    data
}
