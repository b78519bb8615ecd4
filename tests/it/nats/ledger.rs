//! Load on a stream while something fails, and the account of it: what was acknowledged has to be there and to arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use a3s_event::provider::nats::NatsProviderBuilder;
use a3s_event::{EventProvider, PublishOptions, SubscribeOptions, Subscription};
use tokio::sync::Mutex;

use super::{SLACK, event};

const PRODUCERS: u64 = 4;
pub(super) const ACK_WAIT: Duration = Duration::from_secs(2);
/// Deadline of a publish.
const PUBLISH: Duration = Duration::from_secs(1);
/// Deadline of a settlement, as the provider has it.
const SETTLEMENT: Duration = Duration::from_secs(3);
/// How long everything may take that has to happen after a fault. A cluster chooses its leaders in rounds of up to nine
/// seconds, and in more than one when its votes are split.
const SETTLED: Duration = Duration::from_secs(60);

/// How many events are published before and after the fault, at least.
const ENOUGH: usize = 100;

/// What happened to each event, which is the number `producer * 1_000_000 + counter`.
#[derive(Default)]
struct Ledger {
    /// When its publishing began.
    begun: BTreeMap<u64, Instant>,
    acknowledged: BTreeSet<u64>,
    delivered: BTreeMap<u64, usize>,
    longest_publish: Duration,
    longest_ack: Duration,
}

impl Ledger {
    /// Deliveries of what had been delivered before.
    fn duplicates(&self) -> usize {
        self.delivered.values().map(|times| times - 1).sum()
    }
}

/// The account while it is written.
#[derive(Clone, Default)]
pub(super) struct Account(Arc<Mutex<Ledger>>);

impl Account {
    /// Waits until this many more events were acknowledged.
    async fn grows_by(&self, count: usize) {
        let (started, before) = (Instant::now(), self.0.lock().await.acknowledged.len());
        while self.0.lock().await.acknowledged.len() < before + count {
            assert!(started.elapsed() < SETTLED, "publishing does not get on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until an event arrives whose publishing begins after this call, and prints how long that took.
    #[allow(clippy::print_stdout, reason = "the figures of a run")]
    pub(super) async fn resumes(&self) {
        let (started, mut published) = (Instant::now(), None);
        loop {
            let ledger = self.0.lock().await;
            let is_new = |number: &u64| ledger.begun.get(number).is_some_and(|begun| *begun > started);
            if published.is_none() && ledger.acknowledged.iter().any(is_new) {
                published = Some(started.elapsed());
            }
            if ledger.delivered.keys().any(is_new) {
                println!("publishing goes on after {published:?}, consuming after {:?}", started.elapsed());
                return;
            }
            drop(ledger);
            assert!(started.elapsed() < SETTLED, "nothing new arrived within {SETTLED:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn missing(&self) -> usize {
        let ledger = self.0.lock().await;
        ledger.acknowledged.iter().filter(|number| !ledger.delivered.contains_key(number)).count()
    }
}

/// Publishes one event after the other until it is told to stop, each as often as it takes.
async fn produce(provider: Arc<dyn EventProvider>, producer: u64, stop: Arc<AtomicBool>, account: Account) {
    for counter in 0.. {
        let number = producer * 1_000_000 + counter;
        let event = event("load", number);
        let options = PublishOptions {
            msg_id: Some(number.to_string()),
            timeout_secs: Some(PUBLISH.as_secs()),
            ..PublishOptions::default()
        };
        account.0.lock().await.begun.insert(number, Instant::now());
        loop {
            let started = Instant::now();
            let published = provider.publish_with_options(&event, &options).await;
            let took = started.elapsed();
            let mut ledger = account.0.lock().await;
            ledger.longest_publish = ledger.longest_publish.max(took);
            match published {
                Ok(_) => {
                    ledger.acknowledged.insert(number);
                    break;
                }
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
            drop(ledger);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Receives and acks for ever.
async fn consume(mut member: Box<dyn Subscription>, account: Account) {
    loop {
        match member.next_delivery().await {
            Ok(Some(delivery)) => {
                let number = delivery.event().payload.as_u64().unwrap();
                *account.0.lock().await.delivered.entry(number).or_default() += 1;
                let started = Instant::now();
                // Not confirmed means that it comes again.
                let _ = delivery.ack().await;
                let took = started.elapsed();
                let mut ledger = account.0.lock().await;
                ledger.longest_ack = ledger.longest_ack.max(took);
            }
            // Found out at the end of the test.
            Ok(None) => return,
            Err(error) => assert!(!error.is_closed(), "{error:?}"),
        }
    }
}

/// Runs producers and two members of a durable consumer on two connections while `fault` happens, and checks the account.
#[allow(clippy::print_stdout, reason = "the figures of a run")]
pub(super) async fn under_load(builder: NatsProviderBuilder, fault: impl AsyncFnOnce(&Account)) {
    let provider: Arc<dyn EventProvider> = Arc::new(builder.clone().connect().await.unwrap());
    let elsewhere: Arc<dyn EventProvider> = Arc::new(builder.connect().await.unwrap());
    let account = Account::default();
    let stop = Arc::new(AtomicBool::new(false));
    let options = SubscribeOptions { ack_wait_secs: Some(ACK_WAIT.as_secs()), ..SubscribeOptions::default() };
    let mut members = Vec::new();
    for provider in [&provider, &elsewhere] {
        let member = provider.subscribe_durable_with_options("workers", "events.>", &options).await.unwrap();
        members.push(tokio::spawn(consume(member, account.clone())));
    }
    let producers: Vec<_> = (1..=PRODUCERS)
        .map(|producer| {
            let provider = Arc::clone(if producer % 2 == 0 { &provider } else { &elsewhere });
            tokio::spawn(produce(provider, producer, Arc::clone(&stop), account.clone()))
        })
        .collect();
    account.grows_by(ENOUGH).await;
    fault(&account).await;
    account.grows_by(ENOUGH).await;
    stop.store(true, Ordering::Relaxed);
    for producer in producers {
        tokio::time::timeout(SETTLED, producer).await.expect("a producer does not get on").unwrap();
    }
    // Everything acknowledged must be delivered.
    let over = Instant::now();
    loop {
        let missing = account.missing().await;
        if missing == 0 {
            break;
        }
        assert!(over.elapsed() < SETTLED, "{missing} acknowledged events were not delivered");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stored = provider.history(None, usize::MAX).await.unwrap();
    let distinct: BTreeSet<_> = stored.iter().map(|event| event.payload.as_u64().unwrap()).collect();
    for member in members {
        assert!(!member.is_finished(), "a member has ended");
        member.abort();
    }
    let ledger = std::mem::take(&mut *account.0.lock().await);
    let lost: Vec<_> = ledger.acknowledged.difference(&distinct).collect();
    assert!(lost.is_empty(), "acknowledged and not stored: {lost:?}");
    assert_eq!(stored.len(), distinct.len(), "events that were stored twice");
    assert!(ledger.delivered.keys().all(|number| distinct.contains(number)), "delivered and not stored");
    println!(
        "{} acknowledged, {} stored, {} delivered again; longest publish {:?}, longest ack {:?}",
        ledger.acknowledged.len(),
        stored.len(),
        ledger.duplicates(),
        ledger.longest_publish,
        ledger.longest_ack
    );
    assert!(ledger.longest_publish < PUBLISH + SLACK, "a publish took {:?}", ledger.longest_publish);
    assert!(ledger.longest_ack < SETTLEMENT + SLACK, "an ack took {:?}", ledger.longest_ack);
}
