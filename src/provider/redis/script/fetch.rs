//! Leases the next events of a consumer.

use std::sync::LazyLock;
use std::time::Duration;

use redis::Value;

use super::reply::Reply;
use super::{COMMON, Call, MIRROR, OVERTAKEN, PENDING, RECORDS, Script};
use crate::error::Result;
use crate::provider::group::Lease;
use crate::provider::redis::keys::Keys;

pub(super) static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    let mirror = Script::deferred("mirror", &[MIRROR]);
    let parts = [COMMON, RECORDS, OVERTAKEN, PENDING, mirror.as_str()];
    Script::with_parts("fetch", include_str!("fetch.lua"), &parts)
});

/// A request for events of a consumer.
#[derive(Debug, Clone, Copy)]
pub(in crate::provider::redis) struct Request<'a> {
    pub(in crate::provider::redis) name: &'a str,
    pub(in crate::provider::redis) generation: &'a str,
    /// Maximum number of events.
    pub(in crate::provider::redis) max: usize,
    /// Bytes of JSON from which the answer is full; its last event may exceed them.
    pub(in crate::provider::redis) max_bytes: usize,
    /// If true, the call counts as a [heartbeat](super::heartbeat).
    pub(in crate::provider::redis) is_ephemeral: bool,
}

/// Answer to the call.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::provider::redis) enum Fetched {
    Events(Events),
    /// So many events were dropped before they were processed. The next call continues after them.
    Missed(u64),
    /// The consumer does not exist.
    Gone,
    StreamReplaced,
}

#[derive(Debug, PartialEq, Eq)]
pub(in crate::provider::redis) struct Events {
    pub(in crate::provider::redis) deliveries: Vec<Delivery>,
    /// Number of the first deliveries that were due again.
    pub(in crate::provider::redis) again: usize,
    /// Time from now until the next pending event is due.
    pub(in crate::provider::redis) due: Option<Duration>,
    /// If true, the call ended at a bound of its work, and another one may deliver more at once.
    pub(in crate::provider::redis) has_more: bool,
    /// Number of changes of the consumer's settings.
    pub(in crate::provider::redis) revision: u64,
}

/// A leased record.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::provider::redis) struct Delivery {
    pub(in crate::provider::redis) lease: Lease,
    /// Id of the record in the log.
    pub(in crate::provider::redis) id: String,
    /// Empty if another program wrote the record.
    pub(in crate::provider::redis) subject: String,
    /// JSON of the event, or the joined fields of another program's record.
    pub(in crate::provider::redis) json: Vec<u8>,
}

/// Leases events.
pub(in crate::provider::redis) fn fetch(keys: &Keys, epoch: &str, request: Request<'_>) -> Call {
    let Request { name, generation, max, max_bytes, is_ephemeral } = request;
    Call::new(&SCRIPT)
        .keys([keys.log(), keys.meta(), keys.consumer(name), keys.due(name), keys.attempts(name)])
        .keys([keys.backlog(name), keys.cursors(), keys.overtaken(), keys.lagged(), keys.ephemerals()])
        .argument(epoch)
        .argument(name)
        .argument(generation)
        .number(max as u64)
        .number(max_bytes as u64)
        .flag(is_ephemeral)
}

/// Reads the reply.
pub(in crate::provider::redis) fn read(reply: Value) -> Result<Fetched> {
    let mut reply = Reply::new(&SCRIPT, reply)?;
    Ok(match reply.text()?.as_str() {
        "ok" => {
            let due = reply.optional()?.map(Duration::from_millis);
            let has_more = reply.flag()?;
            let generation = reply.number()?;
            let revision = reply.number()?;
            let again = usize::try_from(reply.number::<u64>()?).unwrap_or(usize::MAX);
            let mut items = reply.list()?;
            let mut deliveries = Vec::with_capacity(items.len() / 5);
            while !items.is_empty() {
                let mut lease = Lease::new(items.number()?, items.number()?);
                lease.generation = generation;
                let (id, subject, json) = (items.text()?, items.text()?, items.bytes()?);
                deliveries.push(Delivery { lease, id, subject, json });
            }
            Fetched::Events(Events { deliveries, again, due, has_more, revision })
        }
        "missed" => Fetched::Missed(reply.number()?),
        "gone" => Fetched::Gone,
        "replaced" => Fetched::StreamReplaced,
        other => return Err(reply.unknown(other)),
    })
}
