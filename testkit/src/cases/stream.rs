//! Publishing and retention.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use a3s_event::provider::{PublishReceipt, PublishRequest};
use a3s_event::{DeliverPolicy, ErrorKind, Event, EventError, PublishOptions, SubscribeOptions};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::world::{A_WHILE, Reader, SOON, World, ms};
use crate::{Outcome, Settings};

const NO_RETENTION: Outcome = Outcome::NotApplicable("the harness provides no stream with this limit");

fn msg_id(id: &str) -> PublishOptions {
    PublishOptions { msg_id: Some(id.to_owned()), ..Default::default() }
}

fn expecting(sequence: u64) -> PublishOptions {
    PublishOptions { expected_sequence: Some(sequence), ..Default::default() }
}

pub(super) async fn sequences_are_positive_and_increase(w: &World<'_>) {
    let mut last = 0;
    for topic in ["a", "b", "a", "c", "a"] {
        let sequence = w.publish(topic).await;
        w.check(&format!("{sequence} is above {last}"), sequence > last);
        last = sequence;
    }
}

pub(super) async fn sequences_increase_per_subject(w: &World<'_>) {
    let mut last = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for topic in ["a", "b", "a", "c", "a", "b", "c", "a"] {
        let sequence = w.publish(topic).await;
        let before = last.insert(topic, sequence).unwrap_or(0);
        w.check(
            &format!("{sequence} is above {before}, the previous sequence of {topic}"),
            sequence > before,
        );
        w.check(&format!("{sequence} is returned once"), seen.insert(sequence));
    }
}

pub(super) async fn sequences_increase_across_publishers(w: &World<'_>) {
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let publishers = (0..4).map(|publisher| {
        let provider = Arc::clone(&w.provider);
        let event = w.event(&format!("p{publisher}"));
        let acknowledged = Arc::clone(&acknowledged);
        tokio::spawn(async move {
            for _ in 0..25 {
                let before = acknowledged.lock().await.iter().copied().max().unwrap_or(0);
                let sequence = provider.publish(&event).await.map_err(|error| error.to_string())?;
                if sequence <= before {
                    return Err(format!("{sequence} was returned after {before} had been acknowledged"));
                }
                acknowledged.lock().await.push(sequence);
            }
            Ok(())
        })
    });
    for publisher in publishers.collect::<Vec<_>>() {
        let outcome = publisher.await.expect("the publisher does not panic");
        w.check_eq("a concurrent publisher", &outcome, &Ok(()));
    }
    let mut sequences = acknowledged.lock().await.clone();
    sequences.sort_unstable();
    sequences.dedup();
    w.check_eq("distinct sequences", &sequences.len(), &100);
}

pub(super) async fn received_sequence_is_the_published_one(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    let published = w.publish_many("a", 3).await;
    w.check_eq("sequence of next_delivery", &reader.ack_next().await, &published[0]);
    let pending = w.call("next_manual_ack", reader.subscription.next_manual_ack()).await;
    let Some(pending) = w.ok("next_manual_ack", pending) else { w.fail(&"next_manual_ack ended") };
    w.check_eq("sequence of next_manual_ack", &pending.received.sequence, &published[1]);
    w.ok("ack", pending.ack().await);
    w.check_eq("sequence of next", &reader.next_settled().await.sequence, &published[2]);
}

pub(super) async fn a_published_event_is_stored(w: &World<'_>) {
    let mut expected = Vec::new();
    for number in 0..60 {
        let event = w.event(&format!("n{number}"));
        w.publish_event(&event).await;
        expected.push(event.id);
        if number % 20 == 0 {
            let newest = w.history(Some(&w.all()), 1).await;
            w.check_eq("id of the newest event", &newest.first().map(|e| &e.id), &expected.last());
        }
    }
    let mut stored: Vec<_> = w.history(Some(&w.all()), 100).await.into_iter().map(|e| e.id).collect();
    stored.reverse();
    w.check_eq("ids in history", &stored, &expected);
}

