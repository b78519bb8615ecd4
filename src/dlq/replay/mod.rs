//! Replay of dead letters.

mod same_event;

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Interval;

use self::same_event::{Letters, same_event};
use super::provider::{
    DeadLetterFilter, DeadLetterStatus, ProviderDlqHandler, StoredDeadLetter, publish_once,
};
use super::record::Mark;
use super::{FailureClass, REPLAYS_KEY};
use crate::error::{ErrorKind, EventError, Result};
use crate::provider::{EventProvider, HistoryQuery};
use crate::types::Event;

/// Maximum number of replays of one event by default.
const DEFAULT_MAX_REPLAYS: u64 = 3;

/// Selects the letters to replay, and the pace and limits of the replay. The default replays all open letters as fast
/// as the provider accepts them, up to 3 times per event.
///
/// ```
/// use a3s_event::dlq::{DeadLetterFilter, Replay};
///
/// let paced = Replay::matching(DeadLetterFilter::default().subject("events.orders.>")).per_second(50);
/// let one = Replay::one(17).dry_run();
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Replay {
    which: Which,
    dry_run: bool,
    per_second: Option<u32>,
    max_replays: u64,
    limit: usize,
}

#[derive(Debug, Clone)]
enum Which {
    Numbers(Vec<u64>),
    Matching(DeadLetterFilter),
}

/// Result of a replay, or the expected result of a [`dry_run`](Replay::dry_run).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ReplayReport {
    /// Numbers of the replayed letters, in that order. They include the selected letters, and every other open letter
    /// of the same events.
    pub replayed: Vec<u64>,
    /// Numbers of the selected letters that were not replayed, with the reason.
    pub refused: Vec<(u64, String)>,
    /// Events of the replayed letters, in the order in which they were published.
    pub events: Vec<ReplayedEvent>,
}

/// An event whose letters were replayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ReplayedEvent {
    /// Id of the event.
    pub id: String,
    /// Subject under which it is published.
    pub subject: String,
    /// Numbers of all letters that are replayed with it.
    pub letters: Vec<u64>,
    /// Number of replays so far, including this one.
    pub replays: u64,
    /// If true, the event was published, or would be in a dry run. It is false if another replay published the event
    /// after its letters were written; the letters are then only marked.
    pub published: bool,
    /// Sequence in the target, if it was published.
    pub sequence: Option<u64>,
}

/// An error that ended a replay early. `?` converts it to its `source`, an [`EventError`].
#[derive(Debug, thiserror::Error)]
#[error("{}", self.place())]
#[non_exhaustive]
pub struct ReplayError {
    /// Report of the replay up to the error.
    pub report: Box<ReplayReport>,
    /// Letter that was not replayed; `None` if the letters could not be listed. Its event may be stored if
    /// [`may_be_stored`](EventError::may_be_stored) of the source returns true. Within the dedup window of the target,
    /// another replay does not store it twice.
    pub letter: Option<Box<StoredDeadLetter>>,
    /// Cause of the failure.
    pub source: EventError,
}

impl ReplayError {
    fn place(&self) -> String {
        let done = self.report.replayed.len();
        match &self.letter {
            Some(letter) => format!("letter {} was not replayed; replayed before it: {done}", letter.id),
            None => format!("the replay failed after {done} letters"),
        }
    }
}

impl From<ReplayError> for EventError {
    fn from(error: ReplayError) -> Self {
        error.source
    }
}

impl Default for Replay {
    fn default() -> Self {
        Self::matching(DeadLetterFilter::default())
    }
}

impl Replay {
    /// Selects the letter with this number, even if it was replayed or discarded before.
    pub fn one(id: u64) -> Self {
        Self::numbers([id])
    }

    /// Selects the letters with these numbers in this order, even if they were replayed or discarded before.
    pub fn numbers(ids: impl IntoIterator<Item = u64>) -> Self {
        Self::new(Which::Numbers(ids.into_iter().collect()))
    }

