//! The writer thread: the only place that changes the file, in as few transactions as the load allows.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::cells::Cells;
use super::config::SqliteConfig;
use super::error::{Failure, io_failed};
use super::place::Place;
use super::queue::{Access, Group, Queue, Size, Work};
use super::readers::Readers;
use super::schema::open_writer;
use super::store::Store;
use crate::deadline::After;
use crate::error::Result;
use crate::provider::DEFAULT_TIMEOUT;
use crate::provider::support::Backoff;

/// Interval between checks for writes of other processes: short after a write, longer while idle.
const POLL: Backoff = Backoff::exponential(Duration::from_millis(5), Duration::from_millis(50)).jitter(0.0);
/// Maximum delay until an expired event is dropped while nothing else happens.
const AGE_CHECK: Duration = Duration::from_millis(500);

/// Owner of the write connection. Runs on its own thread until its queue is stopped.
pub(super) struct Writer {
    store: Store,
    queue: Arc<Queue>,
    cells: Arc<Cells>,
    readers: Arc<Readers>,
    limits: Size,
    /// Maximum wait for further calls.
    delay: Duration,
    /// Number of awaited calls in the last synced transaction. Their callers may call again at once.
    expected: usize,
    /// Number of checks that found nothing, since the last job and the last write of another process.
    idle: u64,
}

impl Writer {
    /// Opens the file on a new thread. The receiver reports when it is open.
    pub(super) fn start(
        config: Arc<SqliteConfig>,
        queue: Arc<Queue>,
        cells: Arc<Cells>,
        readers: Arc<Readers>,
    ) -> std::io::Result<oneshot::Receiver<Result<()>>> {
        let (opened, answer) = oneshot::channel();
        thread::Builder::new().name("a3s-event-sqlite".to_owned()).spawn(move || {
            let _end = End { queue: Arc::clone(&queue), cells: Arc::clone(&cells) };
            let (connection, place) = match open(&config) {
                Ok(opened) => opened,
                Err(error) => return drop(opened.send(Err(error))),
            };
            readers.renew(place.as_ref().map(Place::file));
            let limits = Size { events: config.commit_max_events, bytes: config.commit_max_bytes };
            let delay = config.commit_delay;
            let store = Store::new(connection, place, config);
            let writer = Self { store, queue, cells, readers, limits, delay, expected: 0, idle: 0 };
            if opened.send(Ok(())).is_ok() {
                writer.run();
            }
        })?;
        Ok(answer)
    }

    fn run(mut self) {
        while let Some(group) = self.queue.take(self.limits, self.timeout()) {
            match group.access {
                Some(access) => {
                    self.execute(group, access);
                    self.idle = 0;
                }
                None => self.look_around(),
            }
            self.store.recover_if_due(&self.readers);
            self.wake();
        }
        self.store.sync_acks();
        // The last connection copies the log into the file and deletes it.
        self.readers.close();
        self.readers.wait_until_closed(DEFAULT_TIMEOUT / 2);
    }

    /// Returns the time to wait for jobs. Then it is time to look for writes of other processes, for expired events, or
    /// for the end of an outage.
    fn timeout(&self) -> Option<Duration> {
        if self.store.has_surplus() {
            return Some(Duration::ZERO);
        }
        let poll = self.cells.any().then(|| POLL.delay(self.idle + 1));
        let age = self.store.expires_by_age().then_some(AGE_CHECK);
        let attempt = self.store.condition.next_attempt();
        let attempt = attempt.map(|at| at.saturating_duration_since(Instant::now()));
        poll.into_iter().chain(age).chain(attempt).min()
    }

    /// Runs a group, and jobs that arrive meanwhile, in one transaction. Reports the outcome to every caller.
    fn execute(&mut self, mut group: Group, access: Access) {
        if access == Access::Own {
            let outcome = group.work.iter_mut().try_for_each(|work| work.run(&mut self.store));
            let outcome = outcome.map_err(|cause| Failure::rolled_back(cause).of_file(self.store.path()));
            return self.answer(group.work, outcome.as_ref().map(|_| ()));
        }
        let deadline = Instant::now().after(self.delay);
        self.wait_for_company(&mut group, deadline);
        let access = group.access.unwrap_or(access).max(access);
        // Jobs that only read must not prevent expired events from being dropped.
        let is_due = self.store.expires_by_age() && self.store.is_retention_due().unwrap_or(false);
        let access = if is_due { access.max(Access::Write) } else { access };
        let (queue, expected) = (&self.queue, self.expected);
        let access =
            if access == Access::Write && self.store.has_to_sync_acks() { Access::Sync } else { access };
        // Without a sync there is no wait to share.
        let wait = if access == Access::Sync { self.store.commit_time() } else { Duration::ZERO };
        let outcome = self.store.transaction(access, |store| {
            for what in &group.given_back {
                store.take_back(what)?;
            }
            let mut done = 0;
            loop {
                group.work.iter_mut().skip(done).try_for_each(|work| work.run(store))?;
                done = group.work.len();
                let timeout = deadline.saturating_duration_since(Instant::now()).min(wait);
                if !queue.more(&mut group, access, expected, timeout) {
                    return Ok(());
                }
            }
        });
        let outcome = outcome.map_err(|failure| failure.of_file(self.store.path()));
        self.store.condition.note_bytes(group.size.bytes, &outcome);
        if let Err(failure) = &outcome {
            tracing::warn!(
                ?failure,
                jobs = group.work.len(),
                "a sqlite transaction failed and was rolled back"
            );
            for mut what in group.given_back {
                // The leases expire. An ephemeral consumer without members needs no transaction to end.
                what.leases.clear();
                let _ = self.store.take_back(&what);
            }
        }
        if access == Access::Sync {
            self.expected = group.awaited;
        }
        self.answer(group.work, outcome.as_ref().map(|_| ()));
        if outcome.is_ok() && access != Access::Read {
            // No caller waits for the checkpoint.
            self.store.checkpoint_if_due();
        }
    }

