//! Encryption along the whole path.

#![cfg(feature = "encryption")]

use std::sync::Arc;

use a3s_event::{
    Aes256GcmEncryptor, DlqHandler, EncryptedPayload, ErrorKind, EventBus, EventError, HistoryQuery,
    MemoryDlqHandler, MemoryProvider, SubscribeOptions, SubscriptionFilter,
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
