//! How often an event has passed a broker, so that a loop ends.

use crate::types::Event;

/// Metadata key of an event that a broker delivered: how many brokers it has passed.
pub const HOPS_KEY: &str = "broker_hops";
/// The reason in the dead letter of an event that has passed too many.
pub const HOP_LIMIT_REASON: &str = "hop_limit";

/// What a log says of an event that comes back from there.
pub(super) const LEFT_OUT: &str = "event left out of a loop";

pub(super) const DEFAULT_HOP_LIMIT: u32 = 16;

/// What the hops of an event allow.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hops {
    /// It may pass.
    Within,
    /// It has passed too many brokers.
    AtLimit,
    /// It was given up for that before, and comes back from there.
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

/// The event as it leaves the broker.
pub(super) fn passed(event: &Event) -> Event {
    let hops = count(event).saturating_add(1);
    event.clone().with_metadata(HOPS_KEY, hops.to_string())
}

/// What is no number was not written by a broker: it counts as none.
fn count(event: &Event) -> u32 {
    event.metadata.get(HOPS_KEY).and_then(|hops| hops.parse().ok()).unwrap_or(0)
}
