//! A dead-letter queue in a provider.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::letter::{DeadLetter, FailureClass};
use super::record::{Mark, Record, letter_event, mark_event};
use super::{DeadLetterEvent, DeadLetterReceipt, DlqHandler};
use crate::error::{EventError, Result};
use crate::provider::support::unsupported;
use crate::provider::{EventProvider, HistoryQuery, PublishReceipt, StoredEvent};
use crate::reserved;
use crate::subject::subject_matches;
use crate::task::within;
use crate::types::{Event, PublishOptions};

/// Number of stored events that are read at a time.
const PAGE: usize = 100;
/// Maximum wait for one answer of the provider, whose own timeouts are shorter.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

/// Stores dead letters in any provider, under reserved subjects: letters as `{prefix}.dlq.letters.{original subject}`,
/// and marks as `{prefix}.dlq.marks.{key}`.
///
/// A mark records that a letter was replayed or discarded: the letter is then no longer [open](DeadLetterStatus::Open).
/// The queue never deletes anything; the limits of the stream drop letters and marks. So give the queue a separate
/// stream that is large enough. If the provider supports it, let a full stream refuse new events. Consumption then
/// stops instead of letters being dropped.
///
/// A failure is stored once, even if several processes report it, or one reports it again after a crash.
///
/// ```
/// use std::sync::Arc;
/// use a3s_event::dlq::{DeadLetterFilter, ProviderDlqHandler, Replay};
/// use a3s_event::{EventBus, MemoryProvider};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> a3s_event::Result<()> {
/// let letters = Arc::new(ProviderDlqHandler::new(Arc::new(MemoryProvider::default()))?);
/// let bus = EventBus::builder(MemoryProvider::default()).dlq_handler(letters.clone()).build()?;
///
/// for stored in letters.find(&DeadLetterFilter::default().subject("events.orders.>"), 50).await? {
///     println!("{}: {} ({})", stored.id, stored.letter.reason, stored.letter.class);
/// }
/// let report = letters.replay(bus.provider(), &Replay::default().dry_run()).await?;
/// assert!(report.replayed.is_empty());
/// # Ok(())
/// # }
/// ```
pub struct ProviderDlqHandler {
    pub(super) provider: Arc<dyn EventProvider>,
}

/// Status of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeadLetterStatus {
    /// The letter was neither replayed nor discarded.
    Open,
    /// The event was published again.
    Replayed,
    /// The letter was marked as done without a replay.
    Discarded,
}

impl fmt::Display for DeadLetterStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Replayed => "replayed",
            Self::Discarded => "discarded",
        })
    }
}

/// A dead letter in the queue.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoredDeadLetter {
    /// Number of the letter in the queue.
    pub id: u64,
    /// Key of the failure; see [`DeadLetter::key`].
    pub key: String,
    /// Dead letter.
    pub letter: DeadLetter,
    /// If true, the letter did not fit into the queue with its payload, which is only in the original stream.
    pub omitted: bool,
    /// Status of the letter.
    pub status: DeadLetterStatus,
    /// Number of replays of the event since it was dead-lettered, through this letter or another one of the same event.
    /// [`DeadLetter::replays`] counts those before.
    pub replays: u64,
}

impl StoredDeadLetter {
    /// Returns how often the event was replayed before and after it was dead-lettered. A [`Replay`](super::Replay)
    /// compares the highest of these numbers over its letters with the limit.
    pub fn event_replays(&self) -> u64 {
        self.letter.replays().saturating_add(self.replays)
    }
}

/// A filter of dead letters. The default matches all open ones.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeadLetterFilter {
    /// Filter of the original subject.
    pub subject: Option<String>,
    /// Class of the failure.
    pub class: Option<FailureClass>,
    /// Full name of the consumer: its own, or the one by which the program called it.
    pub consumer: Option<String>,
    /// Id of the event.
    pub event_id: Option<String>,
    /// Earliest time of dead-lettering, inclusive, in Unix milliseconds.
    pub since: Option<u64>,
    /// Latest time of dead-lettering, exclusive, in Unix milliseconds.
    pub before: Option<u64>,
    /// Status of the letter; `None` means all.
    pub status: Option<DeadLetterStatus>,
}

impl Default for DeadLetterFilter {
    fn default() -> Self {
        Self {
            subject: None,
            class: None,
            consumer: None,
            event_id: None,
            since: None,
            before: None,
            status: Some(DeadLetterStatus::Open),
        }
    }
}

impl DeadLetterFilter {
    /// Matches only letters whose original subject matches this filter.
    #[must_use]
    pub fn subject(mut self, filter: impl Into<String>) -> Self {
        self.subject = Some(filter.into());
        self
    }

    /// Matches only failures of this class.
    #[must_use]
    pub fn class(mut self, class: FailureClass) -> Self {
        self.class = Some(class);
        self
    }

