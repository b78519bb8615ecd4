//! Deletes events, in steps.

use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::retain::keys_of_dropping;
use super::{COMMON, COUNTERS, Call, DROPPING, OVERTAKEN, RECORDS, RETENTION, Script};
use crate::error::Result;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    let parts = [COMMON, RECORDS, COUNTERS, OVERTAKEN, RETENTION, DROPPING];
    Script::with_parts("purge", include_str!("purge.lua"), &parts)
});

/// Result of a step that deletes events.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::provider::redis) struct Purged {
    pub(in crate::provider::redis) deleted: u64,
    /// Last sequence to delete, for the next step. It keeps what is stored meanwhile.
    pub(in crate::provider::redis) through: u64,
    /// Sequence from which the next step goes on; `None` at the end.
    pub(in crate::provider::redis) next: Option<u64>,
}

/// Deletes some of the events that the [pattern](crate::provider::redis::pattern) finds, from `from` up to `through`, or
/// up to the last one.
pub(in crate::provider::redis) fn purge(
    keys: &Keys,
    epoch: &str,
    pattern: &str,
    from: u64,
    through: Option<u64>,
) -> Call {
    let through = through.map(|through| through.to_string()).unwrap_or_default();
    let call = Call::new(&SCRIPT).keys(keys_of_dropping(keys)).argument(epoch).argument(keys.base());
    call.argument(through).argument(pattern).number(from)
}

/// Reads the reply: `None` if the stream was replaced.
pub(in crate::provider::redis) fn read(reply: Value) -> Result<Option<Purged>> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    match reply.text()?.as_str() {
        "ok" => {
            Ok(Some(Purged { deleted: reply.number()?, through: reply.number()?, next: reply.optional()? }))
        }
        "replaced" => Ok(None),
        other => Err(reply.unknown(other)),
    }
}
