//! A worker: it publishes and consumes, and notes every call and its answer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use a3s_event::consumer::{Backoff, ConsumerHandle, HandlerError, HandlerResult, RetryPolicy};
use a3s_event::dlq::{DeadLetter, DeadLetterReceipt};
use a3s_event::{
    DeadLetterEvent, Delivery, DlqHandler, EventBus, EventProvider, ProviderDlqHandler, PublishOptions,
    Result, SubscribeOptions,
};
use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::journal::{Fact, Journal};
use super::load::{Fate, Load};

/// Name of the consumer that all members share.
const SHARED: &str = "shared";
const CONCURRENCY: usize = 4;
/// Timeout of a publish and of every other call.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before a failed call is repeated.
const AGAIN: Duration = Duration::from_millis(50);
const HEALTH_EVERY: Duration = Duration::from_millis(200);

/// What a worker is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Phase {
    /// Publish and consume.
    Work,
    /// Publish no more events, and consume.
    Rest,
    /// Stop in order.
    Stop,
}

/// One life of a member: a process, or a task that stands for one.
///
/// It opens two durable consumers with the handler runtime of the bus. All members share `shared`. The other one has
/// the name of the member, and handles one event per key at a time.
#[non_exhaustive]
pub struct Worker {
    /// Name of the member.
    pub member: String,
    /// Number of this life of the member, from 1.
    pub life: u32,
    /// Provider of the events.
    pub provider: Arc<dyn EventProvider>,
    /// Provider of the dead letters.
    pub letters: Arc<dyn EventProvider>,
    /// Load on the bus.
    pub load: Load,
    /// Journal of this life.
    pub journal: Arc<Journal>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { member, life, load, .. } = self;
        f.debug_struct("Worker")
            .field("member", member)
            .field("life", life)
            .field("load", load)
            .finish_non_exhaustive()
    }
}

impl Worker {
    /// Creates a worker.
    pub fn new(
        member: impl Into<String>,
        life: u32,
        provider: Arc<dyn EventProvider>,
        letters: Arc<dyn EventProvider>,
        journal: Arc<Journal>,
    ) -> Self {
        Self { member: member.into(), life, provider, letters, load: Load::default(), journal }
    }

    /// Sets the load.
    #[must_use]
    pub fn load(mut self, load: Load) -> Self {
        self.load = load;
        self
    }

    /// Works until it is asked to stop, then shuts down in order. `rested` becomes true once the publishers have ended
    /// because they were asked to rest.
    ///
    /// # Errors
    ///
    /// If a consumer cannot be opened or ends by itself, or if the orderly stop fails.
    pub async fn run(self, mut phase: watch::Receiver<Phase>, rested: watch::Sender<bool>) -> Result<()> {
        let process = std::process::id();
        self.journal.note(Fact::Began { member: self.member.clone(), life: self.life, process });
        let letters = Noted {
            letters: ProviderDlqHandler::new(Arc::clone(&self.letters))?,
            journal: Arc::clone(&self.journal),
        };
        let bus = EventBus::builder(Arc::clone(&self.provider))
            .dlq_handler(Arc::new(letters))
            .operation_timeout(TIMEOUT)
            .build()?;
        let (worker, bus) = (Arc::new(self), Arc::new(bus));

        let mut helpers = JoinSet::new();
        helpers.spawn(watch_health(Arc::clone(&worker), Arc::clone(&bus)));
        let publishing = publish_all(Arc::clone(&worker), Arc::clone(&bus), phase.clone(), rested);
        helpers.spawn(publishing);

        let mut consumers = Vec::new();
        let consuming = async {
            if worker.load.consumers {
                consumers.push((SHARED, worker.open(&bus, SHARED, false).await?));
                consumers.push((&worker.member, worker.open(&bus, &worker.member, true).await?));
            }
            match &consumers[..] {
                [(first, one), (second, other)] => tokio::select! {
                    ended = one.stopped() => worker.note_end(first, &ended, ended.is_err()),
                    ended = other.stopped() => worker.note_end(second, &ended, ended.is_err()),
                },
                _ => std::future::pending().await,
            }
        };
        let asked_to_stop = async {
            // The sender lives as long as whoever asks; without it, there is a reason to stop.
            let _ = phase.wait_for(|phase| *phase >= Phase::Stop).await;
        };
        tokio::select! {
            ended = consuming => return ended,
            () = asked_to_stop => {}
        }
        worker.journal.note(Fact::StopBegun);
        helpers.shutdown().await;
        let stopped = stop(&consumers, &bus, &*worker.letters).await;
        worker.journal.note(Fact::Stopped { error: stopped.as_ref().err().map(ToString::to_string) });
        stopped
    }

