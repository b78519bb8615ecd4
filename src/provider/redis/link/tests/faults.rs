//! Damaged and silent connections, and servers that stop.

use a3s_event_testkit::servers::fault_proxy::{Direction, FaultProxy, Verdict};
use tokio::sync::Notify;

use super::servers::frame_length;
use super::*;

async fn proxy(server: &Server) -> FaultProxy {
    FaultProxy::start(server.address(), frame_length, 7).await
}

fn through(proxy: &FaultProxy) -> LinkConfig {
    config(Node::tcp("127.0.0.1", proxy.address().port()))
}

/// Returns true if the frame has this text.
fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

/// Drops the request that has this text, or its answer, and tells it.
fn drop_one(proxy: &FaultProxy, direction: Direction, text: &'static str) -> Arc<Notify> {
    let dropped = Arc::new(Notify::new());
    let tell = Arc::clone(&dropped);
    proxy.filter(move |frame| {
        if frame.direction == direction && has(frame.bytes, text) {
            tell.notify_one();
            return Verdict::Drop;
        }
        Verdict::Forward
    });
    dropped
}

#[tokio::test]
async fn a_call_that_is_cut_is_never_repeated() {
    for version in VERSIONS {
        let server = Server::start(version, "").await;
        let proxy = proxy(&server).await;
        let (link, owner) = connect(through(&proxy)).await.unwrap();
        assert_eq!(link.call("test", &count("first")).await.unwrap(), counted(1, "first"));
        let mut carried_out = 1;
        for (round, direction) in [Direction::ToServer, Direction::ToClient].into_iter().enumerate() {
            let dropped = drop_one(&proxy, direction, "fatal");
            let call = count("fatal");
            let cut = async {
                dropped.notified().await;
                proxy.reset();
                proxy.forward_all();
            };
            let (error, ()) = tokio::join!(link.call("publish", &call), cut);
            let error = error.unwrap_err();
            let seen = (error.kind(), error.is_retryable(), error.may_be_stored());
            assert_eq!(seen, (ErrorKind::Connection, true, true), "{}", told(&error));
            // Behind the request it was carried out, and before the request it was not.
            carried_out += 1 + i64::from(direction == Direction::ToClient);
            assert_eq!(link.call("test", &count("next")).await.unwrap(), counted(carried_out, "next"));
            owner.connected(round as u64 + 2).await;
        }
    }
}

#[tokio::test]
async fn half_an_answer_is_no_answer() {
    let server = Server::start(REFERENCE, "").await;
    let proxy = proxy(&server).await;
    let (link, _) = connect(through(&proxy)).await.unwrap();
    link.call("test", &echo("first")).await.unwrap();
    let text = "fatal".repeat(1_000);
    let mut is_cut = false;
    proxy.filter(move |frame| {
        let is_answer = frame.direction == Direction::ToClient && has(frame.bytes, "fatal");
        let cuts = is_answer && !is_cut;
        is_cut |= cuts;
        match cuts {
            true => Verdict::Cut,
            false => Verdict::Forward,
        }
    });
    let error = link.call("publish", &echo(&text)).await.unwrap_err();
    assert!(error.may_be_stored() && error.kind() == ErrorKind::Connection, "{}", told(&error));
    assert_eq!(link.call("test", &echo(&text)).await.unwrap(), bulk(&text));
}

#[tokio::test]
async fn a_black_hole_ends_calls_at_their_deadline() {
    let server = Server::start(REFERENCE, "").await;
    let proxy = proxy(&server).await;
    let (link, owner) = connect(through(&proxy)).await.unwrap();
    link.call("test", &count("a")).await.unwrap();
    for held in [Direction::ToServer, Direction::ToClient] {
        let before = proxy.connections();
        proxy.hold(held);
        let limit = Duration::from_millis(300);
        for is_sent in [true, true, false] {
            let since = Instant::now();
            let error = link.ask(&count("b"), limit).await.err().unwrap().to_error("publish");
            let took = since.elapsed();
            assert!(took >= limit && took < limit + GRACE, "{took:?}");
            let expected = if is_sent { ErrorKind::Timeout } else { ErrorKind::Connection };
            let seen = (error.kind(), error.is_retryable(), error.may_be_stored());
            assert_eq!(seen, (expected, true, is_sent), "{}", told(&error));
        }
        eventually("another connection", async || proxy.connections() > before).await;
        let connected = owner.connections();
        proxy.release();
        link.call("test", &echo("c")).await.unwrap();
        owner.connected(connected + 1).await;
    }
}

#[tokio::test]
async fn an_idle_link_notices_a_lost_connection() {
    let server = Server::start(REFERENCE, "").await;
    let proxy = proxy(&server).await;
    let mut config = through(&proxy);
    config.patience = Duration::from_millis(200);
    let (link, owner) = connect(config).await.unwrap();
    proxy.reset();
    owner.connected(2).await;
    proxy.hold(Direction::ToServer);
    eventually("another connection", async || proxy.connections() > 2).await;
    proxy.release();
    owner.connected(3).await;
    server.command(&format!("PUBLISH {} hello", keys().channel())).await;
    eventually("the message", async || owner.received.load(Ordering::SeqCst) == 1).await;
    drop(link);
}

