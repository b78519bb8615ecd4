//! The stream moves to another node of a cluster, and nodes are killed, while programs publish and consume.

use a3s_event::provider::redis::RedisConfig;
use a3s_event_testkit::RedisCluster;

use crate::load::Load;
use crate::stored::{assert_agreed, assert_stored, intact, key};
use crate::{on_each, open};

/// Keys that move between two answers to publishers.
const KEYS_AT_ONCE: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_moves_under_load_has_no_half_stored_event() {
    on_each(async |version, binary| {
        let mut cluster = RedisCluster::start_binary(&binary, "").await;
        let seeds: Vec<_> =
            (0..cluster.nodes()).map(|node| cluster.node(node).address().to_string()).collect();
        let load = Load::start(open(RedisConfig::at(seeds.join(","))).await, 4).consuming();
        let slot = cluster.slot(&key("log")).await;
        for _ in 0..2 {
            load.acknowledged(50).await;
            let target = (cluster.owner(slot).await + 1) % cluster.nodes();
            let migration = cluster.migrate(slot, target).await;
            // Publishers meet each part of the way: some keys are here, and others are there.
            while migration.move_keys(KEYS_AT_ONCE).await > 0 {
                load.answered(1).await;
            }
            migration.finish().await;
            assert_eq!(cluster.owner(slot).await, target);
            load.acknowledged(1).await;
            assert_agreed(cluster.node(target)).await;
        }
        let owner = cluster.owner(slot).await;
        cluster.kill(owner);
        cluster.start_again(owner).await;
        load.acknowledged(50).await;
        let (acknowledged, settled) = load.drained().await;
        let stored = intact(cluster.node(owner)).await;
        assert_stored(&acknowledged, &stored);
        assert_stored(&settled, &stored);
        println!("{version}: {} events, {} settled", stored.len(), settled.len());
    })
    .await;
}
