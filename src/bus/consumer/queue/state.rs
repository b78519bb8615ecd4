//! The state of a queue, changed under its lock. Time is an argument.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use super::{Counts, Ended, Job, LaneBounds, LeftOver, Place, Source, Waiting};
use crate::provider::Delivery;
use crate::provider::group::DEFAULT_MAX_ACK_PENDING;

/// Events of one key that wait for the one that is running or may start.
#[derive(Default)]
struct Lane {
    waiting: BTreeMap<Place, Waiting>,
    /// Number of events of the lane, including the running one, that count against the capacity.
    counted: usize,
    /// True if its first event has failed and will be retried.
    is_failing: bool,
}

impl Lane {
    /// Unparks events after the first event has recovered, so that a passing failure does not raise what is held for
    /// long.
    fn recover(&mut self, bounds: LaneBounds, held: &mut [Held]) {
        let most = if bounds.parks_busy { bounds.most_counted } else { usize::MAX };
        let parked = self.waiting.values_mut().filter(|waiting| waiting.is_parked);
        for waiting in parked.take(most.saturating_sub(self.counted)) {
            waiting.is_parked = false;
            self.counted += 1;
            if let Some(held) = held.get_mut(waiting.source.index) {
                held.unpark();
            }
        }
    }
}

pub(super) enum Slot {
    Event(Waiting),
    /// An event whose next attempt is due.
    Again(Job),
    /// The first event of this lane.
    Lane(Arc<str>),
}

pub(super) struct State {
    pub(super) ready: VecDeque<Slot>,
    lanes: HashMap<Arc<str>, Lane>,
    lane_bounds: LaneBounds,
    /// Failed events by the time of their next attempt; the number makes keys of the same time unique.
    delayed: BTreeMap<(Instant, u64), Job>,
    /// Number of delays so far.
    delays: u64,
    left_over: Vec<LeftOver>,
    /// By subscription.
    pub(super) held: Vec<Held>,
    /// Running events, and how often each runs: an event that lost its lease may run twice.
    running: BTreeMap<Place, usize>,
    /// Number of workers that wait for something to start.
    pub(super) idle: usize,
    /// True until a woken worker has arrived. It wakes the next one, so that a burst of quick jobs wakes few.
    pub(super) waking: bool,
    /// Set when nothing more is pushed; what is due later than this is not waited for.
    pub(super) closed_until: Option<Instant>,
    /// True if nothing more is started.
    pub(super) stopped: bool,
}

/// Events held for one subscription.
#[derive(Clone)]
pub(super) struct Held {
    /// Number of events fetched and not settled that count against the capacity.
    events: usize,
    /// Number of events fetched and not settled that do not count against the capacity.
    parked: usize,
    /// Maximum of `events`. It grows while events are handled quickly: fetching costs less, and an event that another
    /// member could handle waits only a moment.
    capacity: usize,
    /// Maximum of `events` and `parked` together.
    pub(super) most: usize,
    /// True if the log says that parked events leave no room.
    told_full: bool,
    pub(super) fetched_at: Instant,
    /// Nacked events, and the time when they are due.
    pub(super) refused: BTreeMap<u64, Instant>,
}

impl Held {
    /// Returns true if more events should be fetched. Half of the capacity can still start then, so workers stay busy.
    pub(super) fn has_room(&self, ready: usize) -> bool {
        ready <= self.capacity / 2 && self.events < self.capacity && !self.is_full()
    }

    fn is_full(&self) -> bool {
        self.events + self.parked >= self.most
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets the capacity and returns how many events may be fetched.
    pub(super) fn room_of(&mut self, capacity: usize) -> usize {
        self.capacity = capacity;
        self.told_full &= self.parked > self.most / 2;
        let total = self.events + self.parked;
        capacity.saturating_sub(self.events).min(self.most.saturating_sub(total))
    }

    /// Returns the number of parked events, once, when they leave no room.
    pub(super) fn news_of_full(&mut self) -> Option<usize> {
        let is_news = self.parked > 0 && self.is_full() && !std::mem::replace(&mut self.told_full, true);
        is_news.then_some(self.parked)
    }

    fn let_go(&mut self, was_parked: bool) {
        let count = if was_parked { &mut self.parked } else { &mut self.events };
        *count = count.saturating_sub(1);
    }

    fn park(&mut self) {
        self.let_go(false);
        self.parked += 1;
    }

    fn unpark(&mut self) {
        self.let_go(true);
        self.events += 1;
    }
}

impl State {
    pub(super) fn new(subscriptions: usize, capacity: usize, lane_bounds: LaneBounds) -> Self {
        let held = Held {
            events: 0,
            parked: 0,
            capacity,
            most: capacity.max(DEFAULT_MAX_ACK_PENDING),
            told_full: false,
            fetched_at: Instant::now(),
            refused: BTreeMap::new(),
        };
        Self {
            ready: VecDeque::new(),
            lanes: HashMap::new(),
            lane_bounds,
            delayed: BTreeMap::new(),
            delays: 0,
            left_over: Vec::new(),
            held: vec![held; subscriptions],
            running: BTreeMap::new(),
            idle: 0,
            waking: false,
            closed_until: None,
            stopped: false,
        }
    }

