//! Tests of the link against real servers.

mod calls;
mod cluster;
mod confirmed;
mod failover;
mod faults;
mod servers;
mod tls;

use std::sync::LazyLock;

use tokio::sync::watch;

use self::servers::{Server, eventually};
use super::*;
use crate::error::EventError;
use crate::provider::redis::durability::{Aof, Persistence};
use crate::provider::redis::keys::Keys;
use crate::provider::redis::script::Script;

const VERSIONS: [&str; 3] = ["redis-7.0.15", "redis-8.2.3", "valkey-9.1.2"];
const REFERENCE: &str = "redis-8.2.3";
/// Time over its deadline that a call may take.
const GRACE: Duration = Duration::from_secs(3);

/// Counts its calls, and repeats its argument with the count.
static COUNT: LazyLock<Script> =
    LazyLock::new(|| Script::new("count", "#!lua\nreturn {redis.call('INCR', KEYS[1]), ARGV[1]}".to_owned()));
/// Repeats its argument.
static ECHO: LazyLock<Script> =
    LazyLock::new(|| Script::new("echo", "#!lua flags=no-writes\nreturn ARGV[1]".to_owned()));
/// Reads a field of the hash.
static READ: LazyLock<Script> =
    LazyLock::new(|| Script::new("read", "#!lua\nreturn redis.call('HGET', KEYS[1], 'f')".to_owned()));

fn keys() -> Keys {
    Keys::new("a3s", "S")
}

/// A key without a type of its own.
fn counter() -> String {
    format!("{}n", keys().base())
}

fn count(argument: &str) -> Call {
    Call::new(&COUNT).key(counter()).argument(argument)
}

fn echo(argument: &str) -> Call {
    Call::new(&ECHO).argument(argument)
}

fn bulk(text: &str) -> Value {
    Value::BulkString(text.as_bytes().to_vec())
}

fn counted(count: i64, argument: &str) -> Value {
    Value::Array(vec![Value::Int(count), bulk(argument)])
}

fn config(node: Node) -> LinkConfig {
    LinkConfig {
        seeds: vec![node],
        sentinel: None,
        credentials: Credentials::default(),
        tls: None,
        database: 0,
        client_name: Some("link-test".to_owned()),
        connect_timeout: Duration::from_secs(5),
        timeout: Duration::from_secs(10),
        patience: PATIENCE,
        allow_eviction: false,
        confirmation: Confirmation::default(),
        channel: keys().channel(),
        key: keys().meta(),
    }
}

/// An owner that remembers.
#[derive(Default)]
struct Owner {
    messages: Mutex<Vec<Vec<u8>>>,
    received: AtomicU64,
    connected: watch::Sender<u64>,
}

impl Owner {
    /// Waits until the link has connected this many times.
    async fn connected(&self, times: u64) {
        let mut connected = self.connected.subscribe();
        let waiting = connected.wait_for(|seen| *seen >= times);
        let seen = tokio::time::timeout(Duration::from_secs(30), waiting).await.map(|seen| *seen.unwrap());
        assert!(seen.is_ok(), "the link has not connected {times} times");
    }

    fn connections(&self) -> u64 {
        *self.connected.borrow()
    }
}

impl Listener for Owner {
    fn on_message(&self, message: &[u8]) {
        self.messages.lock().unwrap().push(message.to_vec());
        self.received.fetch_add(1, Ordering::SeqCst);
    }

    fn on_connected(&self) {
        self.connected.send_modify(|times| *times += 1);
    }
}

async fn connect(config: LinkConfig) -> Result<(Link, Arc<Owner>)> {
    let owner = Arc::new(Owner::default());
    Ok((Link::connect(config, Arc::clone(&owner) as _).await?, owner))
}

/// Connects, and expects an error.
async fn refused(config: LinkConfig) -> EventError {
    match connect(config).await {
        Ok(_) => panic!("the link connected"),
        Err(error) => error,
    }
}

/// Returns the error with all of its causes.
fn told(error: &EventError) -> String {
    let error: &(dyn std::error::Error + 'static) = error;
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(|error| format!("{error} {error:?}")).collect::<Vec<_>>().join(": ")
}
