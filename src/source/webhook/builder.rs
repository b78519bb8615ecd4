//! Builder of webhook receivers.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::permission::Origins;
use super::replay::SeenIds;
use super::signature::Verifier;
use super::{DEFAULT_MAX_BODY, Stop, WebhookReceiver, digest, window};
use crate::bus::EventBus;
use crate::error::{EventError, Result};
use crate::subject::validate_subject;
use crate::text::shorten;

/// Default timeout for reading a body, and for taking the request.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of ids that are remembered.
const REMEMBERED_IDS: usize = 100_000;
/// Minimum length of a token in bytes.
const MIN_TOKEN: usize = 16;

/// Builds a [`WebhookReceiver`].
#[must_use]
pub struct WebhookReceiverBuilder {
    name: String,
    path: String,
    subject: String,
    category: String,
    keep_subjects: bool,
    secrets: Vec<String>,
    tokens: Vec<String>,
    unauthenticated: bool,
    origins: Origins,
    tolerance: Option<Duration>,
    max_body: usize,
    timeout: Duration,
    bus: Option<Arc<EventBus>>,
}

impl WebhookReceiverBuilder {
    pub(super) fn new(name: String, path: String) -> Self {
        Self {
            subject: format!("events.webhook.{name}"),
            name,
            path,
            category: "webhook".to_owned(),
            keep_subjects: false,
            secrets: Vec::new(),
            tokens: Vec::new(),
            unauthenticated: false,
            origins: Origins::default(),
            tolerance: None,
            max_body: DEFAULT_MAX_BODY,
            timeout: DEFAULT_TIMEOUT,
            bus: None,
        }
    }

    /// Sets the subject of received events. Default `events.webhook.{name}`.
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = subject.into();
        self
    }

    /// Sets the category of received events that have none. Default `webhook`.
    pub fn category(mut self, category: impl Into<String>) -> Self {
        self.category = category.into();
        self
    }

    /// Publishes CloudEvents under their own subject if it is legal and not reserved by the library, for instance for
    /// dead letters. By default the receiver keeps only subjects below its own, so that a sender cannot publish
    /// anywhere else.
    pub fn keep_subjects(mut self) -> Self {
        self.keep_subjects = true;
        self
    }

    /// Requires a signature with this secret, or with any of several. A secret is base64 of 24 to 64 bytes, with or
    /// without `whsec_`.
    pub fn secret(mut self, secret: impl Into<String>) -> Self {
        self.secrets.push(secret.into());
        self
    }

    /// Requires this token in `Authorization: Bearer`, or any of several. A token has at least 16 bytes. With secrets,
    /// too, a request needs both.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.tokens.push(token.into());
        self
    }

    /// Takes requests without authentication from every sender.
    pub fn unauthenticated(mut self) -> Self {
        self.unauthenticated = true;
        self
    }

    /// Gives permission to senders of this origin when they ask. The origin is a DNS name, or `*` for all. Call this
    /// once per origin. Without an origin, the receiver answers `OPTIONS` requests with 405.
    pub fn allow_origin(mut self, origin: impl Into<String>) -> Self {
        self.origins.allowed.push(origin.into());
        self
    }

    /// Sets the maximum rate that a sender gets when it asks for permission, in requests per minute. It gets the rate
    /// it asks for if that is lower. The rate is announced but not enforced. Default unlimited.
    pub fn allow_rate(mut self, per_minute: NonZeroU32) -> Self {
        self.origins.rate = Some(per_minute);
        self
    }

    /// Sets how far the time of a signed request may be from now, in both directions. Default 300 s. The default is
    /// lower if a request could otherwise outlive the deduplication window of the
    /// [bus](WebhookReceiverBuilder::publish_to): 40 s with the usual window of 120 s.
    ///
    /// A request is valid for twice this time, and may then take as long as the
    /// [timeout](WebhookReceiverBuilder::timeout). The clocks of receivers may be up to 5 s apart. The window must
    /// therefore be at least `2 * (tolerance + 5 s) + timeout`: 640 s for 300 s.
    pub fn tolerance(mut self, tolerance: Duration) -> Self {
        self.tolerance = Some(tolerance);
        self
    }

    /// Sets the maximum size of a body in bytes. Default 1 MiB.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// Sets the timeout for reading a body, and then for taking the request. Default 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Publishes the events of a request before it is answered, so that 202 means that they are stored. If the provider
    /// deduplicates, a repeated request stores nothing twice. The `msg_id` is derived from the receiver's name and the
    /// id of the signed request. For an unsigned request, it is derived from the id and source of the CloudEvent.
    ///
    /// If this is not set, [`start`](crate::source::EventSource::start) must run, and 202 means only that the receiver
    /// accepted the events.
    pub fn publish_to(mut self, bus: Arc<EventBus>) -> Self {
        self.bus = Some(bus);
        self
    }

    /// Builds the receiver.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] for:
    ///
    /// - an invalid path;
    /// - an invalid secret or a token that is too short;
    /// - neither of them without [`unauthenticated`](WebhookReceiverBuilder::unauthenticated);
    /// - an origin that is not a DNS name;
    /// - a timeout or a maximum body size of zero;
    /// - with secrets, a [`tolerance`](WebhookReceiverBuilder::tolerance) that does not fit into the deduplication
    ///   window of the bus.
    ///
    /// [`EventError::InvalidSubject`] for an invalid subject.
    pub fn build(self) -> Result<Arc<WebhookReceiver>> {
        let wrong = |text: String| Err(EventError::Config(text));
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "/-_.~".contains(c);
        if !self.path.starts_with('/') || self.path.len() > 256 || !self.path.chars().all(is_plain) {
            let path = shorten(&self.path);
            return wrong(format!(
                "path \"{path}\": must begin with / and have only letters, digits and / - _ . ~"
            ));
        }
        validate_subject(&self.subject)?;
        if self.secrets.is_empty() && self.tokens.is_empty() && !self.unauthenticated {
            return wrong(format!(
                "webhook '{}': needs a secret, a token or unauthenticated()",
                shorten(&self.name)
            ));
        }
        if self.tokens.iter().any(|token| token.len() < MIN_TOKEN) {
            return wrong(format!("webhook token: must be at least {MIN_TOKEN} bytes long"));
        }
        if self.timeout.is_zero() || self.max_body == 0 {
            return wrong("webhook timeout and max_body: must not be zero".to_owned());
        }
        self.origins.check()?;
        // Only a signed request has a time to check.
        let bus = self.bus.as_deref().filter(|_| !self.secrets.is_empty());
        let tolerance = window::tolerance(self.tolerance, self.timeout, bus)?;
        Ok(Arc::new(WebhookReceiver {
            origins: self.origins,
            verifier: Verifier::new(&self.secrets, tolerance)?,
            tokens: self.tokens.iter().map(|token| digest(token)).collect(),
            taken: SeenIds::new(REMEMBERED_IDS, window::validity(tolerance)),
            name: self.name,
            path: self.path,
            subject: self.subject,
            category: self.category,
            keep_subjects: self.keep_subjects,
            max_body: self.max_body,
            timeout: self.timeout,
            bus: self.bus,
            sender: Mutex::new(None),
            stop: Stop::new(),
        }))
    }
}

impl fmt::Debug for WebhookReceiverBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookReceiverBuilder")
            .field("name", &self.name)
            .field("path", &self.path)
            .field("subject", &self.subject)
            .field("secrets", &self.secrets.len())
            .field("tokens", &self.tokens.len())
            .finish_non_exhaustive()
    }
}
