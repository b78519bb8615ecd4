//! Failures of events that are retried.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::queue::{Job, Place};
use crate::clock::unix_millis;
use crate::dlq::DeadLetter;
use crate::poison::IgnorePoison;

/// Maximum number of events remembered. Beyond it, dead letters lack the time of the first failure.
const CAPACITY: usize = 10_000;

/// First failure time and last failure reason of each event.
#[derive(Default)]
pub(super) struct Failures {
    remembered: Mutex<HashMap<Place, Remembered>>,
    /// True if an event has ever failed. Until then, no lock is taken.
    any: AtomicBool,
}

struct Remembered {
    first_at: u64,
    last_at: u64,
    reason: String,
}

impl Failures {
    /// Remembers the failure of an event that is retried.
    pub(super) fn remember(&self, job: &Job, reason: String) {
        let now = unix_millis();
        let mut remembered = self.lock();
        let key = job.place();
        self.any.store(true, Ordering::Relaxed);
        if let Some(before) = remembered.get_mut(&key) {
            (before.last_at, before.reason) = (now, reason);
        } else if remembered.len() < CAPACITY {
            remembered.insert(key, Remembered { first_at: now, last_at: now, reason });
        }
    }

    /// Moves the remembered failure of an event into its dead letter, which may lack the end of the last attempt.
    pub(super) fn complete(&self, job: &Job, letter: &mut DeadLetter) {
        let Some(Remembered { first_at, last_at, reason }) = self.lock().remove(&job.place()) else { return };
        letter.first_failure_at = Some(first_at);
        if letter.last_failure_at.is_none() {
            letter.last_failure_at = Some(last_at);
            letter.reason = format!("{}; earlier failure: {reason}", letter.reason);
        }
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
