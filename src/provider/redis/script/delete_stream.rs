//! Deletes the stream, in steps.

use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::{COMMON, Call, Script};
use crate::error::Result;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> =
    LazyLock::new(|| Script::with_parts("delete_stream", include_str!("delete_stream.lua"), &[COMMON]));

/// Deletes a part of the stream.
pub(in crate::provider::redis) fn delete_stream(keys: &Keys) -> Call {
    Call::new(&SCRIPT)
        .keys([keys.log(), keys.meta(), keys.subjects(), keys.ids(), keys.id_queue(), keys.consumers()])
        .keys([keys.ephemerals(), keys.cursors(), keys.overtaken(), keys.lagged()])
        .argument(keys.base())
}

/// Reads the reply: true if there is more to delete.
pub(in crate::provider::redis) fn read(reply: Value) -> Result<bool> {
    Reply::new(&SCRIPT, reply)?.flag()
}
