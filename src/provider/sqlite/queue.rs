//! The bounded queue between the runtime and the writer thread.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::error::{Failure, Sql};
use super::store::Store;
use crate::error::{BackendError, ErrorKind, EventError, Result};
use crate::provider::consumer::Lease;

/// What may wait: this many KiB, where a job counts as one and its events as their size.
const CAPACITY_KIB: u32 = 16 * 1024;

/// What a job needs of the transaction that it runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
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
}

/// What a member leaves to the others.
#[derive(Debug, Default)]
pub(super) struct GiveBack {
    pub(super) consumer: i64,
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

struct Job {
    work: Box<dyn Work>,
    access: Access,
    bytes: usize,
    _room: OwnedSemaphorePermit,
}

/// What goes into one transaction.
#[derive(Default)]
pub(super) struct Group {
    pub(super) work: Vec<Box<dyn Work>>,
    pub(super) given_back: Vec<GiveBack>,
    pub(super) access: Option<Access>,
}

/// How much goes into one transaction.
#[derive(Debug, Clone, Copy)]
pub(super) struct GroupLimits {
    pub(super) jobs: usize,
    pub(super) bytes: usize,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// Bounded by the subscriptions that exist: each leaves once.
    given_back: Vec<GiveBack>,
    stopping: bool,
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

    /// Hands `work` to the writer thread and returns where the answer will be. Waits for room at most `patience`.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        access: Access,
        bytes: usize,
        patience: Duration,
        work: impl FnOnce(&mut Store) -> Sql<Result<T>> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T>>> {
        let (reply, answer) = oneshot::channel();
        let call = Call { operation, work: Some(work), done: None, reply };
        self.submit(operation, access, bytes, patience, Box::new(call)).await?;
        Ok(answer)
    }

    /// Queues work. Cancel-safe: it is queued when this returns, and not before.
    pub(super) async fn submit(
        &self,
        operation: &'static str,
        access: Access,
        bytes: usize,
        patience: Duration,
        work: Box<dyn Work>,
    ) -> Result<()> {
        let weight = u32::try_from(1 + bytes / 1024).unwrap_or(u32::MAX).min(CAPACITY_KIB);
        let room = self.room(operation, weight, patience).await?;
        let mut waiting = self.lock();
        if waiting.stopping {
            return Err(ended());
        }
        waiting.jobs.push_back(Job { work, access, bytes, _room: room });
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    async fn room(
        &self,
        operation: &'static str,
        weight: u32,
        patience: Duration,
    ) -> Result<OwnedSemaphorePermit> {
        // Nearly always there is room. Then this needs no timer, and many calls of one task are queued in one go: the
        // runtime would suspend a task that acquires too often.
        if let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(weight) {
            return Ok(room);
        }
        let acquire = Arc::clone(&self.room).acquire_many_owned(weight);
        match tokio::time::timeout(patience, acquire).await {
            Ok(Ok(room)) => Ok(room),
            Ok(Err(_closed)) => Err(ended()),
            Err(_elapsed) => Err(busy(operation, patience)),
        }
    }

    /// Gives back without waiting: for members that are dropped.
    pub(super) fn give_back(&self, what: GiveBack) {
        if !*self.ended.borrow() {
            self.lock().given_back.push(what);
            self.arrived.notify_one();
        }
    }

    /// What is to be done next: nothing when `patience` runs out, `None` at the end.
    pub(super) fn take(&self, limits: GroupLimits, patience: Option<Duration>) -> Option<Group> {
        let is_idle = |waiting: &mut Waiting| {
            waiting.jobs.is_empty() && waiting.given_back.is_empty() && !waiting.stopping
        };
        let waiting = self.lock();
        let mut waiting = match patience {
            None => self.arrived.wait_while(waiting, is_idle).unwrap_or_else(PoisonError::into_inner),
            Some(patience) => {
                let woken = self.arrived.wait_timeout_while(waiting, patience, is_idle);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        if waiting.jobs.is_empty() && waiting.given_back.is_empty() && waiting.stopping {
            return None;
        }
        let mut group = Group { given_back: std::mem::take(&mut waiting.given_back), ..Group::default() };
        if !group.given_back.is_empty() {
            group.access = Some(Access::Write);
        }
        let mut bytes = 0;
        while group.work.len() < limits.jobs
            && let Some(job) = waiting.jobs.front()
            && (group.work.is_empty() || bytes + job.bytes <= limits.bytes)
            && let Some(job) = waiting.jobs.pop_front()
        {
            bytes += job.bytes;
            group.access = group.access.max(Some(job.access));
            group.work.push(job.work);
        }
        Some(group)
    }

    /// Takes no more work; what is queued is still done.
    pub(super) fn stop(&self) {
        self.lock().stopping = true;
        self.room.close();
        self.arrived.notify_one();
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
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the answer of the writer thread.
pub(super) async fn answered<T>(
    operation: &'static str,
    patience: Duration,
    answer: &mut oneshot::Receiver<Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(patience, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_dropped)) => Err(ended()),
        Err(_elapsed) => Err(EventError::Timeout(format!(
            "{operation} on provider '{}': no answer within {patience:?}",
            super::NAME
        ))),
    }
}

pub(super) fn ended() -> EventError {
    EventError::Closed("the sqlite provider was closed".to_owned())
}

/// There was no room in time: nothing was done.
fn busy(operation: &'static str, patience: Duration) -> EventError {
    let cause = format!("{CAPACITY_KIB} KiB wait to be written, and no room came within {patience:?}");
    BackendError::new(super::NAME, operation, ErrorKind::Timeout, cause).retryable().into()
}
