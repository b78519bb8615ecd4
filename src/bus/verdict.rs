//! The one decision about a delivery: whether it is delivered or given up. Those who read by hand and the handler runtime
//! ask here, and durable triggers do as its handlers.

use std::sync::Arc;

use super::dead_letter::{DeadLetters, Guarded};
use super::subscription::Poison;
use crate::dlq::{DeadLetter, FailureClass};
use crate::provider::Delivery;
use crate::types::Event;

/// What is to be done about a delivery.
pub(super) enum Verdict<T> {
    /// It is handed out, or delivered once more.
    Deliver(T),
    /// It is given up.
    DeadLetter(Box<DeadLetter>),
}

impl DeadLetters {
    /// The verdict on a delivery that has arrived with this content.
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
    /// The verdict on an attempt that has failed, for a reason if one is known. `class` says that no other attempt helps.
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
