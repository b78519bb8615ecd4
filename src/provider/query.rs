//! History queries: reading stored events without a consumer.

use std::sync::Arc;
use std::time::Duration;

use crate::types::Event;

/// A query for stored events. It returns exactly the newest `limit` events that match, newest first.
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
    /// Subject filter; `None` matches everything.
    pub filter: Option<String>,
    /// Maximum number of events in the answer.
    pub limit: usize,
    /// Minimum sequence, inclusive.
    pub since_sequence: Option<u64>,
    /// Maximum sequence, exclusive. Selects the next page.
    pub before_sequence: Option<u64>,
    /// Minimum storage time in Unix milliseconds, inclusive.
    pub since_time: Option<u64>,
    /// Maximum storage time in Unix milliseconds, exclusive.
    pub before_time: Option<u64>,
}

impl HistoryQuery {
    /// Creates a query for the newest `limit` events.
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Selects only events whose subject matches.
    #[must_use]
    pub fn filter(mut self, filter: impl Into<String>) -> Self {
        self.filter = Some(filter.into());
        self
    }

    /// Selects only events with this sequence or a higher one.
    #[must_use]
    pub fn since_sequence(mut self, sequence: u64) -> Self {
        self.since_sequence = Some(sequence);
        self
    }

    /// Selects only events with a lower sequence. For the next page, pass the sequence of the last event of this page.
    #[must_use]
    pub fn before_sequence(mut self, sequence: u64) -> Self {
        self.before_sequence = Some(sequence);
        self
    }

    /// Selects only events stored at this time or later, in Unix milliseconds.
    #[must_use]
    pub fn since_time(mut self, unix_ms: u64) -> Self {
        self.since_time = Some(unix_ms);
        self
    }

    /// Selects only events stored before this time, in Unix milliseconds.
    #[must_use]
    pub fn before_time(mut self, unix_ms: u64) -> Self {
        self.before_time = Some(unix_ms);
        self
    }
}

/// A stored event, as a query returns it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoredEvent {
    /// The event, shared with a provider that keeps it in memory.
    pub event: Arc<Event>,
    /// Sequence of the event in the stream.
    pub sequence: u64,
    /// Storage time in Unix milliseconds.
    pub stored_at: u64,
}

impl StoredEvent {
    /// Creates a stored event. For providers.
    pub fn new(event: Arc<Event>, sequence: u64, stored_at: u64) -> Self {
        Self { event, sequence, stored_at }
    }
}

/// One page of the answer to a history query: events and unreadable records, newest first, and the range that was
/// searched.
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
    /// Matching events, newest first; at most as many as the query's limit.
    pub events: Vec<StoredEvent>,
    /// Records in the searched range that cannot be read as events, newest first. A record whose subject cannot be read
    /// is listed regardless of the filter.
    pub unreadable: Vec<UnreadableRecord>,
    /// Lowest sequence that was searched: the page covers everything from here to the end of the query's range. `None`
    /// if the range is empty.
    pub searched_from: Option<u64>,
    /// Start of the next page: a value for [`HistoryQuery::before_sequence`]. `None` means that the whole range was
    /// searched.
    pub next: Option<u64>,
}

impl HistoryPage {
    /// Creates the page of a search. `first` is the lowest sequence of the range, and `searched_from` the lowest
    /// sequence that was searched. For providers.
    pub fn new(
        events: Vec<StoredEvent>,
        unreadable: Vec<UnreadableRecord>,
        searched_from: Option<u64>,
        first: u64,
    ) -> Self {
        let next = searched_from.filter(|from| *from > first);
        Self { events, unreadable, searched_from, next }
    }

    /// Returns `true` if the whole range of the query was searched, so that there is no next page.
    pub fn is_complete(&self) -> bool {
        self.next.is_none()
    }
}

/// A stored record that cannot be read as an event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnreadableRecord {
    /// Sequence of the record in the stream.
    pub sequence: u64,
    /// Subject under which it is stored, if that can be read.
    pub subject: Option<String>,
    /// Storage time in Unix milliseconds, if that can be read.
    pub stored_at: Option<u64>,
    /// Reason why it cannot be read.
    pub reason: String,
}

impl UnreadableRecord {
    /// Creates a record of which only the sequence and the reason are known. For providers.
    pub fn new(sequence: u64, reason: impl Into<String>) -> Self {
        Self { sequence, subject: None, stored_at: None, reason: reason.into() }
    }
}

