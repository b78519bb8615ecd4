//! Reads the state of consumers.

use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::{BOUNDS, COMMON, Call, RECORDS, Script};
use crate::error::Result;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> =
    LazyLock::new(|| Script::with_parts("infos", include_str!("infos.lua"), &[COMMON, RECORDS, BOUNDS]));

/// State of the log and of some consumers, at one moment.
#[derive(Debug)]
pub(in crate::provider::redis) struct Infos {
    pub(in crate::provider::redis) log: Log,
    /// The state of each consumer, in the order of the names. `None` if it does not exist.
    pub(in crate::provider::redis) states: Vec<Option<State>>,
}

/// The retained sequences. Records older than the limit of the stream count as dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::provider::redis) struct Log {
    /// First retained sequence.
    pub(in crate::provider::redis) first: u64,
    /// Sequence behind the last; equal to `first` if nothing is retained.
    pub(in crate::provider::redis) behind: u64,
    /// If true, every number between them is the sequence of one record.
    pub(in crate::provider::redis) is_gapless: bool,
    /// Number of subjects that have retained events.
    pub(in crate::provider::redis) subjects: u64,
}

/// State of a consumer.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::provider::redis) struct State {
    pub(in crate::provider::redis) filter: String,
    /// Sequence up to which every match was delivered or skipped. If its start time has not come, this is the last one.
    pub(in crate::provider::redis) cursor: u64,
    /// Time of the last settlement in Unix milliseconds.
    pub(in crate::provider::redis) progress: Option<u64>,
    pub(in crate::provider::redis) given_up: u64,
    pub(in crate::provider::redis) is_durable: bool,
    pub(in crate::provider::redis) pending: u64,
    /// Number of pending events that were delivered again.
    pub(in crate::provider::redis) redelivered: u64,
    /// Number of events to deliver before the cursor moves, retained or not.
    pub(in crate::provider::redis) backlog: u64,
}

pub(in crate::provider::redis) fn infos(keys: &Keys, names: &[String]) -> Call {
    let stream = [keys.log(), keys.meta(), keys.subjects(), keys.cursors(), keys.ephemerals()];
    let call = Call::new(&SCRIPT).keys(stream);
    names.iter().fold(call, |call, name| {
        call.keys([keys.consumer(name), keys.due(name), keys.backlog(name)]).argument(name.as_str())
    })
}

pub(in crate::provider::redis) fn read(reply: Value) -> Result<Infos> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    let log = Log {
        first: reply.number()?,
        behind: reply.number()?,
        is_gapless: reply.flag()?,
        subjects: reply.number()?,
    };
    let mut reply = reply.list()?;
    let mut states = Vec::with_capacity(reply.len());
    while !reply.is_empty() {
        let consumer = reply.list()?;
        states.push(if consumer.is_empty() { None } else { Some(state(consumer)?) });
    }
    Ok(Infos { log, states })
}

fn state(mut reply: Reply) -> Result<State> {
    Ok(State {
        filter: reply.text()?,
        cursor: reply.number()?,
        progress: reply.optional()?,
        given_up: reply.number()?,
        is_durable: reply.flag()?,
        pending: reply.number()?,
        redelivered: reply.number()?,
        backlog: reply.number()?,
    })
}
