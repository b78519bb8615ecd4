//! What of a running consumer fails at the moment.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::poison::IgnorePoison;

/// What a consumer needs to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// Fetching for the subscription of this number.
    Fetching(usize),
    Settling,
    DeadLetters,
}

/// The last error of each part that has not worked since.
#[derive(Default)]
pub(super) struct Health {
    errors: Mutex<BTreeMap<Part, String>>,
    /// Whether there are any: where all works nobody takes the lock.
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

    /// The first of the errors.
    pub(super) fn error(&self) -> Option<String> {
        let errors = self.errors.lock().ignore_poison();
        errors.values().next().cloned()
    }
}
