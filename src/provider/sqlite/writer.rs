//! The writer thread: the one place that changes the file, in as few transactions as the load allows.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::cells::Cells;
use super::config::SqliteConfig;
use super::error::Failure;
use super::queue::{Access, Group, Queue, Size, Work};
use super::schema::open_writer;
use super::store::Store;
use crate::deadline::After;
use crate::error::Result;

/// How often to look for the writes of other processes: often after one, seldom when nothing happens.
const POLL_ACTIVE: Duration = Duration::from_millis(5);
const POLL_IDLE: Duration = Duration::from_millis(50);
/// How late an event may be dropped that is too old, while nothing else happens.
const AGE_CHECK: Duration = Duration::from_millis(500);

/// Owns the write connection. Lives on its own thread until its queue is stopped.
pub(super) struct Writer {
    store: Store,
    queue: Arc<Queue>,
    cells: Arc<Cells>,
    limits: Size,
    /// Longest wait for further calls.
    delay: Duration,
    /// Calls in the last transaction: whoever was answered may call again at once.
    expected: usize,
    poll: Duration,
}

impl Writer {
    /// Opens the file on a thread of its own. The receiver says when it is open.
    pub(super) fn start(
        config: Arc<SqliteConfig>,
        queue: Arc<Queue>,
        cells: Arc<Cells>,
    ) -> std::io::Result<oneshot::Receiver<Result<()>>> {
        let (opened, answer) = oneshot::channel();
        thread::Builder::new().name("a3s-event-sqlite".to_owned()).spawn(move || {
            let _end = End { queue: Arc::clone(&queue), cells: Arc::clone(&cells) };
            let connection = match open_writer(&config) {
                Ok(connection) => connection,
                Err(error) => return drop(opened.send(Err(error))),
            };
            let limits = Size { events: config.group_events, bytes: config.group_bytes };
            let delay = config.group_delay;
            let store = Store::new(connection, config);
            let writer = Self { store, queue, cells, limits, delay, expected: 0, poll: POLL_ACTIVE };
            if opened.send(Ok(())).is_ok() {
                writer.run();
            }
        })?;
        Ok(answer)
    }

    fn run(mut self) {
        while let Some(group) = self.queue.take(self.limits, self.patience()) {
            match group.access {
                Some(access) => {
                    self.execute(group, access);
                    self.poll = POLL_ACTIVE;
                }
                None => self.look_around(),
            }
        }
    }

    /// How long to wait for work before looking what others wrote and what has become too old.
    fn patience(&self) -> Option<Duration> {
        if self.store.has_surplus() {
            return Some(Duration::ZERO);
        }
        let poll = self.cells.any().then_some(self.poll);
        let age = self.store.expires_by_age().then_some(AGE_CHECK);
        poll.into_iter().chain(age).min()
    }

    /// Runs a group, and what comes meanwhile, in one transaction and tells everyone how it ended.
    fn execute(&mut self, mut group: Group, access: Access) {
        // Those who only read must not keep what is too old from being dropped.
        let is_due = self.store.expires_by_age() && self.store.is_retention_due().unwrap_or(false);
        let access = if is_due { access.max(Access::Write) } else { access };
        let deadline = Instant::now().after(self.delay);
        let (queue, expected) = (&self.queue, self.expected);
        // What does not wait for the disk has nothing to share.
        let wait = if access == Access::Sync { self.store.commit_time() } else { Duration::ZERO };
        let outcome = self.store.transaction(access, |store| {
            for what in &group.given_back {
                store.take_back(what)?;
            }
            let mut done = 0;
            loop {
                group.work.iter_mut().skip(done).try_for_each(|work| work.run(store))?;
                done = group.work.len();
                let patience = deadline.saturating_duration_since(Instant::now()).min(wait);
                if !queue.more(&mut group, access, expected, patience) {
                    return Ok(());
                }
            }
        });
        if let Err(failure) = &outcome {
            tracing::warn!(
                ?failure,
                jobs = group.work.len(),
                "a sqlite transaction failed and was rolled back"
            );
        }
        self.expected = group.work.len();
        self.answer(group.work, outcome.as_ref().map(|_| ()));
        self.wake();
    }

    fn answer(&self, work: Vec<Box<dyn Work>>, outcome: std::result::Result<(), &Failure>) {
        for work in work {
            if let Some(unwanted) = work.answer(outcome) {
                self.queue.give_back(unwanted);
            }
        }
    }

    /// With nothing to do: drops what is too old or too much, and wakes everyone when another process wrote.
    fn look_around(&mut self) {
        self.poll = (self.poll * 2).min(POLL_IDLE);
        let looked = self.store.look_for_changes().and_then(|()| {
            if self.store.is_retention_due()? { self.store.retain_in_transaction() } else { Ok(()) }
        });
        if let Err(error) = looked {
            // The next call meets the same failure and tells its caller. Until then there is no hurry to try again.
            self.store.set_surplus(false);
            tracing::debug!(%error, "cannot look for changes in the sqlite file");
        }
        self.wake();
    }

    fn wake(&mut self) {
        let wakeups = self.store.take_wakeups();
        if wakeups.everyone {
            self.poll = POLL_ACTIVE;
        }
        self.cells.wake(&wakeups);
    }
}

/// Ends the queue with the thread, also when the thread panics.
struct End {
    queue: Arc<Queue>,
    cells: Arc<Cells>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.queue.end();
        self.cells.wake_all();
    }
}