pub(super) async fn an_event_survives_unchanged(w: &World<'_>) {
    let mut event = w
        .event("unicode.市场")
        .with_metadata("grüße", "Ω≈ç√ \"quoted\" \\ \n line")
        .with_metadata("empty", "");
    event.payload = serde_json::json!({
        "text": "naïve 🦀 \u{0} \u{7f} \u{2028}", "max": u64::MAX, "min": i64::MIN, "floats": [0.1, 1.020_304_304_050_601_7e22],
        "nested": [[{"": null}], true, [], {}], "long": "x".repeat(10_000)
    });
    event.event_type = "type.with/signs".to_owned();
    event.version = 7;
    event.summary = "zeile\nzwei".to_owned();
    event.source = "источник".to_owned();
    event.timestamp = u64::MAX;
    let expected = serde_json::to_value(&event).expect("an event is JSON");

    let mut reader = w.subscribe().await;
    w.publish_event(&event).await;
    let delivery = reader.next().await;
    let received = serde_json::to_value(delivery.event()).expect("an event is JSON");
    w.check_eq("the received event", &received, &expected);
    w.ok("ack", delivery.ack().await);
    let stored = w.history(Some(&w.all()), 1).await;
    let stored = serde_json::to_value(&stored[0]).expect("an event is JSON");
    w.check_eq("the event in history", &stored, &expected);
}

pub(super) async fn a_msg_id_is_stored_once(w: &World<'_>) {
    let id = w.name("order");
    let first = w.ok("publish", w.publish_with("a", msg_id(&id)).await);
    w.publish("b").await;
    let again = w.ok("publishing again", w.publish_with("a", msg_id(&id)).await);
    w.check_eq("sequence of the duplicate", &again, &first);
    w.check_eq("stored events", &w.stored().await, &2);
}

pub(super) async fn different_msg_ids_are_stored(w: &World<'_>) {
    for id in ["one", "two", "One"] {
        w.ok("publish", w.publish_with("a", msg_id(&w.name(id))).await);
    }
    w.publish("a").await;
    w.check_eq("stored events", &w.stored().await, &4);
}

/// Ids that a transport may misread: other spellings of a letter, blanks, and characters with a meaning in headers,
/// URLs and JSON.
const ODD: &[&str] = &[
    "",
    "x",
    "X",
    "0",
    "00",
    "null",
    "\u{e4}",
    "a\u{308}",
    "\u{df}",
    "ss",
    "\u{1f980}",
    " ",
    "  ",
    "\u{a0}",
    "\u{2003}",
    "\t",
    "%20",
    "%",
    "+",
    ":",
    ": ",
    "\"",
    "'",
    "\\",
    "\\n",
    "=?utf-8?q?x?=",
    "{}",
    "*",
    ">",
    "a, b",
    ";",
    "\u{feff}",
    "\r",
    "\0",
];

pub(super) async fn a_msg_id_means_its_bytes(w: &World<'_>) {
    let unique = w.name("id");
    let mut stored = 0;
    for odd in ODD {
        let id = format!("{odd}{unique}{odd}");
        match w.publish_with("a", msg_id(&id)).await {
            Ok(first) => {
                stored += 1;
                let again = w.ok("publishing again", w.publish_with("a", msg_id(&id)).await);
                w.check_eq(&format!("sequence of the duplicate of {id:?}"), &again, &first);
            }
            Err(error) => {
                w.check_eq(&format!("kind of the error for {id:?}"), &error.kind(), &ErrorKind::Config);
            }
        }
        w.check_eq(&format!("stored events after {id:?}"), &w.stored().await, &stored);
    }
}

pub(super) async fn a_duplicate_is_reported(w: &World<'_>) {
    let (event, options) = (w.event("a"), msg_id(&w.name("order")));
    let publish = async |event: &Event, options: &PublishOptions| {
        let receipt = w.call("publish_with_receipt", w.provider.publish_with_receipt(event, options)).await;
        w.ok("publish_with_receipt", receipt)
    };
    let first = publish(&event, &options).await;
    w.check("the first publish is no duplicate", !first.duplicate);
    let again = publish(&w.event("another"), &options).await;
    w.check_eq("receipt of the second publish", &again, &PublishReceipt::duplicate(first.sequence));
    let other = publish(&event, &PublishOptions::default()).await;
    w.check("a publish without msg_id is no duplicate", !other.duplicate);

    let batch = [
        PublishRequest::new(&event, options),
        PublishRequest::new(&event, msg_id(&w.name("another order"))),
        PublishRequest::from(&event),
    ];
    let receipts = w.call("publish_batch", w.provider.publish_batch(&batch)).await;
    let duplicates: Vec<_> =
        receipts.into_iter().map(|receipt| w.ok("an entry", receipt).duplicate).collect();
    w.check_eq("duplicates in a batch", &duplicates, &vec![true, false, false]);
}