    /// Matches only letters of this consumer. The full name is [its own](DeadLetter::consumer), or the one [by which
    /// the program called it](DeadLetter::subscriber).
    #[must_use]
    pub fn consumer(mut self, name: impl Into<String>) -> Self {
        self.consumer = Some(name.into());
        self
    }

    /// Matches only events with this id.
    #[must_use]
    pub fn event_id(mut self, id: impl Into<String>) -> Self {
        self.event_id = Some(id.into());
        self
    }

    /// Matches only letters of this time or later, in Unix milliseconds.
    #[must_use]
    pub fn since(mut self, unix_ms: u64) -> Self {
        self.since = Some(unix_ms);
        self
    }

    /// Matches only letters from before this time, in Unix milliseconds.
    #[must_use]
    pub fn before(mut self, unix_ms: u64) -> Self {
        self.before = Some(unix_ms);
        self
    }

    /// Matches letters with this status instead of open ones; `None` means all.
    #[must_use]
    pub fn status(mut self, status: Option<DeadLetterStatus>) -> Self {
        self.status = status;
        self
    }

    /// Returns true if the filter matches a letter.
    pub fn matches(&self, stored: &StoredDeadLetter) -> bool {
        let letter = &stored.letter;
        let subject = letter.original_subject.as_deref().unwrap_or(&letter.event.event.subject);
        self.subject.as_deref().is_none_or(|filter| subject_matches(subject, filter))
            && self.class.is_none_or(|class| letter.class == class)
            && self.consumer.as_ref().is_none_or(|name| {
                letter.consumer.as_ref() == Some(name) || letter.subscriber.as_ref() == Some(name)
            })
            && self.event_id.as_ref().is_none_or(|id| letter.event.event.id == *id)
            && self.since.is_none_or(|since| letter.dead_lettered_at >= since)
            && self.before.is_none_or(|before| letter.dead_lettered_at < before)
            && self.status.is_none_or(|status| stored.status == status)
    }
}

impl ProviderDlqHandler {
    /// Creates a queue in this provider. Letters that it already contains are in the queue.
    ///
    /// # Errors
    ///
    /// [`EventError::Unsupported`] if the provider declares that it has no history queries.
    pub fn new(provider: Arc<dyn EventProvider>) -> Result<Self> {
        if provider.capabilities().history_query.is_no() {
            return Err(unsupported("query", provider.name()));
        }
        Ok(Self { provider })
    }

