//! Counts the brokers that an event has passed, so that a loop ends.

use crate::types::Event;

/// Metadata key for the number of brokers that an event has passed.
pub const HOPS_KEY: &str = "broker_hops";
/// Reason in the dead letter of an event that has passed too many brokers.
pub const HOP_LIMIT_REASON: &str = "hop_limit";

/// Log message for an event that returns after it was given up at the hop limit.
pub(super) const LEFT_OUT: &str = "event dropped: it returned after the hop limit";

pub(super) const DEFAULT_HOP_LIMIT: u32 = 16;

/// State of an event by its hops.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hops {
    /// The event may pass.
    Within,
    /// The event has passed too many brokers.
    AtLimit,
    /// The event was given up at the limit before, and has returned.
    Beyond,
}

impl Hops {
    pub(super) fn of(event: &Event, limit: u32) -> Self {
        match count(event).cmp(&limit) {
            std::cmp::Ordering::Less => Self::Within,
            std::cmp::Ordering::Equal => Self::AtLimit,
            std::cmp::Ordering::Greater => Self::Beyond,
        }
    }
}

/// Returns the event as it leaves the broker, with one more hop.
pub(super) fn passed(event: &Event) -> Event {
    let hops = count(event).saturating_add(1);
    event.clone().with_metadata(HOPS_KEY, hops.to_string())
}

/// Returns the hops. A value that is not a number was not written by a broker and counts as none.
fn count(event: &Event) -> u32 {
    event.metadata.get(HOPS_KEY).and_then(|hops| hops.parse().ok()).unwrap_or(0)
}
