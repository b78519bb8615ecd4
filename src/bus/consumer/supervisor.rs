//! Runs the tasks of a consumer and ends them in order.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use super::handle::{ConsumerState, GRACE};
use super::worker::give_back;
use super::{Command, Runtime};
use crate::bus::open::Opener;
use crate::deadline::After;
use crate::error::{ErrorKind, EventError, Result};
use crate::poison::IgnorePoison;
use crate::provider::AckKind;
use crate::types::SubscriptionFilter;

/// Lease age that applies if there are no subscriptions.
const LONGEST_LOOK: Duration = Duration::from_secs(30);

/// Owns every task of a consumer; they end when it is dropped.
pub(super) struct Supervisor {
    pub(super) runtime: Arc<Runtime>,
    pub(super) fetchers: JoinSet<Result<()>>,
    pub(super) workers: JoinSet<()>,
    pub(super) state: watch::Sender<ConsumerState>,
    pub(super) failure: Arc<Mutex<Option<EventError>>>,
    pub(super) drain_timeout: Duration,
}

impl Supervisor {
    pub(super) async fn run(mut self, opener: Opener, filter: SubscriptionFilter) {
        let runtime = Arc::clone(&self.runtime);
        let ended = tokio::select! {
            biased;
            ended = self.supervise() => ended,
            () = keep_leases(&runtime) => Ok(()),
            () = runtime.queue.keep_time() => Ok(()),
            // Beside the work, because listing the consumers can take long.
            () = warn_of_others(&opener, &filter) => Ok(()),
        };
        if let Err(Ending::Failed(error) | Ending::Interrupted(error)) = &ended {
            tracing::error!(subscriber = self.runtime.subscriber, %error, "consumer ended with an error");
        }
        self.end(ended);
    }

    /// Sets the last state with its error, which everything that reports the end reads. Only the first call counts.
    fn end(&mut self, ended: std::result::Result<(), Ending>) {
        if matches!(*self.state.borrow(), ConsumerState::Stopped | ConsumerState::Failed) {
            return;
        }
        let (state, error) = match ended {
            Ok(()) => (ConsumerState::Stopped, None),
            Err(Ending::Interrupted(error)) => (ConsumerState::Stopped, Some(error)),
            Err(Ending::Failed(error)) => {
                self.runtime.health.ended(&error);
                (ConsumerState::Failed, Some(error))
            }
        };
        *self.failure.lock().ignore_poison() = error;
        self.state.send_replace(state);
    }

    async fn supervise(&mut self) -> std::result::Result<(), Ending> {
        let failed = self.until_drained().await;
        self.state.send_replace(ConsumerState::Draining);
        self.runtime.command.raise(Command::Drain);
        let interrupted = self.drain().await;
        failed.map_err(Ending::Failed)?;
        match interrupted {
            0 => match self.runtime.cut_short.lock().ignore_poison().take() {
                None => Ok(()),
                Some(error) => Err(Ending::Interrupted(error)),
            },
            count => Err(Ending::Interrupted(EventError::Timeout(format!(
                "{count} handlers did not end in time and were interrupted; their events will be redelivered"
            )))),
        }
    }

    /// Waits for the drain command, or for a task that ends without one.
    async fn until_drained(&mut self) -> Result<()> {
        tokio::select! {
            biased;
            () = self.runtime.command.reaches(Command::Drain) => Ok(()),
            Some(ended) = self.fetchers.join_next() => ended.unwrap_or_else(|broken| Err(died(&broken))),
            Some(Err(broken)) = self.workers.join_next() => Err(died(&broken)),
        }
    }

    /// Ends all tasks and returns the number of interrupted handlers.
    async fn drain(&mut self) -> u64 {
        let deadline = tokio::time::Instant::now().after(self.drain_timeout);
        // Fetchers end soon: none of them waits for a handler.
        let closing = tokio::time::timeout_at(deadline, join_all(&mut self.fetchers));
        tokio::select! {
            biased;
            _ = closing => {}
            () = self.runtime.command.reaches(Command::Abort) => {}
        }
        self.fetchers.abort_all();
        if self.runtime.releases_uncounted {
            self.runtime.queue.stop();
        }
        self.runtime.queue.close(deadline);
        let working = tokio::time::timeout_at(deadline, join_all(&mut self.workers));
        tokio::select! {
            biased;
            _ = working => {}
            () = self.runtime.command.reaches(Command::Abort) => {}
        }
        self.runtime.queue.stop();
        self.runtime.command.raise(Command::Abort);
        let _ = tokio::time::timeout(GRACE, join_all(&mut self.workers)).await;
        let stuck = self.workers.len() as u64;
        self.workers.abort_all();
        let giving_back = async {
            // In stream order, so that they are redelivered in that order.
            for left_over in self.runtime.queue.take_left_over() {
                // An event whose lease was lost is redelivered anyway.
                if let Err(error) = give_back(&left_over).await
                    && error.kind() != ErrorKind::Ack
                {
                    self.runtime.note_cut_short(error);
                }
            }
        };
        let limit = self.runtime.operation_timeout;
        if tokio::time::timeout(limit, giving_back).await.is_err() {
            let what = "releasing events did not end within";
            self.runtime.note_cut_short(EventError::Timeout(format!("{what} {limit:?}")));
        }
        self.runtime.stats.interruptions() + stuck
    }
}

impl Drop for Supervisor {
    /// Reports the end of a supervisor that was dropped or panicked, for instance because its runtime was shut down.
    fn drop(&mut self) {
        self.end(Err(Ending::Failed(EventError::Consumer("the consumer's task has ended".to_owned()))));
    }
}

enum Ending {
    Failed(EventError),
    Interrupted(EventError),
}

async fn join_all<T: 'static>(tasks: &mut JoinSet<T>) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a task of the consumer failed");
        }
    }
}

fn died(error: &JoinError) -> EventError {
    EventError::Consumer(format!("a task of the consumer failed: {error}"))
}

/// Warns once of other consumers of this name, and never ends.
async fn warn_of_others(opener: &Opener, filter: &SubscriptionFilter) {
    opener.warn_of_others(filter).await;
    std::future::pending::<()>().await;
}

/// Extends the leases of waiting events, forever.
async fn keep_leases(runtime: &Runtime) {
    loop {
        let shortest = runtime.in_force.iter().map(|in_force| in_force.extend_after()).min();
        tokio::select! {
            biased;
            () = tokio::time::sleep(shortest.unwrap_or(LONGEST_LOOK) / 2) => {}
            () = runtime.settings_changed.notified() => {}
        }
        for lease in runtime.queue.to_extend() {
            let extended = lease.settle(AckKind::Extend).await;
            runtime.note_extension(lease.lease.sequence, &extended);
        }
    }
}
