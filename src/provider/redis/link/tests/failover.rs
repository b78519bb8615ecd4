//! Replicas, promotions and Sentinels.

use super::servers::in_step;
use super::*;

/// Starts a replica, and waits until it has copied everything.
async fn replica_of(primary: &Server, version: &str) -> Server {
    let replica = Server::start(version, &format!("replicaof 127.0.0.1 {}", primary.port)).await;
    in_step(primary, &replica).await;
    replica
}

async fn promote(replica: &Server) {
    replica.command("REPLICAOF NO ONE").await;
}

#[tokio::test]
async fn a_replica_is_followed_to_its_primary_or_refused() {
    for version in VERSIONS {
        let mut primary = Server::start(version, "").await;
        let replica = replica_of(&primary, version).await;
        let (link, _) = connect(config(replica.node())).await.unwrap();
        assert_eq!(link.call("test", &count("a")).await.unwrap(), counted(1, "a"));
        assert_eq!((primary.links().await, replica.links().await), (1, 0));
        drop(link);
        primary.kill();
        let error = refused(config(replica.node())).await;
        let text = told(&error);
        assert!(error.kind() == ErrorKind::Connection && error.is_retryable(), "{text}");
        assert!(text.contains(&format!("it is a replica of 127.0.0.1:{}", primary.port)), "{text}");
    }
}

#[tokio::test]
async fn a_promoted_replica_is_found() {
    for version in VERSIONS {
        let mut first = Server::start(version, "").await;
        let second = replica_of(&first, version).await;
        let mut config = config(first.node());
        config.seeds.push(second.node());
        let (link, owner) = connect(config).await.unwrap();
        assert_eq!(link.call("test", &count("a")).await.unwrap(), counted(1, "a"));
        let before = link.server().replication_id.clone();
        in_step(&first, &second).await;

        promote(&second).await;
        first.command(&format!("REPLICAOF 127.0.0.1 {}", second.port)).await;
        // The first one answers READONLY. The second one does not know the script.
        assert_eq!(link.call("test", &count("b")).await.unwrap(), counted(2, "b"));
        assert_ne!(link.server().replication_id, before);
        assert_eq!(owner.connections(), 2);
        let limit = Duration::from_secs(5);
        assert!(link.ask_only(&before, &count("never"), limit).await.unwrap().is_none());
        let now = link.server().replication_id.clone();
        let answer = link.ask_only(&now, &count("c"), limit).await.unwrap().unwrap();
        assert_eq!((answer.value, answer.server.replication_id.clone()), (counted(3, "c"), now));

        in_step(&second, &first).await;
        drop(second);
        eventually("the end", async || !link.is_connected()).await;
        let call = count("d");
        let (answer, ()) = tokio::join!(link.call("test", &call), promote(&first));
        assert_eq!(answer.unwrap(), counted(4, "d"));
        first.kill();
    }
}

#[tokio::test]
async fn a_call_waits_for_a_primary_until_its_deadline() {
    let first = Server::start(REFERENCE, "").await;
    let second = replica_of(&first, REFERENCE).await;
    let mut config = config(first.node());
    config.seeds.push(second.node());
    let (link, _) = connect(config).await.unwrap();
    link.call("test", &count("a")).await.unwrap();
    first.command(&format!("REPLICAOF 127.0.0.1 {}", second.port)).await;
    let (limit, since) = (Duration::from_millis(500), Instant::now());
    let error = link.ask(&count("b"), limit).await.err().unwrap().to_error("publish");
    assert!(since.elapsed() < limit + GRACE, "{:?}", since.elapsed());
    let seen = (error.is_retryable(), error.may_be_stored());
    assert_eq!(seen, (true, false), "{}", told(&error));
}

#[tokio::test]
async fn sentinels_tell_the_primary() {
    for version in VERSIONS {
        let first = Server::start(version, "").await;
        let second = replica_of(&first, version).await;
        let sentinel = Server::start_sentinel(
            version,
            &format!(
                "requirepass canary\nsentinel monitor mine 127.0.0.1 {} 1\nsentinel down-after-milliseconds mine 500\n\
                 sentinel failover-timeout mine 5000",
                first.port
            ),
        )
        .await;
        let with = |name: &str, password: &str| {
            let mut config = config(Node::tcp("127.0.0.1", 1));
            config.seeds.push(sentinel.node());
            let password = Some(password.to_owned());
            let credentials = Credentials { user: None, password };
            config.sentinel = Some(Sentinel { name: name.to_owned(), credentials });
            config
        };
        let denied = refused(with("mine", "canary-of-guesses")).await;
        assert_eq!(denied.kind(), ErrorKind::Unauthorized);
        assert!(!told(&denied).contains("canary"), "{}", told(&denied));
        let unknown = refused(with("other", "canary")).await;
        assert!(
            unknown.kind() == ErrorKind::Config && unknown.to_string().contains("\"other\""),
            "{unknown}"
        );
        let direct = refused({
            let mut direct = config(sentinel.node());
            direct.credentials.password = Some("canary".to_owned());
            direct
        });
        assert!(direct.await.to_string().contains("it is a Sentinel"));

        let (link, _) = connect(with("mine", "canary")).await.unwrap();
        assert_eq!(link.call("test", &count("a")).await.unwrap(), counted(1, "a"));
        in_step(&first, &second).await;
        // The Sentinel learns of the replica when it asks the primary.
        let failing_over = async || {
            let mut sentinel = sentinel.login("canary").await;
            let failover = cmd("SENTINEL").arg("FAILOVER").arg("mine").take();
            sentinel.send_packed_command(&failover).await.unwrap() == Value::Okay
        };
        eventually("a failover begins", failing_over).await;
        let is_promoted = async || second.text("INFO replication").await.contains("role:master");
        eventually("the replica is promoted", is_promoted).await;
        // Until then the first one takes writes, and loses them.
        let is_replica = async || first.text("INFO replication").await.contains("role:slave");
        eventually("the first one is a replica", is_replica).await;
        assert_eq!(link.call("test", &count("b")).await.unwrap(), counted(2, "b"));
        assert_eq!(second.links().await, 1);
    }
}
