//! The consumers that have subscriptions in this process, and how those are woken.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use crate::poison::IgnorePoison;
use crate::provider::SubscriptionEnd;
use crate::provider::group::{ConsumerConfig, Lease};
use crate::provider::members::Members;
use crate::subject::SubjectIndex;

/// A consumer of one stream: another stream in the same place may have one with the same id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct ConsumerKey {
    /// Which of the streams that this process met in this place.
    pub(super) stream: u64,
    /// The row of a durable consumer; below zero for an ephemeral one.
    pub(super) id: i64,
}

/// The settings of a consumer, and when they were read: later ones have a higher number.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) read: u64,
    pub(super) config: ConsumerConfig,
    /// How often the consumer was moved to another position.
    pub(super) generation: u32,
}

/// Whom a transaction made work for.
#[derive(Debug, Default)]
pub(super) struct Wakeups {
    /// Subjects that something was published under.
    pub(super) subjects: Vec<Arc<str>>,
    /// Consumers that have room or an event again.
    pub(super) consumers: Vec<i64>,
    /// Consumers whose settings were read.
    pub(super) settings: Vec<(i64, Settings)>,
    /// Another process wrote.
    pub(super) foreign: bool,
    /// What happened may concern anyone.
    pub(super) everyone: bool,
    /// Another stream took the place of the one that is read.
    pub(super) stream_replaced: bool,
}

impl Wakeups {
    pub(super) fn add_subject(&mut self, subject: &str) {
        // Events of one subject tend to come together.
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
    /// Why it ended while it had subscriptions.
    end: OnceLock<SubscriptionEnd>,
}

impl Cell {
    pub(super) fn is_durable(&self) -> bool {
        self.key.id > 0
    }

    /// The settings in force.
    pub(super) fn settings(&self) -> ConsumerConfig {
        self.lock_settings().config.clone()
    }

    /// Whether the consumer was moved to another position since it gave this lease.
    pub(super) fn is_stale(&self, lease: Lease) -> bool {
        lease.generation < self.lock_settings().generation
    }

    fn update(&self, settings: &Settings) {
        let mut known = self.lock_settings();
        if known.read < settings.read {
            known.clone_from(settings);
        }
    }

    /// Why the consumer has ended, if it has.
    pub(super) fn end(&self) -> Option<SubscriptionEnd> {
        self.end.get().copied()
    }

    /// Ends the consumer. The first reason stays.
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
    /// The consumers of each filter.
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
        // Another stream may have brought another consumer with this id.
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

    /// Takes a member away.
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

    /// The durable consumers that have subscriptions.
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
