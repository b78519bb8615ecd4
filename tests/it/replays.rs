//! Replays: an event is published once a round, however many letters it has, and no more rounds than allowed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use a3s_event::dlq::{DeadLetterFilter, DeadLetterStatus, REPLAYS_KEY, Replay, ReplayReport};
use a3s_event::{
    DlqHandler, Event, EventError, EventProvider, FailureClass, HistoryQuery, MemoryProvider,
    ProviderDlqHandler, ReceivedEvent,
};
use serde_json::json;

use super::backend::{Backend, on_every_provider};
use super::event;
use super::letters::{Forgetful, letter, published};

on_every_provider! {
    an_event_that_three_consumers_gave_up_is_published_once_a_round
    every_way_to_a_letter_counts_towards_one_limit
    letters_that_are_named_twice_are_replayed_once
    replays_at_the_same_time_publish_once
    a_letter_that_came_late_is_marked_with_the_replay_that_was_before
    a_discarded_letter_stays_discarded
    events_that_share_an_id_are_not_one_event
    what_can_never_be_published_holds_no_other_up
    a_letter_is_one_by_its_place
}

const CONSUMERS: [&str; 3] = ["billing", "audit", "mail"];

/// Gives an event up for each of these consumers.
async fn give_up(letters: &ProviderDlqHandler, received: &ReceivedEvent, consumers: &[&str]) {
    for consumer in consumers {
        let mut letter = letter(received, FailureClass::Exhausted);
        letter.consumer = Some((*consumer).to_owned());
        letter.subscriber = Some((*consumer).to_owned());
        letters.handle_letter(letter).await.unwrap();
    }
}

/// The newest event of a stream, as a consumer gets it.
async fn newest(events: &dyn EventProvider) -> ReceivedEvent {
    let stored = events.query(&HistoryQuery::new(1)).await.unwrap().remove(0);
    ReceivedEvent {
        event: (*stored.event).clone(),
        sequence: stored.sequence,
        num_delivered: 1,
        stream: "events".into(),
    }
}

async fn count(events: &dyn EventProvider) -> u64 {
    events.info().await.unwrap().messages
}

async fn numbers(letters: &ProviderDlqHandler) -> Vec<u64> {
    let all = letters.find(&DeadLetterFilter::default().status(None), usize::MAX).await.unwrap();
    all.into_iter().rev().map(|letter| letter.id).collect()
}

fn is_refused(report: &ReplayReport) -> bool {
    report.replayed.is_empty() && report.events.is_empty() && report.refused[0].1.contains("3 times")
}

async fn an_event_that_three_consumers_gave_up_is_published_once_a_round(backend: Backend) {
    let (events, letters) = (backend.events().await, backend.letters().await);
    let mut received = published(&*events, event("events.a", 1)).await;
    for round in 1..=3 {
        give_up(&letters, &received, &CONSUMERS).await;
        let report = letters.replay(&*events, &Replay::default()).await.unwrap();
        assert_eq!((count(&*events).await, letters.count().await.unwrap()), (1 + round, 0), "{report:?}");
        assert_eq!((report.replayed.len(), report.events.len(), report.refused.len()), (3, 1, 0));
        let replayed = &report.events[0];
        assert_eq!((&replayed.id, replayed.subject.as_str()), (&received.event.id, "events.a"));
        assert_eq!((&replayed.letters, replayed.replays), (&report.replayed, round));
        assert_eq!((replayed.published, replayed.sequence), (true, Some(1 + round)));
        received = newest(&*events).await;
        assert_eq!(received.event.metadata[REPLAYS_KEY], round.to_string());
    }
    give_up(&letters, &received, &CONSUMERS).await;
    let report = letters.replay(&*events, &Replay::default()).await.unwrap();
    assert!(is_refused(&report) && report.refused.len() == 3, "{report:?}");
    assert_eq!(count(&*events).await, 4);
}

