//! What was fetched and is not settled: who may start which event next.
//!
//! Without an order every event may start at once. With one, the events of a key form a lane: at most one of them runs, and
//! the one with the lowest sequence starts next. A lane exists only while it has events.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::bus::dead_letter::{DeadLetters, Guarded};
use crate::bus::subscription::{Incoming, Poison};
use crate::provider::LeaseRef;
use crate::types::Event;

/// Most events held for a subscription whose events are handled quickly; more where more are asked for.
const MAX_QUICK: usize = 128;
/// What has to be fetched again this soon is handled quickly.
const QUICK: Duration = Duration::from_millis(10);

/// Where events come from.
pub(super) struct Origin {
    /// Number of the subscription.
    pub(super) source: usize,
    /// Name of the stream.
    pub(super) stream: Arc<str>,
    /// Where its failures go.
    pub(super) letters: Arc<DeadLetters>,
}

/// A fetched event that was not started.
pub(super) struct Waiting {
    pub(super) incoming: Incoming,
    pub(super) origin: Arc<Origin>,
    pub(super) lane: Option<Arc<str>>,
    /// When the lease began, or was restarted.
    pub(super) leased_at: Instant,
}

impl Waiting {
    fn place(&self) -> (u64, usize) {
        (self.incoming.stored.sequence(), self.origin.source)
    }

    /// What a job needs beyond this is made when it starts: made for a whole batch it would cost more.
    fn into_job(self) -> Job {
        let Self { incoming, origin, lane, leased_at } = self;
        let Incoming { stored, content, is_settled } = incoming;
        let guarded = Arc::new(Guarded::new(stored, Arc::clone(&origin.letters)));
        Job { guarded, content, is_settled, origin, lane, leased_at }
    }
}

/// A fetched event that was started.
pub(super) struct Job {
    pub(super) guarded: Arc<Guarded>,
    /// The event in clear, or why nobody can process it.
    pub(super) content: Result<Arc<Event>, Box<Poison>>,
    /// Whether the provider settled it before it was handed out.
    pub(super) is_settled: bool,
    pub(super) origin: Arc<Origin>,
    lane: Option<Arc<str>>,
    /// When the lease began, or was restarted.
    pub(super) leased_at: Instant,
}

impl Job {
    pub(super) fn sequence(&self) -> u64 {
        self.guarded.stored.sequence()
    }

    fn place(&self) -> (u64, usize) {
        (self.sequence(), self.origin.source)
    }
}

/// How a job ended that was started.
pub(super) enum Ended {
    /// Settled, or left to its lease.
    Done(Job),
    /// To be given back when everything has stopped: it was not started, or it was interrupted.
    Unstarted(Job),
    /// The same, and this delivery counts: the handler failed.
    Failed(Job),
}

/// The events of one key that wait for the one that is running or may start.
#[derive(Default)]
struct Lane {
    waiting: BTreeMap<(u64, usize), Waiting>,
}

enum Slot {
    Event(Waiting),
    /// The first of this lane.
    Lane(Arc<str>),
}

/// What is to be given back to the provider, and whether the delivery counts.
pub(super) struct LeftOver {
    pub(super) job: Job,
    pub(super) counts: bool,
}

struct State {
    ready: VecDeque<Slot>,
    lanes: HashMap<Arc<str>, Lane>,
    left_over: Vec<LeftOver>,
    /// By subscription.
    held: Vec<Held>,
    running: usize,
    /// Workers that wait for something to start.
    idle: usize,
    /// One of them was woken and is not here yet. It wakes the next one, so that a burst of quick jobs wakes few.
    waking: bool,
    /// Nothing is pushed any more.
    closed: bool,
    /// Nothing is started any more.
    stopped: bool,
}

/// What is held for one subscription.
#[derive(Clone)]
struct Held {
    /// Events fetched and not settled.
    events: usize,
    /// Most of them. It grows while they are handled quickly, so that fetching costs less, and what another member could
    /// have waits for no longer than a moment.
    capacity: usize,
    fetched_at: Instant,
}

