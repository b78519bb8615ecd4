//! Permission of a receiver, after section 4 of the CloudEvents specification for webhooks ("Abuse Protection").

use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue};
use tokio::sync::OnceCell;

use super::{HttpSink, SinkFailure};
use crate::error::{EventError, Result};
use crate::headers::single;
use crate::text::shorten;
use crate::webhooks::{ALLOWED_ORIGIN, ANY_ORIGIN, ORIGIN_RULE, REQUEST_ORIGIN, is_origin};

/// Permission to send as this origin.
pub(super) struct Permission {
    pub(super) origin: HeaderValue,
    is_given: OnceCell<()>,
}

impl Permission {
    pub(super) fn of(origin: &str) -> Result<Self> {
        match HeaderValue::from_str(origin) {
            Ok(value) if is_origin(origin) => Ok(Self { origin: value, is_given: OnceCell::new() }),
            _ => Err(EventError::Config(format!("origin '{}': {ORIGIN_RULE}", shorten(origin)))),
        }
    }

    /// Asks until the receiver gives permission, and then never again. Concurrent deliveries wait for one answer.
    pub(super) async fn ask(&self, sink: &HttpSink) -> std::result::Result<(), SinkFailure> {
        self.is_given.get_or_try_init(|| self.ask_once(sink)).await.map(drop)
    }

    async fn ask_once(&self, sink: &HttpSink) -> std::result::Result<(), SinkFailure> {
        let mut headers = sink.headers.clone();
        headers.insert(REQUEST_ORIGIN, self.origin.clone());
        let response = sink.send(Method::OPTIONS, headers, Vec::new()).await?;
        // Servers answer OPTIONS for other reasons too. Only the header is consent, with any status.
        if self.is_allowed(response.headers()) {
            return Ok(());
        }
        let (status, origin) = (response.status().as_u16(), self.origin.to_str().unwrap_or_default());
        Err(SinkFailure::retry(format!("the receiver has not permitted '{origin}' to send: status {status}")))
    }

    fn is_allowed(&self, headers: &HeaderMap) -> bool {
        single(headers.get_all(ALLOWED_ORIGIN)).ok().flatten().is_some_and(|allowed| {
            allowed == ANY_ORIGIN || allowed.as_bytes().eq_ignore_ascii_case(self.origin.as_bytes())
        })
    }
}
