//! The launchers of a server with a replica, and of a Sentinel that watches them.

use std::time::Instant;

use a3s_event_testkit::servers::redis::protocol::Reply;
use a3s_event_testkit::servers::redis::versions;
use a3s_event_testkit::{RedisPair, RedisSentinel, RedisServer};

async fn get(server: &RedisServer, key: &str) -> Option<String> {
    server.command(&["GET", key]).await.text().map(str::to_owned)
}

fn is_read_only(reply: &Reply) -> bool {
    matches!(reply, Reply::Error(refusal) if refusal.starts_with("READONLY"))
}

#[tokio::test]
async fn a_detached_replica_lacks_the_tail_after_its_promotion() {
    for (version, binary) in versions() {
        let begin = Instant::now();
        let mut pair = crate::in_task(RedisPair::start_binary(&binary, "")).await;
        println!("{version}: a pair was ready after {:?}", begin.elapsed());
        pair.primary.command(&["SET", "a", "1"]).await;
        pair.in_sync().await;
        assert_eq!(get(&pair.replica, "a").await.as_deref(), Some("1"));
        pair.detach().await;
        pair.primary.command(&["SET", "b", "1"]).await;
        assert!(is_read_only(&pair.replica.request(&["SET", "c", "1"]).await.unwrap()));
        let id = pair.primary.info("master_replid").await;
        let old = pair.primary.port();
        pair.primary.kill();
        pair.promote().await;
        assert_eq!(pair.replica.port(), old);
        assert_ne!(pair.primary.info("master_replid").await, id);
        assert_eq!(
            (get(&pair.primary, "a").await.as_deref(), get(&pair.primary, "b").await),
            (Some("1"), None)
        );
        pair.primary.command(&["SET", "c", "1"]).await;
        pair.replica.start_again().await;
        assert_eq!(get(&pair.replica, "b").await.as_deref(), Some("1"), "it was not told");
        pair.follow().await;
        assert_eq!(
            (get(&pair.replica, "b").await, get(&pair.replica, "c").await.as_deref()),
            (None, Some("1"))
        );
        // Both stay what they are.
        pair.primary.restart().await;
        pair.replica.restart().await;
        pair.in_sync().await;
        assert!(is_read_only(&pair.replica.request(&["SET", "d", "1"]).await.unwrap()));
    }
}

#[tokio::test]
async fn a_sentinel_promotes_the_replica() {
    for (version, binary) in versions() {
        let begin = Instant::now();
        let mut watched = crate::in_task(RedisSentinel::start_binary(&binary, "", "")).await;
        println!("{version}: a Sentinel was ready after {:?}", begin.elapsed());
        let ports = (watched.pair.primary.port(), watched.pair.replica.port());
        watched.pair.primary.command(&["SET", "a", "1"]).await;
        watched.pair.in_sync().await;
        let begin = Instant::now();
        crate::in_task(watched.kill_primary()).await;
        println!("{version}: the replica was promoted after {:?}", begin.elapsed());
        assert_eq!((watched.pair.replica.port(), watched.pair.primary.port()), ports);
        assert_eq!(get(&watched.pair.primary, "a").await.as_deref(), Some("1"));
        watched.pair.primary.command(&["SET", "b", "1"]).await;
        watched.pair.replica.start_again().await;
        // The Sentinel makes it a replica of the new primary.
        let begin = Instant::now();
        watched.can_promote().await;
        println!("{version}: the previous primary was a replica after {:?}", begin.elapsed());
        watched.pair.in_sync().await;
        assert_eq!(get(&watched.pair.replica, "b").await.as_deref(), Some("1"));
        let begin = Instant::now();
        crate::in_task(watched.fail_over()).await;
        println!("{version}: the primary was changed after {:?}", begin.elapsed());
        assert_eq!((watched.pair.primary.port(), watched.pair.replica.port()), ports);
        assert!(is_read_only(&watched.pair.replica.request(&["SET", "c", "1"]).await.unwrap()));
        watched.kill_sentinel();
        assert!(watched.sentinel().request(&["PING"]).await.is_err());
        watched.start_sentinel_again().await;
        assert!(watched.url().ends_with(&format!("?sentinel={}", watched.name())));
    }
}
