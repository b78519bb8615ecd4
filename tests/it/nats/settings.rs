//! Settings of consumers: those in force, and starts that lie in the future.

use a3s_event::DeliverPolicy;

use super::*;

fn unix_millis() -> u64 {
    event("now", 0).timestamp
}

fn starts_at(timestamp: u64) -> SubscribeOptions {
    SubscribeOptions { deliver_policy: DeliverPolicy::ByStartTime { timestamp }, ..Default::default() }
}

#[tokio::test]
async fn what_another_program_changes_is_known_when_the_consumer_is_asked_for() {
    for server in servers().await {
        let (provider, other) = (connect(&server).await, connect(&server).await);
        let options = |ack_wait_secs, max_deliver| SubscribeOptions {
            ack_wait_secs: Some(ack_wait_secs),
            max_deliver: Some(max_deliver),
            backoff_secs: vec![ack_wait_secs],
            ..Default::default()
        };
        let first =
            provider.subscribe_durable_with_options("shared", "events.>", &options(5, 3)).await.unwrap();
        let _second =
            provider.subscribe_durable_with_options("shared", "events.>", &options(6, 4)).await.unwrap();
        let in_force = |subscription: &dyn Subscription| {
            let settings = subscription.settings().unwrap();
            (settings.ack_wait.as_secs(), settings.max_deliver, settings.backoff[0].as_secs())
        };
        assert_eq!(in_force(&*first), (6, Some(4), 6));
        let third = other.subscribe_durable_with_options("shared", "events.>", &options(7, 5)).await.unwrap();
        assert_eq!(in_force(&*third), (7, Some(5), 7));
        first.lag().await.unwrap();
        // The oldest server keeps no backoff, so that each program has its own.
        let backoff = if provider.client().nats_client().is_server_compatible(2, 10, 0) { 7 } else { 6 };
        assert_eq!(in_force(&*first), (7, Some(5), backoff));
        // Which does not forget it either when it opens the consumer as it is.
        let _fourth = provider.subscribe_durable("shared", "events.>").await.unwrap();
        assert_eq!(in_force(&*first), (7, Some(5), backoff));
    }
}

#[tokio::test]
async fn a_durable_waits_for_its_start_across_reopening_and_batches() {
    for server in servers().await {
        let provider = connect(&server).await;
        let start = unix_millis() + 1_500;
        let open =
            async || provider.subscribe_durable_with_options("later", "events.>", &starts_at(start)).await;
        let mut subscription = open().await.unwrap();
        publish_all(&provider, &(1..=40).map(|number| event("a", number)).collect::<Vec<_>>()).await;
        assert!(unix_millis() < start, "the machine is too busy to publish in time");
        assert!(subscription.next_batch(10, Duration::from_millis(200)).await.unwrap().is_empty());
        drop(subscription);
        let elsewhere = connect(&server).await;
        let mut subscription = elsewhere.subscribe_durable("later", "events.>").await.unwrap();
        publish_all(&provider, &[event("a", 41)]).await;
        let waiting = async {
            while unix_millis() <= start {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            publish_all(&provider, &[event("a", 42), event("a", 43)]).await;
        };
        let (first, ()) = tokio::join!(ack_next(&mut *subscription), waiting);
        assert_eq!((first, ack_next(&mut *subscription).await), (42, 43));
        assert_eq!(open().await.unwrap().lag().await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_start_beyond_the_clock_of_the_server_is_one_start() {
    for server in servers().await {
        let provider = connect(&server).await;
        provider.publish(&event("a", 1)).await.unwrap();
        let open = async |timestamp| {
            provider.subscribe_durable_with_options("never", "events.>", &starts_at(timestamp)).await
        };
        let mut never = open(u64::MAX).await.unwrap();
        provider.publish(&event("a", 2)).await.unwrap();
        open(u64::MAX).await.unwrap();
        open(i64::MAX.unsigned_abs()).await.unwrap();
        let Err(another) = open(unix_millis()).await else { panic!("another start was accepted") };
        assert_eq!(another.kind(), ErrorKind::Conflict, "{another:?}");
        assert!(never.next_batch(10, Duration::from_millis(200)).await.unwrap().is_empty());
    }
}
