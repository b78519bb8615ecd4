//! Reads the subjects that have retained events.

use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::{COMMON, Call, Script};
use crate::error::Result;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> =
    LazyLock::new(|| Script::with_parts("subjects", include_str!("subjects.lua"), &[COMMON]));

/// Maximum number of subjects in a page.
const PAGE: u64 = 5_000;

/// A page of subjects, and the last one of it if there may be others behind it.
pub(in crate::provider::redis) struct Page {
    pub(in crate::provider::redis) subjects: Vec<String>,
    pub(in crate::provider::redis) last: Option<Vec<u8>>,
}

/// Asks for the subjects that begin with `literal` and follow `after`, if given.
pub(in crate::provider::redis) fn subjects(keys: &Keys, literal: &str, after: Option<&[u8]>) -> Call {
    let from = match after {
        Some(after) => [b"(", after].concat(),
        None => format!("[{literal}").into_bytes(),
    };
    // No subject has this byte, which UTF-8 does not use.
    let to = [b"(", literal.as_bytes(), b"\xff"].concat();
    Call::new(&SCRIPT).key(keys.subjects()).argument(from).argument(to).number(PAGE)
}

pub(in crate::provider::redis) fn read(reply: Value) -> Result<Page> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    let is_full = reply.len() as u64 >= PAGE;
    let mut subjects = Vec::with_capacity(reply.len());
    let mut last = None;
    while !reply.is_empty() {
        let subject = reply.bytes()?;
        if is_full && reply.is_empty() {
            last = Some(subject.clone());
        }
        // Another writer added one that is not UTF-8, and thus no subject.
        subjects.extend(String::from_utf8(subject).ok());
    }
    Ok(Page { subjects, last })
}
