//! Running a handler and settling its event.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use super::policy::{Backoff, ErrorClass, HandlerResult};
use super::queue::{Ended, Job, LeftOver};
use super::{Command, Handler, Runtime, told};
use crate::bus::dead_letter::Failure;
use crate::bus::panics::caught;
use crate::dlq::FailureClass;
use crate::error::{EventError, Result};
use crate::provider::{AckHandler, Delivery, poll_once};
use crate::trace::{TraceContext, process_span};
use crate::types::Event;

/// Further tries of a settlement that failed for a reason that may pass.
const SETTLEMENT_RETRIES: u64 = 3;

/// Takes one job after the other until there is none left.
pub(super) async fn work<H: Handler>(
    runtime: Arc<Runtime>,
    handler: Arc<H>,
    command: watch::Receiver<Command>,
) {
    let mut worker = Worker { runtime, handler, command };
    let mut ended = None;
    while let Some(job) = worker.runtime.queue.next(ended.take()).await {
        ended = Some(worker.process(job).await);
    }
}

struct Worker<H> {
    runtime: Arc<Runtime>,
    handler: Arc<H>,
    command: watch::Receiver<Command>,
}

/// How one attempt ended.
enum Outcome {
    Done,
    Failed(Failed),
    /// The consumer does not wait any longer.
    Interrupted,
}

struct Failed {
    class: ErrorClass,
    reason: String,
    /// When to try again, where the handler said so.
    after: Option<Duration>,
}

impl<H: Handler> Worker<H> {
    async fn process(&mut self, job: Job) -> Ended {
        let stored = &job.guarded.stored;
        let delivered = stored.num_delivered();
        let event = match &job.content {
            Ok(event) => Arc::clone(event),
            Err(poison) => {
                let failure = Failure::now(poison.class, poison.reason.clone(), delivered);
                return self.dead_letter(job, failure).await;
            }
        };
        if job.guarded.letters.is_exhausted(stored) {
            let attempts = self.runtime.attempts.unwrap_or(delivered);
            let failure = self.runtime.failures.exhausted(&job, attempts);
            return self.dead_letter(job, failure).await;
        }
        self.attempt(job, &event).await
    }

    /// Tries until the event is settled, or has to wait for another delivery.
    async fn attempt(&mut self, mut job: Job, event: &Arc<Event>) -> Ended {
        let mut attempt = job.guarded.stored.num_delivered();
        loop {
            let failed = match self.run(&mut job, event).await {
                Outcome::Done => return self.acknowledge(job).await,
                Outcome::Interrupted if job.guarded.is_settled() => return Ended::Done(job),
                Outcome::Interrupted => {
                    let has_failed_before = attempt > job.guarded.stored.num_delivered();
                    self.runtime.stats.interrupted();
                    return if has_failed_before { Ended::Failed(job) } else { Ended::Unstarted(job) };
                }
                Outcome::Failed(failed) => failed,
            };
            self.runtime.stats.failed();
            tracing::warn!(
                consumer = job.guarded.letters.consumer,
                event = event.id,
                attempt,
                reason = failed.reason,
                "handler failed"
            );
            if job.guarded.is_settled() {
                return Ended::Done(job);
            }
            let is_last = self.runtime.attempts.is_some_and(|attempts| attempt >= attempts);
            let class = match failed.class {
                ErrorClass::Fatal => Some(FailureClass::Fatal),
                ErrorClass::Mismatch => Some(FailureClass::Mismatch),
                ErrorClass::Retry => is_last.then_some(FailureClass::Exhausted),
            };
            let failure = self.runtime.failures.note(&job, class, failed.reason, attempt);
            if let Some(failure) = failure {
                return self.dead_letter(job, failure).await;
            }
            let delay = failed.after.unwrap_or_else(|| self.runtime.policy.backoff.delay(attempt));
            if !self.runtime.retries_here {
                self.refuse(&job, delay).await;
                return Ended::Done(job);
            }
            let patience = self.runtime.patience();
            if !self.keep_alive(&mut job, delay, patience).await {
                return Ended::Failed(job);
            }
            attempt += 1;
        }
    }

