//! Acks that nobody waits for: they are in the queue of the writer thread, and stored a moment later.

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

/// The acks of one member that are not stored yet.
#[derive(Debug)]
pub(super) struct UnstoredAcks {
    /// A permit for each that may be.
    room: Arc<Semaphore>,
    max: u32,
    /// Whether some were sent since the last flush.
    is_flushed: AtomicBool,
    /// Those of a transaction that failed, since the last flush.
    lost: AtomicU64,
    failures: Arc<AckFailures>,
}

impl UnstoredAcks {
    pub(super) fn new(max: usize, failures: Arc<AckFailures>) -> Self {
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        let room = Arc::new(Semaphore::new(max as usize));
        Self { room, max, is_flushed: AtomicBool::new(true), lost: AtomicU64::new(0), failures }
    }

    /// A place for another one, if there is one now.
    pub(super) fn place_now(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).try_acquire_owned().ok()
    }

    /// Waits for a place.
    pub(super) async fn place(&self, timeout: Duration) -> Result<OwnedSemaphorePermit> {
        let placing = Arc::clone(&self.room).acquire_owned();
        match tokio::time::timeout(timeout, placing).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(late("ack", "no room among those that are not stored", timeout)),
        }
    }

    /// Notes that one is sent, by whoever has a place.
    pub(super) fn note_sent(&self) {
        self.is_flushed.store(false, Ordering::Release);
    }

    /// Waits until those that were sent before are stored, and, with `sync`, until the disk has them.
    pub(super) async fn flush(
        &self,
        timeout: Duration,
        sync: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        if self.is_flushed.load(Ordering::Acquire) {
            return Ok(());
        }
        let all = tokio::time::timeout(timeout, self.room.acquire_many(self.max)).await;
        let Ok(_all) = all else { return Err(late("flush", "acks are not stored", timeout)) };
        // The next ones wait for a place, so that this cannot overlook one.
        sync.await?;
        self.is_flushed.store(true, Ordering::Release);
        flushed(self.lost.swap(0, Ordering::Relaxed))
    }
}

/// Nothing is wrong yet, and asking again is safe.
fn late(operation: &'static str, what: &str, timeout: Duration) -> EventError {
    let cause = format!("{what} after {timeout:?}");
    BackendError::new(super::NAME, operation, ErrorKind::Timeout, cause).retryable().into()
}

/// An ack, or another settlement for good, on its way.
pub(super) struct SentAck {
    pub(super) consumer: ConsumerKey,
    pub(super) lease: Lease,
    pub(super) kind: AckKind,
    pub(super) acks: Arc<UnstoredAcks>,
    /// How it was settled; `None` before.
    pub(super) settled: Option<Result<()>>,
    pub(super) place: OwnedSemaphorePermit,
}

impl SentAck {
    fn note_lost(&self) {
        self.acks.lost.fetch_add(1, Ordering::Relaxed);
        self.acks.failures.add_lost(1);
        let (consumer, sequence) = (self.consumer.id, self.lease.sequence);
        tracing::debug!(consumer, sequence, "an ack was lost; the event comes again");
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
                tracing::debug!(consumer, sequence, %error, "an ack came too late");
            }
            // The failure of the transaction is in the log already.
            _ => self.note_lost(),
        }
        // Whoever waits for a place, or for the last one, goes on.
        drop(self.place);
        None
    }

    fn can_wait(&self) -> bool {
        true
    }
}
