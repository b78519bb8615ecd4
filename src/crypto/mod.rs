//! Encryption of payloads, so that only holders of the key can read what a broker stores.
//!
//! Subjects, types, metadata and sizes are not encrypted. [`EventEncryptor`] and the envelope are always available;
//! `Aes256GcmEncryptor` needs the feature `encryption`. The guide is [Encryption and key
//! rotation](crate::docs::encryption).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{EncryptionFailure, EventError, Result};
use crate::text::shorten;
use crate::types::Event;

#[cfg(feature = "encryption")]
mod aes256_gcm;
#[cfg(feature = "encryption")]
mod base64;
#[cfg(feature = "encryption")]
mod envelope;
#[cfg(feature = "encryption")]
mod key;
#[cfg(feature = "encryption")]
mod ring;

#[cfg(feature = "encryption")]
#[cfg_attr(docsrs, doc(cfg(feature = "encryption")))]
pub use aes256_gcm::Aes256GcmEncryptor;
#[cfg(feature = "encryption")]
#[cfg_attr(docsrs, doc(cfg(feature = "encryption")))]
pub use key::EncryptionKey;
#[cfg(feature = "encryption")]
#[cfg_attr(docsrs, doc(cfg(feature = "encryption")))]
pub use ring::KeyState;

/// Encrypts and decrypts payloads.
///
/// The bus calls [`encrypt_event`](EventEncryptor::encrypt_event), [`is_encrypted`](EventEncryptor::is_encrypted) and
/// [`decrypt_event`](EventEncryptor::decrypt_event), from many tasks at once. Implementations perform no I/O. The
/// defaults forward to the methods without an event, so that the three required methods are enough.
pub trait EventEncryptor: Send + Sync {
    /// Encrypts a payload and returns the envelope that replaces it.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] if the payload cannot be encrypted.
    fn encrypt(&self, payload: &Value) -> Result<Value>;

    /// Decrypts an envelope and returns the payload.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] if the value is not an envelope, names an unknown key, or was
    /// changed.
    fn decrypt(&self, encrypted: &Value) -> Result<Value>;

    /// Returns the id of the key that encrypts new payloads.
    fn active_key_id(&self) -> &str;

    /// Encrypts the payload of an event and returns the envelope.
    ///
    /// An implementation can bind the envelope to the event. It can then be decrypted only in an event with this id,
    /// subject, event type and version.
    ///
    /// # Errors
    ///
    /// Same as [`encrypt`](EventEncryptor::encrypt); an implementation may use
    /// [`EventError::Encryption`].
    fn encrypt_event(&self, event: &Event) -> Result<Value> {
        self.encrypt(&event.payload)
    }

    /// Decrypts the envelope that is the payload of an event.
    ///
    /// # Errors
    ///
    /// Same as [`decrypt`](EventEncryptor::decrypt); an implementation may use
    /// [`EventError::Encryption`].
    fn decrypt_event(&self, event: &Event) -> Result<Value> {
        self.decrypt(&event.payload)
    }

    /// Returns true if a stored payload is an envelope to decrypt. The bus returns every other payload as it is.
    ///
    /// The default checks the mark, [`EncryptedPayload::is_encrypted`], which an unencrypted payload can have, too.
    fn is_encrypted(&self, payload: &Value) -> bool {
        EncryptedPayload::is_encrypted(payload)
    }
}

/// The envelope that replaces an encrypted payload.
///
/// Its JSON is `{"keyId": …, "nonce": …, "ciphertext": …, "encrypted": true}`. The envelope of an event also has the
/// fields `v` and `alg`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptedPayload {
    /// Id of the key that decrypts it.
    pub key_id: String,
    /// Nonce of 96 bits, in standard base64.
    pub nonce: String,
    /// Ciphertext followed by the authentication tag, in standard base64.
    pub ciphertext: String,
    /// Marks the object as an envelope.
    #[serde(default = "always")]
    pub encrypted: bool,
}

fn always() -> bool {
    true
}

