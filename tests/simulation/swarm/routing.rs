//! The broker of a life: a fire-and-forget trigger whose sink fails at random, and a durable one that is a consumer of
//! the record.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use a3s_event::broker::{BrokerHandle, DeliverySettings};
use a3s_event::consumer::Backoff;
use a3s_event::sink::SinkFailure;
use a3s_event::testing::{Outcome, TestBus};
use a3s_event::{
    Broker, DeliverPolicy, Event, EventSink, InProcessSink, PublishReceipt, Result, Trigger, TriggerFilter,
};
use async_trait::async_trait;

use super::record::{Consumed, Record, Seen};
use super::worker::{Draft, Refusal, Running, one_of, panic_quietly};

const SECOND: Duration = Duration::from_secs(1);
const FIRED: &str = "fired";
const DURABLE: &str = "durable";
/// Name of the durable trigger's consumer.
pub(super) const CONSUMER: &str = "trigger-durable";

/// A broker with its triggers.
pub(super) struct Routing {
    t: TestBus,
    record: Record,
    broker: Arc<Broker>,
    /// Runs the durable trigger; `None` while its process is down.
    handle: Option<BrokerHandle>,
    fired: Fired,
    draft: Draft,
    /// Subject pattern of the durable trigger, which identifies its consumer together with its name.
    pattern: Option<String>,
    is_ordered: bool,
    /// One that drains while another one shortens it would not know.
    ack_wait: Duration,
    pub(super) is_deleted: bool,
}

impl Routing {
    /// Draws the triggers, and runs the durable one.
    pub(super) async fn start(t: &TestBus, record: &Record, draft: Draft) -> Outcome<Self> {
        let broker = Arc::new(Broker::new());
        let routes = Arc::clone(&broker);
        t.set_up(move |bus| bus.broker(Arc::clone(&routes)));
        let fired = Fired::new(t);
        broker.put_trigger(fired.trigger(t)).await?;

        let only = (t.draw(4) == 0).then(|| format!("k{}", t.draw(draft.keys)));
        let pattern = match &only {
            Some(key) => Some(format!("events.life.{key}")),
            None => (t.draw(2) == 0).then(|| "events.life.*".to_owned()),
        };
        let is_ordered = draft.is_stubborn || t.draw(3) > 0;
        record.lock().consumers.insert(CONSUMER.to_owned(), Consumed::new(is_ordered, only));
        let ack_wait = one_of(t, &[4 * SECOND, 30 * SECOND]);
        let mut routing = Self {
            t: t.clone(),
            record: record.clone(),
            broker,
            handle: None,
            fired,
            draft,
            pattern,
            is_ordered,
            ack_wait,
            is_deleted: false,
        };
        routing.put_durable().await?;
        routing.run().await?;
        Ok(routing)
    }

    /// Puts the durable trigger with new settings in the place of the old one, whose position it takes over.
    async fn put_durable(&self) -> Outcome {
        let Self { t, draft, .. } = self;
        let retries = if draft.is_stubborn { u32::MAX } else { one_of(t, &[0, 1, 2, 4]) };
        let backoff = match t.draw(2) {
            0 => Backoff::list([SECOND, 5 * SECOND]),
            _ => Backoff::exponential(SECOND, 10 * SECOND),
        };
        let mut settings = DeliverySettings::durable()
            .deliver_policy(DeliverPolicy::All)
            .retries(retries)
            .backoff(backoff)
            .timeout(if draft.is_stubborn { 100 * SECOND } else { one_of(t, &[100 * SECOND, 5 * SECOND]) })
            .ack_wait(self.ack_wait)
            .concurrency(if draft.is_stubborn { 2 } else { one_of(t, &[1, 2, 4]) });
        if self.is_ordered {
            settings = settings.ordered();
        }
        let filter = TriggerFilter { subject_pattern: self.pattern.clone(), ..TriggerFilter::default() };
        let sink = Sink { t: t.clone(), record: self.record.clone() };
        let trigger = Trigger::new(DURABLE, filter, Arc::new(sink)).with_delivery(settings);
        self.broker.put_trigger(trigger).await?;
        Ok(())
    }

    /// Runs the durable trigger, as often as it takes.
    async fn run(&mut self) -> Outcome {
        loop {
            match self.broker.run(self.t.bus()?).await {
                Ok(handle) => {
                    self.handle = Some(handle);
                    return Ok(());
                }
                Err(error) => {
                    assert!(error.is_retryable(), "{error:?}");
                    self.t.advance(5 * SECOND).await;
                }
            }
        }
    }