pub(super) async fn a_msg_id_is_checked_before_the_expected_sequence(w: &World<'_>) {
    let mut options = msg_id(&w.name("order"));
    options.expected_sequence = Some(w.publish("a").await);
    let first = w.ok("publish", w.publish_with("b", options.clone()).await);
    let again = w.ok("the retry of a stored publish", w.publish_with("b", options).await);
    w.check_eq("sequence of the retry", &again, &first);
    w.check_eq("stored events", &w.stored().await, &2);
}

pub(super) async fn a_duplicate_with_another_expectation_is_a_conflict(w: &World<'_>) {
    let mut options = msg_id(&w.name("order"));
    let before = w.publish("a").await;
    options.expected_sequence = Some(before);
    let first = w.ok("publish", w.publish_with("b", options.clone()).await);
    let last = w.publish("c").await;
    options.expected_sequence = Some(last);
    let again = w.ok("publish again at the end of the stream", w.publish_with("b", options.clone()).await);
    w.check_eq("sequence of the duplicate", &again, &first);
    for wrong in [0, first, last + 1] {
        options.expected_sequence = Some(wrong);
        let answer = w.publish_with("b", options.clone()).await;
        let error = w.refused(&format!("a stored msg_id that expects {wrong} after {last}"), answer);
        w.check_eq("kind of the error", &error.kind(), &ErrorKind::Conflict);
    }
    w.check_eq("stored events", &w.stored().await, &3);
}

pub(super) async fn a_msg_id_is_forgotten_after_the_window(w: &World<'_>) -> Outcome {
    let Some(w) = w.with(Settings::dedup_window(ms(1_000))).await else {
        return Outcome::NotApplicable("the harness cannot configure the dedup window");
    };
    if let Some(declared) = w.provider.capabilities().dedup_window {
        w.check_eq("the declared window", &declared, &ms(1_000));
    }
    let id = w.name("order");
    let first = w.ok("publish", w.publish_with("a", msg_id(&id)).await);
    w.elapse(ms(2_500)).await;
    let later = w.ok("publish after the window", w.publish_with("a", msg_id(&id)).await);
    w.check("a new sequence after the window", later > first);
    w.check_eq("stored events", &w.stored().await, &2);
    Outcome::Kept
}

pub(super) async fn the_dedup_window_is_120_s_by_default(w: &World<'_>) -> Outcome {
    if !w.harness.waiting_is_free() {
        return Outcome::NotApplicable("the case takes more than two minutes");
    }
    let id = w.name("order");
    let first = w.ok("publish", w.publish_with("a", msg_id(&id)).await);
    w.elapse(ms(115_000)).await;
    let within = w.ok("publish within the window", w.publish_with("a", msg_id(&id)).await);
    w.check_eq("sequence within the window", &within, &first);
    w.elapse(ms(10_000)).await;
    let later = w.ok("publish after the window", w.publish_with("a", msg_id(&id)).await);
    w.check("a new sequence after the window", later > first);
    w.check_eq("stored events", &w.stored().await, &2);
    Outcome::Kept
}

pub(super) async fn the_expected_sequence_stores(w: &World<'_>) {
    let first = w.publish("a").await;
    let second = w.ok("publish", w.publish_with("b", expecting(first)).await);
    w.ok("publish", w.publish_with("a", expecting(second)).await);
    w.check_eq("stored events", &w.stored().await, &3);
}

pub(super) async fn an_unexpected_sequence_is_a_conflict(w: &World<'_>) {
    let first = w.publish("a").await;
    let second = w.publish("b").await;
    for wrong in [first, second + 1, 0] {
        let answer = w.publish_with("a", expecting(wrong)).await;
        let error = w.refused(&format!("expected_sequence {wrong} after {second}"), answer);
        w.check_eq("kind of the error", &error.kind(), &ErrorKind::Conflict);
        w.check("may_be_stored is false", !error.may_be_stored());
    }
    w.check_eq("stored events", &w.stored().await, &2);
}

pub(super) async fn of_racing_expectations_one_wins(w: &World<'_>) {
    let last = w.publish("a").await;
    let racers: Vec<_> = (0..5)
        .map(|_| {
            let (provider, event) = (Arc::clone(&w.provider), w.event("race"));
            tokio::spawn(async move { provider.publish_with_options(&event, &expecting(last)).await })
        })
        .collect();
    let mut winners = 0;
    for racer in racers {
        match racer.await.expect("the publisher does not panic") {
            Ok(_) => winners += 1,
            Err(error) => w.check_eq("kind of the error", &error.kind(), &ErrorKind::Conflict),
        }
    }
    w.check_eq("publishes that succeeded", &winners, &1);
    w.check_eq("stored events", &w.stored().await, &2);
}

