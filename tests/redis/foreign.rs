//! Other programs that read and write the stream on the server.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use a3s_event::{ErrorKind, EventError};
use a3s_event_testkit::servers::redis::redis_cli;
use redis::{FromRedisValue, Value, aio::MultiplexedConnection, cmd};

use super::*;

const LOG: &str = "a3s:{events}:log";

async fn client(server: &RedisServer) -> MultiplexedConnection {
    redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

fn read<T: FromRedisValue>(fields: &HashMap<String, Value>, field: &str) -> T {
    redis::from_redis_value(fields[field].clone()).unwrap()
}

/// The lag of the group that mirrors a consumer.
async fn shown_lag(client: &mut MultiplexedConnection) -> u64 {
    let groups: Vec<HashMap<String, Value>> =
        cmd("XINFO").arg(&["GROUPS", LOG]).query_async(client).await.unwrap();
    assert_eq!(groups.len(), 1);
    assert_eq!(read::<String>(&groups[0], "name"), "worker");
    read(&groups[0], "lag")
}

#[tokio::test]
async fn other_programs_read_the_log() {
    on_each(async |_, binary| {
        let server = RedisServer::start_binary(&binary, "").await;
        let provider = connect(&server).await;
        publish_numbers(&provider, 1..=3).await;
        let client = &mut client(&server).await;
        let records: Vec<(String, Vec<String>)> =
            cmd("XRANGE").arg(&[LOG, "2", "3"]).query_async(client).await.unwrap();
        let [(id, fields), _] = &*records else { panic!("{records:?}") };
        assert!(id.starts_with("2-"), "{id}");
        let [subject, event] = [&fields[1], &fields[3]];
        assert_eq!((&*fields[0], &**subject, &*fields[2]), ("s", "events.test.2", "e"));
        let event: Event = serde_json::from_str(event).unwrap();
        assert_eq!((event.subject, event.payload), ("events.test.2".to_owned(), 2.into()));
        let info: HashMap<String, Value> =
            cmd("XINFO").arg(&["STREAM", LOG]).query_async(client).await.unwrap();
        assert_eq!((read::<u64>(&info, "length"), read::<u64>(&info, "entries-added")), (3, 3));
    })
    .await;
}

#[tokio::test]
async fn a_mirror_group_shows_the_lag_of_the_subscription() {
    on_each(async |_, binary| {
        let server = RedisServer::start_binary(&binary, "").await;
        let provider = RedisProvider::connect(config(&server).mirror_groups(true)).await.unwrap();
        let mut member = provider.subscribe_durable("worker", FILTER).await.unwrap();
        let client = &mut client(&server).await;
        publish_numbers(&provider, 1..=20).await;
        assert_eq!((shown_lag(client).await, member.lag().await.unwrap()), (20, 20));
        for taken in 1..=7 {
            next(&mut *member).await.ack().await.unwrap();
            assert_eq!((shown_lag(client).await, member.lag().await.unwrap()), (20 - taken, 20 - taken));
        }
        let read = cmd("XREADGROUP").arg(&["GROUP", "worker", "someone", "STREAMS", LOG, ">"]).take();
        let _: Value = read.query_async(client).await.unwrap();
        assert_eq!(next(&mut *member).await.sequence(), 8);
        assert_eq!((shown_lag(client).await, member.lag().await.unwrap()), (12, 12));
        provider.unsubscribe("worker").await.unwrap();
        let groups: Vec<Value> = cmd("XINFO").arg(&["GROUPS", LOG]).query_async(client).await.unwrap();
        assert_eq!(groups, []);
    })
    .await;
}

#[tokio::test]
async fn a_record_of_another_program_stops_nothing() {
    on_each(async |_, binary| {
        let server = RedisServer::start_binary(&binary, "").await;
        let provider = connect(&server).await;
        let mut member = provider.subscribe_durable("worker", FILTER).await.unwrap();
        publish_numbers(&provider, 1..=2).await;
        let client = &mut client(&server).await;
        let _: String = cmd("XADD").arg(&[LOG, "*", "name", "someone"]).query_async(client).await.unwrap();
        let sequence = provider.publish(&numbered(3)).await.unwrap();
        assert!(sequence > 1_000_000_000_000, "the sequences continue from the record: {sequence}");
        assert_eq!(member.lag().await.unwrap(), 3, "the record is no event");
        for number in 1..=2 {
            let delivery = next(&mut *member).await;
            assert_eq!(delivery.sequence(), number);
            delivery.ack_confirmed().await.unwrap();
        }
        let error = member.next_delivery().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Undecodable);
        assert!(matches!(&error, EventError::Undecodable { raw, .. } if raw == b"name someone"), "{error:?}");
        let delivery = next(&mut *member).await;
        assert_eq!(delivery.sequence(), sequence);
        delivery.ack_confirmed().await.unwrap();
        assert_eq!(member.lag().await.unwrap(), 0);
        let history = provider.history(None, 10).await.unwrap();
        let numbers: Vec<_> = history.iter().map(|event| event.payload.as_u64().unwrap()).collect();
        assert_eq!(numbers, [3, 2, 1]);
        publish_numbers(&provider, 4..=4).await;
        assert_eq!(next(&mut *member).await.event().payload, 4);
    })
    .await;
}

