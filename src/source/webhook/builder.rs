//! Putting a receiver together.

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

/// How long a body may take to come, and a request to be taken, unless configured otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// How many ids are remembered.
const REMEMBERED_IDS: usize = 100_000;
/// Shortest token.
const MIN_TOKEN: usize = 16;

/// Puts a [`WebhookReceiver`] together.
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

    /// The subject of what comes in. Default `events.webhook.{name}`.
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = subject.into();
        self
    }

    /// The category of what comes in without one. Default `webhook`.
    pub fn category(mut self, category: impl Into<String>) -> Self {
        self.category = category.into();
        self
    }

    /// Publishes CloudEvents under their own subject where that is a legal one and not a place of the library, such as that
    /// of dead letters. Without it only subjects below the
    /// receiver's own are kept: whoever may send should not be able to publish anywhere.
    pub fn keep_subjects(mut self) -> Self {
        self.keep_subjects = true;
        self
    }

    /// Asks for a signature with this secret, or with any of several: base64 of 24 to 64 bytes, with or without `whsec_`.
    pub fn secret(mut self, secret: impl Into<String>) -> Self {
        self.secrets.push(secret.into());
        self
    }

    /// Asks for this token in `Authorization: Bearer`, or for any of several; at least 16 bytes. With secrets, too, both are
    /// needed.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.tokens.push(token.into());
        self
    }

    /// Takes requests from anybody who can reach it.
    pub fn unauthenticated(mut self) -> Self {
        self.unauthenticated = true;
        self
    }

    /// Gives a sender of this origin its permission when it asks: a DNS name, or `*` for all. May be called for several.
    /// Without, `OPTIONS` requests are answered with 405.
    pub fn allow_origin(mut self, origin: impl Into<String>) -> Self {
        self.origins.allowed.push(origin.into());
        self
    }

    /// The rate that is allowed to a sender that asks, in requests per minute: what it asks for, and no more than this.
    /// Default unlimited. It is told, not enforced.
    pub fn allow_rate(mut self, per_minute: NonZeroU32) -> Self {
        self.origins.rate = Some(per_minute);
        self
    }

    /// How far the time of a signed request may be from now, on both sides. Default 300 s, or less where the request could
    /// else outlive the dedup window of the bus to which it is [published](WebhookReceiverBuilder::publish_to): 40 s with
    /// the usual window of 120 s.
    ///
    /// A request is valid for twice this time, and may then take as long as the [timeout](WebhookReceiverBuilder::timeout).
    /// With the clocks of receivers up to 5 s apart, a window of `2 * (tolerance + 5 s) + timeout` holds all of
    /// that; 640 s for 300 s.
    pub fn tolerance(mut self, tolerance: Duration) -> Self {
        self.tolerance = Some(tolerance);
        self
    }

    /// Largest body in bytes. Default 1 MiB.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// How long a body may take to come, and then the request to be taken. Default 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Publishes what comes in before it is answered: what was answered with 202 is stored. Where the provider deduplicates,
    /// a `msg_id` is made of the receiver's name and the id of the signed request, or else the id and source of the
    /// CloudEvent, so that a request that is sent again stores nothing twice. Without it,
    /// [`start`](crate::source::EventSource::start) has to run, and 202 says only that the event is on its way.
    pub fn publish_to(mut self, bus: Arc<EventBus>) -> Self {
        self.bus = Some(bus);
        self
    }

    /// Builds it.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] for a path that is none, a secret or token too short, neither of them without
    /// [`unauthenticated`](WebhookReceiverBuilder::unauthenticated), an origin that is no name, and with secrets a
    /// [`tolerance`](WebhookReceiverBuilder::tolerance) that does not fit into the dedup window of the bus;
    /// [`EventError::InvalidSubject`] for the subject.
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
        // Without a signature there is no time to check.
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
