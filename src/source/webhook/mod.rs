//! Webhook receiver: an axum router that takes CloudEvents and signed JSON.
//!
//! A [`WebhookReceiver`] takes `POST` requests on one path. It checks token, size and signature before the content, so
//! that requests of unknown senders cost little. It takes:
//!
//! - CloudEvents in binary, structured and batched mode;
//! - any other JSON (`application/json` or `…/…+json`), which becomes the payload of one event.
//!
//! Signatures are those of [Standard Webhooks](https://www.standardwebhooks.com): `webhook-id`, `webhook-timestamp` and
//! `webhook-signature` (HMAC-SHA256). The receiver accepts a limited range of times, supports several secrets for
//! rotation, and remembers a limited number of request ids.
//!
//! | answer | reason |
//! |---|---|
//! | 202 | taken; with [`publish_to`](WebhookReceiverBuilder::publish_to), stored |
//! | 200 | a signed request with this id was taken before; it is not taken again |
//! | 400 | the content or a header cannot be read |
//! | 401 | the token or signature is missing or wrong, or the time is too far from now |
//! | 408 | the body did not arrive in time |
//! | 409 | a request with this id is in progress |
//! | 413 | the body or the batch is too large |
//! | 415 | the content type or encoding is not supported |
//! | 503 | the receiver cannot take the request now; the sender should retry |
//!
//! A sender can ask for permission first, with the `OPTIONS` request of the CloudEvents webhook specification. It gets
//! permission if its origin is [allowed](WebhookReceiverBuilder::allow_origin). The receiver does not call a callback
//! that the sender offers. Permission is not authentication: requests need their token or signature all the same.
//!
//! Limits of a connection, such as the size of headers or slow clients, are up to the server that serves the router.

mod builder;
mod permission;
mod refusal;
mod replay;
mod signature;
mod window;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

pub use builder::WebhookReceiverBuilder;

use self::permission::Origins;
use self::refusal::{Refusal, is_refusal};
use self::replay::{SeenIds, Started};
use self::signature::{Signed, Verifier};
use super::{EventSource, Stop, WebhookSource};
use crate::bus::EventBus;
use crate::clock::unix_millis;
use crate::cloudevents::{AcceptedFormats, CloudEvent, TIMESTAMP, http, is_json, is_utf8};
use crate::error::{EventError, Result};
use crate::hash::fnv1a_128;
use crate::headers::{list, single};
use crate::json;
use crate::poison::IgnorePoison;
use crate::provider::PublishRequest;
use crate::reserved::is_reserved;
use crate::subject::validate_subject;
use crate::trace::{TRACEPARENT, TRACESTATE, TraceContext};
use crate::types::{Event, PublishOptions};

/// Default maximum size of a body in bytes.
pub const DEFAULT_MAX_BODY: usize = 1024 * 1024;
/// Default range in which the time of a signed request may differ from now, in both directions. It is smaller if the
/// deduplication window of the bus is [too short](WebhookReceiverBuilder::tolerance) for it.
pub const DEFAULT_TOLERANCE: Duration = Duration::from_secs(300);
/// Metadata key of the original subject of a CloudEvent that was published under another one.
pub const ORIGINAL_SUBJECT: &str = "webhook_subject";
/// Metadata key of the id of a signed request.
pub const WEBHOOK_ID: &str = "webhook_id";

/// Receives webhooks on one path. Its `Debug` output shows no secret.
///
/// ```
/// use std::sync::Arc;
/// use a3s_event::source::webhook::WebhookReceiver;
/// use a3s_event::{EventBus, MemoryProvider};
///
/// # fn main() -> a3s_event::Result<()> {
/// let bus = Arc::new(EventBus::new(MemoryProvider::default()));
/// let receiver = WebhookReceiver::builder("orders", "/hooks/orders")
///     .secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
///     .publish_to(bus)
///     .build()?;
/// // Serve it with axum, alone or merged into the program's own router.
/// let router: axum::Router = receiver.router();
/// # let _ = router;
/// # Ok(())
/// # }
/// ```
pub struct WebhookReceiver {
    name: String,
    path: String,
    subject: String,
    category: String,
    keep_subjects: bool,
    verifier: Verifier,
    /// Hashes of the tokens. The time of a comparison reveals nothing about the tokens.
    tokens: Vec<[u8; 32]>,
    origins: Origins,
    taken: SeenIds,
    max_body: usize,
    timeout: Duration,
    bus: Option<Arc<EventBus>>,
    /// Channel for the events while [`start`](EventSource::start) runs.
    sender: Mutex<Option<mpsc::Sender<Event>>>,
    stop: Stop,
}

