//! Settles deliveries.

use std::sync::LazyLock;

use redis::Value;

use super::reply::Reply;
use super::{COMMON, Call, PENDING, Script, WAKING, millis};
use crate::error::Result;
use crate::provider::AckKind;
use crate::provider::group::Lease;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    let parts = [COMMON, PENDING, WAKING];
    Script::with_parts("settle", include_str!("settle.lua"), &parts)
});

/// A settlement of one delivery.
#[derive(Debug, Clone, Copy)]
pub(in crate::provider::redis) struct Settling<'a> {
    pub(in crate::provider::redis) lease: Lease,
    pub(in crate::provider::redis) kind: &'a AckKind,
    /// Id of the delivered record.
    pub(in crate::provider::redis) id: &'a str,
}

/// Settlements of deliveries of one consumer.
#[derive(Debug, Clone, Copy)]
pub(in crate::provider::redis) struct Request<'a> {
    pub(in crate::provider::redis) name: &'a str,
    pub(in crate::provider::redis) generation: &'a str,
    /// Generation of all leases: the number of times that the consumer was moved.
    pub(in crate::provider::redis) moves: u32,
    /// If true, the records must have the ids that were delivered. Necessary if another server may have become the
    /// primary since: it may have given the sequences of lost events to others.
    pub(in crate::provider::redis) checks_ids: bool,
    pub(in crate::provider::redis) settlings: &'a [Settling<'a>],
}

/// Result of a settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::provider::redis) enum Settled {
    Done,
    /// The event was redelivered.
    Redelivered,
    /// The consumer was moved.
    Reset,
    /// The event is settled, or this delivery already nacked or released it.
    Already,
    /// The event was lost in a failover, and another one has its sequence.
    Lost,
    /// The consumer does not exist and redelivers nothing.
    Closed,
    StreamReplaced,
}

/// Settles deliveries.
pub(in crate::provider::redis) fn settle(keys: &Keys, epoch: &str, request: Request<'_>) -> Call {
    let Request { name, generation, moves, checks_ids, settlings } = request;
    let call = Call::new(&SCRIPT)
        .keys([keys.log(), keys.meta(), keys.consumer(name), keys.due(name), keys.attempts(name)])
        .argument(epoch)
        .argument(keys.channel())
        .argument(name)
        .argument(generation)
        .number(moves.into())
        .flag(checks_ids)
        .number(settlings.len() as u64);
    settlings.iter().fold(call, |call, Settling { lease, kind, id }| {
        let call = match kind {
            AckKind::Ack | AckKind::Term(_) => call.argument("a"),
            AckKind::Nak(None) => call.argument("n"),
            AckKind::Nak(Some(delay)) => call.argument(format!("n{}", millis(*delay))),
            AckKind::Extend => call.argument("x"),
            AckKind::Release => call.argument("r"),
        };
        let call = call.number(lease.sequence).number(lease.attempt.into());
        if checks_ids { call.argument(*id) } else { call }
    })
}

/// Reads the reply: one answer per settlement, in order.
pub(in crate::provider::redis) fn read(reply: Value) -> Result<Vec<Settled>> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    let mut answers = Vec::with_capacity(reply.len());
    while !reply.is_empty() {
        answers.push(match reply.text()?.as_str() {
            "ok" => Settled::Done,
            "redelivered" => Settled::Redelivered,
            "reset" => Settled::Reset,
            "settled" => Settled::Already,
            "lost" => Settled::Lost,
            "closed" => Settled::Closed,
            "replaced" => Settled::StreamReplaced,
            other => return Err(reply.unknown(other)),
        });
    }
    Ok(answers)
}
