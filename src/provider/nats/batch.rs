//! Atomic batches (nats-server 2.12, ADR-50): the server stores many events in one write.
//!
//! Atomic batches are faster on a server that syncs every write. A batch is stored as a whole or not at all. If the
//! server refuses a batch, the provider publishes its events one by one, so that each gets its own result.

use std::sync::Mutex;
use std::time::Duration;

use async_nats::header::{NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL, NATS_BATCH_ID, NATS_BATCH_SEQUENCE};
use async_nats::{HeaderMap, Request, Subject};
use bytes::Bytes;
use tokio::time::Instant;

use super::client::Shared;
use super::error::PROVIDER;
use super::publish::{Acknowledged, stored};
use crate::error::{BackendError, ErrorKind, EventError, Result};
use crate::poison::IgnorePoison;
use crate::provider::PublishReceipt;
use crate::provider::driver::Checked;
use crate::types::Event;

/// Maximum number of events in a batch; the server's default limit.
const MAX_EVENTS: usize = 1_000;
/// Maximum size of a batch in bytes. The server keeps a batch in memory until it is complete.
const MAX_BYTES: usize = 8 << 20;

/// Number of events published one by one to measure how long that takes.
const SAMPLE: usize = 128;
/// Time for which a measurement is used.
const MEASURE_AGAIN: Duration = Duration::from_secs(60);
/// Minimum speedup at which batches are used. They are more than ten times as fast on a server that syncs every write,
/// and slightly slower on others.
const MUCH_FASTER: f64 = 2.0;

/// The way in which a batch is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// One publish per event, with several in flight.
    Pipelined,
    /// As atomic batches.
    Atomic,
}

/// The faster way to publish batches. The server does not report how it writes, so the provider measures from time to
/// time.
#[derive(Default)]
pub(super) struct Faster(Mutex<Option<(Way, Instant)>>);

impl Faster {
    fn known(&self) -> Option<Way> {
        let measured = *self.0.lock().ignore_poison();
        measured.filter(|(_, at)| at.elapsed() < MEASURE_AGAIN).map(|(way, _)| way)
    }

    /// Records the measured time per event of each way.
    fn learn(&self, pipelined: Duration, atomic: Duration) {
        let is_faster = pipelined.as_secs_f64() > atomic.as_secs_f64() * MUCH_FASTER;
        let way = if is_faster { Way::Atomic } else { Way::Pipelined };
        tracing::debug!(?way, ?pipelined, ?atomic, "measured the ways to publish a batch");
        *self.0.lock().ignore_poison() = Some((way, Instant::now()));
    }
}

/// The outcome of a batch that was sent.
enum Outcome {
    /// The server stored the batch up to this sequence.
    Stored(Acknowledged),
    /// The server stored nothing of the batch.
    Refused,
    /// The server may have stored the batch.
    Unknown(EventError),
}

/// A batch that is being sent. The last added event is held back, because it carries the commit.
struct Sending<'a> {
    shared: &'a Shared,
    client: &'a async_nats::Client,
    id: String,
    sent: usize,
    held: Option<(Subject, Bytes)>,
}

impl Sending<'_> {
    async fn add(&mut self, event: &Event, body: Bytes) -> bool {
        let subject = Subject::from(event.subject.as_str());
        let Some((subject, body)) = self.held.replace((subject, body)) else { return true };
        self.sent += 1;
        self.client.publish_with_headers(subject, self.headers(self.sent), body).await.is_ok()
    }

    fn headers(&self, place: usize) -> HeaderMap {
        let mut headers = HeaderMap::new();
        self.shared.settings.format.announce(&mut headers);
        headers.insert(NATS_BATCH_ID, self.id.as_str());
        headers.insert(NATS_BATCH_SEQUENCE, place.to_string().as_str());
        headers
    }

    async fn commit(mut self, deadline: Duration) -> Outcome {
        let Some((subject, body)) = self.held.take() else { return Outcome::Refused };
        let mut headers = self.headers(self.sent + 1);
        headers.insert(NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL);
        let request = Request::new().headers(headers).payload(body);
        let answer = match self.shared.link.request_once(&subject, request, deadline).await {
            Ok(answer) => stored(&answer),
            Err(none) => Err(none.into_error(self.shared.link.server(), "publish", deadline)),
        };
        match answer {
            Ok(Ok(acknowledged)) => Outcome::Stored(acknowledged),
            Ok(Err(refusal)) => {
                tracing::debug!(%refusal, "nats-server refuses an atomic batch: its events are published one by one");
                Outcome::Refused
            }
            Err(error) if error.may_be_stored() => Outcome::Unknown(error),
            Err(_) => Outcome::Refused,
        }
    }
}