pub(super) async fn a_batch_answers_in_order(w: &World<'_>) {
    let events: Vec<_> = (0..20).map(|number| w.event(&format!("n{number}"))).collect();
    let batch: Vec<_> = events.iter().map(PublishRequest::from).collect();
    let mut reader = w.subscribe().await;
    let answers = w.call("publish_batch", w.provider.publish_batch(&batch)).await;
    w.check_eq("answers", &answers.len(), &20);
    for (event, answer) in events.iter().zip(answers) {
        let sequence = w.ok("an entry of the batch", answer).sequence;
        let delivery = reader.next().await;
        w.check_eq(
            "sequence and id",
            &(delivery.sequence(), delivery.event().id.as_str()),
            &(sequence, &event.id),
        );
        w.ok("ack", delivery.ack().await);
    }
    let nothing = w.call("publish_batch", w.provider.publish_batch(&[])).await;
    w.check("an empty batch returns no results", nothing.is_empty());
}

pub(super) async fn a_batch_goes_on_behind_a_failure(w: &World<'_>) {
    let mut events = [w.event("a"), w.event("b"), w.event("c"), w.event("d")];
    events[1].subject = w.subject("b..b");
    events[2].id = String::new();
    let batch: Vec<_> = events.iter().map(PublishRequest::from).collect();
    let answers = w.call("publish_batch", w.provider.publish_batch(&batch)).await;
    let stored: Vec<_> = answers.iter().map(Result::is_ok).collect();
    w.check_eq("which entries were stored", &stored, &vec![true, false, false, true]);
    w.check_eq("stored events", &w.stored().await, &2);
}

pub(super) async fn batch_entries_keep_their_options(w: &World<'_>) {
    let events = [w.event("a"), w.event("b"), w.event("c")];
    let id = w.name("entry");
    let batch = [
        PublishRequest::new(&events[0], msg_id(&id)),
        PublishRequest::new(&events[1], msg_id(&id)),
        PublishRequest::from(&events[2]),
    ];
    let answers = w.call("publish_batch", w.provider.publish_batch(&batch)).await;
    let receipts: Vec<_> = answers.into_iter().map(|answer| w.ok("an entry", answer)).collect();
    w.check_eq("sequence of the duplicate", &receipts[1].sequence, &receipts[0].sequence);
    w.check_eq("stored events", &w.stored().await, &2);
}

pub(super) async fn retention_drops_the_oldest(w: &World<'_>) -> Outcome {
    let Some(w) = w.with(Settings::max_events(5)).await else {
        return NO_RETENTION;
    };
    let mut ids = Vec::new();
    for _ in 0..12 {
        let event = w.event("a");
        w.publish_event(&event).await;
        ids.push(event.id);
    }
    let retained: Vec<_> = w.history(None, 100).await.into_iter().map(|event| event.id).collect();
    let newest: Vec<_> = ids.into_iter().rev().take(5).collect();
    w.check_eq("retained events, newest first", &retained, &newest);
    Outcome::Kept
}

pub(super) async fn a_limit_in_bytes_never_drops_the_newest(w: &World<'_>) -> Outcome {
    const LIMIT: usize = 4_000;
    let Some(w) = w.with(Settings::max_bytes(LIMIT as u64)).await else {
        return NO_RETENTION;
    };
    let mut ids = Vec::new();
    for _ in 0..12 {
        let event = Event { payload: "x".repeat(600).into(), ..w.event("a") };
        w.publish_event(&event).await;
        ids.insert(0, event.id);
    }
    let retained: Vec<_> = w.history(None, 100).await.into_iter().map(|event| event.id).collect();
    let count = retained.len();
    w.check(
        &format!("some of 12 events are dropped and some retained, found {count}"),
        (1..12).contains(&count),
    );
    w.check_eq("retained events, newest first", &retained, &ids[..count].to_vec());
    let bytes = w.ok("info", w.call("info", w.provider.info()).await).bytes;
    w.check(&format!("at most {LIMIT} bytes, found {bytes}"), bytes <= LIMIT as u64);

    let large = Event { payload: "x".repeat(2 * LIMIT).into(), ..w.event("a") };
    w.publish_event(&large).await;
    let retained: Vec<_> = w.history(None, 100).await.into_iter().map(|event| event.id).collect();
    w.check_eq("retained after an event larger than the limit", &retained, &vec![large.id]);
    Outcome::Kept
}

