//! The life of a consumer, from its creation on the server until it is deleted or lost. A later consumer of the same
//! name is a different one, and deliveries of the first are not settled on it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use async_nats::datetime::DateTime;
use async_nats::jetstream::{consumer, stream};
use tokio::time::Instant;

use super::client::Shared;
use super::parked::Parked;
use super::position::{Position, Seen};
use super::unconfirmed::Unconfirmed;
use crate::error::Result;
use crate::poison::IgnorePoison;
use crate::provider::SubscriptionEnd;
use crate::provider::group::ConsumerConfig;
use crate::types::DeliverPolicy;

/// Tolerance for creation times. Servers before 2.10 report one that differs by a fraction of a millisecond after a
/// restart.
const OLD_SERVERS_DIFFER_BY: Duration = Duration::from_millis(20);

/// State shared by all members of a consumer in this process.
pub(super) struct Life {
    pub(super) name: String,
    created: DateTime,
    stream_created: DateTime,
    /// Maximum difference between two reported creation times of the same consumer.
    tolerance: Duration,
    /// If true, the consumer survives a restart of the server.
    is_kept: bool,
    end: OnceLock<SubscriptionEnd>,
    resets: AtomicU64,
    /// Start time in Unix milliseconds, if it was in the future when the consumer was created. The server starts such a
    /// consumer at the end of the stream, at once.
    waits_until: Option<u64>,
    state: Mutex<State>,
    /// Deliveries that this process cannot receive.
    pub(super) parked: Parked,
    /// Acks that are not confirmed yet.
    pub(super) unconfirmed: Unconfirmed,
}

struct State {
    /// Settings in force, as last read.
    config: Arc<ConsumerConfig>,
    /// Time of the last reset. Earlier deliveries are forgotten.
    valid_from: Option<Instant>,
    seen: Option<Seen>,
}

impl Life {
    fn new(
        shared: &Shared,
        info: &consumer::Info,
        stream: &stream::Info,
        config: Arc<ConsumerConfig>,
    ) -> Self {
        let is_new = info.delivered.consumer_sequence == 0;
        let sequence = match config.deliver_policy {
            // The consumer begins with the newest event of each subject. The events between them are not missing.
            DeliverPolicy::LastPerSubject if is_new => stream.state.last_sequence,
            _ => info.delivered.stream_sequence,
        };
        let seen = Seen { sequence, delivery: info.delivered.consumer_sequence };
        let tells_exactly = shared.link.client().is_server_compatible(2, 10, 0);
        Self {
            name: info.name.clone(),
            created: info.created,
            stream_created: stream.created,
            tolerance: if tells_exactly { Duration::ZERO } else { OLD_SERVERS_DIFFER_BY },
            is_kept: info.config.durable_name.is_some() && !info.config.memory_storage,
            end: OnceLock::new(),
            resets: AtomicU64::new(0),
            waits_until: waits_until(&config.deliver_policy, info),
            state: Mutex::new(State { config, valid_from: None, seen: Some(seen) }),
            parked: Parked::default(),
            unconfirmed: Unconfirmed::default(),
        }
    }

    /// Returns true if this is the life of the reported consumer.
    pub(super) fn is_of(&self, info: &consumer::Info) -> bool {
        let apart =
            (info.created.unix_timestamp_nanos() - self.created.unix_timestamp_nanos()).unsigned_abs();
        apart <= self.tolerance.as_nanos()
    }

    /// Returns the settings in force, as last read.
    pub(super) fn config(&self) -> Arc<ConsumerConfig> {
        Arc::clone(&self.state().config)
    }

    fn set_config(&self, config: Arc<ConsumerConfig>) {
        self.state().config = config;
    }

    /// Returns true if the record was stored before the time at which the consumer starts.
    pub(super) fn is_before_start(&self, position: Position) -> bool {
        self.waits_until.is_some_and(|start| position.stored_at < start)
    }

    /// Returns true if a delivery received at this time can be settled: the consumer has neither ended nor been reset
    /// since.
    pub(super) fn takes(&self, received: Instant) -> bool {
        self.end().is_none() && self.is_in_force(received)
    }

    /// Returns true if this is a redelivery of an acked event, sent before the server had stored the ack.
    pub(super) fn is_acked(&self, position: Position, received: Instant) -> bool {
        position.num_delivered > 1 && self.unconfirmed.contains(position.sequence, received)
    }

    /// Returns the reason if the consumer has ended.
    pub(super) fn end(&self) -> Option<SubscriptionEnd> {
        self.end.get().copied()
    }

    pub(super) fn end_as(&self, end: SubscriptionEnd) {
        // The first reason is kept.
        let _ = self.end.set(end);
        self.unconfirmed.clear();
    }

