//! Deletes a consumer.

use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::{COMMON, Call, MEMBERSHIP, OVERTAKEN, Script, WAKING};
use crate::error::Result;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    let parts = [COMMON, OVERTAKEN, MEMBERSHIP, WAKING];
    Script::with_parts("close_consumer", include_str!("close_consumer.lua"), &parts)
});

/// Deletes a consumer. With a generation, deletes only that one and not another of the same name.
pub(in crate::provider::redis) fn close_consumer(keys: &Keys, name: &str, generation: Option<&str>) -> Call {
    Call::new(&SCRIPT)
        .keys([keys.log(), keys.consumers(), keys.cursors(), keys.overtaken(), keys.lagged()])
        .keys([keys.ephemerals()])
        .keys([keys.consumer(name), keys.due(name), keys.attempts(name), keys.backlog(name)])
        .argument(keys.channel())
        .argument(name)
        .argument(generation.unwrap_or_default())
}

/// Reads the reply: true if the consumer existed.
pub(in crate::provider::redis) fn read(reply: Value) -> Result<bool> {
    Reply::new(&SCRIPT, reply)?.flag()
}
