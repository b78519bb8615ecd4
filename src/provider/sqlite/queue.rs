//! The bounded queue between the runtime and the writer thread.

use std::collections::VecDeque;
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

/// What may wait: this many KiB, where a job counts as one and its events as their size.
const CAPACITY_KIB: u32 = 16 * 1024;

/// What a job needs of the transaction that it runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    /// It needs none: it runs alone and makes its own.
    Own,
    /// It changes nothing in the file.
    Read,
    /// What it changes survives a crash of the process.
    Write,
    /// What it changes survives what the settings say.
    Sync,
}

/// One piece of work for the writer thread.
pub(super) trait Work: Send {
    /// Does the work. An error ends the whole transaction; what concerns this job alone is part of its answer.
    fn run(&mut self, store: &mut Store) -> Sql<()>;

    /// Tells the caller, after the commit or instead of it. Returns what has to be given back because nobody took it.
    fn answer(self: Box<Self>, outcome: std::result::Result<(), &Failure>) -> Option<GiveBack>;

    /// Whether nobody waits for it, so that it can wait for work that comes soon.
    fn can_wait(&self) -> bool {
        false
    }
}

/// What a member leaves to the others.
#[derive(Debug, Default)]
pub(super) struct GiveBack {
    pub(super) consumer: ConsumerKey,
    /// Delivered to nobody: they go to another member without counting.
    pub(super) leases: Vec<Lease>,
    /// Whether the consumer ends with its member.
    pub(super) forget: bool,
}

/// Work that answers its caller once.
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
        // Whoever does not wait any more does not need the answer.
        let _ = self.reply.send(answer);
        None
    }
}

/// How much a job, or all of a transaction, changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

impl Size {
    /// That of a job that publishes nothing.
    pub(super) const ONE: Self = Self { events: 1, bytes: 0 };
}

struct Job {
    work: Box<dyn Work>,
    access: Access,
    size: Size,
    _room: OwnedSemaphorePermit,
}

/// What goes into one transaction.
pub(super) struct Group {
    pub(super) work: Vec<Box<dyn Work>>,
    pub(super) given_back: Vec<GiveBack>,
    /// `None` when there is nothing to do.
    pub(super) access: Option<Access>,
    pub(super) size: Size,
    /// Jobs that somebody waits for.
    pub(super) awaited: usize,
    limits: Size,
}

impl Group {
    fn new(given_back: Vec<GiveBack>, limits: Size) -> Self {
        let access = (!given_back.is_empty()).then_some(Access::Write);
        Self { work: Vec::new(), given_back, access, size: Size { events: 0, bytes: 0 }, awaited: 0, limits }
    }

    /// Whether nobody waits for any of it.
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
    /// Bounded by the subscriptions that exist: each leaves once.
    given_back: Vec<GiveBack>,
    stopping: bool,
    /// Whether the writer thread sleeps. To wake it costs more than to queue a job.
    asleep: bool,
}

impl Waiting {
    /// Moves what has room from the queue to the group, in order, as long as it needs at most this access.
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

/// Jobs for the writer thread, in order.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    room: Arc<Semaphore>,
    /// Turns true when the writer thread has ended.
    ended: watch::Sender<bool>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("room", &self.room.available_permits()).finish_non_exhaustive()
    }
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            waiting: Mutex::new(Waiting::default()),
            arrived: Condvar::new(),
            room: Arc::new(Semaphore::new(CAPACITY_KIB as usize)),
            ended: watch::Sender::new(false),
        }
    }

    /// Hands `work` to the writer thread and returns where the answer will be. Waits for room at most `timeout`.
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

    /// Queues work. Cancel-safe: it is queued when this returns, and not before.
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

    /// Queues work that changes little, if there is room now; otherwise it comes back.
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
        // Nearly always there is room. Then this needs no timer, and many calls of one task are queued in one go: the
        // runtime would suspend a task that acquires too often.
        if let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(weight) {
            return Ok(room);
        }
        let acquire = Arc::clone(&self.room).acquire_many_owned(weight);
        match tokio::time::timeout(timeout, acquire).await {
            Ok(Ok(room)) => Ok(room),
            Ok(Err(_closed)) => Err(ended()),
            Err(_elapsed) => Err(busy(operation, timeout)),
        }
    }

    /// Gives back without waiting: for members that are dropped.
    pub(super) fn give_back(&self, what: GiveBack) {
        if !*self.ended.borrow() {
            let mut waiting = self.lock();
            waiting.given_back.push(what);
            self.wake(waiting);
        }
    }

    /// What is to be done next: nothing when `timeout` runs out, `None` at the end.
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

    /// Adds what came since then to the group of a transaction that is under way, and returns whether something did.
    /// Waits for it when fewer than `expected` of the jobs have somebody who waits, at most for `timeout`.
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

    /// Sleeps until something comes, or it ends, or `timeout` runs out.
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

    /// Takes no more work; what is queued is still done.
    pub(super) fn stop(&self) {
        let mut waiting = self.lock();
        waiting.stopping = true;
        self.room.close();
        self.wake(waiting);
    }

    /// Called when the writer thread ends, for whatever reason: nobody waits for it any more.
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
    timeout: Duration,
    answer: &mut oneshot::Receiver<Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(timeout, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_dropped)) => Err(ended()),
        Err(_elapsed) => Err(EventError::Timeout(format!(
            "{operation} on provider '{}': no answer within {timeout:?}",
            super::NAME
        ))),
    }
}

pub(super) fn ended() -> EventError {
    closed(super::NAME)
}

/// There was no room in time: nothing was done.
fn busy(operation: &'static str, timeout: Duration) -> EventError {
    let cause = format!("{CAPACITY_KIB} KiB wait to be written, and no room came within {timeout:?}");
    BackendError::new(super::NAME, operation, ErrorKind::Timeout, cause).retryable().into()
}