/// Entries of one batch.
struct Chunk<'a> {
    entries: &'a [Checked<'a>],
    /// Entries that cannot be sent, with their indexes.
    refused: Vec<(usize, EventError)>,
    /// `None` if the batch could not be sent.
    sending: Option<Sending<'a>>,
    /// Timeout of the commit.
    deadline: Duration,
}

impl Shared {
    /// Publishes the entries in order and returns one result per entry.
    pub(super) async fn publish_batch(&self, batch: &[Checked<'_>]) -> Vec<Result<PublishReceipt>> {
        // These options get individual answers, which a batch that is stored as a whole or not at all cannot have.
        let is_plain = |entry: &Checked<'_>| {
            entry.options().msg_id.is_none() && entry.options().expected_sequence.is_none()
        };
        let may_be_atomic = self.atomic_batches && batch.len() > 1 && batch.iter().all(is_plain);
        let way = match self.settings.atomic_batches {
            _ if !may_be_atomic => Some(Way::Pipelined),
            Some(true) => Some(Way::Atomic),
            Some(false) => Some(Way::Pipelined),
            None => self.faster.known(),
        };
        match way {
            Some(Way::Atomic) => self.publish_atomically(batch).await,
            None if batch.len() >= 2 * SAMPLE => self.publish_and_measure(batch).await,
            Some(Way::Pipelined) | None => self.publish_pipelined(batch).await,
        }
    }

