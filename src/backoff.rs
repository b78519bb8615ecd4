//! Delays between attempts.

use std::time::Duration;

use crate::random;

/// Delays between attempts.
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
    /// Creates a backoff without delay.
    pub fn none() -> Self {
        Self::list([])
    }

    /// Creates a backoff with these delays, one after the other. The last one repeats.
    pub fn list(delays: impl IntoIterator<Item = Duration>) -> Self {
        Self { delays: Delays::List(delays.into_iter().collect()), jitter: 0.0 }
    }

    /// Creates a backoff that grows by `step` with each attempt, up to `cap`.
    pub const fn linear(step: Duration, cap: Duration) -> Self {
        Self { delays: Delays::Linear { step, cap }, jitter: 0.0 }
    }

    /// Creates a backoff that doubles with each attempt, up to `cap`, with a [jitter](Backoff::jitter) of 0.5.
    pub const fn exponential(first: Duration, cap: Duration) -> Self {
        Self { delays: Delays::Exponential { first, cap }, jitter: 0.5 }
    }

    /// Shortens each delay by a random part of it, up to this fraction between 0 and 1. This spreads retries after a
    /// common failure.
    #[must_use]
    pub const fn jitter(mut self, fraction: f64) -> Self {
        self.jitter = fraction.clamp(0.0, 1.0);
        self
    }

    /// Returns the delay after this attempt. The first attempt is 1.
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
            delay.saturating_sub(part(delay, self.jitter * random::fraction()))
        } else {
            delay
        }
    }
}

/// Doubles a delay `times` times, up to [`Duration::MAX`].
fn doubled(delay: Duration, times: u64) -> Duration {
    let factor = u32::try_from(times).ok().and_then(|times| 1_u128.checked_shl(times)).unwrap_or(u128::MAX);
    let nanos = delay.as_nanos().saturating_mul(factor);
    let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    match (u64::try_from(seconds), u32::try_from(rest)) {
        (Ok(seconds), Ok(rest)) => Duration::new(seconds, rest),
        _ => Duration::MAX,
    }
}

/// Returns a fraction of a delay. The longest delays have no exact `f64`, and rounding must not panic.
fn part(delay: Duration, fraction: f64) -> Duration {
    Duration::try_from_secs_f64(delay.as_secs_f64() * fraction).unwrap_or(delay)
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
                    // The test is that this returns.
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
}
