//! Moves a consumer to another position. The server supports this since 2.14.

use std::time::Duration;

use async_nats::jetstream::stream::State;
use async_nats::jetstream::{ErrorCode, consumer};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::client::Shared;
use super::error::{PROVIDER, refused};
use super::position::Seen;
use crate::error::{EventError, Result};
use crate::provider::ConsumerPosition;
use crate::provider::support::unsupported;

/// Time after which the server has written a consumer's state. It writes at most every 100 ms, in a separate task.
const WRITTEN: Duration = Duration::from_millis(500);

impl Shared {
    pub(super) fn resets_consumers(&self) -> bool {
        self.link.client().is_server_compatible(2, 14, 0)
    }

    /// Moves a durable consumer. It keeps its settings and its open subscriptions.
    pub(super) async fn reset_consumer(&self, name: &str, position: ConsumerPosition) -> Result<()> {
        self.check_open()?;
        if !self.resets_consumers() {
            return Err(unsupported("reset_consumer on nats-server before 2.14", PROVIDER));
        }
        let info = self.consumer(name).await?.filter(|info| info.config.durable_name.is_some());
        let info = info.ok_or_else(|| unknown(name))?;
        let sequence = self.sequence_of(position).await?;
        if let Some(life) = self.lives.get(name) {
            // After the reset, a confirmation would settle a redelivery. Events whose acks are unconfirmed now are
            // redelivered like all others.
            let _ = self.flush_acks(&life).await;
            life.unconfirmed.clear();
        }
        self.move_consumer(&info, sequence).await?;
        // While the server writes the state of an earlier delivery, it does not write the new position. It then writes
        // it only with the next delivery (`consumerFileStore::writeState` of nats-server 2.15). A restart before that
        // would restore the old position. So a consumer that has delivered nothing since is moved once more.
        tokio::time::sleep(WRITTEN).await;
        let now = self.consumer(name).await?.filter(|now| now.created == info.created);
        if now.ok_or_else(|| unknown(name))?.delivered.consumer_sequence == 0 {
            return self.move_consumer(&info, sequence).await;
        }
        tokio::time::sleep(WRITTEN).await;
        Ok(())
    }

    async fn move_consumer(&self, info: &consumer::Info, sequence: u64) -> Result<()> {
        let name = &info.name;
        // Events that arrive from here on may come from the new position.
        let asked = Instant::now();
        let subject = format!("CONSUMER.RESET.{}.{name}", self.stream_name());
        let body = json!({ "seq": sequence }).to_string();
        match self.ask::<Value>("consumer reset", subject, body.into()).await? {
            Ok(_) => {}
            Err(error) if error.error_code() == ErrorCode::CONSUMER_INVALID_RESET => {
                let policy = &info.config.deliver_policy;
                let option =
                    format!("reset_consumer to sequence {sequence} of a consumer that starts {policy:?}");
                return Err(unsupported(&option, PROVIDER));
            }
            Err(error) if error.error_code() == ErrorCode::CONSUMER_NOT_FOUND => return Err(unknown(name)),
            Err(error) => return Err(refused("consumer reset", error)),
        }
        if let Some(life) = self.lives.get(name).filter(|life| life.is_of(info)) {
            life.reset(asked, Some(Seen { sequence: sequence - 1, delivery: 0 }));
        }
        Ok(())
    }

    /// Returns the sequence that a position refers to now.
    async fn sequence_of(&self, position: ConsumerPosition) -> Result<u64> {
        let State { first_sequence, last_sequence, .. } = self.stream().await?.state;
        let (first, end) = (first_sequence.max(1), last_sequence.saturating_add(1));
        match position {
            ConsumerPosition::First => Ok(first),
            ConsumerPosition::Last => Ok(end),
            // Events before the first one were dropped earlier and do not count as missed again. The server accepts a
            // sequence far behind the last one, and would wait for it.
            ConsumerPosition::Sequence(sequence) => Ok(sequence.min(end).max(first)),
            ConsumerPosition::Time(unix_ms) => self.first_stored_since(unix_ms, first, end.max(first)).await,
        }
    }
}

fn unknown(name: &str) -> EventError {
    EventError::NotFound(format!("durable consumer '{name}'"))
}
