//! Keeps ephemeral consumers.

use std::sync::LazyLock;
use std::time::Duration;

use redis::Value;

use super::reply::Reply;
use super::{COMMON, Call, MEMBERSHIP, OVERTAKEN, Script};
use crate::error::Result;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    let parts = [COMMON, OVERTAKEN, MEMBERSHIP];
    Script::with_parts("heartbeat", include_str!("heartbeat.lua"), &parts)
});

/// Time between two heartbeats. A consumer without one for six times as long is deleted.
pub(in crate::provider::redis) const INTERVAL: Duration = Duration::from_secs(600);

/// Keeps ephemeral consumers that are waiting, and deletes some whose processes are gone.
pub(in crate::provider::redis) fn heartbeat(keys: &Keys, names: &[impl AsRef<str>]) -> Call {
    let call = Call::new(&SCRIPT)
        .keys([keys.consumers(), keys.cursors(), keys.overtaken(), keys.lagged(), keys.ephemerals()])
        .argument(keys.base())
        .number(names.len() as u64);
    names.iter().fold(call, |call, name| call.argument(name.as_ref()))
}

/// Reads the reply: the names of the consumers that no longer exist.
pub(in crate::provider::redis) fn read(reply: Value) -> Result<Vec<String>> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    let mut gone = Vec::with_capacity(reply.len());
    while !reply.is_empty() {
        gone.push(reply.text()?);
    }
    Ok(gone)
}
