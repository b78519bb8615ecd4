//! History queries: read what is stored without a consumer.

use std::sync::Arc;

use crate::types::Event;

/// Which stored events to read. Answers come newest first: exactly the newest `limit` that match.
///
/// ```
/// use a3s_event::provider::HistoryQuery;
///
/// let newest = HistoryQuery::new(100).filter("events.market.>").since_time(1_517_000_000_000);
/// let next_page = newest.clone().before_sequence(4_711);
/// # let _ = next_page;
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistoryQuery {
    /// Subject filter; everything when `None`.
    pub filter: Option<String>,
    /// Most events in the answer.
    pub limit: usize,
    /// Only events with this sequence or a higher one.
    pub since_sequence: Option<u64>,
    /// Only events with a lower sequence than this: the way to the next page.
    pub before_sequence: Option<u64>,
    /// Only events stored at this time or later, in Unix milliseconds.
    pub since_time: Option<u64>,
    /// Only events stored before this time, in Unix milliseconds.
    pub before_time: Option<u64>,
}

impl HistoryQuery {
    /// The newest `limit` events.
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Only events whose subject matches.
    #[must_use]
    pub fn filter(mut self, filter: impl Into<String>) -> Self {
        self.filter = Some(filter.into());
        self
    }

    /// Only events with this sequence or a higher one.
    #[must_use]
    pub fn since_sequence(mut self, sequence: u64) -> Self {
        self.since_sequence = Some(sequence);
        self
    }

    /// Only events with a lower sequence than this. For the next page, the sequence of the last event of this one.
    #[must_use]
    pub fn before_sequence(mut self, sequence: u64) -> Self {
        self.before_sequence = Some(sequence);
        self
    }

    /// Only events stored at this time or later, in Unix milliseconds.
    #[must_use]
    pub fn since_time(mut self, unix_ms: u64) -> Self {
        self.since_time = Some(unix_ms);
        self
    }

    /// Only events stored before this time, in Unix milliseconds.
    #[must_use]
    pub fn before_time(mut self, unix_ms: u64) -> Self {
        self.before_time = Some(unix_ms);
        self
    }
}

/// A stored event as a query returns it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoredEvent {
    /// The event, shared with the provider where it lives in memory.
    pub event: Arc<Event>,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When it was stored, in Unix milliseconds.
    pub stored_at: u64,
}

impl StoredEvent {
    /// Puts an answer together. For providers.
    pub fn new(event: Arc<Event>, sequence: u64, stored_at: u64) -> Self {
        Self { event, sequence, stored_at }
    }
}

/// The state of one consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerInfo {
    /// Name of the consumer; for an ephemeral one a name that the provider made up.
    pub name: String,
    /// Its subject filter.
    pub filter: String,
    /// Whether it is durable.
    pub durable: bool,
    /// Matching retained events that were not delivered yet.
    pub lag: u64,
    /// Delivered events that are not settled yet.
    pub pending: u64,
    /// How many of the pending events were delivered more than once.
    pub redelivered: u64,
}

impl ConsumerInfo {
    /// A consumer with nothing pending. For providers.
    pub fn new(name: impl Into<String>, filter: impl Into<String>, durable: bool) -> Self {
        Self { name: name.into(), filter: filter.into(), durable, lag: 0, pending: 0, redelivered: 0 }
    }
}
