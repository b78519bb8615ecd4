//! The consumers that have subscriptions in this process, and how they are woken.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use crate::poison::IgnorePoison;
use crate::provider::SubscriptionEnd;
use crate::provider::group::{ConsumerConfig, Lease};
use crate::provider::members::Members;
use crate::subject::SubjectIndex;

/// Identifies a consumer. The id alone is not enough, because another stream at the same path may have the same id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct ConsumerKey {
    /// Number of the stream among those that this process has found at this path.
    pub(super) stream: u64,
    /// Row id of a durable consumer; negative for an ephemeral one.
    pub(super) id: i64,
}

/// Settings of a consumer. Settings that were read later have a higher `read` number.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) read: u64,
    pub(super) config: ConsumerConfig,
    /// Number of times that the consumer was moved to another position.
    pub(super) generation: u32,
}

/// Consumers to wake after a transaction.
#[derive(Debug, Default)]
pub(super) struct Wakeups {
    /// Subjects of published events.
    pub(super) subjects: Vec<Arc<str>>,
    /// Consumers that have room or an event again.
    pub(super) consumers: Vec<i64>,
    /// Consumers whose settings were read.
    pub(super) settings: Vec<(i64, Settings)>,
    /// If true, another process wrote.
    pub(super) foreign: bool,
    /// If true, every consumer is woken.
    pub(super) everyone: bool,
    /// If true, another stream replaced the one that was read.
    pub(super) stream_replaced: bool,
}

impl Wakeups {
    pub(super) fn add_subject(&mut self, subject: &str) {
        // Events of one subject are often published together.
        if self.subjects.last().is_none_or(|last| &**last != subject) {
            self.subjects.push(subject.into());
        }
    }
}

/// One consumer with subscriptions in this process.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) key: ConsumerKey,
    pub(super) members: Members,
    settings: Mutex<Settings>,
    /// Reason why the consumer ended while it had subscriptions.
    end: OnceLock<SubscriptionEnd>,
}

impl Cell {
    pub(super) fn is_durable(&self) -> bool {
        self.key.id > 0
    }

    /// Returns the settings in force.
    pub(super) fn settings(&self) -> ConsumerConfig {
        self.lock_settings().config.clone()
    }

    /// Returns true if the consumer was moved to another position since it gave this lease.
    pub(super) fn is_stale(&self, lease: Lease) -> bool {
        lease.generation < self.lock_settings().generation
    }

    fn update(&self, settings: &Settings) {
        let mut known = self.lock_settings();
        if known.read < settings.read {
            known.clone_from(settings);
        }
    }

    /// Returns the reason why the consumer has ended, if it has.
    pub(super) fn end(&self) -> Option<SubscriptionEnd> {
        self.end.get().copied()
    }

    /// Ends the consumer. Keeps the first reason.
    pub(super) fn end_as(&self, end: SubscriptionEnd) {
        let _ = self.end.set(end);
        self.members.wake_one();
    }

    fn lock_settings(&self) -> MutexGuard<'_, Settings> {
        // Nothing panics while it is held.
        self.settings.lock().ignore_poison()
    }
}

#[derive(Debug, Default)]
pub(super) struct Cells {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    cells: HashMap<i64, Arc<Cell>>,
    /// Consumers by filter.
    filters: SubjectIndex<BTreeSet<i64>>,
}

impl Open {
    fn insert(&mut self, cell: &Arc<Cell>, filter: &str) {
        let id = cell.key.id;
        self.cells.insert(id, Arc::clone(cell));
        let mut ids = self.filters.remove(filter).unwrap_or_default();
        ids.insert(id);
        // The filter was checked before the consumer was opened.
        let _ = self.filters.insert(filter, ids);
    }

    fn remove(&mut self, cell: &Cell) {
        let id = cell.key.id;
        // Another stream may have added another consumer with this id.
        if self.cells.get(&id).is_none_or(|open| open.key != cell.key) {
            return;
        }
        self.cells.remove(&id);
        let filter = cell.lock_settings().config.filter.clone();
        let mut ids = self.filters.remove(&filter).unwrap_or_default();
        ids.remove(&id);
        if !ids.is_empty() {
            let _ = self.filters.insert(&filter, ids);
        }
    }
}

impl Cells {
    /// Adds a member to a consumer.
    pub(super) fn join(&self, key: ConsumerKey, settings: Settings) -> Arc<Cell> {
        let mut open = self.lock();
        let cell = match open.cells.get(&key.id).filter(|cell| cell.key == key && cell.end().is_none()) {
            Some(cell) => Arc::clone(cell),
            None => {
                let filter = settings.config.filter.clone();
                let cell = Arc::new(Cell {
                    key,
                    members: Members::default(),
                    settings: Mutex::new(settings.clone()),
                    end: OnceLock::new(),
                });
                open.insert(&cell, &filter);
                cell
            }
        };
        cell.update(&settings);
        cell.members.join();
        cell
    }

    /// Removes a member.
    pub(super) fn leave(&self, cell: &Cell) {
        let mut open = self.lock();
        if cell.members.leave() {
            open.remove(cell);
        } else {
            cell.members.wake_one();
        }
    }

    pub(super) fn any(&self) -> bool {
        !self.lock().cells.is_empty()
    }

    /// Returns the durable consumers that have subscriptions.
    pub(super) fn durables(&self) -> Vec<i64> {
        self.lock().cells.keys().copied().filter(|id| *id > 0).collect()
    }

    pub(super) fn ephemerals(&self) -> usize {
        self.lock().cells.values().filter(|cell| !cell.is_durable()).count()
    }

    pub(super) fn wake(&self, wakeups: &Wakeups) {
        let Wakeups { subjects, consumers, settings, everyone, stream_replaced, .. } = wakeups;
        let is_nothing = subjects.is_empty() && consumers.is_empty() && settings.is_empty();
        if is_nothing && !everyone && !stream_replaced {
            return;
        }
        let mut open = self.lock();
        if *stream_replaced {
            for (_, cell) in std::mem::take(&mut *open).cells {
                cell.end_as(SubscriptionEnd::StreamReplaced);
            }
            return;
        }
        for (id, settings) in settings {
            if let Some(cell) = open.cells.get(id) {
                cell.update(settings);
            }
        }
        if *everyone {
            open.cells.values().for_each(|cell| cell.members.wake_one());
            return;
        }
        let wake = |id: &i64| {
            if let Some(cell) = open.cells.get(id) {
                cell.members.wake_one();
            }
        };
        consumers.iter().for_each(wake);
        for subject in subjects {
            open.filters.for_each_match(subject, |ids| ids.iter().for_each(wake));
        }
    }

    pub(super) fn wake_all(&self) {
        self.wake(&Wakeups { everyone: true, ..Wakeups::default() });
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Nothing panics while it is held.
        self.open.lock().ignore_poison()
    }
}
