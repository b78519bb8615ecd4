//! What happens to an event whose handler fails: how often it is tried, how long in between, and what ends it at once.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::error::{EventError, Result};

/// How long a handler may take unless the policy says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_FIRST_DELAY: Duration = Duration::from_secs(1);
const DEFAULT_DELAY_CAP: Duration = Duration::from_secs(60);
/// Attempts where there are dead letters to go to.
pub(super) const DEFAULT_ATTEMPTS: u64 = 5;

/// What happens to an event whose handler fails.
///
/// ```
/// use std::time::Duration;
/// use a3s_event::consumer::{Backoff, RetryPolicy};
///
/// let policy = RetryPolicy::default()
///     .attempts(8)
///     .backoff(Backoff::exponential(Duration::from_millis(200), Duration::from_secs(30)))
///     .timeout(Duration::from_secs(10))
///     // No retry makes a number of a word.
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
    /// An exponential backoff from 1 s to 60 s, and 30 s for the handler. 5 attempts, or the `max_deliver` of the
    /// subscription; without a dead-letter handler on the bus no limit unless one is set.
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
    /// How often an event is tried before it goes to the dead letters; at least 1. `u64::MAX` is without a limit.
    pub fn attempts(mut self, attempts: u64) -> Self {
        self.attempts = Some(attempts);
        self
    }

    /// How long to wait before another attempt.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// How long the handler may take. Then its future is dropped, and the attempt has failed.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Lets the handler take as long as it likes. One that hangs holds its worker for ever.
    pub fn no_timeout(mut self) -> Self {
        self.timeout = None;
        self
    }

    /// Errors for which this is true go to the dead letters at once. Called with the error that the handler returned.
    pub fn fatal_if(
        mut self,
        is_fatal: impl Fn(&(dyn Error + 'static)) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.fatal.push(Arc::new(is_fatal));
        self
    }

    /// Errors of this type go to the dead letters at once.
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

    /// What the handler's error means under this policy.
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

/// What a handler returns.
pub type HandlerResult = std::result::Result<(), HandlerError>;

/// Why a handler failed. Any error turns into one with `?`, and is then tried again unless the policy calls it fatal.
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
}

impl HandlerError {
    /// A failure that another attempt may overcome.
    pub fn retry(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: error.into(), class: ErrorClass::Retry, after: None }
    }

    /// A failure that another attempt may overcome after this time, which goes before the backoff of the policy.
    pub fn retry_after(error: impl Into<Box<dyn Error + Send + Sync>>, delay: Duration) -> Self {
        Self { after: Some(delay), ..Self::retry(error) }
    }

    /// A failure that no attempt can overcome: the event goes to the dead letters at once.
    pub fn fatal(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { class: ErrorClass::Fatal, ..Self::retry(error) }
    }

    /// The payload is not what the handler takes.
    pub(super) fn mismatch(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { class: ErrorClass::Mismatch, ..Self::retry(error) }
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

/// The error and what caused it, in one line.
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
