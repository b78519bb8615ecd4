//! Counts of unconfirmed acks that did not take effect.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the acks of a provider that were sent and did not take effect. No call returns an error for them. Their
/// events are redelivered, or already were. A provider that does not wait for acks creates one and
/// [returns](crate::EventProvider::ack_failures) it.
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
    /// Adds acks that were lost in flight: the connection or the backend ended, or the backend failed to store them.
    pub fn add_lost(&self, count: u64) {
        self.lost.fetch_add(count, Ordering::Relaxed);
    }

    /// Adds acks that came too late: the lease had expired and the event was redelivered, or the consumer was moved.
    pub fn add_stale(&self, count: u64) {
        self.stale.fetch_add(count, Ordering::Relaxed);
    }

    /// Returns the number of lost acks.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Returns the number of acks that came too late.
    pub fn stale(&self) -> u64 {
        self.stale.load(Ordering::Relaxed)
    }
}