pub(super) struct Queue {
    state: Mutex<State>,
    /// Most events held for one subscription, unless they are handled quickly.
    capacity: usize,
    /// Most events held at all.
    max_capacity: usize,
    work: Notify,
    room: Notify,
}

impl Queue {
    /// With `grows`, more than `capacity` events are held while they are handled quickly.
    pub(super) fn new(subscriptions: usize, capacity: usize, grows: bool) -> Self {
        let held = Held { events: 0, capacity, fetched_at: Instant::now() };
        let state = State {
            ready: VecDeque::new(),
            lanes: HashMap::new(),
            left_over: Vec::new(),
            held: vec![held; subscriptions],
            running: 0,
            idle: 0,
            waking: false,
            closed: false,
            stopped: false,
        };
        Self {
            state: Mutex::new(state),
            capacity,
            max_capacity: if grows { capacity.max(MAX_QUICK) } else { capacity },
            work: Notify::new(),
            room: Notify::new(),
        }
    }

    /// Waits until more events may be fetched for a subscription, and says how many. Cancel-safe.
    pub(super) async fn room(&self, source: usize) -> usize {
        loop {
            let mut notified = pin!(self.room.notified());
            notified.as_mut().enable();
            let room = self.room_now(source);
            if room > 0 {
                return room;
            }
            notified.await;
        }
    }

    fn room_now(&self, source: usize) -> usize {
        let mut state = self.lock();
        let ready = state.ready.len();
        let Some(held) = state.held.get_mut(source).filter(|held| held.has_room(ready)) else {
            return 0;
        };
        let now = Instant::now();
        held.capacity = if now.duration_since(held.fetched_at) < QUICK {
            (2 * held.capacity).min(self.max_capacity)
        } else {
            self.capacity
        };
        held.fetched_at = now;
        held.capacity.saturating_sub(held.events)
    }

    /// Adds what was fetched.
    pub(super) fn push(&self, fetched: impl IntoIterator<Item = Waiting>) {
        let mut state = self.lock();
        for waiting in fetched {
            if let Some(held) = state.held.get_mut(waiting.origin.source) {
                held.events += 1;
            }
            state.enqueue(waiting);
        }
        let wakes = state.wakes_one();
        drop(state);
        if wakes {
            self.work.notify_one();
        }
    }

    /// Ends the job that was started before, if there is one, and waits for one to start. `None` when there is none left.
    pub(super) async fn next(&self, mut ended: Option<Ended>) -> Option<Job> {
        let mut was_idle = false;
        loop {
            let wakeup = self.work.notified();
            {
                let mut state = self.lock();
                if std::mem::take(&mut was_idle) {
                    state.idle -= 1;
                    state.waking = false;
                }
                if let Some(ended) = ended.take() {
                    state.end(ended);
                }
                let started = state.start();
                let wakes = state.wakes_one();
                let has_room = state.has_room();
                let is_over = started.is_none() && (state.closed || state.stopped);
                was_idle = started.is_none() && !is_over;
                state.idle += usize::from(was_idle);
                drop(state);
                if wakes {
                    // One worker wakes the next, as long as there is something to start.
                    self.work.notify_one();
                }
                if has_room {
                    self.room.notify_waiters();
                }
                if started.is_some() || is_over {
                    return started.map(Waiting::into_job);
                }
            }
            wakeup.await;
        }
    }

    /// The leases of events that do not run and whose lease began this long ago or earlier. They count as restarted from
    /// now on.
    pub(super) fn to_extend(&self, age: Duration) -> Vec<LeaseRef> {
        let now = Instant::now();
        let mut state = self.lock();
        let State { ready, lanes, left_over, .. } = &mut *state;
        let ready = ready.iter_mut().filter_map(|slot| match slot {
            Slot::Event(waiting) => Some(waiting),
            Slot::Lane(_) => None,
        });
        let parked = lanes.values_mut().flat_map(|lane| lane.waiting.values_mut());
        let waiting = ready.chain(parked).map(|waiting| (&mut waiting.leased_at, &waiting.incoming.stored));
        let left_over =
            left_over.iter_mut().map(|LeftOver { job, .. }| (&mut job.leased_at, &job.guarded.stored));
        let mut due = Vec::new();
        for (leased_at, stored) in waiting.chain(left_over) {
            if now.duration_since(*leased_at) >= age {
                *leased_at = now;
                due.push(stored.settlement().lease());
            }
        }
        due
    }

