//! Permission to send, after section 4 of the CloudEvents specification for webhooks ("Abuse Protection").

use std::num::NonZeroU32;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::{Refusal, text};
use crate::error::{EventError, Result};
use crate::text::shorten;
use crate::webhooks::{ALLOWED_ORIGIN, ANY_ORIGIN, ORIGIN_RULE, REQUEST_ORIGIN, is_origin};

const REQUEST_RATE: &str = "webhook-request-rate";
const ALLOWED_RATE: &str = "webhook-allowed-rate";
/// Unlimited rate.
const ANY_RATE: &str = "*";

/// Senders that get permission.
#[derive(Debug, Default)]
pub(super) struct Origins {
    pub(super) allowed: Vec<String>,
    pub(super) rate: Option<NonZeroU32>,
}

impl Origins {
    pub(super) fn check(&self) -> Result<()> {
        match self.allowed.iter().find(|origin| *origin != ANY_ORIGIN && !is_origin(origin)) {
            None => Ok(()),
            Some(origin) => Err(EventError::Config(format!(
                "webhook origin '{}': {ORIGIN_RULE}, or {ANY_ORIGIN}",
                shorten(origin)
            ))),
        }
    }

    /// Returns true if senders may ask for permission.
    pub(super) fn are_asked(&self) -> bool {
        !self.allowed.is_empty()
    }

    /// Answers a request for permission.
    pub(super) fn permit(&self, headers: &HeaderMap) -> std::result::Result<Response, Refusal> {
        let wrong_rate = "webhook-request-rate: must be a whole number of requests per minute, at least 1";
        let asked = match headers.contains_key(REQUEST_RATE) {
            false => None,
            true => {
                Some(text(headers, REQUEST_RATE).and_then(rate_of).ok_or(Refusal::bad_request(wrong_rate))?)
            }
        };
        let origin = text(headers, REQUEST_ORIGIN)
            .filter(|origin| is_origin(origin))
            .ok_or(Refusal::bad_request("webhook-request-origin: must be given once, as a DNS name"))?;
        let is_allowed = |allowed: &String| allowed == ANY_ORIGIN || allowed.eq_ignore_ascii_case(origin);
        if !self.allowed.iter().any(is_allowed) {
            return Err(Refusal::new(StatusCode::FORBIDDEN, "webhook-request-origin: is not allowed"));
        }
        let mut response = StatusCode::NO_CONTENT.into_response();
        let rate =
            self.rate.into_iter().chain(asked).min().map_or(ANY_RATE.to_owned(), |rate| rate.to_string());
        for (name, value) in [(ALLOWED_ORIGIN, origin), (ALLOWED_RATE, &rate), ("allow", "POST")] {
            let value = HeaderValue::from_str(value)
                .map_err(|_| Refusal::bad_request("webhook-request-origin: cannot be sent in a header"))?;
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
        Ok(response)
    }
}

/// Parses a rate. It accepts only digits, so `+1` and ` 1` are refused.
fn rate_of(text: &str) -> Option<NonZeroU32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}
