//! Reads the size and the limits of a stream.

use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::{COMMON, Call, Script};
use crate::error::Result;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> =
    LazyLock::new(|| Script::with_parts("stream", include_str!("stream.lua"), &[COMMON]));

/// Size and limits of a stream. A limit of 0 is none.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::provider::redis) struct Stream {
    pub(in crate::provider::redis) events: u64,
    pub(in crate::provider::redis) bytes: u64,
    pub(in crate::provider::redis) consumers: u64,
    pub(in crate::provider::redis) prefix: String,
    pub(in crate::provider::redis) max_events: u64,
    pub(in crate::provider::redis) max_bytes: u64,
    pub(in crate::provider::redis) max_age_ms: u64,
}

pub(in crate::provider::redis) fn stream(keys: &Keys) -> Call {
    Call::new(&SCRIPT).key(keys.log()).key(keys.meta()).key(keys.consumers())
}

/// Reads the reply. Returns `None` if the stream does not exist.
pub(in crate::provider::redis) fn read(reply: Value) -> Result<Option<Stream>> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    if reply.is_empty() {
        return Ok(None);
    }
    Ok(Some(Stream {
        events: reply.number()?,
        bytes: reply.number()?,
        consumers: reply.number()?,
        prefix: reply.text()?,
        max_events: reply.number()?,
        max_bytes: reply.number()?,
        max_age_ms: reply.number()?,
    }))
}
