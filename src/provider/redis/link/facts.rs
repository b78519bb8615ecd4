//! Reads a server's report on itself, and checks that it can keep the promises of the provider.

use redis::{FromRedisValue as _, Value};

use super::config::{LinkConfig, Node};
use crate::provider::redis::durability::{Aof, Persistence};

pub(super) const SUPPORTED: &str = "supported are Redis 7.0, Valkey 7.2 and later versions";
const OLDEST: Version = Version(7, 0);
/// First version with WAITAOF.
const WITH_WAITAOF: Version = Version(7, 2);

/// Properties of the server that the link uses.
#[derive(Debug, Clone)]
pub(in crate::provider::redis) struct ServerFacts {
    /// `redis` or `valkey`, as the server says.
    pub(in crate::provider::redis) product: String,
    pub(in crate::provider::redis) version: String,
    pub(in crate::provider::redis) is_cluster: bool,
    /// Maximum memory in bytes; 0 is unlimited. Unknown if INFO is not permitted.
    pub(in crate::provider::redis) max_memory: Option<u64>,
    /// Policy of eviction at the maximum.
    pub(in crate::provider::redis) max_memory_policy: Option<String>,
    pub(in crate::provider::redis) persistence: Persistence,
    /// Number of writes that the server answered although a sync of its log was still running.
    pub(in crate::provider::redis) delayed_fsyncs: u64,
    /// Changes with every promotion of a replica. Empty if INFO is not permitted.
    pub(in crate::provider::redis) replication_id: String,
}

/// The answer to HELLO.
#[derive(Debug)]
pub(super) struct Greeting {
    product: String,
    version: String,
    pub(super) mode: String,
    role: String,
}

/// The first two numbers of a version.
#[derive(PartialEq, PartialOrd)]
struct Version(u32, u32);

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(str::parse);
        Some(Self(numbers.next()?.ok()?, numbers.next()?.ok()?))
    }
}

impl Greeting {
    pub(super) fn parse(answer: &Value) -> Option<Self> {
        let field = |name: &str| {
            let mut fields = answer.as_map_iter()?;
            let (_, value) = fields.find(|(key, _)| text(key).is_some_and(|key| key == name))?;
            text(value)
        };
        Some(Self {
            product: field("server")?,
            version: field("version")?,
            mode: field("mode").unwrap_or_default(),
            role: field("role").unwrap_or_default(),
        })
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.mode == "cluster"
    }

    pub(super) fn is_replica(&self) -> bool {
        self.role == "replica" || self.role == "slave"
    }

    /// Returns the reason why the provider does not work with this server.
    pub(super) fn objection(&self) -> Option<String> {
        if self.mode == "sentinel" {
            return Some("it is a Sentinel; the setting `sentinel` must name its primary".to_owned());
        }
        let is_supported = Version::parse(&self.version).is_some_and(|version| version >= OLDEST);
        (!is_supported).then(|| format!("it is {} {}; {SUPPORTED}", self.product, self.version))
    }
}

impl ServerFacts {
    /// Combines what the server has told. INFO and CONFIG need permissions.
    pub(super) fn new(greeting: &Greeting, info: Option<&Info>, config: Option<&Value>) -> Self {
        let field = |name: &str| info.and_then(|info| info.field(name));
        let setting = |name: &str| {
            let mut settings = config?.as_map_iter()?;
            settings
                .find(|(key, _)| text(key).is_some_and(|key| key == name))
                .and_then(|(_, value)| text(value))
        };
        let aof_enabled = field("aof_enabled").map(|enabled| enabled != "0");
        let persistence = match (setting("appendonly"), aof_enabled) {
            (None, aof_enabled) => Persistence::Hidden { aof_enabled },
            (Some(appendonly), _) if appendonly == "no" => Persistence::Shown(Aof::Off),
            (Some(_), Some(false)) => Persistence::Shown(Aof::Off),
            (Some(_), _) => {
                let rewrite = setting("no-appendfsync-on-rewrite");
                setting("appendfsync")
                    .and_then(|fsync| Aof::of(&fsync, rewrite.as_deref()))
                    .map_or(Persistence::Hidden { aof_enabled: Some(true) }, Persistence::Shown)
            }
        };
        Self {
            product: greeting.product.clone(),
            version: greeting.version.clone(),
            is_cluster: greeting.is_cluster(),
            max_memory: field("maxmemory").and_then(|bytes| bytes.parse().ok()),
            max_memory_policy: field("maxmemory_policy").map(str::to_owned),
            persistence,
            delayed_fsyncs: info.map(Info::delayed_fsyncs).unwrap_or_default(),
            replication_id: field("master_replid").unwrap_or_default().to_owned(),
        }
    }

    /// Returns the reason why the server cannot be used with these settings.
    pub(super) fn objection(&self, config: &LinkConfig) -> Option<String> {
        let policy = self.max_memory_policy.as_deref().unwrap_or_default();
        if policy.starts_with("allkeys-") && self.max_memory.is_some_and(|bytes| bytes > 0) {
            if !config.allow_eviction {
                return Some(format!(
                    "maxmemory-policy is {policy}, so full memory would delete events and positions; set it to \
                     noeviction, or accept the loss with allow_eviction"
                ));
            }
            tracing::warn!(policy, "the server deletes events and positions when its memory is full");
        }
        if config.confirmation.aof {
            let is_off = matches!(
                self.persistence,
                Persistence::Shown(Aof::Off) | Persistence::Hidden { aof_enabled: Some(false) }
            );
            if is_off {
                return Some("wait_aof needs appendonly, which is off".to_owned());
            }
            if Version::parse(&self.version).is_none_or(|version| version < WITH_WAITAOF) {
                let Self { product, version, .. } = self;
                return Some(format!("wait_aof needs Redis 7.2 or Valkey; it is {product} {version}"));
            }
        }
        None
    }
}

