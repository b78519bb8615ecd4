//! The bounded queue between the runtime and the writer thread.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::cells::ConsumerKey;
use super::error::{Failure, Sql};
use super::store::Store;
use crate::error::{BackendError, ErrorKind, EventError, Result};
use crate::poison::IgnorePoison;
use crate::provider::group::Lease;
use crate::provider::support::closed;

/// Capacity of the queue in KiB. A job counts as one KiB plus the size of its events.
const CAPACITY_KIB: u32 = 16 * 1024;

/// Access to the file that a job needs from its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    /// No transaction: the job runs alone and begins its own.
    Own,
    /// The job changes nothing in the file.
    Read,
    /// The changes survive a process crash.
    Write,
    /// The changes are as durable as the setting `synchronous` says.
    Sync,
}

/// A job for the writer thread.
pub(super) trait Work: Send {
    /// Does the work. An error fails the whole transaction; an error of this job alone is part of its answer.
    fn run(&mut self, store: &mut Store) -> Sql<()>;

    /// Answers the caller after the commit or after a failure. Returns the leases to release if the caller is gone.
    fn answer(self: Box<Self>, outcome: std::result::Result<(), &Failure>) -> Option<GiveBack>;

    /// Returns true if no caller waits for the job, so that it can wait for further jobs.
    fn can_wait(&self) -> bool {
        false
    }
}

/// Leases that a member leaves to the other members.
#[derive(Debug, Default)]
pub(super) struct GiveBack {
    pub(super) consumer: ConsumerKey,
    /// Leases of undelivered events. The events go to another member without counting an attempt.
    pub(super) leases: Vec<Lease>,
    /// If true, the consumer ends with its member.
    pub(super) forget: bool,
}

/// A job that answers its caller once.
struct Call<T, F> {
    operation: &'static str,
    work: Option<F>,
    done: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T, F> Work for Call<T, F>
where
    T: Send,
    F: FnOnce(&mut Store) -> Sql<Result<T>> + Send,
{
    fn run(&mut self, store: &mut Store) -> Sql<()> {
        if let Some(work) = self.work.take() {
            self.done = Some(work(store)?);
        }
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: std::result::Result<(), &Failure>) -> Option<GiveBack> {
        let answer = match outcome {
            Ok(()) => self.done.unwrap_or_else(|| Err(ended())),
            Err(failure) => Err(failure.to_error(self.operation)),
        };
        // A caller that no longer waits needs no answer.
        let _ = self.reply.send(answer);
        None
    }
}

/// Amount of changes by a job, or by all jobs of a transaction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

impl Size {
    /// Size of a job that publishes nothing.
    pub(super) const ONE: Self = Self { events: 1, bytes: 0 };
}

struct Job {
    work: Box<dyn Work>,
    access: Access,
    size: Size,
    _room: OwnedSemaphorePermit,
}

/// Jobs that share one transaction.
pub(super) struct Group {
    pub(super) work: Vec<Box<dyn Work>>,
    pub(super) given_back: Vec<GiveBack>,
    /// `None` if there is nothing to do.
    pub(super) access: Option<Access>,
    pub(super) size: Size,
    /// Number of jobs that a caller waits for.
    pub(super) awaited: usize,
    limits: Size,
}

impl Group {
    fn new(given_back: Vec<GiveBack>, limits: Size) -> Self {
        let access = (!given_back.is_empty()).then_some(Access::Write);
        Self { work: Vec::new(), given_back, access, size: Size { events: 0, bytes: 0 }, awaited: 0, limits }
    }

    /// Returns true if no caller waits for any of the jobs.
    pub(super) fn can_wait(&self) -> bool {
        self.awaited == 0 && self.given_back.is_empty() && self.access != Some(Access::Own)
    }

    fn has_room_for(&self, job: &Job) -> bool {
        if job.access == Access::Own || self.access == Some(Access::Own) {
            return self.access.is_none();
        }
        let size = job.size;
        self.work.is_empty()
            || (self.size.events + size.events <= self.limits.events
                && self.size.bytes + size.bytes <= self.limits.bytes)
    }

