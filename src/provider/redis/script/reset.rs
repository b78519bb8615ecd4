//! Moves a consumer to another position.

use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::{
    COMMON, COUNTERS, Call, MAX_MILLIS, MAX_SEQUENCE, MEMBERSHIP, MIRROR, OVERTAKEN, POSITION, RECORDS,
    Script, WAKING,
};
use crate::error::Result;
use crate::provider::ConsumerPosition;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    let mirror = Script::deferred("mirror", &[MIRROR]);
    let parts = [COMMON, RECORDS, COUNTERS, OVERTAKEN, POSITION, MEMBERSHIP, WAKING, mirror.as_str()];
    Script::with_parts("reset", include_str!("reset.lua"), &parts)
});

/// Answer to the call.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::provider::redis) enum Moved {
    Done,
    /// The consumer does not exist.
    Absent,
    StreamReplaced,
}

/// Moves a consumer.
pub(in crate::provider::redis) fn reset(
    keys: &Keys,
    epoch: &str,
    name: &str,
    position: ConsumerPosition,
) -> Call {
    let (kind, value) = match position {
        ConsumerPosition::First => ("first", 0),
        ConsumerPosition::Last => ("last", 0),
        ConsumerPosition::Sequence(sequence) => ("sequence", sequence.min(MAX_SEQUENCE)),
        ConsumerPosition::Time(unix_ms) => ("time", unix_ms.min(MAX_MILLIS)),
    };
    Call::new(&SCRIPT)
        .keys([keys.log(), keys.meta(), keys.consumers(), keys.consumer(name), keys.due(name)])
        .keys([keys.attempts(name), keys.backlog(name), keys.cursors(), keys.overtaken(), keys.lagged()])
        .argument(epoch)
        .argument(keys.channel())
        .argument(name)
        .argument(kind)
        .number(value)
}

/// Reads the reply.
pub(in crate::provider::redis) fn read(reply: Value) -> Result<Moved> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    Ok(match reply.text()?.as_str() {
        "ok" => Moved::Done,
        "absent" => Moved::Absent,
        "replaced" => Moved::StreamReplaced,
        other => return Err(reply.unknown(other)),
    })
}