/// The answer to INFO.
pub(super) struct Info(String);

impl Info {
    pub(super) fn parse(answer: Value) -> Option<Self> {
        String::from_redis_value(answer).ok().map(Self)
    }

    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.0
            .lines()
            .find_map(|line| line.trim_end().split_once(':').filter(|(key, _)| *key == name))
            .map(|(_, v)| v)
    }

    pub(super) fn delayed_fsyncs(&self) -> u64 {
        self.field("aof_delayed_fsync").and_then(|count| count.parse().ok()).unwrap_or_default()
    }

    /// Returns the primary of a replica.
    pub(super) fn primary(&self, by: &Node) -> Option<Node> {
        Node::told_apart(self.field("master_host")?, self.field("master_port")?.parse().ok()?, by)
    }
}

/// Returns a text of an answer.
pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::SimpleString(text) => Some(text.clone()),
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::VerbatimString { text, .. } => Some(text.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Durability;
    use crate::provider::redis::durability;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn map(fields: &[(&str, &str)]) -> Value {
        Value::Map(fields.iter().map(|(key, value)| (bulk(key), bulk(value))).collect())
    }

    fn greeting(product: &str, version: &str, mode: &str) -> Greeting {
        let fields = [("server", product), ("version", version), ("mode", mode), ("role", "master")];
        Greeting::parse(&map(&fields)).unwrap()
    }

    fn facts(info: &str, config: Option<&[(&str, &str)]>) -> ServerFacts {
        let info = Info::parse(bulk(info)).unwrap();
        let config = config.map(map);
        ServerFacts::new(&greeting("redis", "7.0.15", "standalone"), Some(&info), config.as_ref())
    }

    #[test]
    fn old_servers_and_sentinels_are_refused() {
        for (product, version, mode, refusal) in [
            ("redis", "7.0.0", "standalone", None),
            ("redis", "10.1.2", "cluster", None),
            ("valkey", "9.1.2", "standalone", None),
            ("redis", "6.2.14", "standalone", Some("it is redis 6.2.14; supported are Redis 7.0")),
            ("redis", "unstable", "standalone", Some("it is redis unstable")),
            ("redis", "8.2.3", "sentinel", Some("it is a Sentinel")),
        ] {
            let objection = greeting(product, version, mode).objection();
            let seen = objection.as_deref().unwrap_or_default();
            assert!(seen.starts_with(refusal.unwrap_or_default()), "{version}: {seen}");
            assert_eq!(objection.is_some(), refusal.is_some(), "{version}");
        }
    }

    #[test]
    fn durability_follows_from_what_is_in_force() {
        let config = |appendonly, fsync, rewrite| {
            Some([("appendonly", appendonly), ("appendfsync", fsync), ("no-appendfsync-on-rewrite", rewrite)])
        };
        for (info, config, is_hidden, expected) in [
            ("aof_enabled:0\r\n", config("no", "always", "no"), false, Durability::None),
            ("aof_enabled:0\r\n", config("yes", "always", "no"), false, Durability::None),
            ("", config("no", "always", "no"), false, Durability::None),
            ("", config("yes", "always", "no"), false, Durability::PowerLoss),
            ("aof_enabled:1\r\n", config("yes", "everysec", "no"), false, Durability::Deferred),
            ("aof_enabled:1\r\n", config("yes", "no", "no"), false, Durability::ProcessCrash),
            ("aof_enabled:1\r\n", config("yes", "always", "yes"), false, Durability::ProcessCrash),
            ("aof_enabled:1\r\n", config("yes", "always", "no"), false, Durability::PowerLoss),
            ("aof_enabled:1\r\n", config("yes", "in another way", "no"), true, Durability::Deferred),
            ("aof_enabled:1\r\n", None, true, Durability::Deferred),
            ("aof_enabled:0\r\n", None, true, Durability::None),
            ("", None, true, Durability::Unknown),
        ] {
            let facts = facts(info, config.as_ref().map(|config| config.as_slice()));
            let of = |declared| durability::in_force(facts.persistence, false, declared);
            assert_eq!(of(None).unwrap().durability, expected, "{info:?} {config:?}");
            if expected < Durability::PowerLoss {
                let declared = of(Some(Durability::PowerLoss));
                assert_eq!(
                    declared.is_ok(),
                    is_hidden,
                    "what is hidden can be declared: {info:?} {config:?}"
                );
            }
        }
        let unparsed = facts("aof_enabled:1\r\n", Some(&[]));
        assert_eq!(unparsed.persistence, Persistence::Hidden { aof_enabled: Some(true) });
    }

    #[test]
    fn info_is_read_line_by_line() {
        let facts = facts(
            "# Memory\r\nmaxmemory:1000\r\nmaxmemory_policy:allkeys-lru\r\nmaxmemory_x:1\r\n\r\n# Replication\r\n\
             master_replid:abc\r\naof_enabled:1\r\naof_delayed_fsync:3\r\n",
            None,
        );
        assert_eq!((facts.max_memory, facts.replication_id.as_str()), (Some(1_000), "abc"));
        assert_eq!(facts.max_memory_policy.as_deref(), Some("allkeys-lru"));
        assert_eq!(facts.delayed_fsyncs, 3);
    }
}