    /// Waits for further jobs if the group contains only acks, whose senders usually ask for events soon. Does not wait
    /// if a consumer is full and needs the room. The file is not locked meanwhile.
    fn wait_for_company(&self, group: &mut Group, deadline: Instant) {
        while group.can_wait()
            && self.store.consumers.full().next().is_none()
            && self.queue.more(
                group,
                Access::Sync,
                usize::MAX,
                deadline.saturating_duration_since(Instant::now()),
            )
        {}
    }

    fn answer(&self, work: Vec<Box<dyn Work>>, outcome: std::result::Result<(), &Failure>) {
        for work in work {
            if let Some(unwanted) = work.answer(outcome) {
                self.queue.give_back(unwanted);
            }
        }
    }

    /// Runs when there are no jobs: drops expired and surplus events, and looks for writes of other processes.
    fn look_around(&mut self) {
        self.idle += 1;
        self.store.look_at_place();
        if self.store.refuse(Access::Write).is_err() {
            // Nothing can be dropped until the outage ends.
            self.store.set_surplus(false);
            return;
        }
        let looked = self.store.look_for_changes().and_then(|()| {
            if self.store.is_retention_due()? { self.store.retain_in_transaction() } else { Ok(()) }
        });
        if let Err(error) = looked {
            // The next call reports the same failure to its caller. Until then a retry is not urgent.
            self.store.set_surplus(false);
            tracing::debug!(%error, "checking the sqlite file for changes failed");
        }
    }

    fn wake(&mut self) {
        let mut wakeups = self.store.take_wakeups();
        if wakeups.foreign {
            self.idle = 0;
            let durables = self.cells.durables();
            if let Err(error) = self.store.add_foreign(&mut wakeups, &durables) {
                tracing::debug!(%error, "finding the consumers of another process's writes failed; waking all");
                wakeups.everyone = true;
            }
        }
        self.cells.wake(&wakeups);
    }
}

fn open(config: &SqliteConfig) -> Result<(Connection, Option<Place>)> {
    let connection = open_writer(config, config.create_if_missing)?;
    let place = config.file_path().map(Place::of).transpose();
    Ok((connection, place.map_err(|error| io_failed("open", &config.path, error))?))
}

/// Ends the queue with the thread, even if the thread panics.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::EventProvider;
    use crate::provider::sqlite::SqliteProvider;
    use crate::task::poll_once;
    use crate::types::Event;

    /// Creates a writer without a thread, whose decisions a test can inspect.
    fn writer(config: SqliteConfig) -> Writer {
        let config = Arc::new(config);
        let (connection, place) = open(&config).unwrap();
        let readers = Arc::new(Readers::new(&config));
        let limits = Size { events: config.commit_max_events, bytes: config.commit_max_bytes };
        let queue = Arc::new(Queue::new(&config.path));
        Writer {
            store: Store::new(connection, place, config),
            queue,
            cells: Arc::default(),
            readers,
            limits,
            delay: Duration::ZERO,
            expected: 0,
            idle: 0,
        }
    }

    /// Runs one turn with nothing to do.
    fn idle_turn(writer: &mut Writer) {
        writer.look_around();
        writer.wake();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_file_is_looked_at_every_50_ms_and_every_5_after_a_write_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let config = SqliteConfig::file(folder.path().join("events.db"));
        let other = SqliteProvider::connect(config.clone()).await.unwrap();
        let mut writer = writer(config);
        idle_turn(&mut writer);
        assert_eq!(writer.timeout(), None, "nobody waits");

        let filter = crate::provider::group::ConsumerConfig::new("events.>", &Default::default()).unwrap();
        let opened = writer.store.open_ephemeral(filter).unwrap().unwrap();
        let cell = writer.cells.join(opened.key, opened.settings);
        for _ in 0..20 {
            idle_turn(&mut writer);
        }
        assert_eq!(writer.timeout(), Some(Duration::from_millis(50)));

        let woken = cell.members.wait(None);
        tokio::pin!(woken);
        other.publish(&Event::new("events.a", "", "", "", serde_json::Value::Null)).await.unwrap();
        assert!(poll_once(woken.as_mut()).await.is_none(), "nobody looked yet");
        idle_turn(&mut writer);
        assert!(poll_once(woken.as_mut()).await.is_some(), "one look at the file wakes whom it concerns");
        assert_eq!(writer.timeout(), Some(Duration::from_millis(5)));
    }
}
