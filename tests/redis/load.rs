//! Programs that publish and consume without a pause, and note what they were told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use a3s_event::provider::redis::RedisProvider;
use a3s_event::{EventProvider, PublishOptions};
use a3s_event_testkit::RedisServer;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::stored::{assert_stored, intact};
use crate::{FILTER, event, eventually, short_leases};

/// Name of the consumer.
pub(crate) const CONSUMER: &str = "worker";
const SUBJECTS: u64 = 5;

/// Ids of events by their sequences.
pub(crate) type Events = BTreeMap<u64, String>;

/// Publishers and a consumer of one provider. They end with this.
pub(crate) struct Load {
    provider: Arc<RedisProvider>,
    told: Arc<Told>,
    stopping: watch::Sender<bool>,
    publishers: JoinSet<()>,
    consumer: JoinSet<()>,
}

/// What the programs were told.
#[derive(Default)]
struct Told {
    acknowledged: Mutex<Events>,
    /// Events whose ack was confirmed.
    settled: Mutex<Events>,
    /// Number of answers to publishers, refusals included.
    answers: watch::Sender<usize>,
}

impl Load {
    /// Starts publishers that repeat each publish until it is acknowledged.
    pub(crate) fn start(provider: RedisProvider, publishers: u64) -> Self {
        let (provider, told) = (Arc::new(provider), Arc::<Told>::default());
        let stopping = watch::Sender::new(false);
        let mut load =
            Self { provider, told, stopping, publishers: JoinSet::new(), consumer: JoinSet::new() };
        for publisher in 0..publishers {
            let publishing = publish_all(
                Arc::clone(&load.provider),
                Arc::clone(&load.told),
                load.stopping.subscribe(),
                publisher,
            );
            load.publishers.spawn(publishing);
        }
        load
    }

    /// Starts a consumer, too.
    pub(crate) fn consuming(mut self) -> Self {
        self.consumer.spawn(consume_all(Arc::clone(&self.provider), Arc::clone(&self.told)));
        self
    }

    /// Waits until this many more publishes were acknowledged.
    pub(crate) async fn acknowledged(&self, more: usize) {
        let count = || self.told.acknowledged.lock().unwrap().len();
        let wanted = count() + more;
        eventually("more acknowledged publishes", async || count() >= wanted).await;
    }

    /// Waits until the publishers got this many more answers, or refusals.
    pub(crate) async fn answered(&self, more: usize) {
        let mut answers = self.told.answers.subscribe();
        let wanted = *answers.borrow() + more;
        let enough = tokio::time::timeout(crate::DEADLINE, answers.wait_for(|count| *count >= wanted)).await;
        assert!(enough.is_ok(), "the publishers got no answers");
    }

    /// Ends the publishers after the answers to their last events, and returns what was acknowledged.
    pub(crate) async fn end(mut self) -> Events {
        self.stop_publishers().await;
        std::mem::take(&mut *self.told.acknowledged.lock().unwrap())
    }

    /// Ends the publishers after one more acknowledged publish, and fails unless everything acknowledged is stored on this
    /// server. Returns what was acknowledged and what is stored.
    pub(crate) async fn all_stored(self, server: &RedisServer) -> (Events, Events) {
        self.acknowledged(1).await;
        let acknowledged = self.end().await;
        let stored = intact(server).await;
        assert_stored(&acknowledged, &stored);
        (acknowledged, stored)
    }

    /// Ends the publishers, waits until the consumer has settled all events, and returns what was acknowledged and what was
    /// settled.
    pub(crate) async fn drained(mut self) -> (Events, Events) {
        self.stop_publishers().await;
        eventually("everything is settled", async || match self.provider.consumers().await {
            Ok(consumers) => consumers
                .iter()
                .any(|consumer| consumer.name == CONSUMER && consumer.lag == 0 && consumer.pending == 0),
            Err(error) if error.is_retryable() => false,
            Err(error) => panic!("{error}"),
        })
        .await;
        let take = |events: &Mutex<Events>| std::mem::take(&mut *events.lock().unwrap());
        (take(&self.told.acknowledged), take(&self.told.settled))
    }

    async fn stop_publishers(&mut self) {
        self.stopping.send_replace(true);
        let ending = async { while self.publishers.join_next().await.transpose().unwrap().is_some() {} };
        tokio::time::timeout(crate::DEADLINE, ending).await.expect("the publishers end");
    }
}

async fn publish_all(
    provider: Arc<RedisProvider>,
    told: Arc<Told>,
    stopping: watch::Receiver<bool>,
    publisher: u64,
) {
    for number in 0.. {
        let mut event = event(&format!("k{}", (publisher + number) % SUBJECTS));
        event.id = format!("{publisher}-{number}");
        let options = PublishOptions { msg_id: Some(event.id.clone()), ..PublishOptions::default() };
        loop {
            let answer = provider.publish_with_receipt(&event, &options).await;
            told.answers.send_modify(|answers| *answers += 1);
            match answer {
                Ok(receipt) => {
                    let id = event.id.clone();
                    let earlier = told.acknowledged.lock().unwrap().insert(receipt.sequence, id);
                    assert_eq!(earlier, None, "sequence {} was acknowledged twice", receipt.sequence);
                    break;
                }
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
        if *stopping.borrow() {
            return;
        }
    }
}

async fn consume_all(provider: Arc<RedisProvider>, told: Arc<Told>) {
    let mut subscription = loop {
        match provider.subscribe_durable_with_options(CONSUMER, FILTER, &short_leases()).await {
            Ok(subscription) => break subscription,
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    };
    loop {
        let delivery = match subscription.next_delivery().await {
            Ok(Some(delivery)) => delivery,
            Ok(None) => panic!("the subscription ended: {:?}", subscription.end()),
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                continue;
            }
        };
        let (sequence, id) = (delivery.sequence(), delivery.event().id.clone());
        assert!(
            !told.settled.lock().unwrap().contains_key(&sequence),
            "{sequence} was settled and came again"
        );
        // An ack without an answer may be stored: then the event does not come again.
        if delivery.ack_confirmed().await.is_ok() {
            told.settled.lock().unwrap().insert(sequence, id);
        }
    }
}
