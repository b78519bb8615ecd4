//! Durable triggers on every provider: across restarts, changes, broken dead letters, and a process that is killed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use a3s_event::broker::{DeliverySettings, TriggerSpec};
use a3s_event::consumer::Backoff;
use a3s_event::{
    Broker, CollectorSink, DeliverPolicy, DlqHandler, Event, EventBus, EventError, EventProvider, EventSink,
    FailingSink, InProcessSink, MemoryProvider, ProviderInfo, PublishOptions, PublishRequest, Subscription,
    TopicSink, Trigger, TriggerFilter,
};

use crate::backend::{Backend, on_every_provider};
use crate::{event, eventually};

on_every_provider! {
    a_durable_trigger_goes_on_where_it_was
    an_event_stays_while_its_dead_letter_is_not_taken
    an_attempt_without_an_answer_stores_nothing_twice
    the_next_process_stores_nothing_twice_either
    what_never_reached_the_sink_is_counted_as_failed_too
}

/// A trigger for everything in the stream, tried again soon.
fn durable(sink: Arc<dyn EventSink>) -> TriggerSpec {
    let settings = DeliverySettings::durable()
        .deliver_policy(DeliverPolicy::All)
        .ack_wait(Duration::from_secs(1))
        .backoff(Backoff::list([Duration::from_millis(5)]));
    Trigger::new("t", TriggerFilter::by_subject("events.market.>"), sink).with_delivery(settings)
}

async fn publish(bus: &EventBus, numbers: impl Iterator<Item = u64>) {
    for number in numbers {
        bus.publish_event(&event("events.market.a", number)).await.unwrap();
    }
}

