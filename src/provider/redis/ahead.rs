//! Events that a member has fetched ahead, kept between its calls. The next calls take them. If none comes soon they
//! are released, so that a busy member does not hold up an idle one. So is what a dropped call has asked for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::consumer::Consumer;
use super::fetch::{Asked, give_back};
use super::script::fetch::Delivery;
use super::settle::Handler;
use crate::deadline::After;
use crate::poison::IgnorePoison;
use crate::provider::group::Lease;
use crate::provider::pace::AHEAD;
use crate::provider::support::{OwnedTask, SentAcks};

/// Maximum number of events fetched ahead of the one that a caller asks for.
pub(super) const MOST_AHEAD: usize = 16;

/// An event that is leased and not handed out.
pub(super) struct Held {
    pub(super) delivery: Delivery,
    pub(super) handler: Arc<Handler>,
    /// Time since which it waits.
    pub(super) since: Instant,
    /// True if it was due again.
    pub(super) is_again: bool,
    /// Number of changes of the consumer before the call that brought it.
    pub(super) changes: u64,
}

impl Held {
    /// Returns its place in the order of delivery: what was due again comes first.
    fn place(&self) -> (bool, u64) {
        (!self.is_again, self.delivery.lease.sequence)
    }

    pub(super) fn settling(&self) -> (Lease, Arc<Handler>) {
        (self.delivery.lease, Arc::clone(&self.handler))
    }
}

/// The events of one member, and the call that a dropped future has sent.
pub(super) struct Shelf {
    pub(super) shared: Arc<Shared>,
    pub(super) consumer: Arc<Consumer>,
    pub(super) acks: Arc<SentAcks>,
    state: Mutex<State>,
}

struct State {
    held: VecDeque<Held>,
    asked: Option<Asked>,
    /// Time at which the last call ended.
    called: Instant,
    watch: Watch,
}

/// State of the task that releases what waits too long.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    Absent,
    Waits,
    Releases,
}

impl Shelf {
    pub(super) fn new(shared: Arc<Shared>, consumer: Arc<Consumer>, acks: Arc<SentAcks>) -> Self {
        let state =
            State { held: VecDeque::new(), asked: None, called: Instant::now(), watch: Watch::Absent };
        Self { shared, consumer, acks, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().ignore_poison()
    }

    /// Adds events in the order of delivery.
    pub(super) fn add(&self, held: Vec<Held>) {
        self.consumer.ahead.add(held.len());
        let mut state = self.state();
        let is_ordered =
            state.held.back().zip(held.first()).is_none_or(|(last, new)| last.place() < new.place());
        state.held.extend(held);
        if !is_ordered {
            state.held.make_contiguous().sort_by_key(Held::place);
        }
    }

    /// Takes the first event if it may be handed out.
    pub(super) fn pop_if(&self, may_be_given: impl FnOnce(&Held) -> bool) -> Option<Held> {
        let mut state = self.state();
        let held = match state.held.front() {
            Some(first) if may_be_given(first) => state.held.pop_front(),
            _ => None,
        };
        self.consumer.ahead.remove(usize::from(held.is_some()));
        held
    }

    pub(super) fn len(&self) -> usize {
        self.state().held.len()
    }

    /// Returns what settles the events, which stay here.
    pub(super) fn settlings(&self) -> Vec<(Lease, Arc<Handler>)> {
        self.state().held.iter().map(Held::settling).collect()
    }

    /// Takes the call of a dropped future, at the beginning of the next one.
    pub(super) fn take_asked(&self) -> Option<Asked> {
        self.state().asked.take()
    }

    /// Notes the end of a call, and keeps what it has asked for. Returns a task that releases everything if the next
    /// call does not come soon.
    pub(super) fn end_call(self: &Arc<Self>, asked: Option<Asked>) -> Option<OwnedTask<()>> {
        let mut state = self.state();
        state.called = Instant::now();
        state.asked = asked;
        let has_any = !state.held.is_empty() || state.asked.is_some();
        // Outside of a runtime nothing can wait, and the leases end.
        if !has_any || state.watch != Watch::Absent || Handle::try_current().is_err() {
            return None;
        }
        state.watch = Watch::Waits;
        drop(state);
        Some(OwnedTask::spawn(Arc::clone(self).watch()))
    }

    /// Returns true while events are released. Their order is kept if nothing is asked for meanwhile.
    pub(super) fn is_releasing(&self) -> bool {
        self.state().watch == Watch::Releases
    }

    async fn watch(self: Arc<Self>) {
        while let Some(until) = self.time_of_next_look() {
            sleep_until(until).await;
        }
        let (settlings, asked) = self.take_all();
        if let Err(error) = give_back(settlings).await {
            let name = &*self.consumer.name;
            tracing::debug!(consumer = name, %error, "events fetched ahead could not be released");
        }
        if let Some(asked) = asked {
            self.shared.release_answer(&self.consumer, &self.acks, asked.into_stray()).await;
        }
        self.state().watch = Watch::Absent;
    }

    /// Returns the time of the next look, or `None` when nothing is left or the caller takes too long.
    fn time_of_next_look(&self) -> Option<Instant> {
        let mut state = self.state();
        let until = state.called.after(AHEAD);
        let has_any = !state.held.is_empty() || state.asked.is_some();
        if has_any && Instant::now() < until {
            return Some(until);
        }
        state.watch = Watch::Releases;
        None
    }

    fn take_all(&self) -> (Vec<(Lease, Arc<Handler>)>, Option<Asked>) {
        let (held, asked) = {
            let mut state = self.state();
            (std::mem::take(&mut state.held), state.asked.take())
        };
        self.consumer.ahead.remove(held.len());
        (held.iter().map(Held::settling).collect(), asked)
    }

    /// Releases everything, without waiting.
    pub(super) fn clear(&self) {
        let (settlings, asked) = self.take_all();
        settlings.into_iter().for_each(|(lease, handler)| handler.release(lease));
        if let Some(asked) = asked {
            self.shared.strays.collect(&self.shared, &self.consumer, &self.acks, asked.into_stray());
        }
    }

    /// Forgets the events, which were released.
    pub(super) fn forget(&self) {
        let held = std::mem::take(&mut self.state().held);
        self.consumer.ahead.remove(held.len());
    }
}
