//! History queries: read what is stored without a consumer.

use std::sync::Arc;
use std::time::Duration;

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

/// One answer to a history query: events and what could not be read, newest first, and how far the search went.
///
/// ```
/// use a3s_event::{EventProvider, HistoryQuery, MemoryProvider};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> a3s_event::Result<()> {
/// let provider = MemoryProvider::default();
/// let mut query = HistoryQuery::new(100).filter("events.orders.>");
/// loop {
///     let page = provider.query_page(&query).await?;
///     for record in &page.unreadable {
///         eprintln!("sequence {} cannot be read: {}", record.sequence, record.reason);
///     }
///     match page.next {
///         Some(before) => query = query.before_sequence(before),
///         None => break,
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct HistoryPage {
    /// The matching events, newest first; at most as many as the query's limit.
    pub events: Vec<StoredEvent>,
    /// Records in the searched range that cannot be read as events, newest first. Where a record does not tell its subject,
    /// the filter cannot leave it out.
    pub unreadable: Vec<UnreadableRecord>,
    /// The lowest sequence that was looked at: everything from here to the end of the query's range was searched. `None`
    /// when the range is empty.
    pub searched_from: Option<u64>,
    /// Where the next page begins: a value for [`HistoryQuery::before_sequence`]. `None` means that the whole range was
    /// searched.
    pub next: Option<u64>,
}

impl HistoryPage {
    /// The page of a search through a range whose lowest sequence is `first`, which looked at nothing below
    /// `searched_from`. For providers.
    pub fn new(
        events: Vec<StoredEvent>,
        unreadable: Vec<UnreadableRecord>,
        searched_from: Option<u64>,
        first: u64,
    ) -> Self {
        let next = searched_from.filter(|from| *from > first);
        Self { events, unreadable, searched_from, next }
    }

    /// Whether the whole range of the query was searched, so that there is no next page.
    pub fn is_complete(&self) -> bool {
        self.next.is_none()
    }
}

/// A stored record that cannot be read as an event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnreadableRecord {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// The subject under which it is stored, where that can be read.
    pub subject: Option<String>,
    /// When it was stored, in Unix milliseconds, where that can be read.
    pub stored_at: Option<u64>,
    /// Why it cannot be read.
    pub reason: String,
}

impl UnreadableRecord {
    /// A record of which nothing else is known. For providers.
    pub fn new(sequence: u64, reason: impl Into<String>) -> Self {
        Self { sequence, subject: None, stored_at: None, reason: reason.into() }
    }
}

/// A stream, as a connection to its backend lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamSummary {
    /// Its name.
    pub name: String,
    /// The filters of the subjects that it stores.
    pub subjects: Vec<String>,
    /// Number of stored events.
    pub events: u64,
    /// Their size in bytes, as the backend counts it.
    pub bytes: u64,
    /// Number of consumers.
    pub consumers: usize,
    /// Whether it is the one that the provider publishes to.
    pub is_own: bool,
}

impl StreamSummary {
    /// An empty stream that is not the provider's own. For providers.
    pub fn new(name: impl Into<String>, subjects: Vec<String>) -> Self {
        Self { name: name.into(), subjects, events: 0, bytes: 0, consumers: 0, is_own: false }
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
    /// When an event was last settled, in Unix milliseconds, where the backend knows it.
    pub last_progress: Option<u64>,
    /// How many subscriptions it has, where the backend knows it.
    pub members: Option<usize>,
    /// How many events were given up after `max_deliver` attempts, where the backend knows it.
    pub given_up: Option<u64>,
}

impl ConsumerInfo {
    /// A consumer with nothing pending. For providers.
    pub fn new(name: impl Into<String>, filter: impl Into<String>, durable: bool) -> Self {
        Self {
            name: name.into(),
            filter: filter.into(),
            durable,
            lag: 0,
            pending: 0,
            redelivered: 0,
            last_progress: None,
            members: None,
            given_up: None,
        }
    }

    /// Whether it has something to do and has settled nothing for this long, at this time in Unix milliseconds. `None`
    /// where the backend does not know when it last did.
    ///
    /// ```
    /// use std::time::Duration;
    /// use a3s_event::provider::ConsumerInfo;
    ///
    /// let mut billing = ConsumerInfo::new("billing", "events.>", true);
    /// billing.lag = 3;
    /// billing.last_progress = Some(1_790_000_000_000);
    /// assert_eq!(billing.is_stalled(1_790_000_060_000, Duration::from_secs(30)), Some(true));
    /// ```
    pub fn is_stalled(&self, now: u64, timeout: Duration) -> Option<bool> {
        let idle = Duration::from_millis(now.saturating_sub(self.last_progress?));
        Some(self.lag + self.pending > 0 && idle >= timeout)
    }
}
