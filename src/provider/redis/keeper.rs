//! Work that is due from time to time: dropping events by age, and keeping ephemeral consumers.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::publish::drop_surplus;
use super::script::heartbeat;
use super::stream::Stream;
use super::wake::Consumers;
use crate::provider::support::OwnedTask;

/// Longest and shortest time between two looks for old events.
const LONGEST: Duration = Duration::from_secs(60);
const SHORTEST: Duration = Duration::from_secs(1);
/// Part of the maximum age that events may be older.
const PART_OF_AGE: u32 = 10;
/// Number of consumers in a call.
const CONSUMERS: usize = 500;

/// Starts the task. It ends when this is dropped.
pub(super) fn start(stream: Arc<Stream>, consumers: Arc<Consumers>) -> OwnedTask<()> {
    OwnedTask::spawn(async move {
        let mut beaten = Instant::now();
        loop {
            let max_age = stream.limits().max_age.unwrap_or_default();
            let pause =
                if max_age.is_zero() { LONGEST } else { (max_age / PART_OF_AGE).clamp(SHORTEST, LONGEST) };
            tokio::time::sleep(pause).await;
            // Other members drop some, too; what is left is dropped next time.
            while !max_age.is_zero() && drop_surplus(&stream).await {}
            if beaten.elapsed() >= heartbeat::INTERVAL {
                beaten = Instant::now();
                beat(&stream, &consumers).await;
            }
        }
    })
}

/// Keeps the ephemeral consumers of this process.
async fn beat(stream: &Stream, consumers: &Consumers) {
    let ephemerals: Vec<_> = consumers.all().into_iter().filter(|consumer| !consumer.is_durable).collect();
    let names: Vec<_> = ephemerals.iter().map(|consumer| &*consumer.name).collect();
    // Without any, those of processes that are gone are deleted all the same.
    let parts = if names.is_empty() { vec![&names[..]] } else { names.chunks(CONSUMERS).collect() };
    for part in parts {
        let answer = stream.link.call("subscribe", &heartbeat::heartbeat(&stream.keys, part)).await;
        match answer.and_then(heartbeat::read) {
            // Their members learn it with their next call.
            Ok(_gone) => {}
            Err(error) => tracing::debug!(%error, "keeping ephemeral consumers failed"),
        }
    }
}
