//! The current settings of a consumer, which other programs may have set.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::provider::group::{ConsumerConfig, DEFAULT_ACK_WAIT, DEFAULT_MAX_ACK_PENDING};
use crate::types::SubscribeOptions;

/// Minimum wait before a lease is extended, for any setting.
const SHORTEST_EXTENSION: Duration = Duration::from_millis(5);
/// Value that represents no limit.
const NONE: u64 = u64::MAX;

/// Settings of one consumer that affect the work on its events. Read without a lock.
pub(super) struct InForce {
    ack_wait_ns: AtomicU64,
    max_deliver: AtomicU64,
    max_ack_pending: AtomicUsize,
    /// If true, settlements wait until the backend has stored them: the consumer is stopping, and no flush follows.
    confirms: AtomicBool,
    /// Notified when the ack wait changes.
    changed: Arc<Notify>,
}

impl InForce {
    /// Creates the settings that the options request. They hold until the provider reports its own.
    pub(super) fn new(options: Option<&SubscribeOptions>, changed: Arc<Notify>) -> Self {
        let ack_wait = options.and_then(|options| options.ack_wait_secs);
        let ack_wait = ack_wait.map_or(DEFAULT_ACK_WAIT, Duration::from_secs);
        let max_ack_pending = options.and_then(|options| usize::try_from(options.max_ack_pending?).ok());
        Self {
            ack_wait_ns: AtomicU64::new(nanos(ack_wait)),
            max_deliver: AtomicU64::new(NONE),
            max_ack_pending: AtomicUsize::new(max_ack_pending.unwrap_or(DEFAULT_MAX_ACK_PENDING)),
            confirms: AtomicBool::new(false),
            changed,
        }
    }

    /// Adopts the settings that the provider reports.
    pub(super) fn set(&self, settings: &ConsumerConfig) {
        self.max_deliver.store(settings.max_deliver.unwrap_or(NONE), Ordering::Relaxed);
        self.max_ack_pending.store(settings.max_ack_pending, Ordering::Relaxed);
        let ack_wait = nanos(settings.ack_wait);
        if self.ack_wait_ns.swap(ack_wait, Ordering::Relaxed) != ack_wait {
            self.changed.notify_waiters();
        }
    }

    /// Returns the age at which a lease should be extended.
    pub(super) fn extend_after(&self) -> Duration {
        let ack_wait = Duration::from_nanos(self.ack_wait_ns.load(Ordering::Relaxed));
        (ack_wait / 2).max(SHORTEST_EXTENSION)
    }

    /// Returns the number of deliveries after which the provider drops an event.
    pub(super) fn max_deliver(&self) -> Option<u64> {
        Some(self.max_deliver.load(Ordering::Relaxed)).filter(|max| *max != NONE)
    }

    pub(super) fn max_ack_pending(&self) -> usize {
        self.max_ack_pending.load(Ordering::Relaxed)
    }

    /// Makes all later settlements wait until the backend has stored them.
    pub(super) fn confirm(&self) {
        self.confirms.store(true, Ordering::SeqCst);
    }

    pub(super) fn confirms(&self) -> bool {
        self.confirms.load(Ordering::SeqCst)
    }

    /// Waits until the ack wait changes.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
