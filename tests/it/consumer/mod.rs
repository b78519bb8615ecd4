//! The handler runtime.

mod chaos;
pub(crate) mod killed;
mod shutdown;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use a3s_event::consumer::layers::{self, RecentEvents, StoredEvents};
use a3s_event::consumer::{Backoff, ConsumerState, DeliveryPolicy, HandlerError};
use a3s_event::dlq::LetterFilter;
use a3s_event::{
    DeadLetterEvent, Delivery, DlqHandler, ErrorKind, EventBus, EventError, FailureClass, MemoryDlqHandler,
    MemoryProvider, Result, SubscribeOptions, SubscriptionFilter,
};
use async_trait::async_trait;
use serde_json::json;

use super::backend::{Backend, on_every_provider};
use super::{event, eventually, number};

on_every_provider! {
    everything_is_handled_once_and_settled
    failures_past_the_policy_are_dead_lettered
    what_no_retry_helps_is_dead_lettered_at_once
    a_payload_of_another_type_is_dead_lettered_at_once
    panics_and_timeouts_are_failures
    a_lease_is_kept_alive_while_its_handler_runs
    a_record_that_is_no_event_is_dead_lettered_with_its_bytes
    a_subscriber_without_the_runtime_dead_letters_too
    while_there_are_no_dead_letters_the_source_is_not_settled
    events_of_a_key_keep_their_order_and_hold_no_other_key_up
    members_share_the_work
    a_paused_consumer_fetches_nothing
    what_is_settled_by_hand_is_left_alone
    a_forgotten_consumer_is_opened_again
    events_handled_before_are_skipped_across_restarts
}

/// Handles every event at once, up to this often.
fn policy(attempts: u64) -> DeliveryPolicy {
    DeliveryPolicy::default().attempts(attempts).backoff(Backoff::none())
}

async fn publish(bus: &EventBus, subject: &str, numbers: std::ops::RangeInclusive<u64>) {
    let events: Vec<_> = numbers.map(|number| event(subject, number)).collect();
    for stored in bus.publish_batch(&events).await {
        stored.unwrap();
    }
}

/// Nothing is left to do for any consumer of the stream.
async fn is_settled(bus: &EventBus) -> bool {
    bus.consumers().await.unwrap().iter().all(|consumer| consumer.pending + consumer.lag == 0)
}

async fn assert_settled(bus: &EventBus) {
    eventually("everything is settled", async || is_settled(bus).await).await;
}

/// How often each event was handled.
#[derive(Default)]
struct Handled(Mutex<BTreeMap<u64, usize>>);

impl Handled {
    fn count(&self, number: u64) {
        *self.0.lock().unwrap().entry(number).or_default() += 1;
    }

