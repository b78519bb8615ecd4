//! Files of earlier versions.

use std::time::Duration;

use a3s_event::provider::group::ConsumerConfig;
use a3s_event::{EventProvider, SubscribeOptions};

use crate::{DEADLINE, FILTER, open, publish};

/// Made by version 1: six events, and three consumers of them. One has acked two events, one has refused the first event
/// three times, one held leases when its process was killed.
const VERSION_1: &[u8] = include_bytes!("../fixtures/sqlite/version_1.db");

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_version_1_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    std::fs::write(&path, VERSION_1).unwrap();
    let provider = open(&path).await;
    assert!(provider.integrity_check().await.unwrap().is_empty());
    assert_eq!(provider.history(None, 9).await.unwrap().len(), 6);
    let consumers = provider.consumers().await.unwrap();
    let known: Vec<_> = consumers.iter().map(|c| (c.name.as_str(), c.lag)).collect();
    assert_eq!(known, [("half", 4), ("held", 0), ("refused", 5)]);

    let expected = [("half", 3, 1), ("refused", 1, 4), ("held", 1, 2)];
    for (name, sequence, attempt) in expected {
        let mut subscription = provider.subscribe_durable(name, FILTER).await.unwrap();
        let settings = subscription.settings();
        assert_eq!(settings, ConsumerConfig::new(FILTER, &SubscribeOptions::default()).ok());
        let next = tokio::time::timeout(DEADLINE, subscription.next_delivery()).await.unwrap();
        let delivery = next.unwrap().unwrap();
        assert_eq!((delivery.sequence(), delivery.num_delivered()), (sequence, attempt), "{name}");
        delivery.nak_after(Duration::from_secs(3_600)).await.unwrap();
    }
    assert_eq!(publish(&provider, "a").await, 7);
    assert!(provider.integrity_check().await.unwrap().is_empty());
}