    /// Opens a consumer, as often as that takes while the provider is unavailable.
    async fn open(&self, bus: &EventBus, name: &str, ordered: bool) -> Result<ConsumerHandle> {
        let options =
            SubscribeOptions { ack_wait_secs: Some(self.load.lease.as_secs()), ..Default::default() };
        let backoff = Backoff::exponential(Duration::from_millis(20), Duration::from_millis(200));
        loop {
            let mut consumer = bus
                .consumer(name)
                .subject(Load::filter(&*self.provider))
                .options(options.clone())
                .concurrency(CONCURRENCY)
                .policy(RetryPolicy::default().attempts(self.load.attempts).backoff(backoff.clone()));
            if ordered {
                consumer = consumer.ordered_by_key(Load::key);
            }
            let (name, journal) = (Arc::<str>::from(name), Arc::clone(&self.journal));
            let (consumer_name, noting) = (Arc::clone(&name), Arc::clone(&journal));
            let handler = move |delivery| handle(Arc::clone(&noting), Arc::clone(&consumer_name), delivery);
            match consumer.handle(handler).await {
                Ok(handle) => {
                    journal.note(Fact::Opened { consumer: name.to_string(), ordered });
                    return Ok(handle);
                }
                Err(error) if error.is_retryable() => tokio::time::sleep(AGAIN).await,
                Err(error) => {
                    self.note_end(&name, &error, true)?;
                    return Err(error);
                }
            }
        }
    }

    fn note_end(&self, consumer: &str, ended: &impl fmt::Debug, failed: bool) -> Result<()> {
        let error = format!("{ended:?}");
        self.journal.note(Fact::ConsumerEnded { consumer: consumer.to_owned(), error: error.clone() });
        if failed { Err(a3s_event::EventError::Consumer(error)) } else { Ok(()) }
    }