impl WebhookReceiver {
    /// Returns a builder for a receiver with this name on this path.
    pub fn builder(name: impl Into<String>, path: impl Into<String>) -> WebhookReceiverBuilder {
        WebhookReceiverBuilder::new(name.into(), path.into())
    }

    /// Returns a router with the one path. Serve it alone or merge it into another router.
    pub fn router(self: &Arc<Self>) -> Router {
        let receiver = Arc::clone(self);
        let receive = move |request: Request| {
            let receiver = Arc::clone(&receiver);
            async move { receiver.receive(request).await }
        };
        let mut methods = axum::routing::post(receive);
        if self.origins.are_asked() {
            let receiver = Arc::clone(self);
            methods = methods.options(move |headers: HeaderMap| {
                let answer = receiver.answer(receiver.origins.permit(&headers));
                std::future::ready(answer)
            });
        }
        Router::new().route(&self.path, methods)
    }

    async fn receive(&self, request: Request) -> Response {
        let taken = self.take(request).await;
        self.answer(taken)
    }

    fn answer(&self, outcome: std::result::Result<impl IntoResponse, Refusal>) -> Response {
        match outcome {
            Ok(response) => response.into_response(),
            Err(refusal) => {
                tracing::debug!(
                    source = self.name,
                    status = refusal.status.as_u16(),
                    reason = &*refusal.reason,
                    "webhook request refused"
                );
                refusal.into_response()
            }
        }
    }

    async fn take(&self, request: Request) -> std::result::Result<StatusCode, Refusal> {
        if self.stop.is_set() {
            return Err(Refusal::unavailable("the receiver was stopped"));
        }
        let (parts, body) = request.into_parts();
        let headers = parts.headers;
        self.check_token(&headers)?;
        check_encoding(&headers)?;
        let body = self.read(body).await?;
        if !self.verifier.is_in_use() {
            self.hand_on(self.events(&headers, &body, None)?, None).await?;
            return Ok(StatusCode::ACCEPTED);
        }
        let signed = signed(&headers)?;
        self.verifier.verify(&signed, &body, unix_millis())?;
        match self.taken.begin(signed.id) {
            Started::Done => Ok(StatusCode::OK),
            Started::InWork => {
                Err(Refusal::new(StatusCode::CONFLICT, "webhook-id: a request with this id is in progress"))
            }
            Started::New(taking) => {
                self.hand_on(self.events(&headers, &body, Some(signed.id))?, Some(signed.id)).await?;
                taking.done();
                Ok(StatusCode::ACCEPTED)
            }
        }
    }

    fn check_token(&self, headers: &HeaderMap) -> std::result::Result<(), Refusal> {
        if self.tokens.is_empty() {
            return Ok(());
        }
        let given = text(headers, header::AUTHORIZATION.as_str())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let is_known = given.is_some_and(|(_, token)| self.tokens.contains(&digest(token.trim())));
        if is_known {
            Ok(())
        } else {
            Err(Refusal::unauthorized("authorization: needs a valid bearer token"))
        }
    }

    async fn read(&self, body: Body) -> std::result::Result<Bytes, Refusal> {
        let too_large = || Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large");
        let limit = u64::try_from(self.max_body).unwrap_or(u64::MAX);
        if body.size_hint().lower() > limit {
            return Err(too_large());
        }
        match tokio::time::timeout(self.timeout, to_bytes(body, self.max_body)).await {
            Err(_elapsed) => {
                Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"))
            }
            Ok(Ok(body)) => Ok(body),
            Ok(Err(error)) if is_length_limit(&error) => Err(too_large()),
            Ok(Err(_)) => Err(Refusal::bad_request("the body is incomplete")),
        }
    }

