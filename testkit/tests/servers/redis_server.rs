//! The launcher of one real server.

use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use a3s_event_testkit::RedisServer;
use a3s_event_testkit::servers::redis::protocol::{Reply, request, requests};
use a3s_event_testkit::servers::redis::{redis_cli, versions};

fn accepts(server: &RedisServer) -> bool {
    TcpStream::connect(server.address()).is_ok()
}

/// Runs a test on each version that is here.
async fn on_each(test: impl AsyncFn(PathBuf)) {
    for (version, binary) in versions() {
        println!("on {version}");
        test(binary).await;
    }
}

/// Nothing, or the refusal.
fn text(reply: &Reply) -> &str {
    match reply {
        Reply::Error(text) | Reply::Text(text) => text,
        _ => "",
    }
}

#[tokio::test]
async fn servers_are_the_versions_that_they_are_called() {
    for (version, binary) in versions() {
        let server = crate::in_task(RedisServer::start_binary(&binary, "")).await;
        let (name, number) = version.split_once('-').unwrap();
        let is_overridden = std::env::var_os("A3S_EVENT_REDIS_SERVER").is_some_and(|path| path == binary);
        if !is_overridden {
            assert_eq!(server.info(&format!("{name}_version")).await, number);
        }
    }
}

#[tokio::test]
async fn servers_are_separate_ready_and_gone_when_dropped() {
    on_each(async |binary| {
        let begin = Instant::now();
        let first = RedisServer::start_binary(&binary, "").await;
        println!("one server was ready after {:?}", begin.elapsed());
        let second = RedisServer::start_binary(&binary, "").await;
        assert_ne!(first.port(), second.port());
        assert!(accepts(&first) && accepts(&second));
        first.command(&["SET", "a", "1"]).await;
        assert_eq!(second.command(&["GET", "a"]).await, Reply::Nil);
        let (address, folder) = (first.address(), first.folder().to_owned());
        assert!(folder.is_dir());
        drop(first);
        assert!(TcpStream::connect(address).is_err() && !folder.exists());
        assert!(accepts(&second));
    })
    .await;
}

#[tokio::test]
async fn a_killed_server_keeps_its_port_and_what_it_stored() {
    on_each(async |binary| {
        let mut server = RedisServer::start_binary(&binary, "").await;
        let (port, socket, process) = (server.port(), server.socket(), server.process_id());
        server.command(&["SET", "a", "1"]).await;
        server.kill();
        assert!(!accepts(&server));
        let unreachable = server.request(&["PING"]).await.unwrap_err();
        assert_eq!(unreachable.kind(), std::io::ErrorKind::ConnectionRefused);
        server.start_again().await;
        assert_eq!((server.port(), server.socket()), (port, socket));
        assert_ne!(server.process_id(), process);
        assert_eq!(text(&server.command(&["GET", "a"]).await), "1");
        server.command(&["SET", "a", "2"]).await;
        server.restart().await;
        assert_eq!(text(&server.command(&["GET", "a"]).await), "2");
        assert_eq!(text(&request(server.address(), &["GET", "a"]).await.unwrap()), "2");
    })
    .await;
}

#[tokio::test]
async fn a_frozen_server_is_silent_until_it_is_thawed() {
    on_each(async |binary| {
        let server = RedisServer::start_binary(&binary, "").await;
        server.freeze().await;
        let (address, a_while) = (server.address(), Duration::from_millis(100));
        let mut asking = tokio::spawn(async move { request(address, &["PING"]).await });
        assert!(tokio::time::timeout(a_while, &mut asking).await.is_err());
        server.thaw();
        assert_eq!(text(&asking.await.unwrap().unwrap()), "PONG");
    })
    .await;
}

