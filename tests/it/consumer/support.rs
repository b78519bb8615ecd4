//! What the stories about consumers have in common.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use a3s_event::consumer::{Backoff, ConsumerBuilder, ConsumerHandle, RetryPolicy};
use a3s_event::{Delivery, EventBus, SubscribeOptions};

use crate::{event, eventually, number};

/// Handles every event at once, up to this often.
pub(super) fn policy(attempts: u64) -> RetryPolicy {
    RetryPolicy::default().attempts(attempts).backoff(Backoff::none())
}

pub(super) async fn publish(bus: &EventBus, subject: &str, numbers: std::ops::RangeInclusive<u64>) {
    let events: Vec<_> = numbers.map(|number| event(subject, number)).collect();
    for stored in bus.publish_batch(&events).await {
        stored.unwrap();
    }
}

/// Nothing is left to do for any consumer of the stream.
pub(super) async fn is_settled(bus: &EventBus) -> bool {
    bus.consumers().await.unwrap().iter().all(|consumer| consumer.pending + consumer.lag == 0)
}

pub(super) async fn assert_settled(bus: &EventBus) {
    eventually("everything is settled", async || is_settled(bus).await).await;
}

/// How often each event was handled.
#[derive(Default)]
pub(super) struct Handled(Mutex<BTreeMap<u64, usize>>);

impl Handled {
    pub(super) fn count(&self, number: u64) {
        *self.0.lock().unwrap().entry(number).or_default() += 1;
    }

    pub(super) fn events(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub(super) fn all_once(&self) -> bool {
        self.0.lock().unwrap().values().all(|times| *times == 1)
    }
}

pub(super) fn short_lease() -> SubscribeOptions {
    SubscribeOptions { ack_wait_secs: Some(1), ..SubscribeOptions::default() }
}

/// Starts a consumer that does nothing but count what it handles.
pub(super) async fn counted(consumer: ConsumerBuilder<'_>, handled: &Arc<Handled>) -> ConsumerHandle {
    let handled = Arc::clone(handled);
    let counting = move |delivery: Delivery| {
        handled.count(number(&delivery));
        async { Ok(()) }
    };
    consumer.handle(counting).await.unwrap()
}
