//! Several processes on one file.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use a3s_event::EventProvider;

use crate::child;
use crate::{DEADLINE, FILTER, durable, event, next_unless_settled, open, publish};

#[tokio::test(flavor = "multi_thread")]
async fn many_can_make_a_new_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let opening: Vec<_> = (0..8)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move {
                let provider = open(&path).await;
                publish(&provider, "hello").await;
                provider
            })
        })
        .collect();
    let mut providers = Vec::new();
    for opening in opening {
        providers.push(opening.await.unwrap());
    }
    assert_eq!(providers[0].info().await.unwrap().messages, 8);
}

/// Nothing but a look at the file ends the wait of a subscriber that has nothing pending. How often the file is looked at is
/// a case of the writer's own tests; the time that passed depends on the machine, and is only printed.
#[tokio::test(flavor = "multi_thread")]
async fn a_publish_in_another_process_wakes_a_waiting_subscriber() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let provider = open(&path).await;
    let mut subscription = provider.subscribe(FILTER).await.unwrap();
    let _publisher = child::start("publish", &path, "");
    let mut latencies = Vec::new();
    for _ in 0..20 {
        let delivery =
            tokio::time::timeout(DEADLINE, subscription.next_delivery()).await.unwrap().unwrap().unwrap();
        latencies.push(event("now").timestamp.saturating_sub(delivery.event().timestamp));
        delivery.ack().await.unwrap();
    }
    latencies.sort_unstable();
    println!("milliseconds from publish to delivery: {latencies:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_process_held_is_taken_over_at_its_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let provider = open(&path).await;
    let sequence = publish(&provider, "held").await;
    let holder = child::start("hold", &path, "");
    let holder = tokio::task::spawn_blocking(move || {
        holder.expect("holding");
        holder
    });
    let holder = holder.await.unwrap();
    let mut subscription = durable(&provider, "shared").await;
    let begin = Instant::now();
    drop(holder);
    let delivery = tokio::time::timeout(DEADLINE, subscription.next_delivery()).await.unwrap();
    let delivery = delivery.unwrap().unwrap();
    assert_eq!((delivery.sequence(), delivery.num_delivered()), (sequence, 2));
    println!("taken over after {:?} with a lease of one second", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_share_the_work_of_a_durable_consumer() {
    const EVENTS: u64 = 200;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let provider = open(&path).await;
    let worker = child::start("share", &path, "");
    let worker = tokio::task::spawn_blocking(move || {
        worker.expect("ready");
        worker
    });
    let worker = worker.await.unwrap();
    let mut subscription = provider.subscribe_durable("shared", FILTER).await.unwrap();
    // Both take some, however slow one of them is: while this process holds an event, the other one settles the next.
    let mut published = BTreeSet::new();
    let held = loop {
        published.insert(publish(&provider, "work").await);
        if let Some(answer) = next_unless_settled(&provider, true, &mut *subscription).await {
            break answer.unwrap().unwrap();
        }
    };
    let mut here = BTreeSet::from([held.sequence()]);
    published.insert(publish(&provider, "work").await);
    let settled = async {
        while provider.consumers().await.unwrap().iter().any(|consumer| consumer.lag + consumer.pending > 1) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, settled).await.expect("the other process takes its event");
    held.ack_confirmed().await.unwrap();

    let publishing = async {
        for _ in published.len() as u64..EVENTS {
            published.insert(publish(&provider, "work").await);
        }
    };
    let working = async {
        loop {
            let all_are_stored = provider.info().await.unwrap().messages == EVENTS;
            while let Some(answer) = next_unless_settled(&provider, true, &mut *subscription).await {
                let delivery = answer.unwrap().unwrap();
                assert_eq!(delivery.num_delivered(), 1);
                here.insert(delivery.sequence());
                // The other process takes what comes meanwhile.
                delivery.ack_confirmed().await.unwrap();
            }
            if all_are_stored {
                break;
            }
        }
    };
    tokio::join!(publishing, working);
    let said = tokio::task::spawn_blocking(move || worker.kill_after(Duration::ZERO)).await.unwrap();
    let there: BTreeSet<u64> = said
        .iter()
        .filter_map(|line| line.strip_prefix("took "))
        .map(|sequence| sequence.parse().unwrap())
        .collect();
    assert!(here.is_disjoint(&there), "an event went to both processes");
    assert_eq!(&here | &there, published);
    assert!(!here.is_empty() && !there.is_empty(), "{} here, {} there", here.len(), there.len());
}