#[tokio::test]
async fn a_server_that_loads_answers_so_before_it_is_ready() {
    on_each(async |binary| {
        let mut server = RedisServer::start_binary(&binary, "").await;
        for chunk in 0..20 {
            let chunk = chunk.to_string();
            let script = "for i = 1, 100 do redis.call('SET', ARGV[1] .. ':' .. i, i) end";
            server.command(&["EVAL", script, "0", &chunk]).await;
        }
        server.kill();
        // In microseconds, for each key.
        server.configure("key-load-delay 1000\nloading-process-events-interval-bytes 1024");
        server.start_loading();
        let loading = loop {
            match server.request(&["DBSIZE"]).await {
                Ok(reply) => break reply,
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        };
        assert!(text(&loading).starts_with("LOADING"), "{loading:?}");
        server.ready().await;
        assert_eq!(server.command(&["DBSIZE"]).await, Reply::Integer(2_000));
    })
    .await;
}

#[tokio::test]
async fn the_lines_of_a_test_win_and_the_launcher_gets_in_whatever_they_say() {
    on_each(async |binary| {
        let config = "requirepass secret\nuser app on >canary ~a:* +get\nappendonly no\nmaxmemory 100mb";
        let mut server = RedisServer::start_binary(&binary, config).await;
        let address = server.address();
        let refused = request(address, &["PING"]).await.unwrap();
        assert!(text(&refused).starts_with("NOAUTH"), "{refused:?}");
        let commands: [&[&str]; 2] = [&["AUTH", "secret"], &["PING"]];
        assert_eq!(text(&requests(address, &commands).await.unwrap()[1]), "PONG");
        let commands: [&[&str]; 3] = [&["AUTH", "app", "canary"], &["GET", "a:1"], &["GET", "b"]];
        let replies = requests(address, &commands).await.unwrap();
        assert_eq!(replies[1], Reply::Nil);
        assert!(text(&replies[2]).starts_with("NOPERM"), "{replies:?}");
        assert_eq!(server.info("maxmemory").await, "104857600");
        server.command(&["SET", "a", "1"]).await;
        server.kill();
        server.configure("");
        server.start_again().await;
        assert_eq!(server.command(&["GET", "a"]).await, Reply::Nil, "it had no file");
        assert_eq!(text(&request(address, &["PING"]).await.unwrap()), "PONG");
    })
    .await;
}

#[tokio::test]
async fn a_server_tells_its_cpu_time_its_fields_and_its_slow_commands() {
    on_each(async |binary| {
        let server = RedisServer::start_binary(&binary, "slowlog-log-slower-than 5000").await;
        assert_eq!(server.info("aof_delayed_fsync").await, "0");
        let before = server.used_cpu().await;
        server.command(&["EVAL", "for i = 1, 5000000 do end", "0"]).await;
        let used = server.used_cpu().await - before;
        assert!(used >= Duration::from_millis(5), "{used:?}");
        server.command(&["DEBUG", "SLEEP", "0.05"]).await;
        let slow = server.slowlog().await;
        let of = |name: &str| slow.iter().position(|command| command.words[0] == name).unwrap();
        assert!(of("DEBUG") < of("EVAL"), "the newest comes first: {slow:?}");
        let slept = &slow[of("DEBUG")];
        assert!(
            slept.took >= Duration::from_millis(50) && slept.words[1..] == ["SLEEP", "0.05"],
            "{slept:?}"
        );
    })
    .await;
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn a_server_gets_the_environment_of_a_test_also_when_it_starts_again() {
    on_each(async |binary| {
        // A server that shows a title in the list of processes overwrites its environment there.
        let config = "set-proc-title no";
        let mut server = RedisServer::start_in(&binary, config, &[("A3S_EVENT_TEST_CANARY", "1")]).await;
        let has_it = |server: &RedisServer| {
            let environment = std::fs::read(format!("/proc/{}/environ", server.process_id())).unwrap();
            environment.split(|byte| *byte == 0).any(|variable| variable == b"A3S_EVENT_TEST_CANARY=1")
        };
        assert!(has_it(&server));
        server.restart().await;
        assert!(has_it(&server));
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "redis-server ended with")]
async fn a_server_that_cannot_start_fails_the_test_with_its_log() {
    RedisServer::start_with("no-such-line 1").await;
}

#[tokio::test]
async fn the_tool_of_operators_reaches_a_server() {
    let Some(tool) = redis_cli() else { return println!("not checked: there is no redis-cli here") };
    let server = RedisServer::start().await;
    server.command(&["SET", "a", "1"]).await;
    let ran = std::process::Command::new(tool).args(["-u", &server.url(), "GET", "a"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "1\n", "{ran:?}");
}