    fn events(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn all_once(&self) -> bool {
        self.0.lock().unwrap().values().all(|times| *times == 1)
    }
}

async fn everything_is_handled_once_and_settled(backend: Backend) {
    let bus = backend.bus().await;
    publish(&bus, "events.a.b", 1..=100).await;
    let handled = Arc::new(Handled::default());
    let counting = Arc::clone(&handled);
    let consumer = bus
        .consumer("worker")
        .subject("events.a.>")
        .subject("events.b.>")
        .concurrency(8)
        .handle(move |delivery: Delivery| {
            let handled = Arc::clone(&counting);
            async move {
                tokio::task::yield_now().await;
                handled.count(number(&delivery));
                Ok(())
            }
        })
        .await
        .unwrap();
    publish(&bus, "events.b.c", 101..=200).await;
    eventually("200 events are handled", async || handled.events() == 200).await;
    assert_settled(&bus).await;
    assert_eq!(consumer.lag().await.unwrap(), 0);
    consumer.shutdown().await.unwrap();
    assert!(handled.all_once());
    assert_eq!(consumer.stats().handled, 200);
    assert_eq!(consumer.state(), ConsumerState::Stopped);
    assert_eq!(backend.letters().await.count().await.unwrap(), 0);
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
    let stored = letters.find(&LetterFilter::default(), 10).await.unwrap().remove(0);
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
    for stored in letters.find(&LetterFilter::default(), 10).await.unwrap() {
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
    let stored = letters.find(&LetterFilter::default(), 1).await.unwrap().remove(0);
    assert_eq!((stored.letter.class, stored.letter.attempts), (FailureClass::Mismatch, Some(1)));
    assert!(stored.letter.reason.contains("seven"), "{}", stored.letter.reason);
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
    let mut reasons: Vec<_> = letters.find(&LetterFilter::default(), 10).await.unwrap();
    reasons.sort_by_key(|stored| stored.letter.event.sequence);
    assert_eq!(reasons[0].letter.reason, "panicked: one too many");
    assert_eq!(reasons[1].letter.reason, "no result within 200ms");
    assert!(reasons.iter().all(|stored| stored.letter.attempts == Some(2)));
    assert_eq!(consumer.stats().handled, 1);
}

fn short_lease() -> SubscribeOptions {
    SubscribeOptions { ack_wait_secs: Some(1), ..SubscribeOptions::default() }
}

async fn a_lease_is_kept_alive_while_its_handler_runs(backend: Backend) {
    let bus = backend.bus().await;
    let handled = Arc::new(Handled::default());
    let mut members = Vec::new();
    for _ in 0..2 {
        let handled = Arc::clone(&handled);
        let member = bus
            .consumer("worker")
            .subject("events.>")
            .options(short_lease())
            // In lanes, so that the second event waits for the first and its lease has to be kept too.
            .ordered_by_key()
            .concurrency(2)
            .policy(policy(1))
            .handle(move |delivery: Delivery| {
                let handled = Arc::clone(&handled);
                async move {
                    handled.count(number(&delivery));
                    tokio::time::sleep(Duration::from_millis(1_600)).await;
                    Ok(())
                }
            })
            .await
            .unwrap();
        members.push(member);
    }
    publish(&bus, "events.a.b", 1..=2).await;
    assert_settled(&bus).await;
    for member in members {
        member.shutdown().await.unwrap();
    }
    assert_eq!(handled.events(), 2);
    assert!(handled.all_once());
    assert_eq!(backend.letters().await.count().await.unwrap(), 0);
}

async fn a_record_that_is_no_event_is_dead_lettered_with_its_bytes(backend: Backend) {
    let bus = backend.bus().await;
    let raw = b"{\"id\": no event}";
    let Some(sequence) = backend.store_undecodable("events.a.b", raw).await else { return };
    publish(&bus, "events.a.b", 2..=2).await;
    let handled = Arc::new(Handled::default());
    let counting = Arc::clone(&handled);
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .handle(move |delivery: Delivery| {
            counting.count(number(&delivery));
            async { Ok(()) }
        })
        .await
        .unwrap();
    assert_settled(&bus).await;
    consumer.shutdown().await.unwrap();
    assert_eq!(handled.events(), 1, "the stream moves on");
    let letters = backend.letters().await.find(&LetterFilter::default(), 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    let letter = &letters[0].letter;
    assert_eq!((letter.class, letter.event.sequence), (FailureClass::Undecodable, sequence));
    assert_eq!(letter.raw.as_deref(), Some(&raw[..]));
    assert_eq!(letter.original_subject.as_deref(), Some("events.a.b"));
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
    let letters = backend.letters().await.find(&LetterFilter::default(), 10).await.unwrap();
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

async fn events_of_a_key_keep_their_order_and_hold_no_other_key_up(backend: Backend) {
    let bus = backend.bus().await;
    // The first event of the slow key fails twice, and takes its time.
    publish(&bus, "events.slow", 1..=3).await;
    publish(&bus, "events.quick", 11..=20).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let (noting, tries) = (Arc::clone(&order), Arc::new(AtomicUsize::new(0)));
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .ordered_by_key()
        .concurrency(2)
        .policy(policy(5).backoff(Backoff::list([Duration::from_millis(300)])))
        .handle(move |delivery: Delivery| {
            let (order, tries) = (Arc::clone(&noting), Arc::clone(&tries));
            async move {
                let number = number(&delivery);
                if number == 1 && tries.fetch_add(1, Ordering::SeqCst) < 2 {
                    return Err("not yet".into());
                }
                order.lock().unwrap().push(number);
                Ok(())
            }
        })
        .await
        .unwrap();
    assert_settled(&bus).await;
    consumer.shutdown().await.unwrap();
    let order = order.lock().unwrap().clone();
    assert_eq!(order, (11..=20).chain(1..=3).collect::<Vec<_>>());
}

async fn members_share_the_work(backend: Backend) {
    let handled = Arc::new(Handled::default());
    let mut members = Vec::new();
    for _ in 0..2 {
        let bus = backend.bus().await;
        let handled = Arc::clone(&handled);
        let member = bus
            .consumer("worker")
            .subject("events.>")
            .concurrency(4)
            .handle(move |delivery: Delivery| {
                let handled = Arc::clone(&handled);
                async move {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    handled.count(number(&delivery));
                    Ok(())
                }
            })
            .await
            .unwrap();
        members.push((bus, member));
    }
    publish(&members[0].0, "events.a.b", 1..=200).await;
    assert_settled(&members[0].0).await;
    eventually("all are handled", async || handled.events() == 200).await;
    assert!(handled.all_once());
    for (_, member) in members {
        member.shutdown().await.unwrap();
        assert!(member.stats().handled > 0, "{:?}", member.stats());
    }
}

async fn a_paused_consumer_fetches_nothing(backend: Backend) {
    let bus = backend.bus().await;
    let handled = Arc::new(Handled::default());
    let counting = Arc::clone(&handled);
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .handle(move |delivery: Delivery| {
            counting.count(number(&delivery));
            async { Ok(()) }
        })
        .await
        .unwrap();
    consumer.pause();
    assert_eq!(consumer.state(), ConsumerState::Paused);
    // Its answer comes from the fetching task, which has then seen the pause.
    assert_eq!(consumer.lag().await.unwrap(), 0);
    publish(&bus, "events.a.b", 1..=3).await;
    assert_eq!(consumer.lag().await.unwrap(), 3);
    assert_eq!(handled.events(), 0);
    consumer.resume();
    assert_eq!(consumer.state(), ConsumerState::Running);
    eventually("all are handled", async || handled.events() == 3).await;
    consumer.shutdown().await.unwrap();
}

async fn what_is_settled_by_hand_is_left_alone(backend: Backend) {
    let bus = backend.bus().await;
    publish(&bus, "events.a.b", 1..=3).await;
    let released = Arc::new(AtomicBool::new(false));
    let releasing = Arc::clone(&released);
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .policy(policy(1))
        .handle(move |delivery: Delivery| {
            let is_released = number(&delivery) == 3 && releasing.swap(true, Ordering::SeqCst);
            async move {
                match number(&delivery) {
                    // At most once.
                    1 => {
                        delivery.ack().await?;
                        Err("too late".into())
                    }
                    2 => Ok(delivery.term("not this one").await?),
                    _ if is_released => Ok(()),
                    _ => Ok(delivery.release().await?),
                }
            }
        })
        .await
        .unwrap();
    eventually("one was released", async || released.load(Ordering::SeqCst)).await;
    assert_settled(&bus).await;
    consumer.shutdown().await.unwrap();
    let letters = backend.letters().await.find(&LetterFilter::default(), 10).await.unwrap();
    let reasons: Vec<_> = letters.iter().map(|stored| stored.letter.reason.as_str()).collect();
    // Where a release counts, the third one is exhausted.
    let expected = ["not processed in 1 deliveries", "not this one"];
    assert!(reasons == expected || reasons == expected[1..], "{reasons:?}");
}

async fn a_forgotten_consumer_is_opened_again(backend: Backend) {
    let bus = backend.bus().await;
    let handled = Arc::new(Handled::default());
    let counting = Arc::clone(&handled);
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .handle(move |delivery: Delivery| {
            counting.count(number(&delivery));
            async { Ok(()) }
        })
        .await
        .unwrap();
    publish(&bus, "events.a.b", 1..=1).await;
    eventually("the first is handled", async || handled.events() == 1).await;
    let name = bus.consumers().await.unwrap()[0].name.clone();
    bus.provider().unsubscribe(&name).await.unwrap();
    publish(&bus, "events.a.b", 2..=2).await;
    eventually("the second is handled", async || handled.events() == 2).await;
    consumer.shutdown().await.unwrap();
}

async fn events_handled_before_are_skipped_across_restarts(backend: Backend) {
    let handled = Arc::new(Handled::default());
    for round in 0..2 {
        let bus = backend.bus().await;
        let memory = Arc::new(StoredEvents::new(backend.events().await, "mailer").unwrap());
        let counting = Arc::clone(&handled);
        let handler = layers::idempotent(memory, move |delivery: Delivery| {
            counting.count(number(&delivery));
            async { Ok(()) }
        });
        // Another consumer gets everything again.
        let consumer =
            bus.consumer(format!("round{round}")).subject("events.a.>").handle(handler).await.unwrap();
        if round == 0 {
            publish(&bus, "events.a.b", 1..=5).await;
        }
        eventually("five are handled", async || consumer.stats().handled == 5).await;
        consumer.shutdown().await.unwrap();
    }
    assert_eq!(handled.events(), 5);
    assert!(handled.all_once());
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
        let mut letters = backend.letters().await.find(&LetterFilter::default(), 10).await.unwrap();
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

#[tokio::test]
async fn a_builder_refuses_what_cannot_be() {
    let bus = EventBus::new(MemoryProvider::default());
    let handler = |_: Delivery| async { Ok(()) };
    let refused = [
        (bus.consumer("worker").handle(handler).await, ErrorKind::NotFound),
        (bus.consumer("worker").subject("a..b").handle(handler).await, ErrorKind::InvalidInput),
        (bus.consumer("").subject("events.>").handle(handler).await, ErrorKind::InvalidInput),
        (bus.consumer("worker").subject("events.>").concurrency(0).handle(handler).await, ErrorKind::Config),
        (
            bus.consumer("worker").subject("events.>").policy(policy(0)).handle(handler).await,
            ErrorKind::Config,
        ),
    ];
    for (result, kind) in refused {
        assert_eq!(result.unwrap_err().kind(), kind);
    }
}

#[tokio::test]
async fn a_registered_subscription_is_handled_under_its_name() {
    let bus = EventBus::new(MemoryProvider::default());
    bus.update_subscription(SubscriptionFilter {
        subscriber_id: "worker".into(),
        subjects: vec!["events.a".into(), "events.b".into()],
        durable: true,
        options: None,
    })
    .await
    .unwrap();
    let consumer = bus.consumer("worker").handle(|_| async { Ok(()) }).await.unwrap();
    for subject in ["events.a", "events.b", "events.c"] {
        bus.publish_event(&event(subject, 1)).await.unwrap();
    }
    eventually("two are handled", async || consumer.stats().handled == 2).await;
    assert!(is_settled(&bus).await);
}

#[tokio::test(start_paused = true)]
async fn without_dead_letters_nothing_is_given_up_unless_it_is_asked_for() {
    let bus = EventBus::new(MemoryProvider::default());
    publish(&bus, "events.a", 1..=1).await;
    let consumer =
        bus.consumer("patient").subject("events.>").handle(|_| async { Err("no".into()) }).await.unwrap();
    eventually("it is tried more often than by default", async || consumer.stats().failed > 5).await;
    assert_eq!(consumer.stats().dead_lettered, 0);
    drop(consumer);
    let consumer = bus
        .consumer("strict")
        .subject("events.>")
        .policy(policy(2))
        .handle(|_| async { Err("no".into()) })
        .await
        .unwrap();
    eventually("it is given up", async || consumer.stats().dead_lettered == 1).await;
}

#[tokio::test(start_paused = true)]
async fn layers_limit_and_time_and_remember() {
    let bus = EventBus::builder(MemoryProvider::default())
        .dlq_handler(Arc::new(MemoryDlqHandler::default()))
        .build()
        .unwrap();
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (Arc::clone(&running), Arc::clone(&most));
    let handler = move |delivery: Delivery| {
        let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
        async move {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let seconds = if number(&delivery) == 7 { 100 } else { 1 };
            let _ended = scopeguard(&now);
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Ok(())
        }
    };
    let handler = layers::timeout(Duration::from_secs(10), handler);
    let handler = layers::idempotent(Arc::new(RecentEvents::new(100)), handler);
    let handler = layers::traced("work", layers::concurrency_limit(3, handler));
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .concurrency(10)
        .policy(policy(2).no_timeout())
        .handle(handler)
        .await
        .unwrap();
    publish(&bus, "events.a", 1..=10).await;
    eventually("all is done", async || is_settled(&bus).await).await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
    assert_eq!((consumer.stats().handled, consumer.stats().dead_lettered), (9, 1));
    consumer.shutdown().await.unwrap();
}

/// Counts down when it is dropped, also with a handler that is interrupted.
fn scopeguard(counter: &AtomicUsize) -> impl Drop + '_ {
    struct Down<'a>(&'a AtomicUsize);
    impl Drop for Down<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    Down(counter)
}
