//! The current failures of a running consumer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use crate::poison::IgnorePoison;

/// Part of a consumer that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// Fetching for the subscription of this index.
    Fetching(usize),
    Settling,
    DeadLetters,
}

/// Last error of each part that has not worked since.
#[derive(Default)]
pub(super) struct Health {
    errors: Mutex<BTreeMap<Part, String>>,
    /// Error that ended the consumer.
    end: OnceLock<String>,
    /// True if there are errors. While there are none, no lock is taken.
    any: AtomicBool,
}

impl Health {
    pub(super) fn failed(&self, part: Part, error: &impl ToString) {
        let mut errors = self.errors.lock().ignore_poison();
        errors.insert(part, error.to_string());
        self.any.store(true, Ordering::Relaxed);
    }

    pub(super) fn works(&self, part: Part) {
        if self.any.load(Ordering::Relaxed) {
            let mut errors = self.errors.lock().ignore_poison();
            errors.remove(&part);
            self.any.store(!errors.is_empty(), Ordering::Relaxed);
        }
    }

    /// Records the error that ends the consumer.
    pub(super) fn ended(&self, error: &impl ToString) {
        let _ = self.end.set(error.to_string());
    }

    /// Returns the error that ended the consumer, or else the first one of its parts.
    pub(super) fn error(&self) -> Option<String> {
        if let Some(end) = self.end.get() {
            return Some(end.clone());
        }
        let errors = self.errors.lock().ignore_poison();
        errors.values().next().cloned()
    }
}