    /// Returns the number of resets that this process knows of.
    pub(super) fn resets(&self) -> u64 {
        self.resets.load(Ordering::Acquire)
    }

    /// Returns true if the consumer has not been reset since this time.
    pub(super) fn is_in_force(&self, received: Instant) -> bool {
        self.state().valid_from.is_none_or(|from| received >= from)
    }

    /// Forgets deliveries received before this time. `seen` is the new position, if it is known.
    pub(super) fn reset(&self, at: Instant, seen: Option<Seen>) {
        let mut state = self.state();
        state.valid_from = state.valid_from.max(Some(at));
        state.seen = seen;
        drop(state);
        self.parked.clear();
        self.unconfirmed.clear();
        self.resets.fetch_add(1, Ordering::Release);
    }

    /// Returns the number of events before this one that were never delivered.
    pub(super) fn missing_before(&self, position: Position) -> u64 {
        self.state().seen.map_or(0, |seen| seen.missing_before(position))
    }

    /// Notes a delivery, and returns the number of events before it that retention dropped. `first` is the present
    /// first sequence of the stream. Events deleted by hand from the middle of the stream do not count.
    pub(super) fn see(&self, position: Position, first: u64) -> u64 {
        let mut state = self.state();
        let here = Seen { sequence: position.sequence, delivery: position.delivery };
        let Some(seen) = state.seen.replace(here) else { return 0 };
        state.seen = Some(seen.then(position));
        seen.missing_before(position).min(first.saturating_sub(seen.sequence.saturating_add(1)))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().ignore_poison()
    }
}

/// Consumers that are open in this process.
#[derive(Default)]
pub(super) struct Lives(Mutex<HashMap<String, Weak<Life>>>);

impl Lives {
    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, Weak<Life>>> {
        self.0.lock().ignore_poison()
    }

    /// Returns the consumer of this name, if it is open.
    pub(super) fn get(&self, name: &str) -> Option<Arc<Life>> {
        self.known().get(name)?.upgrade().filter(|life| life.end().is_none())
    }
}

fn waits_until(policy: &DeliverPolicy, info: &consumer::Info) -> Option<u64> {
    let DeliverPolicy::ByStartTime { timestamp } = policy else { return None };
    let is_later = i128::from(*timestamp) * 1_000_000 > info.created.unix_timestamp_nanos();
    is_later.then_some(*timestamp)
}

impl Shared {
    /// Notes the reported settings of a consumer, because another program may have changed them.
    pub(super) fn note_settings(&self, info: &consumer::Info) {
        let Some(life) = self.lives.get(&info.name).filter(|life| life.is_of(info)) else { return };
        match self.settings_of(info) {
            Ok(config) => life.set_config(Arc::new(config)),
            Err(error) => {
                tracing::debug!(%error, consumer = info.name, "reading the settings of the consumer failed");
            }
        }
    }

    /// Returns the life of a consumer that was just opened, and ends that of an earlier consumer of the same name.
    pub(super) fn life(
        &self,
        info: &consumer::Info,
        stream: &stream::Info,
        config: ConsumerConfig,
    ) -> Arc<Life> {
        let config = Arc::new(config);
        if let Some(life) = self.lives.get(&info.name) {
            if life.is_of(info) {
                life.set_config(config);
                return life;
            }
            let replaced = life.stream_created != stream.created;
            life.end_as(if replaced { SubscriptionEnd::StreamReplaced } else { SubscriptionEnd::Deleted });
        }
        let life = Arc::new(Life::new(self, info, stream, config));
        let mut known = self.lives.known();
        known.retain(|_, life| life.strong_count() > 0);
        known.insert(info.name.clone(), Arc::downgrade(&life));
        life
    }

    /// Checks if a consumer still exists, and returns the reason if it has ended. `told` means that the server reported
    /// its deletion.
    pub(super) async fn look_after(&self, life: &Life, told: bool) -> Result<Option<SubscriptionEnd>> {
        if let Some(end) = life.end() {
            return Ok(Some(end));
        }
        if self.consumer(&life.name).await?.is_some_and(|info| life.is_of(&info)) {
            return Ok(None);
        }
        let end = match self.stream_if_any().await? {
            Some(stream) if stream.created == life.stream_created => {
                if told || life.is_kept {
                    SubscriptionEnd::Deleted
                } else {
                    SubscriptionEnd::Lost
                }
            }
            _ => {
                self.hostile.clear();
                SubscriptionEnd::StreamReplaced
            }
        };
        life.end_as(end);
        Ok(life.end())
    }
}
