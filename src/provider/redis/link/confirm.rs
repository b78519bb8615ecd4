//! Waits until a write is safer than the server's answer says: on replicas, or synced to the disk.

use std::time::Duration;

use redis::{Cmd, Value, cmd};
use tokio::time::Instant;

use super::Limits;
use super::config::LinkConfig;
use super::line::Unanswered;
use super::session::Session;
use crate::provider::redis::error::{Cause, Failure};

/// Longest time for which one command waits, so that the server answers often enough to show that it is alive.
const SLICE: Duration = Duration::from_secs(1);
/// Time that is left for the answer. A server looks for the end of a wait ten times a second.
const SLACK: Duration = Duration::from_millis(150);
/// Writes to a key that exists, and changes nothing.
///
/// A connection waits for its own last write only. A publish that found its event stored already has written nothing
/// on this connection, and would count as confirmed.
const TOUCH: &str = "#!lua flags=allow-oom\n\
    if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'touched', '1') end";

/// Checks that the user may use the commands of this module.
pub(super) async fn check(session: &Session, config: &LinkConfig, until: Instant) -> Result<(), Failure> {
    for command in
        [touch(config), wait(0, 1), wait_aof(0, 1)].iter().take(if config.confirmation.aof { 3 } else { 2 })
    {
        let answer = session.ask(command, until).await;
        answer.map_err(|none| none.while_connecting(session.node()))?;
    }
    Ok(())
}

/// Waits for the confirmation of all that the session has written, at most until the deadline of the call.
pub(super) async fn confirm(
    session: &Session,
    config: &LinkConfig,
    limits: Limits<'_>,
) -> Result<(), Failure> {
    let unconfirmed = |reason| Failure::new(session.node(), Cause::Unconfirmed(reason));
    // The write itself was carried out, so no refusal may say that it was not.
    let failed = |none| match none {
        Unanswered::Refused(refusal) => unconfirmed(refusal.to_string()),
        none => none.into_failure(session.node(), limits.timeout),
    };
    session.ask(&touch(config), limits.until).await.map_err(failed)?;
    let wanted = config.confirmation;
    loop {
        let left = limits.until.saturating_duration_since(Instant::now()).saturating_sub(SLACK);
        // A wait of 0 would never end.
        let slice = u64::try_from(left.min(SLICE).as_millis()).unwrap_or_default().max(1);
        let (mut replicas, mut is_synced) = (i64::from(wanted.replicas), true);
        if wanted.replicas > 0 {
            let answer = session.ask(&wait(wanted.replicas, slice), limits.until).await;
            replicas = number(&answer.map_err(failed)?);
        }
        if wanted.aof {
            let answer = session.ask(&wait_aof(1, slice), limits.until).await.map_err(failed)?;
            is_synced = answer.as_sequence().and_then(<[_]>::first).map(number) == Some(1);
        }
        if replicas >= i64::from(wanted.replicas) && is_synced {
            return Ok(());
        }
        if left <= SLICE {
            return Err(unconfirmed(match is_synced {
                true => format!("{replicas} of {} replicas have it", wanted.replicas),
                false => "the server has not synced it to its disk".to_owned(),
            }));
        }
    }
}

fn touch(config: &LinkConfig) -> Cmd {
    cmd("EVAL").arg(TOUCH).arg(1).arg(&config.key).take()
}

/// Returns the command that waits until this many replicas have the last write of the connection.
fn wait(replicas: u32, milliseconds: u64) -> Cmd {
    cmd("WAIT").arg(replicas).arg(milliseconds).take()
}

/// Returns the command that waits until the server has synced the last write of the connection.
fn wait_aof(servers: u32, milliseconds: u64) -> Cmd {
    cmd("WAITAOF").arg(servers).arg(0).arg(milliseconds).take()
}

fn number(answer: &Value) -> i64 {
    match answer {
        Value::Int(number) => *number,
        _ => 0,
    }
}
