//! AES-256-GCM.

use std::fmt;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, Generate, Nonce};
use base64::Engine;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::base64::STANDARD;
use super::envelope::{ALGORITHM, Envelope, VERSION, associated_data};
use super::ring::{Key, KeyRing, KeyState};
use super::{EventEncryptor, is_envelope};
use crate::error::{EncryptionFailure, EventError, Result};
use crate::text::shorten;
use crate::types::Event;

/// Encrypts payloads with AES-256-GCM, with a random nonce for each.
///
/// The payload of an event is bound to the event. Its envelope can be decrypted only in an event with the same id,
/// subject, event type and version. Envelopes of earlier versions are not bound. They can be decrypted, too, unless
/// [`require_bound`](Aes256GcmEncryptor::require_bound) refuses them.
///
/// One key is primary and encrypts. Every other key that was added decrypts, until it is disabled. To rotate:
///
/// 1. Add the new key on every reader.
/// 2. [`promote`](Aes256GcmEncryptor::promote) it on the writers.
/// 3. Keep the old key as long as payloads that it encrypted are stored.
///
/// [The guide](crate::docs::encryption) explains each step.
///
/// With random nonces, a key must encrypt fewer than 2^32 payloads in its life. The encryptor counts them per key and
/// process. At 2^31 it logs a warning, and it refuses the 2^32nd. Rotate before that, or keep the count across restarts
/// with [`sealed_count`](Aes256GcmEncryptor::sealed_count) and
/// [`restore_sealed_count`](Aes256GcmEncryptor::restore_sealed_count). Keys are wiped from memory on drop and never
/// printed.
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

/// Binding of envelopes to their event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Binding {
    /// New envelopes are bound; unbound ones are accepted.
    Preferred,
    /// All envelopes are bound; unbound ones are refused.
    Required,
    /// New envelopes are unbound, for readers of earlier versions.
    None,
}

impl Aes256GcmEncryptor {
    /// Creates an encryptor with one key, which is primary. [`EncryptionKey`](super::EncryptionKey) reads one from a
    /// file or the environment.
    pub fn new(key_id: impl Into<String>, key: &[u8; 32]) -> Self {
        Self { keys: KeyRing::new(key_id.into(), key), binding: Binding::Preferred }
    }

    /// Refuses envelopes that are not bound to their event. Payloads without an event can then be neither encrypted nor
    /// decrypted.
    ///
    /// An unbound envelope can be moved from one event to another. Call this as soon as nothing is stored that an
    /// earlier version encrypted.
    #[must_use]
    pub fn require_bound(mut self) -> Self {
        self.binding = Binding::Required;
        self
    }

    /// Encrypts without binding, in the form that readers of earlier versions understand. Use it while such readers
    /// exist. Bound envelopes can still be decrypted.
    #[must_use]
    pub fn seal_unbound(mut self) -> Self {
        self.binding = Binding::None;
        self
    }

    /// Adds a key for decryption. Adding the same key again does nothing.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] if another key has this id. Replacing that key would make its payloads unreadable.
    pub fn add_key(&self, key_id: impl Into<String>, key: &[u8; 32]) -> Result<()> {
        let key_id = key_id.into();
        let shown = shorten(&key_id);
        if self.keys.add(key_id, key) {
            return Ok(());
        }
        Err(key_error(&shown, "another key has this id; choose a unique id"))
    }

    /// Makes an added key the primary one, also while other tasks use the encryptor. A payload encrypted at that moment
    /// uses the old key or the new one.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] if there is no key with this id or it is disabled. The primary key then stays the same.
    pub fn promote(&self, key_id: &str) -> Result<()> {
        self.keys.promote(key_id).map_err(|rule| key_error(key_id, rule))
    }

    /// Makes an added key the primary one. Prefer [`promote`](Aes256GcmEncryptor::promote), which does the same without
    /// exclusive access.
    ///
    /// # Errors
    ///
    /// Same as [`promote`](Aes256GcmEncryptor::promote).
    pub fn rotate_to(&mut self, key_id: &str) -> Result<()> {
        self.promote(key_id)
    }

    /// Disables a key: payloads that it encrypted can no longer be decrypted. Use this if the key leaked, or to find
    /// readers that still need it.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] if there is no key with this id or it is the primary one.
    pub fn disable_key(&self, key_id: &str) -> Result<()> {
        self.keys.set_disabled(key_id, true).map_err(|rule| key_error(key_id, rule))
    }

    /// Enables a disabled key, so that it decrypts again.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] if there is no key with this id.
    pub fn enable_key(&self, key_id: &str) -> Result<()> {
        self.keys.set_disabled(key_id, false).map_err(|rule| key_error(key_id, rule))
    }

    /// Returns the state of a key, or `None` if there is no key with this id.
    pub fn key_state(&self, key_id: &str) -> Option<KeyState> {
        self.keys.state(key_id)
    }

    /// Returns the ids of all keys, in any order.
    pub fn key_ids(&self) -> Vec<String> {
        self.keys.iter().map(|key| key.id.clone()).collect()
    }

    /// Returns the number of payloads that a key has encrypted, or `None` if there is no key with this id. The count
    /// starts at zero in each process, unless [`restore_sealed_count`](Aes256GcmEncryptor::restore_sealed_count) raises
    /// it.
    pub fn sealed_count(&self, key_id: &str) -> Option<u64> {
        self.keys.get(key_id).map(Key::sealed)
    }

    /// Raises the count of a key to one that was stored elsewhere. The limit then holds for the life of the key, not
    /// only for one process. A count below the present one changes nothing.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] if there is no key with this id.
    pub fn restore_sealed_count(&self, key_id: &str, count: u64) -> Result<()> {
        let key = self.keys.get(key_id).ok_or_else(|| key_error(key_id, "no key has this id"))?;
        key.raise_sealed(count);
        Ok(())
    }

    /// Encrypts a payload, and binds it to the event if there is one.
    fn seal(&self, payload: &Value, event: Option<&Event>) -> Result<Value> {
        let key = self.keys.primary();
        let fail = |failure| encryption_error(&key.id, failure);
        key.count_sealed().map_err(fail)?;
        let nonce = Nonce::<Aes256Gcm>::try_generate().map_err(|_| fail(EncryptionFailure::NoRandomness))?;
        let data = event.map(|event| associated_data(&key.id, event));
        // Encrypted in place, so that no copy of the plaintext stays in memory.
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

    /// Decrypts an envelope: a bound one with its event, and an unbound one if it is allowed.
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
        // The error text of serde quotes the plaintext, so it is dropped.
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

    /// Returns true if a payload has the form of an envelope: `encrypted` is true, `keyId`, `nonce` and `ciphertext`
    /// are texts, and there is either no other field or a version.
    fn is_encrypted(&self, payload: &Value) -> bool {
        is_envelope(payload)
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

/// The methods without an event have always returned `Config`.
fn as_config(error: EventError) -> EventError {
    match error {
        EventError::Encryption { .. } => EventError::Config(error.to_string()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
