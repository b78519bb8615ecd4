//! What is remembered of events that failed and come again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::queue::{Job, Place};
use crate::bus::dead_letter::Failure;
use crate::dlq::FailureClass;
use crate::poison::IgnorePoison;
use crate::types::unix_millis;

/// Most events remembered. For those beyond it a dead letter does not say when they failed first.
const CAPACITY: usize = 10_000;

/// When events failed first, and why last.
#[derive(Default)]
pub(super) struct Failures {
    remembered: Mutex<HashMap<Place, Remembered>>,
    /// Whether there ever was one: where nothing fails nobody takes the lock.
    any: AtomicBool,
}

struct Remembered {
    first_at: u64,
    last_at: u64,
    reason: String,
}

impl Failures {
    /// Remembers a failure, or with a class turns it into what goes into the dead letter.
    pub(super) fn note(
        &self,
        job: &Job,
        class: Option<FailureClass>,
        reason: String,
        attempts: u64,
    ) -> Option<Failure> {
        let now = unix_millis();
        let mut remembered = self.lock();
        let key = job.place();
        let first_at = remembered.get(&key).map_or(now, |before| before.first_at);
        if let Some(class) = class {
            remembered.remove(&key);
            let (first_failure_at, last_failure_at) = (Some(first_at), Some(now));
            return Some(Failure { class, reason, attempts, first_failure_at, last_failure_at });
        }
        self.any.store(true, Ordering::Relaxed);
        if remembered.len() < CAPACITY || remembered.contains_key(&key) {
            remembered.insert(key, Remembered { first_at, last_at: now, reason });
        }
        None
    }

    /// What goes into the dead letter of an event whose last attempt was not seen to end.
    pub(super) fn exhausted(&self, job: &Job, attempts: u64) -> Failure {
        let mut failure = Failure::exhausted(attempts);
        if let Some(Remembered { first_at, last_at, reason }) = self.lock().remove(&job.place()) {
            failure.reason = format!("{}; before that: {reason}", failure.reason);
            failure.first_failure_at = Some(first_at);
            failure.last_failure_at = Some(last_at);
        }
        failure
    }

    pub(super) fn forget(&self, job: &Job) {
        if self.any.load(Ordering::Relaxed) {
            self.lock().remove(&job.place());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Place, Remembered>> {
        self.remembered.lock().ignore_poison()
    }
}
