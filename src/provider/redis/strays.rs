//! Calls for events whose member has gone: what they still bring is released.

use std::sync::{Arc, Mutex};

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::Shared;
use super::consumer::Consumer;
use super::fetch::Stray;
use crate::poison::IgnorePoison;
use crate::provider::support::{OwnedTask, SentAcks};

/// Maximum number of calls. The events of a further one are redelivered when their leases end.
const MAX_STRAYS: usize = 1_024;

/// The tasks that wait for these calls. Each ends with its call, which has a timeout.
#[derive(Default)]
pub(super) struct Strays(Mutex<JoinSet<()>>);

impl Strays {
    /// Releases what a call brings, without waiting. Outside of a runtime the leases end later.
    pub(super) fn collect(
        &self,
        shared: &Arc<Shared>,
        consumer: &Arc<Consumer>,
        acks: &Arc<SentAcks>,
        stray: Stray,
    ) {
        let Ok(runtime) = Handle::try_current() else { return };
        let mut tasks = self.0.lock().ignore_poison();
        while tasks.try_join_next().is_some() {}
        if tasks.len() < MAX_STRAYS {
            let (shared, consumer, acks) = (Arc::clone(shared), Arc::clone(consumer), Arc::clone(acks));
            tasks.spawn_on(async move { shared.release_answer(&consumer, &acks, stray).await }, &runtime);
        }
    }

    /// Lets a task end that releases what its member held.
    pub(super) fn keep(&self, task: OwnedTask<()>) {
        let Ok(runtime) = Handle::try_current() else { return };
        let releasing = async move { _ = task.ended().await };
        self.0.lock().ignore_poison().spawn_on(releasing, &runtime);
    }

    /// Waits for all of them.
    pub(super) async fn ended(&self) {
        let mut tasks = std::mem::take(&mut *self.0.lock().ignore_poison());
        while tasks.join_next().await.is_some() {}
    }
}
