//! Table of the settings of the Redis provider.

use std::time::Duration;

use super::config::RedisConfig;
use crate::provider::Durability;
use crate::provider::settings::{Choice, Setting, Settings, Value, common, row};

/// Shortest duration that the server can apply: its scripts count milliseconds.
const SHORTEST: Duration = Duration::from_millis(1);
/// Maximum number of events in one call of a script, which blocks the server for all its clients.
const MAX_COMMIT_EVENTS: i128 = 1_000;
/// Maximum size of one event, and of one call of a script. Scripts copy each record.
const MAX_BYTES: i128 = 64 << 20;

pub(in crate::provider) static SETTINGS: Settings<RedisConfig> = Settings::new(&[
    row!(
        "(servers)" = servers,
        Setting::text().doc(
            "`host[:port]` of the server, or several separated by commas: nodes of a cluster, replicas or Sentinels; \
             the default port is 6379, that of a Sentinel 26379"
        ),
        |config| Value::Text(without_credentials(&config.servers))
    ),
    row!(
        "(socket)" = socket,
        Setting::file().doc("path of the server's Unix socket; the path of a `redis+unix` URL")
    ),
    row!("(user)" = user, Setting::text().secret().doc("user to authenticate as; needs a password")),
    row!(
        "(password)" = password,
        Setting::text()
            .rule(|password| !password.is_empty(), "not be empty")
            .secret()
            .doc("password to authenticate with; without a user, that of the server's default user")
    ),
    row!(
        "(scheme `rediss`)" = tls,
        Setting::flag().doc("connection through TLS, also with the scheme `valkeys`")
    ),
    row!("db" = db, Setting::number().doc("number of the database; also the first part of the path; 0 in a cluster")),
    row!(
        "stream" = stream_name,
        Setting::text()
            .rule(
                is_stream_name,
                "have 1 to 255 characters: letters, digits and . _ - : and not digits only"
            )
            .doc("name of the stream; also the last part of the path")
    ),
    row!(
        "key_prefix" = key_prefix,
        Setting::text()
            .rule(is_key_prefix, "have 1 to 64 characters: letters, digits and . _ - :")
            .doc("beginning of every key, for several applications on one server")
    ),
    row!(
        "create_if_missing" = create_if_missing,
        Setting::flag().doc("creation of the stream if it does not exist, and again if it is deleted later")
    ),
    row!(
        "subject_prefix" = subject_prefix,
        Setting::text()
            .doc("leading tokens of every subject; a stream keeps the prefix that it was created with")
    ),
    row!("max_events" = max_events, common::MAX_EVENTS.unset("the stream's, at first `100000`")),
    row!("max_bytes" = max_bytes, common::MAX_BYTES.unset("the stream's, at first `0`")),
    row!("max_age" = max_age, common::MAX_AGE.shortest(SHORTEST).unset("the stream's, at first `0s`")),
    row!("max_event_bytes" = max_event_bytes, common::MAX_EVENT_BYTES.most(MAX_BYTES)),
    row!(
        "dedup_window" = dedup_window,
        common::DEDUP_WINDOW.shortest(SHORTEST).unset("the stream's, at first `2m`")
    ),
    row!(
        "timeout" = timeout,
        Setting::duration().shortest(SHORTEST).doc("timeout of a call, unless its options have one")
    ),
    row!(
        "connect_timeout" = connect_timeout,
        Setting::duration().shortest(SHORTEST).doc("timeout of connecting to one server")
    ),
    row!(
        "commit_max_events" = commit_max_events,
        Setting::count("events")
            .least(1)
            .most(MAX_COMMIT_EVENTS)
            .doc("maximum number of events that one call to the server stores for several publishers")
    ),
    row!(
        "commit_max_bytes" = commit_max_bytes,
        Setting::size("bytes of JSON")
            .most(MAX_BYTES)
            .doc("maximum size of the events that one call to the server stores for several publishers")
    ),
    row!("max_unconfirmed_acks" = max_unconfirmed_acks, common::MAX_UNCONFIRMED_ACKS),
    row!("root_certificates" = root_certificates, common::ROOT_CERTIFICATES),
    row!("client_certificate" = client_certificate, common::CLIENT_CERTIFICATE),
    row!("client_key" = client_key, common::CLIENT_KEY),
    row!(
        "sentinel" = sentinel,
        Setting::text()
            .rule(|name| !name.is_empty(), "not be empty")
            .doc("name of the primary that the Sentinels monitor; the servers of the URL are the Sentinels")
    ),
    row!(
        "sentinel_user" = sentinel_user,
        Setting::text().secret().doc("user to authenticate as with the Sentinels; needs `sentinel_password`")
    ),
    row!(
        "sentinel_password" = sentinel_password,
        Setting::text()
            .rule(|password| !password.is_empty(), "not be empty")
            .secret()
            .doc("password to authenticate with the Sentinels")
    ),
    row!(
        "client_name" = client_name,
        Setting::text()
            .rule(is_client_name, "have 1 to 64 printable ASCII characters without a space")
            .doc("name of this client in the server's lists")
    ),
    row!(
        "wait_replicas" = wait_replicas,
        Setting::count("replicas")
            .zero("no wait")
            .doc("number of replicas that must have a publish or a durable consumer before the call returns; fewer is an error, and the event may be stored")
    ),
    row!(
        "wait_aof" = wait_aof,
        Setting::flag().doc(
            "wait until the server has synced a publish to its disk; requires `appendonly` and Redis 7.2 or Valkey"
        )
    ),
    row!(
        "durability" = durability,
        Setting::choice::<Durability>()
            .unset("the server's configuration")
            .doc("durability of a publish that the operator vouches for, if the server does not show its configuration")
    ),
    row!(
        "allow_eviction" = allow_eviction,
        Setting::flag().doc("use of a server that may evict any key, which loses events and positions")
    ),
    row!(
        "mirror_groups" = mirror_groups,
        Setting::flag()
            .doc("a consumer group beside each durable consumer that shows its position and lag to other tools")
    ),
]);

/// Durabilities that an operator can vouch for. A failover can lose acknowledged events, so none survives it.
impl Choice for Durability {
    const ALL: &'static [(&'static str, Self)] = &[
        ("none", Self::None),
        ("deferred", Self::Deferred),
        ("process_crash", Self::ProcessCrash),
        ("power_loss", Self::PowerLoss),
    ];
}

/// Refuses braces, which would move the hash tag of the keys, and the wildcards of patterns, which would match the keys
/// of other streams. Digits only would be a database.
fn is_stream_name(name: &str) -> bool {
    is_part_of_keys(name, 255) && !name.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_key_prefix(prefix: &str) -> bool {
    is_part_of_keys(prefix, 64)
}

fn is_part_of_keys(text: &str, longest: usize) -> bool {
    let is_allowed = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | ':');
    (1..=longest).contains(&text.chars().count()) && text.chars().all(is_allowed)
}

/// The rule of the server.
fn is_client_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Returns the servers without the credentials before an `@`, which a connection refuses.
fn without_credentials(servers: &str) -> String {
    match servers.rsplit_once('@') {
        Some((_, hosts)) => format!("***@{hosts}"),
        None => servers.to_owned(),
    }
}
