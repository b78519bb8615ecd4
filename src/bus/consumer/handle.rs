//! The owner of a running consumer.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::fetch::LagRequest;
use super::queue::Counts;
use super::{Command, Runtime, raise};
use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;

/// What a consumer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConsumerState {
    /// It fetches and handles events.
    Running,
    /// It runs, and something that it needs fails: fetching, settling, or writing dead letters. It tries again with growing
    /// pauses, and is [`Running`](ConsumerState::Running) again by itself; [`last_error`](ConsumerHandle::last_error) says
    /// what failed.
    Retrying,
    /// It fetches nothing; what it has is handled.
    Paused,
    /// It fetches nothing any more and ends what it has.
    Draining,
    /// It was shut down.
    Stopped,
    /// It ended by itself; [`stopped`](ConsumerHandle::stopped) says why.
    Failed,
}

/// What a consumer has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerStats {
    /// Events handled successfully.
    pub handled: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Events given up: written to the dead letters, or logged where there are none.
    pub dead_lettered: u64,
    /// Tries to write a dead letter that failed.
    pub dead_letter_failures: u64,
    /// Events that retention dropped before they were handled.
    pub missed: u64,
    /// Handlers that were interrupted by a shutdown.
    pub interrupted: u64,
    /// Events being handled now.
    pub running: usize,
    /// Events fetched that wait for others.
    pub waiting: usize,
    /// Of those that wait, the ones behind an event of their key that fails or takes long.
    pub parked: usize,
}

#[derive(Default)]
pub(super) struct Counters {
    handled: AtomicU64,
    failed: AtomicU64,
    dead_lettered: AtomicU64,
    dead_letter_failures: AtomicU64,
    missed: AtomicU64,
    interrupted: AtomicU64,
}

