//! Points in time after a duration.

use std::time::Duration;

/// About 30 years, in place of "never": tokio's timers use the same span.
const FAR_FUTURE: Duration = Duration::from_secs(86_400 * 365 * 30);

/// Limits the period of a repeating timer, because the timer adds it to the current time without a check.
pub(crate) fn period(wait: Duration) -> Duration {
    wait.min(FAR_FUTURE)
}

/// Adds durations to instants without overflow, so that `Duration::MAX` can mean "no limit".
pub(crate) trait After: Copy {
    /// Returns the instant `wait` later, or one about 30 years later if that cannot be represented.
    fn after(self, wait: Duration) -> Self;
}

impl After for std::time::Instant {
    fn after(self, wait: Duration) -> Self {
        self.checked_add(wait).or_else(|| self.checked_add(FAR_FUTURE)).unwrap_or(self)
    }
}

impl After for tokio::time::Instant {
    fn after(self, wait: Duration) -> Self {
        self.checked_add(wait).or_else(|| self.checked_add(FAR_FUTURE)).unwrap_or(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_without_an_end_is_far_in_the_future() {
        let now = tokio::time::Instant::now();
        assert_eq!(now.after(Duration::from_millis(5)) - now, Duration::from_millis(5));
        assert!(now.after(Duration::MAX) - now >= FAR_FUTURE);
        let now = std::time::Instant::now();
        assert_eq!(now.after(Duration::ZERO), now);
        assert!(now.after(Duration::MAX) - now >= FAR_FUTURE);
    }
}
