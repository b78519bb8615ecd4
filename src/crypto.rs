//! Encryption of payloads: what a broker stores can be read only by those who have the key.
//!
//! Subjects, types, metadata and sizes are not encrypted. [`EventEncryptor`] and the envelope are always available;
//! `Aes256GcmEncryptor` needs the feature `encryption`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Result;

#[cfg(feature = "encryption")]
#[cfg_attr(docsrs, doc(cfg(feature = "encryption")))]
pub use aes256_gcm::Aes256GcmEncryptor;

/// Encrypts payloads and decrypts them again. Called from many tasks at once; performs no I/O.
pub trait EventEncryptor: Send + Sync {
    /// Seals a payload and returns the envelope that replaces it.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`](crate::EventError::Config) when the payload cannot be sealed.
    fn encrypt(&self, payload: &Value) -> Result<Value>;

    /// Opens an envelope and returns the payload.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`](crate::EventError::Config) when the value is not an envelope, names a key that is not
    /// known, or was changed.
    fn decrypt(&self, encrypted: &Value) -> Result<Value>;

    /// Id of the key that seals new payloads.
    fn active_key_id(&self) -> &str;
}

/// The envelope: what stands in place of a payload that is encrypted.
///
/// Its JSON is `{"keyId": …, "nonce": …, "ciphertext": …, "encrypted": true}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptedPayload {
    /// Which key opens it.
    pub key_id: String,
    /// The nonce of 96 bits, in standard base64.
    pub nonce: String,
    /// The ciphertext with the authentication tag behind it, in standard base64.
    pub ciphertext: String,
    /// Marks the object as an envelope.
    #[serde(default = "always")]
    pub encrypted: bool,
}

fn always() -> bool {
    true
}

impl EncryptedPayload {
    /// Whether a payload is marked as encrypted: an object whose field `encrypted` is `true`.
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

#[cfg(feature = "encryption")]
mod aes256_gcm {
    use std::collections::HashMap;
    use std::fmt;
    use std::sync::{Arc, PoisonError, RwLock};

    use aes_gcm::aead::{AeadInOut, Generate, KeyInit, Nonce};
    use aes_gcm::{Aes256Gcm, Key};
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::Value;
    use zeroize::Zeroizing;

    use super::{EncryptedPayload, EventEncryptor};
    use crate::error::{EventError, Result, shorten};

    /// Encrypts payloads with AES-256-GCM under a random nonce each.
    ///
    /// One key is active and seals; every key that was added opens. To rotate, add the new key on every reader first,
    /// then make it active on the writers, and keep the old one as long as something is stored that it sealed.
    ///
    /// With random nonces a key must seal at most 2^32 payloads. Keys are wiped from memory on drop and never printed.
    ///
    /// ```
    /// use a3s_event::{Aes256GcmEncryptor, EncryptedPayload, EventEncryptor};
    /// use serde_json::json;
    ///
    /// # fn main() -> a3s_event::Result<()> {
    /// let mut encryptor = Aes256GcmEncryptor::new("2025", &[7; 32]);
    /// let sealed = encryptor.encrypt(&json!({"card": "4111"}))?;
    /// assert!(EncryptedPayload::is_encrypted(&sealed));
    ///
    /// encryptor.add_key("2026", &[8; 32])?;
    /// encryptor.rotate_to("2026")?;
    /// assert_eq!(encryptor.active_key_id(), "2026");
    /// assert_eq!(encryptor.decrypt(&sealed)?, json!({"card": "4111"}));
    /// # Ok(())
    /// # }
    /// ```
    pub struct Aes256GcmEncryptor {
        active_key_id: String,
        /// Also in `keys`; held apart so that sealing takes no lock.
        active_key: Arc<SecretKey>,
        keys: RwLock<HashMap<String, Arc<SecretKey>>>,
    }

    impl Aes256GcmEncryptor {
        /// An encryptor with one key, which is active.
        pub fn new(key_id: impl Into<String>, key: &[u8; 32]) -> Self {
            let active_key_id = key_id.into();
            let active_key = Arc::new(SecretKey::new(key));
            let keys = HashMap::from([(active_key_id.clone(), Arc::clone(&active_key))]);
            Self { active_key_id, active_key, keys: RwLock::new(keys) }
        }

