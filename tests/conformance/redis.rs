//! Redis and Valkey, on real servers: each case of the reference has its own, which can be restarted; those of the other
//! versions share one, and those of the cluster share three nodes.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a server that cannot be set up fails the case, as it should"
)]

use std::sync::Arc;

use a3s_event::provider::redis::{RedisConfig, RedisProvider};
use a3s_event::{Event, EventProvider};
use a3s_event_testkit::servers::redis::protocol::Reply;
use a3s_event_testkit::servers::redis::{RedisCluster, RedisServer, reference, versions};
use a3s_event_testkit::{Case, Clock, Fixture, Harness, Outcome, Settings, async_trait, cases, run_case};
use tokio::sync::Mutex;

use crate::kept::{ON_A_STORE_OF_ITS_OWN, TOO_LONG, every_case_is_kept};

/// Where the cases run.
enum Redis {
    /// Each on a server of its own, which syncs each write.
    Own,
    /// On servers that run already, each with a stream of its own. They are not restarted.
    Shared(Box<RedisConfig>),
}

struct Running {
    server: Option<Mutex<RedisServer>>,
    config: RedisConfig,
    provider: Arc<RedisProvider>,
}

impl Running {
    async fn reconnect(&self) -> Arc<RedisProvider> {
        Arc::new(RedisProvider::connect(self.config.clone()).await.unwrap())
    }
}

#[async_trait]
impl Harness for Redis {
    async fn start(&self) -> Box<dyn Fixture> {
        self.start_with(&Settings::default()).await.unwrap()
    }

    async fn start_with(&self, settings: &Settings) -> Option<Box<dyn Fixture>> {
        let (server, mut config) = match self {
            Self::Own => {
                let server = RedisServer::start_binary(&reference(), "appendfsync always").await;
                let config = RedisConfig::at(server.address().to_string());
                (Some(Mutex::new(server)), config)
            }
            Self::Shared(config) => {
                let unique = Event::new("", "", "", "", serde_json::Value::Null).id.replace('-', "");
                (None, RedisConfig::clone(config).stream_name(format!("testkit{unique}")))
            }
        };
        if let Some(max) = settings.max_events {
            config = config.max_events(u64::try_from(max).unwrap());
        }
        if let Some(max) = settings.max_bytes {
            config = config.max_bytes(max);
        }
        if let Some(window) = settings.dedup_window {
            config = config.dedup_window(window);
        }
        let provider = Arc::new(RedisProvider::connect(config.clone()).await.unwrap());
        Some(Box::new(Running { server, config, provider }))
    }
}

#[async_trait]
impl Fixture for Running {
    fn provider(&self) -> Arc<dyn EventProvider> {
        Arc::<RedisProvider>::clone(&self.provider)
    }

    async fn connect(&self) -> Arc<dyn EventProvider> {
        self.reconnect().await
    }

    async fn restart(&self) -> Option<Arc<dyn EventProvider>> {
        self.server.as_ref()?.lock().await.restart().await;
        Some(self.reconnect().await)
    }

    async fn store_undecodable(&self, subject: &str, raw: &[u8]) -> Option<u64> {
        let server = self.server.as_ref()?.lock().await;
        let log = "a3s:{events}:log";
        let reply = server.command(&["XREVRANGE", log, "+", "-", "COUNT", "1"]).await;
        let last = reply.list().first().and_then(|record| record.list().first()).and_then(|id| id.text());
        let last: u64 = last.and_then(|id| id.split('-').next()).map_or(0, |last| last.parse().unwrap());
        let sequence = last + 1;
        // As the provider stores an event, but for its JSON.
        let id = format!("{sequence}-{}", std::time::UNIX_EPOCH.elapsed().unwrap().as_millis());
        // Its bytes are no text, so they travel as digits.
        let digits: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
        let add = "local e = ARGV[3]:gsub('..', function(byte) return string.char(tonumber(byte, 16)) end) \
                   return redis.call('XADD', KEYS[1], ARGV[1], 's', ARGV[2], 'e', e)";
        server.command(&["EVAL", add, "1", log, &id, subject, &digits]).await;
        server.command(&["RPUSH", &format!("a3s:{{events}}:s:{subject}"), &sequence.to_string()]).await;
        server.command(&["ZADD", "a3s:{events}:subj", "0", subject]).await;
        server.command(&["HSET", "a3s:{events}:meta", "last", &sequence.to_string()]).await;
        server.command(&["PUBLISH", "a3s:{events}:wake", &format!("e {subject}")]).await;
        Some(sequence)
    }
}

mod contract {
    use super::*;

    a3s_event_testkit::for_each_case! { [every_case_is_kept] Redis::Own, [TOO_LONG] }
}

/// The cases that were not kept, and those that panicked, without those that cannot be checked.
fn not_kept(harness: &Redis) -> Vec<(&'static str, Option<Outcome>)> {
    // The cases wait more than they work.
    const THREADS: usize = 16;
    let next = std::sync::atomic::AtomicUsize::new(0);
    let run = |case: &'static Case| {
        if ON_A_STORE_OF_ITS_OWN.contains(&case.name) {
            return None;
        }
        let outcome = std::panic::catch_unwind(|| run_case(case.name, harness, Clock::Real)).ok();
        (outcome != Some(Outcome::Kept)).then_some((case.name, outcome))
    };
    let work = || {
        let take = || cases().get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        std::iter::from_fn(take).filter_map(run).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Returns the user that the page documents, for streams of any name.
fn documented_user() -> Vec<String> {
    const PAGE: &str = include_str!("../../src/provider/redis/docs.md");
    let (_, rules) = PAGE.split_once("ACL SETUSER orders ").unwrap();
    let (rules, _) = rules.split_once("```").unwrap();
    let rules = rules.replace("{orders}", "{testkit*}");
    let of_listings = ["+scan", "~a3s:{*}:meta"];
    ["ACL", "SETUSER", "orders"]
        .into_iter()
        .chain(rules.split_whitespace())
        .chain(of_listings)
        .map(str::to_owned)
        .collect()
}

/// The user has the permissions that the page documents, and no others.
#[test]
fn every_version_keeps_every_case() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let user = documented_user();
    let words: Vec<_> = user.iter().map(String::as_str).collect();
    for (version, binary) in versions() {
        let server = runtime.block_on(RedisServer::start_binary(&binary, "appendfsync always"));
        runtime.block_on(server.command(&words));
        let config = RedisConfig::at(server.address().to_string()).user_and_password("orders", "PASSWORD");
        assert_eq!(not_kept(&Redis::Shared(Box::new(config))), [], "{version}");
        // These are tried all the same.
        const OPTIONAL: [&str; 3] = ["client|setinfo", "client|setname", "config|get"];
        let denials = runtime.block_on(server.command(&["ACL", "LOG"]));
        let field = |denial: &[Reply], name| {
            denial
                .chunks(2)
                .find(|field| field[0].text() == Some(name))
                .and_then(|field| field[1].text().map(str::to_owned))
        };
        let denied = denials.list().iter().filter_map(|denial| field(denial.list(), "object"));
        let needed: Vec<_> = denied.filter(|denied| !OPTIONAL.contains(&&**denied)).collect();
        assert_eq!(needed, [] as [&str; 0], "{version}");
    }
}

#[test]
fn a_cluster_keeps_every_case() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cluster = runtime.block_on(RedisCluster::start_binary(&reference(), ""));
    let seeds: Vec<String> =
        (0..cluster.nodes()).map(|node| cluster.node(node).address().to_string()).collect();
    assert_eq!(not_kept(&Redis::Shared(Box::new(RedisConfig::at(seeds.join(","))))), []);
}
