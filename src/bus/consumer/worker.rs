//! Runs a handler and settles its event.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument;

use super::health::Part;
use super::policy::{ErrorClass, HandlerResult};
use super::queue::{Ended, Job, LeftOver};
use super::{Command, Handler, Runtime};
use crate::backoff::Backoff;
use crate::bus::dead_letter::DeadLetters;
use crate::bus::verdict::Verdict;
use crate::deadline::After;
use crate::dlq::{DeadLetter, FailureClass};
use crate::error::{EventError, Result};
use crate::provider::group::Lease;
use crate::provider::{AckHandler, AckKind, Delivery};
use crate::task::{caught, poll_once};
use crate::trace::{TraceContext, process_span};
use crate::types::Event;

/// Maximum number of retries of a settlement that failed for a transient reason.
const SETTLEMENT_RETRIES: u64 = 3;
const SETTLE_AGAIN: Backoff = Backoff::exponential(Duration::from_millis(100), Duration::from_secs(1));
/// Delays while the dead letters cannot be written.
const WRITE_AGAIN: Backoff = Backoff::exponential(Duration::from_secs(1), Duration::from_secs(30));

/// Processes jobs one after the other until none is left.
pub(super) async fn work<H: Handler>(runtime: Arc<Runtime>, handler: Arc<H>) {
    let mut worker = Worker { runtime, handler };
    let mut ended = None;
    while let Some(job) = worker.runtime.queue.next(ended.take()).await {
        ended = Some(worker.process(job).await);
    }
}

struct Worker<H> {
    runtime: Arc<Runtime>,
    handler: Arc<H>,
}

/// Result of one attempt.
enum Outcome {
    Done,
    Failed(Failed),
    /// The consumer stopped waiting for the handler.
    Interrupted,
}

struct Failed {
    class: ErrorClass,
    reason: String,
    /// Delay before the retry, if the handler set one.
    after: Option<Duration>,
}

impl<H: Handler> Worker<H> {
    async fn process(&mut self, job: Job) -> Ended {
        match job.guarded.letters.on_arrival(&job.guarded.stored, &job.content) {
            Verdict::Deliver(event) => self.attempt(job, &event).await,
            Verdict::DeadLetter(letter) => self.dead_letter(job, letter).await,
        }
    }

    /// Makes one attempt. Settles the event, or returns the time of the next attempt.
    async fn attempt(&mut self, mut job: Job, event: &Arc<Event>) -> Ended {
        let attempt = job.guarded.attempt();
        let failed = match self.run(&mut job, event, attempt).await {
            Outcome::Done => return self.acknowledge(job).await,
            Outcome::Interrupted if job.guarded.is_settled() => return Ended::Done(job),
            Outcome::Interrupted => {
                self.runtime.stats.interrupted();
                let has_failed_before = job.guarded.tries() > 0;
                return if has_failed_before { Ended::Failed(job) } else { Ended::Unstarted(job) };
            }
            Outcome::Failed(failed) => failed,
        };
        self.runtime.stats.failed();
        let delay = failed.after.unwrap_or_else(|| self.runtime.policy.backoff.delay(attempt));
        if job.guarded.is_settled() {
            self.log_failure(&job, &failed.reason, attempt, None, delay);
            return Ended::Done(job);
        }
        let class = match failed.class {
            ErrorClass::Fatal => Some(FailureClass::Fatal),
            ErrorClass::Mismatch => Some(FailureClass::Mismatch),
            ErrorClass::Undecryptable => Some(FailureClass::Undecryptable),
            ErrorClass::Retry => None,
        };
        match job.guarded.on_failure(class, Some(&failed.reason)) {
            Verdict::DeadLetter(letter) => {
                self.log_failure(&job, &failed.reason, attempt, Some(letter.class), delay);
                return self.dead_letter(job, letter).await;
            }
            Verdict::Deliver(()) => {
                self.log_failure(&job, &failed.reason, attempt, None, delay);
                self.runtime.failures.remember(&job, failed.reason);
            }
        }
        if !self.runtime.retries_here {
            self.refuse(&job, delay).await;
            return Ended::Done(job);
        }
        job.guarded.note_try();
        Ended::Again(job, Instant::now().after(delay))
    }

