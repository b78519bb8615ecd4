//! Number of events to fetch ahead: those that the caller takes in the next moment at the pace of its calls so far.
//!
//! For providers whose backend is a server, so that a caller who takes events one by one need not wait for a round trip
//! each. What is fetched ahead must go back when the next call does not come.

use std::time::Duration;

use tokio::time::Instant;

/// Time in which the caller takes the events fetched ahead, if its calls continue at the same pace.
pub const AHEAD: Duration = Duration::from_millis(50);
/// Maximum number of events fetched ahead.
const MAX_AHEAD: usize = 500;
/// Maximum size of the events fetched ahead, in bytes.
const MAX_AHEAD_BYTES: usize = 1024 * 1024;
/// Divisor of `max_ack_pending`. One member fetches at most this share ahead and leaves the rest to the others.
const SHARE: usize = 4;
/// Maximum time that an event waits for the only member of a consumer.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Upper limit of a measured pause between two calls, and the initial average.
const SLOW: Duration = Duration::from_secs(1);

/// Pace of the caller: the time between two calls that got an event, as a moving average.
#[derive(Debug)]
pub struct Pace {
    /// Time at which the caller last got an event.
    last: Option<Instant>,
    average: Duration,
    /// Time from an event to the next call, as a moving average; `None` before the first one.
    busy: Option<Duration>,
    is_asking: bool,
    /// Size of an event in bytes, as a moving average.
    size: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { last: None, average: SLOW, busy: None, is_asking: false, size: 0 }
    }
}

impl Pace {
    /// Returns the pace of a caller of which nothing is known yet: it is slow.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that the caller gets an event.
    pub fn note(&mut self, now: Instant) {
        self.is_asking = false;
        if let Some(last) = self.last.replace(now) {
            let interval = now.saturating_duration_since(last).min(SLOW);
            self.average = self.average.saturating_mul(7).saturating_add(interval) / 8;
        }
    }

    /// Notes that the caller asks for the next event. Only the first call after an event counts.
    pub fn note_call(&mut self, now: Instant) {
        if let (Some(last), false) = (self.last, std::mem::replace(&mut self.is_asking, true)) {
            let busy = now.saturating_duration_since(last).min(SLOW);
            self.busy =
                Some(self.busy.map_or(busy, |average| average.saturating_mul(7).saturating_add(busy) / 8));
        }
    }

    /// Notes the size of an event in bytes.
    pub fn note_size(&mut self, size: usize) {
        self.size = (self.size.saturating_mul(7).saturating_add(size)) / 8;
    }

    /// Returns the number of events to fetch ahead at this pace, for a consumer with this `max_ack_pending`.
    pub fn ahead(&self, max_ack_pending: usize) -> usize {
        self.within(AHEAD, self.average).min(max_ack_pending / SHARE).max(1)
    }

    /// Returns the number of events that the only member of a consumer could take within a small part of their lease if
    /// they arrived now, however rarely they arrive.
    pub fn capacity(&self, ack_wait: Duration, max_ack_pending: usize) -> usize {
        let time = LONGEST_WAIT.min(ack_wait / 8);
        self.within(time, self.busy.unwrap_or(LONGEST_WAIT)).min(max_ack_pending).max(1)
    }

    fn within(&self, time: Duration, each: Duration) -> usize {
        let of_time = usize::try_from(time.as_nanos() / each.as_nanos().max(1)).unwrap_or(MAX_AHEAD);
        of_time.min(MAX_AHEAD).min(MAX_AHEAD_BYTES / self.size.max(1))
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

    #[test]
    fn the_capacity_follows_the_time_that_the_caller_takes_for_an_event() {
        let (mut pace, mut now) = (Pace::new(), Instant::now());
        pace.note_call(now);
        let capacity = |pace: &Pace, max_ack_pending| pace.capacity(Duration::from_secs(30), max_ack_pending);
        assert_eq!(capacity(&pace, 1_000), 1, "nothing is known yet");
        for _ in 0..2 {
            pace.note(now);
            pace.note_call(now + Duration::from_millis(1));
            now += Duration::from_secs(60);
        }
        assert_eq!(capacity(&pace, 1_000), 500, "a fast caller of rare events");
        assert_eq!(capacity(&pace, 20), 20);
        assert_eq!(pace.capacity(Duration::from_secs(1), 1_000), 125, "a short lease");
        for _ in 0..20 {
            pace.note(now);
            pace.note_call(now + Duration::from_secs(2));
        }
        assert_eq!(capacity(&pace, 1_000), 1, "it has become slow");
    }
}