    /// Selects all letters that the filter matches, oldest first.
    pub fn matching(filter: DeadLetterFilter) -> Self {
        Self::new(Which::Matching(filter))
    }

    fn new(which: Which) -> Self {
        Self { which, dry_run: false, per_second: None, max_replays: DEFAULT_MAX_REPLAYS, limit: usize::MAX }
    }

    /// Returns true if the selection includes a letter in its present state.
    fn still_means(&self, letter: &StoredDeadLetter) -> bool {
        match &self.which {
            Which::Numbers(_) => true,
            Which::Matching(filter) => filter.matches(letter),
        }
    }

    /// Makes the replay only report and publish nothing.
    pub fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }

    /// Sets the maximum number of events per second, from 1 to 1,000,000.
    pub fn per_second(mut self, events: u32) -> Self {
        self.per_second = Some(events.clamp(1, 1_000_000));
        self
    }

    /// Sets the number of earlier replays, through any of its letters, at which an event is refused. The default is 3,
    /// because another replay does not fix an event that always fails.
    pub fn max_replays(mut self, replays: u64) -> Self {
        self.max_replays = replays;
        self
    }

    /// Replays at most this many letters, the first ones, and all other letters of the same events. The default is no
    /// limit.
    pub fn limit(mut self, letters: usize) -> Self {
        self.limit = letters;
        self
    }
}

impl ProviderDlqHandler {
    /// Publishes the events of letters again, under their original subject and with their id. The metadata entry
    /// [`REPLAYS_KEY`] counts the replays.
    ///
    /// An event is published once, even if several consumers dead-lettered it: all its open letters are replayed with
    /// it. Letters belong to the same event if its id, time, source, type, version, subject and payload are equal. All
    /// replays of an event count towards [`max_replays`](Replay::max_replays), through any of its letters.
    ///
    /// If the event of an open letter was replayed since through another letter, a replay by filter only marks the
    /// letter. A replay by number publishes the event.
    ///
    /// `target` is the provider that the events came from. An encrypted event is published as it is stored. Letters are
    /// marked after their event was published, so a crash in between makes the next replay publish it again. Within the
    /// dedup window of the target, the event is stored once, also if two replays run at the same time.
    ///
    /// # Errors
    ///
    /// Same as [`show`](ProviderDlqHandler::show) and [`EventProvider::publish_with_options`], with the letter at which
    /// the replay ended. Letters replayed before are marked, so another call continues after them.
    pub async fn replay(
        &self,
        target: &dyn EventProvider,
        replay: &Replay,
    ) -> std::result::Result<ReplayReport, ReplayError> {
        let mut report = ReplayReport::default();
        match self.replay_all(target, replay, &mut report).await {
            Ok(()) => Ok(report),
            Err((letter, source)) => Err(ReplayError { report: Box::new(report), letter, source }),
        }
    }