    /// Returns the events of a request.
    fn events(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        webhook_id: Option<&str>,
    ) -> std::result::Result<Vec<Event>, Refusal> {
        let content_type = single(headers.get_all(header::CONTENT_TYPE)).map_err(|unreadable| {
            Refusal::new(StatusCode::BAD_REQUEST, format!("content-type: {}", unreadable.rule()))
        })?;
        if content_type.is_some_and(|content_type| !is_utf8(content_type)) && is_json(content_type) {
            return Err(Refusal::unsupported("content-type: JSON must be UTF-8"));
        }
        let pairs = || headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let mode = http::mode(content_type);
        let is_cloud_event = mode != http::ContentMode::Binary || headers.contains_key("ce-specversion");
        let mut events = if !is_cloud_event {
            vec![self.plain(content_type, body)?]
        } else if mode == http::ContentMode::Batch {
            let batch = http::from_batch(pairs(), body, AcceptedFormats::Conformant).map_err(Refusal::of)?;
            batch.into_iter().map(|event| self.own(event)).collect::<std::result::Result<_, _>>()?
        } else {
            vec![
                self.own(
                    http::from_message(pairs(), body, AcceptedFormats::Conformant).map_err(Refusal::of)?,
                )?,
            ]
        };
        let context = context(headers);
        for event in &mut events {
            if let Some(id) = webhook_id {
                event.metadata.insert(WEBHOOK_ID.to_owned(), id.to_owned());
            }
            if let Some(context) = &context {
                context.add_to(&mut event.metadata);
            }
        }
        Ok(events)
    }

    fn plain(&self, content_type: Option<&str>, body: &[u8]) -> std::result::Result<Event, Refusal> {
        if content_type.is_none() || !is_json(content_type) {
            return Err(Refusal::unsupported("content-type: must be JSON in UTF-8 or a CloudEvent"));
        }
        let payload = json::from_slice(body).map_err(|error| {
            Refusal::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}"))
        })?;
        Ok(Event::new(&self.subject, &self.category, "", &self.name, payload))
    }

    /// Converts a CloudEvent into an event of this receiver.
    fn own(&self, event: CloudEvent) -> std::result::Result<Event, Refusal> {
        let has_time = event.time.is_some() || event.extensions.contains_key(TIMESTAMP);
        let mut event = Event::try_from(event).map_err(Refusal::of)?;
        let is_below = event.subject.strip_prefix(&self.subject).is_some_and(|rest| rest.starts_with('.'));
        let is_kept = (self.keep_subjects && !self.is_reserved(&event.subject))
            || is_below
            || event.subject == self.subject;
        if !is_kept || validate_subject(&event.subject).is_err() {
            let original = std::mem::replace(&mut event.subject, self.subject.clone());
            if !original.is_empty() {
                event.metadata.insert(ORIGINAL_SUBJECT.to_owned(), original);
            }
        }
        if event.category.is_empty() {
            event.category.clone_from(&self.category);
        }
        if !has_time {
            event.timestamp = unix_millis();
        }
        Ok(event)
    }

    /// Returns true if the library stores dead letters and records under this subject, where no sender may publish.
    fn is_reserved(&self, subject: &str) -> bool {
        let own = || self.subject.split('.').next().unwrap_or_default();
        is_reserved(subject, self.bus.as_ref().map_or_else(own, |bus| bus.provider().subject_prefix()))
    }

    /// Stores the events, or sends them to the channel of `start`.
    async fn hand_on(
        &self,
        events: Vec<Event>,
        webhook_id: Option<&str>,
    ) -> std::result::Result<(), Refusal> {
        let handing_on = async {
            match &self.bus {
                Some(bus) => self.publish(bus, &events, webhook_id).await,
                None => self.send(events).await,
            }
        };
        tokio::time::timeout(self.timeout, handing_on)
            .await
            .unwrap_or_else(|_elapsed| Err(Refusal::unavailable("the events were not accepted in time")))
    }

    async fn publish(
        &self,
        bus: &EventBus,
        events: &[Event],
        webhook_id: Option<&str>,
    ) -> std::result::Result<(), Refusal> {
        let dedup = bus.provider().capabilities().dedup.is_yes();
        let requests: Vec<_> = events
            .iter()
            .zip(0_u64..)
            .map(|(event, index)| {
                let id = self.msg_id(event, webhook_id.map(|id| (id, index)));
                let options = PublishOptions { msg_id: dedup.then_some(id), ..PublishOptions::default() };
                PublishRequest::new(event, options)
            })
            .collect();
        let results = bus.publish_batch_with_options(&requests).await;
        // A failure that a retry can help comes first. The sender retries, and stored events are not stored twice.
        let failed: Vec<EventError> = results.into_iter().filter_map(Result::err).collect();
        match failed.iter().find(|error| !is_refusal(error)).or(failed.first()) {
            None => Ok(()),
            Some(error) => {
                tracing::warn!(%error, "storing a webhook failed");
                Err(Refusal::of_publish(error))
            }
        }
    }

    /// Returns a `msg_id` that is the same for a repeated request. The id alone is not sufficient: another receiver may
    /// get the same request, and another source may use the same id.
    fn msg_id(&self, event: &Event, request: Option<(&str, u64)>) -> String {
        let name = &self.name;
        let key = match request {
            Some((id, index)) => fnv1a_128(&["request", name, id, &index.to_string()]),
            None => fnv1a_128(&["event", name, &event.source, &event.id]),
        };
        format!("webhook-{key:032x}")
    }

    async fn send(&self, events: Vec<Event>) -> std::result::Result<(), Refusal> {
        let sender = self.sender.lock().ignore_poison().clone();
        let Some(sender) = sender else { return Err(Refusal::unavailable("the receiver was not started")) };
        if events.len() > sender.max_capacity() {
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "the batch has too many events"));
        }
        // Reserves places for all of them first: all or none.
        let Ok(places) = sender.reserve_many(events.len()).await else {
            return Err(Refusal::unavailable("the receiver is stopping"));
        };
        for (place, event) in places.zip(events) {
            place.send(event);
        }
        Ok(())
    }
}