    async fn publish_and_measure(&self, batch: &[Checked<'_>]) -> Vec<Result<PublishReceipt>> {
        let (sample, rest) = batch.split_at(SAMPLE);
        let per_event =
            |begun: Instant, count: usize| begun.elapsed() / u32::try_from(count).unwrap_or(u32::MAX);
        let begun = Instant::now();
        let mut results = self.publish_pipelined(sample).await;
        let pipelined = per_event(begun, sample.len());
        let begun = Instant::now();
        results.extend(self.publish_atomically(rest).await);
        let atomic = per_event(begun, rest.len());
        if results.iter().all(Result::is_ok) {
            self.faster.learn(pipelined, atomic);
        }
        results
    }

    /// Publishes the entries as atomic batches and returns one result per entry, in order. While the server commits a
    /// batch, the next one is sent, except for its commit.
    async fn publish_atomically(&self, batch: &[Checked<'_>]) -> Vec<Result<PublishReceipt>> {
        let mut results = Vec::with_capacity(batch.len());
        let mut left = batch;
        let mut on_its_way: Option<Chunk<'_>> = None;
        loop {
            let commit = async {
                match on_its_way.take() {
                    Some(chunk) => self.commit(chunk).await,
                    None => Vec::new(),
                }
            };
            let (committed, sent) = tokio::join!(commit, self.send(left));
            results.extend(committed);
            left = left.get(sent.entries.len()..).unwrap_or_default();
            if sent.entries.is_empty() {
                return results;
            }
            on_its_way = Some(sent);
        }
    }

    /// Sends a batch of as many of the first entries as fit, except for its last entry.
    async fn send<'a>(&'a self, entries: &'a [Checked<'a>]) -> Chunk<'a> {
        let entries = entries.get(..MAX_EVENTS).unwrap_or(entries);
        let mut chunk = Chunk {
            entries,
            refused: Vec::new(),
            sending: None,
            deadline: entries.iter().map(|entry| self.deadline_of(entry.options())).max().unwrap_or_default(),
        };
        let begun = Instant::now();
        let sending = tokio::time::timeout(chunk.deadline, self.send_all(&mut chunk)).await;
        chunk.sending = sending.ok().flatten();
        chunk.deadline = chunk.deadline.saturating_sub(begun.elapsed());
        chunk
    }

    /// Sends the entries, except those that are too large once encoded. Returns `None` if the connection ends.
    async fn send_all<'a>(&'a self, chunk: &mut Chunk<'a>) -> Option<Sending<'a>> {
        let client = self.link.working().await.ok()?;
        let id = uuid::Uuid::now_v7().simple().to_string();
        let mut sending = Sending { shared: self, client, id, sent: 0, held: None };
        let mut bytes = 0;
        for (place, entry) in chunk.entries.iter().enumerate() {
            match self.check_open().and_then(|()| self.encode(*entry)) {
                Ok(body) => {
                    bytes += body.len();
                    if bytes > MAX_BYTES && place > 0 {
                        chunk.entries = chunk.entries.get(..place)?;
                        break;
                    }
                    if !sending.add(entry.event(), body).await {
                        return None;
                    }
                }
                Err(error) => chunk.refused.push((place, error)),
            }
        }
        Some(sending)
    }

    async fn commit(&self, chunk: Chunk<'_>) -> Vec<Result<PublishReceipt>> {
        let Chunk { entries, refused, sending, deadline } = chunk;
        let stored = entries.len() - refused.len();
        let outcome = match sending {
            Some(sending) => sending.commit(deadline).await,
            // The server stores nothing of a batch without its last event.
            None => Outcome::Refused,
        };
        let mut results = match outcome {
            Outcome::Refused => return self.publish_pipelined(entries).await,
            Outcome::Stored(acknowledged) => receipts(acknowledged, stored),
            Outcome::Unknown(error) => {
                let reason = error.to_string();
                std::iter::repeat_with(|| Err(EventError::Timeout(reason.clone()))).take(stored).collect()
            }
        };
        for (place, error) in refused {
            results.insert(place, Err(error));
        }
        results
    }
}

/// Returns the receipts of a stored batch. Its sequences are consecutive up to the last one.
fn receipts(stored: Acknowledged, sent: usize) -> Vec<Result<PublishReceipt>> {
    let Acknowledged { sequence: last, count: stored, duplicate: _ } = stored;
    let count = u64::try_from(sent).unwrap_or(u64::MAX);
    let answer = |place: u64| match last.checked_sub(count - place) {
        Some(sequence @ 1..) if stored == Some(count) => Ok(PublishReceipt::stored(sequence)),
        _ => {
            let reason =
                format!("a batch of {count} events was acknowledged as {stored:?} up to sequence {last}");
            Err(BackendError::new(PROVIDER, "publish", ErrorKind::Backend, reason).may_be_stored().into())
        }
    };
    (1..=count).map(answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequences_of_a_batch_end_with_the_last_one() {
        let acknowledged = |sequence, count| Acknowledged { sequence, count, duplicate: false };
        let answers: Vec<_> = receipts(acknowledged(12, Some(3)), 3)
            .into_iter()
            .map(|receipt| receipt.unwrap().sequence)
            .collect();
        assert_eq!(answers, [10, 11, 12]);
        for (sequence, count) in [(12, Some(2)), (12, None), (2, Some(3))] {
            let answers = receipts(acknowledged(sequence, count), 3);
            assert!(answers.first().unwrap().as_ref().is_err_and(EventError::may_be_stored), "{answers:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_measured_counts_for_a_while() {
        let faster = Faster::default();
        assert_eq!(faster.known(), None);
        let atomic = Duration::from_micros(10);
        faster.learn(atomic * 3, atomic);
        assert_eq!(faster.known(), Some(Way::Atomic));
        faster.learn(atomic, atomic);
        assert_eq!(faster.known(), Some(Way::Pipelined));
        tokio::time::advance(MEASURE_AGAIN).await;
        assert_eq!(faster.known(), None);
    }
}
