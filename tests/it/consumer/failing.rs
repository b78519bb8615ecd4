//! Events that are not handled: each ends in the dead letters, once, with the reason and its class.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use a3s_event::consumer::HandlerError;
use a3s_event::dlq::DeadLetterFilter;
use a3s_event::{
    DeadLetterEvent, Delivery, DlqHandler, Event, EventBus, EventError, EventSchema, FailureClass,
    MemoryProvider, MemorySchemaRegistry, Result, SchemaRegistry, SubscribeOptions, SubscriptionFilter,
};
use async_trait::async_trait;
use serde_json::json;

use super::support::{Handled, assert_settled, counted, is_settled, policy, publish, short_lease};
use crate::backend::{Backend, on_every_provider};
use crate::{event, eventually, number};

on_every_provider! {
    failures_past_the_policy_are_dead_lettered
    what_no_retry_helps_is_dead_lettered_at_once
    a_payload_of_another_type_is_dead_lettered_at_once
    panics_and_timeouts_are_failures
    a_record_that_is_no_event_is_dead_lettered_with_its_bytes
    what_does_not_follow_its_schema_is_dead_lettered_once
    a_subscriber_without_the_runtime_dead_letters_too
    while_there_are_no_dead_letters_the_source_is_not_settled
}

async fn failures_past_the_policy_are_dead_lettered(backend: Backend) {
    let bus = backend.bus().await;
    publish(&bus, "events.a.b", 1..=5).await;
    let attempts = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&attempts);
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .concurrency(2)
        .policy(policy(3))
        .handle(move |delivery: Delivery| {
            let attempts = Arc::clone(&counting);
            async move {
                if number(&delivery) == 3 {
                    attempts.fetch_add(1, Ordering::SeqCst);
                    return Err(std::io::Error::other("no three").into());
                }
                Ok(())
            }
        })
        .await
        .unwrap();
    let letters = backend.letters().await;
    eventually("one letter", async || letters.count().await.unwrap() == 1).await;
    assert_settled(&bus).await;
    consumer.shutdown().await.unwrap();
    let stored = letters.find(&DeadLetterFilter::default(), 10).await.unwrap().remove(0);
    let letter = stored.letter;
    assert_eq!(letter.event.event.payload["number"], 3);
    assert_eq!((letter.class, letter.attempts), (FailureClass::Exhausted, Some(3)));
    assert_eq!((letter.event.sequence, letter.original_subject.as_deref()), (3, Some("events.a.b")));
    assert_eq!(letter.reason, "no three");
    assert!(letter.consumer.unwrap().starts_with("worker-"));
    assert!(letter.first_failure_at <= letter.last_failure_at && letter.first_failure_at.is_some());
    assert_eq!(attempts.load(Ordering::SeqCst), 3);
    let stats = consumer.stats();
    assert_eq!((stats.handled, stats.failed, stats.dead_lettered), (4, 3, 1));
    assert_eq!(bus.metrics().snapshot().dlq_count, 1);
    assert_eq!(bus.dead_letters(10).await.unwrap()[0].event.event.payload["number"], 3);
}

async fn what_no_retry_helps_is_dead_lettered_at_once(backend: Backend) {
    let bus = backend.bus().await;
    publish(&bus, "events.a.b", 1..=2).await;
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .policy(policy(5).fatal_on::<std::num::ParseIntError>())
        .handle(|delivery: Delivery| async move {
            if number(&delivery) == 1 {
                return Err(HandlerError::fatal("never"));
            }
            "two".parse::<u8>()?;
            Ok(())
        })
        .await
        .unwrap();
    let letters = backend.letters().await;
    eventually("two letters", async || letters.count().await.unwrap() == 2).await;
    assert_settled(&bus).await;
    consumer.shutdown().await.unwrap();
    for stored in letters.find(&DeadLetterFilter::default(), 10).await.unwrap() {
        assert_eq!((stored.letter.class, stored.letter.attempts), (FailureClass::Fatal, Some(1)));
    }
    assert_eq!(consumer.stats().failed, 2);
}

