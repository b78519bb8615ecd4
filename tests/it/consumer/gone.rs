//! Consumers that are deleted or lost while they run, and streams that are replaced.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use a3s_event::consumer::{Backoff, ConsumerHandle, ConsumerState, RetryPolicy};
use a3s_event::{
    DeliverPolicy, Delivery, ErrorKind, EventBus, EventError, SubscribeOptions, SubscriptionEnd,
};

use super::scripted::{Script, Scripted};
use super::support::{Handled, counted, publish};
use crate::backend::{Backend, on_every_provider};
use crate::{event, eventually, number};

on_every_provider! {
    a_deleted_consumer_ends_and_is_not_made_again
}

async fn a_deleted_consumer_ends_and_is_not_made_again(backend: Backend) {
    for deliver_policy in [DeliverPolicy::All, DeliverPolicy::New] {
        let bus = backend.bus().await;
        let handled = Arc::new(Handled::default());
        let options = SubscribeOptions { deliver_policy, ..SubscribeOptions::default() };
        let consumer = counted(bus.consumer("worker").subject("events.>").options(options), &handled).await;
        publish(&bus, "events.a.b", 1..=5).await;
        eventually("five are handled", async || handled.events() == 5).await;
        let name = bus.consumers().await.unwrap()[0].name.clone();
        bus.provider().unsubscribe(&name).await.unwrap();
        let error = end_of(&consumer).await;
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(error.to_string().contains(&name), "{error}");
        assert_eq!(consumer.state(), ConsumerState::Failed);
        assert!(bus.consumers().await.unwrap().is_empty(), "nobody made it again");
        assert!(handled.all_once());
    }
}

/// The error that ends a consumer.
async fn end_of(consumer: &ConsumerHandle) -> EventError {
    let ended = tokio::time::timeout(Duration::from_secs(30), consumer.stopped()).await;
    ended.expect("it goes on").unwrap_err()
}

/// Handles what comes, and notes it in order.
async fn noting(bus: &EventBus, options: Option<SubscribeOptions>) -> (ConsumerHandle, Arc<Mutex<Vec<u64>>>) {
    let noted = Arc::new(Mutex::new(Vec::new()));
    let noting = Arc::clone(&noted);
    let mut consumer = bus.consumer("worker").subject("events.>");
    if let Some(options) = options {
        consumer = consumer.options(options);
    }
    let handler = move |delivery: Delivery| {
        noting.lock().unwrap().push(number(&delivery));
        async { Ok(()) }
    };
    (consumer.handle(handler).await.unwrap(), noted)
}

fn scripted(script: Script) -> (Arc<Script>, EventBus) {
    let script = Arc::new(script);
    let bus = EventBus::new(Scripted(Arc::clone(&script)));
    (script, bus)
}

