//! Publishing dead letters again.

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

/// How often one event is replayed unless told otherwise.
const DEFAULT_MAX_REPLAYS: u64 = 3;

/// Which letters to replay, and how. The default is all open ones, as fast as the provider takes them, unless an event was
/// replayed 3 times already.
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

/// What a replay did, or with [`dry_run`](Replay::dry_run) would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ReplayReport {
    /// Numbers of the letters that are replayed now, in that order: those that were meant, and every other open one of the
    /// same events.
    pub replayed: Vec<u64>,
    /// Numbers of those that were meant and are not, and why.
    pub refused: Vec<(u64, String)>,
    /// The events of the letters that are replayed now, in the order in which they were published.
    pub events: Vec<ReplayedEvent>,
}

/// An event of which letters were replayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ReplayedEvent {
    /// Its id.
    pub id: String,
    /// The subject under which it is published.
    pub subject: String,
    /// Numbers of all letters that are replayed with it.
    pub letters: Vec<u64>,
    /// How often it was replayed so far, this time included.
    pub replays: u64,
    /// Whether it was published; in a dry run, whether it would be. Not where another replay has published it since
    /// its letters were written: they are only marked then.
    pub published: bool,
    /// Its sequence in the target, where it was published.
    pub sequence: Option<u64>,
}

/// A replay that an error has ended before its end. As an [`EventError`], into which `?` turns it, it is its `source`.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.place())]
#[non_exhaustive]
pub struct ReplayError {
    /// What was done before.
    pub report: Box<ReplayReport>,
    /// The letter that was not replayed; `None` when the letters could not be listed. Its event may be stored when
    /// [`may_be_stored`](EventError::may_be_stored) is true of the source: within the dedup window of the target another
    /// replay stores no second one.
    pub letter: Option<Box<StoredDeadLetter>>,
    /// Why.
    pub source: EventError,
}

impl ReplayError {
    fn place(&self) -> String {
        let done = self.report.replayed.len();
        match &self.letter {
            Some(letter) => format!("letter {} was not replayed, {done} before it were", letter.id),
            None => format!("the replay ended after {done} letters"),
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
    /// The letter with this number, also when it was replayed or discarded before.
    pub fn one(id: u64) -> Self {
        Self::numbers([id])
    }

    /// The letters with these numbers in this order, also those that were replayed or discarded before.
    pub fn numbers(ids: impl IntoIterator<Item = u64>) -> Self {
        Self::new(Which::Numbers(ids.into_iter().collect()))
    }

    /// All letters that are meant, oldest first.
    pub fn matching(filter: DeadLetterFilter) -> Self {
        Self::new(Which::Matching(filter))
    }

    fn new(which: Which) -> Self {
        Self { which, dry_run: false, per_second: None, max_replays: DEFAULT_MAX_REPLAYS, limit: usize::MAX }
    }

    /// Whether a letter is meant as it is now.
    fn still_means(&self, letter: &StoredDeadLetter) -> bool {
        match &self.which {
            Which::Numbers(_) => true,
            Which::Matching(filter) => filter.matches(letter),
        }
    }

    /// Publishes nothing and only reports.
    pub fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }

    /// Most events per second; at least one, and at most a million.
    pub fn per_second(mut self, events: u32) -> Self {
        self.per_second = Some(events.clamp(1, 1_000_000));
        self
    }

    /// Refuses events that were replayed this often before, through whichever of their letters. Default 3: what fails again
    /// and again is not mended by another round.
    pub fn max_replays(mut self, replays: u64) -> Self {
        self.max_replays = replays;
        self
    }

    /// Replays at most this many letters, the first ones, and with them all others of the same events. No limit unless
    /// called.
    pub fn limit(mut self, letters: usize) -> Self {
        self.limit = letters;
        self
    }
}

impl ProviderDlqHandler {
    /// Publishes the events of letters again: under their original subject, with their id, and one more in their metadata
    /// [`REPLAYS_KEY`].
    ///
    /// An event is published once, however many consumers have given it up: all its open letters are replayed with it.
    /// Letters are of one event where its id, time, source, type, version, subject and payload are the same. All replays
    /// of an event count towards [`max_replays`](Replay::max_replays), whichever of its letters was meant. A letter that
    /// is meant by a filter and whose event was replayed since it was written, through another letter, is only marked; one that is
    /// meant by its number is published.
    ///
    /// `target` is the provider they came from. An encrypted event is published as it is stored. Letters are marked after
    /// their event was published, so that a crash in between replays it again; within the dedup window of the target neither
    /// that nor a second replay at the same time stores a second event.
    ///
    /// # Errors
    ///
    /// As [`show`](ProviderDlqHandler::show) and [`EventProvider::publish_with_options`], with the letter at which the replay ended.
    /// What was replayed before is marked: another call goes on behind it.
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
        // Letters of events that this replay has dealt with.
        let mut done: HashSet<u64> = HashSet::new();
        for id in meant {
            if done.contains(&id) {
                continue;
            }
            let letter = self.show(id).await.map_err(|error| (None, error))?;
            if !replay.still_means(&letter) {
                // Somebody else was faster.
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

    /// The numbers of the letters: those that were said, or what is meant, oldest first. And what is known of the queue
    /// when that is found out.
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

    /// The other letters of the same event, oldest first, with what became of them by now.
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
                // It is of another event, or was dropped by the limits of the queue meanwhile.
                Ok(_) | Err(EventError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        others.sort_by_key(|other| other.id);
        Ok(others)
    }

    /// Publishes the event of some letters and marks them, or says why not.
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
                return Ok(Err(format!("it was replayed {before} times already, at most {max} are allowed")));
            }
            let Some(mut event) = case.event(target).await? else {
                return Ok(Err("its payload is not in the queue, nor in its stream any more".to_owned()));
            };
            event.metadata.insert(REPLAYS_KEY.to_owned(), replays.to_string());
            event.subject.clone_from(&replayed.subject);
            if replay.dry_run {
                return Ok(Ok(replayed));
            }
            if let Some(pace) = pace {
                pace.tick().await;
            }
            // Never the id it was published with first: a dedup window would swallow it. All who replay this event now have
            // the same oldest letter.
            let msg_id = format!("dlq-replay-{}-{replays}", case.oldest().key);
            let sequence = match publish_once(target, &event, msg_id).await {
                Ok(receipt) => receipt.sequence,
                // It can never be published, and must not keep others from being replayed.
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

/// An event to replay, and its letters.
struct Case<'a> {
    /// The one that was come to first.
    letter: &'a StoredDeadLetter,
    /// Oldest first.
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

    /// What another replay has marked since the queue was read is not meant any more.
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

    /// How often the event was replayed so far, as far as any of its letters knows.
    fn replays(&self) -> u64 {
        self.all().map(StoredDeadLetter::event_replays).max().unwrap_or_default()
    }

    /// Whether it is to be published: not where that was done since all its open letters were written, and nobody has asked for
    /// it by number or for letters that are not open.
    fn is_due(&self, replays: u64) -> bool {
        matches!(self.replay.which, Which::Numbers(_))
            || self
                .to_mark()
                .any(|letter| letter.status != DeadLetterStatus::Open || letter.event_replays() >= replays)
    }

    /// The event as its letter has it; an error for what is none.
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

    /// The event with its payload: of any letter that has it, or as its own stream still holds it.
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

/// The event as its own stream still holds it.
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
