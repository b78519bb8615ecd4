//! The forms of the envelope, and the data that binds it to its event.
//!
//! | form | fields beside `encrypted: true` | associated data |
//! |---|---|---|
//! | unbound, as written by earlier versions | `keyId`, `nonce`, `ciphertext` | none |
//! | version 2 | the same, `v: 2`, `alg: "A256GCM"` | see [`associated_data`] |

use serde_json::Value;

use crate::error::EncryptionFailure;
use crate::types::Event;

/// Version of the envelopes that are bound to their event.
pub(super) const VERSION: u64 = 2;
/// Name of their algorithm in JSON Web Algorithms (RFC 7518).
pub(super) const ALGORITHM: &str = "A256GCM";

/// An envelope, read without copying its texts.
pub(super) struct Envelope<'a> {
    pub(super) key_id: &'a str,
    pub(super) nonce: &'a str,
    pub(super) ciphertext: &'a str,
    /// If true, the envelope is bound to an event: it has a version.
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
}

/// Returns the associated data of an envelope, which authenticates it without being part of it.
///
/// The parts are version, algorithm, key id, and the event's id, subject, event type and version. Each is a text behind
/// its length in bytes (64 bit, big-endian), so that no two events have the same data.
///
/// The fields are always those of the event itself, even if its metadata names an original. To decrypt a trusted copy
/// of an event, the caller passes the original.
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
