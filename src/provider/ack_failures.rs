//! Acks that nobody waited for and that did not take effect.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the acks of a provider that were sent and did not take effect, which nobody is told: their events come again, or have.
/// A provider that does not wait for acks makes one and [shows](crate::EventProvider::ack_failures) it.
///
/// ```
/// use a3s_event::provider::AckFailures;
///
/// let failures = AckFailures::default();
/// failures.add_lost(2);
/// assert_eq!((failures.lost(), failures.stale()), (2, 0));
/// ```
#[derive(Debug, Default)]
pub struct AckFailures {
    lost: AtomicU64,
    stale: AtomicU64,
}

impl AckFailures {
    /// Counts acks that were lost on their way: the connection or the backend ended, or the backend failed to store them.
    pub fn add_lost(&self, count: u64) {
        self.lost.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts acks that came too late: the lease was over and the event delivered again, or the consumer was moved.
    pub fn add_stale(&self, count: u64) {
        self.stale.fetch_add(count, Ordering::Relaxed);
    }

    /// How many acks were lost.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// How many acks came too late.
    pub fn stale(&self) -> u64 {
        self.stale.load(Ordering::Relaxed)
    }
}
