//! Reads the names of the consumers.

use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::{COMMON, Call, Script};
use crate::error::Result;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> =
    LazyLock::new(|| Script::with_parts("consumers", include_str!("consumers.lua"), &[COMMON]));

/// Approximate number of names in a page.
const PAGE: u64 = 500;

/// A page of names. It may repeat names of an earlier page.
pub(in crate::provider::redis) struct Page {
    pub(in crate::provider::redis) names: Vec<String>,
    /// Position of the next page, or 0 at the end.
    pub(in crate::provider::redis) next: u64,
}

/// Asks for a page; the position of the first one is 0.
pub(in crate::provider::redis) fn consumers(keys: &Keys, position: u64) -> Call {
    Call::new(&SCRIPT).key(keys.consumers()).number(position).number(PAGE)
}

pub(in crate::provider::redis) fn read(reply: Value) -> Result<Page> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    let next = reply.number()?;
    let mut pairs = reply.list()?;
    let mut names = Vec::with_capacity(pairs.len() / 2);
    while !pairs.is_empty() {
        names.push(pairs.text()?);
        pairs.bytes()?;
    }
    Ok(Page { names, next })
}
