//! Keys of encrypted payloads, from the files that `--key-file` names. The tool never prints a key or a part of one.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use a3s_event::{Aes256GcmEncryptor, EncryptedPayload, EncryptionKey, Event, EventEncryptor as _};
use serde_json::Value;

use crate::failure::{Failure, Outcome, chain};
use crate::stored::Stored;
use crate::text;

/// A key file, and the id of its key if the command line gives one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyFile {
    id: Option<String>,
    path: PathBuf,
}

impl FromStr for KeyFile {
    type Err = String;

    /// Reads `FILE` or `ID=FILE`. A path with `=` is written with a folder: `./a=b`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (id, path) = match text.split_once('=') {
            Some((id, path)) if !id.contains('/') => (Some(id.to_owned()), path),
            _ => (None, text),
        };
        if path.is_empty() || id.as_ref().is_some_and(String::is_empty) {
            return Err("write FILE or ID=FILE".to_owned());
        }
        Ok(Self { id, path: path.into() })
    }
}

/// The keys of the command line.
#[derive(Default)]
pub(crate) struct Keys {
    keys: Vec<(Option<String>, EncryptionKey)>,
    /// Encrypts with the first key, if that has an id.
    encryptor: Option<Aes256GcmEncryptor>,
    /// Reasons why payloads could not be decrypted.
    failures: BTreeSet<String>,
}

impl Keys {
    pub(crate) fn load(files: &[KeyFile]) -> Outcome<Self> {
        let mut keys: Vec<(Option<String>, EncryptionKey)> = Vec::new();
        for KeyFile { id, path } in files {
            if let Some(id) = id
                && keys.iter().any(|(known, _)| known.as_ref() == Some(id))
            {
                return Err(Failure::Usage(format!("--key-file names two keys with the id '{id}'")));
            }
            keys.push((id.clone(), EncryptionKey::from_file(path)?));
        }
        Ok(Self::new(keys))
    }

    fn new(keys: Vec<(Option<String>, EncryptionKey)>) -> Self {
        let encryptor = match keys.first() {
            Some((Some(id), key)) => Some(Aes256GcmEncryptor::new(id.as_str(), key)),
            _ => None,
        };
        Self { keys, encryptor, failures: BTreeSet::new() }
    }

    /// Fails if there are keys and the first one has no id, which encryption needs.
    pub(crate) fn check_encryption(&self) -> Outcome {
        if self.keys.is_empty() || self.encryptor.is_some() {
            return Ok(());
        }
        Err(Failure::Usage(
            "events are encrypted with the first --key-file, whose key needs an id: write --key-file ID=FILE"
                .to_owned(),
        ))
    }

    /// Replaces the payload by its plaintext if a key fits. A key without an id fits any id.
    pub(crate) fn decrypt(&mut self, event: &mut Arc<Event>) {
        let Some(id) = encrypted_with(&event.payload).filter(|_| !self.keys.is_empty()) else { return };
        let mut failure = None;
        for (_, key) in self.keys.iter().filter(|(known, _)| known.as_ref().is_none_or(|known| *known == id))
        {
            let encryptor = Aes256GcmEncryptor::new(id.as_str(), key);
            if !encryptor.is_encrypted(&event.payload) {
                return;
            }
            match encryptor.decrypt_event(event) {
                Ok(payload) => {
                    Arc::make_mut(event).payload = payload;
                    return;
                }
                Err(error) => failure = Some(chain(&error)),
            }
        }
        let failure = failure.unwrap_or_else(|| format!("no --key-file has the key '{}'", text::line(&id)));
        self.failures.insert(failure);
    }

    /// Decrypts the payloads of records.
    pub(crate) fn decrypt_all(&mut self, records: &mut [Stored]) {
        for stored in records {
            if let Stored::Event(stored) = stored {
                self.decrypt(&mut stored.event);
            }
        }
    }

    /// Encrypts the payload of a new event with the first key, if there are keys.
    pub(crate) fn encrypt(&self, event: &mut Event) -> Outcome {
        self.check_encryption()?;
        if let Some(encryptor) = &self.encryptor {
            event.payload = encryptor.encrypt_event(event)?;
        }
        Ok(())
    }

