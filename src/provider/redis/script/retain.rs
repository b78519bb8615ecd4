//! Drops the events that exceed the limits.

use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::{COMMON, COUNTERS, Call, DROPPING, OVERTAKEN, RECORDS, RETENTION, Script};
use crate::error::Result;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    let parts = [COMMON, RECORDS, COUNTERS, OVERTAKEN, RETENTION, DROPPING];
    Script::with_parts("retain", include_str!("retain.lua"), &parts)
});

/// Result of a call that drops events.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::provider::redis) struct Retained {
    pub(in crate::provider::redis) dropped: u64,
    /// If true, another call has more to drop.
    pub(in crate::provider::redis) has_surplus: bool,
}

/// Drops some of the events that exceed the limits.
pub(in crate::provider::redis) fn retain(keys: &Keys, epoch: &str) -> Call {
    Call::new(&SCRIPT).keys(keys_of_dropping(keys)).argument(epoch).argument(keys.base())
}

/// Returns the keys that dropping events needs, as far as they are known before.
pub(super) fn keys_of_dropping(keys: &Keys) -> [String; 7] {
    [
        keys.log(),
        keys.meta(),
        keys.subjects(),
        keys.cursors(),
        keys.overtaken(),
        keys.consumers(),
        keys.lagged(),
    ]
}

/// Reads the reply: `None` if the stream was replaced.
pub(in crate::provider::redis) fn read(reply: Value) -> Result<Option<Retained>> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    match reply.text()?.as_str() {
        "ok" => Ok(Some(Retained { dropped: reply.number()?, has_surplus: reply.flag()? })),
        "replaced" => Ok(None),
        other => Err(reply.unknown(other)),
    }
}
