//! Crashes and stand-stills of servers under load, checked with a ledger: nothing acknowledged may be lost.

use std::time::Duration;

use a3s_event::{NatsConfig, NatsProvider};
use a3s_event_testkit::{NatsCluster, NatsServer};

use super::config;
use super::ledger::{ACK_WAIT, Account, under_load};

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
