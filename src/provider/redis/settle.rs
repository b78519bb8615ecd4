//! Settling deliveries. Settlements of all consumers go through one queue; those that come while a call is in flight share
//! the next one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;

use super::consumer::{Consumer, Identity};
use super::error::PROVIDER;
use super::link::ServerFacts;
use super::script::close_consumer;
use super::script::settle::{self, Request, Settled, Settling};
use super::stream::Stream;
use crate::deadline::After;
use crate::error::{BackendError, ErrorKind, EventError, Result};
use crate::poison::IgnorePoison;
use crate::provider::group::{Lease, StaleLease};
use crate::provider::support::SentAcks;
use crate::provider::support::{Backoff, OwnedTask, closed};
use crate::provider::{AckFuture, AckHandler, AckKind, Settlement};

/// Maximum number of settlements that wait.
const MAX_WAITING: usize = 4_096;
/// Maximum number of settlements in a call.
const MAX_IN_CALL: usize = 1_000;
/// Age up to which a delivery is settled without comparing ids, if its server has not changed. No server becomes a
/// replica, copies another one and is promoted again in that time, unnoticed by a connection that is silent meanwhile.
const FRESH: Duration = Duration::from_millis(100);
/// Pauses after failed calls.
const AGAIN: Backoff = Backoff::exponential(Duration::from_millis(50), Duration::from_secs(1));

/// The task that settles.
pub(super) struct Settler {
    /// `None` once it is closed.
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    task: OwnedTask<()>,
}

/// Work of the task.
enum Job {
    Settle(Waiting),
    /// Deletes an ephemeral consumer.
    Close {
        name: Arc<str>,
        generation: String,
    },
}

/// A settlement that waits for its call.
struct Waiting {
    delivery: Delivered,
    lease: Lease,
    kind: AckKind,
    done: Done,
    /// Time after which it is given up.
    until: Instant,
    /// True if an earlier call with it may have been carried out.
    is_in_doubt: bool,
}

/// Receiver of the result.
enum Done {
    /// No caller waits. The ack keeps its place until it is stored.
    Sent {
        _place: OwnedSemaphorePermit,
        acks: Arc<SentAcks>,
    },
    Confirmed(oneshot::Sender<Result<()>>),
    /// The event is redelivered in any case.
    Released,
}

/// The delivery that a settlement is for.
#[derive(Clone)]
struct Delivered {
    consumer: Arc<Consumer>,
    identity: Arc<Identity>,
    /// The server that made it.
    server: Arc<ServerFacts>,
    /// Time of its arrival.
    at: Instant,
    /// Id of the record.
    id: Arc<str>,
}

impl Settler {
    /// Starts the task. It ends when this is dropped, or once it is closed and has settled what waits.
    pub(super) fn start(stream: Arc<Stream>) -> Self {
        let (jobs, received) = mpsc::channel(MAX_WAITING);
        Self { jobs: Mutex::new(Some(jobs)), task: OwnedTask::spawn(settle_all(stream, received)) }
    }

    /// Returns the queue.
    pub(super) fn queue(&self) -> Queue {
        Queue(self.jobs.lock().ignore_poison().as_ref().map(mpsc::Sender::downgrade))
    }

    /// Settles what waits, and ends the task.
    pub(super) async fn close(&self) {
        let jobs = self.jobs.lock().ignore_poison().take();
        drop(jobs);
        self.task.ended().await;
    }
}

/// The queue of the task, for deliveries: they do not keep the task.
#[derive(Clone)]
pub(super) struct Queue(Option<mpsc::WeakSender<Job>>);

impl Queue {
    fn sender(&self) -> Result<mpsc::Sender<Job>> {
        self.0.as_ref().and_then(mpsc::WeakSender::upgrade).ok_or_else(|| closed(PROVIDER))
    }

    /// Deletes a consumer, without waiting. If the queue is full, the server does it later.
    pub(super) fn close_consumer(&self, name: &Arc<str>, identity: &Identity) {
        let job = Job::Close { name: Arc::clone(name), generation: identity.generation.clone() };
        if let Ok(jobs) = self.sender() {
            let _ = jobs.try_send(job);
        }
    }
}

