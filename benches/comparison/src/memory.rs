//! Measures the memory provider, that of 0.3.0, and a broadcast channel of tokio.

use std::sync::Arc;

use a3s_event::{Event, EventProvider, MemoryProvider};
use futures_util::future::join_all;
use published::provider::EventProvider as _;
use tokio::sync::{broadcast, mpsc};

use crate::board::Board;
use crate::ours;
use crate::support::{self, Receipts};
use crate::{
    AT_LIMIT, BATCH, BURST, CALLERS, CONSUME, FAN_OUT, FILTER, HISTORY, IN_BATCHES, MANY_CALLERS, NEWEST,
    NEXT_IN_MEMORY as NEXT, ONE_CALLER, ONE_TO_ONE, OURS, PUBLISHED, RARE, READERS, STORED, events,
};

const BROADCAST: &str = "tokio broadcast";
const MPSC: &str = "tokio mpsc, cloned at both ends";
/// Maximum number of events in a store that is measured full.
const LIMIT: usize = 10_000;
/// Number of events that fit into the channel of 0.3.0, so that its subscribers miss none.
const WAITING: usize = 8_000;
/// Number of events that each contender keeps when events are delivered one after the other.
///
/// 0.3.0 keeps all events, because a full store moves every event at each publish.
const KEPT: usize = 1_024;
const MANY: usize = 51_200;

pub(crate) fn measure(board: &mut Board) {
    support::runtime().block_on(async {
        for _ in 0..board.rounds {
            one_caller(board).await;
            at_the_limit(board).await;
            in_batches(board).await;
            many_callers(board).await;
            one_to_one(board).await;
            next(board).await;
            fan_out(board).await;
            history(board).await;
            consume(board).await;
            crate::parts::measure(board).await;
        }
    });
}

fn ours(max_events: usize) -> Arc<MemoryProvider> {
    Arc::new(support::provider(max_events))
}

fn theirs(max_events: usize) -> Arc<published::MemoryProvider> {
    let config = published::MemoryConfig { max_events, ..Default::default() };
    Arc::new(published::MemoryProvider::new(config))
}

async fn one_caller(board: &mut Board) {
    let (event, their_event) = events();
    let (sender, _idle) = broadcast::channel(MANY);
    board.time(ONE_CALLER, BROADCAST, MANY, async { broadcast_all(&sender, &event, MANY) }).await;
    let provider = theirs(0);
    board.time(ONE_CALLER, PUBLISHED, MANY, publish_theirs(&*provider, &their_event, MANY)).await;
    let provider = ours(0);
    board.time(ONE_CALLER, OURS, MANY, ours::publish(&*provider, &event, MANY)).await;
}

async fn at_the_limit(board: &mut Board) {
    let (event, their_event) = events();
    let provider = theirs(LIMIT);
    publish_theirs(&*provider, &their_event, LIMIT).await;
    board.time(AT_LIMIT, PUBLISHED, 500, publish_theirs(&*provider, &their_event, 500)).await;
    let provider = ours(LIMIT);
    ours::publish(&*provider, &event, LIMIT).await;
    board.time(AT_LIMIT, OURS, MANY, ours::publish(&*provider, &event, MANY)).await;
}

async fn in_batches(board: &mut Board) {
    let (event, their_event) = events();
    let count = MANY / BATCH * BATCH;
    let (sender, _idle) = broadcast::channel(count);
    board.time(IN_BATCHES, BROADCAST, count, async { broadcast_all(&sender, &event, count) }).await;
    let provider = theirs(0);
    board.time(IN_BATCHES, PUBLISHED, count, publish_theirs(&*provider, &their_event, count)).await;
    let provider = ours(0);
    board.time(IN_BATCHES, OURS, count, ours::publish_in_batches(&*provider, &event, count)).await;
}

