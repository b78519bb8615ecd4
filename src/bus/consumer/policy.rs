//! What happens to an event whose handler fails: how often it is tried, how long in between, and what ends it at once.

use std::error::Error;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

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

/// How long to wait before another attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Backoff {
    delays: Delays,
    jitter: f64,
}

#[derive(Debug, Clone, PartialEq)]
enum Delays {
    List(Vec<Duration>),
    Linear { step: Duration, cap: Duration },
    Exponential { first: Duration, cap: Duration },
}

impl Backoff {
    /// No wait.
    pub fn none() -> Self {
        Self::list([])
    }

    /// These delays one after the other; the last one repeats.
    pub fn list(delays: impl IntoIterator<Item = Duration>) -> Self {
        Self { delays: Delays::List(delays.into_iter().collect()), jitter: 0.0 }
    }

    /// Longer by `step` each time, up to `cap`.
    pub fn linear(step: Duration, cap: Duration) -> Self {
        Self { delays: Delays::Linear { step, cap }, jitter: 0.0 }
    }

    /// Twice as long each time, up to `cap`, with a [jitter](Backoff::jitter) of a half.
    pub fn exponential(first: Duration, cap: Duration) -> Self {
        Self { delays: Delays::Exponential { first, cap }, jitter: 0.5 }
    }

    /// Shortens each delay by a random part of it, up to this fraction between 0 and 1, so that what failed together is not
    /// tried again together.
    #[must_use]
    pub fn jitter(mut self, fraction: f64) -> Self {
        self.jitter = fraction.clamp(0.0, 1.0);
        self
    }

    /// The delay behind this attempt, the first of which is 1.
    pub fn delay(&self, attempt: u64) -> Duration {
        let step = attempt.saturating_sub(1);
        let delay = match &self.delays {
            Delays::List(delays) => {
                let index = usize::try_from(step).unwrap_or(usize::MAX);
                delays.get(index).or(delays.last()).copied().unwrap_or_default()
            }
            Delays::Linear { step: by, cap } => {
                let times = u32::try_from(attempt).unwrap_or(u32::MAX);
                by.saturating_mul(times).min(*cap)
            }
            Delays::Exponential { first, cap } => doubled(*first, step).min(*cap),
        };
        if self.jitter > 0.0 {
            delay.saturating_sub(part(delay, self.jitter * random_fraction()))
        } else {
            delay
        }
    }
}

/// A delay doubled this often, or the longest there is.
fn doubled(delay: Duration, times: u64) -> Duration {
    let factor = u32::try_from(times).ok().and_then(|times| 1_u128.checked_shl(times)).unwrap_or(u128::MAX);
    let nanos = delay.as_nanos().saturating_mul(factor);
    let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    match (u64::try_from(seconds), u32::try_from(rest)) {
        (Ok(seconds), Ok(rest)) => Duration::new(seconds, rest),
        _ => Duration::MAX,
    }
}

/// This part of a delay, between 0 and 1. The longest delays have no exact `f64`, and rounding must not panic.
fn part(delay: Duration, fraction: f64) -> Duration {
    Duration::try_from_secs_f64(delay.as_secs_f64() * fraction).unwrap_or(delay)
}

/// Between 0 and 1. The standard library seeds every hasher anew, which is random enough to spread retries.
fn random_fraction() -> f64 {
    let random = RandomState::new().hash_one(0_u8) >> 32;
    f64::from(u32::try_from(random).unwrap_or_default()) / f64::from(u32::MAX)
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

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_list_repeats_its_last_delay_and_an_empty_one_waits_not_at_all() {
        let list = Backoff::list([secs(1), secs(5)]);
        assert_eq!(
            [1, 2, 3, u64::MAX].map(|attempt| list.delay(attempt)),
            [secs(1), secs(5), secs(5), secs(5)]
        );
        assert_eq!(Backoff::none().delay(1), Duration::ZERO);
    }

    #[test]
    fn an_exponential_backoff_doubles_up_to_its_cap() {
        let exponential = Backoff::exponential(secs(1), secs(10)).jitter(0.0);
        assert_eq!(
            [1, 2, 3, 4, 5, 99].map(|attempt| exponential.delay(attempt).as_secs()),
            [1, 2, 4, 8, 10, 10]
        );
    }

    #[test]
    fn no_delay_is_too_long_or_too_short_to_compute() {
        let nanosecond = Duration::from_nanos(1);
        let exponential = Backoff::exponential(nanosecond, secs(3_600)).jitter(0.0);
        assert_eq!([1, 2, 41].map(|attempt| exponential.delay(attempt).as_nanos()), [1, 2, 1 << 40]);
        assert_eq!([50, 200, u64::MAX].map(|attempt| exponential.delay(attempt)), [secs(3_600); 3]);
        for long in [
            Backoff::exponential(Duration::MAX, Duration::MAX),
            Backoff::exponential(nanosecond, Duration::MAX),
            Backoff::linear(Duration::MAX, Duration::MAX).jitter(1.0),
            Backoff::list([Duration::MAX]).jitter(0.001),
            Backoff::list([Duration::ZERO]).jitter(1.0),
        ] {
            for attempt in [1, 2, 97, 129, u64::MAX] {
                for _ in 0..50 {
                    // It returns: that is the test.
                    let _ = long.delay(attempt);
                }
            }
        }
        assert_eq!(
            Backoff::exponential(nanosecond, Duration::MAX).jitter(0.0).delay(u64::MAX),
            Duration::MAX
        );
    }

    #[test]
    fn a_linear_backoff_grows_by_its_step_up_to_its_cap() {
        let linear = Backoff::linear(secs(2), secs(7));
        assert_eq!([1, 2, 3, 4, u64::MAX].map(|attempt| linear.delay(attempt).as_secs()), [2, 4, 6, 7, 7]);
    }

    #[test]
    fn jitter_only_shortens_and_by_no_more_than_its_fraction() {
        let jittered = Backoff::exponential(secs(8), secs(8));
        let delays: Vec<_> = (0..100).map(|_| jittered.delay(1)).collect();
        assert!(delays.iter().all(|delay| (secs(4)..=secs(8)).contains(delay)), "{delays:?}");
        assert!(delays.iter().max() > delays.iter().min(), "it is not random");
    }

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
