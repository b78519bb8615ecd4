//! A server is killed while programs publish. What it acknowledged is held against what it has after its restart.

use a3s_event::provider::redis::RedisConfig;
use a3s_event::{Durability, EventProvider};
use a3s_event_testkit::RedisServer;

use crate::load::Load;
use crate::{eventually, on_each, open};

/// How often each server is killed; the slow tier asks for more.
const KILLS: &str = "A3S_EVENT_CRASHES";
const DEFAULT_KILLS: usize = 5;
const PUBLISHERS: u64 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_stored_after_every_kill() {
    let kills = std::env::var(KILLS).map_or(DEFAULT_KILLS, |kills| kills.parse().unwrap());
    on_each(async |version, binary| {
        let mut server = RedisServer::start_binary(&binary, "appendfsync always").await;
        let provider = open(RedisConfig::at(server.address().to_string())).await;
        assert_eq!(provider.capabilities().durability, Durability::PowerLoss);
        let load = Load::start(provider, PUBLISHERS);
        for kill in 0..kills {
            // The next ones are on their way.
            load.acknowledged(1 + 7 * kill % 40).await;
            server.kill();
            server.start_again().await;
        }
        let (acknowledged, stored) = load.all_stored(&server).await;
        assert_eq!(acknowledged.len(), stored.len(), "each publish was repeated until it was acknowledged");
        println!("{version}: {} events, {kills} kills", stored.len());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_while_it_loads_its_data_loses_nothing() {
    on_each(async |version, binary| {
        let mut server = RedisServer::start_binary(&binary, "appendfsync always").await;
        let load = Load::start(open(RedisConfig::at(server.address().to_string())).await, PUBLISHERS);
        load.acknowledged(300).await;
        server.kill();
        // In microseconds, for each command.
        server
            .configure("appendfsync always\nkey-load-delay 1000\nloading-process-events-interval-bytes 1024");
        for _ in 0..3 {
            server.start_loading();
            eventually("the server loads", async || {
                let answer = server.request(&["DBSIZE"]).await;
                answer.is_ok_and(|answer| format!("{answer:?}").contains("LOADING"))
            })
            .await;
            server.kill();
        }
        server.start_again().await;
        let (_, stored) = load.all_stored(&server).await;
        println!("{version}: {} events", stored.len());
    })
    .await;
}