impl EncryptedPayload {
    /// Returns true if a payload is marked as encrypted: an object whose field `encrypted` is `true`.
    ///
    /// The mark alone makes no envelope. [`EventEncryptor::is_encrypted`] decides that.
    ///
    /// ```
    /// use a3s_event::EncryptedPayload;
    /// use serde_json::json;
    ///
    /// assert!(EncryptedPayload::is_encrypted(&json!({"encrypted": true, "keyId": "k1"})));
    /// assert!(!EncryptedPayload::is_encrypted(&json!({"encrypted": "true"})));
    /// ```
    pub fn is_encrypted(value: &Value) -> bool {
        value.get("encrypted") == Some(&Value::Bool(true))
    }
}

/// Returns true if a payload has the form of an envelope of `Aes256GcmEncryptor`: the mark, its three texts, and
/// either no other field or a version.
///
/// The content of the texts is not checked, so that a damaged envelope is an error and not a payload. A later version may
/// add fields, and is an error, too.
pub(crate) fn is_envelope(payload: &Value) -> bool {
    const UNBOUND_FIELDS: usize = 4;
    let Value::Object(fields) = payload else { return false };
    fields.get("encrypted") == Some(&Value::Bool(true))
        && ["keyId", "nonce", "ciphertext"].iter().all(|name| fields.get(*name).is_some_and(Value::is_string))
        && (fields.len() == UNBOUND_FIELDS || fields.get("v").is_some_and(Value::is_number))
}

/// Returns the error for an envelope that no encryptor has decrypted, or `None` for any other payload. Code that judges a
/// payload reports this error instead of its own, because it has not seen the payload.
pub(crate) fn sealed_error(payload: &Value) -> Option<EventError> {
    let key_id = is_envelope(payload).then(|| payload.get("keyId").and_then(Value::as_str))??;
    Some(EventError::Encryption { key_id: shorten(key_id), failure: EncryptionFailure::NoEncryptor })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_envelope_has_its_promised_json() {
        let envelope = EncryptedPayload {
            key_id: "k".into(),
            nonce: "n".into(),
            ciphertext: "c".into(),
            encrypted: true,
        };
        assert_eq!(
            serde_json::to_string(&envelope).unwrap(),
            r#"{"keyId":"k","nonce":"n","ciphertext":"c","encrypted":true}"#
        );
        let unmarked = json!({"keyId": "k", "nonce": "n", "ciphertext": "c"});
        assert!(serde_json::from_value::<EncryptedPayload>(unmarked).unwrap().encrypted);
    }

    #[test]
    fn only_the_mark_marks() {
        assert!(EncryptedPayload::is_encrypted(&json!({"encrypted": true})));
        for value in [
            json!({"encrypted": false}),
            json!({"encrypted": 1}),
            json!({"inner": {"encrypted": true}}),
            json!([true]),
            json!("encrypted"),
            json!(null),
        ] {
            assert!(!EncryptedPayload::is_encrypted(&value), "{value}");
        }
    }

    #[test]
    fn an_implementation_of_before_needs_no_change() {
        struct Reversed;

        impl EventEncryptor for Reversed {
            fn encrypt(&self, payload: &Value) -> Result<Value> {
                let text: String = payload.to_string().chars().rev().collect();
                Ok(json!({"encrypted": true, "text": text}))
            }
            fn decrypt(&self, encrypted: &Value) -> Result<Value> {
                let text: String = encrypted["text"].as_str().unwrap_or_default().chars().rev().collect();
                Ok(serde_json::from_str(&text)?)
            }
            fn active_key_id(&self) -> &str {
                "none"
            }
        }

        let mut event = Event::new("events.a", "a", "", "", json!({"a": 12}));
        let clear = event.payload.clone();
        event.payload = Reversed.encrypt_event(&event).unwrap();
        assert!(Reversed.is_encrypted(&event.payload) && !Reversed.is_encrypted(&clear));
        assert_eq!(Reversed.decrypt_event(&event).unwrap(), clear);
    }
}
