//! Queue of fetched events that are not settled. It decides which event starts next.
//!
//! Without an order, every event may start at once. With one, the events of a key form a lane: at most one of them
//! runs, and the one with the lowest sequence starts next. A lane exists only while it has events.
//!
//! The queue has two bounds. The capacity bounds the events that workers may start soon, and only a few events of each
//! lane count against it. The others are parked: held with their leases extended, so that a failing or slow lane does
//! not stop the others. The consumer's limit of unsettled events bounds all held events together.

mod state;

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use self::state::State;
use crate::bus::dead_letter::{DeadLetters, Guarded};
use crate::bus::subscription::{Incoming, Poison};
use crate::poison::IgnorePoison;
use crate::provider::{Acker, Delivery};
use crate::types::Event;

/// Maximum number of events held for a subscription whose events are handled quickly, unless more are requested.
const MAX_QUICK: usize = 128;
/// Handling is quick if the next fetch follows this soon.
const QUICK: Duration = Duration::from_millis(10);

/// The subscription that events come from.
pub(super) struct Source {
    /// Index of the subscription in the consumer.
    pub(super) index: usize,
    /// Number of times that the stream was replaced by another one of its name, whose sequences restart.
    pub(super) epoch: u32,
    /// Name of the stream.
    pub(super) stream: Arc<str>,
    /// Dead letters of the subscription.
    pub(super) letters: Arc<DeadLetters>,
}

/// A fetched event that was not started.
pub(super) struct Waiting {
    incoming: Incoming,
    source: Arc<Source>,
    lane: Option<Arc<str>>,
    /// Time when the lease began or was last extended.
    leased_at: Instant,
    /// True if it counts as parked, and not against the capacity.
    is_parked: bool,
}

impl Waiting {
    pub(super) fn new(
        incoming: Incoming,
        source: Arc<Source>,
        lane: Option<Arc<str>>,
        leased_at: Instant,
    ) -> Self {
        Self { incoming, source, lane, leased_at, is_parked: false }
    }

    fn place(&self) -> Place {
        (self.source.epoch, self.incoming.stored.sequence(), self.source.index)
    }

    /// Creates the job when the event starts; creating jobs for a whole batch would cost more.
    fn into_job(self) -> Job {
        let Self { incoming, source, lane, leased_at, is_parked } = self;
        let Incoming { stored, content, is_settled } = incoming;
        let guarded = Arc::new(Guarded::new(stored, Arc::clone(&source.letters)));
        Job { guarded, content, is_settled, source, lane, leased_at, is_parked }
    }
}

/// A fetched event that was started.
pub(super) struct Job {
    pub(super) guarded: Arc<Guarded>,
    /// The event in clear, or the reason why it cannot be processed.
    pub(super) content: Result<Arc<Event>, Box<Poison>>,
    /// True if the provider settled it before it was handed out.
    pub(super) is_settled: bool,
    pub(super) source: Arc<Source>,
    lane: Option<Arc<str>>,
    /// Time when the lease began or was last extended.
    pub(super) leased_at: Instant,
    is_parked: bool,
}

impl Job {
    pub(super) fn sequence(&self) -> u64 {
        self.guarded.stored.sequence()
    }

    pub(super) fn place(&self) -> Place {
        (self.source.epoch, self.sequence(), self.source.index)
    }
}

/// Position of an event: the epoch of its stream, its sequence there, and the index of its subscription.
pub(super) type Place = (u32, u64, usize);

/// Result of a started job.
pub(super) enum Ended {
    /// Settled, or left until its lease expires.
    Done(Job),
    /// To be released when everything has stopped: it was not started, or it was interrupted.
    Unstarted(Job),
    /// The same, but this delivery counts: the handler failed.
    Failed(Job),
    /// To be started again at this time, before anything else of its lane. No worker waits for it.
    Again(Job, Instant),
}

/// An event to release, or to nak if the delivery counts.
pub(super) struct LeftOver {
    pub(super) job: Job,
    pub(super) counts: bool,
}

/// Bound on the events of one lane that count against the capacity; the others are parked.
#[derive(Clone, Copy)]
pub(super) struct LaneBounds {
    pub(super) most_counted: usize,
    /// If true, the bound holds for every lane. If false, it holds for failing lanes only: where a release counts as
    /// an attempt, events that a busy lane parked would use up their attempts with every shutdown.
    pub(super) parks_busy: bool,
}

/// Number of events by state.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) running: usize,
    pub(super) waiting: usize,
    /// Waiting events that are parked.
    pub(super) parked: usize,
}

pub(super) struct Queue {
    state: Mutex<State>,
    /// Maximum number of events held for one subscription, unless they are handled quickly.
    capacity: usize,
    /// Upper limit of a growing capacity.
    max_capacity: usize,
    work: Notify,
    room: Notify,
    /// Notified when an event is delayed.
    delayed: Notify,
}

impl Queue {
    /// Creates a queue. With `grows`, it holds more than `capacity` events while they are handled quickly.
    pub(super) fn new(subscriptions: usize, capacity: usize, grows: bool, lane_bounds: LaneBounds) -> Self {
        Self {
            state: Mutex::new(State::new(subscriptions, capacity, lane_bounds)),
            capacity,
            max_capacity: if grows { capacity.max(MAX_QUICK) } else { capacity },
            work: Notify::new(),
            room: Notify::new(),
            delayed: Notify::new(),
        }
    }

    /// Bounds the events held for a subscription by the number of unsettled events that its consumer may have.
    pub(super) fn bound(&self, index: usize, max_ack_pending: usize) {
        if let Some(held) = self.lock().held.get_mut(index) {
            held.most = max_ack_pending.max(self.capacity);
        }
    }

