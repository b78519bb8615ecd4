//! A member of a consumer: takes available events and waits for more.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;

use super::Shared;
use super::consumer::{ConsumerCell, Look};
use crate::error::Result;
use crate::provider::group::{ConsumerConfig, Lease};
use crate::provider::receiver::{Ask, Fetch, Item};
use crate::provider::{AckHandler, AckKind, Settlement, SubscriptionEnd};

/// A member of a consumer of the memory provider.
pub struct MemoryFetch {
    shared: Arc<Shared>,
    cell: Arc<ConsumerCell>,
    handler: Arc<dyn AckHandler>,
}

impl MemoryFetch {
    pub(super) fn new(shared: Arc<Shared>, cell: Arc<ConsumerCell>) -> Self {
        {
            let mut stream = shared.write();
            if cell.members.join() {
                stream.set_attended(&cell, true);
            }
        }
        Self { shared, handler: Arc::clone(&cell) as Arc<dyn AckHandler>, cell }
    }
}

impl Fetch for MemoryFetch {
    async fn fetch(&mut self, ask: Ask, taken: &mut VecDeque<Item>) -> Result<Option<SubscriptionEnd>> {
        loop {
            match self.cell.take(&self.shared, ask, &self.handler, taken) {
                Look::Leased => return Ok(None),
                Look::End(end) => return Ok(Some(end)),
                // Boxed, so that the common case carries no timer.
                Look::Nothing { due } => {
                    let due = due.map(|due| self.shared.clock.instant(due));
                    Box::pin(self.cell.members.wait(due)).await;
                }
            }
        }
    }

    fn take_now(&mut self, ask: Ask, taken: &mut VecDeque<Item>) -> bool {
        matches!(self.cell.take(&self.shared, ask, &self.handler, taken), Look::Leased)
    }

    fn stream(&self) -> Arc<str> {
        self.cell.stream()
    }

    fn pass_on(&self) {
        self.cell.members.pass_on();
    }

    fn is_stale(&self, lease: Lease, _since: Instant) -> bool {
        self.cell.with_machine(|machine| lease.generation < machine.generation())
    }

    fn leave(&mut self, unused: Vec<Lease>) {
        for lease in unused {
            // A lease that was lost in the meantime needs no release.
            drop(self.handler.settle(Settlement::new(lease, AckKind::Release)));
        }
        let mut stream = self.shared.write();
        if self.cell.members.leave() {
            stream.set_attended(&self.cell, false);
        }
        if self.cell.is_durable() {
            drop(stream);
            self.cell.members.wake_one();
        } else {
            stream.remove_consumer(&self.cell);
        }
    }

    async fn lag(&self) -> Result<u64> {
        Ok(self.cell.lag(&self.shared))
    }

    fn settings(&self) -> Option<ConsumerConfig> {
        Some(self.cell.with_machine(|machine| machine.config().clone()))
    }
}

impl fmt::Debug for MemoryFetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryFetch").field("consumer", &self.cell.name()).finish_non_exhaustive()
    }
}
