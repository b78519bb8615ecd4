//! Counts the entries of lists behind a sequence.

use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::{COMMON, Call, LISTS, Script};
use crate::error::Result;

pub(super) static SCRIPT: LazyLock<Script> =
    LazyLock::new(|| Script::with_parts("lag", include_str!("lag.lua"), &[COMMON, LISTS]));

/// Asks for the number of entries of each list behind a sequence. Each list is a key.
pub(in crate::provider::redis) fn lag<'a>(lists: impl IntoIterator<Item = (&'a str, u64)>) -> Call {
    lists.into_iter().fold(Call::new(&SCRIPT), |call, (list, from)| call.key(list).number(from))
}

/// Reads the counts of the first lists, at least one.
pub(in crate::provider::redis) fn read(reply: Value) -> Result<Vec<u64>> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    let mut counts = vec![reply.number()?];
    while !reply.is_empty() {
        counts.push(reply.number()?);
    }
    Ok(counts)
}