    /// Returns the newest `limit` letters that the filter matches, newest first. It reads from the newest letter on,
    /// and stops as soon as it has enough.
    ///
    /// # Errors
    ///
    /// Same as [`EventProvider::query`], and [`EventError::Timeout`].
    pub async fn find(&self, filter: &DeadLetterFilter, limit: usize) -> Result<Vec<StoredDeadLetter>> {
        let mut found = Vec::new();
        if limit == 0 {
            return Ok(found);
        }
        self.visit(|letter| {
            if filter.matches(&letter) {
                found.push(letter);
            }
            if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
        .await?;
        Ok(found)
    }

    /// Returns the number of letters that the filter matches. It reads the whole queue.
    ///
    /// # Errors
    ///
    /// Same as [`find`](ProviderDlqHandler::find).
    pub async fn count_matching(&self, filter: &DeadLetterFilter) -> Result<usize> {
        let mut count = 0;
        self.visit(|letter| {
            count += usize::from(filter.matches(&letter));
            ControlFlow::Continue(())
        })
        .await?;
        Ok(count)
    }

    /// Returns the letter with this number.
    ///
    /// # Errors
    ///
    /// [`EventError::NotFound`] if there is none, also if the stream's limits have dropped it. Otherwise same as
    /// [`find`](ProviderDlqHandler::find).
    pub async fn show(&self, id: u64) -> Result<StoredDeadLetter> {
        let query = HistoryQuery::new(1).since_sequence(id).before_sequence(id.saturating_add(1));
        let stored = self.query(&query).await?;
        let read = |stored: &StoredEvent| Record::of(stored, self.provider.subject_prefix());
        let Some(Record::Letter(mut letter)) = stored.first().and_then(read) else {
            return Err(EventError::NotFound(format!("dead letter {id}")));
        };
        let marks = reserved::mark_subject(self.provider.subject_prefix(), &letter.key);
        let marks = self.query(&HistoryQuery::new(1).filter(marks)).await?;
        if let Some(Record::Mark(mark)) = marks.first().and_then(read) {
            (letter.status, letter.replays) = (mark.status, mark.replays);
        }
        Ok(*letter)
    }

    /// Marks a letter as done without a replay. It stays in the queue, and is no longer open.
    ///
    /// # Errors
    ///
    /// Same as [`show`](ProviderDlqHandler::show) and [`EventProvider::publish`].
    pub async fn discard(&self, id: u64) -> Result<()> {
        let letter = self.show(id).await?;
        if letter.status == DeadLetterStatus::Discarded {
            return Ok(());
        }
        tracing::info!(id, event = letter.letter.event.event.id, "dead letter discarded");
        let mark = Mark { key: letter.key, status: DeadLetterStatus::Discarded, replays: letter.replays };
        self.mark(&mark).await
    }

    pub(super) async fn mark(&self, mark: &Mark) -> Result<()> {
        let event = mark_event(mark, self.provider.subject_prefix())?;
        publish_once(&*self.provider, &event, event.id.clone()).await.map(drop)
    }

    /// Passes every letter to `show`, newest first, until `show` breaks. A letter that was written twice is passed
    /// once.
    pub(super) async fn visit(
        &self,
        show: impl FnMut(StoredDeadLetter) -> ControlFlow<()> + Send,
    ) -> Result<()> {
        self.visit_below(format!("{}.dlq.>", self.provider.subject_prefix()), show).await
    }

    /// Same as [`visit`](Self::visit) for letters whose subjects match the filter. Letters look open if the filter
    /// excludes their marks.
    pub(super) async fn visit_below(
        &self,
        filter: String,
        mut show: impl FnMut(StoredDeadLetter) -> ControlFlow<()> + Send,
    ) -> Result<()> {
        // A mark is newer than its letter, so it is read first.
        let mut marks: HashMap<String, Mark> = HashMap::new();
        let mut seen: HashSet<String> = HashSet::new();
        let mut query = HistoryQuery::new(PAGE).filter(filter);
        loop {
            let page = self.query(&query).await?;
            for stored in &page {
                match Record::of(stored, self.provider.subject_prefix()) {
                    Some(Record::Mark(mark)) => drop(marks.entry(mark.key.clone()).or_insert(mark)),
                    Some(Record::Letter(mut letter)) if seen.insert(letter.key.clone()) => {
                        if let Some(mark) = marks.get(&letter.key) {
                            (letter.status, letter.replays) = (mark.status, mark.replays);
                        }
                        if show(*letter).is_break() {
                            return Ok(());
                        }
                    }
                    Some(Record::Letter(_)) | None => {}
                }
            }
            match page.last() {
                Some(oldest) if page.len() == PAGE => query = query.before_sequence(oldest.sequence),
                _ => return Ok(()),
            }
        }
    }

    async fn query(&self, query: &HistoryQuery) -> Result<Vec<StoredEvent>> {
        answer("query", self.provider.query(query)).await
    }

    /// Stores a letter and returns its place. A letter that is already stored keeps its number.
    async fn store(&self, letter: &DeadLetter) -> Result<DeadLetterReceipt> {
        let prefix = self.provider.subject_prefix();
        let mut event = letter_event(letter, prefix, true)?;
        let mut stored = publish_once(&*self.provider, &event, event.id.clone()).await;
        if let Err(EventError::TooLarge { .. } | EventError::InvalidEvent { .. }) = stored {
            // With the added fields, the event is too large or too deep. Its payload is still in its own stream.
            event = letter_event(letter, prefix, false)?;
            stored = publish_once(&*self.provider, &event, event.id.clone()).await;
        }
        stored.map(|receipt| DeadLetterReceipt::new(Some(receipt.sequence), Some(event.subject)))
    }
}

/// Publishes with a `msg_id` if the provider supports deduplication.
pub(super) async fn publish_once(
    provider: &dyn EventProvider,
    event: &Event,
    msg_id: String,
) -> Result<PublishReceipt> {
    let msg_id = (!provider.capabilities().dedup.is_no()).then_some(msg_id);
    let options = PublishOptions { msg_id, ..PublishOptions::default() };
    answer("publish", provider.publish_with_receipt(event, &options)).await
}

async fn answer<T>(operation: &str, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
    within(DEADLINE, || format!("{operation} of the dead-letter queue"), call).await
}

impl fmt::Debug for ProviderDlqHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderDlqHandler").field("provider", &self.provider.name()).finish_non_exhaustive()
    }
}

#[async_trait]
impl DlqHandler for ProviderDlqHandler {
    async fn handle(&self, event: DeadLetterEvent) -> Result<()> {
        self.handle_letter(event.into()).await
    }

    async fn handle_letter(&self, letter: DeadLetter) -> Result<()> {
        self.store(&letter).await.map(drop)
    }

    async fn keep_letter(&self, letter: DeadLetter) -> Result<DeadLetterReceipt> {
        self.store(&letter).await
    }

    /// Also returns true for events below the prefix of the queue's own stream.
    fn is_letter(&self, event: &Event, prefix: &str) -> bool {
        [prefix, self.provider.subject_prefix()].iter().any(|prefix| reserved::is_letter(event, prefix))
    }

    /// Returns the number of open letters; reads the whole queue.
    async fn count(&self) -> Result<usize> {
        self.count_matching(&DeadLetterFilter::default()).await
    }

    /// Returns the newest open letters.
    async fn list(&self, limit: usize) -> Result<Vec<DeadLetterEvent>> {
        let letters = self.find(&DeadLetterFilter::default(), limit).await?;
        Ok(letters.into_iter().map(|stored| stored.letter.into()).collect())
    }
}