/// Checks that the subscription reports this many missed events.
async fn lagged(reader: &mut Reader<'_>, expected: u64) {
    let w = reader.world;
    match reader.answer().await {
        Err(EventError::Lagged { missed, .. }) => w.check_eq("missed events", &missed, &expected),
        other => w.fail(&format!("expected Lagged, found {other:?}")),
    }
}

pub(super) async fn a_leased_event_that_is_dropped_counts_as_missed(w: &World<'_>) -> Outcome {
    let Some(w) = w.with(Settings::max_events(5)).await else {
        return NO_RETENTION;
    };
    let options = SubscribeOptions { ack_wait_secs: Some(1), ..Default::default() };
    let filter = w.subject("wanted");
    let opened = w.call("subscribe", w.provider.subscribe_with_options(&filter, &options)).await;
    let mut reader = Reader { world: &w, subscription: w.ok("subscribe", opened) };
    w.publish("wanted").await;
    let before = Instant::now();
    let _held = reader.next().await;
    w.publish_many("other", 5).await;
    lagged(&mut reader, 1).await;
    w.not_before(before, ms(1_000), "the lease is in force");
    let live = w.publish("wanted").await;
    w.check_eq("a new event after the gap", &reader.ack_next().await, &live);
    Outcome::Kept
}

/// Opens an ephemeral consumer of `wanted` that starts ten sequences after the newest.
async fn starting_ten_ahead<'w>(w: &'w World<'_>) -> Reader<'w> {
    let sequence = w.publish("wanted").await + 10;
    let deliver_policy = DeliverPolicy::ByStartSequence { sequence };
    let options = SubscribeOptions { deliver_policy, ..Default::default() };
    let filter = w.subject("wanted");
    let opened = w.call("subscribe", w.provider.subscribe_with_options(&filter, &options)).await;
    Reader { world: w, subscription: w.ok("subscribe", opened) }
}

pub(super) async fn only_what_lies_behind_the_start_is_missed(w: &World<'_>) -> Outcome {
    let Some(w) = w.with(Settings::max_events(5)).await else {
        return NO_RETENTION;
    };
    let mut reader = starting_ten_ahead(&w).await;
    let published = w.publish_many("wanted", 20).await;
    lagged(&mut reader, 6).await;
    w.check_eq("retained events", &reader.ack_many(5).await, &published[15..].to_vec());
    let Some(mixed) = w.with(Settings::max_events(5)).await else { return NO_RETENTION };
    let mut reader = starting_ten_ahead(&mixed).await;
    mixed.publish_many("wanted", 9).await;
    mixed.publish_many("other", 11).await;
    let live = mixed.publish("wanted").await;
    mixed.check_eq("no matching event after the start was missed", &reader.ack_next().await, &live);
    Outcome::Kept
}

pub(super) async fn last_per_subject_starts_with_what_is_retained(w: &World<'_>) -> Outcome {
    let Some(w) = w.with(Settings::max_events(5)).await else {
        return NO_RETENTION;
    };
    let mut published = Vec::new();
    // Five of these stay, of two subjects.
    for topic in ["x", "y", "z", "x", "x", "x", "x"] {
        published.push(w.publish(topic).await);
    }
    let options = SubscribeOptions { deliver_policy: DeliverPolicy::LastPerSubject, ..Default::default() };
    let mut prompt = w.subscribe_with(options.clone()).await;
    w.check_eq("newest event of each subject", &prompt.ack_many(2).await, &vec![published[2], published[6]]);
    prompt.silent_for(A_WHILE, "two subjects are retained").await;

    let mut late = w.subscribe_with(options).await;
    let live = w.publish_many("w", 4).await;
    lagged(&mut late, 1).await;
    let rest = [&published[6..], &live].concat();
    w.check_eq("the remaining event, then the new ones", &late.ack_many(5).await, &rest);
    Outcome::Kept
}