    /// Waits until more events may be fetched for a subscription, and returns how many. Cancel-safe.
    pub(super) async fn room(&self, source: &Source) -> usize {
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

    fn room_now(&self, source: &Source) -> usize {
        let mut state = self.lock();
        let ready = state.ready.len();
        let Some(held) = state.held.get_mut(source.index) else { return 0 };
        if !held.has_room(ready) {
            let parked = held.news_of_full();
            drop(state);
            if let Some(parked) = parked {
                let DeadLetters { subscriber, consumer, .. } = &*source.letters;
                tracing::warn!(
                    subscriber,
                    consumer,
                    parked,
                    "the consumer holds its maximum number of unsettled events, most of them waiting for others of their \
                     key; it fetches more when some are settled"
                );
            }
            return 0;
        }
        let now = Instant::now();
        let capacity = if now.duration_since(held.fetched_at) < QUICK {
            held.capacity().saturating_mul(2).min(self.max_capacity)
        } else {
            self.capacity
        };
        held.fetched_at = now;
        held.room_of(capacity)
    }

    /// Adds fetched events.
    pub(super) fn push(&self, fetched: impl IntoIterator<Item = Waiting>) {
        let mut state = self.lock();
        for waiting in fetched {
            state.enqueue(waiting);
        }
        let wakes = state.wakes_one();
        drop(state);
        if wakes {
            self.work.notify_one();
        }
    }

    /// Ends the previous job, if there is one, and waits for one to start. Returns `None` when none is left.
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
                let is_delayed = matches!(ended, Some(Ended::Again(..)));
                if let Some(ended) = ended.take() {
                    state.end(ended);
                }
                let started = state.start();
                let wakes = state.wakes_one();
                let has_room = state.has_room();
                let nothing_follows = state.nothing_follows();
                let is_over = started.is_none() && nothing_follows;
                was_idle = started.is_none() && !is_over;
                state.idle += usize::from(was_idle);
                drop(state);
                if is_delayed {
                    self.delayed.notify_one();
                }
                if nothing_follows {
                    // Other workers may have waited for a delayed event.
                    self.work.notify_waiters();
                } else if wakes {
                    // One worker wakes the next, as long as there is something to start.
                    self.work.notify_one();
                }
                if has_room {
                    self.room.notify_waiters();
                }
                if started.is_some() || is_over {
                    return started;
                }
            }
            wakeup.await;
        }
    }

    /// Starts delayed events when they are due, forever.
    pub(super) async fn keep_time(&self) {
        loop {
            let mut delayed = pin!(self.delayed.notified());
            delayed.as_mut().enable();
            let (wakes, next) = {
                let mut state = self.lock();
                let next = state.make_due_ready(Instant::now());
                (state.wakes_one(), next)
            };
            if wakes {
                self.work.notify_one();
            }
            match next {
                None => delayed.await,
                Some(at) => tokio::select! {
                    biased;
                    () = delayed => {}
                    () = tokio::time::sleep_until(at) => {}
                },
            }
        }
    }

    /// Returns the leases to extend, of events that do not run, in stream order. They count as extended from now on.
    pub(super) fn to_extend(&self) -> Vec<Acker> {
        let now = Instant::now();
        let mut due = Vec::new();
        self.lock().for_each_lease(|leased_at, source, stored: &Delivery| {
            if now.duration_since(*leased_at) >= source.letters.extend_after() {
                *leased_at = now;
                due.push(stored.acker().clone());
            }
        });
        due.sort_by_key(|acker| acker.lease.sequence);
        due
    }

    /// Remembers that an event was nacked, and the latest time of its redelivery.
    pub(super) fn note_refused(&self, job: &Job, until: Instant) {
        let (_, sequence, index) = job.place();
        if let Some(held) = self.lock().held.get_mut(index) {
            held.refused.insert(sequence, until);
        }
    }

    /// Forgets nacked events that were due before this time. The provider has delivered everything due by then, so that
    /// these went to another member.
    pub(super) fn forget_refused(&self, index: usize, due_before: Instant) {
        if let Some(held) = self.lock().held.get_mut(index)
            && !held.refused.is_empty()
        {
            held.refused.retain(|_, due| *due >= due_before);
        }
    }

    /// Returns the lowest open sequence of a subscription in the stream of this epoch. Open events were fetched and, as
    /// far as this process knows, neither handled nor given up.
    pub(super) fn lowest_open(&self, index: usize, epoch: u32) -> Option<u64> {
        self.lock().lowest_open(index, epoch)
    }

    /// Forgets all nacked events of a subscription, because its stream is gone.
    pub(super) fn forget_all_refused(&self, index: usize) {
        if let Some(held) = self.lock().held.get_mut(index) {
            held.refused.clear();
        }
    }

    /// Drops the fetched events of a subscription that do not run. Its consumer is gone, and another one redelivers
    /// them.
    pub(super) fn forget_waiting(&self, index: usize) {
        self.lock().forget_waiting(index);
        self.room.notify_waiters();
    }

    /// Closes the queue to new events. Workers end when nothing is left to start before this time.
    pub(super) fn close(&self, until: Instant) {
        self.lock().closed_until = Some(until);
        self.work.notify_waiters();
    }

    /// Stops starting events.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.work.notify_waiters();
    }

    /// Takes all events that are not running, in stream order.
    pub(super) fn take_left_over(&self) -> Vec<LeftOver> {
        self.lock().take_left_over()
    }

    /// Returns the number of running and waiting events.
    pub(super) fn counts(&self) -> Counts {
        self.lock().counts()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No method panics half-way through a change.
        self.state.lock().ignore_poison()
    }
}