async fn numbers(sink: &CollectorSink) -> Vec<u64> {
    sink.events().await.iter().map(|event| event.payload["number"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn a_duplicate_is_routed_to_nobody() {
    let sink = Arc::new(CollectorSink::new("sink"));
    let broker = Arc::new(Broker::new());
    let trigger = Trigger::new("t", TriggerFilter::by_subject("events.>"), sink.clone());
    broker.add_trigger(trigger).await;
    let mut bus = EventBus::new(MemoryProvider::default());
    bus.set_broker(broker);
    let options = PublishOptions { msg_id: Some("order-7".into()), ..PublishOptions::default() };
    let first = bus.publish_event_with_receipt(&event("events.a", 1), &options).await.unwrap();
    let again = bus.publish_event_with_receipt(&event("events.a", 2), &options).await.unwrap();
    assert_eq!((first.duplicate, again.duplicate, again.sequence), (false, true, first.sequence));
    let (third, fourth) = (event("events.a", 3), event("events.a", 4));
    let batch = [PublishRequest::new(&third, options), PublishRequest::from(&fourth)];
    for receipt in bus.publish_batch_with_options(&batch).await {
        receipt.unwrap();
    }
    assert_eq!(numbers(&sink).await, [1, 4], "each stored event once, and no duplicate");
}

async fn settled(bus: &EventBus) -> bool {
    bus.consumers().await.unwrap().iter().all(|consumer| consumer.lag + consumer.pending == 0)
}

async fn a_durable_trigger_goes_on_where_it_was(backend: Backend) {
    let sink = Arc::new(CollectorSink::new("sink"));
    let bus = Arc::new(backend.bus().await);
    let broker = Arc::new(Broker::new());
    broker.put_trigger(durable(sink.clone())).await.unwrap();
    let mut running = broker.run(Arc::clone(&bus)).await.unwrap();
    publish(&bus, 1..=3).await;
    eventually("three are there", async || sink.count().await == 3 && settled(&bus).await).await;

    // While it is gone, and while its process is gone.
    assert!(broker.remove_trigger("t").await);
    running.synced().await.unwrap();
    publish(&bus, 4..=5).await;
    running.shutdown().await;
    running.shutdown().await;
    assert!(running.synced().await.unwrap_err().is_closed());
    drop((running, broker));

    let bus = Arc::new(backend.bus().await);
    let broker = Arc::new(Broker::new());
    let mut running = broker.run(Arc::clone(&bus)).await.unwrap();
    publish(&bus, 6..=6).await;
    broker.put_trigger(durable(sink.clone())).await.unwrap();
    running.synced().await.unwrap();
    publish(&bus, 7..=7).await;
    eventually("all are there", async || sink.count().await >= 7 && settled(&bus).await).await;
    assert_eq!(numbers(&sink).await, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(broker.trigger_stats("t").unwrap().delivered, 4);

    // Forgotten, it begins anew; in use, it is not forgotten.
    running.forget("t", Some("events.market.>")).await.unwrap_err();
    broker.remove_trigger("t").await;
    running.synced().await.unwrap();
    running.forget("t", Some("events.market.>")).await.unwrap();
    broker.put_trigger(durable(sink.clone())).await.unwrap();
    eventually("all came again", async || sink.count().await == 14).await;
    running.shutdown().await;
}

async fn an_event_stays_while_its_dead_letter_is_not_taken(backend: Backend) {
    let bus = Arc::new(backend.bus().await);
    let taken = Arc::new(Mutex::new(Vec::new()));
    let refusals = Arc::new(Mutex::new(2));
    let letters = InProcessSink::new("letters", {
        let taken = Arc::clone(&taken);
        move |letter: Event| {
            let (taken, refusals) = (Arc::clone(&taken), Arc::clone(&refusals));
            async move {
                let mut refusals = refusals.lock().unwrap();
                if *refusals > 0 {
                    *refusals -= 1;
                    return Err(EventError::Connection("no letters now".to_owned()));
                }
                taken.lock().unwrap().push(letter.metadata["dlq_reason"].clone());
                Ok(())
            }
        }
    });
    let settings = DeliverySettings::durable().retries(0).dead_letter_sink(Arc::new(letters));
    let trigger =
        Trigger::new("t", TriggerFilter::default(), Arc::new(FailingSink::new("broken", "on purpose")));
    let broker = Arc::new(Broker::new());
    broker.put_trigger(trigger.with_delivery(settings)).await.unwrap();
    let mut running = broker.run(Arc::clone(&bus)).await.unwrap();
    publish(&bus, 1..=1).await;
    eventually("the letter was refused", async || !settled(&bus).await).await;
    assert!(taken.lock().unwrap().is_empty());
    eventually("it is settled", async || settled(&bus).await).await;
    assert_eq!(*taken.lock().unwrap(), ["Sink delivery failed for 'broken': on purpose"]);
    running.shutdown().await;
}

/// A provider that stores, and whose answer is then lost this often: as an error, or in a wait without an end.
struct Answerless {
    inner: Arc<dyn EventProvider>,
    lost: AtomicUsize,
    hangs: bool,
}

impl Answerless {
    fn new(inner: Arc<dyn EventProvider>, lost: usize, hangs: bool) -> Arc<Self> {
        Arc::new(Self { inner, lost: AtomicUsize::new(lost), hangs })
    }

    async fn answer(&self, sequence: u64) -> a3s_event::Result<u64> {
        let less = |lost: usize| lost.checked_sub(1);
        if self.lost.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_err() {
            return Ok(sequence);
        }
        if self.hangs {
            std::future::pending::<()>().await;
        }
        Err(EventError::Timeout("no answer, as it happens".to_owned()))
    }
}

#[async_trait::async_trait]
impl EventProvider for Answerless {
    async fn publish(&self, event: &Event) -> a3s_event::Result<u64> {
        self.answer(self.inner.publish(event).await?).await
    }
    async fn publish_with_options(&self, event: &Event, options: &PublishOptions) -> a3s_event::Result<u64> {
        self.answer(self.inner.publish_with_options(event, options).await?).await
    }
    async fn subscribe_durable(&self, name: &str, filter: &str) -> a3s_event::Result<Box<dyn Subscription>> {
        self.inner.subscribe_durable(name, filter).await
    }
    async fn subscribe(&self, filter: &str) -> a3s_event::Result<Box<dyn Subscription>> {
        self.inner.subscribe(filter).await
    }
    async fn history(&self, filter: Option<&str>, limit: usize) -> a3s_event::Result<Vec<Event>> {
        self.inner.history(filter, limit).await
    }
    async fn unsubscribe(&self, name: &str) -> a3s_event::Result<()> {
        self.inner.unsubscribe(name).await
    }
    async fn info(&self) -> a3s_event::Result<ProviderInfo> {
        self.inner.info().await
    }
    fn name(&self) -> &str {
        self.inner.name()
    }
}

/// The numbers of what is stored, oldest first, with the triggers that gave them up.
async fn stored(provider: &dyn EventProvider) -> Vec<(u64, Option<String>)> {
    let events = provider.history(None, 100).await.unwrap();
    let shown = |event: &Event| {
        (event.payload["number"].as_u64().unwrap(), event.metadata.get("dlq_trigger").cloned())
    };
    events.iter().rev().map(shown).collect()
}

async fn an_attempt_without_an_answer_stores_nothing_twice(backend: Backend) {
    let target = backend.events().await;
    let topic = Arc::new(TopicSink::new("topic", Answerless::new(Arc::clone(&target), 3, false)));
    let mut bus = EventBus::new(MemoryProvider::default());
    let broker = Arc::new(Broker::new());
    bus.set_broker(Arc::clone(&broker));
    let bus = Arc::new(bus);

    // The same event twice in the stream is two deliveries, and each has an attempt without an answer.
    broker.put_trigger(durable(topic.clone())).await.unwrap();
    let mut running = broker.run(Arc::clone(&bus)).await.unwrap();
    let twice = event("events.market.a", 2);
    for event in [&event("events.market.a", 1), &twice, &twice] {
        bus.publish_event(event).await.unwrap();
    }
    eventually("they are settled", async || settled(&bus).await).await;
    running.shutdown().await;
    assert_eq!(stored(&*target).await, [1, 2, 2].map(|number| (number, None)));
    assert_eq!(broker.trigger_stats("t").unwrap().retried, 3);

    // Fire-and-forget the same; and a dead letter of each of two triggers.
    broker.remove_trigger("t").await;
    let soon = || DeliverySettings::fire_and_forget().backoff(Backoff::list([Duration::from_millis(5)]));
    let topic = Arc::new(TopicSink::new("topic", Answerless::new(Arc::clone(&target), 2, false)));
    let trigger = Trigger::new("t", TriggerFilter::default(), topic);
    broker.put_trigger(trigger.with_delivery(soon().retries(1))).await.unwrap();
    for event in [event("events.market.a", 3), event("events.market.a", 4)] {
        bus.publish_event(&event).await.unwrap();
    }
    broker.remove_trigger("t").await;
    assert_eq!(stored(&*target).await[3..], [3, 4].map(|number| (number, None)));

    let letters = Arc::new(TopicSink::new("letters", Answerless::new(Arc::clone(&target), 2, false)));
    let broken: Arc<dyn EventSink> = Arc::new(FailingSink::new("broken", "on purpose"));
    for name in ["a", "b"] {
        let settings = DeliverySettings::durable().retries(0).dead_letter_sink(letters.clone());
        let trigger = Trigger::new(name, TriggerFilter::default(), Arc::clone(&broken));
        broker.put_trigger(trigger.with_delivery(settings.ack_wait(Duration::from_secs(1)))).await.unwrap();
    }
    let mut running = broker.run(Arc::clone(&bus)).await.unwrap();
    bus.publish_event(&event("events.market.a", 5)).await.unwrap();
    eventually("both are given up", async || broker.stats().dead_lettered == 2).await;
    running.shutdown().await;
    let mut given_up = stored(&*target).await.split_off(5);
    given_up.sort();
    assert_eq!(given_up, ["a", "b"].map(|name| (5, Some(name.to_owned()))));
}

async fn the_next_process_stores_nothing_twice_either(backend: Backend) {
    let target = Arc::new(MemoryProvider::default());
    for (lost, published) in [(1, 1..=1), (0, 2..=2)] {
        // What this process holds when it ends, the next one gets again.
        let topic = TopicSink::new("topic", Answerless::new(target.clone(), lost, true));
        let bus = Arc::new(backend.bus().await);
        let broker = Arc::new(Broker::new());
        broker.put_trigger(durable(Arc::new(topic))).await.unwrap();
        let running = broker.run(Arc::clone(&bus)).await.unwrap();
        publish(&bus, published).await;
        if lost == 1 {
            eventually("it is stored", async || target.info().await.unwrap().messages == 1).await;
        } else {
            eventually("all is settled", async || settled(&bus).await).await;
            assert_eq!(broker.trigger_stats("t").unwrap().delivered, 2);
        }
        drop(running);
    }
    let mut numbers: Vec<_> = stored(&*target).await.into_iter().map(|(number, _)| number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2]);
}

async fn what_never_reached_the_sink_is_counted_as_failed_too(backend: Backend) {
    let bus = Arc::new(backend.bus().await);
    let kept = Arc::new(CollectorSink::new("letters"));
    let broker = Arc::new(Broker::new());
    // The dead letters of one go to the bus, those of the other to a sink.
    for (name, letters) in [("to-bus", None), ("to-sink", Some(kept.clone()))] {
        let mut settings = DeliverySettings::durable().retries(0);
        if let Some(letters) = letters {
            settings = settings.dead_letter_sink(letters);
        }
        let sink = Arc::new(FailingSink::new("broken", "on purpose"));
        let trigger = Trigger::new(name, TriggerFilter::default(), sink);
        broker.put_trigger(trigger.with_delivery(settings)).await.unwrap();
    }
    let mut running = broker.run(Arc::clone(&bus)).await.unwrap();
    let undecodable = backend.store_undecodable("events.market.a", b"no event").await;
    publish(&bus, 1..=1).await;
    let expected = 1 + u64::from(undecodable.is_some());
    eventually("both have given all up", async || {
        let failed = ["to-bus", "to-sink"].map(|name| broker.trigger_stats(name).unwrap().failed);
        failed == [expected; 2] && settled(&bus).await
    })
    .await;
    for name in ["to-bus", "to-sink"] {
        let stats = broker.trigger_stats(name).unwrap();
        assert_eq!((stats.delivered, stats.failed, stats.dead_lettered), (0, expected, expected), "{name}");
    }
    assert_eq!(backend.letters().await.count().await.unwrap() as u64, expected);
    assert_eq!(kept.count().await as u64, expected);
    running.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_loop_through_the_stream_ends_in_the_dead_letters() {
    let provider = Arc::new(MemoryProvider::default());
    let bus = Arc::new(EventBus::from_provider(provider.clone()));
    let letters = Arc::new(CollectorSink::new("letters"));
    let broker = Arc::new(Broker::new().with_dead_letter_sink(letters.clone()));
    broker.put_trigger(durable(Arc::new(TopicSink::new("loop", provider.clone())))).await.unwrap();
    let mut running = broker.run(Arc::clone(&bus)).await.unwrap();
    publish(&bus, 1..=1).await;
    eventually("it ends", async || letters.count().await == 1 && settled(&bus).await).await;
    assert_eq!(bus.info().await.unwrap().messages, 17);
    assert_eq!(letters.events().await[0].metadata["dlq_reason"], "hop_limit");
    running.shutdown().await;
}

#[cfg(feature = "encryption")]
#[tokio::test(start_paused = true)]
async fn encrypted_payloads_are_clear_in_the_process_and_encrypted_outside() {
    use a3s_event::{Aes256GcmEncryptor, EncryptedPayload, EventProvider};

    for is_durable in [false, true] {
        let outside = Arc::new(MemoryProvider::default());
        let inside = Arc::new(CollectorSink::new("inside"));
        let letters = Arc::new(CollectorSink::new("letters"));
        let broker = Arc::new(Broker::new().with_dead_letter_sink(letters.clone()));
        let sinks: [(&str, Arc<dyn EventSink>); 3] = [
            ("inside", inside.clone()),
            ("outside", Arc::new(TopicSink::new("outside", outside.clone()))),
            ("broken", Arc::new(FailingSink::new("broken", "on purpose"))),
        ];
        for (name, sink) in sinks {
            let kind =
                if is_durable { DeliverySettings::durable() } else { DeliverySettings::fire_and_forget() };
            let trigger = Trigger::new(name, TriggerFilter::default(), sink);
            broker.put_trigger(trigger.with_delivery(kind.retries(0))).await.unwrap();
        }
        let mut bus = EventBus::new(MemoryProvider::default());
        bus.set_encryptor(Arc::new(Aes256GcmEncryptor::new("k", &[7; 32])));
        bus.set_broker(Arc::clone(&broker));
        let bus = Arc::new(bus);
        let mut running = broker.run(Arc::clone(&bus)).await.unwrap();
        publish(&bus, 1..=1).await;
        for result in bus.publish_batch(&[event("events.market.a", 2)]).await {
            result.unwrap();
        }
        eventually("all are there", async || {
            let stats = broker.stats();
            (stats.delivered, stats.dead_lettered) == (4, 2)
        })
        .await;
        assert_eq!(numbers(&inside).await, [1, 2]);
        for stored in outside.history(None, 10).await.unwrap().iter().chain(&letters.events().await) {
            assert!(EncryptedPayload::is_encrypted(&stored.payload), "{stored:?}");
        }
        assert_eq!((outside.info().await.unwrap().messages, letters.count().await), (2, 2));
        running.shutdown().await;
    }
}

#[cfg(any(feature = "nats", feature = "sqlite"))]
mod killed {
    use super::*;
    use crate::backend::on_every_server;
    use crate::consumer::killed::bus_of;
    use crate::process::{Process, Role, role_to_play, say};

    const EVENTS: u64 = 60;
    const LIVES: u64 = 4;

    on_every_server! {
        nothing_is_lost_by_a_process_that_is_killed
    }

    /// Takes events, and tells of each before it is settled. It never gets on with the one that its name counts to.
    #[test]
    #[ignore = "what the other process runs"]
    fn role() {
        let Some(Role { target, name, .. }) = role_to_play() else { return };
        let last: Option<u64> = name.parse().ok();
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let taken = Arc::new(AtomicU64::new(0));
            let sink = InProcessSink::new("sink", move |event: Event| {
                let is_last = last == Some(taken.fetch_add(1, Ordering::Relaxed) + 1);
                async move {
                    say(&format!("took {}", event.payload["number"]));
                    if is_last {
                        say("hangs");
                        std::future::pending::<()>().await;
                    }
                    tokio::time::sleep(Duration::from_millis(40)).await;
                    say(&format!("settles {}", event.payload["number"]));
                    Ok(())
                }
            });
            let broker = Arc::new(Broker::new());
            broker.put_trigger(durable(Arc::new(sink))).await.unwrap();
            let _running = broker.run(Arc::new(bus_of(&target).await)).await.unwrap();
            say("ready");
            std::future::pending::<()>().await;
        });
    }

    fn numbers_of(said: &[String], word: &str) -> BTreeSet<u64> {
        said.iter().filter_map(|line| line.strip_prefix(word)?.trim().parse().ok()).collect()
    }

    async fn nothing_is_lost_by_a_process_that_is_killed(backend: Backend) {
        let bus = Arc::new(backend.bus().await);
        publish(&bus, 1..=EVENTS).await;
        let (mut taken, mut in_the_middle) = (BTreeSet::new(), BTreeSet::new());
        for life in 1..=LIVES {
            let target = backend.urls.as_ref().unwrap().join(" ");
            let said = tokio::task::spawn_blocking(move || {
                let start = |name| Process::start("routing::killed::role", "route", target, name);
                if life == LIVES {
                    // Between a delivery and its settlement, however slow the machine is.
                    return start("2").kill_when("hangs");
                }
                let process = start("");
                process.expect("ready");
                process.kill_after(Duration::from_millis(90 + 37 * life))
            });
            let said = said.await.unwrap();
            let settling = numbers_of(&said, "settles");
            in_the_middle.extend(&numbers_of(&said, "took") - &settling);
            taken.extend(settling);
        }
        assert!(!in_the_middle.is_empty(), "no kill fell between a delivery and its settlement");
        assert!((taken.len() as u64) < EVENTS, "nothing was left for the next process");

        let sink = Arc::new(CollectorSink::new("sink"));
        let broker = Arc::new(Broker::new());
        broker.put_trigger(durable(sink.clone())).await.unwrap();
        let mut running = broker.run(Arc::clone(&bus)).await.unwrap();
        eventually("the rest is there", async || settled(&bus).await).await;
        running.shutdown().await;
        taken.extend(numbers(&sink).await);
        assert_eq!(taken, (1..=EVENTS).collect(), "killed in the middle of {in_the_middle:?}");
    }
}
