//! Reads the subjects of the last records.

use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::{COMMON, Call, RECORDS, Script};
use crate::error::Result;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> =
    LazyLock::new(|| Script::with_parts("tail", include_str!("tail.lua"), &[COMMON, RECORDS]));

/// Approximate number of records in a reply.
const PAGE: u64 = 1_000;

/// A record, of which only the subject is read.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::provider::redis) struct Entry {
    pub(in crate::provider::redis) sequence: u64,
    /// Empty if another program wrote the record.
    pub(in crate::provider::redis) subject: String,
}

/// Asks for the records of a range of sequences, both ends included.
pub(in crate::provider::redis) fn tail(keys: &Keys, first: u64, last: u64) -> Call {
    Call::new(&SCRIPT).key(keys.log()).number(first).number(last).number(PAGE)
}

/// Reads the first records of the range in ascending order. There are none if the range is empty.
pub(in crate::provider::redis) fn read(reply: Value) -> Result<Vec<Entry>> {
    let mut reply = Reply::new(&SCRIPT, reply)?.list()?;
    let mut entries = Vec::with_capacity(reply.len() / 2);
    while !reply.is_empty() {
        entries.push(Entry { sequence: reply.number()?, subject: reply.text()? });
    }
    Ok(entries)
}
