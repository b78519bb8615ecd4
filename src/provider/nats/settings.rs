//! Table of the settings of the NATS provider.

use std::time::Duration;

use super::config::{NatsProviderBuilder, StorageType};
use super::wire::EventFormat;
use crate::provider::settings::{Setting, SettingValue as _, Settings, Value, common, row};
use crate::provider::validate::SMALLEST_LIMIT;

pub(in crate::provider) static SETTINGS: Settings<NatsProviderBuilder> = Settings::new(&[
    row!(
        "(servers)" = config.url,
        Setting::text().doc("URL of the server, or several URLs separated by commas"),
        |builder| Value::Text(without_credentials(&builder.config.url))
    ),
    row!(
        "(user and password)" = user_and_password,
        Setting::text()
            .secret()
            .doc("user and password to authenticate with; a user without a password is a token"),
        |builder| builder.user_and_password.as_ref().map(|(user, _)| user.clone()).to_value()
    ),
    row!("(scheme `tls`)" = require_tls, Setting::flag().doc("refusal of connections without TLS")),
    row!(
        "(path)" = config.stream_name,
        Setting::text()
            .rule(is_stream_name, "have 1 to 255 characters, without white space and . * > / \\")
            .doc("name of the stream")
    ),
    row!(
        "create_if_missing" = create_if_missing,
        Setting::flag()
            .formerly(&["create"])
            .doc("creation of the stream if it does not exist, and again if it is deleted later")
    ),
    row!("subject_prefix" = config.subject_prefix, Setting::text().doc("first tokens of every subject")),
    row!("storage" = config.storage, Setting::choice::<StorageType>().doc("storage of a new stream")),
    row!(
        "max_events" = config.max_events,
        Setting::count("events")
            .zero("unlimited")
            .doc("maximum number of events in a new stream; the oldest are dropped")
    ),
    row!(
        "max_age" = config.max_age_secs,
        Setting::seconds().zero("unlimited").doc("maximum age of an event in a new stream")
    ),
    row!(
        "max_bytes" = config.max_bytes,
        Setting::size("bytes")
            .least(SMALLEST_LIMIT)
            .zero("unlimited")
            .doc("maximum size of a new stream in bytes; the oldest events are dropped")
    ),
    row!(
        "connect_timeout" = config.connect_timeout_secs,
        Setting::seconds().shortest(Duration::from_secs(1)).doc("timeout of connecting")
    ),
    row!(
        "request_timeout" = config.request_timeout_secs,
        Setting::seconds().shortest(Duration::from_secs(1)).doc("timeout of every other call")
    ),
    row!("token" = config.token, Setting::text().secret().doc("token to authenticate with")),
    row!("nkey" = nkey, Setting::text().secret().doc("seed of the NKey to authenticate with")),
    row!(
        "credentials_path" = config.credentials_path,
        Setting::file().secret().doc(
            "path of a credentials file (`.creds`: a JWT and its seed); `credentials_file` of the builder"
        )
    ),
    row!("root_certificates" = root_certificates, common::ROOT_CERTIFICATES),
    row!("client_certificate" = client_certificate, common::CLIENT_CERTIFICATE),
    row!("client_key" = client_key, common::CLIENT_KEY),
    row!(
        "tls_first" = tls_first,
        Setting::flag().doc("TLS handshake before the server's greeting, for servers with `handshake_first`")
    ),
    row!(
        "client_name" = client_name,
        Setting::text().unset("`a3s-event`").doc("name of this client in the server's lists")
    ),
    row!(
        "publish_timeout" = publish_timeout,
        Setting::duration()
            .shortest(Duration::from_nanos(1))
            .formerly(&["publish_deadline"])
            .unset("the request timeout")
            .doc("timeout of a publish whose options have none")
    ),
    row!(
        "max_in_flight" = max_in_flight,
        Setting::count("publishes")
            .least(1)
            .doc("maximum number of publishes of a batch that wait for their acknowledgement")
    ),
    row!("max_unconfirmed_acks" = max_unconfirmed_acks, common::MAX_UNCONFIRMED_ACKS),
    row!(
        "format" = format,
        Setting::choice::<EventFormat>()
            .formerly(&["wire"])
            .doc("format in which events are written: their own JSON or CloudEvents; both are read")
    ),
    row!(
        "replicas" = replicas,
        Setting::count("servers")
            .only(&[1, 3, 5])
            .unset("the server's, `1`")
            .doc("number of servers that store a new stream")
    ),
    row!(
        "dedup_window" = dedup_window,
        Setting::duration()
            .shortest(Duration::from_millis(100))
            .unset("the server's, `2m`")
            .doc("time for which the server remembers a `msg_id`; at most the maximum age of an event")
    ),
    row!(
        "max_event_bytes" = max_event_bytes,
        Setting::size("bytes of JSON")
            .least(SMALLEST_LIMIT)
            .most(i32::MAX as i128)
            .formerly(&["max_message_size"])
            .unset("the server's")
            .doc("maximum size of one event in bytes of JSON, below the server's limit")
    ),
    row!(
        "compression" = compression,
        Setting::flag()
            .unset("the server's, `false`")
            .doc("compression (S2) of the files of a new stream; requires nats-server 2.10")
    ),
    row!(
        "discard_new" = discard_new,
        Setting::flag()
            .unset("the server's, `false`")
            .doc("refusal of new events by a full stream, instead of dropping the oldest")
    ),
    row!(
        "atomic_batches" = atomic_batches,
        Setting::flag().unset("the faster one, measured").doc(
            "use of atomic batches for events without options, always or never; requires nats-server 2.12"
        )
    ),
]);

fn is_stream_name(name: &str) -> bool {
    let breaks_name = |c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c);
    (1..=255).contains(&name.len()) && !name.contains(breaks_name)
}

/// Returns the URLs without the credentials before the `@` of each server.
pub(super) fn without_credentials(urls: &str) -> String {
    let shown = urls.split(',').map(|url| match url.rsplit_once('@') {
        Some((before, host)) => {
            format!(
                "{}***@{host}",
                before.split_once("://").map_or(String::new(), |(s, _)| format!("{s}://"))
            )
        }
        // Drops a query or fragment too, which no server's URL has.
        None => url.split(['?', '#']).next().unwrap_or_default().to_owned(),
    });
    shown.collect::<Vec<_>>().join(",")
}