    /// Encrypts the payload of an event that was stored before, unless it is encrypted.
    pub(crate) fn encrypt_again(&self, event: &mut Event) -> Outcome {
        match encrypted_with(&event.payload) {
            Some(_) => Ok(()),
            None => self.encrypt(event),
        }
    }

    /// Returns why payloads could not be decrypted; `None` if all were.
    pub(crate) fn failures(&self) -> Option<String> {
        let reasons: Vec<_> = self.failures.iter().map(String::as_str).collect();
        (!reasons.is_empty()).then(|| format!("payloads were not decrypted: {}", reasons.join("; ")))
    }
}

/// Returns the key id of an encrypted payload.
pub(crate) fn encrypted_with(payload: &Value) -> Option<String> {
    // A plaintext payload is neither parsed nor copied.
    EncryptedPayload::is_encrypted(payload).then_some(())?;
    let text = |name: &str| payload.get(name).and_then(Value::as_str);
    (text("nonce").is_some() && text("ciphertext").is_some()).then(|| text("keyId"))?.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_key_file_may_name_the_id_of_its_key() {
        for (text, id, path) in [
            ("key", None, "key"),
            ("2026-01=/etc/keys/a", Some("2026-01"), "/etc/keys/a"),
            ("./a=b", None, "./a=b"),
            ("k=a=b", Some("k"), "a=b"),
        ] {
            let file: KeyFile = text.parse().unwrap();
            assert_eq!((file.id.as_deref(), file.path.to_str().unwrap()), (id, path), "{text}");
        }
        for wrong in ["", "=", "k=", "=file"] {
            assert!(wrong.parse::<KeyFile>().is_err(), "{wrong}");
        }
    }

    fn keys(keys: &[(Option<&str>, u8)]) -> Keys {
        let key =
            |(id, byte): &(Option<&str>, u8)| (id.map(str::to_owned), EncryptionKey::from(&[*byte; 32]));
        Keys::new(keys.iter().map(key).collect())
    }

    #[test]
    fn payloads_are_decrypted_by_the_key_that_fits() {
        let plain = Event::new("events.a", "a", "", "", json!({"card": "4111"}));
        let mut sealed = plain.clone();
        keys(&[(Some("k1"), 1)]).encrypt(&mut sealed).unwrap();
        assert_eq!(encrypted_with(&sealed.payload).as_deref(), Some("k1"));
        let opened = |mut keys: Keys| {
            let mut event = Arc::new(sealed.clone());
            keys.decrypt(&mut event);
            (event.payload == plain.payload, keys.failures())
        };
        assert_eq!(opened(keys(&[(Some("k2"), 2), (Some("k1"), 1)])), (true, None));
        assert_eq!(opened(keys(&[(None, 2), (None, 1)])), (true, None));
        assert_eq!(opened(Keys::default()), (false, None));
        let (is_open, why) = opened(keys(&[(Some("k2"), 2)]));
        assert!(!is_open && why.as_ref().is_some_and(|why| why.contains("the key 'k1'")), "{why:?}");
        let (is_open, why) = opened(keys(&[(Some("k1"), 2)]));
        assert!(!is_open && why.as_ref().is_some_and(|why| why.contains("were not decrypted")), "{why:?}");
    }

    #[test]
    fn a_payload_is_encrypted_once_when_it_is_restored() {
        let mut event = Event::new("events.a", "a", "", "", json!(1));
        keys(&[(Some("k1"), 1)]).encrypt(&mut event).unwrap();
        let sealed = event.payload.clone();
        keys(&[(Some("k2"), 2)]).encrypt_again(&mut event).unwrap();
        assert_eq!(event.payload, sealed);
        assert_eq!(keys(&[(None, 1)]).encrypt(&mut event).unwrap_err().code(), 2);
        Keys::default().encrypt(&mut event).unwrap();
        assert_eq!(event.payload, sealed);
    }
}
