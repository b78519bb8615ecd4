//! Signatures of requests, by which a receiver authenticates the sender.

use crate::error::Result;
use crate::hash::fnv1a_128;
use crate::webhooks::SigningKey;

/// Signs with one key or, during a rotation, with several.
#[derive(Clone, Default)]
pub(super) struct Signer {
    keys: Vec<SigningKey>,
}

impl Signer {
    pub(super) fn add(&mut self, secret: &str) -> Result<()> {
        self.keys.push(SigningKey::parse("signing secret", secret)?);
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns the value of `webhook-signature`, with one signature per key.
    pub(super) fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        let signatures: Vec<String> = self.keys.iter().map(|key| key.sign(id, timestamp, body)).collect();
        signatures.join(" ")
    }
}

/// Returns the value of `webhook-id`, which is the same for each attempt to deliver an event. An event id with
/// characters that a message id does not allow, such as a dot, would make the signed text ambiguous. Its hash is used
/// instead.
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
    use crate::webhooks::tests::{BODY, ID, SECRET, SIGNATURE, TIMESTAMP};

    #[test]
    fn each_key_gives_a_signature() {
        let mut signer = Signer::default();
        assert!(signer.is_empty());
        signer.add(SECRET).unwrap();
        assert_eq!(signer.sign(ID, TIMESTAMP, BODY), SIGNATURE);
        signer.add("whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX").unwrap();
        let signed = signer.sign(ID, TIMESTAMP, BODY);
        let (first, second) = signed.split_once(' ').unwrap();
        assert!(first == SIGNATURE && second.starts_with("v1,") && second != SIGNATURE, "{signed}");
        assert!(signer.add("whsec_short").is_err());
    }

    #[test]
    fn an_id_without_dots_stays_and_another_one_is_hashed() {
        assert_eq!(message_id("s", "evt-0199_x"), "evt-0199_x");
        let hashed = ["a.b", "", "é", "a\r\nb"].map(|id| message_id("s", id));
        assert!(hashed.iter().all(|id| id.len() == 36 && !id.contains('.')), "{hashed:?}");
        assert_ne!(message_id("s", "a.b"), message_id("t", "a.b"));
    }
}