    async fn replay_all(
        &self,
        target: &dyn EventProvider,
        replay: &Replay,
        report: &mut ReplayReport,
    ) -> std::result::Result<(), (Option<Box<StoredDeadLetter>>, EventError)> {
        let mut pace = replay.per_second.map(|events| tokio::time::interval(Duration::from_secs(1) / events));
        let (meant, mut letters) = self.to_replay(replay).await.map_err(|error| (None, error))?;
        let is_meant: HashSet<u64> = meant.iter().copied().collect();
        // Letters of events that this replay has processed.
        let mut done: HashSet<u64> = HashSet::new();
        for id in meant {
            if done.contains(&id) {
                continue;
            }
            let letter = self.show(id).await.map_err(|error| (None, error))?;
            if !replay.still_means(&letter) {
                // Another replay was faster.
                continue;
            }
            let failed = |error| (Some(Box::new(letter.clone())), error);
            let others = self.others_of(&letter, &mut letters).await.map_err(failed)?;
            let mut case = Case { letter: &letter, others, is_meant: &is_meant, replay };
            case.others.retain(|other| !done.contains(&other.id));
            done.extend(case.all().map(|letter| letter.id));
            match self.replay_event(target, &case, replay, pace.as_mut()).await {
                Ok(Ok(event)) => {
                    report.replayed.extend(&event.letters);
                    report.events.push(event);
                }
                Ok(Err(why)) => report.refused.extend(case.meant().map(|letter| (letter.id, why.clone()))),
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    /// Returns the numbers of the selected letters: the given ones in their order, or the matching ones, oldest first.
    /// Also returns the letters that were read.
    async fn to_replay(&self, replay: &Replay) -> Result<(Vec<u64>, Letters)> {
        let (mut ids, letters) = match &replay.which {
            Which::Numbers(ids) => (ids.clone(), Letters::default()),
            Which::Matching(filter) => {
                let (mut ids, mut letters) = (Vec::new(), Letters::of_all());
                self.visit(|letter| {
                    letters.add(&letter);
                    if filter.matches(&letter) {
                        ids.push(letter.id);
                    }
                    ControlFlow::Continue(())
                })
                .await?;
                ids.reverse();
                (ids, letters)
            }
        };
        ids.truncate(replay.limit);
        Ok((ids, letters))
    }

    /// Returns the other letters of the same event, oldest first, with their present status.
    async fn others_of(
        &self,
        letter: &StoredDeadLetter,
        letters: &mut Letters,
    ) -> Result<Vec<StoredDeadLetter>> {
        if let Some(place) = letters.unread_place_of(letter, self.provider.subject_prefix()) {
            self.visit_below(place, |other| {
                letters.add(&other);
                ControlFlow::Continue(())
            })
            .await?;
        }
        let mut others = Vec::new();
        for id in letters.like(letter).filter(|id| *id != letter.id) {
            match self.show(id).await {
                Ok(other) if other.key != letter.key && same_event(letter, &other) => others.push(other),
                // It is of another event, or the limits of the queue have dropped it.
                Ok(_) | Err(EventError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        others.sort_by_key(|other| other.id);
        Ok(others)
    }

    /// Publishes the event of some letters and marks them, or returns the reason for a refusal.
    async fn replay_event(
        &self,
        target: &dyn EventProvider,
        case: &Case<'_>,
        replay: &Replay,
        pace: Option<&mut Interval>,
    ) -> Result<std::result::Result<ReplayedEvent, String>> {
        let before = case.replays();
        let (event, is_due) = match case.shown_event() {
            Err(why) => return Ok(Err(why)),
            Ok(event) => (event, case.is_due(before)),
        };
        let replays = before.saturating_add(u64::from(is_due));
        let mut replayed = ReplayedEvent {
            id: event.id.clone(),
            subject: case.subject().to_owned(),
            letters: case.to_mark().map(|letter| letter.id).collect(),
            replays,
            published: is_due,
            sequence: None,
        };
        if is_due {
            if before >= replay.max_replays {
                let max = replay.max_replays;
                return Ok(Err(format!("it was replayed {before} times already; the limit is {max}")));
            }
            let Some(mut event) = case.event(target).await? else {
                return Ok(Err("its payload is neither in the queue nor in its stream".to_owned()));
            };
            event.metadata.insert(REPLAYS_KEY.to_owned(), replays.to_string());
            event.subject.clone_from(&replayed.subject);
            if replay.dry_run {
                return Ok(Ok(replayed));
            }
            if let Some(pace) = pace {
                pace.tick().await;
            }
            // A dedup window would drop the event under its first id. Simultaneous replays of this event share its
            // oldest letter, and so the `msg_id`.
            let msg_id = format!("dlq-replay-{}-{replays}", case.oldest().key);
            let sequence = match publish_once(target, &event, msg_id).await {
                Ok(receipt) => receipt.sequence,
                // It can never be published, and must not stop the replay of others.
                Err(error) if error.kind() == ErrorKind::InvalidInput => return Ok(Err(error.to_string())),
                Err(error) => return Err(error),
            };
            tracing::info!(event = event.id, sequence, replays, letters = ?replayed.letters, "event replayed");
            replayed.sequence = Some(sequence);
        }
        for letter in case.to_mark().filter(|_| !replay.dry_run) {
            let replays = replays.saturating_sub(letter.letter.replays());
            let mark = Mark { key: letter.key.clone(), status: DeadLetterStatus::Replayed, replays };
            self.mark(&mark).await?;
        }
        Ok(Ok(replayed))
    }
}

/// An event to replay, with its letters.
struct Case<'a> {
    /// Letter that the replay reached first.
    letter: &'a StoredDeadLetter,
    /// Other letters of the event, oldest first.
    others: Vec<StoredDeadLetter>,
    is_meant: &'a HashSet<u64>,
    replay: &'a Replay,
}

impl Case<'_> {
    fn all(&self) -> impl Iterator<Item = &StoredDeadLetter> {
        std::iter::once(self.letter).chain(&self.others)
    }

    fn meant(&self) -> impl Iterator<Item = &StoredDeadLetter> {
        self.all().filter(|letter| self.is_meant.contains(&letter.id))
    }

    /// Returns true if the letter is open, or selected in its present state. Another replay may have marked it by now.
    fn is_open_or_meant(&self, letter: &StoredDeadLetter) -> bool {
        letter.status == DeadLetterStatus::Open
            || (self.is_meant.contains(&letter.id) && self.replay.still_means(letter))
    }

    fn to_mark(&self) -> impl Iterator<Item = &StoredDeadLetter> {
        self.all().filter(|letter| self.is_open_or_meant(letter))
    }

    fn oldest(&self) -> &StoredDeadLetter {
        self.others.first().filter(|other| other.id < self.letter.id).unwrap_or(self.letter)
    }

    /// Returns how often the event was replayed so far, the highest number over its letters.
    fn replays(&self) -> u64 {
        self.all().map(StoredDeadLetter::event_replays).max().unwrap_or_default()
    }

    /// Returns true if the event must be published. This is always so if it was selected by number, or through a letter
    /// that is not open. Otherwise a replay after its open letters were written makes it unnecessary.
    fn is_due(&self, replays: u64) -> bool {
        matches!(self.replay.which, Which::Numbers(_))
            || self
                .to_mark()
                .any(|letter| letter.status != DeadLetterStatus::Open || letter.event_replays() >= replays)
    }

    /// Returns the event as its letter has it, or an error if the record is not an event.
    fn shown_event(&self) -> std::result::Result<&Event, String> {
        let letter = &self.letter.letter;
        if letter.raw.is_some() || letter.class == FailureClass::Undecodable {
            return Err("the record is not an event".to_owned());
        }
        Ok(&letter.event.event)
    }

    fn subject(&self) -> &str {
        let letter = &self.letter.letter;
        letter.original_subject.as_deref().unwrap_or(&letter.event.event.subject)
    }

    /// Returns the event with its payload, from any letter that has it, or from its own stream.
    async fn event(&self, target: &dyn EventProvider) -> Result<Option<Event>> {
        if let Some(whole) = self.all().find(|letter| !letter.omitted) {
            return Ok(Some(whole.letter.event.event.clone()));
        }
        for letter in self.all() {
            if let Some(event) = original(target, letter).await? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
}

/// Returns the event if its own stream still retains it.
async fn original(target: &dyn EventProvider, stored: &StoredDeadLetter) -> Result<Option<Event>> {
    let received = &stored.letter.event;
    let query = HistoryQuery::new(1)
        .since_sequence(received.sequence)
        .before_sequence(received.sequence.saturating_add(1));
    match target.query(&query).await {
        Ok(found) => Ok(found
            .into_iter()
            .map(|found| Arc::unwrap_or_clone(found.event))
            .find(|event| event.id == received.event.id)),
        Err(EventError::Unsupported { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