        /// Adds a key that opens envelopes. Adding the same key again does nothing.
        ///
        /// # Errors
        ///
        /// [`EventError::Config`] when another key has this id: replacing it would make unreadable what it sealed.
        pub fn add_key(&self, key_id: impl Into<String>, key: &[u8; 32]) -> Result<()> {
            let key_id = key_id.into();
            let key = SecretKey::new(key);
            let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
            match keys.get(&key_id) {
                Some(existing) if existing.is_same_as(&key) => Ok(()),
                Some(_) => {
                    Err(key_error(&key_id, "another key has this id; give the new key an id of its own"))
                }
                None => {
                    keys.insert(key_id, Arc::new(key));
                    Ok(())
                }
            }
        }

        /// Makes a key that was added the active one.
        ///
        /// # Errors
        ///
        /// [`EventError::Config`] when there is no key with this id; the active key stays.
        pub fn rotate_to(&mut self, key_id: &str) -> Result<()> {
            self.active_key = self.key(key_id)?;
            self.active_key_id = key_id.to_owned();
            Ok(())
        }

        /// Ids of all keys, in any order.
        pub fn key_ids(&self) -> Vec<String> {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            keys.keys().cloned().collect()
        }

        fn key(&self, key_id: &str) -> Result<Arc<SecretKey>> {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            keys.get(key_id).cloned().ok_or_else(|| key_error(key_id, "is not known"))
        }
    }

    impl EventEncryptor for Aes256GcmEncryptor {
        fn encrypt(&self, payload: &Value) -> Result<Value> {
            let fail = |what: &str| key_error(&self.active_key_id, what);
            let nonce = Nonce::<Aes256Gcm>::try_generate()
                .map_err(|_| fail("cannot seal: the system has no random numbers"))?;
            // Sealed in place, so that no copy of the plaintext stays behind.
            let mut buffer = serde_json::to_vec(payload)?;
            self.active_key
                .cipher
                .encrypt_in_place(&nonce, b"", &mut buffer)
                .map_err(|_| fail("cannot seal: the payload is too large"))?;
            Ok(serde_json::to_value(EncryptedPayload {
                key_id: self.active_key_id.clone(),
                nonce: STANDARD.encode(nonce),
                ciphertext: STANDARD.encode(buffer),
                encrypted: true,
            })?)
        }

        fn decrypt(&self, encrypted: &Value) -> Result<Value> {
            let envelope = Envelope::read(encrypted)?;
            let fail = |what: &str| key_error(envelope.key_id, what);
            let key = self.key(envelope.key_id)?;
            let nonce = decode(envelope.nonce).ok_or_else(|| fail("the nonce is not base64"))?;
            let nonce = <&Nonce<Aes256Gcm>>::try_from(nonce.as_slice())
                .map_err(|_| fail("the nonce does not have 96 bits"))?;
            let ciphertext =
                decode(envelope.ciphertext).ok_or_else(|| fail("the ciphertext is not base64"))?;
            let mut buffer = Zeroizing::new(ciphertext);
            key.cipher.decrypt_in_place(nonce, b"", &mut *buffer).map_err(|_| {
                fail("the envelope cannot be opened: it was changed, or sealed with another key")
            })?;
            // Without serde's own text, which quotes the plaintext.
            serde_json::from_slice(&buffer).map_err(|_| fail("the sealed payload is not JSON"))
        }

        fn active_key_id(&self) -> &str {
            &self.active_key_id
        }
    }

    /// Shows the ids of the keys, never the keys.
    impl fmt::Debug for Aes256GcmEncryptor {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Aes256GcmEncryptor")
                .field("active_key_id", &self.active_key_id)
                .field("key_ids", &self.key_ids())
                .finish()
        }
    }

    /// A key ready for use. Both fields wipe themselves on drop.
    struct SecretKey {
        cipher: Aes256Gcm,
        /// On the heap: moving the struct then leaves no copy of the bytes behind.
        bytes: Zeroizing<Vec<u8>>,
    }

    impl SecretKey {
        fn new(key: &[u8; 32]) -> Self {
            Self { cipher: Aes256Gcm::new(<&Key<Aes256Gcm>>::from(key)), bytes: Zeroizing::new(key.to_vec()) }
        }