    /// Notes that a publish has routed its event.
    pub(super) fn note_published(&self, number: u64, receipt: &PublishReceipt) {
        if !receipt.duplicate {
            *self.fired.lock().routed.entry(number).or_default() += 1;
        }
    }

    pub(super) async fn step(&mut self) -> Outcome {
        if self.is_deleted {
            return Ok(());
        }
        match self.t.draw(6) {
            0 | 1 => self.restart().await,
            2 => self.crash().await,
            3 => self.replace().await,
            4 => self.remove().await,
            _ if self.t.draw(3) == 0 => self.delete().await,
            _ => Ok(()),
        }
    }

    /// Stops the durable trigger in order, and runs it again.
    async fn restart(&mut self) -> Outcome {
        self.t.note("shut the broker down");
        self.record.replaced(CONSUMER);
        if let Some(mut handle) = self.handle.take() {
            handle.shutdown().await;
        }
        self.record.restarted(CONSUMER, false);
        self.pause().await;
        self.run().await
    }

    /// Lets the process of the durable trigger crash, and runs it again.
    async fn crash(&mut self) -> Outcome {
        self.t.note("the broker crashes");
        self.record.disturb(|name| name == CONSUMER);
        self.handle.take();
        self.t.settle().await;
        self.record.restarted(CONSUMER, true);
        self.pause().await;
        self.run().await
    }

    async fn replace(&self) -> Outcome {
        self.t.note("replace the trigger");
        self.record.replaced(CONSUMER);
        self.put_durable().await
    }

    /// Removes the durable trigger, and adds it again.
    async fn remove(&self) -> Outcome {
        self.t.note("remove the trigger");
        self.broker.remove_trigger(DURABLE).await;
        self.pause().await;
        self.record.replaced(CONSUMER);
        self.put_durable().await
    }

    async fn pause(&self) {
        self.t.advance(one_of(&self.t, &[Duration::ZERO, SECOND, 40 * SECOND])).await;
    }

    /// Deletes the consumer of the durable trigger behind its back. The trigger must end, and the consumer not come
    /// back.
    async fn delete(&mut self) -> Outcome {
        // A trigger that waits for the end of the one that it replaces would create its consumer again.
        if self.record.lock().consumers[CONSUMER].is_being_replaced() {
            return Ok(());
        }
        self.t.note("delete the consumer of the trigger");
        for consumer in self.consumers().await {
            self.t.provider().unsubscribe(&consumer).await?;
            self.is_deleted = true;
            self.record.lock().consumers.get_mut(CONSUMER).unwrap().is_deleted = true;
        }
        Ok(())
    }

    /// Returns the stored names of the durable trigger's consumers.
    async fn consumers(&self) -> Vec<String> {
        let consumers = self.t.provider().consumers().await.unwrap();
        consumers
            .into_iter()
            .map(|consumer| consumer.name)
            .filter(|name| name.starts_with(CONSUMER))
            .collect()
    }

    /// Returns `true` if the durable trigger has settled everything.
    pub(super) async fn is_settled(&self) -> bool {
        let consumers = self.t.provider().consumers().await.unwrap();
        let mut own = consumers.iter().filter(|consumer| consumer.name.starts_with(CONSUMER));
        own.all(|consumer| consumer.lag == 0 && consumer.pending == 0)
    }

    /// Checks safety of the fire-and-forget trigger.
    pub(super) fn look(&self) -> Outcome {
        self.fired.look()
    }

    /// Checks that the triggers live without faults.
    pub(super) async fn end(&mut self) -> Outcome {
        self.fired.end(&self.broker)?;
        let handle = self.handle.as_mut().ok_or("the broker is down")?;
        let ended = handle.ended();
        if !self.is_deleted {
            return match ended.first() {
                Some(ended) => Err(format!("the durable trigger ended: {}", ended.reason).into()),
                None if self.is_settled().await => Ok(()),
                None => Err("the durable trigger has not settled everything".into()),
            };
        }
        if ended.is_empty() {
            return Err("the consumer of the durable trigger was deleted, and the trigger runs".into());
        }
        match self.consumers().await.first() {
            Some(consumer) => Err(format!("{consumer} was deleted and came back").into()),
            None => Ok(()),
        }
    }
}

/// The sink of the durable trigger.
struct Sink {
    t: TestBus,
    record: Record,
}