async fn many_callers(board: &mut Board) {
    let (event, their_event) = events();
    let each = MANY / CALLERS;
    let (sender, _idle) = broadcast::channel(MANY);
    let callers = async {
        let callers = (0..CALLERS).map(|_| {
            let (sender, event) = (sender.clone(), event.clone());
            tokio::spawn(async move { broadcast_all(&sender, &event, each) })
        });
        join_all(callers).await.into_iter().for_each(Result::unwrap);
    };
    board.time(MANY_CALLERS, BROADCAST, MANY, callers).await;
    let provider = theirs(0);
    let callers = async {
        let callers = (0..CALLERS).map(|_| {
            let (provider, event) = (Arc::clone(&provider), their_event.clone());
            tokio::spawn(async move { publish_theirs(&*provider, &event, each).await })
        });
        join_all(callers).await.into_iter().for_each(Result::unwrap);
    };
    board.time(MANY_CALLERS, PUBLISHED, MANY, callers).await;
    let provider = ours(0);
    let callers = async {
        let callers = (0..CALLERS).map(|_| {
            let (provider, event) = (Arc::clone(&provider), event.clone());
            tokio::spawn(async move { ours::publish(&*provider, &event, each).await })
        });
        join_all(callers).await.into_iter().for_each(Result::unwrap);
    };
    board.time(MANY_CALLERS, OURS, MANY, callers).await;
}

async fn one_to_one(board: &mut Board) {
    let (event, their_event) = events();
    let (sender, mut receiver) = broadcast::channel(KEPT);
    board
        .time(ONE_TO_ONE, BROADCAST, MANY, async {
            for _ in 0..MANY {
                sender.send(Arc::new(event.clone())).unwrap();
                receiver.recv().await.unwrap();
            }
        })
        .await;
    let provider = theirs(0);
    let mut subscription = provider.subscribe_durable("worker", FILTER).await.unwrap();
    board
        .time(ONE_TO_ONE, PUBLISHED, MANY, async {
            for _ in 0..MANY {
                provider.publish(&their_event).await.unwrap();
                subscription.next_manual_ack().await.unwrap().unwrap().ack().await.unwrap();
            }
        })
        .await;
    let provider = ours(KEPT);
    let mut subscription = provider.subscribe_durable("worker", FILTER).await.unwrap();
    board
        .time(ONE_TO_ONE, OURS, MANY, async {
            for _ in 0..MANY {
                provider.publish(&event).await.unwrap();
                subscription.next_delivery().await.unwrap().unwrap().ack().await.unwrap();
            }
        })
        .await;
}

async fn next(board: &mut Board) {
    let (event, their_event) = events();
    let (sender, mut receiver) = mpsc::channel::<Arc<Event>>(KEPT);
    board
        .time(NEXT, MPSC, MANY, async {
            let mut kept = std::collections::VecDeque::new();
            for _ in 0..MANY {
                sender.send(Arc::new(event.clone())).await.unwrap();
                let received = receiver.recv().await.unwrap();
                let own = Event::clone(&received);
                kept.push_back(received);
                if kept.len() > KEPT {
                    kept.pop_front();
                }
                assert_eq!(own.version, 1);
            }
        })
        .await;
    let provider = theirs(0);
    let mut subscription = provider.subscribe_durable("worker", FILTER).await.unwrap();
    board
        .time(NEXT, PUBLISHED, MANY, async {
            for _ in 0..MANY {
                provider.publish(&their_event).await.unwrap();
                subscription.next().await.unwrap().unwrap();
            }
        })
        .await;
    let provider = ours(KEPT);
    let mut subscription = provider.subscribe_durable("worker", FILTER).await.unwrap();
    board
        .time(NEXT, OURS, MANY, async {
            for _ in 0..MANY {
                provider.publish(&event).await.unwrap();
                subscription.next().await.unwrap().unwrap();
            }
        })
        .await;
}

