//! Encryption along the whole path.

#![cfg(feature = "encryption")]

use std::sync::Arc;

use a3s_event::{
    Aes256GcmEncryptor, CollectorSink, DeadLetterEvent, DlqHandler, EncryptedPayload, ErrorKind, Event,
    EventBus, EventEncryptor, EventError, EventProvider, HistoryQuery, MemoryDlqHandler, MemoryProvider,
    ReceivedEvent, SinkDlqHandler, SubscribeOptions, SubscriptionFilter, TopicSink,
};
use serde_json::json;

use super::next;

fn encrypting(provider: &Arc<MemoryProvider>, key: &str) -> EventBus {
    let mut bus = EventBus::from_provider(provider.clone());
    bus.set_encryptor(Arc::new(Aes256GcmEncryptor::new(key, &[7; 32])));
    bus
}

async fn subscribe(bus: &EventBus) -> Vec<Box<dyn a3s_event::Subscription>> {
    let filter = SubscriptionFilter {
        subscriber_id: "reader".into(),
        subjects: vec!["events.>".into()],
        durable: false,
        options: None,
    };
    bus.update_subscription(filter).await.unwrap();
    bus.create_subscriber("reader").await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_encrypted_is_plain_for_readers_of_the_bus_and_for_nobody_else() {
    let provider = Arc::new(MemoryProvider::default());
    let bus = encrypting(&provider, "k1");
    let mut subscriptions = subscribe(&bus).await;
    let secret = json!({"card": "4111"});
    let stored = bus.publish("pay", "card", "", "", secret.clone()).await.unwrap();
    assert!(EncryptedPayload::is_encrypted(&stored.payload), "the stored form is returned");

    let outside = EventBus::from_provider(provider.clone());
    assert_eq!(outside.list_events(None, 1).await.unwrap()[0].payload, stored.payload);

    let delivery = next(&mut subscriptions[0]).await;
    assert_eq!(delivery.event().payload, secret);
    delivery.nak().await.unwrap();
    let received = subscriptions[0].next().await.unwrap().unwrap();
    assert_eq!((received.event.payload, received.num_delivered), (secret.clone(), 2));
    assert_eq!(bus.list_events(None, 1).await.unwrap()[0].payload, secret);
    assert_eq!(bus.query(&HistoryQuery::new(1)).await.unwrap()[0].event.payload, secret);
    assert_eq!(
        outside.list_events(None, 1).await.unwrap()[0].payload,
        stored.payload,
        "reading changes nothing"
    );
    let metrics = bus.metrics().snapshot();
    assert_eq!((metrics.encrypt_count, metrics.decrypt_count), (1, 4));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_decrypted_surfaces_once_and_is_dead_lettered() {
    let provider = Arc::new(MemoryProvider::default());
    encrypting(&provider, "k1").publish("pay", "card", "", "", json!(1)).await.unwrap();
    let dlq = Arc::new(MemoryDlqHandler::default());
    let mut reader = encrypting(&provider, "k2");
    reader.set_dlq_handler(dlq.clone());
    let mut subscriptions = subscribe(&reader).await;
    reader.publish("pay", "card", "", "", json!(2)).await.unwrap();

    let error = subscriptions[0].next_delivery().await.unwrap_err();
    assert!(error.to_string().contains("k1"), "the key is named: {error}");
    assert!(
        matches!(&error, EventError::Undecodable { sequence: 1, raw, .. } if !raw.is_empty()),
        "{error:?}"
    );
    assert_eq!(next(&mut subscriptions[0]).await.event().payload, json!(2), "the stream moves on");
    assert_eq!(dlq.count().await.unwrap(), 1);
    assert_eq!(reader.consumers().await.unwrap()[0].pending, 1, "only the good event is unsettled");
    assert!(EncryptedPayload::is_encrypted(&reader.list_events(None, 2).await.unwrap()[1].payload));
}

#[tokio::test(start_paused = true)]
async fn dead_letters_of_encrypted_events_stay_encrypted() {
    let provider = Arc::new(MemoryProvider::default());
    let mut bus = encrypting(&provider, "k1");
    let dlq = Arc::new(MemoryDlqHandler::default());
    bus.set_dlq_handler(dlq.clone());
    let options =
        SubscribeOptions { max_deliver: Some(1), ack_wait_secs: Some(1), ..SubscribeOptions::default() };
    let filter = SubscriptionFilter {
        subscriber_id: "reader".into(),
        subjects: vec!["events.>".into()],
        durable: true,
        options: Some(options),
    };
    bus.update_subscription(filter).await.unwrap();
    let mut subscriptions = bus.create_subscriber("reader").await.unwrap();
    for number in 1..=2 {
        bus.publish("pay", "card", "", "", json!({ "card": number })).await.unwrap();
    }
    let refused = next(&mut subscriptions[0]).await;
    assert_eq!(refused.event().payload, json!({"card": 1}));
    refused.nak().await.unwrap();
    drop(next(&mut subscriptions[0]).await);
    let waited =
        tokio::time::timeout(std::time::Duration::from_secs(60), subscriptions[0].next_delivery()).await;
    assert!(waited.is_err());
    let dead = dlq.list(10).await.unwrap();
    assert_eq!(dead.len(), 2);
    assert!(dead.iter().all(|letter| EncryptedPayload::is_encrypted(&letter.event.event.payload)));
}

#[tokio::test]
async fn a_payload_too_deep_is_refused_also_when_it_is_encrypted() {
    let bus = encrypting(&Arc::new(MemoryProvider::default()), "k1");
    let deep = (0..150).fold(json!(1), |inner, _| json!([inner]));
    let error = bus.publish("pay", "card", "", "", deep).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

/// Payloads in clear that look encrypted, more and more.
fn lookalikes() -> [serde_json::Value; 4] {
    let old = Aes256GcmEncryptor::new("k1", &[7; 32]).encrypt(&json!("inner")).unwrap();
    [
        json!({"encrypted": true}),
        json!({"encrypted": true, "keyId": "k1", "nonce": "n", "ciphertext": "c", "of": "the user"}),
        json!({"encrypted": true, "keyId": "k1", "nonce": "n", "ciphertext": "c"}),
        old,
    ]
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_looks_encrypted_comes_back_as_it_was_published() {
    let provider = Arc::new(MemoryProvider::default());
    let mut bus = encrypting(&provider, "k1");
    let dlq = Arc::new(MemoryDlqHandler::default());
    bus.set_dlq_handler(dlq.clone());
    let mut subscriptions = subscribe(&bus).await;
    for payload in lookalikes() {
        let stored = bus.publish("pay", "card", "", "", payload.clone()).await.unwrap();
        assert_ne!(stored.payload, payload);
        let delivery = next(&mut subscriptions[0]).await;
        assert_eq!(delivery.event().payload, payload);
        delivery.ack().await.unwrap();
        assert_eq!(bus.list_events(None, 1).await.unwrap()[0].payload, payload);
    }
    assert_eq!(dlq.count().await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lookalike_that_was_stored_in_clear_is_delivered_in_clear() {
    let provider = Arc::new(MemoryProvider::default());
    let plain = EventBus::from_provider(provider.clone());
    let mut reader = encrypting(&provider, "k1");
    let dlq = Arc::new(MemoryDlqHandler::default());
    reader.set_dlq_handler(dlq.clone());
    let mut subscriptions = subscribe(&reader).await;
    let mut plain_subscriptions = subscribe(&plain).await;
    for payload in lookalikes().into_iter().take(2) {
        plain.publish("pay", "card", "", "", payload.clone()).await.unwrap();
        assert_eq!(next(&mut subscriptions[0]).await.event().payload, payload);
        assert_eq!(next(&mut plain_subscriptions[0]).await.event().payload, payload);
    }
    assert_eq!(dlq.count().await.unwrap(), 0);
    // What has exactly the form of an envelope is one, and a damaged one.
    plain.publish("pay", "card", "", "", lookalikes()[2].clone()).await.unwrap();
    assert!(subscriptions[0].next_delivery().await.unwrap_err().to_string().contains("'k1'"));
    assert_eq!(dlq.count().await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_envelope_that_was_moved_to_another_event_is_dead_lettered() {
    let provider = Arc::new(MemoryProvider::default());
    let mut bus = encrypting(&provider, "k1");
    let dlq = Arc::new(MemoryDlqHandler::default());
    bus.set_dlq_handler(dlq.clone());
    let stored = bus.publish("pay", "card", "", "", json!({"amount": 1_000_000})).await.unwrap();
    let forged = Event::new("events.pay.refund", "pay", "", "", stored.payload.clone());
    provider.publish(&forged).await.unwrap();
    let replayed = Event { metadata: [("replays".to_owned(), "1".to_owned())].into(), ..stored };
    provider.publish(&replayed).await.unwrap();

    let mut subscriptions = subscribe(&bus).await;
    assert_eq!(next(&mut subscriptions[0]).await.event().payload, json!({"amount": 1_000_000}));
    let error = subscriptions[0].next_delivery().await.unwrap_err();
    assert!(error.to_string().contains("'k1'") && error.to_string().contains("moved"), "{error}");
    assert_eq!(dlq.count().await.unwrap(), 1);
    // The same event on the same subject, as after a replay of a dead letter.
    assert_eq!(next(&mut subscriptions[0]).await.event().payload, json!({"amount": 1_000_000}));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_was_forwarded_to_a_topic_opens_there() {
    let provider = Arc::new(MemoryProvider::default());
    let mut bus = encrypting(&provider, "k1");
    bus.set_dlq_handler(Arc::new(SinkDlqHandler::new(
        Arc::new(TopicSink::new("dead", provider.clone())),
        10,
    )));
    let filter = |id: &str, subject: &str, max_deliver| SubscriptionFilter {
        subscriber_id: id.into(),
        subjects: vec![subject.into()],
        durable: true,
        options: Some(SubscribeOptions { max_deliver, ..SubscribeOptions::default() }),
    };
    bus.update_subscription(filter("worker", "events.pay.>", Some(1))).await.unwrap();
    bus.update_subscription(filter("undertaker", "events.dlq.>", None)).await.unwrap();
    let mut work = bus.create_subscriber("worker").await.unwrap();
    let mut dead = bus.create_subscriber("undertaker").await.unwrap();
    bus.publish("pay", "card", "", "", json!({"card": "4111"})).await.unwrap();
    next(&mut work[0]).await.nak().await.unwrap();
    let letter = next(&mut dead[0]).await;
    assert_eq!(letter.event().event_type, "a3s.dlq.dead_letter");
    assert_eq!(letter.event().payload, json!({"card": "4111"}));
}

#[tokio::test(start_paused = true)]
async fn keys_rotate_under_a_bus_that_is_in_use() {
    let provider = Arc::new(MemoryProvider::default());
    let encryptor = Arc::new(Aes256GcmEncryptor::new("k1", &[7; 32]));
    let mut bus = EventBus::from_provider(provider.clone());
    let dlq = Arc::new(MemoryDlqHandler::default());
    bus.set_encryptor(encryptor.clone());
    bus.set_dlq_handler(dlq.clone());
    let mut subscriptions = subscribe(&bus).await;
    bus.publish("pay", "card", "", "", json!(1)).await.unwrap();
    encryptor.add_key("k2", &[8; 32]).unwrap();
    encryptor.promote("k2").unwrap();
    let stored = bus.publish("pay", "card", "", "", json!(2)).await.unwrap();
    assert_eq!(stored.payload["keyId"], "k2");
    for number in 1..=2 {
        assert_eq!(next(&mut subscriptions[0]).await.event().payload, json!(number));
    }
    // The key is taken away while events are in flight: a dead letter each, and no loop.
    bus.publish("pay", "card", "", "", json!(3)).await.unwrap();
    encryptor.promote("k1").unwrap();
    encryptor.disable_key("k2").unwrap();
    bus.publish("pay", "card", "", "", json!(4)).await.unwrap();
    let error = subscriptions[0].next_delivery().await.unwrap_err().to_string();
    assert!(error.contains("'k2': is disabled"), "{error}");
    assert_eq!(next(&mut subscriptions[0]).await.event().payload, json!(4));
    assert_eq!(dlq.count().await.unwrap(), 1);
}

/// The forwarded letter of an encrypted event, as a sink gets it.
async fn forwarded_letter(of: &Event) -> Event {
    let sink = Arc::new(CollectorSink::new("dead"));
    let received =
        ReceivedEvent { event: of.clone(), sequence: 1, num_delivered: 1, stream: "memory".into() };
    SinkDlqHandler::new(sink.clone(), 10).handle(DeadLetterEvent::new(received, "because")).await.unwrap();
    sink.events().await.remove(0)
}

#[tokio::test(start_paused = true)]
async fn an_event_that_says_to_be_a_dead_letter_opens_nowhere_else_than_in_its_place() {
    for encryptor in
        [Aes256GcmEncryptor::new("k1", &[7; 32]), Aes256GcmEncryptor::new("k1", &[7; 32]).require_bound()]
    {
        let dlq = Arc::new(MemoryDlqHandler::default());
        let bus = EventBus::builder(MemoryProvider::default()).encryptor(Arc::new(encryptor));
        let bus = bus.dlq_handler(dlq.clone()).build().unwrap();
        let stored = bus.publish("pay", "card", "", "", json!({"amount": 1_000_000})).await.unwrap();
        let letter = forwarded_letter(&stored).await;
        assert_eq!(letter.subject, "events.dlq.events.pay.card");
        let mut subscriptions = subscribe(&bus).await;
        next(&mut subscriptions[0]).await.ack().await.unwrap();
        // What somebody writes who has seen an envelope, and may not open it.
        let mut forged = 0;
        for subject in [
            "events.pay.refund",
            "events.pay.dlq.events.pay.card",
            "events.dlq.events.pay.refund",
            "events.dlq.events.pay.card.x",
            "events.dlqs.events.pay.card",
        ] {
            let event = Event { subject: subject.to_owned(), ..letter.clone() };
            bus.provider().publish(&event).await.unwrap();
            let error = subscriptions[0].next_delivery().await.unwrap_err();
            assert!(error.to_string().contains("moved"), "{subject}: {error}");
            forged += 1;
            assert_eq!(bus.list_events(None, 1).await.unwrap()[0].payload, stored.payload, "{subject}");
        }
        // In its place it says of itself to be another's letter.
        let event = letter.clone().with_metadata("dlq_original_id", "another");
        bus.provider().publish(&event).await.unwrap();
        subscriptions[0].next_delivery().await.unwrap_err();
        assert!(dlq.count().await.unwrap() >= forged, "what does not open is kept");

        bus.provider().publish(&letter).await.unwrap();
        assert_eq!(next(&mut subscriptions[0]).await.event().payload, json!({"amount": 1_000_000}));
        assert_eq!(bus.list_events(None, 1).await.unwrap()[0].payload, json!({"amount": 1_000_000}));
    }
}

#[tokio::test(start_paused = true)]
async fn letters_of_events_that_earlier_versions_sealed_open_too() {
    let bus = EventBus::builder(MemoryProvider::default());
    let old = Aes256GcmEncryptor::new("k1", &[7; 32]).seal_unbound();
    let bus = bus.encryptor(Arc::new(old)).build().unwrap();
    let stored = bus.publish("pay", "card", "", "", json!(1)).await.unwrap();
    let mut letter = forwarded_letter(&stored).await;
    // They said less of the original.
    for key in ["dlq_original_subject", "dlq_original_event_type", "dlq_original_version"] {
        letter.metadata.remove(key);
    }
    bus.provider().publish(&letter).await.unwrap();
    assert_eq!(bus.list_events(None, 1).await.unwrap()[0].payload, json!(1));
}

#[tokio::test(start_paused = true)]
async fn a_letter_whose_subject_did_not_fit_opens_too() {
    let bus = encrypting(&Arc::new(MemoryProvider::default()), "k1");
    let topic = format!("card.{}", "x".repeat(230));
    let stored = bus.publish("pay", &topic, "", "", json!(1)).await.unwrap();
    let letter = forwarded_letter(&stored).await;
    assert_eq!(letter.subject, "events.dlq.long-subject");
    bus.provider().publish(&letter).await.unwrap();
    assert_eq!(bus.list_events(None, 1).await.unwrap()[0].payload, json!(1));
}