#[tokio::test]
async fn messages_do_not_hide_that_no_request_arrives() {
    let server = Server::start(REFERENCE, "").await;
    let proxy = proxy(&server).await;
    let (link, owner) = connect(through(&proxy)).await.unwrap();
    proxy.hold(Direction::ToServer);
    for number in 1..=2 {
        let failed = link.ask(&echo("a"), Duration::from_millis(100)).await;
        assert!(failed.is_err());
        server.command(&format!("PUBLISH {} hello", keys().channel())).await;
        if number == 1 {
            eventually("the message", async || owner.received.load(Ordering::SeqCst) == 1).await;
        }
    }
    eventually("another connection", async || proxy.connections() == 2).await;
}

#[tokio::test]
async fn a_server_that_stalls_for_5_seconds_is_kept() {
    let server = Server::start(REFERENCE, "").await;
    let (link, owner) = connect(config(server.node())).await.unwrap();
    link.call("test", &count("a")).await.unwrap();
    server.freeze();
    let hasty = async {
        let (limit, since) = (Duration::from_millis(300), Instant::now());
        let error = link.ask(&count("b"), limit).await.err().unwrap().to_error("publish");
        assert!(since.elapsed() < limit + GRACE);
        assert!(error.kind() == ErrorKind::Timeout && error.may_be_stored());
    };
    let stall = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        server.thaw();
    };
    let call = count("c");
    let (answer, (), ()) = tokio::join!(link.call("test", &call), hasty, stall);
    // Both calls are in one connection, and the server carries out both.
    let Value::Array(answer) = answer.unwrap() else { panic!("no answer") };
    assert_eq!(answer.get(1), Some(&bulk("c")));
    assert_eq!(link.call("test", &count("d")).await.unwrap(), counted(4, "d"));
    assert_eq!(owner.connections(), 1);
}

#[tokio::test]
async fn a_call_waits_for_a_server_that_restarts() {
    for version in VERSIONS {
        let mut server = Server::start(version, "appendonly yes\nappendfsync no").await;
        let (link, owner) = connect(config(server.node())).await.unwrap();
        link.call("test", &count("a")).await.unwrap();
        server.kill();
        let hasty = async {
            let (limit, since) = (Duration::from_millis(300), Instant::now());
            eventually("the end", async || !link.is_connected()).await;
            let error = link.ask(&count("b"), limit).await.err().unwrap().to_error("publish");
            assert!(since.elapsed() < limit + GRACE);
            let seen = (error.kind(), error.is_retryable(), error.may_be_stored());
            assert_eq!(seen, (ErrorKind::Connection, true, false), "{}", told(&error));
        };
        hasty.await;
        let call = count("c");
        let (answer, ()) = tokio::join!(link.call("test", &call), server.start_again());
        assert_eq!(answer.unwrap(), counted(2, "c"));
        assert_eq!(owner.connections(), 2);
    }
}

#[tokio::test]
async fn a_server_that_loads_its_data_is_waited_for() {
    for version in VERSIONS {
        let mut server = Server::start(version, "").await;
        let (link, _) = connect(config(server.node())).await.unwrap();
        link.call("test", &count("a")).await.unwrap();
        let fill = "for i = 1, 300 do redis.call('SET', 'k' .. i, string.rep('x', 2000)) end";
        server.try_command(&cmd("EVAL").arg(fill).arg(0).take()).await;
        server.command("SAVE").await;
        server.kill();
        server.configure("key-load-delay 5000\nloading-process-events-interval-bytes 1024");
        server.spawn_again();
        let is_loading = async || {
            let Ok(stream) = tokio::net::TcpStream::connect(server.address()).await else { return false };
            drop(stream);
            let answer = server.try_command(&cmd("GET").arg("x").take()).await;
            matches!(answer, Value::ServerError(error) if error.code() == "LOADING")
        };
        eventually("the server loads", is_loading).await;
        let hasty = async {
            let error =
                link.ask(&count("b"), Duration::from_millis(200)).await.err().unwrap().to_error("publish");
            assert!(error.is_retryable() && !error.may_be_stored(), "{}", told(&error));
        };
        let call = count("c");
        let (waiting, connected, ()) =
            tokio::join!(link.call("test", &call), connect(config(server.node())), hasty);
        assert_eq!(waiting.unwrap(), counted(2, "c"));
        connected.unwrap();
    }
}

#[tokio::test]
async fn one_seed_of_several_is_enough() {
    let server = Server::start(REFERENCE, "").await;
    // A port without a server, and one that accepts and is silent.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config(Node::tcp("127.0.0.1", 1));
    config.seeds.push(Node::tcp("127.0.0.1", silent.local_addr().unwrap().port()));
    config.seeds.push(server.node());
    config.connect_timeout = Duration::from_secs(1);
    let since = Instant::now();
    let (link, _) = connect(config.clone()).await.unwrap();
    link.call("test", &echo("a")).await.unwrap();
    config.seeds.pop();
    let error = refused(config).await;
    assert!(since.elapsed() < Duration::from_secs(1) + GRACE);
    let text = told(&error);
    assert!(error.is_retryable() && error.kind() == ErrorKind::Connection, "{text}");
    assert!(text.contains("127.0.0.1:1: cannot be reached") && text.contains("no answer within"), "{text}");
}