async fn every_way_to_a_letter_counts_towards_one_limit(backend: Backend) {
    let (events, letters) = (backend.events().await, backend.letters().await);
    let received = published(&*events, event("events.a", 1)).await;
    give_up(&letters, &received, &CONSUMERS).await;
    let ids = numbers(&letters).await;
    for (round, replay) in [
        Replay::matching(DeadLetterFilter::default().consumer("audit")),
        Replay::one(ids[0]),
        Replay::matching(DeadLetterFilter::default().status(Some(DeadLetterStatus::Replayed))),
    ]
    .into_iter()
    .enumerate()
    {
        // Another process each time.
        let letters = backend.letters().await;
        let report = letters.replay(&*events, &replay).await.unwrap();
        assert_eq!(report.events.len(), 1, "{report:?}");
        assert_eq!((letters.count().await.unwrap(), count(&*events).await), (0, 2 + round as u64));
    }
    for id in ids {
        let report = backend.letters().await.replay(&*events, &Replay::one(id)).await.unwrap();
        assert!(is_refused(&report), "{report:?}");
    }
    let more = Replay::default().max_replays(4);
    assert!(letters.replay(&*events, &more).await.unwrap().replayed.is_empty(), "none is open");
    assert_eq!(count(&*events).await, 4);
}

async fn letters_that_are_named_twice_are_replayed_once(backend: Backend) {
    let (events, letters) = (backend.events().await, backend.letters().await);
    let received = published(&*events, event("events.a", 1)).await;
    give_up(&letters, &received, &CONSUMERS).await;
    let ids = numbers(&letters).await;
    let report = letters.replay(&*events, &Replay::numbers([ids[1], ids[1], ids[0]])).await.unwrap();
    assert_eq!((report.events.len(), count(&*events).await), (1, 2), "{report:?}");
    assert_eq!(letters.count().await.unwrap(), 0);
}

async fn replays_at_the_same_time_publish_once(backend: Backend) {
    let (events, letters) = (backend.events().await, backend.letters().await);
    for number in 1..=5 {
        let received = published(&*events, event("events.a", number)).await;
        give_up(&letters, &received, &CONSUMERS).await;
    }
    let other = backend.letters().await;
    let (all, of_one) = (Replay::default(), Replay::matching(DeadLetterFilter::default().consumer("mail")));
    let (first, second) = tokio::join!(letters.replay(&*events, &all), other.replay(&*events, &of_one));
    first.unwrap();
    second.unwrap();
    assert_eq!((count(&*events).await, letters.count().await.unwrap()), (10, 0));
}

async fn a_letter_that_came_late_is_marked_with_the_replay_that_was_before(backend: Backend) {
    let (events, letters) = (backend.events().await, backend.letters().await);
    let received = published(&*events, event("events.a", 1)).await;
    give_up(&letters, &received, &["billing"]).await;
    letters.replay(&*events, &Replay::default()).await.unwrap();
    // Its consumer got the event again as well, and gives up the first copy only now.
    give_up(&letters, &received, &["mail"]).await;
    let report = letters.replay(&*events, &Replay::default()).await.unwrap();
    assert_eq!((report.replayed.len(), report.events[0].published), (1, false), "{report:?}");
    assert_eq!((count(&*events).await, letters.count().await.unwrap()), (2, 0));
    // Asked for by number it is published all the same.
    let report = letters.replay(&*events, &Replay::one(report.replayed[0])).await.unwrap();
    assert_eq!((report.events[0].replays, count(&*events).await), (2, 3));
}

async fn a_discarded_letter_stays_discarded(backend: Backend) {
    let (events, letters) = (backend.events().await, backend.letters().await);
    let received = published(&*events, event("events.a", 1)).await;
    give_up(&letters, &received, &CONSUMERS).await;
    let ids = numbers(&letters).await;
    letters.discard(ids[1]).await.unwrap();
    let report = letters.replay(&*events, &Replay::one(ids[0])).await.unwrap();
    assert_eq!(report.replayed, [ids[0], ids[2]]);
    assert_eq!(letters.show(ids[1]).await.unwrap().status, DeadLetterStatus::Discarded);
}

async fn events_that_share_an_id_are_not_one_event(backend: Backend) {
    let (events, letters) = (backend.events().await, backend.letters().await);
    for number in 1..=2 {
        let mut own = event("events.a", number);
        own.id = "the same".to_owned();
        let sequence = events.publish(&own).await.unwrap();
        let received = ReceivedEvent { event: own, sequence, num_delivered: 1, stream: "events".into() };
        give_up(&letters, &received, &["billing"]).await;
    }
    let report = letters.replay(&*events, &Replay::default()).await.unwrap();
    assert_eq!((report.events.len(), count(&*events).await), (2, 4), "{report:?}");
}

