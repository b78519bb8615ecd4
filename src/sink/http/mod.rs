//! A sink that posts CloudEvents to a URL.

mod builder;
mod client;
mod guard;
mod permission;
mod resolver;
mod signature;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, Url};

pub use builder::HttpSinkBuilder;

use self::guard::{Allowed, Blocked};
use self::permission::Permission;
use self::signature::{Signer, message_id};
use super::{EventSink, PayloadForm, SinkFailure};
use crate::clock::unix_millis;
use crate::cloudevents::http::{self, ContentMode};
use crate::cloudevents::{BoundMessage, CloudEvent};
use crate::error::Result;
use crate::headers::single;
use crate::text::shorten;
use crate::types::Event;
use crate::webhooks::REQUEST_ORIGIN;

/// Maximum number of bytes that are read of a response.
const MAX_RESPONSE: usize = 64 * 1024;
/// Timeout for reading the body of a response.
const DRAIN: Duration = Duration::from_secs(1);
/// Delay before a retry after a certificate error, which needs manual repair.
const RETRY_TLS_AFTER: Duration = Duration::from_secs(30);
/// Maximum delay that a receiver can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3_600);

/// Posts events as CloudEvents to a URL.
///
/// | answer | effect |
/// |---|---|
/// | 2xx | the event is taken |
/// | 410 | the receiver wants no more events: this sink is disabled and fails from now on |
/// | 404, 408, 409, 425, 429, 5xx | retried, after `Retry-After` if present, at most an hour |
/// | 3xx | fails; redirects are never followed |
/// | other | fails without a retry |
/// | none within the timeout | retried |
/// | a certificate that is not trusted, expired, or of another name | retried after 30 s |
///
/// The sink is **closed by default**. It connects by https only, to ports 80 and 443 and to public addresses. This
/// applies to addresses in the URL, in any spelling, and to addresses that a name resolves to. The sink looks a name up
/// for each connection, checks every address, and connects to a checked one. It uses no proxy of the environment. You
/// can [allow](HttpSinkBuilder::allow_network) internal targets one by one.
///
/// ```
/// use a3s_event::sink::HttpSink;
///
/// let sink = HttpSink::builder("orders-hook", "https://hooks.example.com/orders")
///     .sign_with("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
///     .header("authorization", "Bearer secret")
///     .build()?;
///
/// for url in ["https://localhost/", "https://169.254.169.254/", "https://0x7f.1/", "ftp://example.com/"] {
///     assert!(HttpSink::builder("no", url).build().is_err());
/// }
/// # Ok::<(), a3s_event::EventError>(())
/// ```
pub struct HttpSink {
    name: String,
    url: Url,
    client: Client,
    allowed: Allowed,
    mode: ContentMode,
    headers: HeaderMap,
    signer: Signer,
    permission: Option<Permission>,
    timeout: Duration,
    payload: PayloadForm,
    is_disabled: AtomicBool,
}

impl HttpSink {
    /// Returns a builder for a sink that posts to this URL.
    pub fn builder(name: impl Into<String>, url: impl Into<String>) -> HttpSinkBuilder {
        HttpSinkBuilder::new(name.into(), url.into())
    }

    /// Returns true if the receiver has answered that it wants no more events.
    pub fn is_disabled(&self) -> bool {
        self.is_disabled.load(Ordering::Relaxed)
    }

    /// Enables the sink again after the receiver wanted no more events.
    pub fn enable(&self) {
        self.is_disabled.store(false, Ordering::Relaxed);
    }

    fn message(&self, event: &Event) -> Result<BoundMessage> {
        let event = CloudEvent::from(event.clone());
        match self.mode {
            ContentMode::Structured => http::to_structured(&event),
            _ => http::to_binary(&event),
        }
    }

    fn headers(&self, event: &Event, message: &BoundMessage) -> std::result::Result<HeaderMap, SinkFailure> {
        let mut headers = self.headers.clone();
        for (name, value) in &message.headers {
            set(&mut headers, name, value)?;
        }
        if !self.signer.is_empty() {
            let id = message_id(&event.source, &event.id);
            let timestamp = (unix_millis() / 1_000).to_string();
            let body = message.body.as_deref().unwrap_or_default();
            set(&mut headers, "webhook-signature", &self.signer.sign(&id, &timestamp, body))?;
            set(&mut headers, "webhook-timestamp", &timestamp)?;
            set(&mut headers, "webhook-id", &id)?;
        }
        if let Some(permission) = &self.permission {
            headers.insert(REQUEST_ORIGIN, permission.origin.clone());
        }
        Ok(headers)
    }