/// Returns a durable consumer that was away while retention dropped the first 7 of 12 events, of which 4 match. Returns
/// `None` if nothing can be dropped, by a limit of five events or by hand.
async fn overtaken<'w>(w: &'w World<'_>, is_limited: bool) -> Option<(Reader<'w>, Vec<u64>)> {
    let name = w.name("overtaken");
    let filter = w.subject("wanted");
    let open = || w.provider.subscribe_durable(&name, &filter);
    drop(w.ok("subscribe_durable", open().await));
    let mut wanted = Vec::new();
    for number in 0..12 {
        let topic = if number % 2 == 0 { "wanted" } else { "other" };
        let sequence = w.publish(topic).await;
        if number == 7 && !is_limited {
            w.fixture.drop_before(sequence).await?;
        }
        if topic == "wanted" && number >= 7 {
            wanted.push(sequence);
        }
    }
    let subscription = w.ok("subscribe_durable", open().await);
    Some((Reader { world: w, subscription }, wanted))
}

pub(super) async fn an_overtaken_consumer_learns_how_many_it_missed(w: &World<'_>) -> Outcome {
    let limited = w.with(Settings::max_events(5)).await;
    let w = limited.as_ref().unwrap_or(w);
    let Some((mut reader, _)) = overtaken(w, limited.is_some()).await else { return NO_RETENTION };
    lagged(&mut reader, 4).await;
    Outcome::Kept
}

pub(super) async fn an_error_is_not_the_end(w: &World<'_>) -> Outcome {
    let limited = w.with(Settings::max_events(5)).await;
    let w = limited.as_ref().unwrap_or(w);
    let Some((mut reader, wanted)) = overtaken(w, limited.is_some()).await else { return NO_RETENTION };
    if let Err(error) = reader.answer().await {
        w.check("the error does not say closed", !error.is_closed());
    } else {
        w.fail(&"expected an error about the missed events");
    }
    w.check_eq("events after the gap", &reader.ack_many(wanted.len()).await, &wanted);
    let live = w.publish("wanted").await;
    w.check_eq("a new event after the gap", &reader.ack_next().await, &live);
    Outcome::Kept
}

pub(super) async fn publishing_to_nobody_returns(w: &World<'_>) {
    for _ in 0..100 {
        let event = w.event("a");
        let published = tokio::time::timeout(SOON, w.provider.publish(&event)).await;
        match published {
            Ok(stored) => w.ok("publish", stored),
            Err(_) => w.fail(&format!("publish did not return within {SOON:?}")),
        };
    }
}

/// Publishes more events than any reasonable buffer between a publisher and a subscriber.
async fn publish_ahead(w: &World<'_>) -> Vec<u64> {
    let events: Vec<_> = (0..100).map(|_| w.event("a")).collect();
    let batch: Vec<_> = events.iter().map(PublishRequest::from).collect();
    let mut sequences = Vec::new();
    for _ in 0..15 {
        let published = tokio::time::timeout(SOON, w.provider.publish_batch(&batch)).await;
        let Ok(answers) = published else { w.fail(&format!("publish_batch did not return within {SOON:?}")) };
        sequences.extend(answers.into_iter().map(|answer| w.ok("an entry", answer).sequence));
    }
    sequences
}

pub(super) async fn a_slow_subscriber_holds_nobody_up(w: &World<'_>) {
    let mut slow = w.subscribe_with(SubscribeOptions::default()).await;
    let first = w.publish("a").await;
    w.check_eq("first event", &slow.ack_next().await, &first);
    publish_ahead(w).await;
}

pub(super) async fn a_slow_subscriber_loses_nothing_retained(w: &World<'_>) {
    let mut slow = w.subscribe().await;
    let published = publish_ahead(w).await;
    w.check_eq("received events", &slow.ack_many(published.len()).await, &published);
}

pub(super) async fn info_counts_what_is_stored(w: &World<'_>) {
    let info = || async { w.ok("info", w.call("info", w.provider.info()).await) };
    let empty = info().await;
    w.check_eq("messages and bytes when empty", &(empty.messages, empty.bytes), &(0, 0));
    w.publish_many("a", 3).await;
    let three = info().await;
    w.check_eq("messages", &three.messages, &3);
    w.publish("a").await;
    let four = info().await;
    w.check("bytes grow with every event", 0 < three.bytes && three.bytes < four.bytes);
    w.check_eq("provider", &four.provider.as_str(), &w.provider.name());
}

pub(super) async fn a_provider_that_serves_is_healthy(w: &World<'_>) {
    w.publish("a").await;
    let healthy = w.call("health", w.provider.health()).await;
    w.check_eq("health", &w.ok("health", healthy), &true);
}
