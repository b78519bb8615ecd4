//! AES-256-GCM.

use std::fmt;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, Generate, Nonce};
use base64::Engine;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::EventEncryptor;
use super::base64::STANDARD;
use super::envelope::{ALGORITHM, Envelope, VERSION, associated_data};
use super::ring::{Key, KeyRing, KeyState};
use crate::error::{EncryptionFailure, EventError, Result};
use crate::text::shorten;
use crate::types::Event;

/// Encrypts payloads with AES-256-GCM under a random nonce each.
///
/// The payload of an event is bound to the event: its envelope opens only where the id, the subject, the event type and
/// the version are those with which it was sealed. Envelopes of earlier versions are not bound; they open too, unless
/// [`require_bound`](Aes256GcmEncryptor::require_bound) says otherwise.
///
/// One key is primary and seals; every other key that was added opens, until it is disabled. To rotate, add the new key on
/// every reader first, then [`promote`](Aes256GcmEncryptor::promote) it on the writers, and keep the old one as long as
/// something is stored that it sealed. [The guide](crate::docs::encryption) goes through it step by step.
///
/// With random nonces a key must seal fewer than 2^32 payloads in its life. They are counted per key and process: at 2^31
/// there is a warning in the log, and the 2^32nd is refused. Rotate before, or keep the count across restarts with
/// [`sealed_count`](Aes256GcmEncryptor::sealed_count) and
/// [`restore_sealed_count`](Aes256GcmEncryptor::restore_sealed_count). Keys are wiped from memory on drop and never printed.
///
/// ```
/// use a3s_event::{Aes256GcmEncryptor, Event, EventEncryptor};
/// use serde_json::json;
///
/// # fn main() -> a3s_event::Result<()> {
/// let encryptor = Aes256GcmEncryptor::new("2025", &[7; 32]);
/// let mut event = Event::new("events.pay.card", "pay", "", "shop", json!({"card": "4111"}));
/// event.payload = encryptor.encrypt_event(&event)?;
///
/// encryptor.add_key("2026", &[8; 32])?;
/// encryptor.promote("2026")?;
/// assert_eq!(encryptor.active_key_id(), "2026");
/// assert_eq!(encryptor.decrypt_event(&event)?, json!({"card": "4111"}));
///
/// event.subject = "events.pay.refund".to_owned();
/// assert!(encryptor.decrypt_event(&event).is_err(), "the envelope was moved");
/// # Ok(())
/// # }
/// ```
pub struct Aes256GcmEncryptor {
    keys: KeyRing,
    binding: Binding,
}

/// Whether envelopes belong to an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Binding {
    /// New ones do; unbound ones are opened too.
    Preferred,
    /// All do.
    Required,
    /// New ones do not, for readers of earlier versions.
    None,
}

impl Aes256GcmEncryptor {
    /// An encryptor with one key, which is primary. [`EncryptionKey`](super::EncryptionKey) reads one from a file or from
    /// the environment.
    pub fn new(key_id: impl Into<String>, key: &[u8; 32]) -> Self {
        Self { keys: KeyRing::new(key_id.into(), key), binding: Binding::Preferred }
    }

    /// Refuses envelopes that are not bound to their event, which is right as soon as nothing is stored any more that an
    /// earlier version sealed: an unbound envelope can be moved from one event to another. Payloads without an event are
    /// then neither sealed nor opened.
    #[must_use]
    pub fn require_bound(mut self) -> Self {
        self.binding = Binding::Required;
        self
    }

    /// Seals without binding, in the form that earlier versions read, for the time in which such readers are still there.
    /// Bound envelopes are opened all the same.
    #[must_use]
    pub fn seal_unbound(mut self) -> Self {
        self.binding = Binding::None;
        self
    }