async fn a_payload_of_another_type_is_dead_lettered_at_once(backend: Backend) {
    #[derive(serde::Deserialize)]
    struct Numbered {
        number: u64,
    }
    let bus = backend.bus().await;
    let sum = Arc::new(AtomicUsize::new(0));
    let summing = Arc::clone(&sum);
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .policy(policy(5))
        .handle_typed(move |numbered: Numbered, _| {
            summing.fetch_add(usize::try_from(numbered.number).unwrap(), Ordering::SeqCst);
            async { Ok(()) }
        })
        .await
        .unwrap();
    let mut other = event("events.a.b", 1);
    other.payload = json!({"number": "seven"});
    bus.publish_event(&other).await.unwrap();
    publish(&bus, "events.a.b", 7..=7).await;
    let letters = backend.letters().await;
    eventually("a letter and a sum", async || {
        letters.count().await.unwrap() == 1 && sum.load(Ordering::SeqCst) == 7
    })
    .await;
    consumer.shutdown().await.unwrap();
    let stored = letters.find(&DeadLetterFilter::default(), 1).await.unwrap().remove(0);
    assert_eq!((stored.letter.class, stored.letter.attempts), (FailureClass::Mismatch, Some(1)));
    assert_eq!(stored.letter.reason, "invalid type: string, expected u64", "and no value");
}

async fn panics_and_timeouts_are_failures(backend: Backend) {
    let bus = backend.bus().await;
    publish(&bus, "events.a.b", 1..=3).await;
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .concurrency(3)
        .policy(policy(2).timeout(Duration::from_millis(200)))
        .handle(|delivery: Delivery| async move {
            match number(&delivery) {
                1 => panic!("one too many"),
                2 => std::future::pending().await,
                _ => Ok(()),
            }
        })
        .await
        .unwrap();
    let letters = backend.letters().await;
    eventually("two letters", async || letters.count().await.unwrap() == 2).await;
    assert_settled(&bus).await;
    consumer.shutdown().await.unwrap();
    let mut reasons: Vec<_> = letters.find(&DeadLetterFilter::default(), 10).await.unwrap();
    reasons.sort_by_key(|stored| stored.letter.event.sequence);
    assert_eq!(reasons[0].letter.reason, "panicked: one too many");
    assert_eq!(reasons[1].letter.reason, "no result within 200ms");
    assert!(reasons.iter().all(|stored| stored.letter.attempts == Some(2)));
    assert_eq!(consumer.stats().handled, 1);
}