    /// Sends a request if the target is allowed, and waits for the head of the response.
    async fn send(
        &self,
        method: Method,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> std::result::Result<Response, SinkFailure> {
        self.allowed.check_host(&self.url).map_err(|blocked| SinkFailure::fatal(blocked.to_string()))?;
        let request = self.client.request(method, self.url.clone()).headers(headers).body(body);
        let late = |_| SinkFailure::retry(format!("no answer within {:?}", self.timeout));
        let sent = tokio::time::timeout(self.timeout, request.send()).await.map_err(late)?;
        sent.map_err(|error| failure_of(&error))
    }

    async fn post(&self, event: &Event) -> std::result::Result<(), SinkFailure> {
        if self.is_disabled() {
            return Err(SinkFailure::fatal("disabled: the receiver answered 410"));
        }
        let message = self.message(event).map_err(|error| SinkFailure::fatal(error.to_string()))?;
        let headers = self.headers(event, &message)?;
        if let Some(permission) = &self.permission {
            permission.ask(self).await?;
        }
        let response = self.send(Method::POST, headers, message.body.unwrap_or_default()).await?;
        let (status, after) = (response.status(), retry_after(response.headers()));
        if status.is_success() {
            // A connection can be reused after its response was read to the end.
            let _ = tokio::time::timeout(DRAIN, start_of(response)).await;
            return Ok(());
        }
        if status == StatusCode::GONE {
            self.is_disabled.store(true, Ordering::Relaxed);
            tracing::warn!(sink = self.name, "the receiver answered 410: sink disabled");
        }
        let text = tokio::time::timeout(DRAIN, start_of(response)).await.unwrap_or_default();
        let reason = match self.quotable(text.trim()) {
            Some(text) => format!("status {}: {}", status.as_u16(), shorten(&text)),
            None => format!("status {}", status.as_u16()),
        };
        let failure =
            if is_retried(status) { SinkFailure::retry(reason) } else { SinkFailure::fatal(reason) };
        Err(match after.filter(|_| failure.is_retryable()) {
            Some(delay) => failure.retry_after(delay),
            None => failure,
        })
    }
}

impl HttpSink {
    /// Returns the text of an answer for errors and dead letters. A receiver may quote the request, so secrets are
    /// masked: the values of headers, and the path and query of the URL. Returns `None` for an empty answer, and if
    /// payloads are sent in clear.
    fn quotable(&self, answer: &str) -> Option<String> {
        if self.payload == PayloadForm::Clear || answer.is_empty() {
            return None;
        }
        let headers = self.headers.values().filter_map(|value| value.to_str().ok());
        // The value, and the part of it after a scheme.
        let in_headers = headers.flat_map(|value| [value, value.rsplit(' ').next().unwrap_or_default()]);
        let in_url = [self.url.query().unwrap_or_default(), self.url.path().trim_matches('/')];
        let secrets = in_headers.chain(in_url).filter(|secret| !secret.is_empty());
        Some(secrets.fold(answer.to_owned(), |answer, secret| answer.replace(secret, "***")))
    }
}

#[async_trait]
impl EventSink for HttpSink {
    async fn deliver(&self, event: &Event) -> Result<()> {
        self.post(event).await.map_err(|failure| failure.into_error(&*self.name))
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn payload(&self) -> PayloadForm {
        self.payload
    }
}

/// Shows the host of the URL, but no headers and no secrets.
impl fmt::Debug for HttpSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpSink")
            .field("name", &self.name)
            .field("host", &self.url.host_str())
            .field("mode", &self.mode)
            .field("is_signed", &!self.signer.is_empty())
            .field("is_disabled", &self.is_disabled())
            .finish_non_exhaustive()
    }
}

fn set(headers: &mut HeaderMap, name: &str, value: &str) -> std::result::Result<(), SinkFailure> {
    let refused = || SinkFailure::fatal(format!("header '{}' cannot be encoded", shorten(name)));
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused())?;
    let value = HeaderValue::from_str(value).map_err(|_| refused())?;
    headers.insert(name, value);
    Ok(())
}

/// Returns true for the retry classes of Knative Eventing, and for the status "too early".
fn is_retried(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 404 | 408 | 409 | 425 | 429)
}

/// Reads seconds or a date. A date in the past means now.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = single(headers.get_all(RETRY_AFTER)).ok()??;
    let seconds = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number with more digits than fit exceeds the maximum anyway.
        text.parse().unwrap_or(u64::MAX)
    } else {
        let at = http_date(text)?;
        let at = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        at.saturating_sub(unix_millis() / 1_000)
    };
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

/// Parses a date in one of the three forms of RFC 9110, section 5.6.7.
fn http_date(text: &str) -> Option<SystemTime> {
    let of_this_century = || {
        // The form of RFC 850 has a two-digit year, and the parser reads 70 to 99 as 1970 to 1999.
        let (weekday, date_and_time) = text.split_once(", ")?;
        let (date, time) = date_and_time.split_once(' ')?;
        let (day, month_and_year) = date.split_once('-')?;
        let (month, year) = month_and_year.split_once('-')?;
        let weekday = weekday.get(..3)?;
        httpdate::parse_http_date(&format!("{weekday}, {day} {month} 20{year} {time}")).ok()
    };
    httpdate::parse_http_date(text).ok().or_else(of_this_century)
}

/// Reads the beginning of the body, up to the limit.
async fn start_of(mut response: Response) -> String {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(chunk.get(..MAX_RESPONSE.saturating_sub(body.len())).unwrap_or(&chunk));
        if body.len() >= MAX_RESPONSE {
            break;
        }
    }
    String::from_utf8_lossy(&body).into_owned()
}

/// Returns the failure for a request without a response. A blocked target is fatal; the rest can be retried.
fn failure_of(error: &reqwest::Error) -> SinkFailure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    let mut last = "no answer".to_owned();
    while let Some(found) = cause {
        if let Some(blocked) = found.downcast_ref::<Blocked>() {
            return SinkFailure::fatal(blocked.to_string());
        }
        if let Some(error) = tls_error(found)
            && matches!(error, rustls::Error::InvalidCertificate(_))
        {
            return SinkFailure::retry(format!("request failed: {error}")).retry_after(RETRY_TLS_AFTER);
        }
        last = found.to_string();
        cause = found.source();
    }
    SinkFailure::retry(format!("request failed: {last}"))
}

/// Finds the TLS error in an I/O error, which does not return what it wraps as its source.
fn tls_error<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    while let Some(wrapped) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        error = wrapped;
    }
    error.downcast_ref()
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;
