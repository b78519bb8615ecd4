//! The dead-letter queue that is kept in a provider.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use a3s_event::consumer::HandlerError;
use a3s_event::dlq::{DeadLetterFilter, DeadLetterStatus, REPLAYS_KEY, Replay};
use a3s_event::provider::{Capabilities, HistoryPage, HistoryQuery};
use a3s_event::{
    DeadLetter, DlqHandler, Event, EventBus, EventError, EventProvider, FailureClass, MemoryProvider,
    ProviderDlqHandler, ProviderInfo, PublishOptions, ReceivedEvent, Result, Subscription,
};
use async_trait::async_trait;
use serde_json::json;

use super::backend::{Backend, on_every_provider};
use super::event;

on_every_provider! {
    letters_are_kept_with_everything_that_is_known
    letters_are_found_by_what_is_asked_for
    letters_are_found_by_the_name_that_the_program_gave_its_consumer
    a_failure_is_kept_once_whoever_reports_it
    a_replay_publishes_the_same_event_again
    a_dry_run_changes_nothing
    what_was_replayed_too_often_is_refused
    a_discarded_letter_is_not_open_any_more
    what_is_too_large_is_kept_without_its_payload_and_replayed_from_its_stream
}

/// Publishes an event and returns what a consumer would have got.
pub(crate) async fn published(provider: &dyn EventProvider, event: Event) -> ReceivedEvent {
    let options = PublishOptions { msg_id: Some(event.id.clone()), ..PublishOptions::default() };
    let sequence = provider.publish_with_options(&event, &options).await.unwrap();
    ReceivedEvent { event, sequence, num_delivered: 1, stream: "events".into() }
}

pub(crate) fn letter(received: &ReceivedEvent, class: FailureClass) -> DeadLetter {
    let mut letter = DeadLetter::new(received.clone(), class, "it does not work");
    letter.consumer = Some("billing-events-a".into());
    letter.subscriber = Some("billing".into());
    letter.attempts = Some(3);
    letter
}

async fn letters_are_kept_with_everything_that_is_known(backend: Backend) {
    let events = backend.events().await;
    let received = published(&*events, event("events.a.b", 1).with_metadata("region", "eu")).await;
    let mut kept = letter(&received, FailureClass::Exhausted);
    kept.first_failure_at = Some(kept.dead_lettered_at - 100);
    kept.last_failure_at = Some(kept.dead_lettered_at - 10);
    backend.letters().await.handle_letter(kept.clone()).await.unwrap();

    // Another process.
    let letters = backend.letters().await;
    let found = letters.find(&DeadLetterFilter::default(), 10).await.unwrap();
    assert_eq!(found.len(), 1);
    let shown = letters.show(found[0].id).await.unwrap();
    assert_eq!((shown.status, shown.replays, shown.omitted), (DeadLetterStatus::Open, 0, false));
    for stored in [&found[0].letter, &shown.letter] {
        assert_eq!(format!("{stored:?}"), format!("{kept:?}"), "nothing about a letter changes");
    }
    assert_eq!(letters.count().await.unwrap(), 1);
    assert_eq!(letters.list(10).await.unwrap()[0].delivery_attempts, Some(3));
    assert!(matches!(letters.show(found[0].id + 1).await, Err(EventError::NotFound(_))));

    let raw: Vec<u8> = vec![0xff, b'{', 0];
    let mut record = DeadLetter::new(received, FailureClass::Undecodable, "no JSON");
    record.raw = Some(raw.clone());
    letters.handle_letter(record).await.unwrap();
    let filter = DeadLetterFilter::default().class(FailureClass::Undecodable);
    assert_eq!(letters.find(&filter, 1).await.unwrap()[0].letter.raw.as_ref(), Some(&raw));
}

