//! Pauses after failed calls, so that a caller that retries at once does not spin.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::deadline::After;

/// Pauses after consecutive failures.
const RETRY: Backoff =
    Backoff::exponential(Duration::from_millis(20), Duration::from_millis(250)).jitter(0.0);

#[derive(Default)]
pub(super) struct Failures {
    count: u64,
    until: Option<Instant>,
}

impl Failures {
    /// Waits for the end of the pause. A cancelled wait keeps the pause.
    pub(super) async fn pause(&mut self) {
        if let Some(until) = self.until {
            tokio::time::sleep_until(until).await;
            self.until = None;
        }
    }

    pub(super) fn is_pausing(&self) -> bool {
        self.until.is_some()
    }

    pub(super) fn note(&mut self, has_failed: bool) {
        if has_failed {
            self.count = self.count.saturating_add(1);
            self.until = Some(Instant::now().after(RETRY.delay(self.count)));
        } else {
            self.count = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_failure_is_followed_by_a_pause_that_grows_up_to_a_limit() {
        let (mut failures, started) = (Failures::default(), Instant::now());
        failures.pause().await;
        assert_eq!(started.elapsed(), Duration::ZERO);
        for _ in 0..100 {
            failures.note(true);
            // After a cancelled wait, the next call waits for the rest.
            let cancelled = tokio::time::timeout(Duration::from_millis(1), failures.pause()).await;
            assert!(cancelled.is_err());
            failures.pause().await;
        }
        let waited = started.elapsed();
        assert!(waited > Duration::from_secs(20) && waited < Duration::from_secs(30), "{waited:?}");
        failures.note(false);
        let before = Instant::now();
        failures.note(true);
        failures.pause().await;
        assert_eq!(before.elapsed(), Duration::from_millis(20));
    }
}
