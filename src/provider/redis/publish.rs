//! Publishing. Few calls are in flight; what is published meanwhile shares the next one, because a call costs the server
//! more than an event.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::error::PROVIDER;
use super::script::publish::{self, Outcome, Published, Record};
use super::script::retain;
use super::stream::Stream;
use crate::deadline::After;
use crate::error::{BackendError, ErrorKind, EventError, Result};
use crate::poison::IgnorePoison;
use crate::provider::PublishReceipt;
use crate::provider::driver::Checked;
use crate::provider::support::{OwnedTask, closed};

/// Maximum number of publishes that wait, besides those of the calls in flight.
const MAX_WAITING: usize = 1_024;

/// Maximum number of calls in flight, so that the server works on one while the next one is made. No caller has events in
/// both, so their order does not matter.
const MOST_IN_FLIGHT: usize = 2;

/// The task that publishes.
pub(super) struct Publisher {
    /// `None` once it is closed.
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    task: OwnedTask<()>,
}

/// Events of one caller.
struct Job {
    events: Vec<Encoded>,
    answer: oneshot::Sender<Vec<Result<PublishReceipt>>>,
}

/// An event as it is stored.
struct Encoded {
    subject: String,
    msg_id: Option<String>,
    expected_sequence: Option<u64>,
    json: Vec<u8>,
}

impl Encoded {
    fn new(checked: Checked<'_>, max_bytes: usize) -> Result<Self> {
        let (event, options) = (checked.event(), checked.options());
        let mut json = Vec::with_capacity(checked.size());
        serde_json::to_writer(&mut json, event)?;
        if json.len() > max_bytes {
            return Err(EventError::TooLarge { what: "event", actual: json.len(), limit: max_bytes });
        }
        Ok(Self {
            subject: event.subject.clone(),
            msg_id: options.msg_id.clone(),
            expected_sequence: options.expected_sequence,
            json,
        })
    }

    fn record(&self) -> Record<'_> {
        Record {
            subject: &self.subject,
            msg_id: self.msg_id.as_deref(),
            expected_sequence: self.expected_sequence,
            json: &self.json,
        }
    }
}

impl Publisher {
    /// Starts the task. It ends when this is dropped, or once it is closed and has published what waits.
    pub(super) fn start(stream: Arc<Stream>) -> Self {
        let (jobs, received) = mpsc::channel(MAX_WAITING);
        Self { jobs: Mutex::new(Some(jobs)), task: OwnedTask::spawn(publish_all(stream, received)) }
    }

    /// Stores one event.
    pub(super) async fn publish(&self, stream: &Stream, checked: Checked<'_>) -> Result<PublishReceipt> {
        let encoded = Encoded::new(checked, stream.config.max_event_bytes)?;
        let timeout = checked.options().timeout_secs.map_or(stream.timeout(), Duration::from_secs);
        let mut answers = self.send(vec![encoded], Instant::now().after(timeout), timeout).await?;
        answers.pop().unwrap_or_else(|| Err(closed(PROVIDER)))
    }

