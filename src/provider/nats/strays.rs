//! What the server sends to a subscription that is gone, until it gets to know: it is given back at once, instead of coming
//! again when its lease ends.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_nats::{Subject, Subscriber};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::client::Shared;
use super::inbox::give_back;
use super::life::Life;
use crate::poison::IgnorePoison;

/// Longest wait for the end of what is on its way to an inbox.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// Most inboxes that are watched at once. What comes to another one comes again when its lease ends.
const MAX_INBOXES: usize = 1_024;
/// After the provider was closed, subscriptions that end with it have this long to leave their inboxes here.
const GRACE: Duration = Duration::from_millis(50);

/// An inbox that a request was open for.
pub(super) struct Stray {
    pub(super) inbox: Subject,
    pub(super) messages: Subscriber,
    /// How many events the request may bring, where it ends with a message that says so, or with the last of them; otherwise
    /// it ends with the inbox.
    pub(super) left: Option<usize>,
    /// The consumer that it was sent to ask; `None` when a successor answers.
    pub(super) life: Option<Arc<Life>>,
}

/// The inboxes of subscriptions that are gone, and the task that empties them.
pub(super) struct Strays {
    inboxes: mpsc::Sender<Stray>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Strays {
    /// Starts the task, which ends after the provider was closed or dropped.
    pub(super) fn start(shared: Weak<Shared>, closed: watch::Receiver<bool>) -> Self {
        let (inboxes, received) = mpsc::channel(MAX_INBOXES);
        let task = tokio::spawn(empty(shared, received, closed));
        Self { inboxes, task: Mutex::new(Some(task)) }
    }

    /// Leaves an inbox to be emptied.
    pub(super) fn collect(&self, stray: Stray) {
        // Full or ended: the leases decide.
        let _ = self.inboxes.try_send(stray);
    }

    /// Waits for the end of the task, after the provider was closed.
    pub(super) async fn ended(&self) {
        let task = self.task.lock().ignore_poison().take();
        if let Some(task) = task {
            // It has deadlines of its own.
            let _ = task.await;
        }
    }
}

impl Drop for Strays {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().ignore_poison().take() {
            task.abort();
        }
    }
}

async fn empty(shared: Weak<Shared>, mut received: mpsc::Receiver<Stray>, mut closed: watch::Receiver<bool>) {
    let mut open = FuturesUnordered::new();
    let mut is_closed = false;
    loop {
        tokio::select! {
            Some(()) = open.next() => {}
            stray = received.recv(), if open.len() < MAX_INBOXES => match stray {
                Some(stray) => open.push(stray.give_back(&shared)),
                None => break,
            },
            _ = closed.wait_for(|closed| *closed), if !is_closed => is_closed = true,
            () = tokio::time::sleep(GRACE), if is_closed => break,
        }
    }
    while open.next().await.is_some() {}
}

impl Stray {
    async fn give_back(mut self, shared: &Weak<Shared>) {
        let _ = tokio::time::timeout(END_DEADLINE, self.give_all_back(shared)).await;
    }

    async fn give_all_back(&mut self, shared: &Weak<Shared>) {
        while let Some(message) = self.messages.next().await {
            let is_event = message.status.is_none() && message.subject != self.inbox;
            if is_event
                && self.life.as_ref().is_none_or(|life| life.end().is_none())
                && let Some(shared) = shared.upgrade()
            {
                give_back(&shared, message.reply);
            }
            match &mut self.left {
                Some(left) if is_event && *left > 1 => *left -= 1,
                Some(_) => return,
                None => {}
            }
        }
    }
}
