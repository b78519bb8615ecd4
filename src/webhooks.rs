//! Common parts of the HTTP sink and the webhook receiver: the permission to send, and signatures. Signatures follow
//! [Standard Webhooks](https://www.standardwebhooks.com): HMAC-SHA256 over id, time and body.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::error::{EventError, Result};

/// Optional prefix of a secret; the rest is base64.
const PREFIX: &str = "whsec_";
/// Allowed lengths of a key in bytes, from the specification.
const KEY_LEN: std::ops::RangeInclusive<usize> = 24..=64;
/// Header that names the sender who asks for permission, from section 4 ("Abuse Protection") of the CloudEvents
/// specification for webhooks.
pub(crate) const REQUEST_ORIGIN: &str = "webhook-request-origin";
/// Header that names the permitted sender.
pub(crate) const ALLOWED_ORIGIN: &str = "webhook-allowed-origin";
/// Value that permits all origins.
pub(crate) const ANY_ORIGIN: &str = "*";
/// Rule for an origin.
pub(crate) const ORIGIN_RULE: &str = "must be a DNS name of at most 253 characters";

/// Returns true if the text is a valid origin.
pub(crate) fn is_origin(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-';
    (1..=253).contains(&text.len()) && text.bytes().all(is_plain)
}

/// Prefix of a signature of this scheme.
pub(crate) const SCHEME: &str = "v1,";

/// An HMAC state initialized with a secret. The secret itself is not kept.
#[derive(Clone)]
pub(crate) struct SigningKey(Hmac<Sha256>);

impl SigningKey {
    /// Parses a secret: base64 of 24 to 64 bytes, with or without `whsec_`. The error names the `setting` and shows
    /// nothing of the secret.
    pub(crate) fn parse(setting: &str, secret: &str) -> Result<Self> {
        let wrong = || {
            EventError::Config(format!(
                "{setting}: must be the standard base64 of {} to {} bytes, with or without {PREFIX} before it",
                KEY_LEN.start(),
                KEY_LEN.end()
            ))
        };
        let encoded = secret.strip_prefix(PREFIX).unwrap_or(secret);
        let key = STANDARD.decode(encoded).map(Zeroizing::new).map_err(|_| wrong())?;
        if !KEY_LEN.contains(&key.len()) {
            return Err(wrong());
        }
        Hmac::new_from_slice(&key).map(Self).map_err(|_| wrong())
    }

    /// Returns the signature in the form of the header `webhook-signature`.
    #[cfg(any(feature = "http", test))]
    pub(crate) fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        let signature = self.over(id, timestamp, body).finalize().into_bytes();
        format!("{SCHEME}{}", STANDARD.encode(signature))
    }

    /// Returns true if `signature` holds the bytes of the signature. Compares in constant time.
    #[cfg(any(feature = "webhook", test))]
    pub(crate) fn is_signature(&self, signature: &[u8], id: &str, timestamp: &str, body: &[u8]) -> bool {
        self.over(id, timestamp, body).verify_slice(signature).is_ok()
    }

    fn over(&self, id: &str, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
        let parts = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
        parts.into_iter().fold(self.0.clone(), Mac::chain_update)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The example of the specification's reference libraries.
    pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    pub(crate) const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    pub(crate) const TIMESTAMP: &str = "1614265330";
    pub(crate) const BODY: &[u8] = br#"{"test": 2432232314}"#;
    pub(crate) const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    #[test]
    fn the_signature_is_the_published_one() {
        for secret in [SECRET, &SECRET[PREFIX.len()..]] {
            let key = SigningKey::parse("secret", secret).unwrap();
            assert_eq!(key.sign(ID, TIMESTAMP, BODY), SIGNATURE);
            let signature = STANDARD.decode(&SIGNATURE[SCHEME.len()..]).unwrap();
            assert!(key.is_signature(&signature, ID, TIMESTAMP, BODY));
            assert!(!key.is_signature(&signature, ID, TIMESTAMP, b""));
            assert!(!key.is_signature(&signature[1..], ID, TIMESTAMP, BODY));
        }
    }

    #[test]
    fn a_secret_that_is_weak_or_cannot_be_read_is_refused_and_not_shown() {
        let [short, long] = [23, 65].map(|len| STANDARD.encode(vec![1; len]));
        for secret in ["", "whsec_", "whsec_?canary?", "canary", &short, &long, &format!("whsec_{short}")] {
            let error = SigningKey::parse("signing secret", secret).err().unwrap().to_string();
            assert!(error.contains("signing secret: must be"), "{error}");
            assert!(!error.contains("canary") && (secret.len() < 8 || !error.contains(secret)), "{error}");
        }
        for len in [24, 64] {
            SigningKey::parse("signing secret", &STANDARD.encode(vec![1; len])).unwrap();
        }
    }
}
