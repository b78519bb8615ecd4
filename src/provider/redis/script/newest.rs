//! Finds the newest event of each subject, for the start policies that begin with it.

use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::{COMMON, COUNTERS, Call, RECORDS, Script};
use crate::error::Result;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    let parts = [COMMON, RECORDS, COUNTERS];
    Script::with_parts("newest", include_str!("newest.lua"), &parts)
});

/// Maximum number of subjects of one call.
pub(in crate::provider::redis) const MAX_SUBJECTS: usize = 500;

/// Asks for the newest event up to `through` of each of at most [`MAX_SUBJECTS`] subjects.
pub(in crate::provider::redis) fn newest(
    keys: &Keys,
    epoch: &str,
    subjects: &[impl AsRef<str>],
    through: u64,
) -> Call {
    let lists = subjects.iter().map(|subject| keys.subject(subject.as_ref()));
    Call::new(&SCRIPT).keys([keys.log(), keys.meta()]).keys(lists).argument(epoch).number(through)
}

/// Reads the reply: the sequences in any order, or `None` if the stream was replaced.
pub(in crate::provider::redis) fn read(reply: Value) -> Result<Option<Vec<u64>>> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    match reply.text()?.as_str() {
        "ok" => {
            let mut sequences = Vec::with_capacity(reply.len());
            while !reply.is_empty() {
                sequences.push(reply.number()?);
            }
            Ok(Some(sequences))
        }
        "replaced" => Ok(None),
        other => Err(reply.unknown(other)),
    }
}
