//! Competing members on several threads that settle, refuse, cancel, leave and idle at random: nothing is stranded, and
//! every event is acknowledged once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use a3s_event::{Delivery, EventProvider, MemoryProvider, SubscribeOptions, Subscription};
use tokio::sync::Notify;

use super::random::Random;
use super::{event, slow_tier};

/// Rounds in the normal tier; `A3S_EVENT_SLOW` asks for a hundred times as many.
const ROUNDS: u64 = 20;

/// Counts acknowledgements by sequence.
struct Acks {
    by_sequence: Mutex<BTreeMap<u64, u32>>,
    expected: usize,
    complete: Notify,
}

impl Acks {
    async fn settle(&self, delivery: Delivery, choice: u64) {
        match choice {
            0 => delivery.nak().await.unwrap(),
            1 => delivery.nak_after(Duration::from_millis(3)).await.unwrap(),
            2 => delivery.release().await.unwrap(),
            _ => {
                let sequence = delivery.sequence();
                delivery.ack().await.unwrap();
                let mut acks = self.by_sequence.lock().unwrap();
                *acks.entry(sequence).or_default() += 1;
                if acks.len() == self.expected {
                    self.complete.notify_one();
                }
            }
        }
    }
}

async fn join(provider: &MemoryProvider) -> Box<dyn Subscription> {
    provider.subscribe_durable("workers", "events.>").await.unwrap()
}

async fn restless_member(provider: Arc<MemoryProvider>, acks: Arc<Acks>, mut random: Random) {
    let mut subscription = join(&provider).await;
    for _ in 0..random.below(300) {
        match random.below(10) {
            0 => subscription = join(&provider).await,
            1 => {
                subscription.close().await.unwrap();
                subscription = join(&provider).await;
            }
            2 => {
                let wait = Duration::from_micros(random.below(500));
                for delivery in subscription.next_batch(3, wait).await.unwrap() {
                    acks.settle(delivery.unwrap(), random.below(10)).await;
                }
            }
            3 => tokio::time::sleep(Duration::from_micros(random.below(800))).await,
            _ => {
                let wait = Duration::from_micros(random.below(2_000));
                if let Ok(delivery) = tokio::time::timeout(wait, subscription.next_delivery()).await {
                    acks.settle(delivery.unwrap().unwrap(), random.below(10)).await;
                }
            }
        }
    }
    if random.below(2) == 0 {
        // Still a member, and never asks again.
        std::future::pending::<()>().await;
    }
}

async fn round(seed: u64) {
    let mut random = Random::new(seed * 7_919 + 1);
    let provider = Arc::new(MemoryProvider::default());
    let options = SubscribeOptions {
        max_ack_pending: Some([1, 2, 5, 1_000][usize::try_from(random.below(4)).unwrap()]),
        ..SubscribeOptions::default()
    };
    let mut steady = provider.subscribe_durable_with_options("workers", "events.>", &options).await.unwrap();
    let expected = 200 + random.below(200);
    let acks = Arc::new(Acks {
        by_sequence: Mutex::default(),
        expected: usize::try_from(expected).unwrap(),
        complete: Notify::new(),
    });
    let mut tasks = tokio::task::JoinSet::new();
    for member in 0..4 {
        let random = Random::new(seed * 31 + member + 1);
        tasks.spawn(restless_member(Arc::clone(&provider), Arc::clone(&acks), random));
    }
    let (steady_acks, mut steady_random) = (Arc::clone(&acks), Random::new(seed + 77));
    tasks.spawn(async move {
        while let Some(delivery) = steady.next_delivery().await.unwrap() {
            steady_acks.settle(delivery, steady_random.below(10)).await;
        }
    });
    let publisher = Arc::clone(&provider);
    tasks.spawn(async move {
        for number in 0..expected {
            publisher.publish(&event("events.a.b", number)).await.unwrap();
            if random.below(4) == 0 {
                tokio::time::sleep(Duration::from_micros(random.below(300))).await;
            }
        }
    });
    let complete = tokio::time::timeout(Duration::from_secs(20), acks.complete.notified()).await;
    let acked = acks.by_sequence.lock().unwrap().clone();
    assert!(complete.is_ok(), "seed {seed}: {} of {expected} acknowledged", acked.len());
    assert!(acked.values().all(|count| *count == 1), "seed {seed}: acknowledged twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn competing_members_strand_nothing() {
    let rounds = if slow_tier() { 100 * ROUNDS } else { ROUNDS };
    for seed in 1..=rounds {
        round(seed).await;
    }
}
