//! Acks that no caller waits for. The writer thread has them in its queue and stores them shortly afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::cells::ConsumerKey;
use super::error::{Failure, Sql};
use super::queue::{GiveBack, Work};
use super::store::Store;
use crate::error::{BackendError, ErrorKind, EventError, Result};
use crate::provider::group::Lease;
use crate::provider::support::flushed;
use crate::provider::{AckFailures, AckKind};

/// Acks of one member that are not stored yet.
#[derive(Debug)]
pub(super) struct UnstoredAcks {
    /// One permit per ack that may be unstored.
    room: Arc<Semaphore>,
    max: u32,
    /// True if no ack was sent since the last flush.
    is_flushed: AtomicBool,
    /// Number of acks in failed transactions since the last flush.
    lost: AtomicU64,
    failures: Arc<AckFailures>,
}

impl UnstoredAcks {
    pub(super) fn new(max: usize, failures: Arc<AckFailures>) -> Self {
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        let room = Arc::new(Semaphore::new(max as usize));
        Self { room, max, is_flushed: AtomicBool::new(true), lost: AtomicU64::new(0), failures }
    }

    /// Returns a permit for another ack, if one is available now.
    pub(super) fn place_now(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).try_acquire_owned().ok()
    }

    /// Waits for a permit.
    pub(super) async fn place(&self, timeout: Duration) -> Result<OwnedSemaphorePermit> {
        let placing = Arc::clone(&self.room).acquire_owned();
        match tokio::time::timeout(timeout, placing).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(late("ack", "too many acks are not yet stored", timeout)),
        }
    }

    /// Records that an ack was sent since the last flush.
    pub(super) fn note_sent(&self) {
        self.is_flushed.store(false, Ordering::Release);
    }

    /// Waits until all acks that were sent before are stored. Then awaits `sync`, which waits for the disk.
    pub(super) async fn flush(
        &self,
        timeout: Duration,
        sync: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        if self.is_flushed.load(Ordering::Acquire) {
            return Ok(());
        }
        let all = tokio::time::timeout(timeout, self.room.acquire_many(self.max)).await;
        let Ok(_all) = all else { return Err(late("flush", "acks are not yet stored", timeout)) };
        // Later acks wait for a permit, so that this flush misses none.
        sync.await?;
        self.is_flushed.store(true, Ordering::Release);
        flushed(self.lost.swap(0, Ordering::Relaxed))
    }
}

/// Returns a retryable timeout error: the acks may still be stored.
fn late(operation: &'static str, what: &str, timeout: Duration) -> EventError {
    let cause = format!("{what} after {timeout:?}");
    BackendError::new(super::NAME, operation, ErrorKind::Timeout, cause).retryable().into()
}

/// A sent ack or term that is not stored yet.
pub(super) struct SentAck {
    pub(super) consumer: ConsumerKey,
    pub(super) lease: Lease,
    pub(super) kind: AckKind,
    pub(super) acks: Arc<UnstoredAcks>,
    /// Result of the settlement; `None` before it has run.
    pub(super) settled: Option<Result<()>>,
    pub(super) place: OwnedSemaphorePermit,
}

impl SentAck {
    fn note_lost(&self) {
        self.acks.lost.fetch_add(1, Ordering::Relaxed);
        self.acks.failures.add_lost(1);
        let (consumer, sequence) = (self.consumer.id, self.lease.sequence);
        tracing::debug!(consumer, sequence, "an ack was lost; its event will be redelivered");
    }
}

impl Work for SentAck {
    fn run(&mut self, store: &mut Store) -> Sql<()> {
        self.settled = Some(store.settle(self.consumer, self.lease, &self.kind)?);
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: std::result::Result<(), &Failure>) -> Option<GiveBack> {
        match (outcome, &self.settled) {
            (Ok(()), Some(Ok(()))) => {}
            (Ok(()), Some(Err(error))) if error.kind() == ErrorKind::Ack => {
                self.acks.failures.add_stale(1);
                let (consumer, sequence) = (self.consumer.id, self.lease.sequence);
                tracing::debug!(consumer, sequence, %error, "an ack arrived too late");
            }
            // The failure of the transaction is already logged.
            _ => self.note_lost(),
        }
        // Lets the next ack, or a flush, proceed.
        drop(self.place);
        None
    }

    fn can_wait(&self) -> bool {
        true
    }
}
