//! Points in time that are some duration away.

use std::time::Duration;

/// Far enough for "never": tokio's timers use the same span.
const FAR_FUTURE: Duration = Duration::from_secs(86_400 * 365 * 30);

/// A period for a timer that repeats, which adds it to the present without a check.
pub(crate) fn period(wait: Duration) -> Duration {
    wait.min(FAR_FUTURE)
}

/// Adds durations to instants without overflow: `Duration::MAX`, which people write for "no limit", is far in the future.
pub(crate) trait After: Copy {
    /// The instant `wait` later, or one about 30 years later where that cannot be represented.
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