    /// Stores many events, in order.
    pub(super) async fn publish_batch(
        &self,
        stream: &Stream,
        batch: &[Checked<'_>],
    ) -> Vec<Result<PublishReceipt>> {
        let timeouts = batch.iter().filter_map(|checked| checked.options().timeout_secs).max();
        let timeout = timeouts.map_or(stream.timeout(), Duration::from_secs);
        let mut results = Vec::with_capacity(batch.len());
        for part in batch.chunks(stream.config.commit_max_events.max(1)) {
            // Parts of a large batch each have the whole time.
            let until = Instant::now().after(timeout);
            let encoded: Vec<_> =
                part.iter().map(|checked| Encoded::new(*checked, stream.config.max_event_bytes)).collect();
            let refused: Vec<_> = encoded.iter().map(|encoded| encoded.is_err()).collect();
            let mut answers = Vec::new();
            let (events, errors): (Vec<_>, Vec<_>) = encoded.into_iter().partition(Result::is_ok);
            let events: Vec<_> = events.into_iter().flatten().collect();
            let count = events.len();
            if count > 0 {
                answers = match self.send(events, until, timeout).await {
                    Ok(answers) => answers,
                    Err(error) => again(&error, count),
                };
            }
            let (mut answers, mut errors) = (answers.into_iter(), errors.into_iter().filter_map(Result::err));
            results.extend(refused.into_iter().map(|is_refused| {
                let answer = if is_refused { errors.next().map(Err) } else { answers.next() };
                answer.unwrap_or_else(|| Err(closed(PROVIDER)))
            }));
        }
        results
    }

    /// Hands events to the task, and waits for their results.
    async fn send(
        &self,
        events: Vec<Encoded>,
        until: Instant,
        timeout: Duration,
    ) -> Result<Vec<Result<PublishReceipt>>> {
        let (answer, answered) = oneshot::channel();
        let jobs = self.jobs.lock().ignore_poison().clone().ok_or_else(|| closed(PROVIDER))?;
        match timeout_at(until, jobs.send(Job { events, answer })).await {
            Ok(Ok(())) => {}
            Ok(Err(_ended)) => return Err(closed(PROVIDER)),
            Err(_elapsed) => {
                let cause = format!("too many publishes wait for the server, for {timeout:?}");
                return Err(BackendError::new(PROVIDER, "publish", ErrorKind::Timeout, cause)
                    .retryable()
                    .into());
            }
        }
        drop(jobs);
        match timeout_at(until, answered).await {
            Ok(Ok(answers)) => Ok(answers),
            Ok(Err(_ended)) => {
                let cause = "the provider was closed while the event was being published";
                Err(BackendError::new(PROVIDER, "publish", ErrorKind::Closed, cause).may_be_stored().into())
            }
            Err(_elapsed) => {
                Err(EventError::Timeout(format!("publish: the server did not answer within {timeout:?}")))
            }
        }
    }

    /// Publishes what waits, and ends the task.
    pub(super) async fn close(&self) {
        let jobs = self.jobs.lock().ignore_poison().take();
        drop(jobs);
        self.task.ended().await;
    }
}

/// Returns the same failure for each of several events.
fn again(error: &EventError, count: usize) -> Vec<Result<PublishReceipt>> {
    let copy = || {
        let mut copy = BackendError::new(PROVIDER, "publish", error.kind(), error.to_string());
        (copy.retryable, copy.may_be_stored) = (error.is_retryable(), error.may_be_stored());
        Err(copy.into())
    };
    std::iter::repeat_with(copy).take(count).collect()
}

async fn publish_all(stream: Arc<Stream>, mut jobs: mpsc::Receiver<Job>) {
    // While the server waits for a copy, another call would only wait behind it.
    let waits = stream.config.wait_replicas > 0 || stream.config.wait_aof;
    let most = if waits { 1 } else { MOST_IN_FLIGHT };
    let mut in_flight = FuturesUnordered::new();
    let mut has_surplus = false;
    loop {
        // Each publish drops some, too.
        if has_surplus && in_flight.is_empty() && jobs.is_empty() {
            has_surplus = drop_surplus(&stream).await;
            continue;
        }
        tokio::select! {
            biased;
            Some(left) = in_flight.next() => has_surplus = left,
            job = jobs.recv(), if in_flight.len() < most => match job {
                Some(first) => in_flight.push(store(&stream, share(&stream, first, &mut jobs))),
                None => break,
            },
        }
    }
    while in_flight.next().await.is_some() {}
}

/// Adds what waits to the first job of a call, as far as a call takes it.
fn share(stream: &Stream, first: Job, jobs: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let (max_events, max_bytes) = (stream.config.commit_max_events, stream.config.commit_max_bytes);
    let size = |job: &Job| job.events.iter().map(|event| event.json.len()).sum::<usize>();
    let (mut events, mut bytes) = (first.events.len(), size(&first));
    let mut batch = vec![first];
    while events < max_events
        && bytes < max_bytes
        && let Ok(job) = jobs.try_recv()
    {
        events += job.events.len();
        bytes += size(&job);
        batch.push(job);
    }
    batch
}

/// Stores the events of some callers, and tells each one. Returns `true` if more than the limits allow is stored.
async fn store(stream: &Stream, batch: Vec<Job>) -> bool {
    let epoch = stream.epoch();
    let records: Vec<_> = batch.iter().flat_map(|job| job.events.iter().map(Encoded::record)).collect();
    let count = records.len();
    let call = publish::publish(&stream.keys, &epoch, &records);
    drop(records);
    let published = match stream.link.ask_confirmed(&call, stream.timeout()).await {
        Ok(answer) => publish::read(answer.value, count),
        Err(failure) => {
            tell(batch, |_| Err(failure.to_error("publish")));
            return false;
        }
    };
    match published {
        Ok(Published::Done { outcomes, has_surplus }) => {
            let mut outcomes = outcomes.into_iter();
            tell(batch, |event| match outcomes.next() {
                Some(outcome) => receipt(stream, event, outcome),
                None => Err(closed(PROVIDER)),
            });
            return has_surplus;
        }
        Ok(Published::StreamReplaced) => {
            let opened = stream.replaced("publish", &epoch).await;
            tell(batch, |_| match &opened {
                Ok(_) => Err(stream.lost("publish")),
                Err(error) => again(error, 1).pop().unwrap_or_else(|| Err(closed(PROVIDER))),
            });
        }
        Ok(Published::Exhausted) => tell(batch, |_| {
            let cause = "the stream has no sequences left";
            Err(BackendError::new(PROVIDER, "publish", ErrorKind::Storage, cause).into())
        }),
        Err(error) => tell(batch, |_| again(&error, 1).pop().unwrap_or_else(|| Err(closed(PROVIDER)))),
    }
    false
}

/// Tells each caller the results of its events.
fn tell(batch: Vec<Job>, mut result: impl FnMut(&Encoded) -> Result<PublishReceipt>) {
    for Job { events, answer } in batch {
        // The caller may be gone.
        let _ = answer.send(events.iter().map(&mut result).collect());
    }
}

fn receipt(stream: &Stream, event: &Encoded, outcome: Outcome) -> Result<PublishReceipt> {
    match outcome {
        Outcome::Stored(sequence) => Ok(PublishReceipt::stored(sequence)),
        Outcome::Duplicate(sequence) => Ok(PublishReceipt::duplicate(sequence)),
        Outcome::Conflict(last) => Err(EventError::Conflict {
            resource: format!("stream '{}'", stream.name),
            field: "expected_sequence".to_owned(),
            existing: last.to_string(),
            requested: event.expected_sequence.unwrap_or_default().to_string(),
        }),
    }
}

/// Drops some of the events that exceed the limits. Returns `true` if there are more.
pub(super) async fn drop_surplus(stream: &Stream) -> bool {
    let call = retain::retain(&stream.keys, &stream.epoch());
    let retained = match stream.link.call("retain", &call).await {
        Ok(reply) => retain::read(reply),
        Err(error) => Err(error),
    };
    match retained {
        Ok(retained) => retained.is_some_and(|retained| retained.has_surplus),
        Err(error) => {
            tracing::debug!(%error, "dropping old events failed; a later publish drops them");
            false
        }
    }
}