    /// Adds a key that opens envelopes. Adding the same key again does nothing.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] when another key has this id: replacing it would make unreadable what it sealed.
    pub fn add_key(&self, key_id: impl Into<String>, key: &[u8; 32]) -> Result<()> {
        let key_id = key_id.into();
        let shown = shorten(&key_id);
        if self.keys.add(key_id, key) {
            return Ok(());
        }
        Err(key_error(&shown, "another key has this id; give the new key an id of its own"))
    }

    /// Makes a key that was added the primary one, while others use the encryptor: whoever seals at this moment uses the
    /// old key or the new one.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] when there is no key with this id or it is disabled; the primary key stays.
    pub fn promote(&self, key_id: &str) -> Result<()> {
        self.keys.promote(key_id).map_err(|rule| key_error(key_id, rule))
    }

    /// Makes a key that was added the primary one. As [`promote`](Aes256GcmEncryptor::promote), which needs no exclusive
    /// access.
    ///
    /// # Errors
    ///
    /// As [`promote`](Aes256GcmEncryptor::promote).
    pub fn rotate_to(&mut self, key_id: &str) -> Result<()> {
        self.promote(key_id)
    }

    /// Takes a key out of use: from now on nothing opens that it sealed. For one that leaked, or to find out whether
    /// anybody still needs it.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] when there is no key with this id or it is the primary one.
    pub fn disable_key(&self, key_id: &str) -> Result<()> {
        self.keys.set_disabled(key_id, true).map_err(|rule| key_error(key_id, rule))
    }

    /// Lets a key open envelopes again that was disabled.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] when there is no key with this id.
    pub fn enable_key(&self, key_id: &str) -> Result<()> {
        self.keys.set_disabled(key_id, false).map_err(|rule| key_error(key_id, rule))
    }

    /// What a key is used for; `None` when there is none with this id.
    pub fn key_state(&self, key_id: &str) -> Option<KeyState> {
        self.keys.state(key_id)
    }

    /// Ids of all keys, in any order.
    pub fn key_ids(&self) -> Vec<String> {
        self.keys.iter().map(|key| key.id.clone()).collect()
    }

    /// How many payloads a key has sealed: in this process, and before it where
    /// [`restore_sealed_count`](Aes256GcmEncryptor::restore_sealed_count) said so.
    pub fn sealed_count(&self, key_id: &str) -> Option<u64> {
        self.keys.get(key_id).map(Key::sealed)
    }

    /// Goes on from a count that was kept elsewhere, so that the limit holds for the life of a key and not only for one
    /// process. A count below the present one changes nothing.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] when there is no key with this id.
    pub fn restore_sealed_count(&self, key_id: &str, count: u64) -> Result<()> {
        let key = self.keys.get(key_id).ok_or_else(|| key_error(key_id, "is not known"))?;
        key.raise_sealed(count);
        Ok(())
    }

    /// Seals a payload, bound to the event where there is one.
    fn seal(&self, payload: &Value, event: Option<&Event>) -> Result<Value> {
        let key = self.keys.primary();
        let fail = |failure| encryption_error(&key.id, failure);
        key.count_sealed().map_err(fail)?;
        let nonce = Nonce::<Aes256Gcm>::try_generate().map_err(|_| fail(EncryptionFailure::NoRandomness))?;
        let data = event.map(|event| associated_data(&key.id, event));
        // Sealed in place, so that no copy of the plaintext stays behind.
        let mut buffer = serde_json::to_vec(payload)?;
        key.cipher
            .encrypt_in_place(&nonce, data.as_deref().unwrap_or_default(), &mut buffer)
            .map_err(|_| fail(EncryptionFailure::TooLarge))?;
        let mut envelope = Map::new();
        if event.is_some() {
            envelope.insert("v".to_owned(), VERSION.into());
            envelope.insert("alg".to_owned(), ALGORITHM.into());
        }
        envelope.insert("keyId".to_owned(), key.id.as_str().into());
        envelope.insert("nonce".to_owned(), STANDARD.encode(nonce).into());
        envelope.insert("ciphertext".to_owned(), STANDARD.encode(buffer).into());
        envelope.insert("encrypted".to_owned(), true.into());
        Ok(Value::Object(envelope))
    }

