//! Consumers on the server: maps options to JetStream settings, and checks existing consumers against them.

use std::sync::Arc;
use std::time::Duration;

use async_nats::datetime;
use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy as NativePolicy, ReplayPolicy};
use async_nats::jetstream::{self, ErrorCode};

use super::client::Shared;
use super::error::refused;
use super::fetch::NatsFetch;
use crate::error::{EventError, Result};
use crate::provider::driver::ConsumerSpec;
use crate::provider::group::ConsumerConfig;
use crate::types::{DeliverPolicy, SubscribeOptions};

/// Idle time after which the server deletes an ephemeral consumer whose process has died. It is long, because a process
/// that handles one event for an hour sends no requests meanwhile.
const EPHEMERAL_IDLE: Duration = Duration::from_secs(60 * 60);
/// Metadata key of the backoff in seconds. JetStream has no per-attempt delay for naks, so the consumer's metadata
/// stores it, also for programs that open the consumer without options.
const BACKOFF_KEY: &str = "a3s-event-backoff-secs";

/// Latest start time in Unix milliseconds, in the year 2262. The server counts nanoseconds in 63 bits; for a later time
/// it would start with everything.
const LAST_START: u64 = i64::MAX.unsigned_abs() / 1_000_000;

/// The request to make for a consumer.
enum Action {
    Create,
    Update,
}

impl Shared {
    pub(super) async fn open(self: &Arc<Self>, consumer: ConsumerSpec) -> Result<NatsFetch> {
        self.check_open()?;
        let ConsumerSpec { name, mut config, applies, .. } = consumer;
        config.filter = under_prefix(&config.filter, self.prefix());
        if let DeliverPolicy::ByStartTime { timestamp } = &mut config.deliver_policy {
            *timestamp = (*timestamp).min(LAST_START);
        }
        match name {
            Some(name) => self.open_durable(&name, config, applies).await,
            None => self.open_ephemeral(config).await,
        }
    }

    /// Opens a durable consumer, and creates it if there is none. With `applies`, changes an existing one to these
    /// settings.
    async fn open_durable(
        self: &Arc<Self>,
        name: &str,
        wanted: ConsumerConfig,
        applies: bool,
    ) -> Result<NatsFetch> {
        loop {
            let stream = self.stream_or_made_again().await?;
            let opened = |info: &consumer::Info, config: ConsumerConfig| {
                NatsFetch::new(self, info, self.life(info, &stream, config), true)
            };
            let Some(existing) = self.consumer(name).await? else {
                let native = self.native(&wanted, name, true)?;
                match self.put_consumer(Action::Create, name, native).await? {
                    Some(info) => return Ok(opened(&info, self.in_force(&info, wanted)?)),
                    // Another program created it in the meantime, or the stream is gone: look again.
                    None => continue,
                }
            };
            self.check_adoptable(name, &existing.config)?;
            let in_force = self.settings_of(&existing)?;
            in_force.check_filter(name, &wanted.filter)?;
            if !applies {
                return Ok(opened(&existing, in_force));
            }
            let mut changed = in_force.clone();
            changed.change_to(name, wanted.clone())?;
            if changed == in_force {
                return Ok(opened(&existing, in_force));
            }
            let mut native = existing.config.clone();
            apply(&changed, &mut native);
            match self.put_consumer(Action::Update, name, native).await? {
                Some(info) => return Ok(opened(&info, self.in_force(&info, changed)?)),
                // Deleted in the meantime: create it again.
                None => continue,
            }
        }
    }

    async fn open_ephemeral(self: &Arc<Self>, wanted: ConsumerConfig) -> Result<NatsFetch> {
        let name = format!("a3s-{}", uuid::Uuid::now_v7().simple());
        let native = self.native(&wanted, &name, false)?;
        let stream = self.stream_or_made_again().await?;
        match self.put_consumer(Action::Create, &name, native).await? {
            Some(info) => {
                let in_force = self.in_force(&info, wanted)?;
                let life = self.life(&info, &stream, in_force);
                Ok(NatsFetch::new(self, &info, life, false))
            }
            None => Err(EventError::Consumer(format!("consumer '{name}' could not be created"))),
        }
    }

    /// Returns the settings that the server reports for a consumer that was just created or changed.
    fn in_force(&self, info: &consumer::Info, wanted: ConsumerConfig) -> Result<ConsumerConfig> {
        let mut config = self.consumer_config_of(&info.config)?;
        // A server before 2.10 keeps no metadata, and may write the start in another way.
        config.backoff = wanted.backoff;
        config.deliver_policy = wanted.deliver_policy;
        Ok(config)
    }

