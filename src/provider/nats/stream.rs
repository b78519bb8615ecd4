//! The stream: created if it does not exist, compared if it does, and checked if it accepts publishes.

use std::fmt;
use std::time::Duration;

use async_nats::jetstream::stream::{self, Compression, DiscardPolicy, RetentionPolicy};
use async_nats::jetstream::{self, ErrorCode};
use serde::Deserialize;

use super::client::Shared;
use super::config::{NatsConfig, NatsProviderBuilder, StorageType};
use super::consumer::under_prefix;
use super::error::{PROVIDER, refused};
use super::wire::sent;
use crate::error::{BackendError, ErrorKind, EventError, Result};
use crate::provider::validate::MAX_METADATA_BYTES;
use crate::provider::{self, Durability, StreamLimits, StreamSummary};

/// Size of a small event in bytes. A stream that refuses events beyond its limit in bytes is full if it has less room.
const SMALL_EVENT: u64 = 1_024;

pub(super) fn durability(stream: &stream::Config) -> Durability {
    match (stream.num_replicas, stream.storage) {
        (2.., _) => Durability::NodeLoss,
        // The server syncs files every two minutes unless its `sync_interval` says otherwise.
        (_, stream::StorageType::File) => Durability::ProcessCrash,
        (_, stream::StorageType::Memory) => Durability::None,
    }
}

impl Shared {
    pub(super) async fn stream(&self) -> Result<stream::Info> {
        let subject = format!("STREAM.INFO.{}", self.stream_name());
        self.ask("stream info", subject, Vec::new()).await?.map_err(|error| refused("stream info", error))
    }

    /// Returns the state of the stream, or `None` if it does not exist.
    pub(super) async fn stream_if_any(&self) -> Result<Option<stream::Info>> {
        let subject = format!("STREAM.INFO.{}", self.stream_name());
        match self.ask("stream info", subject, Vec::new()).await? {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
            Err(error) => Err(refused("stream info", error)),
        }
    }

    /// Returns the state of the stream, which is created again if it is gone and `create_if_missing` is true.
    pub(super) async fn stream_or_made_again(&self) -> Result<stream::Info> {
        match self.stream_if_any().await? {
            Some(info) => Ok(info),
            None => self.stream_made_again().await,
        }
    }

    /// Creates a stream again that seems to be gone.
    ///
    /// Concurrent callers wait, and continue in the order of their calls, so that a batch keeps its order.
    pub(super) async fn stream_made_again(&self) -> Result<stream::Info> {
        let _one_at_a_time = self.making.lock().await;
        if let Some(info) = self.stream_if_any().await? {
            return Ok(info);
        }
        let name = self.stream_name();
        if !self.settings.create_if_missing {
            let reason = format!("stream '{name}' no longer exists, and create_if_missing is false");
            return Err(BackendError::new(PROVIDER, "stream info", ErrorKind::NotFound, reason).into());
        }
        tracing::warn!(
            stream = name,
            "the stream is gone with its events and consumers; it is recreated with the settings of this provider"
        );
        self.hostile.clear();
        self.open_stream().await?;
        self.stream().await
    }

    /// Returns true if a publish would be accepted: the stream exists and has a leader, the provider's subjects and
    /// room.
    ///
    /// A missing stream is not healthy. With `create_if_missing` it is created again, so that the next answer is
    /// different. A program that waits for health before it publishes would otherwise wait for ever.
    pub(super) async fn is_healthy(&self) -> bool {
        if self.check_open().is_err() || !self.link.is_connected() {
            return false;
        }
        match self.stream_if_any().await {
            Ok(Some(info)) => self.has_our_subjects(&info.config) && takes_publishes(&info),
            Ok(None) => {
                if let Err(error) = self.stream_made_again().await {
                    tracing::debug!(%error, "the stream is gone and was not recreated");
                }
                false
            }
            Err(error) => {
                tracing::debug!(%error, "the stream does not answer");
                false
            }
        }
    }

    fn has_our_subjects(&self, existing: &stream::Config) -> bool {
        let everything = format!("{}.>", self.prefix());
        existing.subjects.iter().any(|subjects| *subjects == everything || subjects == ">")
    }

