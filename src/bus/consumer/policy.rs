//! Retry policy: the number of attempts, the delays between them, and the errors that end them at once.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::error::{EventError, Result};

/// Default timeout of a handler.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_FIRST_DELAY: Duration = Duration::from_secs(1);
const DEFAULT_DELAY_CAP: Duration = Duration::from_secs(60);
/// Default number of attempts if there is a dead-letter handler.
pub(super) const DEFAULT_ATTEMPTS: u64 = 5;

/// Policy for events whose handler fails.
///
/// ```
/// use std::time::Duration;
/// use a3s_event::consumer::{Backoff, RetryPolicy};
///
/// let policy = RetryPolicy::default()
///     .attempts(8)
///     .backoff(Backoff::exponential(Duration::from_millis(200), Duration::from_secs(30)))
///     .timeout(Duration::from_secs(10))
///     // A retry cannot turn a word into a number.
///     .fatal_on::<std::num::ParseIntError>();
/// ```
#[derive(Clone)]
#[must_use]
pub struct RetryPolicy {
    pub(super) attempts: Option<u64>,
    pub(super) backoff: Backoff,
    pub(super) timeout: Option<Duration>,
    fatal: Vec<Arc<FatalIf>>,
}

type FatalIf = dyn Fn(&(dyn Error + 'static)) -> bool + Send + Sync;

impl Default for RetryPolicy {
    /// Returns a policy with an exponential backoff from 1 s to 60 s, and a handler timeout of 30 s. The limit
    /// is the `max_deliver` of the subscription, or else 5 attempts. Without a dead-letter handler on the bus, there is
    /// no limit unless one is set.
    fn default() -> Self {
        Self {
            attempts: None,
            backoff: Backoff::exponential(DEFAULT_FIRST_DELAY, DEFAULT_DELAY_CAP),
            timeout: Some(DEFAULT_TIMEOUT),
            fatal: Vec::new(),
        }
    }
}

impl RetryPolicy {
    /// Sets the number of attempts before an event is dead-lettered; at least 1. `u64::MAX` means no limit.
    pub fn attempts(mut self, attempts: u64) -> Self {
        self.attempts = Some(attempts);
        self
    }

    /// Sets the delay before another attempt.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets the timeout of the handler. When it expires, the handler's future is dropped and the attempt has failed.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Removes the timeout of the handler. A handler that hangs then holds its worker forever.
    pub fn no_timeout(mut self) -> Self {
        self.timeout = None;
        self
    }

    /// Dead-letters an event at once if `is_fatal` returns true for the error that the handler returned.
    pub fn fatal_if(
        mut self,
        is_fatal: impl Fn(&(dyn Error + 'static)) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.fatal.push(Arc::new(is_fatal));
        self
    }

    /// Dead-letters an event at once if the handler returned an error of this type.
    pub fn fatal_on<E: Error + 'static>(self) -> Self {
        self.fatal_if(|error| error.is::<E>())
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.attempts == Some(0) {
            return Err(EventError::Config("attempts 0: must be at least 1".to_owned()));
        }
        if self.timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(EventError::Config("timeout 0s: must be longer than zero".to_owned()));
        }
        Ok(())
    }

    /// Classifies the handler's error under this policy.
    pub(super) fn class_of(&self, error: &HandlerError) -> ErrorClass {
        let is_fatal = |is_fatal: &Arc<FatalIf>| is_fatal(&*error.source);
        match error.class {
            ErrorClass::Retry if self.fatal.iter().any(is_fatal) => ErrorClass::Fatal,
            class => class,
        }
    }
}

impl fmt::Debug for RetryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryPolicy")
            .field("attempts", &self.attempts)
            .field("backoff", &self.backoff)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Result of a handler.
pub type HandlerResult = std::result::Result<(), HandlerError>;

/// Failure of a handler. Any error converts with `?`, and the event is then retried unless the policy calls it fatal.
///
/// ```
/// use std::time::Duration;
/// use a3s_event::consumer::{HandlerError, HandlerResult};
///
/// fn book(text: &str) -> HandlerResult {
///     let amount: i64 = text.parse()?;
///     match amount {
///         ..0 => Err(HandlerError::fatal("a negative amount")),
///         0 => Err(HandlerError::retry_after("not known yet", Duration::from_secs(60))),
///         _ => Ok(()),
///     }
/// }
/// # assert!(book("7").is_ok());
/// ```
pub struct HandlerError {
    source: Box<dyn Error + Send + Sync>,
    class: ErrorClass,
    after: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorClass {
    Retry,
    Fatal,
    Mismatch,
    Undecryptable,
}

impl HandlerError {
    /// Creates a failure that another attempt may overcome.
    pub fn retry(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: error.into(), class: ErrorClass::Retry, after: None }
    }

    /// Creates a failure that another attempt may overcome after this delay. The delay overrides the backoff of the
    /// policy.
    pub fn retry_after(error: impl Into<Box<dyn Error + Send + Sync>>, delay: Duration) -> Self {
        Self { after: Some(delay), ..Self::retry(error) }
    }

    /// Creates a failure that no attempt can overcome: the event is dead-lettered at once.
    pub fn fatal(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { class: ErrorClass::Fatal, ..Self::retry(error) }
    }

    /// Creates the failure for a payload that does not fit the handler's type.
    pub(super) fn mismatch(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { class: ErrorClass::Mismatch, ..Self::retry(error) }
    }

    /// Creates the failure for a payload that is still encrypted.
    pub(super) fn undecryptable(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { class: ErrorClass::Undecryptable, ..Self::retry(error) }
    }

    pub(super) fn delay(&self) -> Option<Duration> {
        self.after
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::retry(error)
    }
}

/// Writes the error and its causes in one line.
impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        let mut cause = self.source.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerError")
            .field("source", &self.source)
            .field("class", &self.class)
            .field("after", &self.after)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_is_tried_again_unless_something_says_that_it_is_fatal() {
        let policy = RetryPolicy::default().fatal_on::<std::num::ParseIntError>();
        let parse: HandlerError = "x".parse::<u8>().unwrap_err().into();
        assert_eq!(policy.class_of(&parse), ErrorClass::Fatal);
        assert_eq!(policy.class_of(&"x".into()), ErrorClass::Retry);
        assert_eq!(policy.class_of(&HandlerError::fatal("x")), ErrorClass::Fatal);
        assert_eq!(policy.class_of(&HandlerError::mismatch("x")), ErrorClass::Mismatch);
    }
}
