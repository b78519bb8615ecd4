//! Acks that no caller waits for. The writer thread has them in its queue and stores them shortly afterwards.

use std::sync::Arc;

use super::cells::ConsumerKey;
use super::error::{Failure, Sql};
use super::queue::{GiveBack, Work};
use super::store::Store;
use tokio::sync::OwnedSemaphorePermit;

use crate::error::{ErrorKind, Result};
use crate::provider::AckKind;
use crate::provider::group::Lease;
use crate::provider::support::SentAcks;

/// A sent ack or term that is not stored yet.
pub(super) struct SentAck {
    pub(super) consumer: ConsumerKey,
    pub(super) lease: Lease,
    pub(super) kind: AckKind,
    pub(super) acks: Arc<SentAcks>,
    /// Result of the settlement; `None` before it has run.
    pub(super) settled: Option<Result<()>>,
    pub(super) place: OwnedSemaphorePermit,
}

impl SentAck {
    fn note_lost(&self) {
        self.acks.note_lost();
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
                self.acks.note_stale();
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
