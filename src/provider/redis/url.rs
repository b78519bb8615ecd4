//! Reads URLs, and makes those of fresh streams.

use std::sync::Arc;
use std::time::Duration;

use super::RedisProvider;
use super::config::{DEFAULT_MAX_EVENTS, RedisConfig};
use super::settings::SETTINGS;
use crate::error::{EventError, Result};
use crate::provider::support::shorten;
use crate::provider::{EventProvider, Isolation, ProviderUrl, StreamLimits};

/// Scheme of a server's Unix socket.
pub(in crate::provider) const UNIX: &str = "redis+unix";

/// Connects to `redis://[user[:password]@]host[:port][,…][/db][/stream][?key=value&…]`, or with `rediss`, `valkey` or
/// `valkeys`, or to `redis+unix:///path[?db=0&stream=name&…]`.
pub(in crate::provider) async fn connect(url: ProviderUrl) -> Result<Arc<dyn EventProvider>> {
    Ok(Arc::new(RedisProvider::connect(from_url(&url)?).await?))
}

/// Returns the URL of another stream in the same database.
#[expect(clippy::unnecessary_wraps, reason = "other schemes return None")]
pub(in crate::provider) fn isolate(url: ProviderUrl, isolation: &Isolation) -> Option<ProviderUrl> {
    let url =
        isolation.limit(url).without_setting("create_if_missing").with_setting("stream", &*isolation.name);
    if url.scheme() == UNIX {
        return Some(url);
    }
    let path = match Place::parse(url.path()) {
        Ok(Place { db, .. }) => db.map_or(String::new(), |db| format!("/{db}")),
        // Connecting reports what is wrong with it.
        Err(_) => url.path().to_owned(),
    };
    Some(url.with_path(path))
}

/// Returns the limits of a new stream whose URL sets none.
pub(in crate::provider) fn default_limits() -> StreamLimits {
    StreamLimits::new(DEFAULT_MAX_EVENTS, 0, Duration::ZERO)
}

fn from_url(url: &ProviderUrl) -> Result<RedisConfig> {
    let mut config = if url.scheme() == UNIX { on_socket(url)? } else { on_servers(url)? };
    config.user = url.username().filter(|user| !user.is_empty()).map(str::to_owned);
    config.password = url.password().map(str::to_owned);
    if config.user.is_some() && config.password.is_none() {
        return Err(EventError::Config(
            "provider URL: a user needs a password; write a password without a user as :PASSWORD@".to_owned(),
        ));
    }
    SETTINGS.read(url, &mut config)?;
    Ok(config)
}

fn on_socket(url: &ProviderUrl) -> Result<RedisConfig> {
    if url.authority().is_empty() && !url.path().is_empty() {
        return Ok(RedisConfig::unix(url.path()));
    }
    let path = shorten(&format!("{}{}", url.authority(), url.path()));
    Err(EventError::Config(format!(
        "provider URL: a {UNIX} URL names a file and no host; write {UNIX}:///{path} for an absolute path"
    )))
}

fn on_servers(url: &ProviderUrl) -> Result<RedisConfig> {
    let mut config =
        if url.authority().is_empty() { RedisConfig::default() } else { RedisConfig::at(url.authority()) };
    config.tls = matches!(url.scheme(), "rediss" | "valkeys");
    let place = Place::parse(url.path())?;
    for (key, is_in_path) in [("db", place.db.is_some()), ("stream", place.stream.is_some())] {
        if is_in_path && url.setting(key).is_some() {
            return Err(EventError::Config(format!(
                "provider URL: {key} is given twice, in the path and in the query"
            )));
        }
    }
    if let Some(db) = place.db {
        config.db = db;
    }
    if let Some(stream) = place.stream {
        config.stream_name = stream.to_owned();
    }
    Ok(config)
}

/// Database and stream in the path of a URL.
#[derive(Debug, Default, PartialEq, Eq)]
struct Place<'a> {
    db: Option<u32>,
    stream: Option<&'a str>,
}