    /// Logs one line for each failed attempt. When the event is given up, another line follows once its dead letter is
    /// stored.
    fn log_failure(
        &self,
        job: &Job,
        reason: &str,
        attempt: u64,
        given_up_as: Option<FailureClass>,
        delay: Duration,
    ) {
        let event = job.content.as_ref().map_or("", |event| event.id.as_str());
        let of =
            self.runtime.attempts.map_or_else(|| "unlimited".to_owned(), |attempts| attempts.to_string());
        let DeadLetters { subscriber, consumer, .. } = &*job.guarded.letters;
        let sequence = job.sequence();
        match given_up_as {
            Some(class) => tracing::warn!(
                subscriber, consumer, event, sequence, attempt, of, %class, reason,
                "handler failed; the event is given up"
            ),
            None if job.guarded.is_settled() => {
                tracing::warn!(
                    subscriber,
                    consumer,
                    event,
                    sequence,
                    attempt,
                    of,
                    reason,
                    "handler failed after it settled the event"
                );
            }
            None => tracing::warn!(
                subscriber, consumer, event, sequence, attempt, of, next_in = ?delay, reason,
                "handler failed; the event will be retried"
            ),
        }
    }

    /// Runs the handler once and extends the lease meanwhile. Catches panics and enforces the timeout.
    async fn run(&mut self, job: &mut Job, event: &Arc<Event>, attempt: u64) -> Outcome {
        let sequence = job.sequence();
        let lease = Lease::new(sequence, u32::try_from(attempt).unwrap_or(u32::MAX));
        let guarded = Arc::clone(&job.guarded) as Arc<dyn AckHandler>;
        let delivery = Delivery::new(Arc::clone(event), lease, Arc::clone(&job.source.stream), guarded);
        let counters = &job.guarded.letters.counters;
        let span = process_span(counters.system(), counters.group(), &delivery);
        let _processing = counters.begin_processing();
        let handler = &*self.handler;
        // The call is inside the future, so that a panic in it is caught too. The wrappers borrow the future, because
        // it may be large.
        let handled = pin!(async move { handler.call(delivery).await });
        let handling = caught(handled).instrument(span);
        // Events that the handler publishes belong to the trace of this event.
        let mut call = pin!(TraceContext::scope_of(Arc::clone(event), handling));
        // Most handlers are ready at once and need no timer.
        if let Some(done) = poll_once(&mut call).await {
            return outcome(&self.runtime, done);
        }
        let timeout = self.runtime.policy.timeout;
        let deadline = timeout.map(|timeout| Instant::now().after(timeout));
        tokio::select! {
            biased;
            done = &mut call => outcome(&self.runtime, done),
            () = self.runtime.command.reaches(Command::Abort) => Outcome::Interrupted,
            () = at(deadline) => {
                let reason = format!("no result within {:?}", timeout.unwrap_or_default());
                Outcome::Failed(Failed { class: ErrorClass::Retry, reason, after: None })
            }
            // Beside the handler, because an extension may take as long as the provider likes.
            () = keep_lease(&self.runtime, job) => Outcome::Interrupted,
        }
    }

    async fn acknowledge(&self, job: Job) -> Ended {
        if job.guarded.is_acked() {
            self.runtime.health.works(Part::Settling);
        } else if !job.guarded.is_settled() {
            self.settle(&job, "ack", || job.guarded.acknowledge(false)).await;
        }
        self.runtime.failures.forget(&job);
        self.runtime.stats.handled();
        Ended::Done(job)
    }

    /// Naks the event, for a redelivery after `delay`.
    async fn refuse(&self, job: &Job, delay: Duration) {
        let lease = job.guarded.letters.extend_after().saturating_mul(2);
        self.runtime.queue.note_refused(job, Instant::now().after(delay.max(lease)));
        self.settle(job, "nak", || job.guarded.stored.settle(AckKind::Nak(Some(delay)))).await;
    }

    async fn settle<F>(&self, job: &Job, verb: &str, settlement: impl Fn() -> F)
    where
        F: Future<Output = Result<()>>,
    {
        match settle(job, verb, settlement).await {
            // A lost lease is not a failure of the provider.
            Err(error) if error.is_retryable() => self.runtime.health.failed(Part::Settling, &error),
            Err(_) => {}
            Ok(()) => self.runtime.health.works(Part::Settling),
        }
    }