async fn what_can_never_be_published_holds_no_other_up(backend: Backend) {
    let (events, letters) = (backend.events().await, backend.letters().await);
    let elsewhere = event("elsewhere.a", 1);
    let received = ReceivedEvent { event: elsewhere, sequence: 1, num_delivered: 1, stream: "other".into() };
    give_up(&letters, &received, &["billing"]).await;
    give_up(&letters, &published(&*events, event("events.a", 1)).await, &["billing"]).await;
    let report = letters.replay(&*events, &Replay::default()).await.unwrap();
    assert_eq!((report.refused.len(), report.replayed.len()), (1, 1), "{report:?}");
    assert!(report.refused[0].1.contains("elsewhere"), "{report:?}");
    assert_eq!(letters.count().await.unwrap(), 1);
}

/// Whoever may publish may choose a type: that makes no letter and no mark elsewhere than at their place.
async fn a_letter_is_one_by_its_place(backend: Backend) {
    let provider = backend.events().await;
    let letters = ProviderDlqHandler::new(Arc::clone(&provider)).unwrap();
    give_up(&letters, &published(&*provider, event("events.a", 1)).await, &["billing"]).await;
    let stored = newest(&*provider).await.event;
    for (subject, key) in [
        ("events.orders.a", None),
        ("events.dlq.events.orders.a", None),
        ("events.dlq.letters.events.b", Some("no mark has this key")),
    ] {
        let mut forged = Event { subject: subject.to_owned(), ..stored.clone() };
        if let Some(key) = key {
            forged.payload["key"] = json!(key);
        }
        let sequence = provider.publish(&forged).await.unwrap();
        assert!(matches!(letters.show(sequence).await, Err(EventError::NotFound(_))), "{subject}");
    }
    assert_eq!(letters.count().await.unwrap(), 1);
    let key = stored.payload["key"].as_str().unwrap();
    for subject in ["events.orders.a", "events.dlq.marks.another"] {
        let payload = json!({"key": key, "status": "discarded", "replays": 0});
        let mark = Event::typed(subject, "dlq", "a3s.dlq.mark", 1, "", "dlq", payload);
        provider.publish(&mark).await.unwrap();
    }
    assert_eq!(letters.count().await.unwrap(), 1);
}

#[tokio::test]
async fn a_replay_that_dies_between_its_marks_is_not_done_again() {
    let events = MemoryProvider::default();
    let provider = Arc::new(Forgetful(MemoryProvider::default(), AtomicUsize::new(1)));
    let letters = ProviderDlqHandler::new(provider.clone()).unwrap();
    give_up(&letters, &published(&events, event("events.a", 1)).await, &CONSUMERS).await;
    let error = letters.replay(&events, &Replay::default()).await.unwrap_err();
    assert!(error.letter.is_some() && error.report.events.is_empty());
    assert_eq!((count(&events).await, letters.count().await.unwrap()), (2, 2));

    provider.1.store(usize::MAX, Ordering::SeqCst);
    let report = letters.replay(&events, &Replay::default()).await.unwrap();
    assert_eq!((report.replayed.len(), report.events[0].published), (2, false));
    assert_eq!((count(&events).await, letters.count().await.unwrap()), (2, 0));
}

#[tokio::test]
async fn the_publisher_s_own_count_of_replays_forbids_no_more_than_its_own_event() {
    let events = MemoryProvider::default();
    let letters = ProviderDlqHandler::new(Arc::new(MemoryProvider::default())).unwrap();
    for count in [u64::MAX.to_string(), "-1".to_owned(), "many".to_owned()] {
        let received = published(&events, event("events.a", 1).with_metadata(REPLAYS_KEY, count)).await;
        give_up(&letters, &received, &CONSUMERS).await;
    }
    let report = letters.replay(&events, &Replay::default()).await.unwrap();
    assert_eq!((report.refused.len(), report.events.len()), (3, 2), "{report:?}");
    let report = letters.replay(&events, &Replay::default().max_replays(u64::MAX)).await.unwrap();
    assert_eq!(report.refused.len(), 3, "the count has no room for another");
}
