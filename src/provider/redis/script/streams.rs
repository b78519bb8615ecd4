//! Finds the streams of a server.

use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::{COMMON, Call, Script};
use crate::error::Result;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> =
    LazyLock::new(|| Script::with_parts("streams", include_str!("streams.lua"), &[COMMON]));

/// Names of streams, from a part of the keys. A part may repeat names of an earlier one.
pub(in crate::provider::redis) struct Part {
    pub(in crate::provider::redis) names: Vec<String>,
    /// Position of the next part, or 0 at the end.
    pub(in crate::provider::redis) next: u64,
}

/// Asks for a part; the position of the first one is 0.
pub(in crate::provider::redis) fn streams(key_prefix: &str, position: u64) -> Call {
    let pattern = Keys::new(&escape(key_prefix), "*").meta();
    Call::new(&SCRIPT).number(position).argument(pattern)
}

pub(in crate::provider::redis) fn read(key_prefix: &str, reply: Value) -> Result<Part> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    let next = reply.number()?;
    let mut keys = reply.list()?;
    let mut names = Vec::new();
    while !keys.is_empty() {
        // A key that is not UTF-8 belongs to another program.
        let key = String::from_utf8(keys.bytes()?).ok();
        names.extend(key.and_then(|key| stream_of(key_prefix, &key)));
    }
    Ok(Part { names, next })
}

/// Returns the name of the stream whose `meta` has this key.
fn stream_of(key_prefix: &str, key: &str) -> Option<String> {
    let name = key.strip_prefix(key_prefix)?.strip_prefix(":{")?.strip_suffix("}:meta")?;
    (!name.is_empty() && !name.contains(['{', '}'])).then(|| name.to_owned())
}

/// Escapes the characters that mean something in a pattern of the server.
fn escape(literal: &str) -> String {
    let mut escaped = String::with_capacity(literal.len());
    for c in literal.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '^' | '-' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_metadata_of_a_stream_names_it() {
        assert_eq!(stream_of("a3s", "a3s:{orders}:meta").as_deref(), Some("orders"));
        for other in
            ["a3s:{}:meta", "a3s:{a}{b}:meta", "b3s:{orders}:meta", "a3s:{orders}:log", "a3s:{orders:meta"]
        {
            assert_eq!(stream_of("a3s", other), None, "{other}");
        }
        assert_eq!(escape("a*[b]-?"), r"a\*\[b\]\-\?");
    }
}
