//! Requests for events, and what is known about the open one.

use std::time::Duration;

use tokio::time::Instant;

use crate::provider::pace::AHEAD;

/// Time for which the server keeps one request. It differs from the default ack wait: if a lease ends when a request
/// expires, nats-server 2.9.10 redelivers the event as if for the first time.
const EXPIRES: Duration = Duration::from_secs(27);
/// Interval in which the server reports that the request is still open.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The open request of a member.
pub(super) enum State {
    Idle,
    /// A request is open. The server last reported at this time, and may send so many more events.
    Waiting(Instant, usize),
    /// A request that the server ends by itself is open since this time, and may bring so many more events.
    Fetching(Until, Instant, usize),
    /// The request was cancelled at this time, and the events that it fetched may still arrive.
    Cancelled(Instant),
}

impl State {
    /// Returns the state after an event for an open request that could bring `left` events.
    pub(super) fn after_event(heard: Instant, left: usize) -> Self {
        if left > 1 { Self::Waiting(heard, left - 1) } else { Self::Idle }
    }
}

/// The time at which the server ends a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Once it has sent the events that are available.
    NoMore,
    /// A moment later, after [`AHEAD`].
    Moment,
}

impl Until {
    /// Returns the body of a request that ends by itself, for up to `max` events.
    pub(super) fn request(self, max: usize) -> String {
        match self {
            Self::NoMore => format!(r#"{{"batch":{max},"no_wait":true}}"#),
            Self::Moment => format!(r#"{{"batch":{max},"expires":{}}}"#, AHEAD.as_nanos()),
        }
    }
}

/// Returns the body of a request that waits for up to `max` events.
pub(super) fn waiting(max: usize) -> String {
    let (expires, heartbeat) = (EXPIRES.as_nanos(), HEARTBEAT.as_nanos());
    format!(r#"{{"batch":{max},"expires":{expires},"idle_heartbeat":{heartbeat}}}"#)
}