        /// Takes the same time wherever the keys differ.
        fn is_same_as(&self, other: &Self) -> bool {
            let differing_bits =
                self.bytes.iter().zip(other.bytes.iter()).fold(0, |bits, (a, b)| bits | (a ^ b));
            differing_bits == 0
        }
    }

    /// An [`EncryptedPayload`] read without copying its strings.
    struct Envelope<'a> {
        key_id: &'a str,
        nonce: &'a str,
        ciphertext: &'a str,
    }

    impl<'a> Envelope<'a> {
        fn read(value: &'a Value) -> Result<Self> {
            let field = |name: &str| {
                value.get(name).and_then(Value::as_str).ok_or_else(|| {
                    EventError::Config(format!("not an encrypted payload: it has no text field '{name}'"))
                })
            };
            if value.get("encrypted").is_some_and(|mark| mark != &Value::Bool(true)) {
                let reason = "not an encrypted payload: its field 'encrypted' is not true";
                return Err(EventError::Config(reason.to_owned()));
            }
            Ok(Self { key_id: field("keyId")?, nonce: field("nonce")?, ciphertext: field("ciphertext")? })
        }
    }

    fn decode(base64: &str) -> Option<Vec<u8>> {
        STANDARD.decode(base64).ok()
    }

    fn key_error(key_id: &str, what: &str) -> EventError {
        EventError::Config(format!("encryption key '{}': {what}", shorten(key_id)))
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use serde_json::json;

        fn encryptor() -> Aes256GcmEncryptor {
            Aes256GcmEncryptor::new("k1", &[1; 32])
        }

        fn config_error<T: fmt::Debug>(result: Result<T>) -> String {
            match result.unwrap_err() {
                EventError::Config(text) => text,
                other => panic!("unexpected error {other}"),
            }
        }

        #[test]
        fn every_kind_of_payload_comes_back() {
            let encryptor = encryptor();
            for payload in [
                json!(null),
                json!(false),
                json!(u64::MAX),
                json!(-0.5),
                json!(""),
                json!("市场"),
                json!([]),
                json!({"a": {"b": [1, 2, 3]}, "encrypted": true}),
                json!("x".repeat(1 << 20)),
            ] {
                let sealed = encryptor.encrypt(&payload).unwrap();
                assert!(EncryptedPayload::is_encrypted(&sealed));
                assert_eq!(encryptor.decrypt(&sealed).unwrap(), payload);
            }
        }

        #[test]
        fn an_envelope_shows_no_plaintext_and_is_never_the_same() {
            let encryptor = encryptor();
            let [a, b] = [(); 2].map(|()| encryptor.encrypt(&json!({"card": "4111"})).unwrap());
            assert_ne!(a["nonce"], b["nonce"]);
            assert_ne!(a["ciphertext"], b["ciphertext"]);

            assert!(!a.to_string().contains("4111"));
            assert_eq!(a.as_object().unwrap().len(), 4);
            let envelope: EncryptedPayload = serde_json::from_value(a).unwrap();
            assert_eq!((envelope.key_id.as_str(), envelope.encrypted), ("k1", true));
            assert_eq!(STANDARD.decode(&envelope.nonce).unwrap().len(), 12);
            // 15 bytes of JSON and the tag.
            assert_eq!(STANDARD.decode(&envelope.ciphertext).unwrap().len(), 15 + 16);
        }

        /// Sealed with OpenSSL: key 00 01 … 1f, nonce 00 01 … 0b, no associated data.
        #[test]
        fn an_envelope_from_elsewhere_opens() {
            let key: Vec<u8> = (0..32).collect();
            let encryptor = Aes256GcmEncryptor::new("known", key.as_slice().try_into().unwrap());
            let envelope = json!({
                "keyId": "known",
                "nonce": "AAECAwQFBgcICQoL",
                "ciphertext": "PCCmeqyX4CGvFMTP8qchT6/09VWEHn1GD0nWsGCY0+oUR7rHxsskaTq5G94h",
                "encrypted": true,
            });
            assert_eq!(encryptor.decrypt(&envelope).unwrap(), json!({"rate": 7.35, "pair": "USDCNY"}));
        }

        #[test]
        fn a_change_anywhere_is_found_out() {
            let encryptor = encryptor();
            let sealed = encryptor.encrypt(&json!({"a": 1})).unwrap();
            for field in ["nonce", "ciphertext"] {
                let bytes = STANDARD.decode(sealed[field].as_str().unwrap()).unwrap();
                for bit in 0..bytes.len() * 8 {
                    let mut changed = bytes.clone();
                    changed[bit / 8] ^= 1 << (bit % 8);
                    let mut envelope = sealed.clone();
                    envelope[field] = json!(STANDARD.encode(changed));
                    let text = config_error(encryptor.decrypt(&envelope));
                    assert!(text.contains("'k1'") && text.contains("cannot be opened"), "{text}");
                }
            }
        }

        #[test]
        fn what_is_not_an_envelope_is_a_typed_error() {
            let encryptor = encryptor();
            let sealed = encryptor.encrypt(&json!(1)).unwrap();
            let short = |len: usize| json!(STANDARD.encode(vec![0; len]));
            for (field, value, expected) in [
                ("nonce", json!("?"), "nonce is not base64"),
                ("nonce", short(0), "96 bits"),
                ("nonce", short(11), "96 bits"),
                ("nonce", short(13), "96 bits"),
                ("nonce", json!(1), "no text field 'nonce'"),
                ("ciphertext", json!("a b"), "ciphertext is not base64"),
                ("ciphertext", short(0), "cannot be opened"),
                ("ciphertext", short(15), "cannot be opened"),
                ("ciphertext", short(16), "cannot be opened"),
                ("ciphertext", json!(null), "no text field 'ciphertext'"),
                ("keyId", json!("k2"), "'k2': is not known"),
                ("keyId", json!(""), "'': is not known"),
                ("keyId", json!(["k1"]), "no text field 'keyId'"),
                ("encrypted", json!(false), "not true"),
            ] {
                let mut envelope = sealed.clone();
                envelope[field] = value;
                let text = config_error(encryptor.decrypt(&envelope));
                assert!(text.contains(expected), "{envelope}: {text}");
            }
            for value in [json!(null), json!("text"), json!([]), json!({})] {
                config_error(encryptor.decrypt(&value));
            }
            let mut unmarked = sealed;
            unmarked.as_object_mut().unwrap().remove("encrypted");
            assert_eq!(encryptor.decrypt(&unmarked).unwrap(), json!(1));
        }

        #[test]
        fn every_key_opens_and_the_active_one_seals() {
            let mut encryptor = encryptor();
            let old = encryptor.encrypt(&json!("old")).unwrap();
            encryptor.add_key("k2", &[2; 32]).unwrap();
            assert_eq!(encryptor.encrypt(&json!(1)).unwrap()["keyId"], "k1");
            encryptor.rotate_to("k2").unwrap();
            let new = encryptor.encrypt(&json!("new")).unwrap();
            assert_eq!(new["keyId"], "k2");
            assert_eq!(encryptor.decrypt(&old).unwrap(), "old");
            assert_eq!(encryptor.decrypt(&new).unwrap(), "new");

            assert!(config_error(encryptor.rotate_to("k3")).contains("'k3'"));
            assert_eq!(encryptor.active_key_id(), "k2");
            let mut ids = encryptor.key_ids();
            ids.sort();
            assert_eq!(ids, ["k1", "k2"]);
        }

        #[test]
        fn a_key_is_never_replaced_by_another() {
            let encryptor = encryptor();
            let sealed = encryptor.encrypt(&json!(1)).unwrap();
            encryptor.add_key("k1", &[1; 32]).unwrap();
            let mut other = [1; 32];
            other[31] = 2;
            assert!(config_error(encryptor.add_key("k1", &other)).contains("'k1'"));
            assert_eq!(encryptor.decrypt(&sealed).unwrap(), 1);
        }

        #[test]
        fn debug_and_errors_show_ids_only() {
            let encryptor = Aes256GcmEncryptor::new("k1", b"canary-canary-canary-canary-1234");
            let shown = format!("{encryptor:?} {:#?}", encryptor.add_key("k1", &[0; 32]));
            assert!(shown.contains("k1"));
            assert!(!shown.contains("canary") && !shown.contains("99, 97, 110"), "{shown}");
        }
    }
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
    fn only_the_mark_makes_an_envelope() {
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
}
