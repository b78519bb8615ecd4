//! Acks that a member has sent and the backend has not stored yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::AckFailures;
use super::support::flushed;
use crate::error::{BackendError, ErrorKind, EventError, Result};

/// Acks of one member that were sent and are not stored yet. Their number is bounded, and a flush waits for all of them.
///
/// An ack takes a place before it is sent, and keeps it until it is stored or lost.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use a3s_event::provider::AckFailures;
/// use a3s_event::provider::support::SentAcks;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> a3s_event::Result<()> {
/// let acks = SentAcks::new("mine", 1, Arc::<AckFailures>::default());
/// let place = acks.place_now();
/// acks.note_sent();
/// assert!(place.is_some() && acks.place_now().is_none());
/// drop(place);
/// acks.flush(Duration::from_secs(1), async { Ok(()) }).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SentAcks {
    provider: &'static str,
    /// One permit per ack that may be unstored.
    room: Arc<Semaphore>,
    max: u32,
    /// True if no ack was sent since the last flush.
    is_flushed: AtomicBool,
    /// Number of acks that were lost since the last flush.
    lost: AtomicU64,
    failures: Arc<AckFailures>,
}

impl SentAcks {
    /// Creates the bookkeeping of a member that may have `max` unstored acks. `failures` counts those that take no effect.
    pub fn new(provider: &'static str, max: usize, failures: Arc<AckFailures>) -> Self {
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        let room = Arc::new(Semaphore::new(max as usize));
        let (is_flushed, lost) = (AtomicBool::new(true), AtomicU64::new(0));
        Self { provider, room, max, is_flushed, lost, failures }
    }

    /// Returns a place for another ack, if one is free now.
    pub fn place_now(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).try_acquire_owned().ok()
    }

    /// Waits for a place, at most for `timeout`.
    ///
    /// # Errors
    ///
    /// A retryable [`BackendError`] of the kind [`Timeout`](ErrorKind::Timeout).
    pub async fn place(&self, timeout: Duration) -> Result<OwnedSemaphorePermit> {
        let placing = Arc::clone(&self.room).acquire_owned();
        match tokio::time::timeout(timeout, placing).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(self.late("ack", "too many acks are not yet stored", timeout)),
        }
    }

    /// Records that an ack was sent since the last flush.
    pub fn note_sent(&self) {
        self.is_flushed.store(false, Ordering::Release);
    }

    /// Records that an ack was lost: its event will be redelivered.
    pub fn note_lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.failures.add_lost(1);
    }

    /// Records that an ack arrived too late: its event was redelivered.
    pub fn note_stale(&self) {
        self.failures.add_stale(1);
    }

    /// Waits until all acks that were sent before are stored, at most for `timeout`. Then awaits `sync`, which waits for the
    /// disk.
    ///
    /// # Errors
    ///
    /// A retryable [`BackendError`] of the kind [`Timeout`](ErrorKind::Timeout), the error of `sync`, or
    /// [`EventError::Ack`] if acks were lost since the last flush.
    pub async fn flush(&self, timeout: Duration, sync: impl Future<Output = Result<()>>) -> Result<()> {
        if self.is_flushed.load(Ordering::Acquire) {
            return Ok(());
        }
        let all = tokio::time::timeout(timeout, self.room.acquire_many(self.max)).await;
        let Ok(_all) = all else { return Err(self.late("flush", "acks are not yet stored", timeout)) };
        // Later acks wait for a place, so that this flush misses none.
        sync.await?;
        self.is_flushed.store(true, Ordering::Release);
        flushed(self.lost.swap(0, Ordering::Relaxed))
    }

    /// Returns a retryable timeout error: the acks may still be stored.
    fn late(&self, operation: &'static str, what: &str, timeout: Duration) -> EventError {
        let cause = format!("{what} after {timeout:?}");
        BackendError::new(self.provider, operation, ErrorKind::Timeout, cause).retryable().into()
    }
}
