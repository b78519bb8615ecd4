//! Naks deliveries that arrive after their request was abandoned. They are redelivered at once instead of when their
//! lease ends.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::{Subject, Subscriber};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};

use super::client::Shared;
use super::inbox::give_back;
use super::life::Life;
use crate::provider::support::OwnedTask;

/// Maximum time to wait for the rest of the deliveries to one inbox.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// Maximum number of inboxes watched at once. Deliveries to further inboxes are redelivered when their lease ends.
const MAX_INBOXES: usize = 1_024;
/// Time in which subscriptions can hand over their inboxes after the provider was closed.
const GRACE: Duration = Duration::from_millis(50);

/// The inbox of an abandoned request.
pub(super) struct Stray {
    pub(super) inbox: Subject,
    pub(super) messages: Subscriber,
    /// Maximum number of events that the request may still bring. The request ends with the last of them, or with a
    /// status message. `None` if it ends with the inbox.
    pub(super) left: Option<usize>,
    /// The consumer that the request asked; `None` if a successor of that consumer answers.
    pub(super) life: Option<Arc<Life>>,
}

/// Inboxes of abandoned requests, and the task that empties them.
pub(super) struct Strays {
    inboxes: mpsc::Sender<Stray>,
    task: OwnedTask<()>,
}

impl Strays {
    /// Starts the task. It ends after the provider is closed or dropped.
    pub(super) fn start(shared: Weak<Shared>, closed: watch::Receiver<bool>) -> Self {
        let (inboxes, received) = mpsc::channel(MAX_INBOXES);
        Self { inboxes, task: OwnedTask::spawn(empty(shared, received, closed)) }
    }

    /// Hands an inbox over to the task.
    pub(super) fn collect(&self, stray: Stray) {
        // If the channel is full or closed, the events are redelivered when their leases end.
        let _ = self.inboxes.try_send(stray);
    }

    /// Waits until the task has ended, after the provider was closed.
    pub(super) async fn ended(&self) {
        // The task has its own timeouts.
        self.task.ended().await;
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
