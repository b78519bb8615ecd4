//! Every duration that a program can say: nothing, a nanosecond, and no end.

use super::*;

#[tokio::test]
async fn a_delay_without_an_end_does_not_come_at_once() {
    for server in servers().await {
        let provider = connect(&server).await;
        let options = SubscribeOptions { ack_wait_secs: Some(1), ..SubscribeOptions::default() };
        let mut subscription =
            provider.subscribe_durable_with_options("a", "events.>", &options).await.unwrap();
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        for (number, delay) in [(1, Duration::MAX), (2, year * 300), (3, year * 200), (4, year * 10_000)] {
            provider.publish(&event("a", number)).await.unwrap();
            let delivery =
                tokio::time::timeout(SOON, subscription.next_delivery()).await.unwrap().unwrap().unwrap();
            assert_eq!((delivery.sequence(), delivery.num_delivered()), (number, 1));
            delivery.nak_after(delay).await.unwrap();
        }
        let again = tokio::time::timeout(Duration::from_secs(2), subscription.next_delivery()).await;
        assert!(again.is_err(), "{again:?}");
        for (number, delay) in [(5, Duration::ZERO), (6, Duration::from_nanos(1))] {
            provider.publish(&event("a", number)).await.unwrap();
            for attempt in 1..=2 {
                let delivery =
                    tokio::time::timeout(SOON, subscription.next_delivery()).await.unwrap().unwrap().unwrap();
                assert_eq!((delivery.sequence(), delivery.num_delivered()), (number, attempt));
                if attempt == 1 {
                    delivery.nak_after(delay).await.unwrap();
                } else {
                    delivery.ack().await.unwrap();
                }
            }
        }
    }
}

#[tokio::test]
async fn every_setting_takes_durations_without_an_end() {
    let server = NatsServer::start().await;
    let endless = NatsConfig {
        max_age_secs: u64::MAX,
        connect_timeout_secs: u64::MAX,
        request_timeout_secs: u64::MAX,
        ..config(&server)
    };
    for _ in 0..2 {
        // The second time the stream exists with the same settings.
        let builder = NatsProvider::builder(endless.clone()).publish_timeout(Duration::MAX);
        let provider = builder.dedup_window(Duration::MAX).connect().await.unwrap();
        let options = PublishOptions { timeout_secs: Some(u64::MAX), ..PublishOptions::default() };
        provider.publish(&event("a", 1)).await.unwrap();
        provider.publish_with_options(&event("a", 2), &options).await.unwrap();
        let (third, fourth) = (event("a", 3), event("a", 4));
        let batch = [PublishRequest::new(&third, options.clone()), PublishRequest::new(&fourth, options)];
        assert!(provider.publish_batch(&batch).await.iter().all(Result::is_ok));
        let mut subscription = provider.subscribe("events.>").await.unwrap();
        assert_eq!(subscription.next_batch(1, Duration::MAX).await.unwrap().len(), 1);
        assert!(provider.history(None, 1).await.unwrap().len() == 1 && provider.health().await.unwrap());
    }
    let shortest = NatsProvider::builder(config(&server)).publish_timeout(Duration::from_nanos(1));
    // Over before anything can be said of it, unless the answer is as fast as the timer.
    if let Err(late) = shortest.connect().await.unwrap().publish(&event("a", 5)).await {
        assert!(late.kind() == ErrorKind::Timeout && late.may_be_stored(), "{late:?}");
    }
}
