//! What names a delivery, so that a target can tell a second attempt from a second event.

use std::fmt;

use crate::hash::fnv1a_128;

/// Names one delivery of an event to a sink: each attempt at it has the same key, and no other delivery has it. Its
/// Display is printable ASCII of at most 64 characters.
///
/// A broker makes the key of a durable trigger from the trigger, and the stream, sequence, id, source and time of the event,
/// so that it is the same after a restart and in another process. That of a fire-and-forget trigger is of the process, as
/// its deliveries are. The dead letter of a delivery has a key of its own.
///
/// ```
/// use a3s_event::sink::DeliveryKey;
///
/// let key = DeliveryKey::new(&["billing", "A3S_EVENTS"], 42);
/// assert_eq!(key.to_string(), DeliveryKey::new(&["billing", "A3S_EVENTS"], 42).to_string());
/// assert_ne!(key, DeliveryKey::new(&["billing", "A3S_EVENTS"], 43));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeliveryKey {
    scope: u128,
    number: u64,
    is_letter: bool,
}

impl DeliveryKey {
    /// The key of this number among those of a scope, which is whatever tells them from the keys of others.
    pub fn new(scope: &[&str], number: u64) -> Self {
        Self { scope: fnv1a_128(scope), number, is_letter: false }
    }

    /// The same with a scope that is a number already.
    #[cfg(feature = "routing")]
    pub(crate) fn within(scope: u128, number: u64) -> Self {
        Self { scope, number, is_letter: false }
    }

    /// The key of the dead letter that this delivery ends in.
    #[cfg(feature = "routing")]
    pub(crate) fn letter(self) -> Self {
        Self { is_letter: true, ..self }
    }
}

impl fmt::Display for DeliveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = if self.is_letter { "-letter" } else { "" };
        write!(f, "{:032x}-{}{letter}", self.scope, self.number)
    }
}