    /// Nothing is pushed any more: workers end when nothing is left to start.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.work.notify_waiters();
    }

    /// Nothing is started any more.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.work.notify_waiters();
    }

    /// Takes everything that is not running, in the order of the stream.
    pub(super) fn take_left_over(&self) -> Vec<LeftOver> {
        let mut state = self.lock();
        let mut left_over = std::mem::take(&mut state.left_over);
        let unstarted = |waiting: Waiting| LeftOver { job: waiting.into_job(), counts: false };
        left_over.extend(state.ready.drain(..).filter_map(|slot| match slot {
            Slot::Event(waiting) => Some(unstarted(waiting)),
            Slot::Lane(_) => None,
        }));
        left_over.extend(state.lanes.drain().flat_map(|(_, lane)| lane.waiting.into_values()).map(unstarted));
        left_over.sort_by_key(|left_over| left_over.job.place());
        state.held.iter_mut().for_each(|held| held.events = 0);
        left_over
    }

    /// Events that run, and events that wait.
    pub(super) fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        let held: usize = state.held.iter().map(|held| held.events).sum();
        (state.running, held.saturating_sub(state.running))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No method panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Whether more are to be fetched: while half of what may be held can still start, workers do not run out of work.
    fn has_room(&self, ready: usize) -> bool {
        ready <= self.capacity / 2 && self.events < self.capacity
    }
}

impl State {
    /// Whether more are to be fetched for some subscription.
    fn has_room(&self) -> bool {
        self.held.iter().any(|held| held.has_room(self.ready.len()))
    }

    fn enqueue(&mut self, waiting: Waiting) {
        let Some(key) = waiting.lane.clone() else {
            self.ready.push_back(Slot::Event(waiting));
            return;
        };
        let lane = match self.lanes.entry(key) {
            Entry::Occupied(lane) => lane.into_mut(),
            Entry::Vacant(new) => {
                self.ready.push_back(Slot::Lane(Arc::clone(new.key())));
                new.insert(Lane::default())
            }
        };
        if let Some(older) = lane.waiting.insert(waiting.place(), waiting) {
            // It lost its lease and came again.
            self.let_go(older.origin.source);
        }
    }

    /// Whether another worker is to be woken.
    fn wakes_one(&mut self) -> bool {
        let wakes = !self.ready.is_empty() && self.idle > 0 && !self.waking;
        self.waking |= wakes;
        wakes
    }

    fn start(&mut self) -> Option<Waiting> {
        if self.stopped {
            return None;
        }
        let started = match self.ready.pop_front()? {
            Slot::Event(waiting) => waiting,
            Slot::Lane(key) => self.lanes.get_mut(&key)?.waiting.pop_first()?.1,
        };
        self.running += 1;
        Some(started)
    }

    fn end(&mut self, ended: Ended) {
        self.running -= 1;
        let (job, counts) = match ended {
            Ended::Done(job) => {
                self.let_go(job.origin.source);
                if let Some(key) = job.lane {
                    self.go_on(key);
                }
                return;
            }
            Ended::Unstarted(job) => (job, false),
            Ended::Failed(job) => (job, true),
        };
        // Its lane stands still: what is behind it must not overtake it.
        self.left_over.push(LeftOver { job, counts });
    }

    /// Lets the next event of a lane start, or ends the lane.
    fn go_on(&mut self, key: Arc<str>) {
        if self.lanes.get(&key).is_some_and(|lane| !lane.waiting.is_empty()) {
            self.ready.push_back(Slot::Lane(key));
        } else {
            self.lanes.remove(&key);
        }
    }

    fn let_go(&mut self, source: usize) {
        if let Some(held) = self.held.get_mut(source) {
            held.events = held.events.saturating_sub(1);
        }
    }
}