async fn letters_are_found_by_what_is_asked_for(backend: Backend) {
    let (events, letters) = (backend.events().await, backend.letters().await);
    // More than one page of history.
    for number in 0..150 {
        let subject = if number % 2 == 0 { "events.a.even" } else { "events.a.odd" };
        let received = published(&*events, event(subject, number)).await;
        let class = if number % 3 == 0 { FailureClass::Fatal } else { FailureClass::Exhausted };
        letters.handle_letter(letter(&received, class)).await.unwrap();
    }
    let all = letters.find(&DeadLetterFilter::default(), usize::MAX).await.unwrap();
    let numbers: Vec<_> =
        all.iter().map(|stored| stored.letter.event.event.payload["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..150).rev().collect::<Vec<_>>(), "newest first");
    let newest = letters.find(&DeadLetterFilter::default(), 2).await.unwrap();
    assert_eq!(newest.iter().map(|stored| stored.id).collect::<Vec<_>>(), [all[0].id, all[1].id]);

    let time = all[0].letter.dead_lettered_at;
    for (filter, expected) in [
        (DeadLetterFilter::default(), 150),
        (DeadLetterFilter::default().subject("events.*.even"), 75),
        (DeadLetterFilter::default().class(FailureClass::Fatal), 50),
        (DeadLetterFilter::default().subject("events.a.odd").class(FailureClass::Fatal), 25),
        (DeadLetterFilter::default().consumer("billing"), 150),
        (DeadLetterFilter::default().consumer("billing-events-a"), 150),
        (DeadLetterFilter::default().consumer("billing-events"), 0),
        (DeadLetterFilter::default().consumer("other"), 0),
        (DeadLetterFilter::default().event_id(all[7].letter.event.event.id.clone()), 1),
        (DeadLetterFilter::default().since(time + 1), 0),
        (DeadLetterFilter::default().before(time + 1), 150),
        (DeadLetterFilter::default().status(Some(DeadLetterStatus::Discarded)), 0),
        (DeadLetterFilter::default().status(None), 150),
    ] {
        assert_eq!(letters.count_matching(&filter).await.unwrap(), expected, "{filter:?}");
    }
}

async fn letters_are_found_by_the_name_that_the_program_gave_its_consumer(backend: Backend) {
    let (events, letters) = (backend.events().await, backend.letters().await);
    let mut bus = EventBus::from_provider(Arc::clone(&events));
    bus.set_dlq_handler(letters.clone());
    for name in ["billing", "billing-events"] {
        let consumer = bus
            .consumer(name)
            .subject("events.orders.>")
            .handle(|_| async { Err(HandlerError::fatal("no such customer")) })
            .await
            .unwrap();
        if name == "billing" {
            events.publish(&event("events.orders.placed", 1)).await.unwrap();
        }
        while consumer.stats().dead_lettered == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        consumer.shutdown().await.unwrap();
    }
    let of = |name: &str| {
        let (letters, filter) = (Arc::clone(&letters), DeadLetterFilter::default().consumer(name));
        async move { letters.find(&filter, 10).await.unwrap() }
    };
    let found = of("billing").await;
    assert_eq!(found.len(), 1, "not those of a name that begins like this one");
    assert_eq!(found[0].letter.subscriber.as_deref(), Some("billing"));
    let consumer = found[0].letter.consumer.as_deref().unwrap();
    assert!(consumer.starts_with("billing-events-orders-"), "{consumer}");
    assert_eq!(of(consumer).await.len(), 1);
    assert_eq!(of("bill").await.len(), 0);
}

async fn a_failure_is_kept_once_whoever_reports_it(backend: Backend) {
    let received = published(&*backend.events().await, event("events.a", 1)).await;
    let (here, there) = (backend.letters().await, backend.letters().await);
    let report =
        |letters: Arc<ProviderDlqHandler>, letter| async move { letters.handle_letter(letter).await };
    let (first, second) = tokio::join!(
        report(here.clone(), letter(&received, FailureClass::Exhausted)),
        report(there, letter(&received, FailureClass::Exhausted)),
    );
    first.and(second).unwrap();
    assert_eq!(here.count().await.unwrap(), 1);

    // Another consumer has its own failure.
    let mut other = letter(&received, FailureClass::Exhausted);
    other.consumer = Some("other".into());
    here.handle_letter(other).await.unwrap();
    assert_eq!(here.count().await.unwrap(), 2);
}

async fn a_replay_publishes_the_same_event_again(backend: Backend) {
    let (events, letters) = (backend.events().await, backend.letters().await);
    let mut published_events = Vec::new();
    for number in 1..=3 {
        let received = published(&*events, event("events.a.b", number)).await;
        letters.handle_letter(letter(&received, FailureClass::Exhausted)).await.unwrap();
        published_events.push(received);
    }
    let report = letters.replay(&*events, &Replay::default().limit(2).per_second(1_000)).await.unwrap();
    assert_eq!((report.replayed.len(), report.refused.len()), (2, 0));
    // Within the dedup window, and stored all the same; the oldest first.
    let stored = events.history(None, 2).await.unwrap();
    for (again, before) in stored.iter().rev().zip(&published_events) {
        assert_eq!(again.id, before.event.id);
        assert_eq!((&again.subject, &again.payload), (&before.event.subject, &before.event.payload));
        assert_eq!(again.metadata[REPLAYS_KEY], "1");
    }
    assert_eq!(letters.count().await.unwrap(), 1);
    let shown = letters.show(report.replayed[0]).await.unwrap();
    assert_eq!((shown.status, shown.replays), (DeadLetterStatus::Replayed, 1));

    let rest = letters.replay(&*events, &Replay::default()).await.unwrap();
    assert_eq!(rest.replayed.len(), 1);
    assert!(letters.replay(&*events, &Replay::default()).await.unwrap().replayed.is_empty());
    assert_eq!(events.info().await.unwrap().messages, 6);
    // One that is named is replayed again.
    let chosen = [rest.replayed[0], 999_999];
    let error = letters.replay(&*events, &Replay::numbers(chosen)).await.unwrap_err();
    assert!(error.report.replayed == [chosen[0]] && error.letter.is_none());
    assert_eq!(events.info().await.unwrap().messages, 7);
    assert_eq!(letters.show(rest.replayed[0]).await.unwrap().replays, 2);
}

async fn a_dry_run_changes_nothing(backend: Backend) {
    let (events, letters) = (backend.events().await, backend.letters().await);
    let received = published(&*events, event("events.a", 1)).await;
    letters.handle_letter(letter(&received, FailureClass::Fatal)).await.unwrap();
    for _ in 0..2 {
        let report = letters.replay(&*events, &Replay::default().dry_run()).await.unwrap();
        assert_eq!(report.replayed.len(), 1);
    }
    assert_eq!(events.info().await.unwrap().messages, 1);
    assert_eq!(letters.count().await.unwrap(), 1);
}

async fn what_was_replayed_too_often_is_refused(backend: Backend) {
    let (events, letters) = (backend.events().await, backend.letters().await);
    let mut again = event("events.a", 1);
    for round in 0..4 {
        let received = published(&*events, again.clone()).await;
        // As it would come from the stream: every time with another sequence.
        let received = ReceivedEvent { sequence: 1_000 + round, ..received };
        letters.handle_letter(letter(&received, FailureClass::Exhausted)).await.unwrap();
        let report = letters.replay(&*events, &Replay::default()).await.unwrap();
        if round < 3 {
            assert_eq!(report.replayed.len(), 1, "{report:?}");
            again = events.history(None, 1).await.unwrap().remove(0);
        } else {
            assert!(report.replayed.is_empty());
            assert!(report.refused[0].1.contains("3 times"), "{report:?}");
        }
    }
    let report = letters.replay(&*events, &Replay::default().max_replays(10)).await.unwrap();
    assert_eq!(report.replayed.len(), 1);

    let mut record =
        DeadLetter::new(published(&*events, event("events.b", 1)).await, FailureClass::Undecodable, "");
    record.raw = Some(b"{".to_vec());
    letters.handle_letter(record).await.unwrap();
    let report = letters.replay(&*events, &Replay::default()).await.unwrap();
    assert!(report.replayed.is_empty() && report.refused[0].1.contains("not an event"), "{report:?}");
}

async fn a_discarded_letter_is_not_open_any_more(backend: Backend) {
    let (events, letters) = (backend.events().await, backend.letters().await);
    let received = published(&*events, event("events.a", 1)).await;
    letters.handle_letter(letter(&received, FailureClass::Fatal)).await.unwrap();
    let id = letters.find(&DeadLetterFilter::default(), 1).await.unwrap()[0].id;
    for _ in 0..2 {
        letters.discard(id).await.unwrap();
    }
    let letters = backend.letters().await;
    assert_eq!(letters.count().await.unwrap(), 0);
    assert!(letters.list(10).await.unwrap().is_empty());
    assert_eq!(letters.show(id).await.unwrap().status, DeadLetterStatus::Discarded);
    assert!(letters.replay(&*events, &Replay::default()).await.unwrap().replayed.is_empty());
    assert!(matches!(letters.discard(id + 100).await, Err(EventError::NotFound(_))));
}

async fn what_is_too_large_is_kept_without_its_payload_and_replayed_from_its_stream(backend: Backend) {
    let (events, letters) = (backend.events().await, backend.letters().await);
    let mut large = event("events.a", 1);
    large.payload = json!("x".repeat(1024 * 1024 - 400));
    let received = published(&*events, large).await;
    letters.handle_letter(letter(&received, FailureClass::Exhausted)).await.unwrap();
    let found = letters.find(&DeadLetterFilter::default(), 1).await.unwrap().remove(0);
    assert!(found.omitted && found.letter.event.event.payload.is_null());
    let report = letters.replay(&*events, &Replay::default()).await.unwrap();
    assert_eq!(report.replayed, [found.id]);
    assert_eq!(events.history(None, 1).await.unwrap()[0].payload, received.event.payload);
}

#[tokio::test]
async fn the_stream_of_the_events_can_keep_the_letters_too() {
    let provider = Arc::new(MemoryProvider::default());
    let letters = Arc::new(ProviderDlqHandler::new(provider.clone()).unwrap());
    let mut bus = EventBus::from_provider(provider.clone());
    bus.set_dlq_handler(letters.clone());
    // It gets the letters too, and fails with them; they make no letters of their own.
    let consumer = bus
        .consumer("everything")
        .subject("events.>")
        .handle(|_| async { Err(HandlerError::fatal("no")) })
        .await
        .unwrap();
    bus.publish_event(&event("events.a", 1)).await.unwrap();
    super::eventually("both are given up", async || consumer.stats().given_up == 2).await;
    consumer.shutdown().await.unwrap();
    assert_eq!(consumer.stats().dead_lettered, 1);
    assert_eq!(letters.count().await.unwrap(), 1);
    assert_eq!(provider.info().await.unwrap().messages, 2);
}

/// Stores as many marks as it is told, as if the process had died before the next one.
pub(crate) struct Forgetful(pub(crate) MemoryProvider, pub(crate) AtomicUsize);

#[async_trait]
impl EventProvider for Forgetful {
    async fn publish(&self, event: &Event) -> Result<u64> {
        self.0.publish(event).await
    }
    async fn publish_with_options(&self, event: &Event, options: &PublishOptions) -> Result<u64> {
        let one_less = |marks: usize| marks.checked_sub(1);
        if event.subject.contains(".marks.")
            && self.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_err()
        {
            return Err(EventError::Connection("gone".into()));
        }
        self.0.publish_with_options(event, options).await
    }
    async fn subscribe_durable(&self, name: &str, filter: &str) -> Result<Box<dyn Subscription>> {
        self.0.subscribe_durable(name, filter).await
    }
    async fn subscribe(&self, filter: &str) -> Result<Box<dyn Subscription>> {
        self.0.subscribe(filter).await
    }
    async fn history(&self, filter: Option<&str>, limit: usize) -> Result<Vec<Event>> {
        self.0.history(filter, limit).await
    }
    async fn query_page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        self.0.query_page(query).await
    }
    async fn unsubscribe(&self, name: &str) -> Result<()> {
        self.0.unsubscribe(name).await
    }
    async fn info(&self) -> Result<ProviderInfo> {
        self.0.info().await
    }
    fn name(&self) -> &str {
        "forgetful"
    }
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
}

#[tokio::test]
async fn a_replay_that_dies_before_its_mark_stores_no_second_event() {
    let events = MemoryProvider::default();
    let provider = Arc::new(Forgetful(MemoryProvider::default(), AtomicUsize::new(0)));
    let letters = ProviderDlqHandler::new(provider.clone()).unwrap();
    let received = published(&events, event("events.a", 1)).await;
    letters.handle_letter(letter(&received, FailureClass::Exhausted)).await.unwrap();
    let error = letters.replay(&events, &Replay::default()).await.unwrap_err();
    assert_eq!(error.letter.unwrap().letter.event.event.id, received.event.id);
    assert_eq!((events.info().await.unwrap().messages, letters.count().await.unwrap()), (2, 1));

    provider.1.store(usize::MAX, Ordering::SeqCst);
    assert_eq!(letters.replay(&events, &Replay::default()).await.unwrap().replayed.len(), 1);
    assert_eq!((events.info().await.unwrap().messages, letters.count().await.unwrap()), (2, 0));
}

#[tokio::test]
async fn what_is_written_again_behind_the_dedup_window_is_shown_once() {
    let provider = MemoryProvider::builder().dedup_window(Duration::from_millis(1)).build().unwrap();
    let letters = ProviderDlqHandler::new(Arc::new(provider)).unwrap();
    let received = published(&MemoryProvider::default(), event("events.a", 1)).await;
    for _ in 0..2 {
        letters.handle_letter(letter(&received, FailureClass::Exhausted)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(letters.count().await.unwrap(), 1);
    let id = letters.find(&DeadLetterFilter::default(), 1).await.unwrap()[0].id;
    letters.discard(id).await.unwrap();
    assert_eq!(letters.count().await.unwrap(), 0);
}
