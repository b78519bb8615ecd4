//! A server that forgets its scripts or its data while subscriptions are open.

use std::collections::BTreeSet;
use std::sync::Arc;

use a3s_event::{ErrorKind, EventError};
use tokio::sync::mpsc;
use tracing_subscriber::layer::SubscriberExt;

use super::traced::{Log, traced};
use super::*;

#[tokio::test]
async fn a_server_that_forgets_its_scripts_again_and_again_is_served() {
    const EVENTS: u64 = 400;
    on_each(async |version, binary| {
        let server = RedisServer::start_binary(&binary, "").await;
        let provider = connect(&server).await;
        let mut member = provider.subscribe_durable("worker", FILTER).await.unwrap();
        let forgetting = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(10));
            loop {
                ticks.tick().await;
                server.command(&["SCRIPT", "FLUSH"]).await;
            }
        };
        let working = async {
            let publishing = async {
                for number in 1..=EVENTS {
                    provider.publish(&numbered(number)).await.unwrap();
                }
            };
            let consuming = async {
                for sequence in 1..=EVENTS {
                    let delivery = next(&mut *member).await;
                    assert_eq!((delivery.sequence(), delivery.num_delivered()), (sequence, 1), "{version}");
                    delivery.ack_confirmed().await.unwrap();
                }
            };
            tokio::join!(publishing, consuming);
            assert_eq!(provider.history(None, 500).await.unwrap().len() as u64, EVENTS);
        };
        tokio::select! {
            () = working => {}
            () = forgetting => {}
        }
    })
    .await;
}

/// Reports what a member receives, until it ends.
async fn receive(mut member: Box<dyn Subscription>, told: mpsc::Sender<Result<u64, EventError>>) {
    loop {
        let outcome = match member.next_delivery().await {
            Ok(Some(delivery)) => {
                let number = delivery.event().payload.as_u64().unwrap();
                delivery.ack_confirmed().await.unwrap();
                Ok(number)
            }
            Ok(None) => return,
            Err(error) => Err(error),
        };
        if told.send(outcome).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_durable_consumer_reports_lost_data_once_and_goes_on() {
    const MEMBERS: usize = 3;
    let log = Log::default();
    let _guard = traced(tracing_subscriber::registry().with(log.clone()));
    for (version, binary) in versions() {
        let server = RedisServer::start_binary(&binary, "").await;
        let provider = Arc::new(connect(&server).await);
        let options = SubscribeOptions { max_deliver: Some(7), ..short_leases() };
        let (told, mut outcomes) = mpsc::channel(64);
        for _ in 0..MEMBERS {
            let member = provider.subscribe_durable_with_options("worker", FILTER, &options).await.unwrap();
            tokio::spawn(receive(member, told.clone()));
        }
        let mut outcome = async || tokio::time::timeout(DEADLINE, outcomes.recv()).await.unwrap().unwrap();
        publish_numbers(&provider, 1..=1).await;
        assert_eq!(outcome().await.unwrap(), 1);
        let before = log.lines().len();
        server.command(&["FLUSHALL"]).await;
        let lost = outcome().await.unwrap_err();
        assert_eq!((lost.kind(), lost.is_retryable()), (ErrorKind::Storage, true), "{lost}");
        let cause = std::error::Error::source(&lost).unwrap().to_string();
        assert!(cause.contains("FLUSHALL"), "{cause}");
        publish_numbers(&provider, 2..=20).await;
        let mut received = BTreeSet::new();
        while received.len() < 19 {
            assert!(received.insert(outcome().await.expect(version)));
        }
        assert_eq!(received, (2..=20).collect());
        let info = provider.consumers().await.unwrap().remove(0);
        assert_eq!((&*info.name, info.lag, info.pending, info.durable), ("worker", 0, 0, true));
        let settings = provider.subscribe_durable("worker", FILTER).await.unwrap().settings().unwrap();
        assert_eq!((settings.max_deliver, settings.ack_wait), (Some(7), Duration::from_secs(1)));
        let lines = log.lines().split_off(before);
        let loud: Vec<_> =
            lines.iter().filter(|line| !line.starts_with("DEBUG") && !line.starts_with("TRACE")).collect();
        assert_eq!(loud.len(), 1, "{version}: {loud:?}");
        assert!(lines.len() < 20, "{version}: {lines:?}");
    }
}
