//! Handle of a running consumer.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::fetch::LagRequest;
use super::queue::Counts;
use super::{Command, Runtime};
use crate::bus::dead_letter::Fate;
use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;

/// State of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConsumerState {
    /// The consumer fetches and handles events.
    Running,
    /// The consumer runs, but fetching, settling, or writing dead letters fails. It retries with growing delays and
    /// returns to [`Running`](ConsumerState::Running) on success. [`last_error`](ConsumerHandle::last_error) returns
    /// the failure.
    Retrying,
    /// The consumer fetches nothing, and handles what it has fetched.
    Paused,
    /// The consumer has stopped fetching, and settles or releases its events.
    Draining,
    /// The consumer was shut down.
    Stopped,
    /// The consumer ended by itself. [`stopped`](ConsumerHandle::stopped) returns the error, and
    /// [`last_error`](ConsumerHandle::last_error) its text.
    Failed,
}

/// Counters of a consumer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerStats {
    /// Events handled successfully.
    pub handled: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Events given up, with or without a dead letter. Those beyond `dead_lettered` are only in the log: no dead-letter
    /// handler is set, or the event is a dead letter itself.
    pub given_up: u64,
    /// Events given up whose dead letter is stored.
    pub dead_lettered: u64,
    /// Failed attempts to write a dead letter.
    pub dead_letter_failures: u64,
    /// Events that retention dropped before they were handled.
    pub missed: u64,
    /// Handlers that a shutdown interrupted.
    pub interrupted: u64,
    /// Events being handled now.
    pub running: usize,
    /// Fetched events that wait to be handled.
    pub waiting: usize,
    /// Waiting events behind an event of their key that fails or takes long.
    pub parked: usize,
}

#[derive(Default)]
pub(super) struct Counters {
    handled: AtomicU64,
    failed: AtomicU64,
    given_up: AtomicU64,
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

    pub(super) fn given_up(&self, fate: Fate) {
        self.given_up.fetch_add(1, Ordering::Relaxed);
        if fate == Fate::Kept {
            self.dead_lettered.fetch_add(1, Ordering::Relaxed);
        }
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

/// Handle of a running consumer: reports on it, pauses it and ends it.
///
/// Dropping the handle ends the consumer at once. Running handlers are dropped, and their events are redelivered when
/// their leases expire. [`shutdown`](ConsumerHandle::shutdown) ends it gracefully.
#[must_use = "a consumer ends when its handle is dropped"]
pub struct ConsumerHandle {
    pub(super) runtime: Arc<Runtime>,
    pub(super) state: watch::Receiver<ConsumerState>,
    pub(super) failure: Arc<Mutex<Option<EventError>>>,
    pub(super) lag_requests: Vec<mpsc::Sender<LagRequest>>,
    pub(super) supervisor: JoinHandle<()>,
}

impl ConsumerHandle {
    /// Returns the state of the consumer.
    pub fn state(&self) -> ConsumerState {
        match *self.state.borrow() {
            ConsumerState::Running if self.runtime.command.current() == Command::Pause => {
                ConsumerState::Paused
            }
            ConsumerState::Running if self.runtime.health.error().is_some() => ConsumerState::Retrying,
            state => state,
        }
    }

    /// Returns the last error of a part that has not worked since, or `None` while everything works. If the consumer has
    /// [failed](ConsumerState::Failed), returns the error that ended it.
    pub fn last_error(&self) -> Option<String> {
        self.runtime.health.error()
    }

    /// Returns the counters so far. Each one is read separately.
    pub fn stats(&self) -> ConsumerStats {
        let counters = &self.runtime.stats;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counts { running, waiting, parked } = self.runtime.queue.counts();
        ConsumerStats {
            handled: read(&counters.handled),
            failed: read(&counters.failed),
            given_up: read(&counters.given_up),
            dead_lettered: read(&counters.dead_lettered),
            dead_letter_failures: read(&counters.dead_letter_failures),
            missed: read(&counters.missed),
            interrupted: read(&counters.interrupted),
            running,
            waiting,
            parked,
        }
    }

    /// Returns the number of matching retained events that were not fetched yet, over all subjects.
    ///
    /// # Errors
    ///
    /// Same as [`Subscription::lag`](crate::Subscription::lag); [`EventError::Closed`] if the consumer has ended; and
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

    /// Stops fetching until [`resume`](ConsumerHandle::resume). Events already fetched are handled.
    pub fn pause(&self) {
        self.change(Command::Run, Command::Pause);
    }

    /// Resumes fetching after a [`pause`](ConsumerHandle::pause).
    pub fn resume(&self) {
        self.change(Command::Pause, Command::Run);
    }

    /// Shuts the consumer down gracefully, and waits until that is done:
    ///
    /// - It stops fetching.
    /// - It waits for running handlers and settles their events.
    /// - It releases events that were fetched and not started, without counting an attempt.
    ///
    /// A provider without the capability `release_keeps_attempt` counts a release as an attempt. There, the consumer
    /// also handles what it has fetched until the drain timeout expires. It releases at once an event whose next
    /// attempt is due later than that.
    ///
    /// A second call, by another task or after the first future was dropped, is fast: it interrupts handlers at once
    /// and releases their events. Cancel-safe: the shutdown continues without its future.
    ///
    /// # Errors
    ///
    /// - [`EventError::Timeout`] if handlers had to be interrupted; their events are redelivered
    /// - the provider's error if it did not store the last acks or releases: these events are redelivered when their
    ///   leases expire, and newer events of their keys may be handled before that
    /// - if the consumer had ended by itself, its error
    pub async fn shutdown(&self) -> Result<()> {
        self.runtime.command.replace(
            |command| {
                if command < Command::Drain { Command::Drain } else { Command::Abort }
            },
        );
        self.stopped().await
    }

    /// Waits until the consumer has ended, by a shutdown or by itself. Cancel-safe.
    ///
    /// # Errors
    ///
    /// If the consumer ended by itself, the cause: its provider was closed, or refuses a request that the consumer
    /// needs. Otherwise same as [`shutdown`](ConsumerHandle::shutdown). Only the first call returns the error itself;
    /// later calls return its text.
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

    /// Runs until `stop` is ready, and then shuts down. If a second `stop` is ready before that is done, the shutdown
    /// becomes a fast one. For instance, `stop` waits for a signal.
    ///
    /// # Errors
    ///
    /// Same as [`stopped`](ConsumerHandle::stopped).
    pub async fn run_until<F>(&self, mut stop: impl FnMut() -> F) -> Result<()>
    where
        F: Future,
    {
        tokio::select! {
            biased;
            ended = self.stopped() => return ended,
            _ = stop() => {}
        }
        tokio::select! {
            biased;
            ended = self.shutdown() => ended,
            _ = stop() => self.shutdown().await,
        }
    }

    /// Drops all tasks at once, as the end of the process does.
    #[cfg(feature = "testing")]
    pub(crate) fn kill(&self) {
        self.supervisor.abort();
    }

    fn change(&self, from: Command, to: Command) {
        self.runtime.command.replace(|command| if command == from { to } else { command });
    }
}

fn has_ended() -> EventError {
    EventError::Closed("the consumer has ended".to_owned())
}

impl Drop for ConsumerHandle {
    fn drop(&mut self) {
        // Fetchers release what they fetch until they end. Otherwise it would wait for the end of its lease.
        self.runtime.command.raise(Command::Gone);
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

/// Timeout of a fast shutdown for tasks that cannot be interrupted.
pub(super) const GRACE: Duration = Duration::from_secs(1);
