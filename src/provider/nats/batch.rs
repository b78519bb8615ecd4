//! Atomic batches (nats-server 2.12, ADR-50): many events become one write of the server.
//!
//! A batch is stored as a whole or not at all. Where the server refuses one, its events are published one by one, so that
//! each has the answer that it would have had.

use async_nats::header::{NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL, NATS_BATCH_ID, NATS_BATCH_SEQUENCE};
use async_nats::{HeaderMap, Request, Subject};
use bytes::Bytes;

use super::client::Shared;
use super::error::{PROVIDER, connection_ended, timeout};
use super::publish::stored;
use crate::error::{BackendError, ErrorKind, Result};
use crate::provider::PublishRequest;

/// Most events in a batch; the server's own limit unless it is configured.
const MAX_EVENTS: usize = 1_000;
/// Most bytes in a batch, which the server keeps in memory until it is complete.
const MAX_BYTES: usize = 8 << 20;

/// An entry that passed all checks, with its place in the whole batch.
struct Ready<'a> {
    place: usize,
    entry: &'a PublishRequest<'a>,
    body: Bytes,
}

impl Shared {
    /// Publishes the entries in as few writes as possible and answers for each, in order.
    pub(super) async fn publish_atomically(&self, batch: &[PublishRequest<'_>]) -> Vec<Result<u64>> {
        let mut results: Vec<Result<u64>> = Vec::with_capacity(batch.len());
        let mut ready = Vec::new();
        for (place, entry) in batch.iter().enumerate() {
            // Replaced below, unless the entry is refused here.
            let checked = self.check_open().and_then(|()| self.encode(entry.event, &entry.options));
            results.push(match checked {
                Ok(body) => {
                    ready.push(Ready { place, entry, body });
                    Err(connection_ended())
                }
                Err(error) => Err(error),
            });
        }
        let mut left = ready.as_slice();
        while !left.is_empty() {
            let (now, later) = left.split_at(fitting(left));
            let answers = match self.commit(now).await {
                Some(answers) => answers,
                None => {
                    let entries: Vec<_> = now
                        .iter()
                        .map(|ready| PublishRequest::new(ready.entry.event, ready.entry.options.clone()))
                        .collect();
                    self.publish_pipelined(&entries).await
                }
            };
            for (ready, answer) in now.iter().zip(answers) {
                if let Some(result) = results.get_mut(ready.place) {
                    *result = answer;
                }
            }
            left = later;
        }
        results
    }

    /// Sends one batch. `None` when nothing of it is stored, and nothing is known of its single events.
    async fn commit(&self, batch: &[Ready<'_>]) -> Option<Vec<Result<u64>>> {
        let (last, others) = batch.split_last().filter(|(_, others)| !others.is_empty())?;
        let deadline = batch.iter().map(|ready| self.deadline_of(&ready.entry.options)).max()?;
        let id = uuid::Uuid::now_v7().simple().to_string();
        let sending = async {
            let client = self.link.working().await.ok()?;
            for (place, ready) in (1..).zip(others) {
                let subject = Subject::from(ready.entry.event.subject.as_str());
                client.publish_with_headers(subject, headers(&id, place), ready.body.clone()).await.ok()?;
            }
            Some(())
        };
        let started = tokio::time::Instant::now();
        // Without the last one nothing is stored.
        tokio::time::timeout(deadline, sending).await.ok()??;
        let mut headers = headers(&id, batch.len());
        headers.insert(NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL);
        let request = Request::new().headers(headers).payload(last.body.clone());
        let subject = Subject::from(last.entry.event.subject.as_str());
        let left = deadline.saturating_sub(started.elapsed());
        let answer = match self.link.request_once(&subject, request, left).await {
            Ok(answer) => stored(&answer),
            Err(none) => Err(none.into_error("publish", deadline)),
        };
        match answer {
            Ok(Ok(acknowledged)) => Some(sequences(acknowledged.sequence, acknowledged.count, batch.len())),
            Ok(Err(refusal)) => {
                tracing::debug!(%refusal, "nats-server refuses an atomic batch: its events are published one by one");
                None
            }
            Err(error) if !error.may_be_stored() => None,
            Err(_) => Some(batch.iter().map(|_| Err(timeout("publish", deadline))).collect()),
        }
    }
}

/// How many entries from the beginning make one batch.
fn fitting(ready: &[Ready<'_>]) -> usize {
    let mut bytes = 0;
    let fits = |ready: &&Ready<'_>| {
        bytes += ready.body.len();
        bytes <= MAX_BYTES
    };
    ready.iter().take(MAX_EVENTS).take_while(fits).count().max(1)
}

/// The sequences of a stored batch, which follow each other up to the last.
fn sequences(last: u64, stored: Option<u64>, sent: usize) -> Vec<Result<u64>> {
    let count = u64::try_from(sent).unwrap_or(u64::MAX);
    let answer = |place: u64| match last.checked_sub(count - place) {
        Some(sequence @ 1..) if stored == Some(count) => Ok(sequence),
        _ => {
            let reason =
                format!("a batch of {count} events was acknowledged as {stored:?} up to sequence {last}");
            Err(BackendError::new(PROVIDER, "publish", ErrorKind::Backend, reason).may_be_stored().into())
        }
    };
    (1..=count).map(answer).collect()
}

fn headers(id: &str, place: usize) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_BATCH_ID, id);
    headers.insert(NATS_BATCH_SEQUENCE, place.to_string().as_str());
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequences_of_a_batch_end_with_the_last_one() {
        let answers: Vec<_> = sequences(12, Some(3), 3).into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, [10, 11, 12]);
        for (last, stored) in [(12, Some(2)), (12, None), (2, Some(3))] {
            let answers = sequences(last, stored, 3);
            assert!(
                answers.first().unwrap().as_ref().is_err_and(crate::EventError::may_be_stored),
                "{answers:?}"
            );
        }
    }
}
