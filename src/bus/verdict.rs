//! Decides if an event is delivered or given up. Manual readers and the handler runtime both call it; durable triggers
//! do so as handlers of the runtime.

use std::sync::Arc;

use super::dead_letter::{DeadLetters, Guarded};
use super::subscription::Poison;
use crate::dlq::{DeadLetter, FailureClass};
use crate::provider::Delivery;
use crate::types::Event;

/// Decision about a delivery.
pub(super) enum Verdict<T> {
    /// Hand the event out, or have it redelivered.
    Deliver(T),
    /// Give the event up.
    DeadLetter(Box<DeadLetter>),
}

impl DeadLetters {
    /// Decides about a delivery that has arrived with this content.
    pub(super) fn on_arrival(
        &self,
        stored: &Delivery,
        content: &Result<Arc<Event>, Box<Poison>>,
    ) -> Verdict<Arc<Event>> {
        let delivered = stored.num_delivered();
        match (content, self.max_deliver) {
            (Err(poison), _) => {
                Verdict::DeadLetter(self.failed(stored, poison.class, &poison.reason, delivered))
            }
            // All allowed deliveries happened before this one.
            (Ok(_), Some(max)) if delivered > max => Verdict::DeadLetter(self.exhausted(stored, max)),
            (Ok(event), _) => Verdict::Deliver(Arc::clone(event)),
        }
    }
}

impl Guarded {
    /// Decides about a failed attempt, for a reason if one is known. A `class` means that another attempt cannot help.
    pub(super) fn on_failure(&self, class: Option<FailureClass>, reason: Option<&str>) -> Verdict<()> {
        if class.is_none() && !self.is_last() {
            return Verdict::Deliver(());
        }
        let (letters, attempts) = (&self.letters, self.attempt());
        let class = class.unwrap_or(FailureClass::Exhausted);
        Verdict::DeadLetter(match reason {
            Some(reason) => letters.failed(&self.stored, class, reason, attempts),
            None => letters.exhausted(&self.stored, attempts),
        })
    }
}
