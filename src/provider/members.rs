//! The members of a consumer in this process: who is woken when there is something to do, and who waits on in the place of a
//! member that gives up.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::time::Instant;

/// The open subscriptions of one consumer. One of them is woken for what there is to do, and wakes the next one when it has
/// taken something: so nothing waits while a member could take it, and not all of them look for one event.
#[derive(Debug, Default)]
pub struct Members {
    count: AtomicUsize,
    wakeup: Notify,
}

impl Members {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Adds a member; `true` for the first one.
    pub fn join(&self) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// Takes a member away; `true` for the last one. The others are to be [woken](Members::wake_one), because it may have
    /// been the one that waits for what is due.
    pub fn leave(&self) -> bool {
        self.count.fetch_sub(1, Ordering::Relaxed) == 1
    }

    /// Lets one waiting member look again, or the next one that is about to wait.
    pub fn wake_one(&self) {
        self.wakeup.notify_one();
    }

    /// Wakes another member, if there is one: a member calls it when it has taken something.
    pub fn pass_on(&self) {
        if self.count.load(Ordering::Relaxed) > 1 {
            self.wake_one();
        }
    }

    /// Waits until this member is woken, or until something is due.
    ///
    /// # Cancel safety
    ///
    /// When this is dropped, another member waits on, who then learns when the next event is due.
    pub async fn wait(&self, due: Option<Instant>) {
        let mut guard = WakeGuard { members: self, armed: true };
        let woken = self.wakeup.notified();
        match due {
            None => woken.await,
            Some(due) => {
                // Woken or due: the next look tells which.
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