#[async_trait]
impl EventSource for WebhookReceiver {
    /// Sends received events to `sender`. With [`publish_to`](WebhookReceiverBuilder::publish_to), it only waits for
    /// the end.
    ///
    /// # Errors
    ///
    /// Never fails.
    async fn start(&self, sender: mpsc::Sender<Event>) -> Result<()> {
        *self.sender.lock().ignore_poison() = Some(sender.clone());
        let _end = Ended(self);
        self.stop.or(sender.closed()).await;
        Ok(())
    }

    async fn stop(&self) -> Result<()> {
        self.stop.now();
        Ok(())
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// Removes the sender when `start` ends for any reason.
struct Ended<'a>(&'a WebhookReceiver);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        *self.0.sender.lock().ignore_poison() = None;
    }
}

impl WebhookSource for WebhookReceiver {
    fn path(&self) -> &str {
        &self.path
    }

    fn content_types(&self) -> Vec<String> {
        ["application/json", "application/cloudevents+json", "application/cloudevents-batch+json"]
            .map(str::to_owned)
            .to_vec()
    }
}

impl fmt::Debug for WebhookReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookReceiver")
            .field("name", &self.name)
            .field("path", &self.path)
            .field("subject", &self.subject)
            .finish_non_exhaustive()
    }
}

/// Returns a header that occurs once and is text.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    single(headers.get_all(name)).ok().flatten()
}

/// Refuses encoded content.
fn check_encoding(headers: &HeaderMap) -> std::result::Result<(), Refusal> {
    let is_identity = |coding: &str| coding.is_empty() || coding.eq_ignore_ascii_case("identity");
    match list(headers.get_all(header::CONTENT_ENCODING)) {
        Ok(None) => Ok(()),
        Ok(Some(codings)) if codings.split(',').map(str::trim).all(is_identity) => Ok(()),
        _ => Err(Refusal::unsupported("content-encoding: is not supported")),
    }
}

/// Returns the trace context of the request. `tracestate` may have several lines, `traceparent` may not.
fn context(headers: &HeaderMap) -> Option<TraceContext> {
    let state = list(headers.get_all(TRACESTATE)).ok().flatten();
    TraceContext::parse(text(headers, TRACEPARENT)?, state.as_deref())
}

fn signed(headers: &HeaderMap) -> std::result::Result<Signed<'_>, Refusal> {
    let needed = |name, reason| text(headers, name).ok_or_else(|| Refusal::unauthorized(reason));
    Ok(Signed {
        id: needed("webhook-id", "webhook-id: must be given exactly once")?,
        timestamp: needed("webhook-timestamp", "webhook-timestamp: must be given exactly once")?,
        signatures: needed("webhook-signature", "webhook-signature: must be given exactly once")?,
    })
}

fn is_length_limit(error: &axum::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests;
