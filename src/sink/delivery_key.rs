//! Keys of deliveries, by which a target recognizes a repeated attempt.

use std::fmt;

use crate::hash::fnv1a_128;

/// The key of one delivery of an event to a sink. Each attempt at the delivery has the same key, and no other delivery
/// has it. `Display` writes at most 64 characters of printable ASCII.
///
/// For a durable trigger, the broker derives the key from the trigger and from the stream, sequence, id, source and
/// time of the event. This key is the same after a restart and in another process. The key of a fire-and-forget trigger
/// is valid within the process, as its deliveries are. The dead letter of a delivery has its own key.
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
    /// Creates the key with this number in a scope. The scope must distinguish these keys from all others.
    pub fn new(scope: &[&str], number: u64) -> Self {
        Self { scope: fnv1a_128(scope), number, is_letter: false }
    }

    /// Creates a key in a scope that is a number already.
    #[cfg(feature = "routing")]
    pub(crate) fn within(scope: u128, number: u64) -> Self {
        Self { scope, number, is_letter: false }
    }

    /// Returns the key of the dead letter of this delivery.
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
