//! Opens a consumer.

use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::{
    COMMON, COUNTERS, Call, MAX_MILLIS, MAX_SEQUENCE, MEMBERSHIP, MIRROR, OVERTAKEN, POSITION, RECORDS,
    Script, WAKING, millis,
};
use crate::error::{EventError, Result};
use crate::provider::group::ConsumerConfig;
use crate::provider::redis::keys::Keys;
use crate::provider::redis::pattern::lua_pattern;
use crate::types::{DeliverPolicy, SubscribeOptions};

pub(super) static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    let mirror = Script::deferred("mirror", &[MIRROR]);
    let parts = [COMMON, RECORDS, COUNTERS, OVERTAKEN, POSITION, MEMBERSHIP, WAKING, mirror.as_str()];
    Script::with_parts("open_consumer", include_str!("open_consumer.lua"), &parts)
});

/// A consumer to open.
#[derive(Debug)]
pub(in crate::provider::redis) struct Wanted<'a> {
    pub(in crate::provider::redis) name: &'a str,
    /// A random name for this consumer, if it is new. A later one of the same name has another.
    pub(in crate::provider::redis) generation: &'a str,
    pub(in crate::provider::redis) config: &'a ConsumerConfig,
    /// Prefix of the stream's subjects.
    pub(in crate::provider::redis) prefix: &'a str,
    /// If true, an existing consumer takes over the settings.
    pub(in crate::provider::redis) applies: bool,
    pub(in crate::provider::redis) is_ephemeral: bool,
    /// If true, a consumer group of its name on the log shows its position.
    pub(in crate::provider::redis) mirrors: bool,
    /// The start, if the first call [asked for it](OpenedConsumer::StartsAtNewest).
    pub(in crate::provider::redis) start: Option<&'a Backlog>,
}

/// Events with which a consumer starts, before it continues after `cursor`.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::provider::redis) struct Backlog {
    /// In ascending order.
    pub(in crate::provider::redis) sequences: Vec<u64>,
    pub(in crate::provider::redis) cursor: u64,
}

/// Answer to the call.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::provider::redis) enum OpenedConsumer {
    Opened {
        generation: String,
        /// Number of changes of the settings.
        revision: u64,
        is_new: bool,
        /// The settings in force.
        config: ConsumerConfig,
    },
    /// It exists with another filter or start: these settings.
    Conflict(ConsumerConfig),
    /// It would be new and starts with the [newest events](super::newest) of subjects up to this sequence, which the
    /// caller must find.
    StartsAtNewest(u64),
    StreamReplaced,
}

/// Opens the consumer.
///
/// # Errors
///
/// If the options cannot be serialized, which does not happen.
pub(in crate::provider::redis) fn open_consumer(
    keys: &Keys,
    epoch: &str,
    wanted: &Wanted<'_>,
) -> Result<Call> {
    let Wanted { name, generation, config, prefix, applies, is_ephemeral, mirrors, start } = wanted;
    let (kind, value) = match (&config.deliver_policy, start) {
        (_, Some(backlog)) => ("backlog", backlog.cursor),
        (DeliverPolicy::All, _) => ("first", 0),
        (DeliverPolicy::New, _) => ("last", 0),
        (DeliverPolicy::ByStartSequence { sequence }, _) => ("sequence", (*sequence).min(MAX_SEQUENCE)),
        (DeliverPolicy::ByStartTime { timestamp }, _) => ("time", (*timestamp).min(MAX_MILLIS)),
        (DeliverPolicy::Last | DeliverPolicy::LastPerSubject, _) => ("newest", 0),
    };
    let backoff: Vec<String> = config.backoff.iter().map(|delay| millis(*delay).to_string()).collect();
    let call = Call::new(&SCRIPT)
        .keys([keys.log(), keys.meta(), keys.consumers(), keys.cursors(), keys.overtaken(), keys.lagged()])
        .keys([
            keys.ephemerals(),
            keys.consumer(name),
            keys.due(name),
            keys.attempts(name),
            keys.backlog(name),
        ])
        .argument(epoch)
        .argument(keys.base())
        .argument(keys.channel())
        .argument(*name)
        .argument(*generation)
        .argument(config.filter.as_str())
        .argument(lua_pattern(&config.filter, prefix))
        .argument(serde_json::to_string(&config.deliver_policy)?)
        .argument(serde_json::to_string(&config.to_options())?)
        .number(millis(config.ack_wait))
        .number(config.max_ack_pending as u64)
        .number(config.max_deliver.unwrap_or(0))
        .argument(backoff.join(" "))
        .flag(*applies)
        .flag(*is_ephemeral)
        .flag(*mirrors)
        .argument(kind)
        .number(value);
    let sequences = start.map_or(&[][..], |backlog| &backlog.sequences);
    let call = call.number(sequences.len() as u64);
    Ok(sequences.iter().fold(call, |call, sequence| call.number(*sequence)))
}

/// Reads the reply. `filter` is the wanted one.
pub(in crate::provider::redis) fn read(reply: Value, filter: &str) -> Result<OpenedConsumer> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    Ok(match reply.text()?.as_str() {
        "opened" => OpenedConsumer::Opened {
            generation: reply.text()?,
            revision: reply.number()?,
            is_new: reply.flag()?,
            config: config(filter, &reply.text()?)?,
        },
        "conflict" => {
            let filter = reply.text()?;
            OpenedConsumer::Conflict(config(&filter, &reply.text()?)?)
        }
        "newest" => OpenedConsumer::StartsAtNewest(reply.number()?),
        "replaced" => OpenedConsumer::StreamReplaced,
        other => return Err(reply.unknown(other)),
    })
}

fn config(filter: &str, options: &str) -> Result<ConsumerConfig> {
    let options: SubscribeOptions = serde_json::from_str(options).map_err(EventError::Serialization)?;
    ConsumerConfig::new(filter, &options)
}
