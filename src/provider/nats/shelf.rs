//! Events that a member has fetched ahead, kept between its calls. The next call takes them. If it does not come and
//! another member waits, they are nacked, so that a busy member does not hold up an idle one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::client::Shared;
use super::inbox::{Fetched, Inbox, give_back};
use super::life::Life;
use super::strays::Stray;
use crate::poison::IgnorePoison;
use crate::provider::pace::AHEAD;
use crate::provider::support::{Backoff, OwnedTask};

/// Time since the last call after which another waiting member gets the events.
const BUSY: Duration = AHEAD.saturating_mul(2);
/// Pauses between two checks for a waiting member.
const LOOK_AGAIN: Backoff = Backoff::exponential(BUSY, Duration::from_secs(1)).jitter(0.0);
/// Maximum number of members watched at once. Events of further members stay with them until their lease ends.
const MAX_WATCHED: usize = 4_096;

/// The shelf of one member.
pub(super) struct Shelf(Mutex<State>);

/// Contents of a shelf.
#[derive(Default)]
pub(super) struct Shelved {
    pub(super) inbox: Option<Inbox>,
    pub(super) fetched: VecDeque<Fetched>,
    /// Maximum number of events that the open request may still bring.
    pub(super) left: Option<usize>,
}

struct State {
    shelved: Shelved,
    /// Time of the member's last call.
    called: Instant,
    is_watched: bool,
}

impl Shelf {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { shelved: Shelved::default(), called: Instant::now(), is_watched: false }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().ignore_poison()
    }

    /// Fills the shelf at the end of a call. Returns true if the shelf must be watched from now on.
    pub(super) fn put(&self, shelved: Shelved, called: Instant) -> bool {
        let mut state = self.state();
        state.shelved = shelved;
        state.called = called;
        !std::mem::replace(&mut state.is_watched, true)
    }

    /// Takes the contents at the beginning of a call.
    pub(super) fn take(&self) -> Shelved {
        std::mem::take(&mut self.state().shelved)
    }

    /// Looks at the contents.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Shelved) -> T) -> T {
        look(&self.state().shelved)
    }

    /// Notes that the shelf is not watched.
    fn not_watched(&self) {
        self.state().is_watched = false;
    }

    /// Returns `Some(true)` if the contents have been here for [`BUSY`]. Returns `None` if the shelf is empty after
    /// that time, and ends the watch.
    fn is_idle(&self) -> Option<bool> {
        let mut state = self.state();
        if state.called.elapsed() < BUSY {
            return Some(false);
        }
        let has_some = state.shelved.inbox.is_some() || !state.shelved.fetched.is_empty();
        state.is_watched = has_some;
        has_some.then_some(true)
    }

    /// Naks the events that are still here, and hands the inbox over to be emptied.
    fn release(&self, shared: &Shared, life: &Arc<Life>) {
        let Shelved { inbox, fetched, left } = {
            let mut state = self.state();
            state.is_watched = false;
            std::mem::take(&mut state.shelved)
        };
        tracing::debug!(
            consumer = life.name,
            events = fetched.len(),
            "fetched events nacked: another member is waiting"
        );
        for fetched in fetched {
            if life.takes(fetched.received) {
                give_back(shared, Some(fetched.reply));
            }
        }
        if let (Some(Inbox { subject, messages, .. }), Some(strays)) = (inbox, shared.strays.get()) {
            strays.collect(Stray { inbox: subject, messages, left, life: Some(Arc::clone(life)) });
        }
    }
}

/// The task that watches the shelves of a provider.
pub(super) struct Shelves {
    watched: mpsc::Sender<(Arc<Shelf>, Arc<Life>)>,
    _task: OwnedTask<()>,
}

impl Shelves {
    /// Starts the task. It ends when the provider is closed or dropped.
    pub(super) fn start(shared: Weak<Shared>, closed: watch::Receiver<bool>) -> Self {
        let (watched, received) = mpsc::channel(MAX_WATCHED);
        Self { watched, _task: OwnedTask::spawn(watch_all(shared, received, closed)) }
    }

    /// Hands a shelf over to be watched.
    pub(super) fn watch(&self, shelf: &Arc<Shelf>, life: &Arc<Life>) {
        if self.watched.try_send((Arc::clone(shelf), Arc::clone(life))).is_err() {
            shelf.not_watched();
        }
    }
}

async fn watch_all(
    shared: Weak<Shared>,
    mut received: mpsc::Receiver<(Arc<Shelf>, Arc<Life>)>,
    mut closed: watch::Receiver<bool>,
) {
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(()) = open.next() => {}
            shelf = received.recv(), if open.len() < MAX_WATCHED => match shelf {
                Some((shelf, life)) => open.push(watch(shared.clone(), shelf, life)),
                None => return,
            },
            _ = closed.wait_for(|closed| *closed) => return,
        }
    }
}

async fn watch(shared: Weak<Shared>, shelf: Arc<Shelf>, life: Arc<Life>) {
    let mut looks = 0;
    loop {
        looks += 1;
        tokio::time::sleep(LOOK_AGAIN.delay(looks)).await;
        match shelf.is_idle() {
            None => return,
            Some(false) => looks = 0,
            Some(true) => {
                let Some(shared) = shared.upgrade() else { return };
                let info = shared.consumer(&life.name).await;
                let somebody_waits = info.is_ok_and(|info| info.is_some_and(|info| info.num_waiting > 0));
                if somebody_waits && shelf.is_idle() == Some(true) {
                    return shelf.release(&shared, &life);
                }
            }
        }
    }
}
