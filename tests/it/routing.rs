//! Durable triggers on every provider: across restarts, changes, broken dead letters, and a process that is killed.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use a3s_event::broker::{DeliverySettings, TriggerSpec};
use a3s_event::consumer::Backoff;
use a3s_event::{
    Broker, CollectorSink, DeliverPolicy, DlqHandler, Event, EventBus, EventError, EventSink, FailingSink,
    InProcessSink, MemoryProvider, TopicSink, Trigger, TriggerFilter,
};

use crate::backend::{Backend, on_every_provider};
use crate::{event, eventually};

on_every_provider! {
    a_durable_trigger_goes_on_where_it_was
    an_event_stays_while_its_dead_letter_is_not_taken
    what_never_reached_the_sink_is_counted_as_failed_too
}

/// A trigger for everything in the stream, tried again soon.
fn durable(sink: Arc<dyn EventSink>) -> TriggerSpec {
    let settings = DeliverySettings::durable()
        .start(DeliverPolicy::All)
        .ack_wait_secs(1)
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

    /// Takes events, and tells of each before it is settled.
    #[test]
    #[ignore = "what the other process runs"]
    fn role() {
        let Some(Role { target, .. }) = role_to_play() else { return };
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let sink = InProcessSink::new("sink", |event: Event| async move {
                say(&format!("took {}", event.payload["number"]));
                // Long enough that a kill falls between the delivery and its settlement.
                tokio::time::sleep(Duration::from_millis(40)).await;
                say(&format!("settles {}", event.payload["number"]));
                Ok(())
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
                let process = Process::start("routing::killed::role", "route", target, "");
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