    /// Dead-letters an event, and settles it only after that. While the dead letters cannot be written, this worker
    /// waits and keeps the event.
    async fn dead_letter(&mut self, mut job: Job, mut letter: Box<DeadLetter>) -> Ended {
        self.runtime.failures.complete(&job, &mut letter);
        let mut attempt = 0;
        let fate = loop {
            attempt += 1;
            match job.guarded.letters.write(&job.guarded.stored, &letter).await {
                Ok(fate) => break fate,
                Err(error) => {
                    self.runtime.stats.dead_letter_failed();
                    self.runtime.health.failed(Part::DeadLetters, &error);
                    let sequence = job.sequence();
                    let DeadLetters { subscriber, consumer, .. } = &*job.guarded.letters;
                    tracing::error!(subscriber, consumer, sequence, %error, "dead-lettering the event failed; retrying");
                }
            }
            if !self.keep_alive(&mut job, WRITE_AGAIN.delay(attempt), Command::Drain).await {
                return Ended::Failed(job);
            }
        };
        self.runtime.health.works(Part::DeadLetters);
        if !job.is_settled {
            self.settle(&job, "term", || {
                job.guarded.stored.term_or_ack(&letter.reason, job.guarded.letters.in_force.confirms())
            })
            .await;
        }
        self.runtime.stats.given_up(fate);
        Ended::Done(job)
    }

    /// Waits and extends the lease meanwhile. Returns `false` if a command cut that short.
    async fn keep_alive(&mut self, job: &mut Job, wait: Duration, until: Command) -> bool {
        let end = Instant::now().after(wait);
        tokio::select! {
            biased;
            () = self.runtime.command.reaches(until) => false,
            () = tokio::time::sleep_until(end) => true,
            () = keep_lease(&self.runtime, job) => false,
        }
    }
}

fn outcome(runtime: &Runtime, done: std::result::Result<HandlerResult, String>) -> Outcome {
    let (class, reason, after) = match done {
        Ok(Ok(())) => return Outcome::Done,
        Ok(Err(error)) => (runtime.policy.class_of(&error), error.to_string(), error.delay()),
        Err(panic) => (ErrorClass::Retry, format!("panicked: {panic}"), None),
    };
    Outcome::Failed(Failed { class, reason, after })
}

/// Extends the lease of an event whenever it is time, forever. If it is lost, the event is redelivered and handled
/// twice, as at least once allows.
async fn keep_lease(runtime: &Runtime, job: &mut Job) {
    let letters = Arc::clone(&job.source.letters);
    loop {
        tokio::select! {
            biased;
            () = letters.in_force.changed() => {}
            () = tokio::time::sleep_until(job.leased_at.after(letters.extend_after())) => {
                job.leased_at = Instant::now();
                let extended = job.guarded.stored.extend().await;
                runtime.note_extension(job.sequence(), &extended);
            }
        }
    }
}

impl Runtime {
    /// Notes if the provider extends leases.
    pub(super) fn note_extension(&self, sequence: u64, extended: &Result<()>) {
        match extended {
            Ok(()) => self.health.works(Part::Settling),
            Err(error) => {
                tracing::debug!(subscriber = self.subscriber, sequence, %error, "extending the lease failed");
                // A lost lease is not a failure of the provider.
                if error.is_retryable() {
                    self.health.failed(Part::Settling, error);
                }
            }
        }
    }
}

/// Releases an event, or naks it if the delivery counts.
pub(super) async fn give_back(left_over: &LeftOver) -> Result<()> {
    let job = &left_over.job;
    if job.is_settled || job.guarded.is_settled() {
        return Ok(());
    }
    let kind = if left_over.counts { AckKind::Nak(Some(Duration::ZERO)) } else { AckKind::Release };
    settle(job, kind.verb(), || job.guarded.stored.settle(kind.clone())).await
}

/// Settles, and retries transient failures. A final failure is logged: the event is redelivered when its lease expires.
async fn settle<F>(job: &Job, verb: &str, settlement: impl Fn() -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let mut attempt = 1;
    loop {
        let settled = settlement().await;
        match &settled {
            Err(error) if attempt <= SETTLEMENT_RETRIES && error.is_retryable() => {
                tokio::time::sleep(SETTLE_AGAIN.delay(attempt)).await;
                attempt += 1;
            }
            Err(error) => {
                log_unsettled(job, verb, error);
                return settled;
            }
            Ok(()) => return settled,
        }
    }
}

fn log_unsettled(job: &Job, verb: &str, error: &EventError) {
    let DeadLetters { subscriber, consumer, .. } = &*job.guarded.letters;
    tracing::warn!(subscriber, consumer, sequence = job.sequence(), verb, %error, "settling the event failed; it may be redelivered");
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
