//! Undoing changes, for providers that change a consumer in memory in transactions that may fail.

use std::cmp::Reverse;
use std::collections::VecDeque;

use super::pending::Pending;
use super::{ConsumerConfig, GroupState};

/// State of a consumer before the changes, as far as it was changed.
#[derive(Debug, Clone)]
pub(super) struct Undo {
    cursor: u64,
    redelivered: usize,
    missed: u64,
    exhausted: u64,
    generation: u32,
    /// Sequences taken from the front of the backlog, in that order.
    popped: Vec<u64>,
    /// The whole backlog, if it was replaced.
    backlog: Option<VecDeque<u64>>,
    pending: Vec<(u64, Option<Pending>)>,
    config: Option<ConsumerConfig>,
}

impl Undo {
    pub(super) fn keep_popped(&mut self, sequence: u64) {
        // Sequences of a replacement were never in the original backlog.
        if self.backlog.is_none() {
            self.popped.push(sequence);
        }
    }

    pub(super) fn keep_backlog(&mut self, replaced: VecDeque<u64>) {
        self.backlog.get_or_insert(replaced);
    }

    pub(super) fn keep_pending(&mut self, sequence: u64, before: Option<Pending>) {
        self.pending.push((sequence, before));
    }

    pub(super) fn keep_config(&mut self, config: &ConsumerConfig) {
        self.config.get_or_insert_with(|| config.clone());
    }
}

impl GroupState {
    /// Records all changes from now on, until [`keep_changes`](GroupState::keep_changes) or
    /// [`take_back_changes`](GroupState::take_back_changes). The cost depends on the number of changes, not on the size
    /// of the state.
    pub fn remember_changes(&mut self) {
        self.undo = Some(Box::new(Undo {
            cursor: self.cursor,
            redelivered: self.redelivered,
            missed: self.missed,
            exhausted: self.exhausted,
            generation: self.generation,
            popped: Vec::new(),
            backlog: None,
            pending: Vec::new(),
            config: None,
        }));
    }

    /// Keeps the changes and stops recording.
    pub fn keep_changes(&mut self) {
        self.undo = None;
    }

    /// Undoes all changes since the last [`remember_changes`](GroupState::remember_changes).
    pub fn take_back_changes(&mut self) {
        let Some(undo) = self.undo.take() else { return };
        for (sequence, before) in undo.pending.into_iter().rev() {
            self.note_change(sequence);
            self.due.remove(&sequence);
            match before {
                Some(pending) => {
                    self.pending.insert(sequence, pending);
                    self.timers.push(Reverse((pending.due, sequence)));
                }
                None => drop(self.pending.remove(sequence)),
            }
        }
        self.drop_outdated();
        if let Some(backlog) = undo.backlog {
            self.backlog = backlog;
        }
        undo.popped.into_iter().rev().for_each(|sequence| self.backlog.push_front(sequence));
        if let Some(config) = undo.config {
            self.config = config;
        }
        self.cursor = undo.cursor;
        self.redelivered = undo.redelivered;
        self.missed = undo.missed;
        self.exhausted = undo.exhausted;
        self.generation = undo.generation;
    }
}