    /// Returns all streams of the account, read in pages.
    pub(super) async fn streams(&self) -> Result<Vec<StreamSummary>> {
        #[derive(Deserialize)]
        struct Page {
            total: usize,
            #[serde(default)]
            streams: Option<Vec<stream::Info>>,
        }
        let (mut found, mut offset) = (Vec::new(), 0);
        loop {
            let body = serde_json::json!({ "offset": offset }).to_string();
            let page: Page = self
                .ask("stream list", "STREAM.LIST".to_owned(), body.into())
                .await?
                .map_err(|error| refused("stream list", error))?;
            let listed = page.streams.unwrap_or_default();
            offset += listed.len();
            let is_last = listed.is_empty() || offset >= page.total;
            found.extend(listed.into_iter().map(|info| self.summary(info)));
            if is_last {
                return Ok(found);
            }
        }
    }

    fn summary(&self, info: stream::Info) -> StreamSummary {
        let is_own = info.config.name == self.stream_name();
        let limits = limits(&info.config);
        let mut summary = StreamSummary::new(info.config.name, info.config.subjects);
        summary.events = info.state.messages;
        summary.bytes = info.state.bytes;
        summary.consumers = info.state.consumer_count;
        summary.is_own = is_own;
        summary.limits = Some(limits);
        summary
    }

    pub(super) async fn delete_stream(&self) -> Result<()> {
        self.check_open()?;
        let subject = format!("STREAM.DELETE.{}", self.stream_name());
        let deleted: std::result::Result<serde_json::Value, _> =
            self.ask("stream delete", subject, Vec::new()).await?;
        deleted.map(drop).map_err(|error| refused("stream delete", error))
    }

    /// Deletes the events that the filter matches, and returns their number.
    pub(super) async fn purge(&self, filter: Option<&str>) -> Result<u64> {
        #[derive(Deserialize)]
        struct Purged {
            purged: u64,
        }
        self.check_open()?;
        let subject = format!("STREAM.PURGE.{}", self.stream_name());
        let body = match filter {
            Some(filter) => serde_json::json!({ "filter": under_prefix(filter, self.prefix()) }).to_string(),
            None => String::new(),
        };
        let purged: std::result::Result<Purged, _> = self.ask("stream purge", subject, body.into()).await?;
        purged.map(|answer| answer.purged).map_err(|error| refused("stream purge", error))
    }

    /// Returns the configuration of the stream, which is created if it does not exist.
    pub(super) async fn open_stream(&self) -> Result<stream::Config> {
        let name = self.stream_name();
        let found: std::result::Result<stream::Info, _> =
            self.ask("stream info", format!("STREAM.INFO.{name}"), Vec::new()).await?;
        let existing = match found {
            Ok(info) => info.config,
            Err(error)
                if error.error_code() == ErrorCode::STREAM_NOT_FOUND && !self.settings.create_if_missing =>
            {
                let others = match self.stream_names(None).await {
                    Some(names) if names.is_empty() => "; the server has no streams".to_owned(),
                    Some(names) => format!("; the server has '{}'", names.join("', '")),
                    None => String::new(),
                };
                return Err(EventError::Config(format!(
                    "stream '{name}': does not exist, and create_if_missing is false{others}"
                )));
            }
            Err(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                let wanted = serde_json::to_vec(&self.wanted_stream())?;
                let made: std::result::Result<stream::Info, _> =
                    self.ask("stream create", format!("STREAM.CREATE.{name}"), wanted).await?;
                match made {
                    Ok(info) => return Ok(info.config),
                    // Another program created it in the meantime.
                    Err(error) if error.error_code() == ErrorCode::STREAM_NAME_EXIST => {
                        self.stream().await?.config
                    }
                    Err(error) if error.error_code() == ErrorCode::STREAM_SUBJECT_OVERLAP => {
                        return Err(self.overlap(error).await);
                    }
                    Err(error) => return Err(refused("stream create", error)),
                }
            }
            Err(error) => return Err(refused("stream info", error)),
        };
        self.check_stream(&existing)?;
        Ok(existing)
    }