async fn fan_out(board: &mut Board) {
    const BURSTS: usize = 50;
    let (event, their_event) = events();
    let deliveries = BURSTS * BURST * READERS;

    let (sender, _) = broadcast::channel::<Arc<Event>>(1_024);
    let receipts = Arc::new(Receipts::default());
    for _ in 0..READERS {
        let (mut receiver, receipts) = (sender.subscribe(), Arc::clone(&receipts));
        tokio::spawn(async move {
            while receiver.recv().await.is_ok() {
                receipts.one();
            }
        });
    }
    board
        .time(FAN_OUT, BROADCAST, deliveries, async {
            for _ in 0..BURSTS {
                receipts.wait_for(READERS * BURST, async || broadcast_all(&sender, &event, BURST)).await;
            }
        })
        .await;
    drop(sender);

    let provider = theirs(LIMIT * 10);
    let receipts = Arc::new(Receipts::default());
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut subscription = provider.subscribe(FILTER).await.unwrap();
        let receipts = Arc::clone(&receipts);
        readers.push(tokio::spawn(async move {
            while let Ok(Some(pending)) = subscription.next_manual_ack().await {
                pending.ack().await.unwrap();
                receipts.one();
            }
        }));
    }
    board
        .time(FAN_OUT, PUBLISHED, deliveries, async {
            for _ in 0..BURSTS {
                let publish = async || publish_theirs(&*provider, &their_event, BURST).await;
                receipts.wait_for(READERS * BURST, publish).await;
            }
        })
        .await;
    readers.iter().for_each(tokio::task::JoinHandle::abort);

    let provider = ours(LIMIT * 10);
    ours::fan_out(board, &*provider, &event, BURSTS).await;
    provider.close().await.unwrap();
}

async fn history(board: &mut Board) {
    let (mut event, mut their_event) = events();
    let (provider, their_provider) = (ours(0), theirs(0));
    for number in 0..STORED {
        // One event in a thousand has the rare category.
        let subject = if number % 1_000 == 0 { "events.rare.tick" } else { crate::SUBJECT };
        subject.clone_into(&mut event.subject);
        subject.clone_into(&mut their_event.subject);
        provider.publish(&event).await.unwrap();
        their_provider.publish(&their_event).await.unwrap();
    }
    for (scenario, filter, count, their_count) in
        [(HISTORY, "events.market.>", 500, 500), (RARE, "events.rare.>", 500, 20)]
    {
        board
            .time(scenario, PUBLISHED, their_count, async {
                for _ in 0..their_count {
                    assert_eq!(their_provider.history(Some(filter), NEWEST).await.unwrap().len(), NEWEST);
                }
            })
            .await;
        board
            .time(scenario, OURS, count, async {
                for _ in 0..count {
                    assert_eq!(provider.history(Some(filter), NEWEST).await.unwrap().len(), NEWEST);
                }
            })
            .await;
    }
}

async fn consume(board: &mut Board) {
    let (event, their_event) = events();
    let (sender, mut receiver) = broadcast::channel(LIMIT);
    broadcast_all(&sender, &event, WAITING);
    board
        .time(CONSUME, BROADCAST, WAITING, async {
            for _ in 0..WAITING {
                receiver.recv().await.unwrap();
            }
        })
        .await;
    let provider = theirs(0);
    let mut subscription = provider.subscribe_durable("worker", FILTER).await.unwrap();
    publish_theirs(&*provider, &their_event, WAITING).await;
    board
        .time(CONSUME, PUBLISHED, WAITING, async {
            for _ in 0..WAITING {
                subscription.next_manual_ack().await.unwrap().unwrap().ack().await.unwrap();
            }
        })
        .await;
    let provider = ours(0);
    ours::publish(&*provider, &event, WAITING).await;
    let mut subscription = provider.subscribe_durable("worker", FILTER).await.unwrap();
    board
        .time(CONSUME, OURS, WAITING, async {
            for _ in 0..WAITING {
                subscription.next_delivery().await.unwrap().unwrap().ack().await.unwrap();
            }
        })
        .await;
}

fn broadcast_all(sender: &broadcast::Sender<Arc<Event>>, event: &Event, count: usize) {
    for _ in 0..count {
        sender.send(Arc::new(event.clone())).unwrap();
    }
}

pub(crate) async fn publish_theirs(
    provider: &dyn published::EventProvider,
    event: &published::Event,
    count: usize,
) {
    for _ in 0..count {
        provider.publish(event).await.unwrap();
    }
}