    /// Returns true if more events should be fetched for some subscription.
    pub(super) fn has_room(&self) -> bool {
        self.held.iter().any(|held| held.has_room(self.ready.len()))
    }

    /// Returns true if no more events will become ready.
    pub(super) fn nothing_follows(&self) -> bool {
        let next_due = self.delayed.first_key_value().map(|((at, _), _)| *at);
        self.stopped || self.closed_until.is_some_and(|until| next_due.is_none_or(|at| at > until))
    }

    pub(super) fn enqueue(&mut self, mut waiting: Waiting) {
        let (_, sequence, index) = waiting.place();
        let Some(held) = self.held.get_mut(index) else { return };
        held.refused.remove(&sequence);
        let Some(key) = waiting.lane.clone() else {
            held.events += 1;
            self.ready.push_back(Slot::Event(waiting));
            return;
        };
        let LaneBounds { most_counted, parks_busy } = self.lane_bounds;
        let lane = match self.lanes.entry(key) {
            Entry::Occupied(lane) => lane.into_mut(),
            Entry::Vacant(new) => {
                self.ready.push_back(Slot::Lane(Arc::clone(new.key())));
                new.insert(Lane::default())
            }
        };
        waiting.is_parked = lane.is_failing || parks_busy && lane.counted >= most_counted;
        if waiting.is_parked {
            held.parked += 1;
        } else {
            held.events += 1;
            lane.counted += 1;
        }
        if let Some(older) = lane.waiting.insert(waiting.place(), waiting) {
            // It lost its lease and was redelivered.
            lane.counted -= usize::from(!older.is_parked);
            held.let_go(older.is_parked);
        }
    }

    /// Returns true if another worker should be woken.
    pub(super) fn wakes_one(&mut self) -> bool {
        let wakes = !self.ready.is_empty() && self.idle > 0 && !self.waking;
        self.waking |= wakes;
        wakes
    }

    pub(super) fn start(&mut self) -> Option<Job> {
        if self.stopped {
            return None;
        }
        let mut job = match self.ready.pop_front()? {
            Slot::Event(waiting) => waiting.into_job(),
            Slot::Again(job) => job,
            Slot::Lane(key) => self.lanes.get_mut(&key)?.waiting.pop_first()?.1.into_job(),
        };
        if std::mem::take(&mut job.is_parked) {
            if let Some(held) = self.held.get_mut(job.source.index) {
                held.unpark();
            }
            if let Some(lane) = job.lane.as_ref().and_then(|key| self.lanes.get_mut(key)) {
                lane.counted += 1;
            }
        }
        *self.running.entry(job.place()).or_default() += 1;
        Some(job)
    }

    pub(super) fn end(&mut self, ended: Ended) {
        let (job, counts) = match ended {
            Ended::Done(job) => {
                self.no_longer_runs(&job);
                if let Some(held) = self.held.get_mut(job.source.index) {
                    held.let_go(false);
                }
                if let Some(key) = job.lane {
                    self.go_on(key);
                }
                return;
            }
            Ended::Again(job, at) => {
                self.no_longer_runs(&job);
                self.delay(job, at);
                return;
            }
            Ended::Unstarted(job) => (job, false),
            Ended::Failed(job) => (job, true),
        };
        self.no_longer_runs(&job);
        // Its lane stops: the events behind it must stay behind it.
        self.left_over.push(LeftOver { job, counts });
    }

    fn no_longer_runs(&mut self, job: &Job) {
        if let Some(times) = self.running.get_mut(&job.place()) {
            *times -= 1;
            if *times == 0 {
                self.running.remove(&job.place());
            }
        }
    }

    /// Delays a job until its next attempt. Only its own lane waits for it.
    fn delay(&mut self, mut job: Job, at: Instant) {
        if let Some(lane) = job.lane.as_ref().and_then(|key| self.lanes.get_mut(key)) {
            lane.is_failing = true;
            lane.counted = 0;
            job.is_parked = true;
            if let Some(held) = self.held.get_mut(job.source.index) {
                held.park();
            }
            for waiting in lane.waiting.values_mut().filter(|waiting| !waiting.is_parked) {
                waiting.is_parked = true;
                if let Some(held) = self.held.get_mut(waiting.source.index) {
                    held.park();
                }
            }
        }
        self.delays += 1;
        self.delayed.insert((at, self.delays), job);
    }

    /// Makes due jobs ready, before all others, and returns the time of the next one.
    pub(super) fn make_due_ready(&mut self, now: Instant) -> Option<Instant> {
        while let Some(first) = self.delayed.first_entry() {
            let (at, _) = *first.key();
            if at > now {
                return Some(at);
            }
            self.ready.push_front(Slot::Again(first.remove()));
        }
        None
    }

