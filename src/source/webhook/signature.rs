//! Signatures as "Standard Webhooks" has them: HMAC-SHA256 over id, time and body.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::Refusal;
use crate::error::{EventError, Result};

/// What a secret may begin with; the rest is base64.
const SECRET_PREFIX: &str = "whsec_";
/// Fewest bytes of a secret: those that the standard asks for.
const MIN_SECRET: usize = 24;
/// Most bytes of a secret.
const MAX_SECRET: usize = 64;
/// Most signatures of one request that are looked at.
const MAX_SIGNATURES: usize = 16;
/// Longest message id in bytes.
const MAX_ID: usize = 256;

/// Checks signatures with any of several secrets.
pub(super) struct Verifier {
    /// Each with its secret worked in, so that the secret itself is kept nowhere.
    keys: Vec<Hmac<Sha256>>,
    pub(super) tolerance: Duration,
}

impl Verifier {
    pub(super) fn new(secrets: &[String], tolerance: Duration) -> Result<Self> {
        Ok(Self { keys: secrets.iter().map(|secret| key(secret)).collect::<Result<_>>()?, tolerance })
    }

    pub(super) fn is_in_use(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Checks the three headers against the body as it was sent, at this time in Unix milliseconds.
    pub(super) fn verify(
        &self,
        headers: &Signed<'_>,
        body: &[u8],
        now_ms: u64,
    ) -> std::result::Result<(), Refusal> {
        let Signed { id, timestamp, signatures } = *headers;
        // A dot would let one signature stand for another division into id and time.
        if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(|b| b.is_ascii_graphic() && b != b'.') {
            return Err(Refusal::bad_request(
                "webhook-id: must be 1 to 256 visible characters without a dot",
            ));
        }
        let is_number = timestamp.bytes().all(|b| b.is_ascii_digit());
        let seconds = timestamp.parse::<i64>().ok().filter(|_| is_number);
        let sent_ms = seconds.and_then(|seconds| u64::try_from(seconds).ok()?.checked_mul(1_000));
        let Some(sent_ms) = sent_ms else {
            return Err(Refusal::bad_request("webhook-timestamp: must be the time in Unix seconds"));
        };
        if now_ms.abs_diff(sent_ms) / 1_000 > self.tolerance.as_secs() {
            return Err(Refusal::unauthorized("webhook-timestamp: is too far from now"));
        }
        let given = signatures.split(' ').filter_map(|signature| signature.strip_prefix("v1,"));
        for signature in given.take(MAX_SIGNATURES).filter_map(|text| STANDARD.decode(text).ok()) {
            if self.keys.iter().any(|key| is_signed_with(key, headers, body, &signature)) {
                return Ok(());
            }
        }
        Err(Refusal::unauthorized("webhook-signature: none is right"))
    }
}

/// The headers of a signed request.
#[derive(Clone, Copy)]
pub(super) struct Signed<'a> {
    pub(super) id: &'a str,
    pub(super) timestamp: &'a str,
    pub(super) signatures: &'a str,
}

fn key(secret: &str) -> Result<Hmac<Sha256>> {
    let wrong = || {
        let rule = format!(
            "must be the base64 of {MIN_SECRET} to {MAX_SECRET} bytes, with or without whsec_ before it"
        );
        EventError::Config(format!("webhook secret: {rule}"))
    };
    let bytes = STANDARD.decode(secret.strip_prefix(SECRET_PREFIX).unwrap_or(secret)).map_err(|_| wrong())?;
    if !(MIN_SECRET..=MAX_SECRET).contains(&bytes.len()) {
        return Err(wrong());
    }
    Hmac::new_from_slice(&bytes).map_err(|_| wrong())
}

/// Compares in constant time.
fn is_signed_with(key: &Hmac<Sha256>, headers: &Signed<'_>, body: &[u8], signature: &[u8]) -> bool {
    let parts = [headers.id.as_bytes(), b".", headers.timestamp.as_bytes(), b".", body];
    let signed = parts.into_iter().fold(key.clone(), |mac, part| mac.chain_update(part));
    signed.verify_slice(signature).is_ok()
}

