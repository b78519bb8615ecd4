//! Signatures after [Standard Webhooks](https://www.standardwebhooks.com), by which a receiver knows who has sent.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::error::{EventError, Result};
use crate::hash::fnv1a_128;

/// What a secret begins with.
const PREFIX: &str = "whsec_";
/// Lengths of a key that the specification allows, in bytes.
const KEY_LEN: std::ops::RangeInclusive<usize> = 24..=64;

/// Signs with one key or, while one is replaced, with several.
#[derive(Clone, Default)]
pub(super) struct Signer {
    keys: Vec<Hmac<Sha256>>,
}

impl Signer {
    /// Adds a secret: `whsec_` and the key in base64.
    pub(super) fn add(&mut self, secret: &str) -> Result<()> {
        let wrong = |rule: &str| Err(EventError::Config(format!("signing secret: {rule}")));
        let encoded = secret.strip_prefix(PREFIX).unwrap_or(secret);
        let Ok(key) = STANDARD.decode(encoded).map(Zeroizing::new) else {
            return wrong("must be whsec_ and standard base64");
        };
        if !KEY_LEN.contains(&key.len()) {
            return wrong("the key must have between 24 and 64 bytes");
        }
        match Hmac::new_from_slice(&key) {
            Ok(key) => self.keys.push(key),
            Err(_) => return wrong("the key has a wrong length"),
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The value of `webhook-signature`: one signature per key.
    pub(super) fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let signature = |key: &Hmac<Sha256>| {
            let mut mac = key.clone();
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        };
        let signatures: Vec<String> = self.keys.iter().map(signature).collect();
        signatures.join(" ")
    }
}

/// The value of `webhook-id`: the same for each attempt to deliver an event. An id of other characters than those of a
/// message id, a dot above all, would make the signed text ambiguous: its hash stands for it.
pub(super) fn message_id(source: &str, event_id: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if (1..=128).contains(&event_id.len()) && event_id.bytes().all(is_plain) {
        return event_id.to_owned();
    }
    format!("evt-{:032x}", fnv1a_128(&[source, event_id]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification.
    #[test]
    fn the_signature_is_the_published_one() {
        let mut signer = Signer::default();
        signer.add("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        signer.add("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_eq!(signer.sign("a", 1, b"").split(' ').count(), 2);
    }

    #[test]
    fn a_bad_secret_is_refused_and_not_shown() {
        for secret in ["", "whsec_", "whsec_short", "whsec_?canary?", &"A".repeat(200)] {
            let text = Signer::default().add(secret).unwrap_err().to_string();
            assert!(!text.contains("canary"), "{text}");
        }
    }

    #[test]
    fn an_id_without_dots_stays_and_another_one_is_hashed() {
        assert_eq!(message_id("s", "evt-0199_x"), "evt-0199_x");
        let hashed = ["a.b", "", "é", "a\r\nb"].map(|id| message_id("s", id));
        assert!(hashed.iter().all(|id| id.len() == 36 && !id.contains('.')), "{hashed:?}");
        assert_ne!(message_id("s", "a.b"), message_id("t", "a.b"));
    }
}