    /// One attempt. Its lease is kept alive, and whatever the handler does ends here.
    async fn run(&mut self, job: &mut Job, event: &Arc<Event>) -> Outcome {
        let stored = &job.guarded.stored;
        let guarded = Arc::clone(&job.guarded) as Arc<dyn AckHandler>;
        let (sequence, delivered) = (stored.sequence(), stored.num_delivered());
        let delivery = Delivery::with_shared_handler(
            Arc::clone(event),
            sequence,
            delivered,
            Arc::clone(&job.origin.stream),
            guarded,
        );
        let counters = &job.guarded.letters.counters;
        let span = process_span(counters.system(), counters.group(), &delivery);
        let _processing = counters.begin_processing();
        let handler = &*self.handler;
        // The handler is called inside, so that a panic in the call is caught too. What wraps it borrows it, because it may
        // be large.
        let handled = pin!(async move { handler.call(delivery).await });
        let handling = caught(handled).instrument(span);
        // What it publishes belongs to the trace of the event.
        let mut call = pin!(TraceContext::scope_of(Arc::clone(event), handling));
        // Most handlers that do not wait need no timer.
        if let Some(done) = poll_once(&mut call).await {
            return outcome(&self.runtime, done);
        }
        let timeout = self.runtime.policy.timeout;
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let extend_at = job.leased_at + self.runtime.extend_after;
            tokio::select! {
                biased;
                done = &mut call => return outcome(&self.runtime, done),
                () = told(&mut self.command, Command::Abort) => return Outcome::Interrupted,
                () = at(deadline) => {
                    let reason = format!("no result within {:?}", timeout.unwrap_or_default());
                    return Outcome::Failed(Failed { class: ErrorClass::Retry, reason, after: None });
                }
                () = tokio::time::sleep_until(extend_at) => extend(job).await,
            }
        }
    }

    async fn acknowledge(&self, job: Job) -> Ended {
        if !job.guarded.is_settled() {
            settle(&job, "ack", || job.guarded.stored.settlement().ack()).await;
        }
        self.runtime.failures.forget(&job);
        self.runtime.stats.handled();
        Ended::Done(job)
    }

    /// Asks for another delivery.
    async fn refuse(&self, job: &Job, delay: Duration) {
        settle(job, "nak", || job.guarded.stored.settlement().nak(Some(delay))).await;
    }

    /// Takes an event out, and does not settle it before it is out: while the dead letters cannot be reached, this worker
    /// waits, and the event stays where it is.
    async fn dead_letter(&mut self, mut job: Job, failure: Failure) -> Ended {
        let backoff = Backoff::exponential(Duration::from_secs(1), Duration::from_secs(30));
        let letter = job.guarded.letters.letter(&job.guarded.stored, failure);
        for attempt in 1.. {
            match job.guarded.letters.write(&job.guarded.stored, &letter).await {
                Ok(_receipt) => break,
                Err(error) => {
                    self.runtime.stats.dead_letter_failed();
                    let sequence = job.sequence();
                    tracing::error!(sequence, %error, "event not dead-lettered; trying again");
                }
            }
            if !self.keep_alive(&mut job, backoff.delay(attempt), Command::Drain).await {
                return Ended::Failed(job);
            }
        }
        if !job.is_settled {
            settle(&job, "term", || job.guarded.stored.term_or_ack(&letter.reason)).await;
        }
        self.runtime.failures.forget(&job);
        self.runtime.stats.dead_lettered();
        Ended::Done(job)
    }

    /// Waits with the lease kept alive; `false` when that was cut short by a command.
    async fn keep_alive(&mut self, job: &mut Job, wait: Duration, until: Command) -> bool {
        let end = Instant::now() + wait;
        loop {
            let extend_at = job.leased_at + self.runtime.extend_after;
            tokio::select! {
                biased;
                () = told(&mut self.command, until) => return false,
                () = tokio::time::sleep_until(end) => return true,
                () = tokio::time::sleep_until(extend_at) => extend(job).await,
            }
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

/// Restarts the lease of a job. One that is lost comes again and is handled twice: that is what at least once means.
async fn extend(job: &mut Job) {
    job.leased_at = Instant::now();
    if let Err(error) = job.guarded.stored.extend().await {
        tracing::debug!(sequence = job.sequence(), %error, "lease not extended");
    }
}

/// Gives an event back.
pub(super) async fn give_back(left_over: &LeftOver) {
    let job = &left_over.job;
    if job.is_settled || job.guarded.is_settled() {
        return;
    }
    let settlement = job.guarded.stored.settlement();
    if left_over.counts {
        settle(job, "nak", || settlement.nak(Some(Duration::ZERO))).await;
    } else {
        settle(job, "release", || settlement.release()).await;
    }
}

/// Settles, and tries again what may pass. What fails in the end is logged: the lease brings the event back.
async fn settle<F>(job: &Job, verb: &str, settlement: impl Fn() -> F)
where
    F: Future<Output = Result<()>>,
{
    let backoff = Backoff::exponential(Duration::from_millis(100), Duration::from_secs(1));
    for attempt in 1.. {
        let Err(error) = settlement().await else { return };
        if attempt > SETTLEMENT_RETRIES || !error.is_retryable() {
            log_unsettled(job, verb, &error);
            return;
        }
        tokio::time::sleep(backoff.delay(attempt)).await;
    }
}

fn log_unsettled(job: &Job, verb: &str, error: &EventError) {
    let consumer = &job.guarded.letters.consumer;
    tracing::warn!(consumer, sequence = job.sequence(), verb, %error, "event not settled; it may come again");
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