impl<'a> Place<'a> {
    /// Parses `[/db][/stream]`. A first part of digits is the database, as in the URLs of other clients.
    fn parse(path: &'a str) -> Result<Self> {
        let wrong =
            |rule: &str| EventError::Config(format!("provider URL: path \"{}\": {rule}", shorten(path)));
        let Some(parts) = path.strip_prefix('/') else {
            return match path {
                "" => Ok(Self::default()),
                _ => Err(wrong("must begin with / and follow a host, as in redis://localhost/orders")),
            };
        };
        let mut parts = parts.split('/').filter(|part| !part.is_empty()).peekable();
        let is_number = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
        let db = match parts.next_if(is_number) {
            Some(db) => {
                Some(db.parse().map_err(|_| wrong(&format!("the database must be at most {}", u32::MAX)))?)
            }
            None => None,
        };
        let stream = parts.next();
        if parts.next().is_some() {
            return Err(wrong("must be /db, /stream or /db/stream; a stream's name has no /"));
        }
        Ok(Self { db, stream })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::provider::Durability;

    fn read(url: &str) -> Result<RedisConfig> {
        from_url(&ProviderUrl::parse(url)?)
    }

    fn refused(url: &str) -> String {
        match read(url).and_then(|config| config.check()) {
            Err(EventError::Config(text)) => text,
            other => panic!("{url}: {other:?}"),
        }
    }

    #[test]
    fn every_setting_of_the_url_takes_effect() {
        let url = "rediss://us%40er:p%3Aw@one:1,[::1]:2/3/orders?key_prefix=app:a3s&create_if_missing=false\
                   &subject_prefix=acme.events&max_events=7&max_bytes=9000&max_age=1m&max_event_bytes=2000\
                   &dedup_window=5s&timeout=250ms&connect_timeout=3s&commit_max_events=9&commit_max_bytes=4KiB\
                   &max_unconfirmed_acks=11&root_certificates=ca.pem&client_certificate=c.pem&client_key=k.pem\
                   &sentinel=main&sentinel_user=su&sentinel_password=sp&client_name=me&wait_replicas=2&wait_aof=true\
                   &durability=power_loss&allow_eviction=true&mirror_groups=true";
        let expected = RedisConfig::at("one:1,[::1]:2")
            .user_and_password("us@er", "p:w")
            .tls(true)
            .db(3)
            .stream_name("orders")
            .key_prefix("app:a3s")
            .create_if_missing(false)
            .subject_prefix("acme.events")
            .max_events(7)
            .max_bytes(9_000)
            .max_age(Duration::from_secs(60))
            .max_event_bytes(2_000)
            .dedup_window(Duration::from_secs(5))
            .timeout(Duration::from_millis(250))
            .connect_timeout(Duration::from_secs(3))
            .commit_max_events(9)
            .commit_max_bytes(4_096)
            .max_unconfirmed_acks(11)
            .root_certificates("ca.pem")
            .client_certificate("c.pem", "k.pem")
            .sentinel("main")
            .sentinel_user("su")
            .sentinel_password("sp")
            .client_name("me")
            .wait_replicas(2)
            .wait_aof(true)
            .durability(Durability::PowerLoss)
            .allow_eviction(true)
            .mirror_groups(true);
        let config = read(url).unwrap();
        assert_eq!(config, expected);
        config.check().unwrap();
    }

    #[test]
    fn the_forms_of_a_url_are_told_apart() {
        let at = RedisConfig::at;
        let local = RedisConfig::default;
        for (url, expected) in [
            ("redis://", local()),
            ("redis:", local()),
            ("REDIS:///", local()),
            ("redis:///2", local().db(2)),
            ("redis:///2/orders", local().db(2).stream_name("orders")),
            ("redis://h", at("h")),
            ("redis://h/", at("h")),
            ("redis://h/0", at("h")),
            ("redis://h/7/", at("h").db(7)),
            ("redis://h:1/orders", at("h:1").stream_name("orders")),
            ("redis://h/2x", at("h").stream_name("2x")),
            ("redis://h/0/or%2Dders", at("h").stream_name("or-ders")),
            ("redis://h?db=5&stream=orders", at("h").db(5).stream_name("orders")),
            ("redis://h/5?stream=orders", at("h").db(5).stream_name("orders")),
            ("redis://[2001:db8::1]:1,two", at("[2001:db8::1]:1,two")),
            ("redis://:p%2Fw@h", at("h").password("p/w")),
            ("redis://u:p@h", at("h").user_and_password("u", "p")),
            ("rediss://h", at("h").tls(true)),
            ("valkey://h", at("h")),
            ("valkeys://h", at("h").tls(true)),
            ("redis+unix:///run/redis.sock", RedisConfig::unix("/run/redis.sock")),
            ("redis+unix:redis.sock", RedisConfig::unix("redis.sock")),
            (
                "redis+unix://u:p@/run/redis.sock?db=1&stream=orders",
                RedisConfig::unix("/run/redis.sock").user_and_password("u", "p").db(1).stream_name("orders"),
            ),
        ] {
            let config = read(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(config, expected, "{url}");
            config.check().unwrap();
        }
    }

    #[test]
    fn a_wrong_url_is_refused_with_the_rule() {
        for (url, rule) in [
            ("redis:localhost", "path \"localhost\": must begin with /"),
            ("redis:localhost:6379", "must begin with /"),
            ("redis://h/orders/2", "must be /db, /stream or /db/stream"),
            ("redis://h/1/orders/x", "a stream's name has no /"),
            ("redis://h/4294967296", "path \"/4294967296\": the database must be at most 4294967295"),
            ("redis://h/1/2", "stream_name \"2\": must"),
            ("redis://h?stream=2", "stream \"2\" in the provider URL: must"),
            ("redis://h/a%7Bb%7D", "stream_name \"a{b}\": must"),
            ("redis://h?stream=%7Bb%7D", "stream \"{b}\" in the provider URL: must"),
            ("redis://h/1?db=2", "db is given twice"),
            ("redis://h/orders?stream=orders", "stream is given twice"),
            ("redis://h?db=one", "db \"one\" in the provider URL: must be a whole number"),
            ("redis://::1", "servers \"::1\": must be host[:port]"),
            ("redis://h:port", "servers \"h:port\""),
            ("redis://h,", "servers \"\""),
            ("redis+unix://h/run/redis.sock", "write redis+unix:///h/run/redis.sock"),
            ("redis+unix://", "names a file and no host"),
            ("redis+unix:s?sentinel=main", "socket: must be without sentinel"),
            ("redis://h?root_certificates=ca.pem", "root_certificates: needs tls, as with rediss://"),
            ("redis://h?timeout=5", "timeout \"5\" in the provider URL: must be a duration"),
            ("redis://h?timeout_ms=5", "its name is now 'timeout'"),
            ("redis://h?durability=node_loss", "must be none or deferred or process_crash or power_loss"),
            (
                "redis://h?max_event=1",
                "unknown setting 'max_event' in a redis URL: valid are db, stream, key_prefix",
            ),
        ] {
            let text = refused(url);
            assert!(text.contains(rule), "{url}: {text}");
        }
    }

    #[test]
    fn no_error_shows_credentials() {
        for url in [
            "redis://canary@h",
            "redis://canary:@h",
            "redis://canary:canary@h/1/2",
            "redis://canary:canary@h?db=x",
            "redis+unix://canary:canary@h/path",
            "redis://h?sentinel_password=canary",
            "redis://h?sentinel_user=canary&sentinel=main",
        ] {
            let text = refused(url);
            assert!(!text.contains("canary"), "{url}: {text}");
        }
        assert!(refused("redis://canary@h").contains("a user needs a password"));
    }

    #[test]
    fn an_isolated_stream_is_another_one_in_the_same_database() {
        let mut isolation = Isolation::new("CASE_1", "folder");
        for (url, expected) in [
            (
                "redis://u:p@h:1/3/orders?timeout=1s&create_if_missing=false",
                RedisConfig::at("h:1").user_and_password("u", "p").db(3).timeout(Duration::from_secs(1)),
            ),
            ("redis://h/orders", RedisConfig::at("h")),
            ("valkey://h?db=2&stream=orders", RedisConfig::at("h").db(2)),
            ("redis+unix:///run/redis.sock?db=1", RedisConfig::unix("/run/redis.sock").db(1)),
        ] {
            let fresh = isolate(ProviderUrl::parse(url).unwrap(), &isolation).unwrap();
            assert_eq!(from_url(&fresh).unwrap(), expected.stream_name("CASE_1"), "{url}");
        }
        let wrong = isolate(ProviderUrl::parse("redis://h/orders/x").unwrap(), &isolation).unwrap();
        assert!(from_url(&wrong).unwrap_err().to_string().contains("must be /db, /stream or /db/stream"));
        isolation.max_events = Some(5);
        isolation.max_bytes = Some(4_096);
        isolation.dedup_window = Some(Duration::from_millis(300));
        let fresh =
            isolate(ProviderUrl::parse("redis://h?max_events=9&max_age=1d").unwrap(), &isolation).unwrap();
        let expected = RedisConfig::at("h")
            .stream_name("CASE_1")
            .max_events(5)
            .max_bytes(4_096)
            .max_age(Duration::from_secs(86_400))
            .dedup_window(Duration::from_millis(300));
        assert_eq!(from_url(&fresh).unwrap(), expected);
    }
}
