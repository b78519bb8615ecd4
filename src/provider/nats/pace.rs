//! Number of events to fetch ahead: those that the caller takes in the next moment at the pace of its calls so far.

use std::time::Duration;

use tokio::time::Instant;

/// Time in which the caller takes the events fetched ahead, if its calls continue at the same pace.
pub(super) const AHEAD: Duration = Duration::from_millis(50);
/// Maximum number of events fetched ahead.
const MAX_AHEAD: usize = 500;
/// Maximum size of the events fetched ahead, in bytes.
const MAX_AHEAD_BYTES: usize = 1024 * 1024;
/// Divisor of `max_ack_pending`. One member fetches at most this share ahead and leaves the rest to the others.
const SHARE: usize = 4;
/// Upper limit of a measured pause between two calls, and the initial average.
const SLOW: Duration = Duration::from_secs(1);

/// Pace of the caller: the time between two calls that got an event, as a moving average.
#[derive(Debug)]
pub(super) struct Pace {
    last: Option<Instant>,
    average: Duration,
    /// Size of an event in bytes, as a moving average.
    size: usize,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { last: None, average: SLOW, size: 0 }
    }

    pub(super) fn note(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            let interval = now.saturating_duration_since(last).min(SLOW);
            self.average = self.average.saturating_mul(7).saturating_add(interval) / 8;
        }
    }

    pub(super) fn note_size(&mut self, size: usize) {
        self.size = (self.size.saturating_mul(7).saturating_add(size)) / 8;
    }

    /// Returns the number of events to fetch ahead at this pace, for a consumer with this `max_ack_pending`.
    pub(super) fn ahead(&self, max_ack_pending: usize) -> usize {
        let ahead = usize::try_from(AHEAD.as_nanos() / self.average.as_nanos().max(1)).unwrap_or(MAX_AHEAD);
        let of_size = MAX_AHEAD_BYTES / self.size.max(1);
        ahead.min(MAX_AHEAD).min(of_size).min(max_ack_pending / SHARE).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(calls: u32, pause: Duration, size: usize) -> Pace {
        let (mut pace, start) = (Pace::new(), Instant::now());
        for call in 0..calls {
            pace.note(start + pause * call);
            pace.note_size(size);
        }
        pace
    }

    #[test]
    fn what_is_fetched_ahead_follows_the_calls() {
        let millisecond = Duration::from_millis(1);
        assert_eq!(Pace::new().ahead(1_000), 1, "nothing is known yet");
        assert_eq!(after(100, 100 * millisecond, 100).ahead(1_000), 1, "slow calls");
        assert_eq!(after(100, millisecond, 100).ahead(1_000), 49, "what 50 ms are");
        assert_eq!(after(100, Duration::ZERO, 100).ahead(10_000), MAX_AHEAD);
        assert_eq!(after(100, Duration::ZERO, 100).ahead(100), 25, "the rest is for the others");
        assert_eq!(after(100, Duration::ZERO, 1).ahead(1), 1);
        assert_eq!(after(200, Duration::ZERO, 100_000).ahead(10_000), 10, "its bytes are bounded");
    }
}