    /// Returns a conflict that names the stream with the same subjects, if the server permits the question.
    async fn overlap(&self, refusal: jetstream::Error) -> EventError {
        let subjects = self.settings.config.stream_subjects();
        match self.stream_names(subjects.first().map(String::as_str)).await {
            Some(names) if !names.is_empty() => EventError::Conflict {
                resource: format!("stream '{}'", self.stream_name()),
                field: "subjects".to_owned(),
                existing: format!("taken by stream '{}'", names.join("', '")),
                requested: format!("{subjects:?}"),
            },
            _ => refused("stream create", refusal),
        }
    }

    /// Returns the first page of stream names, of those with this subject or of all. Returns `None` if the server does
    /// not permit the question.
    async fn stream_names(&self, subject: Option<&str>) -> Option<Vec<String>> {
        #[derive(Deserialize)]
        struct Names {
            #[serde(default)]
            streams: Option<Vec<String>>,
        }
        let query = subject.map_or_else(Vec::new, |subject| {
            serde_json::json!({ "subject": subject }).to_string().into_bytes()
        });
        let names = self.ask::<Names>("stream names", "STREAM.NAMES".to_owned(), query).await;
        names.ok()?.ok().map(|names| names.streams.unwrap_or_default())
    }

    fn wanted_stream(&self) -> stream::Config {
        let NatsProviderBuilder { config, .. } = &self.settings;
        // JetStream writes unlimited as -1.
        let limit = |max: i64| if max == 0 { -1 } else { max };
        stream::Config {
            name: config.stream_name.clone(),
            subjects: config.stream_subjects(),
            retention: RetentionPolicy::Limits,
            storage: native_storage(config.storage),
            max_messages: limit(config.max_events),
            max_bytes: limit(config.max_bytes),
            max_messages_per_subject: -1,
            max_consumers: -1,
            max_age: sent(Duration::from_secs(config.max_age_secs)),
            max_message_size: self.settings.max_event_bytes.map_or(-1, with_headers),
            num_replicas: self.settings.replicas.unwrap_or(1),
            duplicate_window: sent(self.settings.dedup_window.unwrap_or_default()),
            compression: self.settings.compression.filter(|compress| *compress).map(|_| Compression::S2),
            discard: native_discard(self.settings.discard_new.unwrap_or(false)),
            allow_direct: true,
            allow_atomic_publish: self.settings.atomic_batches.unwrap_or(true)
                && self.link.client().is_server_compatible(2, 12, 0),
            ..stream::Config::default()
        }
    }

    /// Refuses an existing stream that does not fit the settings. Its limits may differ and are not changed.
    fn check_stream(&self, existing: &stream::Config) -> Result<()> {
        let settings = &self.settings;
        if !self.has_our_subjects(existing) {
            let everything = format!("{}.>", self.prefix());
            return Err(self.stream_conflict("subjects", &existing.subjects, &[everything]));
        }
        let storage = native_storage(settings.config.storage);
        if existing.storage != storage {
            return Err(self.stream_conflict("storage", &existing.storage, &storage));
        }
        self.same("replicas", settings.replicas, existing.num_replicas)?;
        self.same("dedup_window", settings.dedup_window.map(sent), existing.duplicate_window)?;
        self.same("max_event_bytes", settings.max_event_bytes.map(with_headers), existing.max_message_size)?;
        self.same("compression", settings.compression, existing.compression == Some(Compression::S2))?;
        let atomic = settings.atomic_batches.filter(|atomic| *atomic);
        self.same("atomic_batches", atomic, existing.allow_atomic_publish)?;
        self.same("discard_new", settings.discard_new, existing.discard == DiscardPolicy::New)?;
        let wanted = self.wanted_stream();
        let in_force = |config: &stream::Config| {
            let StreamLimits { max_events, max_bytes, max_age, .. } = limits(config);
            (max_events, max_bytes, max_age)
        };
        // A configuration that asks for no limits of its own is no reason for a warning.
        let (config, default) = (&settings.config, NatsConfig::default());
        let is_asked = (config.max_events, config.max_bytes, config.max_age_secs)
            != (default.max_events, default.max_bytes, default.max_age_secs);
        if is_asked && in_force(existing) != in_force(&wanted) {
            tracing::warn!(
                stream = existing.name,
                existing = ?in_force(existing),
                configured = ?in_force(&wanted),
                "the stream exists with other limits (events, bytes, age) and keeps them"
            );
        }
        Ok(())
    }

