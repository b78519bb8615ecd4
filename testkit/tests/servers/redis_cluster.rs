//! The launcher of three servers that share slots.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use a3s_event_testkit::servers::redis::protocol::{Reply, request, requests};
use a3s_event_testkit::servers::redis::{reference, versions};
use a3s_event_testkit::{RedisCluster, RedisServer};

/// The first word of a refusal, else nothing.
fn refusal(reply: &Reply) -> &str {
    match reply {
        Reply::Error(text) => text.split(' ').next().unwrap(),
        _ => "",
    }
}

async fn ask(node: &RedisServer, words: &[&str]) -> Reply {
    request(node.address(), words).await.unwrap()
}

#[tokio::test]
async fn a_slot_moves_step_by_step() {
    for (version, binary) in versions() {
        let begin = Instant::now();
        let cluster = RedisCluster::start_binary(&binary, "").await;
        println!("{version}: a cluster was ready after {:?}", begin.elapsed());
        let slot = cluster.slot("{a}").await;
        let from = cluster.owner(slot).await;
        let to = (from + 1) % cluster.nodes();
        let (old, new) = (cluster.node(from), cluster.node(to));
        for key in ["{a}1", "{a}2", "{a}3"] {
            old.command(&["SET", key, "1"]).await;
        }
        assert_eq!(refusal(&ask(new, &["GET", "{a}1"]).await), "MOVED");

        let migration = cluster.migrate(slot, to).await;
        assert_eq!(ask(old, &["GET", "{a}1"]).await.text(), Some("1"));
        migration.move_these(&["{a}1"]).await;
        assert_eq!(refusal(&ask(old, &["GET", "{a}1"]).await), "ASK");
        assert_eq!(refusal(&ask(old, &["MGET", "{a}1", "{a}2"]).await), "TRYAGAIN");
        let commands: [&[&str]; 2] = [&["ASKING"], &["GET", "{a}1"]];
        assert_eq!(requests(new.address(), &commands).await.unwrap()[1].text(), Some("1"));
        assert_eq!(migration.move_keys(1).await, 1);
        assert_eq!(migration.move_keys(9).await, 1);
        assert_eq!(migration.move_keys(9).await, 0);
        assert_eq!(cluster.owner(slot).await, from);
        migration.finish().await;
        assert_eq!(cluster.owner(slot).await, to);
        assert_eq!(refusal(&ask(old, &["GET", "{a}1"]).await), "MOVED");
        assert_eq!(ask(new, &["MGET", "{a}1", "{a}2", "{a}3"]).await.list().len(), 3);

        crate::in_task(cluster.migrate_slot(slot, from)).await;
        assert_eq!(cluster.owner(slot).await, from);
        assert_eq!(ask(old, &["GET", "{a}3"]).await.text(), Some("1"));
    }
}

#[tokio::test]
async fn a_killed_node_comes_back_and_a_replica_takes_its_place() {
    for (version, binary) in versions() {
        let mut cluster = RedisCluster::start_binary(&binary, "cluster-node-timeout 1000").await;
        let addresses: BTreeSet<_> =
            cluster.url().trim_start_matches("redis://").split(',').map(str::to_owned).collect();
        assert_eq!(addresses.len(), 3);
        let slot = cluster.slot("a").await;
        let owner = cluster.owner(slot).await;
        cluster.node(owner).command(&["SET", "a", "1"]).await;
        cluster.kill(owner);
        assert!(cluster.node(owner).request(&["PING"]).await.is_err());
        let begin = Instant::now();
        crate::in_task(cluster.start_again(owner)).await;
        println!("{version}: a cluster served {:?} after the start of a node", begin.elapsed());
        assert_eq!(cluster.owner(slot).await, owner);
        assert_eq!(ask(cluster.node(owner), &["GET", "a"]).await.text(), Some("1"));

        let replica = crate::in_task(cluster.add_replica(owner)).await;
        assert_eq!(replica, 3);
        let timeout = cluster.node(replica).command(&["CONFIG", "GET", "cluster-node-timeout"]).await;
        assert_eq!(timeout.list()[1].text(), Some("1000"), "it has the lines of the others");
        cluster.kill(owner);
        let begin = Instant::now();
        while cluster.owner(slot).await != replica {
            assert!(begin.elapsed().as_secs() < 60, "{version}: the replica was not promoted");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        println!("{version}: a replica took over after {:?}", begin.elapsed());
        cluster.settled().await;
        assert_eq!(ask(cluster.node(replica), &["GET", "a"]).await.text(), Some("1"));
    }
}

#[tokio::test]
async fn a_cluster_is_shared_while_a_test_holds_it() {
    let first = crate::in_task(RedisCluster::shared(&reference())).await;
    let second = RedisCluster::shared(&reference()).await;
    assert!(Arc::ptr_eq(&first, &second));
    let address = first.node(0).address();
    drop((first, second));
    assert!(request(address, &["PING"]).await.is_err());
}
