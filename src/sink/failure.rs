//! Why a sink did not take an event, and what that means for another try.

use std::fmt;
use std::time::Duration;

use crate::error::{BackendError, ErrorKind, EventError};

/// Why a sink did not take an event. A sink that knows more than an [`EventError`] says, for instance when to try again,
/// returns one with [`into_error`](SinkFailure::into_error); the broker reads it.
///
/// ```
/// use std::time::Duration;
/// use a3s_event::sink::SinkFailure;
///
/// let error = SinkFailure::retry("too many requests").retry_after(Duration::from_secs(3)).into_error("hook");
/// assert!(error.is_retryable());
/// assert!(!SinkFailure::fatal("gone").into_error("hook").is_retryable());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkFailure {
    reason: String,
    retryable: bool,
    after: Option<Duration>,
}

impl SinkFailure {
    /// A failure that another attempt may overcome.
    pub fn retry(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retryable: true, after: None }
    }

    /// A failure that no attempt can overcome.
    pub fn fatal(reason: impl Into<String>) -> Self {
        Self { retryable: false, ..Self::retry(reason) }
    }

    /// When to try again, which goes before the backoff of the trigger.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.after = Some(delay);
        self
    }

    /// Whether another attempt can succeed.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// When to try again, where the sink says so.
    pub fn after(&self) -> Option<Duration> {
        self.after
    }

    /// The failure as the error of a sink of this name.
    pub fn into_error(self, sink: impl Into<String>) -> EventError {
        let retryable = self.retryable;
        let error = BackendError::new(sink, "delivery", ErrorKind::Routing, self);
        if retryable { error.retryable().into() } else { error.into() }
    }

    /// What a sink's error means. Input that the sink refuses, it refuses again; everything else is worth another try.
    pub fn of(error: &EventError) -> Self {
        if let EventError::Backend(backend) = error {
            if let Some(failure) = backend.source.downcast_ref::<Self>() {
                return failure.clone();
            }
            let reason = format!("{error}: {}", backend.source);
            return if backend.retryable { Self::retry(reason) } else { Self::fatal(reason) };
        }
        match error.kind() {
            ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::Schema => {
                Self::fatal(error.to_string())
            }
            _ => Self::retry(error.to_string()),
        }
    }
}

impl fmt::Display for SinkFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for SinkFailure {}