/// A stream, as a connection to its backend lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamSummary {
    /// Name of the stream.
    pub name: String,
    /// Filters of the subjects that it stores.
    pub subjects: Vec<String>,
    /// Number of stored events.
    pub events: u64,
    /// Size of the stored events in bytes, as the backend counts them.
    pub bytes: u64,
    /// Number of consumers.
    pub consumers: usize,
    /// If true, the provider publishes to this stream.
    pub is_own: bool,
    /// Retention limits; `None` if the provider does not know them.
    pub limits: Option<StreamLimits>,
}

impl StreamSummary {
    /// Creates the summary of an empty stream that is not the provider's own, with unknown limits. For providers.
    pub fn new(name: impl Into<String>, subjects: Vec<String>) -> Self {
        Self { name: name.into(), subjects, events: 0, bytes: 0, consumers: 0, is_own: false, limits: None }
    }
}

/// The retention limits of a stream: how much it keeps, how long, and what happens when it is full.
///
/// ```
/// use std::time::Duration;
/// use a3s_event::provider::{DiscardPolicy, LimitSource};
/// use a3s_event::{EventProvider, MemoryProvider};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> a3s_event::Result<()> {
/// let provider = MemoryProvider::builder().max_events(1_000).max_age(Duration::from_secs(60)).build()?;
/// let limits = provider.streams().await?[0].limits.expect("the memory provider knows its limits");
/// assert_eq!((limits.max_events, limits.max_bytes), (Some(1_000), None));
/// assert_eq!(limits.max_age, Some(Duration::from_secs(60)));
/// assert_eq!(limits.discard, DiscardPolicy::Old);
/// assert_eq!(limits.source, LimitSource::Stream);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamLimits {
    /// Maximum number of stored events; `None` is unlimited.
    pub max_events: Option<u64>,
    /// Maximum size of the stored events in bytes, as the backend counts them; `None` is unlimited.
    pub max_bytes: Option<u64>,
    /// Maximum age of a stored event; `None` is unlimited. Older events are dropped under any discard policy.
    pub max_age: Option<Duration>,
    /// What a publish does when the stream has reached `max_events` or `max_bytes`.
    pub discard: DiscardPolicy,
    /// Tells whether the limits are those of the stream or only of this connection.
    pub source: LimitSource,
}

impl StreamLimits {
    /// Creates limits of the stream from numbers in which 0 is unlimited. A full stream drops its oldest events. For
    /// providers.
    pub fn new(max_events: u64, max_bytes: u64, max_age: Duration) -> Self {
        Self {
            max_events: Some(max_events).filter(|max| *max > 0),
            max_bytes: Some(max_bytes).filter(|max| *max > 0),
            max_age: Some(max_age).filter(|max| !max.is_zero()),
            discard: DiscardPolicy::Old,
            source: LimitSource::Stream,
        }
    }

    /// Returns `true` if the stream keeps every event forever.
    pub fn is_unlimited(&self) -> bool {
        self.max_events.is_none() && self.max_bytes.is_none() && self.max_age.is_none()
    }
}

/// What a publish to a full stream does. NATS calls this the discard policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiscardPolicy {
    /// The oldest events are dropped, including those that a consumer has not read.
    #[default]
    Old,
    /// The publish fails, and the stored events stay.
    New,
}

/// Where the limits of a stream are set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitSource {
    /// The stream has one set of limits, which apply to every program.
    #[default]
    Stream,
    /// Each connection has limits of its own, because the stream stores none. The strictest ones take effect. Other
    /// programs may use other limits than the ones reported here.
    Connection,
}

/// The state of one consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerInfo {
    /// Name of the consumer. For an ephemeral consumer, the provider generates one.
    pub name: String,
    /// Subject filter.
    pub filter: String,
    /// If true, the consumer is durable.
    pub durable: bool,
    /// Number of matching retained events that were not yet delivered.
    pub lag: u64,
    /// Number of delivered events that are not yet settled.
    pub pending: u64,
    /// Number of pending events that were delivered more than once.
    pub redelivered: u64,
    /// Time of the last settlement in Unix milliseconds, if the backend knows it.
    pub last_progress: Option<u64>,
    /// Number of subscriptions, if the backend knows it.
    pub members: Option<usize>,
    /// Number of events given up after `max_deliver` attempts, if the backend knows it.
    pub given_up: Option<u64>,
}

impl ConsumerInfo {
    /// Creates the state of a consumer without lag or pending events. For providers.
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

    /// Returns `true` if the consumer has lag or pending events and settled nothing for `timeout`. `now` is in Unix
    /// milliseconds. Returns `None` if the backend does not know the time of the last settlement.
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
