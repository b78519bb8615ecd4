//! Calls, messages, and the servers that are refused.

use super::*;

#[tokio::test]
async fn a_link_calls_scripts_and_receives_messages() {
    for version in VERSIONS {
        let server = Server::start(version, "").await;
        let (link, owner) = connect(config(server.node())).await.unwrap();
        // The first call loads the script, because no connection did.
        assert_eq!(link.call("test", &count("a")).await.unwrap(), counted(1, "a"));
        server.command(&format!("PUBLISH {} hello", keys().channel())).await;
        eventually("the message", async || owner.received.load(Ordering::SeqCst) == 1).await;
        assert_eq!(*owner.messages.lock().unwrap(), [b"hello"]);
        assert_eq!(owner.connections(), 1);

        let facts = link.server();
        let (product, number) = version.split_once('-').unwrap();
        assert_eq!((facts.product.as_str(), facts.version.as_str()), (product, number));
        assert_eq!((facts.max_memory, facts.persistence), (Some(0), Persistence::Shown(Aof::Off)));
        assert_eq!((facts.is_cluster, facts.replication_id.len()), (false, 40));
        let scripts = Info::parse(server.command("INFO memory").await).unwrap();
        let scripts = scripts.field("number_of_cached_scripts").unwrap().parse::<usize>().unwrap();
        assert!(scripts >= crate::provider::redis::script::all().len(), "{scripts}");
        assert_eq!(server.links().await, 1);
        let library = server.text("CLIENT LIST").await.contains("lib-name=a3s-event");
        assert_eq!(library, version != "redis-7.0.15", "it does not know the command");
        server.command("SCRIPT FLUSH").await;
        assert_eq!(link.call("test", &count("b")).await.unwrap(), counted(2, "b"));
        assert!(link.is_connected());
        link.check("test").await.unwrap();
    }
}

#[tokio::test]
async fn the_log_of_the_server_decides_about_durability() {
    let server = Server::start(REFERENCE, "appendonly yes\nappendfsync always").await;
    let (link, _) = connect(config(server.node())).await.unwrap();
    assert_eq!(link.server().persistence, Persistence::Shown(Aof::Always));
}

#[tokio::test]
async fn a_unix_socket_and_a_database_work() {
    let server = Server::start(REFERENCE, "").await;
    let mut config = config(Node::Unix(server.path("s")));
    config.database = 3;
    let (link, _) = connect(config).await.unwrap();
    link.call("test", &count("a")).await.unwrap();
    assert!(server.text("INFO keyspace").await.contains("db3:keys=1"));
}

#[tokio::test]
async fn a_script_that_vanishes_again_and_again_is_loaded_again_and_again() {
    for version in VERSIONS {
        let server = Server::start(version, "").await;
        let (link, _) = connect(config(server.node())).await.unwrap();
        let flushing = async {
            loop {
                server.command("SCRIPT FLUSH").await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let calling = async {
            for number in 1..=500 {
                assert_eq!(link.call("test", &count("x")).await.unwrap(), counted(number, "x"));
            }
        };
        tokio::select! { () = flushing => {}, () = calling => {} }
    }
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_shown_nowhere() {
    const PASSWORD: &str = "canary-of-secrets";
    for version in VERSIONS {
        let server = Server::start(version, &format!("requirepass {PASSWORD}")).await;
        let with = |user: Option<&str>, password: &str| {
            let mut config = config(server.node());
            config.credentials =
                Credentials { user: user.map(str::to_owned), password: Some(password.to_owned()) };
            config
        };
        let error = refused(with(None, "canary-of-guesses")).await;
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unauthorized, false));
        let nothing = refused(config(server.node())).await;
        assert_eq!(nothing.kind(), ErrorKind::Unauthorized, "{nothing}");
        for text in [told(&error), told(&nothing), format!("{:?}", with(None, PASSWORD))] {
            assert!(!text.contains("canary"), "{text}");
        }
        let (link, _) = connect(with(Some("default"), PASSWORD)).await.unwrap();
        link.call("test", &echo("a")).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_repeats_the_password_does_not_spread_it() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    for answer in [
        "-ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'default' 'canary' \r\n",
        "-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `canary`, \r\n",
        "-ERR no user default with canary\r\n",
        "canary\r\n",
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = config(Node::tcp("127.0.0.1", listener.local_addr().unwrap().port()));
        config.credentials.password = Some("canary".to_owned());
        config.connect_timeout = Duration::from_secs(2);
        let answering = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1_000]).await;
            // One for each command of the greeting.
            stream.write_all(answer.repeat(3).as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        };
        let error = tokio::select! { error = refused(config) => error, () = answering => unreachable!() };
        let text = told(&error);
        assert!(!text.contains("canary"), "{text}");
    }
}