    /// Returns the configuration of a consumer to create.
    fn native(&self, wanted: &ConsumerConfig, name: &str, durable: bool) -> Result<consumer::Config> {
        let mut native = consumer::Config {
            durable_name: durable.then(|| name.to_owned()),
            name: Some(name.to_owned()),
            deliver_policy: native_policy(&wanted.deliver_policy)?,
            ack_policy: AckPolicy::Explicit,
            replay_policy: ReplayPolicy::Instant,
            filter_subject: wanted.filter.clone(),
            inactive_threshold: if durable { Duration::ZERO } else { EPHEMERAL_IDLE },
            ..consumer::Config::default()
        };
        apply(wanted, &mut native);
        Ok(native)
    }

    /// Creates or changes a consumer. Returns `None` if there is one already, none to change, or no stream.
    async fn put_consumer(
        &self,
        action: Action,
        name: &str,
        config: consumer::Config,
    ) -> Result<Option<consumer::Info>> {
        let (operation, action) = match action {
            Action::Create => ("consumer create", "create"),
            Action::Update => ("consumer update", "update"),
        };
        let stream = self.stream_name();
        // The server requires the filter in the subject too, so that permissions can distinguish consumers.
        let subject = if config.filter_subject.is_empty() {
            format!("CONSUMER.CREATE.{stream}.{name}")
        } else {
            format!("CONSUMER.CREATE.{stream}.{name}.{}", config.filter_subject)
        };
        let body = serde_json::json!({ "stream_name": stream, "config": config, "action": action });
        let answer: std::result::Result<consumer::Info, jetstream::Error> =
            self.ask(operation, subject, body.to_string().into()).await?;
        match answer {
            Ok(info) => Ok(Some(info)),
            Err(error)
                if matches!(
                    error.error_code(),
                    ErrorCode::CONSUMER_ALREADY_EXISTS
                        | ErrorCode::CONSUMER_NAME_EXIST
                        | ErrorCode::CONSUMER_DOES_NOT_EXIST
                        | ErrorCode::STREAM_NOT_FOUND
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(refused(operation, error)),
        }
    }

    /// Refuses an existing consumer that cannot fulfil the contract.
    fn check_adoptable(&self, name: &str, existing: &consumer::Config) -> Result<()> {
        let conflict = |field: &str, existing: String, requested: &str| {
            Err(EventError::Conflict {
                resource: format!("consumer '{name}'"),
                field: field.to_owned(),
                existing,
                requested: requested.to_owned(),
            })
        };
        if let Some(subject) = &existing.deliver_subject {
            return conflict("delivery", format!("push to {subject}"), "pull");
        }
        if existing.ack_policy != AckPolicy::Explicit {
            return conflict("ack_policy", format!("{:?}", existing.ack_policy), "Explicit");
        }
        if !existing.filter_subjects.is_empty() {
            return conflict("filter", existing.filter_subjects.join(", "), "one filter");
        }
        Ok(())
    }

    /// Returns the settings of an existing consumer. If the server keeps no metadata, the backoff is the one that this
    /// process knows.
    pub(super) fn settings_of(&self, info: &consumer::Info) -> Result<ConsumerConfig> {
        let mut config = self.consumer_config_of(&info.config)?;
        if !self.link.client().is_server_compatible(2, 10, 0)
            && let Some(life) = self.lives.get(&info.name).filter(|life| life.is_of(info))
        {
            config.backoff.clone_from(&life.config().backoff);
        }
        Ok(config)
    }

    /// Converts a consumer configuration of the server.
    fn consumer_config_of(&self, native: &consumer::Config) -> Result<ConsumerConfig> {
        let mut config = ConsumerConfig::new(">", &SubscribeOptions::default())?;
        config.filter = self.filter_of(native);
        config.deliver_policy = policy_of(&native.deliver_policy);
        config.ack_wait = native.ack_wait;
        config.backoff = backoff_of(native);
        config.max_deliver = u64::try_from(native.max_deliver).ok().filter(|max| *max > 0);
        config.max_ack_pending = usize::try_from(native.max_ack_pending).unwrap_or(usize::MAX);
        Ok(config)
    }

    /// Returns the filter of a consumer. A consumer that receives everything may have none on the server.
    pub(super) fn filter_of(&self, native: &consumer::Config) -> String {
        let filter = if native.filter_subject.is_empty() { ">" } else { &native.filter_subject };
        under_prefix(filter, self.prefix())
    }
}

/// Writes the settings into a consumer's configuration, and keeps its other fields.
fn apply(wanted: &ConsumerConfig, native: &mut consumer::Config) {
    native.ack_wait = wanted.ack_wait;
    native.max_deliver = wanted.max_deliver.map_or(-1, |max| i64::try_from(max).unwrap_or(i64::MAX));
    native.max_ack_pending = i64::try_from(wanted.max_ack_pending).unwrap_or(i64::MAX);
    // The server's own backoff would replace the ack wait. It counts from the delivery; a nak delay counts from the
    // nak.
    native.backoff = Vec::new();
    native.metadata.remove(BACKOFF_KEY);
    if !wanted.backoff.is_empty() {
        let secs: Vec<_> = wanted.backoff.iter().map(|delay| delay.as_secs().to_string()).collect();
        native.metadata.insert(BACKOFF_KEY.to_owned(), secs.join(","));
    }
}

/// Returns the backoff in the metadata, or else the server's own, which earlier versions of this library used.
fn backoff_of(native: &consumer::Config) -> Vec<Duration> {
    let ours = native
        .metadata
        .get(BACKOFF_KEY)
        .and_then(|list| list.split(',').map(|secs| secs.parse().ok().map(Duration::from_secs)).collect());
    ours.unwrap_or_else(|| native.backoff.clone())
}

fn native_policy(policy: &DeliverPolicy) -> Result<NativePolicy> {
    Ok(match policy {
        DeliverPolicy::All => NativePolicy::All,
        DeliverPolicy::Last => NativePolicy::Last,
        DeliverPolicy::New => NativePolicy::New,
        DeliverPolicy::ByStartSequence { sequence } => {
            NativePolicy::ByStartSequence { start_sequence: *sequence }
        }
        DeliverPolicy::ByStartTime { timestamp } => {
            let start_time = datetime::from_nanos(i128::from(*timestamp) * 1_000_000).map_err(|_| {
                EventError::Config(format!("deliver_policy start time {timestamp}: is out of range"))
            })?;
            NativePolicy::ByStartTime { start_time }
        }
        DeliverPolicy::LastPerSubject => NativePolicy::LastPerSubject,
    })
}

fn policy_of(native: &NativePolicy) -> DeliverPolicy {
    match native {
        NativePolicy::All => DeliverPolicy::All,
        NativePolicy::Last => DeliverPolicy::Last,
        NativePolicy::New => DeliverPolicy::New,
        NativePolicy::ByStartSequence { start_sequence } => {
            DeliverPolicy::ByStartSequence { sequence: *start_sequence }
        }
        NativePolicy::ByStartTime { start_time } => {
            let millis = start_time.unix_timestamp_nanos() / 1_000_000;
            let timestamp = u64::try_from(millis).unwrap_or_default().min(LAST_START);
            DeliverPolicy::ByStartTime { timestamp }
        }
        NativePolicy::LastPerSubject => DeliverPolicy::LastPerSubject,
    }
}

/// Rewrites a filter so that it lies under the prefix, as the server requires. Under `events`, `*.a` becomes
/// `events.a`.
pub(super) fn under_prefix(filter: &str, prefix: &str) -> String {
    let mut patterns = filter.split('.');
    for _ in prefix.split('.') {
        match patterns.next() {
            Some(">") | None => return format!("{prefix}.>"),
            Some(_) => {}
        }
    }
    patterns.fold(prefix.to_owned(), |spelled, pattern| format!("{spelled}.{pattern}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_spelled_under_the_prefix() {
        for (filter, spelled) in [
            (">", "acme.events.>"),
            ("acme.>", "acme.events.>"),
            ("acme.events.>", "acme.events.>"),
            ("*.events.a.*", "acme.events.a.*"),
            ("acme.*.a", "acme.events.a"),
            ("*.*.>", "acme.events.>"),
        ] {
            assert_eq!(under_prefix(filter, "acme.events"), spelled);
        }
    }

    #[test]
    fn durations_are_nanoseconds_on_the_wire() {
        let options = SubscribeOptions {
            max_deliver: Some(4),
            backoff_secs: vec![1, 5],
            ack_wait_secs: Some(2),
            ..Default::default()
        };
        let mut native = consumer::Config::default();
        apply(&ConsumerConfig::new("events.>", &options).unwrap(), &mut native);
        let json = serde_json::to_value(&native).unwrap();
        assert_eq!(json["ack_wait"], 2_000_000_000_u64);
        assert_eq!((&json["max_deliver"], &json["max_ack_pending"]), (&4.into(), &1_000.into()));
        // Only in the metadata: as a server setting it would replace the ack wait.
        assert_eq!(json.get("backoff"), None);
        assert_eq!(backoff_of(&native), [Duration::from_secs(1), Duration::from_secs(5)]);
    }

    #[test]
    fn every_policy_comes_back() {
        for policy in [
            DeliverPolicy::All,
            DeliverPolicy::Last,
            DeliverPolicy::New,
            DeliverPolicy::ByStartSequence { sequence: 7 },
            DeliverPolicy::ByStartTime { timestamp: 1_700_000_000_123 },
            DeliverPolicy::ByStartTime { timestamp: LAST_START },
            DeliverPolicy::LastPerSubject,
        ] {
            assert_eq!(policy_of(&native_policy(&policy).unwrap()), policy);
        }
    }
}
