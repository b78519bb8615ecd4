//! What memory costs: bookkeeping per event, and deliveries that share the payload.

use a3s_event::{Event, EventBus, EventProvider, MemoryProvider, Subscription, SubscriptionFilter};
use allocation_counter::{AllocationInfo, measure};

fn event_of(subject: String, payload_bytes: usize) -> Event {
    Event::new(subject, "market", "", "it", serde_json::json!("x".repeat(payload_bytes)))
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
}

/// What one event costs 100 readers, from the first fetch to the ack.
fn fan_out(payload_bytes: usize) -> AllocationInfo {
    block_on(async {
        let provider = MemoryProvider::default();
        let mut readers: Vec<Box<dyn Subscription>> = Vec::new();
        for _ in 0..100 {
            readers.push(provider.subscribe("events.market.>").await.unwrap());
        }
        // The first round grows each reader's own structures.
        for _ in 0..2 {
            provider.publish(&event_of("events.market.a".into(), payload_bytes)).await.unwrap();
        }
        for reader in &mut readers {
            reader.next_delivery().await.unwrap().unwrap().ack().await.unwrap();
        }
        let mut futures: Vec<_> = readers
            .iter_mut()
            .map(|reader| {
                Box::pin(async move { reader.next_delivery().await.unwrap().unwrap().ack().await.unwrap() })
            })
            .collect();
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        measure(|| {
            for future in &mut futures {
                assert!(future.as_mut().poll(&mut context).is_ready());
            }
        })
    })
}

#[test]
fn a_delivery_allocates_nothing_that_grows_with_the_payload() {
    let (small, large) = (fan_out(10), fan_out(500_000));
    assert_eq!((small.count_total, small.bytes_total), (large.count_total, large.bytes_total));
    assert!(large.bytes_total < 100 * 1_024, "{} bytes for 100 deliveries", large.bytes_total);
}

/// Bytes that a full store holds beyond its events.
fn bookkeeping_per_event(subject: impl Fn(usize) -> String, durables: usize) -> i64 {
    const EVENTS: usize = 50_000;
    block_on(async {
        let events: Vec<Event> = (0..EVENTS).map(|number| event_of(subject(number), 100)).collect();
        let mut copies = Vec::with_capacity(EVENTS);
        let of_events = measure(|| copies.extend(events.iter().cloned())).bytes_current
            + i64::try_from(EVENTS * size_of::<Event>()).unwrap();
        let provider = MemoryProvider::default();
        for number in 0..durables {
            provider.subscribe_durable(&format!("worker-{number}"), "events.>").await.unwrap();
        }
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let of_store = measure(|| {
            for event in &events {
                assert!(provider.publish(event).as_mut().poll(&mut context).is_ready());
            }
        });
        (of_store.bytes_current - of_events) / i64::try_from(EVENTS).unwrap()
    })
}

#[test]
fn bookkeeping_per_event_is_small() {
    let few_subjects = |number: usize| format!("events.market.topic-{}", number % 1_000);
    for durables in [0, 10] {
        let bytes = bookkeeping_per_event(few_subjects, durables);
        println!("{durables} durables: {bytes} bytes per event");
        assert!(bytes <= 200, "{durables} durables: {bytes} bytes per event");
    }
    // A subject that no other event has is remembered for its one event.
    let bytes = bookkeeping_per_event(|number| format!("events.market.order.{number}"), 1);
    println!("a subject per event: {bytes} bytes per event");
    assert!(bytes <= 300, "a subject per event: {bytes} bytes per event");
}

/// Bytes that a bus holds for each open subscription that has received nothing.
fn bytes_per_subscription() -> i64 {
    const SUBSCRIPTIONS: usize = 1_000;
    block_on(async {
        let bus = EventBus::new(MemoryProvider::default());
        let mut open = Vec::with_capacity(SUBSCRIPTIONS);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let held = measure(|| {
            let mut opening = Box::pin(async {
                for number in 0..SUBSCRIPTIONS {
                    let filter = SubscriptionFilter {
                        subscriber_id: format!("worker-{number}"),
                        subjects: vec!["events.>".to_owned()],
                        durable: true,
                        options: None,
                    };
                    bus.update_subscription(filter).await.unwrap();
                    open.append(&mut bus.create_subscriber(&format!("worker-{number}")).await.unwrap());
                }
            });
            assert!(opening.as_mut().poll(&mut context).is_ready());
        });
        assert_eq!(open.len(), SUBSCRIPTIONS);
        held.bytes_current / i64::try_from(SUBSCRIPTIONS).unwrap()
    })
}

#[test]
fn a_subscription_is_small() {
    let bytes = bytes_per_subscription();
    println!("{bytes} bytes per subscription");
    assert!(bytes <= 4_096, "{bytes} bytes per subscription");
}