#[tokio::test]
async fn the_python_client_reads_the_log_and_the_group() {
    /// Prints the numbers in the log and the lag of the group, adds a record of its own, and reads through the group.
    const PROGRAM: &str = r#"
import json, sys, redis
client = redis.Redis(port=int(sys.argv[1]))
log = sys.argv[2]
records = client.xrange(log)
group, = client.xinfo_groups(log)
client.xadd(log, {"name": "someone"})
client.xreadgroup(group["name"], "someone", {log: ">"})
print(json.dumps({
    "numbers": [json.loads(fields[b"e"])["payload"] for _, fields in records],
    "group": group["name"].decode(),
    "lag": group["lag"],
}))
"#;
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/redis-8.1.0");
    assert!(packages.is_dir(), "the Python client is not there: run scripts/fetch-python-packages");
    on_each(async |_, binary| {
        let server = RedisServer::start_binary(&binary, "").await;
        let provider = RedisProvider::connect(config(&server).mirror_groups(true)).await.unwrap();
        let mut member = provider.subscribe_durable("worker", FILTER).await.unwrap();
        publish_numbers(&provider, 1..=3).await;
        next(&mut *member).await.ack_confirmed().await.unwrap();
        let python = std::env::var_os("A3S_EVENT_PYTHON").unwrap_or_else(|| "python3".into());
        let ran = Command::new(python)
            .args(["-c", PROGRAM, &server.port().to_string(), LOG])
            .env("PYTHONPATH", &packages)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .output()
            .unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let said: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
        assert_eq!(said, serde_json::json!({"numbers": [1, 2, 3], "group": "worker", "lag": 2}));
        for number in 2..=3 {
            let delivery = next(&mut *member).await;
            assert_eq!(delivery.event().payload, number);
            delivery.ack_confirmed().await.unwrap();
        }
        assert_eq!(member.next_delivery().await.unwrap_err().kind(), ErrorKind::Undecodable);
        publish_numbers(&provider, 4..=4).await;
        assert_eq!(next(&mut *member).await.event().payload, 4);
    })
    .await;
}

#[tokio::test]
async fn redis_cli_reads_what_the_page_says() {
    let Some(tool) = redis_cli() else {
        println!("not checked: there is no redis-cli");
        return;
    };
    const PAGE: &str = include_str!("../../src/provider/redis/docs.md");
    let server = RedisServer::start().await;
    let provider =
        RedisProvider::connect(config(&server).stream_name("orders").mirror_groups(true)).await.unwrap();
    publish_numbers(&provider, 1..=50).await;
    let mut member = provider.subscribe_durable("billing", FILTER).await.unwrap();
    let held = next(&mut *member).await;
    let lines: Vec<_> = PAGE.lines().filter_map(|line| line.strip_prefix("redis-cli ")).collect();
    assert_eq!(lines.len(), 5, "{lines:?}");
    for line in lines {
        let words = line.split_whitespace().map(|word| word.trim_matches('\''));
        let ran = Command::new(&tool).arg("-p").arg(server.port().to_string()).args(words).output().unwrap();
        let answer = String::from_utf8(ran.stdout).unwrap();
        let expected = match line.split(' ').next() {
            Some("XREVRANGE") => "50-",
            Some("XRANGE") => "42-",
            Some("XINFO") if line.contains("GROUPS") => "billing",
            Some("XINFO") => "entries-added",
            _ => "1\n",
        };
        assert!(
            answer.starts_with(expected) || answer.contains(&format!("\n{expected}")),
            "{line}: {answer}"
        );
    }
    drop(held);
}