#[tokio::test]
async fn a_user_with_few_permissions_can_use_the_link() {
    for version in VERSIONS {
        let server = Server::start(version, "").await;
        let base = keys().base().to_owned();
        let acl = format!(
            "ACL SETUSER few on >pw ~{base}* resetchannels -@all +evalsha +script|load +hello +incr +ping +get"
        );
        server.command(&acl).await;
        let mut config = config(server.node());
        config.credentials = Credentials { user: Some("few".to_owned()), password: Some("pw".to_owned()) };
        let (link, _) = connect(config).await.unwrap();
        assert_eq!(link.call("test", &count("a")).await.unwrap(), counted(1, "a"));
        let facts = link.server();
        assert_eq!((facts.max_memory, facts.persistence), (None, Persistence::Hidden { aof_enabled: None }));
        link.check("test").await.unwrap();

        let foreign = link.call("test", &Call::new(&COUNT).key("foreign").argument("")).await.unwrap_err();
        assert_eq!((foreign.kind(), foreign.may_be_stored()), (ErrorKind::Unauthorized, false), "{foreign}");
        server.command("ACL SETUSER few -incr").await;
        let inside = link.call("test", &count("b")).await.unwrap_err();
        assert_eq!(inside.kind(), ErrorKind::Unauthorized, "{}", told(&inside));
        assert!(inside.may_be_stored(), "a script that fails keeps what it has written");
    }
}

#[tokio::test]
async fn a_server_that_evicts_events_is_refused() {
    let server = Server::start(REFERENCE, "maxmemory 100mb\nmaxmemory-policy allkeys-lru").await;
    let error = refused(config(server.node())).await;
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("allkeys-lru"), "{error}");
    let mut accepting = config(server.node());
    accepting.allow_eviction = true;
    connect(accepting).await.unwrap();
    server.command("CONFIG SET maxmemory-policy volatile-ttl").await;
    connect(config(server.node())).await.unwrap();
    server.command("CONFIG SET maxmemory-policy allkeys-lru maxmemory 0").await;
    connect(config(server.node())).await.unwrap();
}

#[tokio::test]
async fn a_full_memory_and_missing_replicas_are_told_and_store_nothing() {
    for version in VERSIONS {
        let server = Server::start(version, "").await;
        let (link, _) = connect(config(server.node())).await.unwrap();
        link.call("test", &count("a")).await.unwrap();
        for (refusing, accepting) in
            [("maxmemory 1", "maxmemory 0"), ("min-replicas-to-write 1", "min-replicas-to-write 0")]
        {
            server.command(&format!("CONFIG SET {refusing}")).await;
            // What reads works, also on a new connection.
            let (reader, _) = connect(config(server.node())).await.unwrap();
            assert_eq!(reader.call("test", &echo("r")).await.unwrap(), bulk("r"));
            let error = link.call("test", &count("b")).await.unwrap_err();
            let seen = (error.kind(), error.is_retryable(), error.may_be_stored());
            assert_eq!(seen, (ErrorKind::Storage, true, false), "{}", told(&error));
            server.command(&format!("CONFIG SET {accepting}")).await;
        }
        assert_eq!(link.call("test", &count("c")).await.unwrap(), counted(2, "c"));
    }
}