#[async_trait]
impl EventSink for Sink {
    async fn deliver(&self, event: &Event) -> Result<()> {
        let sequence = self.record.sequence_of(&self.t, event.payload.as_u64().unwrap()).await;
        let seen = Seen::of(event, sequence);
        let running = Running::begin(&self.t, &self.record, CONSUMER, &seen).await;
        running.attempt().await.map_err(|refusal| {
            let failure = match refusal {
                Refusal::NotNow => SinkFailure::retry("not now"),
                Refusal::Never => SinkFailure::fatal("never"),
            };
            failure.into_error(self.name())
        })
    }

    fn name(&self) -> &'static str {
        "recorded"
    }
}

/// What the fire-and-forget trigger did.
#[derive(Clone)]
struct Fired {
    t: TestBus,
    /// True if it must deliver in the order of routing.
    is_ordered: bool,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
struct Log {
    /// How often each event was routed.
    routed: BTreeMap<u64, u64>,
    accepted: Vec<u64>,
    letters: Vec<u64>,
    /// Letters that their sink has refused.
    refused: u64,
}

impl Fired {
    fn new(t: &TestBus) -> Self {
        Self { t: t.clone(), is_ordered: t.draw(2) == 0, log: Arc::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    fn trigger(&self, t: &TestBus) -> a3s_event::broker::TriggerSpec {
        let (sink, letters) = (self.clone(), self.clone());
        let sink = InProcessSink::new(FIRED, move |event| sink.clone().accept(event));
        let letters = InProcessSink::new("letters", move |event| letters.clone().keep(event));
        let mut settings = DeliverySettings::fire_and_forget()
            .retries(one_of(t, &[0, 1, 3]))
            .backoff(Backoff::list([SECOND]))
            .timeout(5 * SECOND)
            .concurrency(one_of(t, &[1, 2, 32]))
            .queue(one_of(t, &[0, 2, 1_024]))
            .dead_letter_sink(Arc::new(letters));
        if self.is_ordered {
            settings = settings.ordered();
        }
        Trigger::new(FIRED, TriggerFilter::default(), Arc::new(sink)).with_delivery(settings)
    }

    async fn accept(self, event: Event) -> Result<()> {
        match self.t.draw(12) {
            0 => return Err(SinkFailure::retry("not now").into_error(FIRED)),
            1 => return Err(SinkFailure::fatal("never").into_error(FIRED)),
            2 => tokio::time::sleep(20 * SECOND).await,
            3 => tokio::time::sleep(3 * SECOND).await,
            4 => panic_quietly(),
            _ => {}
        }
        self.lock().accepted.push(event.payload.as_u64().unwrap());
        Ok(())
    }

    async fn keep(self, event: Event) -> Result<()> {
        let mut log = self.lock();
        if self.t.draw(6) == 0 {
            log.refused += 1;
            return Err(SinkFailure::retry("no letter").into_error("letters"));
        }
        log.letters.push(event.payload.as_u64().unwrap());
        Ok(())
    }

    /// Checks that nothing was delivered that was not routed, nothing twice, and everything in order.
    fn look(&self) -> Outcome {
        let log = self.lock();
        let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
        log.accepted.iter().chain(&log.letters).for_each(|number| *ends.entry(*number).or_default() += 1);
        for (number, ends) in ends {
            let routed = log.routed.get(&number).copied().unwrap_or(0);
            if ends > routed {
                return Err(format!("event {number} was routed {routed} times and fired {ends} times").into());
            }
        }
        let is_in_order = log.accepted.is_sorted();
        if self.is_ordered && !is_in_order {
            return Err(format!("events were fired out of order: {:?}", log.accepted).into());
        }
        Ok(())
    }

    /// Checks that each routed event has ended in one way, and that the counters say so.
    fn end(&self, broker: &Broker) -> Outcome {
        let log = self.lock();
        let stats = broker.trigger_stats(FIRED).ok_or("the trigger is gone")?;
        let routed: u64 = log.routed.values().sum();
        let (accepted, letters) = (log.accepted.len() as u64, log.letters.len() as u64);
        let is_whole = stats.delivered + stats.failed + stats.dropped == routed && stats.pending == 0;
        let agrees = stats.delivered == accepted
            && stats.dead_lettered == letters
            && stats.failed == letters + log.refused;
        if is_whole && agrees {
            return Ok(());
        }
        let refused = log.refused;
        Err(format!("{routed} routed, {accepted} accepted, {letters} letters, {refused} refused: {stats:?}")
            .into())
    }
}