impl Counters {
    pub(super) fn handled(&self) {
        self.handled.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn dead_lettered(&self) {
        self.dead_lettered.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn dead_letter_failed(&self) {
        self.dead_letter_failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn missed(&self, events: u64) {
        self.missed.fetch_add(events, Ordering::Relaxed);
    }

    pub(super) fn interrupted(&self) {
        self.interrupted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn interruptions(&self) -> u64 {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// The owner of a running consumer: it reports, pauses and ends it.
///
/// Dropping it ends the consumer at once: handlers are dropped where they are, and their leases decide.
/// [`shutdown`](ConsumerHandle::shutdown) ends it in order.
#[must_use = "a consumer ends when its handle is dropped"]
pub struct ConsumerHandle {
    pub(super) runtime: Arc<Runtime>,
    pub(super) command: watch::Sender<Command>,
    pub(super) state: watch::Receiver<ConsumerState>,
    pub(super) failure: Arc<Mutex<Option<EventError>>>,
    pub(super) lag_requests: Vec<mpsc::Sender<LagRequest>>,
    pub(super) supervisor: JoinHandle<()>,
}

impl ConsumerHandle {
    /// What the consumer does now.
    pub fn state(&self) -> ConsumerState {
        match *self.state.borrow() {
            ConsumerState::Running if *self.command.borrow() == Command::Pause => ConsumerState::Paused,
            ConsumerState::Running if self.runtime.health.error().is_some() => ConsumerState::Retrying,
            state => state,
        }
    }

    /// What fails at the moment: the last error of what has not worked since. `None` while everything works.
    pub fn last_error(&self) -> Option<String> {
        self.runtime.health.error()
    }

    /// What it has done so far. Each number is read by itself.
    pub fn stats(&self) -> ConsumerStats {
        let counters = &self.runtime.stats;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counts { running, waiting, parked } = self.runtime.queue.counts();
        ConsumerStats {
            handled: read(&counters.handled),
            failed: read(&counters.failed),
            dead_lettered: read(&counters.dead_lettered),
            dead_letter_failures: read(&counters.dead_letter_failures),
            missed: read(&counters.missed),
            interrupted: read(&counters.interrupted),
            running,
            waiting,
            parked,
        }
    }

    /// How many matching retained events were not fetched yet, over all subjects.
    ///
    /// # Errors
    ///
    /// As [`Subscription::lag`](crate::Subscription::lag); [`EventError::Closed`] when the consumer has ended, and
    /// [`EventError::Timeout`].
    pub async fn lag(&self) -> Result<u64> {
        let asking = async {
            let mut lag = 0;
            for subscription in &self.lag_requests {
                let (sender, answer) = oneshot::channel();
                subscription.send(sender).await.map_err(|_| has_ended())?;
                lag += answer.await.map_err(|_| has_ended())??;
            }
            Ok(lag)
        };
        let deadline = self.runtime.operation_timeout;
        let late = |_| Err(EventError::Timeout(format!("lag: no answer within {deadline:?}")));
        tokio::time::timeout(deadline, asking).await.unwrap_or_else(late)
    }

    /// Fetches nothing more until [`resume`](ConsumerHandle::resume). What was fetched is handled.
    pub fn pause(&self) {
        self.change(Command::Run, Command::Pause);
    }

    /// Goes on after a [`pause`](ConsumerHandle::pause).
    pub fn resume(&self) {
        self.change(Command::Pause, Command::Run);
    }

    /// Ends the consumer in order: nothing more is fetched, running handlers end and are settled, and what was fetched and
    /// not started is given back without counting an attempt. Waits until that is done.
    ///
    /// A provider without the capability `release_keeps_attempt` counts what is given back. There, what was fetched is handled
    /// too, as long as the deadline allows. What waits for an attempt behind the deadline is given back without waiting.
    ///
    /// Called again, by another task or after the first future was dropped, it is fast: handlers are interrupted at once and
    /// their events given back. Cancel-safe: the shutdown goes on without its future.
    ///
    /// # Errors
    ///
    /// [`EventError::Timeout`] when handlers had to be interrupted; their events come again. The error of a consumer that
    /// had ended by itself.
    pub async fn shutdown(&self) -> Result<()> {
        self.command.send_modify(|command| {
            *command = if *command < Command::Drain { Command::Drain } else { Command::Abort };
        });
        self.stopped().await
    }

    /// Waits until the consumer has ended, by a shutdown or by itself. Cancel-safe.
    ///
    /// # Errors
    ///
    /// What ended it, when it ended by itself: its provider was closed, or what it needs is refused. As
    /// [`shutdown`](ConsumerHandle::shutdown) otherwise. Only the first call gets the error itself, later ones its text.
    pub async fn stopped(&self) -> Result<()> {
        let mut state = self.state.clone();
        let ended = |state: &ConsumerState| matches!(state, ConsumerState::Stopped | ConsumerState::Failed);
        if state.wait_for(ended).await.is_err() {
            return Err(EventError::Consumer("the consumer's task has ended".to_owned()));
        }
        let mut failure = self.failure.lock().ignore_poison();
        match failure.take() {
            None => Ok(()),
            Some(error) => {
                *failure = Some(EventError::Consumer(error.to_string()));
                Err(error)
            }
        }
    }

    /// Runs until `stop` is ready, and then shuts down. When another `stop` is ready before that is done, the shutdown
    /// becomes a fast one. For instance `stop` waits for a signal.
    ///
    /// # Errors
    ///
    /// As [`stopped`](ConsumerHandle::stopped).
    pub async fn run_until<F>(&self, mut stop: impl FnMut() -> F) -> Result<()>
    where
        F: Future,
    {
        tokio::select! {
            ended = self.stopped() => return ended,
            _ = stop() => {}
        }
        tokio::select! {
            ended = self.shutdown() => ended,
            _ = stop() => self.shutdown().await,
        }
    }

    fn change(&self, from: Command, to: Command) {
        self.command.send_if_modified(|command| {
            let changes = *command == from;
            if changes {
                *command = to;
            }
            changes
        });
    }
}

fn has_ended() -> EventError {
    EventError::Closed("the consumer has ended".to_owned())
}

impl Drop for ConsumerHandle {
    fn drop(&mut self) {
        // The tasks end at their next step. What they take until then would wait for the end of its lease.
        raise(&self.command, Command::Gone);
        self.supervisor.abort();
    }
}

impl fmt::Debug for ConsumerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerHandle")
            .field("state", &self.state())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// How long a fast shutdown waits for what cannot be interrupted.
pub(super) const GRACE: Duration = Duration::from_secs(1);
