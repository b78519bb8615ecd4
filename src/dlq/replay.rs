//! Publishing dead letters again.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Interval;

use super::REPLAYS_KEY;
use super::provider::{LetterFilter, LetterStatus, ProviderDlq, StoredLetter, publish_once};
use super::record::Mark;
use crate::error::{EventError, Result};
use crate::provider::{EventProvider, HistoryQuery};
use crate::types::Event;

/// How often one event is replayed unless told otherwise.
const DEFAULT_MAX_REPLAYS: u64 = 3;

/// Which letters to replay, and how. The default is all open ones, as fast as the provider takes them, unless an event was
/// replayed 3 times already.
///
/// ```
/// use a3s_event::dlq::{LetterFilter, Replay};
///
/// let paced = Replay::matching(LetterFilter::default().subject("events.orders.>")).per_second(50);
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
    Matching(LetterFilter),
}

/// What a replay did, or with [`dry_run`](Replay::dry_run) would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplayReport {
    /// Numbers of the letters that were published again, in that order.
    pub replayed: Vec<u64>,
    /// Numbers of those that were not, and why.
    pub refused: Vec<(u64, String)>,
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
    pub letter: Option<Box<StoredLetter>>,
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
        Self::matching(LetterFilter::default())
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
    pub fn matching(filter: LetterFilter) -> Self {
        Self::new(Which::Matching(filter))
    }

    fn new(which: Which) -> Self {
        Self { which, dry_run: false, per_second: None, max_replays: DEFAULT_MAX_REPLAYS, limit: usize::MAX }
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

    /// Refuses events that were replayed this often before. Default 3: what fails again and again is not mended by another
    /// round.
    pub fn max_replays(mut self, replays: u64) -> Self {
        self.max_replays = replays;
        self
    }

    /// Replays at most this many letters, the first ones. No limit unless called.
    pub fn limit(mut self, letters: usize) -> Self {
        self.limit = letters;
        self
    }
}

impl ProviderDlq {
    /// Publishes letters again: under their original subject, with the id of the event, and one more in its metadata
    /// [`REPLAYS_KEY`].
    ///
    /// `target` is the provider they came from. An encrypted event is published as it is stored. A letter is marked after
    /// its event was published, so that a crash in between replays it again; within the dedup window of the target that
    /// stores no second event.
    ///
    /// # Errors
    ///
    /// As [`show`](ProviderDlq::show) and [`EventProvider::publish_with_options`], with the letter at which the replay ended.
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
    ) -> std::result::Result<(), (Option<Box<StoredLetter>>, EventError)> {
        let mut pace = replay.per_second.map(|events| tokio::time::interval(Duration::from_secs(1) / events));
        for id in self.to_replay(replay).await.map_err(|error| (None, error))? {
            let letter = self.show(id).await.map_err(|error| (None, error))?;
            if let Which::Matching(filter) = &replay.which
                && !filter.matches(&letter)
            {
                // Somebody else was faster.
                continue;
            }
            match self.replay_one(target, &letter, replay, pace.as_mut()).await {
                Ok(Ok(())) => report.replayed.push(id),
                Ok(Err(why)) => report.refused.push((id, why)),
                Err(error) => return Err((Some(Box::new(letter)), error)),
            }
        }
        Ok(())
    }

    /// The numbers of the letters: those that were said, or what is meant, oldest first.
    async fn to_replay(&self, replay: &Replay) -> Result<Vec<u64>> {
        let mut ids = match &replay.which {
            Which::Numbers(ids) => ids.clone(),
            Which::Matching(filter) => {
                let mut ids = Vec::new();
                self.visit(|letter| {
                    if filter.matches(&letter) {
                        ids.push(letter.id);
                    }
                    ControlFlow::Continue(())
                })
                .await?;
                ids.reverse();
                ids
            }
        };
        ids.truncate(replay.limit);
        Ok(ids)
    }

    /// Publishes the event of a letter and marks it, or says why not.
    async fn replay_one(
        &self,
        target: &dyn EventProvider,
        letter: &StoredLetter,
        replay: &Replay,
        pace: Option<&mut Interval>,
    ) -> Result<std::result::Result<(), String>> {
        let event = match self.event_to_replay(target, letter, replay.max_replays).await? {
            Ok(event) => event,
            Err(why) => return Ok(Err(why)),
        };
        if replay.dry_run {
            return Ok(Ok(()));
        }
        if let Some(pace) = pace {
            pace.tick().await;
        }
        let replays = letter.replays + 1;
        // Never the id it was published with first: a dedup window would swallow it.
        let msg_id = format!("dlq-replay-{}-{replays}", letter.key);
        let sequence = publish_once(target, &event, msg_id).await?;
        tracing::info!(id = letter.id, event = event.id, sequence, "dead letter replayed");
        self.mark(&Mark { key: letter.key.clone(), status: LetterStatus::Replayed, replays }).await?;
        Ok(Ok(()))
    }

    /// The event to publish, or why it is not published.
    async fn event_to_replay(
        &self,
        target: &dyn EventProvider,
        stored: &StoredLetter,
        max_replays: u64,
    ) -> Result<std::result::Result<Event, String>> {
        let letter = &stored.letter;
        if letter.raw.is_some() || letter.class == super::FailureClass::Undecodable {
            return Ok(Err("the record is not an event".to_owned()));
        }
        let mut event = if stored.omitted {
            match original(target, stored).await? {
                Some(event) => event,
                None => {
                    return Ok(Err("its payload is not in the queue, nor in its stream any more".to_owned()));
                }
            }
        } else {
            letter.event.event.clone()
        };
        let before = letter.replays();
        if before >= max_replays {
            return Ok(Err(format!(
                "it was replayed {before} times already, at most {max_replays} are allowed"
            )));
        }
        event.metadata.insert(REPLAYS_KEY.to_owned(), (before + 1).to_string());
        if let Some(subject) = &letter.original_subject {
            event.subject.clone_from(subject);
        }
        Ok(Ok(event))
    }
}

/// The event as its own stream still holds it.
async fn original(target: &dyn EventProvider, stored: &StoredLetter) -> Result<Option<Event>> {
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
