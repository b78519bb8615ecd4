//! The members of a consumer in this process, and how they are woken.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::time::Instant;

/// The open subscriptions of one consumer.
///
/// New work wakes one member, and a member that took an event wakes the next one. No event waits while a member could
/// take it, and the members do not all look for the same event.
#[derive(Debug, Default)]
pub struct Members {
    count: AtomicUsize,
    wakeup: Notify,
}

impl Members {
    /// Returns the number of members.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Adds a member. Returns `true` for the first one.
    pub fn join(&self) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// Removes a member. Returns `true` for the last one. Otherwise [wake](Members::wake_one) another member
    /// afterwards: the removed one may have waited for the next due event.
    pub fn leave(&self) -> bool {
        self.count.fetch_sub(1, Ordering::Relaxed) == 1
    }

    /// Wakes one waiting member, or else the next one that starts to wait.
    pub fn wake_one(&self) {
        self.wakeup.notify_one();
    }

    /// Wakes another member, if there is one. A member calls this after it took an event.
    pub fn pass_on(&self) {
        if self.count.load(Ordering::Relaxed) > 1 {
            self.wake_one();
        }
    }

    /// Waits until this member is woken or the time `due` has come.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, another member is woken. It then waits for the next due event.
    pub async fn wait(&self, due: Option<Instant>) {
        let mut guard = WakeGuard { members: self, armed: true };
        let woken = self.wakeup.notified();
        match due {
            None => woken.await,
            Some(due) => {
                // Woken or due: the caller looks again in both cases.
                let _ = tokio::time::timeout_at(due, woken).await;
            }
        }
        guard.armed = false;
    }
}

struct WakeGuard<'a> {
    members: &'a Members,
    armed: bool,
}

impl Drop for WakeGuard<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.members.pass_on();
        }
    }
}
