//! Failures of sinks, and what they mean for a retry.

use std::fmt;
use std::time::Duration;

use crate::error::{BackendError, ErrorKind, EventError};

/// The reason why a sink did not take an event. A sink that knows more than an [`EventError`] says, for instance when
/// to retry, returns its failure through [`into_error`](SinkFailure::into_error). The broker evaluates it.
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
    /// Creates a failure that a retry may overcome.
    pub fn retry(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retryable: true, after: None }
    }

    /// Creates a failure that no retry can overcome.
    pub fn fatal(reason: impl Into<String>) -> Self {
        Self { retryable: false, ..Self::retry(reason) }
    }

    /// Sets the delay before the retry. It takes precedence over the backoff of the trigger.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.after = Some(delay);
        self
    }

    /// Returns true if a retry can succeed.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// Returns the delay before the retry, if the sink has set one.
    pub fn after(&self) -> Option<Duration> {
        self.after
    }

    /// Converts the failure into an error of the sink with this name.
    pub fn into_error(self, sink: impl Into<String>) -> EventError {
        let retryable = self.retryable;
        let error = BackendError::new(sink, "delivery", ErrorKind::Routing, self);
        if retryable { error.retryable().into() } else { error.into() }
    }

    /// Classifies the error of a sink. A backend error says itself if a retry can help. Of the other errors,
    /// `InvalidInput`, `Unsupported` and `Schema` are fatal, and a retry may help for the rest.
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
