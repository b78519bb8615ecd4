//! Writes that replicas or the disk must confirm.

use super::*;

const LIMIT: Duration = Duration::from_millis(500);

fn demanding(node: Node, replicas: u32, aof: bool) -> LinkConfig {
    let mut config = config(node);
    config.confirmation = Confirmation { replicas, aof };
    config
}

fn outcome(answer: Carried<Answer>) -> std::result::Result<Value, EventError> {
    answer.map(|answer| answer.value).map_err(|failure| failure.to_error("publish"))
}

#[tokio::test]
async fn a_write_is_confirmed_by_a_replica() {
    for version in VERSIONS {
        let server = Server::start(version, "").await;
        let replica = Server::start(version, &format!("replicaof 127.0.0.1 {}", server.port)).await;
        let is_online = async || server.text("INFO replication").await.contains("state=online");
        eventually("the replica is online", is_online).await;
        let (link, _) = connect(demanding(server.node(), 1, false)).await.unwrap();
        assert_eq!(server.links().await, 2, "waiting blocks a connection");
        let answer = link.ask_confirmed(&count("a"), Duration::from_secs(10)).await;
        assert_eq!(outcome(answer).unwrap(), counted(1, "a"));
        server.command(&format!("HSET {} v 1", keys().meta())).await;

        replica.freeze();
        let since = Instant::now();
        let error = outcome(link.ask_confirmed(&count("b"), LIMIT).await).unwrap_err();
        assert!(since.elapsed() < LIMIT + GRACE, "{:?}", since.elapsed());
        let seen = (error.kind(), error.is_retryable(), error.may_be_stored());
        assert_eq!(seen, (ErrorKind::Storage, true, true), "{}", told(&error));
        assert!(told(&error).contains("0 of 1 replicas"), "{}", told(&error));
        // The connection for other calls does not wait.
        assert_eq!(link.call("test", &count("c")).await.unwrap(), counted(3, "c"));
        // A new connection has written nothing, and must still not confirm what the one before has written.
        let (fresh, _) = connect(demanding(server.node(), 1, false)).await.unwrap();
        let error = outcome(fresh.ask_confirmed(&echo("stored already"), LIMIT).await).unwrap_err();
        assert!(error.may_be_stored(), "{}", told(&error));

        replica.thaw();
        let answer = fresh.ask_confirmed(&echo("stored already"), Duration::from_secs(10)).await;
        assert_eq!(outcome(answer).unwrap(), bulk("stored already"));
        let touched = format!("HGET {} touched", keys().meta());
        assert_eq!(server.command(&touched).await, bulk("1"));
    }
}

#[tokio::test]
async fn a_write_is_confirmed_by_the_disk() {
    for version in VERSIONS {
        let server = Server::start(version, "appendonly yes\nappendfsync everysec").await;
        let connected = connect(demanding(server.node(), 0, true)).await;
        if version == "redis-7.0.15" {
            let error = connected.err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains("wait_aof needs Redis 7.2"), "{error}");
            continue;
        }
        let (link, _) = connected.unwrap();
        let answer = link.ask_confirmed(&count("a"), Duration::from_secs(10)).await;
        assert_eq!(outcome(answer).unwrap(), counted(1, "a"));
        server.command("CONFIG SET appendonly no").await;
        let error = refused(demanding(server.node(), 0, true)).await;
        assert!(error.to_string().contains("wait_aof needs appendonly"), "{error}");
    }
}

#[tokio::test]
async fn a_refusal_behind_the_write_leaves_the_outcome_unknown() {
    let server = Server::start(REFERENCE, "").await;
    let (link, _) = connect(demanding(server.node(), 1, false)).await.unwrap();
    server.command("ACL SETUSER default -wait").await;
    let error = outcome(link.ask_confirmed(&count("a"), LIMIT).await).unwrap_err();
    assert!(error.may_be_stored(), "{}", told(&error));
    let error = refused(demanding(server.node(), 1, false)).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{}", told(&error));
}
