//! Crashes and stand-stills of servers under load, checked with a ledger: nothing acknowledged may be lost.

use std::time::Duration;

use a3s_event::{EventProvider, NatsConfig, NatsProvider};
use a3s_event_testkit::{NatsCluster, NatsServer};

use super::ledger::{ACK_WAIT, Account, under_load};
use super::{config, event};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_crashes_of_the_server_lose_nothing() {
    let mut server = NatsServer::start().await;
    under_load(NatsProvider::builder(config(&server)), async |account: &Account| {
        for _ in 0..3 {
            server.kill();
            tokio::time::sleep(Duration::from_millis(300)).await;
            server.start_again().await;
            account.resumes().await;
        }
    })
    .await;
}

/// The client keeps what is sent without a connection for the next one. A request among that would be answered into an
/// inbox that is gone, and its event would be redelivered after later ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_published_right_after_an_outage_arrives_at_its_first_attempt() {
    let mut server = NatsServer::start().await;
    let provider = NatsProvider::builder(config(&server)).connect().await.unwrap();
    let mut subscription = provider.subscribe_durable("worker", "events.>").await.unwrap();
    let waiting = tokio::spawn(async move {
        loop {
            match subscription.next_delivery().await {
                Ok(delivery) => return delivery.expect("the subscription is open").num_delivered(),
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
    });
    server.kill();
    // Longer than the silence after which a request counts as lost, so that the subscription asks again.
    tokio::time::sleep(Duration::from_secs(5)).await;
    server.start_again().await;
    let publisher = NatsProvider::builder(config(&server)).connect().await.unwrap();
    publisher.publish(&event("events.a", 1)).await.unwrap();
    let attempt = tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("a delivery");
    assert_eq!(attempt.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stand_still_of_twice_the_ack_wait_loses_nothing() {
    let server = NatsServer::start().await;
    under_load(NatsProvider::builder(config(&server)), async |account: &Account| {
        server.freeze().await;
        tokio::time::sleep(2 * ACK_WAIT).await;
        server.thaw();
        account.resumes().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_crashes_of_the_leader_of_three_lose_nothing() {
    let mut cluster = NatsCluster::start().await;
    let config = NatsConfig { url: cluster.url(), ..NatsConfig::default() };
    let builder = NatsProvider::builder(config).replicas(3);
    under_load(builder, async |account: &Account| {
        for _ in 0..2 {
            let killed = cluster.kill_leader("A3S_EVENTS").await;
            account.resumes().await;
            cluster.start_again(killed).await;
            // Another crash before that would take the majority.
            cluster.in_sync("A3S_EVENTS").await;
        }
    })
    .await;
}