/// What a sender with this secret writes into `webhook-signature`.
#[cfg(test)]
pub(super) fn sign(secret: &str, id: &str, timestamp: &str, body: &[u8]) -> String {
    let parts = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
    let signed = parts.into_iter().fold(key(secret).unwrap(), |mac, part| mac.chain_update(part));
    format!("v1,{}", STANDARD.encode(signed.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's reference libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIMESTAMP: &str = "1614265330";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    const SENT_MS: u64 = 1_614_265_330_000;

    fn verifier(secrets: &[&str]) -> Verifier {
        let secrets: Vec<String> = secrets.iter().map(|secret| (*secret).to_owned()).collect();
        Verifier::new(&secrets, Duration::from_secs(300)).unwrap()
    }

    fn status(id: &str, timestamp: &str, signatures: &str, now_ms: u64) -> u16 {
        let headers = Signed { id, timestamp, signatures };
        match verifier(&[SECRET]).verify(&headers, BODY, now_ms) {
            Ok(()) => 200,
            Err(refusal) => refusal.status.as_u16(),
        }
    }

    #[test]
    fn the_example_of_the_reference_libraries_verifies() {
        assert_eq!(status(ID, TIMESTAMP, SIGNATURE, SENT_MS), 200);
    }

    #[test]
    fn any_change_is_refused() {
        assert_eq!(status("msg_other", TIMESTAMP, SIGNATURE, SENT_MS), 401);
        assert_eq!(status(ID, "1614265331", SIGNATURE, SENT_MS), 401);
        let headers = Signed { id: ID, timestamp: TIMESTAMP, signatures: SIGNATURE };
        assert!(verifier(&[SECRET]).verify(&headers, br#"{"test": 2432232315}"#, SENT_MS).is_err());
        let other = STANDARD.encode([9; 32]);
        assert!(verifier(&[&other]).verify(&headers, BODY, SENT_MS).is_err());
        assert!(verifier(&[&other, SECRET]).verify(&headers, BODY, SENT_MS).is_ok(), "any secret will do");
    }

    #[test]
    fn the_right_one_among_several_signatures_is_found() {
        let wrong = STANDARD.encode([1; 32]);
        for (signatures, expected) in [
            (String::new(), 401),
            ("v1,".to_owned(), 401),
            (format!("v1,{wrong}"), 401),
            (format!("v1,{wrong} {SIGNATURE}"), 200),
            (format!("v1a,{wrong} nonsense  {SIGNATURE}"), 200),
            (SIGNATURE.replace("v1,", "v2,"), 401),
            (SIGNATURE.replace("v1,", ""), 401),
            (SIGNATURE.trim_end_matches("OE=").to_owned(), 401),
            (format!("{}{SIGNATURE}", format!("v1,{wrong} ").repeat(16)), 401),
        ] {
            assert_eq!(status(ID, TIMESTAMP, &signatures, SENT_MS), expected, "{signatures}");
        }
    }

    #[test]
    fn the_time_has_to_be_near_on_both_sides() {
        for (now_ms, expected) in [
            (SENT_MS + 300_000, 200),
            (SENT_MS - 300_000, 200),
            (SENT_MS + 360_000, 401),
            (SENT_MS - 360_000, 401),
            (0, 401),
        ] {
            assert_eq!(status(ID, TIMESTAMP, SIGNATURE, now_ms), expected);
        }
        for timestamp in
            ["", "soon", "16.5", "-1614265330", "+1614265330", " 1614265330", "9223372036854775808"]
        {
            assert_eq!(status(ID, timestamp, SIGNATURE, SENT_MS), 400, "{timestamp}");
        }
        assert_eq!(status(ID, "9223372036854775", SIGNATURE, SENT_MS), 401);
    }

    #[test]
    fn an_id_that_could_be_read_in_two_ways_is_refused() {
        for id in ["", "a.b", "a b", "a\r\nb", &"i".repeat(257)] {
            assert_eq!(status(id, TIMESTAMP, SIGNATURE, SENT_MS), 400, "{id:?}");
        }
    }

    #[test]
    fn a_weak_or_unreadable_secret_is_refused_without_being_shown() {
        for secret in ["", "whsec_", "whsec_c2hvcnQ=", "not base64!", &STANDARD.encode([1; 65])] {
            let error = Verifier::new(&[secret.to_owned()], Duration::ZERO).err().unwrap().to_string();
            assert!(
                error.contains("webhook secret") && (secret.len() < 8 || !error.contains(secret)),
                "{error}"
            );
        }
    }
}
