//! Stores events.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::{COMMON, COUNTERS, Call, DEDUP, DROPPING, INDEX, OVERTAKEN, RECORDS, RETENTION, Script};
use crate::error::Result;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    let dedup = Script::deferred("dedup", &[DEDUP]);
    let retain = Script::deferred("retain", &[RECORDS, OVERTAKEN, RETENTION, DROPPING]);
    let parts = [COMMON, COUNTERS, INDEX, &dedup, &retain];
    Script::with_parts("publish", include_str!("publish.lua"), &parts)
});

/// An event to store.
#[derive(Debug, Clone, Copy)]
pub(in crate::provider::redis) struct Record<'a> {
    pub(in crate::provider::redis) subject: &'a str,
    pub(in crate::provider::redis) msg_id: Option<&'a str>,
    pub(in crate::provider::redis) expected_sequence: Option<u64>,
    pub(in crate::provider::redis) json: &'a [u8],
}

/// Result of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::provider::redis) enum Outcome {
    Stored(u64),
    /// The `msg_id` was stored with this sequence before.
    Duplicate(u64),
    /// Another sequence than this last one was expected.
    Conflict(u64),
}

/// Answer to the call.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::provider::redis) enum Published {
    /// One outcome per event, in order.
    Done { outcomes: Vec<Outcome>, has_surplus: bool },
    /// The stream was lost or replaced; nothing is stored.
    StreamReplaced,
    /// There is no sequence left that scripts count exactly; nothing is stored.
    Exhausted,
}

/// Stores events. Many share a call at little more cost than one.
pub(in crate::provider::redis) fn publish(keys: &Keys, epoch: &str, records: &[Record<'_>]) -> Call {
    // A cluster refuses the call before it begins if one of these keys is on another node.
    let subjects: BTreeSet<&str> = records.iter().map(|record| record.subject).collect();
    let call = Call::new(&SCRIPT)
        .keys([keys.log(), keys.meta(), keys.subjects(), keys.ids(), keys.id_queue(), keys.cursors()])
        .keys([keys.overtaken(), keys.consumers(), keys.lagged()])
        .keys(subjects.into_iter().map(|subject| keys.subject(subject)))
        .argument(epoch)
        .argument(keys.base())
        .argument(keys.channel())
        .number(records.len() as u64);
    records.iter().fold(call, |call, record| {
        call.argument(record.subject)
            .argument(record.msg_id.unwrap_or_default())
            .argument(record.expected_sequence.map(|expected| expected.to_string()).unwrap_or_default())
            .argument(record.json)
    })
}

/// Reads the reply to a call with `count` events.
pub(in crate::provider::redis) fn read(reply: Value, count: usize) -> Result<Published> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    match reply.text()?.as_str() {
        "ok" => {}
        "replaced" => return Ok(Published::StreamReplaced),
        "exhausted" => return Ok(Published::Exhausted),
        other => return Err(reply.unknown(other)),
    }
    let has_surplus = reply.flag()?;
    let mut sequences = reply.number::<u64>()?..;
    let mut others = reply.list()?;
    let mut outcomes = Vec::with_capacity(count);
    let mut other = None;
    for number in 1..=count {
        if other.is_none() && !others.is_empty() {
            other = Some((others.number::<usize>()?, outcome(&mut others)?));
        }
        match other {
            Some((at, outcome)) if at == number => {
                outcomes.push(outcome);
                other = None;
            }
            _ => outcomes.extend(sequences.next().map(Outcome::Stored)),
        }
    }
    Ok(Published::Done { outcomes, has_surplus })
}

/// Reads the outcome of an event that was not stored.
fn outcome(answers: &mut Reply) -> Result<Outcome> {
    let answer = answers.text()?;
    let (outcome, sequence): (fn(u64) -> Outcome, &str) = match answer.strip_prefix('!') {
        Some(last) => (Outcome::Conflict, last),
        None => (Outcome::Duplicate, &answer),
    };
    sequence.parse().map(outcome).map_err(|_| answers.unknown(&answer))
}
