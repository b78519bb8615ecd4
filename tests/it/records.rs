//! What the library writes for itself, and who meets it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use a3s_event::consumer::layers::{self, ProviderIdempotencyStore};
use a3s_event::dlq::DeadLetterFilter;
use a3s_event::{
    Delivery, DlqHandler, Event, EventBus, EventProvider, FailureClass, ProviderDlqHandler, Subscription,
    SubscriptionFilter,
};

use super::backend::{Backend, on_every_provider};
use super::letters::{letter, published};
use super::{event, eventually};

on_every_provider! {
    remembering_in_its_own_stream_calls_a_handler_once
    remembering_what_is_remembered_ends
    readers_by_hand_meet_records_where_they_ask_for_them
    a_provider_says_for_how_long_it_knows_ids
}

async fn remembering_in_its_own_stream_calls_a_handler_once(backend: Backend) {
    let (calls, stored) = remember(&backend, "events.>").await;
    assert_eq!((calls, stored), (1, 2));
}

async fn remembering_what_is_remembered_ends(backend: Backend) {
    let provider = backend.events().await;
    let other = ProviderIdempotencyStore::new(Arc::clone(&provider), "other").unwrap();
    layers::IdempotencyStore::insert(&other, "evt-1").await.unwrap();
    let (calls, stored) = remember(&backend, "events.handled.>").await;
    assert_eq!((calls, stored), (0, 2));
}

/// Handles what matches, remembers it in the same stream, and says how often the handler was called and how many events
/// there are, when nothing is left to deliver.
async fn remember(backend: &Backend, filter: &str) -> (u64, u64) {
    let provider = backend.events().await;
    let bus = EventBus::from_provider(Arc::clone(&provider));
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    let handler = move |_: Delivery| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok(()) }
    };
    let memory = Arc::new(ProviderIdempotencyStore::new(Arc::clone(&provider), "mail").unwrap());
    let consumer =
        bus.consumer("mailer").subject(filter).handle(layers::idempotent(memory, handler)).await.unwrap();
    bus.publish_event(&event("events.a", 1)).await.unwrap();
    let is_idle = async || {
        let known = bus.consumers().await.unwrap();
        let is_over = known.iter().all(|consumer| consumer.lag == 0 && consumer.pending == 0);
        is_over && provider.info().await.unwrap().messages > 1 || calls.load(Ordering::SeqCst) > 1
    };
    eventually("all is handled", is_idle).await;
    consumer.shutdown().await.unwrap();
    (calls.load(Ordering::SeqCst), provider.info().await.unwrap().messages)
}

async fn subscriber(bus: &EventBus, id: &str, subject: &str) -> Box<dyn Subscription> {
    let filter = SubscriptionFilter {
        subscriber_id: id.to_owned(),
        subjects: vec![subject.to_owned()],
        durable: true,
        options: None,
    };
    bus.update_subscription(filter).await.unwrap();
    bus.create_subscriber(id).await.unwrap().remove(0)
}

/// An event, its letter and the mark of that, in one stream.
async fn letter_and_mark(provider: &Arc<dyn EventProvider>) {
    let letters = ProviderDlqHandler::new(Arc::clone(provider)).unwrap();
    let received = published(&**provider, event("events.a", 1)).await;
    letters.handle_letter(letter(&received, FailureClass::Fatal)).await.unwrap();
    let id = letters.find(&DeadLetterFilter::default(), 1).await.unwrap()[0].id;
    letters.discard(id).await.unwrap();
}

async fn readers_by_hand_meet_records_where_they_ask_for_them(backend: Backend) {
    let provider = backend.events().await;
    let bus = EventBus::from_provider(Arc::clone(&provider));
    letter_and_mark(&provider).await;
    let own = Event::typed("events.handled.mine.a", "handled", "order.placed", 1, "", "", "a".into());
    provider.publish(&own).await.unwrap();
    provider.publish(&event("events.z", 2)).await.unwrap();
    let all = ["", "a3s.dlq.letter", "order.placed", ""];
    for (id, subject, expected) in [
        ("all", "events.>", &all[..]),
        ("letters", "events.dlq.>", &["a3s.dlq.letter", "a3s.dlq.mark"]),
        ("marks", "events.dlq.marks.*", &["a3s.dlq.mark"]),
    ] {
        let mut subscription = subscriber(&bus, id, subject).await;
        for (place, expected) in expected.iter().enumerate() {
            let found = match place % 2 {
                0 => {
                    let delivery = super::next(&mut subscription).await;
                    let found = delivery.event().event_type.clone();
                    delivery.ack().await.unwrap();
                    found
                }
                _ => subscription.next().await.unwrap().unwrap().event.event_type,
            };
            assert_eq!(found, *expected, "{subject}");
        }
        eventually("the records are settled, too", async || {
            let nothing = subscription.next_batch(10, Duration::from_millis(10)).await;
            assert!(nothing.is_none_or(|batch| batch.is_empty()));
            let known = bus.consumers().await.unwrap();
            known.iter().filter(|known| known.filter == subject).all(|known| known.lag + known.pending == 0)
        })
        .await;
    }
}

#[cfg(feature = "routing")]
#[tokio::test]
async fn durable_triggers_meet_letters_and_no_records() {
    use a3s_event::broker::DeliverySettings;
    use a3s_event::{Broker, CollectorSink, MemoryProvider, TriggerFilter};

    let provider: Arc<dyn EventProvider> = Arc::new(MemoryProvider::default());
    let (broker, sink) = (Arc::new(Broker::new()), Arc::new(CollectorSink::new("all")));
    let everything = a3s_event::Trigger::new("all", TriggerFilter::default(), sink.clone());
    broker.put_trigger(everything.with_delivery(DeliverySettings::durable())).await.unwrap();
    let mut running = broker.run(Arc::new(EventBus::from_provider(Arc::clone(&provider)))).await.unwrap();
    letter_and_mark(&provider).await;
    provider.publish(&event("events.z", 2)).await.unwrap();
    eventually("three are delivered", async || sink.count().await == 3).await;
    running.shutdown().await;
    let subjects: Vec<_> = sink.events().await.into_iter().map(|event| event.subject).collect();
    assert_eq!(subjects, ["events.a", "events.dlq.letters.events.a", "events.z"]);
}

async fn a_provider_says_for_how_long_it_knows_ids(backend: Backend) {
    let capabilities = backend.events().await.capabilities();
    assert_eq!(capabilities.dedup_window, Some(Duration::from_secs(120)));
}
