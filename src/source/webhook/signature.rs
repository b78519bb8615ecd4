//! Verifies the signatures of requests, after Standard Webhooks.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Refusal;
use crate::error::Result;
use crate::webhooks::{SCHEME, SigningKey};

/// Maximum number of signatures of one request that are checked.
const MAX_SIGNATURES: usize = 16;
/// Maximum length of a message id in bytes.
const MAX_ID: usize = 256;

/// Verifies signatures with any of several secrets.
pub(super) struct Verifier {
    keys: Vec<SigningKey>,
    tolerance: Duration,
}

impl Verifier {
    pub(super) fn new(secrets: &[String], tolerance: Duration) -> Result<Self> {
        let keys = secrets.iter().map(|secret| SigningKey::parse("webhook secret", secret));
        Ok(Self { keys: keys.collect::<Result<_>>()?, tolerance })
    }

    pub(super) fn is_in_use(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Verifies the three headers against the body as it was sent. `now_ms` is the current time in Unix milliseconds.
    pub(super) fn verify(
        &self,
        headers: &Signed<'_>,
        body: &[u8],
        now_ms: u64,
    ) -> std::result::Result<(), Refusal> {
        let Signed { id, timestamp, signatures } = *headers;
        // With a dot, a signature would also be valid for another division into id and time.
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
            return Err(Refusal::unauthorized("webhook-timestamp: differs too much from the current time"));
        }
        let given = signatures.split(' ').filter_map(|signature| signature.strip_prefix(SCHEME));
        for signature in given.take(MAX_SIGNATURES).filter_map(|text| STANDARD.decode(text).ok()) {
            if self.keys.iter().any(|key| key.is_signature(&signature, id, timestamp, body)) {
                return Ok(());
            }
        }
        Err(Refusal::unauthorized("webhook-signature: no signature is valid"))
    }
}

/// Headers of a signed request.
#[derive(Clone, Copy)]
pub(super) struct Signed<'a> {
    pub(super) id: &'a str,
    pub(super) timestamp: &'a str,
    pub(super) signatures: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhooks::tests::{BODY, ID, SECRET, SIGNATURE, TIMESTAMP};

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
}