    /// Publishes one event after the other, each as often as it takes.
    async fn publish(&self, bus: &EventBus, publisher: u32, mut phase: watch::Receiver<Phase>) {
        let name = format!("{}.{}.{publisher}", self.member, self.life);
        let mut rng = fastrand::Rng::with_seed(self.load.seed ^ hash(&name));
        for number in 1_u64.. {
            let event = self.load.event(&*self.provider, format!("{name}-{number}"), &mut rng);
            let options = PublishOptions {
                msg_id: Some(event.id.clone()),
                timeout_secs: Some(TIMEOUT.as_secs()),
                ..PublishOptions::default()
            };
            loop {
                let id = event.id.clone();
                self.journal.note(Fact::PublishBegun { id: id.clone(), key: Load::key(&event) });
                match bus.publish_event_with_receipt(&event, &options).await {
                    Ok(receipt) => {
                        let (sequence, duplicate) = (receipt.sequence, receipt.duplicate);
                        self.journal.note(Fact::Published { id, sequence, duplicate });
                        break;
                    }
                    Err(error) => {
                        let may_be_stored = error.may_be_stored();
                        let error = error.to_string();
                        self.journal.note(Fact::PublishFailed { id, may_be_stored, error });
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
            let pause = self.load.pause.mul_f64(2.0 * rng.f64());
            if tokio::time::timeout(pause, phase.wait_for(|phase| *phase > Phase::Work)).await.is_ok() {
                return;
            }
        }
    }
}

async fn publish_all(
    worker: Arc<Worker>,
    bus: Arc<EventBus>,
    phase: watch::Receiver<Phase>,
    rested: watch::Sender<bool>,
) {
    let mut publishers = JoinSet::new();
    for publisher in 0..worker.load.publishers {
        let (worker, bus, phase) = (Arc::clone(&worker), Arc::clone(&bus), phase.clone());
        publishers.spawn(async move { worker.publish(&bus, publisher, phase).await });
    }
    while publishers.join_next().await.is_some() {}
    worker.journal.note(Fact::Rested);
    rested.send_replace(true);
}

async fn watch_health(worker: Arc<Worker>, bus: Arc<EventBus>) {
    loop {
        let healthy = bus.health().await.unwrap_or(false);
        worker.journal.note(Fact::Health { healthy });
        tokio::time::sleep(HEALTH_EVERY).await;
    }
}

/// Handles an event as its payload says. The three ways to ack take turns.
async fn handle(journal: Arc<Journal>, consumer: Arc<str>, delivery: Delivery) -> HandlerResult {
    let (sequence, attempt) = (delivery.sequence(), delivery.num_delivered());
    let consumer = consumer.to_string();
    journal.note(Fact::Delivered {
        consumer: consumer.clone(),
        sequence,
        attempt,
        id: delivery.event().id.clone(),
        key: Load::key(delivery.event()),
    });
    // Handlers that take different times finish in another order than they begin.
    tokio::time::sleep(Duration::from_millis(sequence % 4)).await;
    match Load::fate(delivery.event()) {
        Fate::Fatal => {
            journal.note(Fact::Term { consumer, sequence });
            return Err(HandlerError::fatal("fatal"));
        }
        Fate::FailsOnce if attempt > 1 => {}
        Fate::FailsOnce | Fate::Fails => {
            journal.note(Fact::Nak { consumer, sequence, attempt });
            return Err("to be retried".into());
        }
        Fate::Fine => {}
    }
    journal.note(Fact::AckBegun { consumer: consumer.clone(), sequence });
    let answer = match sequence % 3 {
        // The runtime acks.
        0 => return Ok(()),
        1 => delivery.ack().await.map(|()| Fact::AckSent { consumer: consumer.clone(), sequence }),
        _ => {
            let confirmed = delivery.ack_confirmed().await;
            confirmed.map(|()| Fact::AckConfirmed { consumer: consumer.clone(), sequence })
        }
    };
    journal.note(answer.unwrap_or_else(|error| Fact::AckFailed {
        consumer,
        sequence,
        error: error.to_string(),
    }));
    // What is settled, and what could not be settled, is not the runtime's any more.
    Ok(())
}

async fn stop(
    consumers: &[(&str, ConsumerHandle)],
    bus: &EventBus,
    letters: &dyn EventProvider,
) -> Result<()> {
    let ended = match consumers {
        [(_, one), (_, other)] => {
            let (one, other) = tokio::join!(one.shutdown(), other.shutdown());
            one.and(other)
        }
        [(_, one)] => one.shutdown().await,
        _ => Ok(()),
    };
    let closed = bus.close().await;
    ended.and(closed).and(letters.close().await)
}

/// Returns a number that is the same in every build (FNV-1a).
pub(super) fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Dead letters that are noted once they are stored.
struct Noted {
    letters: ProviderDlqHandler,
    journal: Arc<Journal>,
}

#[async_trait]
impl DlqHandler for Noted {
    async fn handle(&self, event: DeadLetterEvent) -> Result<()> {
        self.letters.handle(event).await
    }

    async fn keep_letter(&self, letter: DeadLetter) -> Result<DeadLetterReceipt> {
        let consumer = letter.subscriber.clone().or_else(|| letter.consumer.clone()).unwrap_or_default();
        let (sequence, id) = (letter.event.sequence, letter.event.event.id.clone());
        let receipt = self.letters.keep_letter(letter).await?;
        self.journal.note(Fact::DeadLettered { consumer, sequence, id });
        Ok(receipt)
    }

    async fn count(&self) -> Result<usize> {
        self.letters.count().await
    }

    async fn list(&self, limit: usize) -> Result<Vec<DeadLetterEvent>> {
        self.letters.list(limit).await
    }
}