/// Settles the deliveries of one answer.
pub(super) struct Handler {
    queue: Queue,
    acks: Arc<SentAcks>,
    timeout: Duration,
    consumer: Arc<Consumer>,
    identity: Arc<Identity>,
    server: Arc<ServerFacts>,
    /// Time of the answer.
    at: Instant,
    /// Id of each delivered record, by sequence.
    ids: Vec<(u64, Arc<str>)>,
}

impl Handler {
    pub(super) fn new(
        queue: Queue,
        acks: Arc<SentAcks>,
        timeout: Duration,
        consumer: Arc<Consumer>,
        identity: Arc<Identity>,
        server: Arc<ServerFacts>,
        mut ids: Vec<(u64, Arc<str>)>,
    ) -> Self {
        ids.sort_unstable_by_key(|(sequence, _)| *sequence);
        Self { queue, acks, timeout, consumer, identity, server, at: Instant::now(), ids }
    }

    fn waiting(&self, lease: Lease, kind: AckKind, done: Done) -> Waiting {
        let place = self.ids.binary_search_by_key(&lease.sequence, |(sequence, _)| *sequence).ok();
        let id = place.and_then(|place| self.ids.get(place)).map(|(_, id)| Arc::clone(id));
        let delivery = Delivered {
            consumer: Arc::clone(&self.consumer),
            identity: Arc::clone(&self.identity),
            server: Arc::clone(&self.server),
            at: self.at,
            id: id.unwrap_or_else(|| "".into()),
        };
        let until = Instant::now().after(self.timeout);
        Waiting { delivery, lease, kind, done, until, is_in_doubt: false }
    }

    /// Releases a delivery that was not handed out, without waiting. If the queue is full, its lease ends later.
    pub(super) fn release(&self, lease: Lease) {
        let job = Job::Settle(self.waiting(lease, AckKind::Release, Done::Released));
        if let Ok(jobs) = self.queue.sender() {
            let _ = jobs.try_send(job);
        }
    }

    async fn confirmed(&self, lease: Lease, kind: AckKind) -> Result<()> {
        let (done, answered) = oneshot::channel();
        let verb = kind.verb();
        let waiting = self.waiting(lease, kind, Done::Confirmed(done));
        let until = waiting.until;
        let late = |_| not_settled(verb, format!("no confirmation within {:?}", self.timeout));
        let jobs = self.queue.sender()?;
        let sending = tokio::time::timeout_at(until, jobs.send(Job::Settle(waiting)));
        sending.await.map_err(late)?.map_err(|_ended| closed(PROVIDER))?;
        drop(jobs);
        let answer = tokio::time::timeout_at(until, answered).await.map_err(late)?;
        answer.unwrap_or_else(|_ended| Err(closed(PROVIDER)))
    }

    async fn sent(&self, lease: Lease, kind: AckKind) -> Result<()> {
        let place = self.acks.place(self.timeout).await?;
        let verb = kind.verb();
        let jobs = self.queue.sender()?;
        let job = self.job(lease, kind, place);
        let sending = tokio::time::timeout(self.timeout, jobs.send(job)).await;
        let late = |_| not_settled(verb, format!("not sent within {:?}", self.timeout));
        sending.map_err(late)?.map_err(|_ended| closed(PROVIDER))?;
        self.acks.note_sent();
        Ok(())
    }

    fn job(&self, lease: Lease, kind: AckKind, place: OwnedSemaphorePermit) -> Job {
        Job::Settle(self.waiting(lease, kind, Done::Sent { _place: place, acks: Arc::clone(&self.acks) }))
    }
}

impl AckHandler for Handler {
    fn settle(&self, Settlement { lease, kind, is_confirmed }: Settlement) -> AckFuture<'_> {
        if is_confirmed || !matches!(kind, AckKind::Ack | AckKind::Term(_)) {
            return AckFuture::new(self.confirmed(lease, kind));
        }
        let (Ok(jobs), Some(place)) = (self.queue.sender(), self.acks.place_now()) else {
            return AckFuture::new(self.sent(lease, kind));
        };
        let Ok(room) = jobs.try_reserve() else {
            return AckFuture::new(self.sent(lease, kind));
        };
        self.acks.note_sent();
        room.send(self.job(lease, kind, place));
        AckFuture::ready(Ok(()))
    }
}