    fn same<T: PartialEq + fmt::Debug>(&self, field: &str, wanted: Option<T>, existing: T) -> Result<()> {
        match wanted {
            Some(wanted) if wanted != existing => Err(self.stream_conflict(field, &existing, &wanted)),
            _ => Ok(()),
        }
    }

    fn stream_conflict(
        &self,
        field: &str,
        existing: &dyn fmt::Debug,
        requested: &dyn fmt::Debug,
    ) -> EventError {
        EventError::Conflict {
            resource: format!("stream '{}'", self.stream_name()),
            field: field.to_owned(),
            existing: format!("{existing:?}"),
            requested: format!("{requested:?}"),
        }
    }
}

/// Returns true if a stream accepts events. A full stream that drops the oldest accepts them.
fn takes_publishes(info: &stream::Info) -> bool {
    let stream::Info { config, state, .. } = info;
    // A standalone server reports no leader, or itself.
    let is_led =
        info.cluster.as_ref().is_none_or(|group| group.leader.as_ref().is_some_and(|name| !name.is_empty()));
    let reaches = |count: u64, max: i64| u64::try_from(max).is_ok_and(|max| max > 0 && count >= max);
    let is_full = config.discard == DiscardPolicy::New
        && (reaches(state.messages, config.max_messages)
            || reaches(state.bytes.saturating_add(SMALL_EVENT), config.max_bytes));
    is_led && !is_full && !config.sealed
}

/// Returns the stream's size limit, which includes the headers with the metadata and id of a message.
fn with_headers(max: usize) -> i32 {
    i32::try_from(max.saturating_add(MAX_METADATA_BYTES)).unwrap_or(i32::MAX)
}

/// Returns the limits of a stream. JetStream writes unlimited as -1 or 0.
fn limits(config: &stream::Config) -> StreamLimits {
    let limit = |max: i64| u64::try_from(max).unwrap_or(0);
    let mut limits = StreamLimits::new(limit(config.max_messages), limit(config.max_bytes), config.max_age);
    limits.discard = match config.discard {
        DiscardPolicy::New => provider::DiscardPolicy::New,
        DiscardPolicy::Old => provider::DiscardPolicy::Old,
    };
    limits
}

fn native_storage(storage: StorageType) -> stream::StorageType {
    match storage {
        StorageType::File => stream::StorageType::File,
        StorageType::Memory => stream::StorageType::Memory,
    }
}

fn native_discard(new: bool) -> DiscardPolicy {
    if new { DiscardPolicy::New } else { DiscardPolicy::Old }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(change: impl Fn(&mut serde_json::Value)) -> stream::Info {
        let mut json = serde_json::json!({
            "config": { "name": "S", "subjects": ["events.>"], "retention": "limits", "max_consumers": -1, "max_msgs": 10,
                "max_bytes": 10_000, "discard": "new", "max_age": 0, "storage": "file", "num_replicas": 1 },
            "created": "2026-01-01T00:00:00Z",
            "state": { "messages": 9, "bytes": 8_000, "first_seq": 1, "first_ts": "2026-01-01T00:00:00Z", "last_seq": 9,
                "last_ts": "2026-01-01T00:00:00Z", "consumer_count": 0 }
        });
        change(&mut json);
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_stream_without_room_or_leader_takes_nothing() {
        assert!(takes_publishes(&info(|_| {})));
        assert!(takes_publishes(&info(|json| json["cluster"] = serde_json::json!({ "leader": "n1" }))));
        assert!(!takes_publishes(&info(|json| json["cluster"] = serde_json::json!({ "name": "c" }))));
        assert!(!takes_publishes(&info(|json| json["state"]["messages"] = 10.into())));
        assert!(!takes_publishes(&info(|json| json["state"]["bytes"] = 9_000.into())));
        assert!(!takes_publishes(&info(|json| json["config"]["sealed"] = true.into())));
        assert!(takes_publishes(&info(|json| {
            json["config"]["discard"] = "old".into();
            json["state"]["messages"] = 10.into();
        })));
    }
}
