//! The consumers that have subscriptions in this process, and how those are woken.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::subject::subject_matches;

/// Whom a transaction made work for.
#[derive(Debug, Default)]
pub(super) struct Wakeups {
    /// Subjects that something was published under.
    pub(super) subjects: Vec<Arc<str>>,
    /// Consumers that have room or an event again.
    pub(super) consumers: Vec<i64>,
    /// Another process wrote, which may concern anyone.
    pub(super) everyone: bool,
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
    /// The row of a durable consumer; below zero for an ephemeral one.
    pub(super) id: i64,
    filter: String,
    members: AtomicUsize,
    pub(super) wakeup: Notify,
}

impl Cell {
    pub(super) fn is_durable(&self) -> bool {
        self.id > 0
    }

    /// Lets one waiting member look again, or the next one that is about to wait.
    pub(super) fn wake_one(&self) {
        self.wakeup.notify_one();
    }

    /// Wakes another member, if there is one.
    pub(super) fn pass_on(&self) {
        if self.members.load(Ordering::Relaxed) > 1 {
            self.wake_one();
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Cells {
    open: Mutex<HashMap<i64, Arc<Cell>>>,
}

impl Cells {
    /// Adds a member to a consumer.
    pub(super) fn join(&self, id: i64, filter: &str) -> Arc<Cell> {
        let mut open = self.lock();
        let cell = open.entry(id).or_insert_with(|| {
            Arc::new(Cell {
                id,
                filter: filter.to_owned(),
                members: AtomicUsize::new(0),
                wakeup: Notify::new(),
            })
        });
        cell.members.fetch_add(1, Ordering::Relaxed);
        Arc::clone(cell)
    }

    /// Takes a member away.
    pub(super) fn leave(&self, cell: &Cell) {
        let mut open = self.lock();
        if cell.members.fetch_sub(1, Ordering::Relaxed) == 1 {
            open.remove(&cell.id);
        } else {
            cell.wake_one();
        }
    }

    pub(super) fn any(&self) -> bool {
        !self.lock().is_empty()
    }

    pub(super) fn ephemerals(&self) -> usize {
        self.lock().values().filter(|cell| !cell.is_durable()).count()
    }

    pub(super) fn wake(&self, wakeups: &Wakeups) {
        let Wakeups { subjects, consumers, everyone } = wakeups;
        if !everyone && subjects.is_empty() && consumers.is_empty() {
            return;
        }
        for cell in self.lock().values() {
            let matches = || subjects.iter().any(|subject| subject_matches(subject, &cell.filter));
            if *everyone || consumers.contains(&cell.id) || matches() {
                cell.wake_one();
            }
        }
    }

    pub(super) fn wake_all(&self) {
        self.wake(&Wakeups { everyone: true, ..Wakeups::default() });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i64, Arc<Cell>>> {
        // Nothing panics while it is held.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