async fn a_record_that_is_no_event_is_dead_lettered_with_its_bytes(backend: Backend) {
    let bus = backend.bus().await;
    let raw = b"{\"id\": no event}";
    let Some(sequence) = backend.store_undecodable("events.a.b", raw).await else { return };
    publish(&bus, "events.a.b", 2..=2).await;
    let handled = Arc::new(Handled::default());
    let consumer = counted(bus.consumer("worker").subject("events.>"), &handled).await;
    assert_settled(&bus).await;
    consumer.shutdown().await.unwrap();
    assert_eq!(handled.events(), 1, "the stream moves on");
    let letters = backend.letters().await.find(&DeadLetterFilter::default(), 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    let letter = &letters[0].letter;
    assert_eq!((letter.class, letter.event.sequence), (FailureClass::Undecodable, sequence));
    assert_eq!(letter.raw.as_deref(), Some(&raw[..]));
    assert_eq!(letter.original_subject.as_deref(), Some("events.a.b"));
}

async fn what_does_not_follow_its_schema_is_dead_lettered_once(backend: Backend) {
    let ordered = |payload| Event::typed("events.a.b", "a", "order", 1, "", "it", payload);
    // Published by a program without schemas.
    let stranger = backend.bus().await;
    for payload in [json!({"id": "first"}), json!({"number": 2})] {
        stranger.publish_event(&ordered(payload)).await.unwrap();
    }
    let registry = MemorySchemaRegistry::new();
    registry
        .register(EventSchema {
            event_type: "order".into(),
            version: 1,
            required_fields: vec!["number".into()],
            description: String::new(),
        })
        .unwrap();
    let mut bus = backend.bus().await;
    bus.set_schema_registry(Arc::new(registry));
    bus.set_validate_on_consume(true);
    let letters = backend.letters().await;
    let handled = Arc::new(Handled::default());
    for more in [None, Some(3)] {
        if let Some(number) = more {
            bus.publish_event(&ordered(json!({ "number": number }))).await.unwrap();
        }
        let consumer = counted(bus.consumer("worker").subject("events.>").policy(policy(5)), &handled).await;
        assert_settled(&bus).await;
        consumer.shutdown().await.unwrap();
        assert_eq!(letters.count().await.unwrap(), 1, "once, also after a restart");
    }
    assert_eq!(handled.events(), 2);
    assert!(handled.all_once());
    let letter = letters.find(&DeadLetterFilter::default(), 10).await.unwrap().remove(0).letter;
    assert_eq!((letter.class, letter.attempts), (FailureClass::SchemaInvalid, Some(1)));
    assert_eq!(letter.event.event.payload, json!({"id": "first"}));
    assert!(letter.reason.contains("'order' v1: missing required fields: number"), "{}", letter.reason);
    let metrics = bus.metrics().snapshot();
    assert_eq!((metrics.validation_errors, metrics.dlq_count), (1, 1));
}

async fn a_subscriber_without_the_runtime_dead_letters_too(backend: Backend) {
    let bus = backend.bus().await;
    let filter = SubscriptionFilter {
        subscriber_id: "worker".into(),
        subjects: vec!["events.>".into()],
        durable: true,
        options: Some(SubscribeOptions { max_deliver: Some(2), ..short_lease() }),
    };
    bus.update_subscription(filter).await.unwrap();
    let mut subscription = bus.create_subscriber("worker").await.unwrap().remove(0);
    let undecodable = backend.store_undecodable("events.a.b", b"no event").await;
    publish(&bus, "events.a.b", 1..=4).await;
    if let Some(stored) = undecodable {
        let error = subscription.next_delivery().await.unwrap_err();
        assert!(matches!(error, EventError::Undecodable { sequence, .. } if sequence == stored), "{error:?}");
    }
    // Refused as often as is allowed, terminated, held until the lease is gone, and acked.
    let mut acked = 0;
    while acked == 0 || !is_settled(&bus).await {
        let next = tokio::time::timeout(Duration::from_millis(100), subscription.next_delivery()).await;
        let Ok(delivery) = next else { continue };
        let delivery = delivery.unwrap().unwrap();
        match number(&delivery) {
            1 => delivery.nak().await.unwrap(),
            2 => delivery.term("it is a two").await.unwrap(),
            3 => drop(delivery),
            _ => {
                delivery.ack().await.unwrap();
                acked += 1;
            }
        }
    }
    let letters = backend.letters().await.find(&DeadLetterFilter::default(), 10).await.unwrap();
    let mut found: Vec<_> = letters
        .iter()
        .map(|stored| {
            let letter = &stored.letter;
            (
                letter.event.event.payload["number"].as_u64(),
                letter.class,
                letter.attempts,
                letter.reason.as_str(),
            )
        })
        .filter(|(number, ..)| number.is_some())
        .collect();
    found.sort_by_key(|(number, ..)| *number);
    assert_eq!(
        found,
        [
            (Some(1), FailureClass::Exhausted, Some(2), "not processed in 2 deliveries"),
            (Some(2), FailureClass::Fatal, Some(1), "it is a two"),
            (Some(3), FailureClass::Exhausted, Some(2), "not processed in 2 deliveries"),
        ]
    );
    assert_eq!(letters.len(), 3 + usize::from(undecodable.is_some()));
    assert_eq!(acked, 1);
}

/// Fails until it is told to work.
struct Unavailable {
    works: AtomicBool,
    tries: AtomicUsize,
    inner: Arc<dyn DlqHandler>,
}

impl Unavailable {
    fn new(inner: Arc<dyn DlqHandler>) -> Self {
        Self { works: AtomicBool::new(false), tries: AtomicUsize::new(0), inner }
    }
}

#[async_trait]
impl DlqHandler for Unavailable {
    async fn handle(&self, event: DeadLetterEvent) -> Result<()> {
        self.handle_letter(event.into()).await
    }
    async fn handle_letter(&self, letter: a3s_event::DeadLetter) -> Result<()> {
        self.tries.fetch_add(1, Ordering::SeqCst);
        if !self.works.load(Ordering::SeqCst) {
            return Err(EventError::Connection("no dead-letter queue".into()));
        }
        self.inner.handle_letter(letter).await
    }
    async fn count(&self) -> Result<usize> {
        self.inner.count().await
    }
    async fn list(&self, limit: usize) -> Result<Vec<DeadLetterEvent>> {
        self.inner.list(limit).await
    }
}

async fn while_there_are_no_dead_letters_the_source_is_not_settled(backend: Backend) {
    let unavailable = Arc::new(Unavailable::new(backend.letters().await));
    let mut bus = EventBus::from_provider(backend.events().await);
    bus.set_dlq_handler(unavailable.clone());
    let undecodable = backend.store_undecodable("events.a.b", b"no event").await.is_some();
    publish(&bus, "events.a.b", 1..=1).await;
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .options(short_lease())
        .concurrency(2)
        .handle(|_| async { Err(HandlerError::fatal("never")) })
        .await
        .unwrap();
    let wanted = 1 + usize::from(undecodable);
    eventually("it was tried", async || unavailable.tries.load(Ordering::SeqCst) >= 2 * wanted).await;
    let pending: u64 = bus.consumers().await.unwrap().iter().map(|consumer| consumer.pending).sum();
    assert_eq!(pending, wanted as u64, "nothing is settled");
    unavailable.works.store(true, Ordering::SeqCst);
    assert_settled(&bus).await;
    consumer.shutdown().await.unwrap();
    assert_eq!(unavailable.count().await.unwrap(), wanted);
    assert!(consumer.stats().dead_letter_failures >= 2);
    assert_eq!(consumer.stats().failed, 1, "the handler is not called again");
}

#[cfg(feature = "encryption")]
mod encrypted {
    use a3s_event::Aes256GcmEncryptor;

    use super::*;

    on_every_provider! {
        handlers_see_plain_text_and_dead_letters_keep_the_cipher
    }

    async fn handlers_see_plain_text_and_dead_letters_keep_the_cipher(backend: Backend) {
        let mut bus = backend.bus().await;
        bus.set_encryptor(Arc::new(Aes256GcmEncryptor::new("k2", &[2; 32])));
        let mut stranger = EventBus::from_provider(backend.events().await);
        stranger.set_encryptor(Arc::new(Aes256GcmEncryptor::new("k1", &[1; 32])));
        publish(&stranger, "events.a.b", 1..=1).await;
        publish(&bus, "events.a.b", 2..=2).await;
        let consumer = bus
            .consumer("worker")
            .subject("events.>")
            .policy(policy(1))
            .handle(|delivery: Delivery| async move {
                assert_eq!(number(&delivery), 2, "in clear");
                Err("no".into())
            })
            .await
            .unwrap();
        assert_settled(&bus).await;
        consumer.shutdown().await.unwrap();
        let mut letters = backend.letters().await.find(&DeadLetterFilter::default(), 10).await.unwrap();
        letters.sort_by_key(|stored| stored.letter.event.sequence);
        assert_eq!(letters[0].letter.class, FailureClass::Undecryptable);
        assert!(letters[0].letter.reason.contains("k1"), "{}", letters[0].letter.reason);
        assert_eq!(letters[1].letter.reason, "no");
        for stored in &letters {
            assert!(stored.letter.event.event.payload["ciphertext"].is_string());
        }
        let readable = bus.dead_letters(10).await.unwrap();
        assert_eq!(readable.iter().filter(|letter| letter.event.event.payload["number"] == 2).count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn without_dead_letters_nothing_is_given_up_unless_it_is_asked_for() {
    let bus = EventBus::new(MemoryProvider::default());
    publish(&bus, "events.a", 1..=1).await;
    let consumer =
        bus.consumer("patient").subject("events.>").handle(|_| async { Err("no".into()) }).await.unwrap();
    eventually("it is tried more often than by default", async || consumer.stats().failed > 5).await;
    assert_eq!(consumer.stats().given_up, 0);
    drop(consumer);
    let consumer = bus
        .consumer("strict")
        .subject("events.>")
        .policy(policy(2))
        .handle(|_| async { Err("no".into()) })
        .await
        .unwrap();
    eventually("it is given up", async || consumer.stats().given_up == 1).await;
    assert_eq!(consumer.stats().dead_lettered, 0);
}
