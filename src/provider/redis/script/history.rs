//! Reads records of the log, newest first.

use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::{BOUNDS, COMMON, Call, LISTS, RECORDS, Script};
use crate::error::Result;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    Script::with_parts("history", include_str!("history.lua"), &[COMMON, RECORDS, BOUNDS, LISTS])
});

/// The records to read.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::provider::redis) struct Range<'a> {
    /// Minimum sequence, inclusive.
    pub(in crate::provider::redis) since: Option<u64>,
    /// Maximum sequence, exclusive.
    pub(in crate::provider::redis) before: Option<u64>,
    /// Minimum storage time in Unix milliseconds, inclusive.
    pub(in crate::provider::redis) since_time: Option<u64>,
    /// Maximum storage time in Unix milliseconds, exclusive.
    pub(in crate::provider::redis) before_time: Option<u64>,
    /// Pattern of the subjects; empty for all.
    pub(in crate::provider::redis) pattern: &'a str,
    /// Subjects whose lists to read. Without any, the log is searched.
    pub(in crate::provider::redis) subjects: &'a [String],
}

/// Limits of the work of one call.
#[derive(Debug, Clone, Copy)]
pub(in crate::provider::redis) struct Most {
    /// Maximum number of records to return.
    pub(in crate::provider::redis) records: usize,
    /// Number of bytes after which no other record is returned.
    pub(in crate::provider::redis) bytes: usize,
    /// Maximum number of records to look at.
    pub(in crate::provider::redis) looked: usize,
}

/// A part of a range.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::provider::redis) struct Slice {
    /// Lowest sequence of the range.
    pub(in crate::provider::redis) since: u64,
    /// Lowest sequence that was searched. The range was searched from here to its end.
    pub(in crate::provider::redis) searched_from: u64,
    /// If true, the lists of the subjects name every record of the log.
    pub(in crate::provider::redis) is_indexed: bool,
    /// Number of records that were looked at.
    pub(in crate::provider::redis) looked: u64,
    /// Records that match, and those that other programs wrote, newest first.
    pub(in crate::provider::redis) records: Vec<Record>,
}

/// A stored record.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::provider::redis) struct Record {
    pub(in crate::provider::redis) sequence: u64,
    /// The time in its id. Another program may have put anything there.
    pub(in crate::provider::redis) stored_at: u64,
    /// `None` if its fields are not those of an event, or the subject is not UTF-8.
    pub(in crate::provider::redis) subject: Option<String>,
    pub(in crate::provider::redis) json: Vec<u8>,
}

pub(in crate::provider::redis) fn history(keys: &Keys, range: Range<'_>, most: Most) -> Call {
    let mut call = Call::new(&SCRIPT).key(keys.log()).key(keys.meta());
    for subject in range.subjects {
        call = call.key(keys.subject(subject));
    }
    call.argument(bound(range.since))
        .argument(bound(range.before))
        .argument(bound(range.since_time))
        .argument(bound(range.before_time))
        .number(most.records as u64)
        .number(most.bytes as u64)
        .number(most.looked as u64)
        .argument(range.pattern)
}

fn bound(bound: Option<u64>) -> String {
    bound.map(|bound| bound.to_string()).unwrap_or_default()
}

/// Reads the reply. Returns `None` if the range is empty.
pub(in crate::provider::redis) fn read(reply: Value) -> Result<Option<Slice>> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    if reply.is_empty() {
        return Ok(None);
    }
    let mut slice = Slice {
        since: reply.number()?,
        searched_from: reply.number()?,
        is_indexed: reply.flag()?,
        looked: reply.number()?,
        records: Vec::new(),
    };
    let mut records = reply.list()?;
    while !records.is_empty() {
        slice.records.push(record(&mut records)?);
    }
    Ok(Some(slice))
}

fn record(records: &mut Reply) -> Result<Record> {
    let id = records.text()?;
    let (sequence, stored_at) = id
        .split_once('-')
        .and_then(|(sequence, stored_at)| sequence.parse().ok().zip(stored_at.parse().ok()))
        .ok_or_else(|| records.unknown(&id))?;
    let subject = String::from_utf8(records.bytes()?).ok().filter(|subject| !subject.is_empty());
    Ok(Record { sequence, stored_at, subject, json: records.bytes()? })
}