async fn until_noted(noted: &Mutex<Vec<u64>>, count: usize) {
    eventually("enough are handled", async || noted.lock().unwrap().len() >= count).await;
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_the_provider_tells_ends_the_consumer() {
    // Also where somebody has made it again meanwhile, and where the provider lists no consumers.
    for lists in [true, false] {
        let (script, bus) = scripted(Script { lists, ..Script::default() });
        let (consumer, noted) = noting(&bus, None).await;
        publish(&bus, "events.a", 1..=20).await;
        until_noted(&noted, 20).await;
        script.end(Some(SubscriptionEnd::Deleted)).await;
        let error = end_of(&consumer).await.to_string();
        assert!(error.contains("worker-") && error.contains("was deleted"), "{error}");
        assert_eq!(noted.lock().unwrap().len(), 20);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_consumer_goes_on_behind_what_was_handled() {
    for moves in [true, false] {
        for deliver_policy in [DeliverPolicy::All, DeliverPolicy::New] {
            let (script, bus) = scripted(Script { moves, ..Script::default() });
            let options = SubscribeOptions { deliver_policy: deliver_policy.clone(), ..Default::default() };
            let (consumer, noted) = noting(&bus, Some(options)).await;
            publish(&bus, "events.a", 1..=20).await;
            until_noted(&noted, 20).await;
            eventually("they are settled", async || consumer.stats().handled == 20).await;
            script.end(Some(SubscriptionEnd::Lost)).await;
            publish(&bus, "events.a", 21..=25).await;
            until_noted(&noted, 25).await;
            assert_eq!(*noted.lock().unwrap(), (1..=25).collect::<Vec<_>>(), "each once, none lost");
            assert_eq!(consumer.state(), ConsumerState::Running);
            let opened_with = script.last_opened().deliver_policy;
            // Moved, so that whoever opens it later finds the same policy.
            let made_with = match moves {
                true => deliver_policy,
                false => DeliverPolicy::ByStartSequence { sequence: 21 },
            };
            assert_eq!(opened_with, made_with);
            consumer.shutdown().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_or_ran_when_its_consumer_was_lost_comes_again() {
    let (script, bus) = scripted(Script::default());
    let handled = Arc::new(Handled::default());
    let counting = Arc::clone(&handled);
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .concurrency(2)
        .policy(RetryPolicy::default().no_timeout().backoff(Backoff::list([Duration::from_secs(60)])))
        .handle(move |delivery: Delivery| {
            let handled = Arc::clone(&counting);
            async move {
                // The third is refused once, the fifth takes long.
                if number(&delivery) == 3 && delivery.num_delivered() == 1 && handled.events() < 10 {
                    return Err("not yet".into());
                }
                if number(&delivery) == 5 && handled.events() < 10 {
                    tokio::time::sleep(Duration::from_secs(3_600)).await;
                    return Err("interrupted".into());
                }
                handled.count(number(&delivery));
                Ok(())
            }
        })
        .await
        .unwrap();
    publish(&bus, "events.a", 1..=20).await;
    eventually("all but two are handled", async || handled.events() == 18).await;
    script.end(Some(SubscriptionEnd::Lost)).await;
    publish(&bus, "events.a", 21..=25).await;
    eventually("the others are handled too", async || handled.events() == 25).await;
    drop(consumer);
}

#[tokio::test(start_paused = true)]
async fn a_consumer_whose_position_nobody_knows_ends() {
    let (script, bus) = scripted(Script::default());
    let (consumer, noted) = noting(&bus, None).await;
    script.end(Some(SubscriptionEnd::Lost)).await;
    publish(&bus, "events.a", 1..=5).await;
    let error = end_of(&consumer).await;
    assert!(error.to_string().contains("lost"), "{error}");
    assert_eq!((error.kind(), noted.lock().unwrap().len()), (ErrorKind::NotFound, 0));
}

#[tokio::test(start_paused = true)]
async fn an_end_without_a_reason_is_found_out_about_or_ends_the_consumer() {
    for lists in [true, false] {
        let (script, bus) = scripted(Script { lists, ..Script::default() });
        let (consumer, noted) = noting(&bus, None).await;
        publish(&bus, "events.a", 1..=5).await;
        until_noted(&noted, 5).await;
        script.end(None).await;
        let error = end_of(&consumer).await;
        let kind = if lists { ErrorKind::NotFound } else { ErrorKind::Backend };
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(noted.lock().unwrap().len(), 5, "nothing again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_replaced_is_handled_from_its_start() {
    for durable in [true, false] {
        for deliver_policy in [DeliverPolicy::All, DeliverPolicy::New] {
            let (script, bus) = scripted(Script { moves: durable, ..Script::default() });
            let noted = Arc::new(Mutex::new(Vec::new()));
            let note = Arc::clone(&noted);
            let options = SubscribeOptions { deliver_policy, ..SubscribeOptions::default() };
            let mut consumer = bus.consumer("worker").subject("events.>").options(options);
            if !durable {
                consumer = consumer.ephemeral();
            }
            let handler = move |delivery: Delivery| {
                note.lock().unwrap().push(number(&delivery));
                async { Ok(()) }
            };
            let consumer = consumer.handle(handler).await.unwrap();
            publish(&bus, "events.a", 1..=20).await;
            until_noted(&noted, 20).await;
            let anew: Vec<_> = (101..=110).map(|number| event("events.a", number)).collect();
            script.replace_stream(&anew).await;
            until_noted(&noted, 30).await;
            publish(&bus, "events.a", 111..=111).await;
            until_noted(&noted, 31).await;
            assert_eq!(*noted.lock().unwrap(), (1..=20).chain(101..=111).collect::<Vec<_>>());
            consumer.shutdown().await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_ephemeral_consumer_that_is_lost_early_misses_nothing() {
    let (script, bus) = scripted(Script::default());
    let noted = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&noted);
    publish(&bus, "events.a", 1..=3).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let options = SubscribeOptions { deliver_policy: DeliverPolicy::New, ..SubscribeOptions::default() };
    let consumer = bus.consumer("worker").subject("events.>").ephemeral().options(options);
    let handler = move |delivery: Delivery| {
        note.lock().unwrap().push(number(&delivery));
        async { Ok(()) }
    };
    let consumer = consumer.handle(handler).await.unwrap();
    // So many errors in a row that it is opened again.
    script.fails.send_replace(true);
    eventually("it has trouble", async || consumer.state() == ConsumerState::Retrying).await;
    publish(&bus, "events.a", 4..=6).await;
    eventually("it was opened again", async || script.opened.lock().unwrap().len() > 1).await;
    script.fails.send_replace(false);
    until_noted(&noted, 3).await;
    assert_eq!(*noted.lock().unwrap(), [4, 5, 6]);
    consumer.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_fails_shows_in_the_state_until_it_works_again() {
    let (script, bus) = scripted(Script::default());
    let (consumer, noted) = noting(&bus, None).await;
    assert_eq!((consumer.state(), consumer.last_error()), (ConsumerState::Running, None));
    script.fails.send_replace(true);
    eventually("it says so", async || consumer.state() == ConsumerState::Retrying).await;
    assert!(consumer.last_error().is_some_and(|error| error.contains("no server")));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(consumer.state(), ConsumerState::Retrying, "as long as it fails");
    script.fails.send_replace(false);
    publish(&bus, "events.a", 1..=5).await;
    until_noted(&noted, 5).await;
    eventually("it recovers", async || consumer.state() == ConsumerState::Running).await;
    assert_eq!(consumer.last_error(), None);
    consumer.shutdown().await.unwrap();
}

#[cfg(feature = "routing")]
#[tokio::test(start_paused = true)]
async fn a_durable_trigger_whose_consumer_was_deleted_ends_and_says_so() {
    use a3s_event::broker::DeliverySettings;
    use a3s_event::{Broker, CollectorSink, Trigger, TriggerFilter};

    let (script, bus) = scripted(Script::default());
    let bus = Arc::new(bus);
    let broker = Arc::new(Broker::new());
    let sink = Arc::new(CollectorSink::new("sink"));
    let trigger = || {
        Trigger::new("orders", TriggerFilter::by_subject("events.>"), sink.clone())
            .with_delivery(DeliverySettings::durable().deliver_policy(DeliverPolicy::All))
    };
    broker.put_trigger(trigger()).await.unwrap();
    let mut handle = broker.run(Arc::clone(&bus)).await.unwrap();
    publish(&bus, "events.a", 1..=5).await;
    eventually("five are delivered", async || sink.count().await == 5).await;
    script.end(Some(SubscriptionEnd::Deleted)).await;
    eventually("it says so", async || handle.ended().len() == 1).await;
    let ended = handle.ended().remove(0);
    assert_eq!((ended.name.as_str(), ended.subject_pattern.as_deref()), ("orders", Some("events.>")));
    assert!(ended.reason.contains("deleted"), "{}", ended.reason);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(sink.count().await, 5, "nothing is delivered again");

    broker.put_trigger(trigger()).await.unwrap();
    handle.synced().await.unwrap();
    eventually("added anew it begins anew", async || sink.count().await == 10).await;
    assert!(handle.ended().is_empty());
    handle.shutdown().await;
}