    /// Lets the next event of a lane start, or removes the lane.
    fn go_on(&mut self, key: Arc<str>) {
        match self.lanes.get_mut(&key) {
            Some(lane) if !lane.waiting.is_empty() => {
                lane.counted = lane.counted.saturating_sub(1);
                if std::mem::take(&mut lane.is_failing) {
                    lane.recover(self.lane_bounds, &mut self.held);
                }
                self.ready.push_back(Slot::Lane(key));
            }
            _ => _ = self.lanes.remove(&key),
        }
    }

    /// Calls the closure for each event that does not run.
    pub(super) fn for_each_lease(&mut self, mut look_at: impl FnMut(&mut Instant, &Source, &Delivery)) {
        let Self { ready, lanes, delayed, left_over, .. } = self;
        let mut jobs: Vec<&mut Job> = left_over.iter_mut().map(|left_over| &mut left_over.job).collect();
        jobs.extend(delayed.values_mut());
        let mut unstarted: Vec<&mut Waiting> = Vec::new();
        for slot in ready {
            match slot {
                Slot::Event(waiting) => unstarted.push(waiting),
                Slot::Again(job) => jobs.push(job),
                Slot::Lane(_) => {}
            }
        }
        unstarted.extend(lanes.values_mut().flat_map(|lane| lane.waiting.values_mut()));
        for job in jobs {
            look_at(&mut job.leased_at, &job.source, &job.guarded.stored);
        }
        for waiting in unstarted {
            look_at(&mut waiting.leased_at, &waiting.source, &waiting.incoming.stored);
        }
    }

    pub(super) fn lowest_open(&mut self, index: usize, epoch: u32) -> Option<u64> {
        let running = self.running.keys().find(|(at, _, of)| *of == index && *at == epoch);
        let running = running.map(|(_, sequence, _)| *sequence);
        let refused = self.held.get(index).and_then(|held| held.refused.keys().next().copied());
        let mut lowest = running.into_iter().chain(refused).min();
        self.for_each_lease(|_, source, stored| {
            if source.index == index && source.epoch == epoch {
                lowest = Some(lowest.map_or(stored.sequence(), |lowest| lowest.min(stored.sequence())));
            }
        });
        lowest
    }

    pub(super) fn forget_waiting(&mut self, index: usize) {
        let is_its = |source: &Source| source.index == index;
        // A lane whose first event is dropped continues with its events of other subscriptions.
        let mut headless: BTreeSet<Arc<str>> = BTreeSet::new();
        self.delayed.retain(|_, job| {
            let is_kept = !is_its(&job.source);
            if !is_kept {
                headless.extend(job.lane.clone());
            }
            is_kept
        });
        self.ready.retain(|slot| match slot {
            Slot::Event(waiting) => !is_its(&waiting.source),
            Slot::Again(job) if is_its(&job.source) => {
                headless.extend(job.lane.clone());
                false
            }
            Slot::Again(_) => true,
            Slot::Lane(key) => {
                headless.insert(Arc::clone(key));
                false
            }
        });
        for lane in self.lanes.values_mut() {
            lane.waiting.retain(|_, waiting| !is_its(&waiting.source));
        }
        for key in headless {
            self.go_on(key);
        }
        self.count_anew(index);
    }

    /// Recounts after events of a subscription were dropped: only the running ones are left.
    fn count_anew(&mut self, index: usize) {
        let running = self.running.iter().filter(|((.., of), _)| *of == index).map(|(_, times)| times).sum();
        if let Some(held) = self.held.get_mut(index) {
            (held.events, held.parked) = (running, 0);
            held.refused.clear();
        }
        for lane in self.lanes.values_mut() {
            lane.counted = lane.waiting.values().filter(|waiting| !waiting.is_parked).count();
        }
    }

    pub(super) fn take_left_over(&mut self) -> Vec<LeftOver> {
        let mut left_over = std::mem::take(&mut self.left_over);
        let unstarted = |waiting: Waiting| LeftOver { job: waiting.into_job(), counts: false };
        let failed = |job| LeftOver { job, counts: true };
        left_over.extend(std::mem::take(&mut self.delayed).into_values().map(failed));
        left_over.extend(self.ready.drain(..).filter_map(|slot| match slot {
            Slot::Event(waiting) => Some(unstarted(waiting)),
            Slot::Again(job) => Some(failed(job)),
            Slot::Lane(_) => None,
        }));
        left_over.extend(self.lanes.drain().flat_map(|(_, lane)| lane.waiting.into_values()).map(unstarted));
        left_over.sort_by_key(|left_over| left_over.job.place());
        self.held.iter_mut().for_each(|held| (held.events, held.parked) = (0, 0));
        left_over
    }

    pub(super) fn counts(&self) -> Counts {
        let running = self.running.values().sum();
        let (held, parked) = self
            .held
            .iter()
            .fold((0, 0), |(held, parked), of| (held + of.events + of.parked, parked + of.parked));
        Counts { running, waiting: held.saturating_sub(running), parked }
    }
}