    fn add(&mut self, job: Job) {
        self.size.events += job.size.events;
        self.size.bytes += job.size.bytes;
        self.access = self.access.max(Some(job.access));
        self.awaited += usize::from(!job.work.can_wait());
        self.work.push(job.work);
    }
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// Bounded by the number of subscriptions, because each leaves once.
    given_back: Vec<GiveBack>,
    stopping: bool,
    /// True while the writer thread sleeps. Waking it costs more than queuing a job.
    asleep: bool,
}

impl Waiting {
    /// Moves jobs from the queue to the group in order, as long as they fit and need at most this access.
    fn fill(&mut self, group: &mut Group, access: Access) {
        while let Some(job) = self.jobs.front()
            && job.access <= access
            && group.has_room_for(job)
            && let Some(job) = self.jobs.pop_front()
        {
            group.add(job);
        }
    }
}

/// Queue of jobs for the writer thread, in order.
pub(super) struct Queue {
    /// The file, for errors.
    file: PathBuf,
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    room: Arc<Semaphore>,
    /// Becomes true when the writer thread has ended.
    ended: watch::Sender<bool>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("room", &self.room.available_permits()).finish_non_exhaustive()
    }
}

impl Queue {
    pub(super) fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            waiting: Mutex::new(Waiting::default()),
            arrived: Condvar::new(),
            room: Arc::new(Semaphore::new(CAPACITY_KIB as usize)),
            ended: watch::Sender::new(false),
        }
    }

    /// Hands `work` to the writer thread and returns the receiver of its answer. Waits up to `timeout` for room.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        access: Access,
        size: Size,
        timeout: Duration,
        work: impl FnOnce(&mut Store) -> Sql<Result<T>> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T>>> {
        let (reply, answer) = oneshot::channel();
        let call = Call { operation, work: Some(work), done: None, reply };
        self.submit(operation, access, size, timeout, Box::new(call)).await?;
        Ok(answer)
    }

    /// Queues a job. Cancel-safe: the job is queued when this returns, and not before.
    pub(super) async fn submit(
        &self,
        operation: &'static str,
        access: Access,
        size: Size,
        timeout: Duration,
        work: Box<dyn Work>,
    ) -> Result<()> {
        let weight = u32::try_from(1 + size.bytes / 1024).unwrap_or(u32::MAX).min(CAPACITY_KIB);
        let room = self.room(operation, weight, timeout).await?;
        self.push(access, size, work, room)
    }

    /// Queues a small job if there is room now. Otherwise returns the job.
    pub(super) fn submit_now(
        &self,
        access: Access,
        work: Box<dyn Work>,
    ) -> std::result::Result<Result<()>, Box<dyn Work>> {
        match Arc::clone(&self.room).try_acquire_owned() {
            Ok(room) => Ok(self.push(access, Size::ONE, work, room)),
            Err(_) => Err(work),
        }
    }

    fn push(
        &self,
        access: Access,
        size: Size,
        work: Box<dyn Work>,
        room: OwnedSemaphorePermit,
    ) -> Result<()> {
        let mut waiting = self.lock();
        if waiting.stopping {
            return Err(ended());
        }
        waiting.jobs.push_back(Job { work, access, size, _room: room });
        self.wake(waiting);
        Ok(())
    }

    async fn room(
        &self,
        operation: &'static str,
        weight: u32,
        timeout: Duration,
    ) -> Result<OwnedSemaphorePermit> {
        // There is nearly always room. This fast path needs no timer. It also lets one task queue many calls in one go:
        // the runtime would suspend a task that acquires too often.
        if let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(weight) {
            return Ok(room);
        }
        let acquire = Arc::clone(&self.room).acquire_many_owned(weight);
        match tokio::time::timeout(timeout, acquire).await {
            Ok(Ok(room)) => Ok(room),
            Ok(Err(_closed)) => Err(ended()),
            Err(_elapsed) => Err(busy(operation, &self.file, timeout)),
        }
    }

    /// Releases leases without waiting. Used by members that are dropped.
    pub(super) fn give_back(&self, what: GiveBack) {
        if !*self.ended.borrow() {
            let mut waiting = self.lock();
            waiting.given_back.push(what);
            self.wake(waiting);
        }
    }

    /// Returns the next jobs: an empty group if `timeout` expires, `None` if the queue has ended.
    pub(super) fn take(&self, limits: Size, timeout: Option<Duration>) -> Option<Group> {
        let mut waiting = self.lock();
        if waiting.jobs.is_empty() && waiting.given_back.is_empty() && !waiting.stopping {
            waiting = self.sleep(waiting, timeout);
        }
        if waiting.jobs.is_empty() && waiting.given_back.is_empty() && waiting.stopping {
            return None;
        }
        let mut group = Group::new(std::mem::take(&mut waiting.given_back), limits);
        waiting.fill(&mut group, Access::Sync);
        Some(group)
    }

    /// Adds new jobs to the group of a running transaction, and returns true if there were any. Waits up to `timeout`
    /// for one if fewer than `expected` jobs have a waiting caller.
    pub(super) fn more(&self, group: &mut Group, access: Access, expected: usize, timeout: Duration) -> bool {
        let before = group.work.len();
        let mut waiting = self.lock();
        waiting.fill(group, access);
        let is_due = group.awaited >= expected || timeout.is_zero();
        if group.work.len() == before && waiting.jobs.is_empty() && !is_due {
            waiting = self.sleep(waiting, Some(timeout));
            waiting.fill(group, access);
        }
        group.work.len() > before
    }

    /// Sleeps until a job arrives, the queue stops, or `timeout` expires.
    fn sleep<'a>(
        &self,
        mut waiting: MutexGuard<'a, Waiting>,
        timeout: Option<Duration>,
    ) -> MutexGuard<'a, Waiting> {
        waiting.asleep = true;
        let is_asleep = |waiting: &mut Waiting| waiting.asleep;
        let mut waiting = match timeout {
            None => self.arrived.wait_while(waiting, is_asleep).ignore_poison(),
            Some(timeout) => {
                let woken = self.arrived.wait_timeout_while(waiting, timeout, is_asleep);
                woken.ignore_poison().0
            }
        };
        waiting.asleep = false;
        waiting
    }

    fn wake(&self, mut waiting: MutexGuard<'_, Waiting>) {
        if std::mem::take(&mut waiting.asleep) {
            drop(waiting);
            self.arrived.notify_one();
        }
    }

    /// Refuses new jobs. Queued jobs are still done.
    pub(super) fn stop(&self) {
        let mut waiting = self.lock();
        waiting.stopping = true;
        self.room.close();
        self.wake(waiting);
    }

    /// Ends the queue when the writer thread ends for any reason, so that no caller waits for it any more.
    pub(super) fn end(&self) {
        self.stop();
        self.ended.send_replace(true);
        let left = std::mem::replace(&mut *self.lock(), Waiting { stopping: true, ..Waiting::default() });
        drop(left);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// Waits until the writer thread has ended.
    pub(super) async fn ended(&self) {
        // The sender lives as long as `self`.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it is held.
        self.waiting.lock().ignore_poison()
    }
}

/// Waits for the answer of the writer thread.
pub(super) async fn answered<T>(
    operation: &'static str,
    file: &Path,
    timeout: Duration,
    answer: &mut oneshot::Receiver<Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(timeout, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_dropped)) => Err(ended()),
        Err(_elapsed) => Err(EventError::Timeout(format!(
            "{operation} on provider '{}', file '{}': no answer within {timeout:?}",
            super::NAME,
            file.display()
        ))),
    }
}

pub(super) fn ended() -> EventError {
    closed(super::NAME)
}

/// Returns the error for a queue that stayed full: nothing was done.
fn busy(operation: &'static str, file: &Path, timeout: Duration) -> EventError {
    let file = file.display();
    let cause = format!("file '{file}': the write queue of {CAPACITY_KIB} KiB stayed full for {timeout:?}");
    BackendError::new(super::NAME, operation, ErrorKind::Timeout, cause).retryable().into()
}
