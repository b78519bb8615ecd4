//! The permission of a receiver, after section 4 of the CloudEvents specification for webhooks ("Abuse Protection").

use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue};
use tokio::sync::OnceCell;

use super::{HttpSink, SinkFailure};
use crate::error::{EventError, Result, shorten};

pub(super) const REQUEST_ORIGIN: &str = "webhook-request-origin";
const ALLOWED_ORIGIN: &str = "webhook-allowed-origin";
/// Longest DNS name.
const MAX_ORIGIN_LEN: usize = 253;

/// The permission to send as this origin.
pub(super) struct Permission {
    pub(super) origin: HeaderValue,
    is_given: OnceCell<()>,
}

impl Permission {
    pub(super) fn of(origin: &str) -> Result<Self> {
        let is_name = (1..=MAX_ORIGIN_LEN).contains(&origin.len())
            && origin.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-');
        match HeaderValue::from_str(origin) {
            Ok(value) if is_name => Ok(Self { origin: value, is_given: OnceCell::new() }),
            _ => Err(EventError::Config(format!(
                "origin '{}': must be a DNS name of at most {MAX_ORIGIN_LEN} characters",
                shorten(origin)
            ))),
        }
    }

    /// Asks until it is given, and then no more. Deliveries that run at the same time wait for one answer.
    pub(super) async fn ask(&self, sink: &HttpSink) -> std::result::Result<(), SinkFailure> {
        self.is_given.get_or_try_init(|| self.ask_once(sink)).await.map(drop)
    }

    async fn ask_once(&self, sink: &HttpSink) -> std::result::Result<(), SinkFailure> {
        let mut headers = sink.headers.clone();
        headers.insert(REQUEST_ORIGIN, self.origin.clone());
        let response = sink.send(Method::OPTIONS, headers, Vec::new()).await?;
        // Servers answer OPTIONS for other reasons too: only the header is consent, whatever the status.
        if self.is_allowed(response.headers()) {
            return Ok(());
        }
        let (status, origin) = (response.status().as_u16(), self.origin.to_str().unwrap_or_default());
        Err(SinkFailure::retry(format!("the receiver has not permitted '{origin}' to send: status {status}")))
    }

    fn is_allowed(&self, headers: &HeaderMap) -> bool {
        headers
            .get_all(ALLOWED_ORIGIN)
            .iter()
            .any(|allowed| allowed == "*" || allowed.as_bytes().eq_ignore_ascii_case(self.origin.as_bytes()))
    }
}
