//! Reads the entries of lists behind a sequence.

use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::{COMMON, Call, LISTS, Script};
use crate::error::Result;

pub(super) static SCRIPT: LazyLock<Script> =
    LazyLock::new(|| Script::with_parts("sequences", include_str!("sequences.lua"), &[COMMON, LISTS]));

/// Entries of the first lists, at least one.
pub(in crate::provider::redis) struct Entries {
    pub(in crate::provider::redis) lists: Vec<Vec<u64>>,
    /// If true, the last of the lists may have further entries.
    pub(in crate::provider::redis) is_cut: bool,
}

/// Asks for the entries of each list behind a sequence, at most `most` of them. Each list is a key.
pub(in crate::provider::redis) fn sequences<'a>(
    lists: impl IntoIterator<Item = (&'a str, u64)>,
    most: usize,
) -> Call {
    let call = Call::new(&SCRIPT).number(most as u64);
    lists.into_iter().fold(call, |call, (list, from)| call.key(list).number(from))
}

/// Reads the reply to a call for at most `most` entries.
pub(in crate::provider::redis) fn read(reply: Value, most: usize) -> Result<Entries> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    let mut lists = vec![entries(reply.list()?)?];
    while !reply.is_empty() {
        lists.push(entries(reply.list()?)?);
    }
    let is_cut = lists.iter().map(Vec::len).sum::<usize>() >= most;
    Ok(Entries { lists, is_cut })
}

fn entries(mut reply: Reply) -> Result<Vec<u64>> {
    let mut entries = Vec::with_capacity(reply.len());
    while !reply.is_empty() {
        entries.push(reply.number()?);
    }
    Ok(entries)
}