/// Returns the error of a settlement that may have taken effect. It can be repeated safely.
fn not_settled(verb: &'static str, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> EventError {
    BackendError::new(PROVIDER, verb, ErrorKind::Ack, cause).retryable().into()
}

async fn settle_all(stream: Arc<Stream>, mut jobs: mpsc::Receiver<Job>) {
    let (mut waiting, mut failures) = (Vec::new(), 0);
    loop {
        if waiting.is_empty() {
            match jobs.recv().await {
                Some(job) => take(&stream, job, &mut waiting).await,
                None => return,
            }
        } else {
            // The server could not be asked: again, with what has come meanwhile.
            tokio::time::sleep(AGAIN.delay(failures)).await;
        }
        while waiting.len() < MAX_WAITING
            && let Ok(job) = jobs.try_recv()
        {
            take(&stream, job, &mut waiting).await;
        }
        waiting = settle_once(&stream, waiting).await;
        failures = if waiting.is_empty() { 0 } else { failures + 1 };
    }
}

async fn take(stream: &Stream, job: Job, waiting: &mut Vec<Waiting>) {
    match job {
        Job::Settle(settlement) => waiting.push(settlement),
        Job::Close { name, generation } => {
            let call = close_consumer::close_consumer(&stream.keys, &name, Some(&generation));
            if let Err(error) = stream.link.call("unsubscribe", &call).await {
                tracing::debug!(consumer = &*name, %error, "deleting an ephemeral consumer failed; the server does it later");
            }
        }
    }
}

/// Settlements that one call can carry.
type Group = (Arc<str>, String, u32, String);

/// Settles what waits, and returns what is to be tried again.
async fn settle_once(stream: &Stream, waiting: Vec<Waiting>) -> Vec<Waiting> {
    let mut groups: BTreeMap<Group, Vec<Waiting>> = BTreeMap::new();
    for settlement in waiting {
        let Delivered { consumer, identity, server, .. } = &settlement.delivery;
        let group = (
            Arc::clone(&consumer.name),
            identity.generation.clone(),
            settlement.lease.generation,
            server.replication_id.clone(),
        );
        groups.entry(group).or_default().push(settlement);
    }
    let mut calls = Vec::new();
    for group in groups.into_values() {
        let mut group = group.into_iter().peekable();
        while group.peek().is_some() {
            let part: Vec<_> = group.by_ref().take(MAX_IN_CALL).collect();
            calls.push(settle_part(stream, part));
        }
    }
    join_all(calls).await.into_iter().flatten().collect()
}

/// Settles deliveries of one consumer, and returns those to try again.
async fn settle_part(stream: &Stream, mut part: Vec<Waiting>) -> Vec<Waiting> {
    let Some(first) = part.first() else { return part };
    let (delivery, moves) = (first.delivery.clone(), first.lease.generation);
    let until = part.iter().map(|settlement| settlement.until).min().unwrap_or_else(Instant::now);
    let answers = call(stream, &delivery, moves, &part, until).await;
    let answers = match answers {
        Ok(answers) => answers,
        Err(Failed { error, is_sent }) => {
            let now = Instant::now();
            let (again, over): (Vec<_>, Vec<_>) = part.into_iter().partition(|settlement| {
                error.is_retryable() && now < settlement.until && !settlement.is_released()
            });
            for settlement in over {
                let verb = settlement.kind.verb();
                settlement.end(Err(not_settled(verb, error.to_string())));
            }
            return again
                .into_iter()
                .map(|settlement| Waiting { is_in_doubt: settlement.is_in_doubt || is_sent, ..settlement })
                .collect();
        }
    };
    // The message of the server may come after the caller has learned the result and asks for the next event.
    let makes_due = |settlement: &Waiting| matches!(settlement.kind, AckKind::Nak(_) | AckKind::Release);
    if part.iter().any(makes_due) {
        delivery.consumer.note_due();
    }
    for (settlement, answer) in part.drain(..).zip(answers) {
        let outcome = outcome(&settlement, answer);
        settlement.end(outcome);
    }
    part
}