#[tokio::test]
async fn a_foreign_key_is_named() {
    for version in VERSIONS {
        let server = Server::start(version, "").await;
        let (link, _) = connect(config(server.node())).await.unwrap();
        let key = keys().consumer("c");
        server.command(&format!("SET {key} x")).await;
        let call = Call::new(&READ).key(&*key).key(keys().log());
        let error = link.call("fetch", &call).await.unwrap_err();
        let text = error.to_string();
        assert_eq!((error.kind(), error.may_be_stored()), (ErrorKind::Conflict, false), "{text}");
        assert!(text.contains(&format!("key \"{key}\"")), "{text}");
        assert!(text.contains("type is string, requested hash"), "{text}");
    }
}

#[tokio::test]
async fn a_busy_server_is_waited_for() {
    for version in VERSIONS {
        let server = Server::start(version, "lua-time-limit 20").await;
        let (link, _) = connect(config(server.node())).await.unwrap();
        link.call("test", &count("a")).await.unwrap();
        let endless = cmd("EVAL").arg("while true do end").arg(0).take();
        let spinning = server.try_command(&endless);
        let calling = async {
            let is_busy = async || {
                let answer = server.try_command(&cmd("GET").arg("x").take()).await;
                matches!(answer, Value::ServerError(error) if error.code() == "BUSY")
            };
            eventually("the server is busy", is_busy).await;
            // A busy machine can make the last answer late.
            let is_refused = async || {
                let hasty = link.ask(&echo("b"), Duration::from_secs(1)).await;
                let error = hasty.err().unwrap().to_error("test");
                assert!(error.is_retryable(), "{}", told(&error));
                !error.may_be_stored()
            };
            eventually("a refusal", is_refused).await;
            let call = count("c");
            let patient = link.call("test", &call);
            let (answer, _) = tokio::join!(patient, server.command("SCRIPT KILL"));
            assert_eq!(answer.unwrap(), counted(2, "c"));
        };
        tokio::join!(spinning, calling);
    }
}

#[tokio::test]
async fn closing_ends_calls_and_connections() {
    let server = Server::start(REFERENCE, "").await;
    let (link, _) = connect(config(server.node())).await.unwrap();
    link.call("test", &count("a")).await.unwrap();
    server.freeze();
    let calling = count("b");
    let calling = link.call("publish", &calling);
    tokio::pin!(calling);
    assert!(futures_util::future::poll_immediate(&mut calling).await.is_none());
    let (failed, ()) = tokio::join!(calling, link.close());
    server.thaw();
    let failed = failed.unwrap_err();
    assert!(failed.may_be_stored() && !failed.is_closed(), "it was sent: {failed}");
    assert!(link.call("publish", &count("c")).await.unwrap_err().is_closed());
    eventually("the connection is closed", async || server.links().await == 0).await;
    let (fresh, _) = connect(config(server.node())).await.unwrap();
    fresh.call("test", &count("d")).await.unwrap();
    drop(fresh);
    eventually("a dropped link is closed", async || server.links().await == 0).await;
}

#[tokio::test]
async fn answers_belong_to_their_calls_when_others_are_dropped() {
    for version in VERSIONS {
        let server = Server::start(version, "").await;
        let (link, _) = connect(config(server.node())).await.unwrap();
        for round in 0..100 {
            let calls = (0..20).map(|number| {
                let text = format!("{round}.{number}");
                let (drops, polls) = ((round + number) % 3 == 0, 1 + (round * number) % 3);
                let call = echo(&text);
                let link = &link;
                async move {
                    let mut calling = Box::pin(link.call("test", &call));
                    if drops {
                        for _ in 0..polls {
                            if futures_util::future::poll_immediate(&mut calling).await.is_some() {
                                return;
                            }
                            tokio::task::yield_now().await;
                        }
                        return;
                    }
                    assert_eq!(calling.await.unwrap(), bulk(&text));
                }
            });
            futures_util::future::join_all(calls).await;
        }
    }
}