    /// Opens an envelope: a bound one with its event, and an unbound one where it is allowed.
    fn open(&self, sealed: &Value, event: Option<&Event>) -> Result<Value> {
        let named = sealed.get("keyId").and_then(Value::as_str).unwrap_or_default();
        let fail = |failure| encryption_error(named, failure);
        let envelope = Envelope::read(sealed).map_err(fail)?;
        let data = match (envelope.is_bound, event) {
            (true, Some(event)) => Some(associated_data(envelope.key_id, event)),
            (true, None) => return Err(fail(EncryptionFailure::Bound)),
            (false, _) if self.binding == Binding::Required => return Err(fail(EncryptionFailure::Unbound)),
            (false, _) => None,
        };
        let key = self.keys.get(envelope.key_id).ok_or_else(|| fail(EncryptionFailure::UnknownKey))?;
        if key.is_disabled() {
            return Err(fail(EncryptionFailure::KeyDisabled));
        }
        let decode =
            |field, text: &str| STANDARD.decode(text).map_err(|_| fail(EncryptionFailure::NotBase64(field)));
        let nonce = decode("nonce", envelope.nonce)?;
        let nonce = <&Nonce<Aes256Gcm>>::try_from(nonce.as_slice())
            .map_err(|_| fail(EncryptionFailure::NonceLength))?;
        let mut buffer = Zeroizing::new(decode("ciphertext", envelope.ciphertext)?);
        key.cipher
            .decrypt_in_place(nonce, data.as_deref().unwrap_or_default(), &mut *buffer)
            .map_err(|_| fail(EncryptionFailure::Authentication))?;
        // Without serde's own text, which quotes the plaintext.
        serde_json::from_slice(&buffer).map_err(|_| fail(EncryptionFailure::NotJson))
    }
}

impl EventEncryptor for Aes256GcmEncryptor {
    fn encrypt(&self, payload: &Value) -> Result<Value> {
        if self.binding == Binding::Required {
            let failure = EncryptionFailure::Unbound;
            return Err(as_config(encryption_error(self.active_key_id(), failure)));
        }
        self.seal(payload, None).map_err(as_config)
    }

    fn decrypt(&self, encrypted: &Value) -> Result<Value> {
        self.open(encrypted, None).map_err(as_config)
    }

    fn active_key_id(&self) -> &str {
        &self.keys.primary().id
    }

    /// # Errors
    ///
    /// [`EventError::Encryption`].
    fn encrypt_event(&self, event: &Event) -> Result<Value> {
        self.seal(&event.payload, Some(event).filter(|_| self.binding != Binding::None))
    }

    /// # Errors
    ///
    /// [`EventError::Encryption`].
    fn decrypt_event(&self, event: &Event) -> Result<Value> {
        self.open(&event.payload, Some(event))
    }

    /// Whether a payload has the form of an envelope: `encrypted` is true, `keyId`, `nonce` and `ciphertext` are texts, and
    /// there is either no other field or a version.
    fn is_encrypted(&self, payload: &Value) -> bool {
        Envelope::is_one(payload)
    }
}

/// Shows the ids of the keys, never the keys.
impl fmt::Debug for Aes256GcmEncryptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aes256GcmEncryptor")
            .field("active_key_id", &self.active_key_id())
            .field("key_ids", &self.key_ids())
            .field("binding", &self.binding)
            .finish()
    }
}

fn encryption_error(key_id: &str, failure: EncryptionFailure) -> EventError {
    EventError::Encryption { key_id: shorten(key_id), failure }
}

fn key_error(key_id: &str, what: &str) -> EventError {
    EventError::Config(format!("encryption key '{}': {what}", shorten(key_id)))
}

/// The methods without an event have always failed with `Config`.
fn as_config(error: EventError) -> EventError {
    match error {
        EventError::Encryption { .. } => EventError::Config(error.to_string()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