/// A call that failed.
struct Failed {
    error: EventError,
    /// True if the server may have carried it out.
    is_sent: bool,
}

/// Calls the server for deliveries of one consumer.
async fn call(
    stream: &Stream,
    delivery: &Delivered,
    moves: u32,
    part: &[Waiting],
    until: Instant,
) -> std::result::Result<Vec<Settled>, Failed> {
    let settlings: Vec<_> = part
        .iter()
        .map(|settlement| Settling {
            lease: settlement.lease,
            kind: &settlement.kind,
            id: &settlement.delivery.id,
        })
        .collect();
    let Identity { epoch, generation } = &*delivery.identity;
    let request = |checks_ids| Request {
        name: &delivery.consumer.name,
        generation,
        moves,
        checks_ids,
        settlings: &settlings,
    };
    let timeout = until.saturating_duration_since(Instant::now()).min(stream.timeout());
    let are_fresh = part.iter().all(|settlement| settlement.delivery.at.elapsed() < FRESH);
    let on_same_server = if are_fresh {
        // On the server that made the deliveries, a sequence still belongs to the same event.
        let plain = settle::settle(&stream.keys, epoch, request(false));
        stream.link.ask_only(&delivery.server.replication_id, &plain, timeout).await
    } else {
        Ok(None)
    };
    let answered = match on_same_server {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => stream.link.ask(&settle::settle(&stream.keys, epoch, request(true)), timeout).await,
        Err(failure) => Err(failure),
    };
    let failed = |error: EventError| Failed { is_sent: error.may_be_stored(), error };
    let answer = answered.map_err(|failure| failed(failure.to_error("settle")))?;
    settle::read(answer.value).map_err(failed)
}

/// Returns the result of a settlement.
fn outcome(settlement: &Waiting, settled: Settled) -> Result<()> {
    let Lease { sequence, attempt, .. } = settlement.lease;
    let name = &settlement.delivery.consumer.name;
    let is_end = matches!(settlement.kind, AckKind::Ack | AckKind::Term(_));
    let gone = |what: &str| match is_end {
        // Nothing is redelivered, as the caller wants.
        true => Ok(()),
        false => Err(EventError::Closed(format!("{what} and redelivers nothing"))),
    };
    match settled {
        Settled::Done => Ok(()),
        // An earlier call settled it, and its answer was lost.
        Settled::Already if settlement.is_in_doubt => Ok(()),
        Settled::Already => Err(StaleLease::Settled { sequence, attempt }.into()),
        Settled::Redelivered => Err(StaleLease::Redelivered { sequence, attempt }.into()),
        Settled::Reset => Err(StaleLease::Reset { sequence, attempt }.into()),
        Settled::Lost => Err(EventError::Ack(format!(
            "delivery {attempt} of sequence {sequence} is settled: its event was lost in a failover"
        ))),
        Settled::Closed => gone(&format!("consumer '{name}' no longer exists")),
        Settled::StreamReplaced => gone("the stream was lost or replaced"),
    }
}

impl Waiting {
    fn is_released(&self) -> bool {
        matches!(self.done, Done::Released)
    }

    /// Tells the result.
    fn end(self, result: Result<()>) {
        match self.done {
            Done::Confirmed(done) => {
                // The caller may be gone.
                let _ = done.send(result);
            }
            Done::Sent { acks, .. } => {
                let (name, sequence) = (&*self.delivery.consumer.name, self.lease.sequence);
                match result {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::Ack && !error.is_retryable() => {
                        acks.note_stale();
                        tracing::debug!(consumer = name, sequence, %error, "an ack arrived too late");
                    }
                    Err(error) => {
                        acks.note_lost();
                        tracing::debug!(consumer = name, sequence, %error, "an ack was lost; its event will be redelivered");
                    }
                }
            }
            Done::Released => {}
        }
    }
}
