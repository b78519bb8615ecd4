//! Opens a stream.

use std::sync::LazyLock;
use std::time::Duration;

use redis::Value;

use super::reply::Reply;
use super::{COMMON, COUNTERS, Call, RECORDS, Script, millis};
use crate::error::Result;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    let parts = [COMMON, RECORDS, COUNTERS];
    Script::with_parts("open_stream", include_str!("open_stream.lua"), &parts)
});

/// Limits of a stream. Zero is unlimited. What is `None` stays as it is in the stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::provider::redis) struct Limits {
    pub(in crate::provider::redis) max_events: Option<u64>,
    pub(in crate::provider::redis) max_bytes: Option<u64>,
    pub(in crate::provider::redis) max_age: Option<Duration>,
    pub(in crate::provider::redis) dedup_window: Option<Duration>,
}

/// Answer to the call.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::provider::redis) enum OpenedStream {
    Opened {
        /// Identity of the stream. Another one means that the stream was lost or replaced.
        epoch: String,
        is_new: bool,
        /// The limits in force, each of which is set.
        limits: Limits,
    },
    /// It does not exist and was not to be created.
    Absent,
    OtherPrefix(String),
    /// It has the format of another version of this library.
    OtherFormat(String),
}

/// Opens the stream. If it is new, it gets `epoch`, which must be random.
pub(in crate::provider::redis) fn open_stream(
    keys: &Keys,
    prefix: &str,
    epoch: &str,
    create_if_missing: bool,
    limits: Limits,
) -> Call {
    let named = [
        ("max_events", limits.max_events),
        ("max_bytes", limits.max_bytes),
        ("max_age", limits.max_age.map(millis)),
        ("dedup_window", limits.dedup_window.map(millis)),
    ];
    let call = Call::new(&SCRIPT).keys([keys.log(), keys.meta()]);
    let call = call.argument(prefix).argument(epoch).flag(create_if_missing);
    let named = named.into_iter().filter_map(|(name, limit)| Some((name, limit?)));
    named.fold(call, |call, (name, limit)| call.argument(name).number(limit))
}

/// Reads the reply.
pub(in crate::provider::redis) fn read(reply: Value) -> Result<OpenedStream> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    Ok(match reply.text()?.as_str() {
        "opened" => OpenedStream::Opened {
            epoch: reply.text()?,
            is_new: reply.flag()?,
            limits: Limits {
                max_events: Some(reply.number()?),
                max_bytes: Some(reply.number()?),
                max_age: Some(Duration::from_millis(reply.number()?)),
                dedup_window: Some(Duration::from_millis(reply.number()?)),
            },
        },
        "absent" => OpenedStream::Absent,
        "prefix" => OpenedStream::OtherPrefix(reply.text()?),
        "format" => OpenedStream::OtherFormat(reply.text()?),
        other => return Err(reply.unknown(other)),
    })
}
