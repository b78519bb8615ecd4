//! Lua scripts, each beside the function that calls it and reads its reply.

pub(super) mod close_consumer;
pub(super) mod consumers;
pub(super) mod delete_stream;
pub(super) mod fetch;
pub(super) mod heartbeat;
pub(super) mod history;
pub(super) mod infos;
pub(super) mod lag;
#[cfg(test)]
mod model;
pub(super) mod newest;
pub(super) mod open_consumer;
pub(super) mod open_stream;
pub(super) mod publish;
pub(super) mod purge;
mod reply;
pub(super) mod reset;
pub(super) mod retain;
pub(super) mod sequences;
#[cfg(test)]
pub(super) mod server;
pub(super) mod settle;
pub(super) mod stream;
pub(super) mod streams;
pub(super) mod subjects;
pub(super) mod tail;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::time::Duration;

use redis::{Cmd, Value, cmd};

use crate::error::Result;

/// Parts that several scripts have in common. A part uses only what is before it.
const BOUNDS: &str = include_str!("parts/bounds.lua");
const COMMON: &str = include_str!("parts/common.lua");
const COUNTERS: &str = include_str!("parts/counters.lua");
const DEDUP: &str = include_str!("parts/dedup.lua");
const DROPPING: &str = include_str!("parts/dropping.lua");
const INDEX: &str = include_str!("parts/index.lua");
const LISTS: &str = include_str!("parts/lists.lua");
const MEMBERSHIP: &str = include_str!("parts/membership.lua");
const MIRROR: &str = include_str!("parts/mirror.lua");
const OVERTAKEN: &str = include_str!("parts/overtaken.lua");
const PENDING: &str = include_str!("parts/pending.lua");
const POSITION: &str = include_str!("parts/position.lua");
const RECORDS: &str = include_str!("parts/records.lua");
const RETENTION: &str = include_str!("parts/retention.lua");
const WAKING: &str = include_str!("parts/waking.lua");

/// Highest sequence that scripts count exactly.
const MAX_SEQUENCE: u64 = (1 << 53) - 1;
/// Longest time in milliseconds that scripts add to another one exactly: 142,000 years.
const MAX_MILLIS: u64 = 1 << 52;

/// Returns all scripts, which every connection loads.
pub(super) fn all() -> [&'static Script; 21] {
    [
        &close_consumer::SCRIPT,
        &consumers::SCRIPT,
        &delete_stream::SCRIPT,
        &fetch::SCRIPT,
        &heartbeat::SCRIPT,
        &history::SCRIPT,
        &infos::SCRIPT,
        &lag::SCRIPT,
        &newest::SCRIPT,
        &open_consumer::SCRIPT,
        &open_stream::SCRIPT,
        &publish::SCRIPT,
        &purge::SCRIPT,
        &reset::SCRIPT,
        &retain::SCRIPT,
        &sequences::SCRIPT,
        &settle::SCRIPT,
        &stream::SCRIPT,
        &streams::SCRIPT,
        &subjects::SCRIPT,
        &tail::SCRIPT,
    ]
}

/// Returns a duration in whole milliseconds, rounded up: a wait never becomes shorter.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).map_or(MAX_MILLIS, |millis| millis.min(MAX_MILLIS))
}

/// A script of the server.
#[derive(Debug)]
pub(super) struct Script {
    /// Name, for errors.
    pub(super) name: &'static str,
    source: String,
    /// SHA-1 of the source, by which the server knows it.
    sha: String,
}

impl Script {
    pub(super) fn new(name: &'static str, source: String) -> Self {
        let sha = redis::Script::new(&source).get_hash().to_owned();
        Self { name, source, sha }
    }

    /// Puts parts between the first line of a script, which has its flags, and the rest.
    fn with_parts(name: &'static str, source: &str, parts: &[&str]) -> Self {
        let (flags, body) = source.split_once('\n').unwrap_or((source, ""));
        Self::new(name, [&[flags], parts, &[body]].concat().join("\n"))
    }

    /// Puts parts into a function `load_NAME`, which returns what they call `name`. Each call of a script makes its
    /// functions anew, so what is seldom used is made only then.
    fn deferred(name: &str, parts: &[&str]) -> String {
        let parts = parts.concat();
        format!("local function load_{name}()\n{parts}\nreturn {name}\nend\n")
    }

    /// Returns the command that loads the script into the server.
    pub(super) fn load(&self) -> Cmd {
        let mut load = cmd("SCRIPT");
        load.arg("LOAD").arg(&self.source);
        load
    }
}

/// A call of a script with its keys and arguments.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) script: &'static Script,
    keys: Vec<Vec<u8>>,
    arguments: Vec<Vec<u8>>,
}

impl Call {
    pub(super) fn new(script: &'static Script) -> Self {
        Self { script, keys: Vec::new(), arguments: Vec::new() }
    }

    pub(super) fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.keys.push(key.into());
        self
    }

    pub(super) fn argument(mut self, argument: impl Into<Vec<u8>>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    pub(super) fn keys(mut self, keys: impl IntoIterator<Item = String>) -> Self {
        self.keys.extend(keys.into_iter().map(String::into_bytes));
        self
    }

    fn number(self, number: u64) -> Self {
        self.argument(number.to_string())
    }

    /// Adds a condition, which is empty if it is false.
    fn flag(self, flag: bool) -> Self {
        self.argument(if flag { "1" } else { "" })
    }

    /// Forces the time, in Unix milliseconds, of a call that is complete.
    #[cfg(test)]
    fn at(self, now: u64) -> Self {
        self.number(now)
    }

    /// Returns the keys that the call names.
    pub(super) fn named_keys(&self) -> impl Iterator<Item = &[u8]> {
        self.keys.iter().map(Vec::as_slice)
    }

    /// Returns the command of the call.
    pub(super) fn command(&self) -> Cmd {
        let mut call = cmd("EVALSHA");
        call.arg(&self.script.sha).arg(self.keys.len());
        self.keys.iter().chain(&self.arguments).for_each(|part| _ = call.arg(part));
        call
    }
}

/// A server that runs scripts.
pub(super) trait Run: Sync {
    /// Runs a call. `operation` names it in errors.
    fn run(&self, operation: &'static str, call: &Call) -> impl Future<Output = Result<Value>> + Send;
}
